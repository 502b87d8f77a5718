//! Figures of a sample of durations: nearest-rank percentiles, in one line for people.
//!
//! Used by everything that measures; a percentile is always a value that was seen, never an interpolation.

use std::time::Duration;

/// The value below which `percent` of the sample lies; nearest rank. Zero for an empty sample.
pub fn percentile(sample: &[Duration], percent: usize) -> Duration {
    let mut sorted = sample.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// `what`, p50, p99, maximum and size of the sample. Milliseconds, with a decimal below ten.
pub fn line(what: &str, sample: &[Duration]) -> String {
    let [p50, p99, max] = [50, 99, 100].map(|percent| milliseconds(percentile(sample, percent)));
    format!("{what:<34} p50 {p50:>6} ms   p99 {p99:>6} ms   max {max:>6} ms   n {}", sample.len())
}

fn milliseconds(value: Duration) -> String {
    let ms = value.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") }
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

    #[test]
    fn a_line_names_its_unit_and_size() {
        let text = line("get", &[Duration::from_micros(1500), Duration::from_millis(20)]);
        assert!(text.contains("p50    1.5 ms") && text.contains("p99     20 ms") && text.ends_with("n 2"), "{text}");
    }
}
