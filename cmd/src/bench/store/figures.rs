//! What was measured, as numbers: of requests sent again and again, and single figures of what a database goes through.
//!
//! Always holds: a percentile is a value that was seen (nearest rank); of several runs the median counts.

use std::time::Duration;

/// One request: when it was answered, from the beginning of the measurement, and how long that took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub at_ms: u32,
    pub took_us: u32,
}

impl Sample {
    /// An hour and more is as long as can be told; nothing here takes so long.
    pub fn new(at: Duration, took: Duration) -> Self {
        let most = |value: u128| u32::try_from(value).unwrap_or(u32::MAX);
        Self { at_ms: most(at.as_millis()), took_us: most(took.as_micros()) }
    }
}

/// Of requests of one kind, all figures of one run or medians of several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    /// Of all members, per request.
    pub cpu_us: f64,
    /// Of this program, per request: it has the same cores.
    pub client_cpu_us: f64,
    /// Of all members.
    pub memory_mb: f64,
    pub disk_mb: f64,
    /// Writes of the log to stable storage, of all members: nobody is fast by leaving them out.
    pub syncs_per_second: f64,
}

impl Figures {
    /// Throughput and latencies.
    pub fn of(samples: &[Sample], elapsed: Duration) -> Self {
        let mut took: Vec<u32> = samples.iter().map(|sample| sample.took_us).collect();
        took.sort_unstable();
        let [p50_ms, p99_ms, p999_ms] = [500, 990, 999].map(|permille| rank(&took, permille));
        let per_second = samples.len() as f64 / elapsed.as_secs_f64().max(1e-9);
        Self { per_second, p50_ms, p99_ms, p999_ms, ..Self::default() }
    }
}

/// The percentile of a sorted sample, in milliseconds; zero of none.
fn rank(sorted: &[u32], permille: usize) -> f64 {
    let rank = (sorted.len() * permille).div_ceil(1000).max(1);
    sorted.get(rank - 1).map_or(0.0, |us| f64::from(*us) / 1e3)
}

/// The columns of requests, in the order of tables: name for people, name for programs, decimals, value.
pub type Column = (&'static str, &'static str, usize, fn(&Figures) -> f64);
pub const COLUMNS: [Column; 9] = [
    ("req/s", "per_second", 0, |figures| figures.per_second),
    ("p50 ms", "p50_ms", 2, |figures| figures.p50_ms),
    ("p99 ms", "p99_ms", 2, |figures| figures.p99_ms),
    ("p99.9 ms", "p999_ms", 2, |figures| figures.p999_ms),
    ("CPU us", "cpu_us_per_request", 1, |figures| figures.cpu_us),
    ("client us", "client_cpu_us_per_request", 1, |figures| figures.client_cpu_us),
    ("MB memory", "memory_mb", 0, |figures| figures.memory_mb),
    ("MB disk", "disk_mb", 0, |figures| figures.disk_mb),
    ("fsync/s", "fsyncs_per_second", 0, |figures| figures.syncs_per_second),
];

/// The middle one; of an even number the upper middle. Nothing of nothing.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Of each figure the median of the runs.
pub fn medians(runs: &[Figures]) -> Option<Figures> {
    let of = |value: fn(&Figures) -> f64| median(runs.iter().map(value));
    Some(Figures {
        per_second: of(|figures| figures.per_second)?,
        p50_ms: of(|figures| figures.p50_ms)?,
        p99_ms: of(|figures| figures.p99_ms)?,
        p999_ms: of(|figures| figures.p999_ms)?,
        cpu_us: of(|figures| figures.cpu_us)?,
        client_cpu_us: of(|figures| figures.client_cpu_us)?,
        memory_mb: of(|figures| figures.memory_mb)?,
        disk_mb: of(|figures| figures.disk_mb)?,
        syncs_per_second: of(|figures| figures.syncs_per_second)?,
    })
}

/// Ours as a part of theirs; nothing where that says nothing.
pub fn ratio(ours: f64, theirs: f64) -> Option<f64> {
    let ratio = ours / theirs;
    (ratio.is_finite() && ratio > 0.0).then_some(ratio)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let took = |us| Sample { at_ms: 0, took_us: us };
        let samples: Vec<Sample> = (1..=2000).rev().map(took).collect();
        let figures = Figures::of(&samples, Duration::from_secs(4));
        assert_eq!((figures.per_second, figures.p50_ms, figures.p99_ms, figures.p999_ms), (500.0, 1.0, 1.98, 1.998));
        assert_eq!(Figures::of(&[], Duration::from_secs(1)).p99_ms, 0.0);
        assert_eq!(Figures::of(&[took(7)], Duration::from_secs(1)).p999_ms, 0.007);
    }

    #[test]
    fn the_median_of_each_figure_is_taken_by_itself() {
        let run = |per_second, p99_ms| Figures { per_second, p99_ms, ..Figures::default() };
        let middle = medians(&[run(3.0, 1.0), run(1.0, 9.0), run(2.0, 5.0)]).expect("figures");
        assert_eq!((middle.per_second, middle.p99_ms), (2.0, 5.0));
        assert!(medians(&[]).is_none());
    }

    #[test]
    fn a_ratio_to_nothing_is_no_ratio() {
        assert_eq!(ratio(1.0, 2.0), Some(0.5));
        assert_eq!(ratio(1.0, 0.0), None);
        assert_eq!(ratio(0.0, 1.0), None);
        assert_eq!(ratio(f64::NAN, 1.0), None);
    }

    #[test]
    fn times_beyond_what_a_sample_holds_stay_the_largest() {
        let hours = Duration::from_secs(100 * 3600);
        assert_eq!(Sample::new(hours, hours).took_us, u32::MAX);
    }
}
