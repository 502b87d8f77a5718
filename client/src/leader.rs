//! Runs work only while this server leads, and tells it in which term (I9, D10).
//!
//! Leadership is Raft's; `cmd` feeds it in from the store. There is no second election that could disagree.
//! Always holds: at most one future of a gate lives at a time, and it is dropped as soon as its term is over. What it
//! still has in flight then is refused by the fence.

use std::future::Future;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Whether this server leads, and in which Raft term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub leading: bool,
    pub term: u64,
}

/// Opens while this server leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LeaderGate {
    state: watch::Receiver<Leadership>,
}

impl LeaderGate {
    pub fn new(state: watch::Receiver<Leadership>) -> Self {
        Self { state }
    }

    /// The leadership known now.
    pub fn current(&self) -> Leadership {
        *self.state.borrow()
    }

    /// The term, once this server leads; `None` when leadership will not be reported any more.
    pub async fn leading(&mut self) -> Option<u64> {
        self.state.wait_for(|state| state.leading).await.ok().map(|state| state.term)
    }

    /// Resolves when `term` is no longer led by this server.
    pub async fn lost(&mut self, term: u64) {
        // A closed channel means the store has stopped: that is a loss too.
        let _ = self.state.wait_for(|state| !state.leading || state.term != term).await;
    }

    /// Runs `lead(term)` in each term this server leads, until `stop` is cancelled.
    ///
    /// The future is dropped at its next await when the term ends. One that returns by itself is started again only in the
    /// next term.
    pub async fn run<F, W>(mut self, stop: CancellationToken, mut lead: F)
    where
        F: FnMut(u64) -> W,
        W: Future<Output = ()>,
    {
        loop {
            let term = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                term = self.leading() => match term {
                    Some(term) => term,
                    None => return,
                },
            };
            let mut lost = self.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = lost.lost(term) => (),
                () = lead(term) => (),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.lost(term) => (),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Duration;

    struct Ends(Arc<Mutex<Vec<String>>>, u64);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.lock().push(format!("end {}", self.1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_runs_once_per_term_and_is_dropped_with_it() {
        let (state, receiver) = watch::channel(Leadership::default());
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let gate = LeaderGate::new(receiver);
        let log = Arc::clone(&seen);
        let task = tokio::spawn(gate.run(stop.clone(), move |term| {
            let log = Arc::clone(&log);
            async move {
                log.lock().push(format!("start {term}"));
                let _ends = Ends(Arc::clone(&log), term);
                std::future::pending::<()>().await;
            }
        }));
        for (leading, term) in [(true, 3), (true, 4), (false, 5), (true, 6)] {
            state.send_replace(Leadership { leading, term });
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.cancel();
        task.await.expect("gate ends");
        assert_eq!(*seen.lock(), ["start 3", "end 3", "start 4", "end 4", "start 6", "end 6"]);
    }
}
