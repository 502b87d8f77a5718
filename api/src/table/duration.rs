//! Durations as people read them: two to three digits that matter.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::meta;

/// `3s`, `5m30s`, `17m`, `3h5m`, `26h`, `3d4h`, `200d`, `2y100d`, `9y`.
pub fn human(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    // Clocks of machines differ a little: a second in the future is now.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match (minutes, hours) {
        (..2, _) => format!("{seconds}s"),
        (..10, _) => two(minutes, "m", seconds % 60, "s"),
        (..180, _) => format!("{minutes}m"),
        (_, ..8) => two(hours, "h", minutes % 60, "m"),
        (_, ..48) => format!("{hours}h"),
        (_, ..192) => two(days, "d", hours % 24, "h"),
        (_, ..17_520) => format!("{days}d"),
        (_, ..70_080) => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

fn two(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
}

/// Time since the time at `pointer`, or `<unknown>`.
pub(super) fn since(object: &Value, pointer: &str, now: Timestamp) -> String {
    match meta::timestamp(object, pointer) {
        Some(then) => human(now.duration_since(then)),
        None => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, want) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 300, "3h5m"),
            (8 * 3600, "8h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (50 * 3600, "2d2h"),
            (8 * 86400, "8d"),
            (729 * 86400, "729d"),
            (730 * 86400, "2y"),
            (731 * 86400, "2y1d"),
            (8 * 365 * 86400, "8y"),
        ] {
            assert_eq!(human(SignedDuration::from_secs(seconds)), want, "{seconds}");
        }
    }
}
