//! A queue of keys with client-go's semantics: what reconcilers take their work from.
//!
//! Always holds: a key is waiting at most once; a key being worked on is never handed out a second time, but is waiting
//! again after [`WorkQueue::done`] if it was added meanwhile. Bounded by the number of distinct keys.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use tokio::sync::Notify;

use crate::limits;

/// Cheap to clone; clones are the same queue.
pub struct WorkQueue<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys that need work: those in `ready`, and those being worked on that were added again.
    dirty: HashSet<K>,
    working: HashSet<K>,
    /// When each delayed key is due; `timers` may hold older entries of the same key, which are skipped.
    due: HashMap<K, Instant>,
    timers: BinaryHeap<Reverse<(Instant, u64, Slot<K>)>>,
    sequence: u64,
    failures: HashMap<K, u32>,
    closed: bool,
}

/// A key in the timer heap, where only time and sequence decide the order.
struct Slot<K>(K);
impl<K> PartialEq for Slot<K> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<K> Eq for Slot<K> {}
impl<K> PartialOrd for Slot<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Slot<K> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl<K: Clone + Eq + Hash> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            due: HashMap::new(),
            timers: BinaryHeap::new(),
            sequence: 0,
            failures: HashMap::new(),
            closed: false,
        };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Asks for work on `key`, now or as soon as the work under way on it is done.
    pub fn add(&self, key: K) {
        let mut state = self.inner.state.lock();
        if state.add(key) {
            drop(state);
            self.inner.changed.notify_one();
        }
    }

    /// Asks for work on `key` after `delay`. An earlier request for the same key stays.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.inner.state.lock();
        if state.closed {
            return;
        }
        let due = clock::now() + delay;
        if state.due.get(&key).is_some_and(|earlier| *earlier <= due) {
            return;
        }
        state.due.insert(key.clone(), due);
        state.sequence += 1;
        let sequence = state.sequence;
        state.timers.push(Reverse((due, sequence, Slot(key))));
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Asks for work on `key` after a delay that doubles with each failure: 5 ms up to 1000 s.
    pub fn add_after_failure(&self, key: K) {
        let failures = {
            let mut state = self.inner.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            *failures - 1
        };
        self.add_after(key, retry_delay(failures));
    }

    /// How often `key` failed since it was last forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.inner.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next failure of `key` counts as its first again.
    pub fn forget(&self, key: &K) {
        self.inner.state.lock().failures.remove(key);
    }

    /// The next key to work on; `None` once the queue is closed. Each key needs a later [`done`](Self::done).
    ///
    /// Safe to drop: a key is taken only by the poll that returns it.
    pub async fn next(&self) -> Option<K> {
        loop {
            let changed = self.inner.changed.notified();
            let wait = {
                let mut state = self.inner.state.lock();
                if state.closed {
                    return None;
                }
                let wait = state.release_due(clock::now());
                if let Some(key) = state.take() {
                    let more = !state.ready.is_empty();
                    drop(state);
                    if more {
                        self.inner.changed.notify_one(); // `notify_one` keeps one permit: pass the rest on
                    }
                    return Some(key);
                }
                wait
            };
            match wait {
                Some(due) => tokio::select! {
                    () = changed => (),
                    () = clock::sleep_until(due) => (),
                },
                None => changed.await,
            }
        }
    }

    /// The work on `key` has ended; if it was added meanwhile it waits again.
    pub fn done(&self, key: &K) {
        let mut state = self.inner.state.lock();
        if state.working.remove(key) && state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.inner.changed.notify_one();
        }
    }

    /// Keys waiting now, without the delayed ones.
    pub fn len(&self) -> usize {
        self.inner.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Wakes all waiters with `None`; later additions are ignored.
    pub fn close(&self) {
        let mut state = self.inner.state.lock();
        state.closed = true;
        state.ready.clear();
        state.timers.clear();
        drop(state);
        self.inner.changed.notify_waiters();
        self.inner.changed.notify_one();
    }

    /// Works on keys with `workers` at once until the queue is closed. `work` is called for one key at a time per key.
    ///
    /// Dropping the future drops the work under way.
    pub async fn drain<F, W>(&self, workers: usize, work: F)
    where
        F: Fn(K) -> W,
        W: Future<Output = ()>,
    {
        let worker = || async {
            while let Some(key) = self.next().await {
                work(key.clone()).await;
                self.done(&key);
            }
            self.inner.changed.notify_one(); // closing stores one permit only: wake the next worker
        };
        futures::future::join_all((0..workers.max(1)).map(|_| worker())).await;
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    /// True if a waiter must be woken.
    fn add(&mut self, key: K) -> bool {
        if self.closed || !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    /// Moves keys that are due to `ready` and returns when the next one is.
    fn release_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((due, _, _))) = self.timers.peek() {
            if *due > now {
                return Some(*due);
            }
            let Some(Reverse((due, _, Slot(key)))) = self.timers.pop() else { break };
            if self.due.get(&key) == Some(&due) {
                self.due.remove(&key);
                self.add(key);
            }
        }
        None
    }
}

