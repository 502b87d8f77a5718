//! How long a server may be silent before it counts as lost. Pure.
//!
//! Short at first, so that a dead server is left within two seconds. But a server that only is slow looks dead, too, and
//! leaving it makes it slower: hundreds of clients that reconnect cost it more than what it was slow with, and together they
//! would keep it that way for ever. So each suspicion doubles the time for the next one, and a connection that lasts halves it again.
//! Rule: a failure detector that is wrong only finitely often (Chandra and Toueg, 1996, §3).

use std::time::Duration;

use crate::limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience(u32);

impl Patience {
    pub const FIRST: Self = Self(1);
    pub const LONGEST: Self = Self(limits::PATIENCE_MAX);

    /// For the handshakes of TLS and HTTP/2 together.
    pub fn dial(self) -> Duration {
        limits::DIAL_TIMEOUT * self.0
    }

    /// For the answer to a ping, or any other sign of life.
    pub fn ping(self) -> Duration {
        limits::KEEP_ALIVE_TIMEOUT * self.0
    }

    /// Somebody was silent for as long as this.
    pub fn silence(&mut self) {
        self.0 = (self.0 * 2).min(limits::PATIENCE_MAX);
    }

    /// A connection has lasted for [`limits::PATIENCE_PROVEN`]. It shrinks by steps, not at once: under a load that goes on,
    /// first times would make everybody leave once more.
    pub fn proven(&mut self) {
        self.0 = (self.0 / 2).max(Self::FIRST.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_each_silence_and_ends_with_a_connection_that_lasts() {
        let mut patience = Patience::FIRST;
        assert!(
            limits::KEEP_ALIVE_INTERVAL + patience.ping() <= Duration::from_secs(2),
            "a dead server is found in time"
        );
        patience.silence();
        patience.silence();
        assert_eq!(patience, Patience(4));
        assert_eq!(patience.dial(), limits::DIAL_TIMEOUT * 4);
        (0..40).for_each(|_| patience.silence());
        assert_eq!(patience, Patience(limits::PATIENCE_MAX));
        patience.proven();
        assert_eq!(patience, Patience(limits::PATIENCE_MAX / 2), "one step for each such time");
        (0..40).for_each(|_| patience.proven());
        assert_eq!(patience, Patience::FIRST);
    }
}
