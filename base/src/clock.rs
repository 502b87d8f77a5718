//! Time. Monotonic time is tokio's, so that a paused runtime controls it; wall time is derived from the monotonic one
//! plus one reading of the system clock, so that a simulated run sees both move together.
//!
//! Outside a paused runtime [`wall`] re-reads the system clock: certificates and tokens need the corrected time.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use tokio::time::{
    Instant, Interval, MissedTickBehavior, error::Elapsed, interval, sleep, sleep_until, timeout, timeout_at,
};

static SIMULATED_EPOCH: OnceLock<(Instant, SystemTime)> = OnceLock::new();

/// The monotonic time now.
pub fn now() -> Instant {
    Instant::now()
}

/// The wall-clock time now; simulated once [`simulate_wall`] was called.
pub fn wall() -> SystemTime {
    match SIMULATED_EPOCH.get() {
        Some((start, epoch)) => *epoch + start.elapsed(),
        None => SystemTime::now(),
    }
}

/// Whole milliseconds since the Unix epoch.
pub fn unix_millis() -> u64 {
    u64::try_from(wall().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis()).unwrap_or(u64::MAX)
}

/// Whole seconds since the Unix epoch.
pub fn unix_seconds() -> i64 {
    i64::try_from(unix_millis() / 1000).unwrap_or(i64::MAX)
}

/// From now on wall time is `epoch` plus the monotonic time that passes. For simulations; the first call wins.
pub fn simulate_wall(epoch: SystemTime) {
    SIMULATED_EPOCH.get_or_init(|| (now(), epoch));
}

/// An interval that never fires twice in a row to catch up after a stall.
pub fn ticker(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
