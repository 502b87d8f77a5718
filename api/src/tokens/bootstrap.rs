//! Bootstrap tokens: the Secrets they are kept in, and how long they live.
//!
//! One reading of the expiration for the API server, which refuses what is over, and for the cleaner, which deletes it.

use std::time::Duration;

use jiff::Timestamp;

pub const NAMESPACE: &str = "kube-system";
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Entry of the Secret's data that says when the token ends, RFC 3339.
pub const EXPIRATION: &str = "expiration";

/// How much of a token's life is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It does not say when it ends.
    Endless,
    /// Never zero.
    Left(Duration),
    Over,
    /// It says when it ends, but nobody can read it: counts as over, as upstream.
    Unreadable,
}

impl Life {
    pub fn is_over(self) -> bool {
        matches!(self, Self::Over | Self::Unreadable)
    }
}

/// What is left at `now` of the life of a token with this `expiration`, empty if it has none.
pub fn life(expiration: &[u8], now: Timestamp) -> Life {
    if expiration.is_empty() {
        return Life::Endless;
    }
    let at = std::str::from_utf8(expiration).ok().and_then(|text| text.trim().parse::<Timestamp>().ok());
    let Some(at) = at else { return Life::Unreadable };
    match Duration::try_from(at.duration_since(now)) {
        Ok(left) if !left.is_zero() => Life::Left(left),
        _ => Life::Over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_until_the_second_it_names() {
        let now = Timestamp::from_millisecond(1_800_000_000_500).expect("time"); // 2027-01-15T08:00:00.5Z
        let table = [
            ("", Life::Endless),
            ("2027-01-15T08:00:01Z", Life::Left(Duration::from_millis(500))),
            ("2027-01-15T10:00:01+02:00", Life::Left(Duration::from_millis(500))),
            ("2027-01-15T08:00:00.5Z", Life::Over),
            ("2027-01-15T08:00:00Z", Life::Over),
            ("never", Life::Unreadable),
            ("2027-01-15", Life::Unreadable),
            ("\u{0}", Life::Unreadable),
        ];
        for (expiration, want) in table {
            assert_eq!(life(expiration.as_bytes(), now), want, "{expiration}");
        }
        assert_eq!(life(b"\xff", now), Life::Unreadable);
    }
}
