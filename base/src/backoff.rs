//! Exponential backoff with jitter: a value, not a task. The caller sleeps.

use std::time::Duration;

use crate::rng;

/// Delays that double from `first` to `max`; [`Backoff::reset`] after a success.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first }
    }

    /// The delay to wait before the next try: up to 20 % longer than the nominal one.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(self.max);
        rng::jitter(delay, 0.2)
    }

    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum_and_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));
        for nominal in [10, 20, 35, 35] {
            let delay = backoff.next_delay().as_millis();
            assert!((nominal..=nominal * 6 / 5 + 1).contains(&delay), "{delay} for {nominal}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(12));
    }
}