fn retry_delay(failures: u32) -> Duration {
    limits::RETRY_FIRST.saturating_mul(2u32.saturating_pow(failures)).min(limits::RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    /// Runs `add k`, `after k ms`, `fail k`, `get`, `done k`, `tick ms`, `close`; answers of `get` are joined.
    async fn run(script: &str) -> String {
        let (queue, mut out) = (WorkQueue::<String>::new(), Vec::new());
        for line in script.split(';').map(str::trim) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["add", key] => queue.add(key.to_owned()),
                ["after", key, ms] => queue.add_after(key.to_owned(), Duration::from_millis(ms.parse().expect("ms"))),
                ["fail", key] => queue.add_after_failure(key.to_owned()),
                ["forget", key] => queue.forget(&key.to_owned()),
                ["done", key] => queue.done(&key.to_owned()),
                ["tick", ms] => clock::sleep(Duration::from_millis(ms.parse().expect("ms"))).await,
                ["close"] => queue.close(),
                ["get"] => out.push(match queue.next().now_or_never() {
                    Some(Some(key)) => key,
                    Some(None) => "closed".to_owned(),
                    None => "-".to_owned(),
                }),
                _ => panic!("unknown line {line}"),
            }
        }
        out.join(" ")
    }

    async fn check(script: &str, want: &str) {
        assert_eq!(run(script).await, want, "{script}");
    }

    #[tokio::test(start_paused = true)]
    async fn keys_wait_once_and_are_not_worked_on_twice_at_a_time() {
        check("add a; add a; add b; get; get; get", "a b -").await;
        check("add a; get; add a; get; done a; get", "a - a").await;
        check("add a; get; done a; get", "a -").await;
        check("add a; get; add a; add a; done a; get; done a; get", "a a -").await;
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_keys_come_when_due_and_the_earliest_request_counts() {
        check("after a 10; get; tick 10; get", "- a").await;
        check("after a 50; after a 10; tick 10; get; done a; tick 50; get", "a -").await;
        check("after a 10; after a 50; tick 10; get; done a; tick 50; get", "a -").await;
        check("after b 20; after a 10; tick 30; get; get", "a b").await;
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_exponentially_until_forgotten() {
        check("fail a; tick 5; get; done a; fail a; tick 5; get; tick 5; get", "a - a").await;
        check("fail a; tick 5; get; done a; forget a; fail a; tick 5; get", "a a").await;
        assert_eq!(retry_delay(0), Duration::from_millis(5));
        assert_eq!(retry_delay(60), Duration::from_secs(1000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_queue_ends_its_workers() {
        check("add a; close; get; add b; get", "closed closed").await;
        let queue = WorkQueue::<u32>::new();
        let (drained, ()) = tokio::join!(clock::timeout(Duration::from_secs(5), queue.drain(4, |_| async {})), async {
            clock::sleep(Duration::from_millis(1)).await;
            queue.close();
        });
        drained.expect("all workers end");
    }

    #[tokio::test(start_paused = true)]
    async fn workers_run_different_keys_at_the_same_time() {
        let queue = WorkQueue::<u32>::new();
        (0..8).for_each(|key| queue.add(key));
        let started = clock::now();
        let left = std::cell::Cell::new(8);
        queue
            .drain(4, |_| async {
                clock::sleep(Duration::from_secs(1)).await;
                left.set(left.get() - 1);
                if left.get() == 0 {
                    queue.close();
                }
            })
            .await;
        assert_eq!(started.elapsed(), Duration::from_secs(2));
    }
}
