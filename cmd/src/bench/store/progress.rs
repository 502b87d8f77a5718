//! How far a long step is, on standard error, at most once in a second.

use std::time::Duration;

use pintle_base::clock::{self, Instant};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(2);

pub struct Progress {
    what: String,
    total: u64,
    started: Instant,
    told: Instant,
}

impl Progress {
    pub fn new(what: &str, total: u64) -> Self {
        let now = clock::now();
        Self { what: what.to_owned(), total, started: now, told: now }
    }

    pub fn tell(&mut self, done: u64) {
        if self.told.elapsed() >= PAUSE {
            self.told = clock::now();
            eprintln!("    {}: {}", self.what, far(done, self.total, self.started.elapsed()));
        }
    }

    /// Says how long it took, if that was long enough to be waited for.
    pub fn end(&self) {
        if self.started.elapsed() >= Duration::from_secs(1) {
            eprintln!("    {}: done in {:.1} s", self.what, self.started.elapsed().as_secs_f64());
        }
    }
}

fn far(done: u64, total: u64, took: Duration) -> String {
    if done == 0 {
        return format!("0 of {total}");
    }
    #[allow(clippy::cast_precision_loss)] // a guess
    let left = took.as_secs_f64() * (total.saturating_sub(done)) as f64 / done as f64;
    format!("{done} of {total}, {left:.0} s left")
}

/// Says every two seconds that `work` still goes on.
pub async fn during<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let started = clock::now();
    loop {
        match clock::timeout(PAUSE, &mut work).await {
            Ok(done) => return done,
            Err(_) => eprintln!("    {what}: {:.0} s", started.elapsed().as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_is_done() {
        assert_eq!(far(25, 100, Duration::from_secs(10)), "25 of 100, 30 s left");
        assert_eq!(far(0, 100, Duration::from_secs(10)), "0 of 100");
    }
}
