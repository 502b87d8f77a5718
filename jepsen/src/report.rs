//! Figures in the field's units: medians and percentiles of a small sample.

use std::time::Duration;

/// The value below which `percent` of the sample lies; nearest rank.
pub fn percentile(sample: &[Duration], percent: usize) -> Duration {
    let mut sorted = sample.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

pub fn line(what: &str, sample: &[Duration]) -> String {
    let ms = |percent| percentile(sample, percent).as_millis();
    format!("{what:<34} p50 {:>5} ms   p99 {:>5} ms   max {:>5} ms   n {}", ms(50), ms(99), ms(100), sample.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sample: Vec<Duration> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sample, 50).as_millis(), 10);
        assert_eq!(percentile(&sample, 99).as_millis(), 20);
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
