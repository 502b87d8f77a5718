//! Whether a connection has requests in work, and since when it has not.
//!
//! Always holds: a request is in work until the last byte of its answer was handed over or its stream was dropped; a
//! connection with a request in work is never silent, however quiet that is (watches, logs that are followed).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use tokio::sync::Notify;

use crate::held;
use crate::types::Response;

pub(super) struct Activity {
    state: Mutex<State>,
    /// Told when the last request ends.
    rested: Notify,
}

struct State {
    in_work: usize,
    begun: bool,
    /// Since when nothing is in work.
    since: Instant,
}

/// One request in work.
pub(super) struct InWork(Arc<Activity>);

impl Activity {
    pub fn new() -> Self {
        Self { state: Mutex::new(State { in_work: 0, begun: false, since: clock::now() }), rested: Notify::new() }
    }

    pub fn begin(self: &Arc<Self>) -> InWork {
        let mut state = self.state.lock();
        state.in_work += 1;
        state.begun = true;
        InWork(Arc::clone(self))
    }

    /// Counts silence anew from now.
    pub fn rest(&self) {
        self.state.lock().since = clock::now();
    }

    /// Waits until nothing has been in work for so long: for `first` before the first request, then for `idle`.
    pub async fn silent_for(&self, first: Duration, idle: Duration) {
        loop {
            let until = {
                let state = self.state.lock();
                (state.in_work == 0).then_some(state.since + if state.begun { idle } else { first })
            };
            match until {
                None => self.rested.notified().await,
                Some(until) if until <= clock::now() => return,
                Some(until) => tokio::select! {
                    () = self.rested.notified() => (),
                    () = clock::sleep_until(until) => (),
                },
            }
        }
    }
}

impl Drop for InWork {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.in_work -= 1;
        if state.in_work == 0 {
            state.since = clock::now();
            self.0.rested.notify_one();
        }
    }
}

impl InWork {
    /// Keeps the request in work until the body of `response` ends or is dropped.
    pub fn until_end_of(self, response: Response) -> Response {
        held::until_end_of(response, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(300);
    const LIMIT: Duration = Duration::from_secs(90);

    #[tokio::test(start_paused = true)]
    async fn silence_begins_when_the_last_request_ends() {
        let activity = Arc::new(Activity::new());
        let (first, second) = (activity.begin(), activity.begin());
        assert!(clock::timeout(LIMIT * 10, activity.silent_for(FIRST, LIMIT)).await.is_err(), "requests are in work");
        drop(first);
        assert!(clock::timeout(LIMIT * 10, activity.silent_for(FIRST, LIMIT)).await.is_err(), "one is left");
        drop(second);
        let start = clock::now();
        activity.silent_for(FIRST, LIMIT).await;
        assert_eq!(start.elapsed().as_secs(), LIMIT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_request_has_a_limit_of_its_own() {
        let (start, activity) = (clock::now(), Arc::new(Activity::new()));
        activity.silent_for(FIRST, LIMIT).await;
        assert_eq!(start.elapsed().as_secs(), FIRST.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_between_starts_the_count_again() {
        let activity = Arc::new(Activity::new());
        let start = clock::now();
        let silent = activity.silent_for(FIRST, LIMIT);
        let busy = async {
            clock::sleep(LIMIT / 2).await;
            let request = activity.begin();
            clock::sleep(LIMIT).await;
            drop(request);
        };
        tokio::join!(silent, busy);
        assert_eq!(start.elapsed().as_secs(), (LIMIT / 2 + LIMIT + LIMIT).as_secs());
    }
}
