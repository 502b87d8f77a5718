//! What a controller did and its cache has not shown yet, per key.
//!
//! Always holds: while something is outstanding for a key, its owner does not count pods, so a slow cache never leads to a
//! pod too many or too few. Creations and deletions are followed by uid, not by number: nothing else that happens in the
//! namespace can be mistaken for them.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use pintle_client::Key;

use crate::limits;

#[derive(Default)]
pub struct Expectations {
    keys: Mutex<HashMap<Key, Outstanding>>,
}

struct Outstanding {
    since: Instant,
    /// Creations sent and not answered; while there are some, uids that appear are noted in `seen`.
    creating: usize,
    seen: HashSet<String>,
    created: HashSet<String>,
    deleted: HashSet<String>,
    /// A write whose outcome is unknown: the cache must catch up with a consistent read before anything is counted.
    uncertain: bool,
}

impl Outstanding {
    fn new() -> Self {
        Self {
            since: clock::now(),
            creating: 0,
            seen: HashSet::new(),
            created: HashSet::new(),
            deleted: HashSet::new(),
            uncertain: false,
        }
    }

    fn is_over(&self) -> bool {
        self.creating == 0 && self.created.is_empty() && self.deleted.is_empty() && !self.uncertain
    }
}

impl Expectations {
    /// True if the cache shows everything that was done for `key`, or if it had time enough.
    pub fn satisfied(&self, key: &Key) -> bool {
        let mut keys = self.keys.lock();
        let Some(outstanding) = keys.get(key) else { return true };
        if outstanding.is_over() {
            keys.remove(key);
            return true;
        }
        if !outstanding.uncertain && outstanding.since.elapsed() > limits::EXPECTATION {
            tracing::warn!(%key, "expected changes were never seen, going on");
            keys.remove(key);
            return true;
        }
        false
    }

    /// True if the outcome of a write for `key` is unknown.
    pub fn is_uncertain(&self, key: &Key) -> bool {
        self.keys.lock().get(key).is_some_and(|outstanding| outstanding.uncertain)
    }

    /// The cache has caught up with a consistent read begun after the last write for `key`.
    pub fn caught_up(&self, key: &Key) {
        self.keys.lock().remove(key);
    }

    /// A creation is about to be sent.
    pub fn creating(&self, key: &Key) {
        self.with(key, |outstanding| outstanding.creating += 1);
    }

    /// A creation was answered with the new object's uid.
    pub fn created(&self, key: &Key, uid: &str) {
        self.with(key, |outstanding| {
            outstanding.creating = outstanding.creating.saturating_sub(1);
            if !outstanding.seen.remove(uid) {
                outstanding.created.insert(uid.to_owned());
            }
            outstanding.settle();
        });
    }

    /// A creation failed; `refused` if it is certain that nothing was created.
    pub fn not_created(&self, key: &Key, refused: bool) {
        self.with(key, |outstanding| {
            outstanding.creating = outstanding.creating.saturating_sub(1);
            outstanding.uncertain |= !refused;
            outstanding.settle();
        });
    }

    /// A deletion of `uid` is about to be sent.
    pub fn deleting(&self, key: &Key, uid: &str) {
        self.with(key, |outstanding| {
            outstanding.deleted.insert(uid.to_owned());
        });
    }

    /// The cache showed an object of `key`; `gone` if it is deleted or being deleted. Called for every pod event.
    ///
    /// True if this was the last thing awaited for `key`.
    pub fn observe(&self, key: &Key, uid: &str, gone: bool) -> bool {
        let mut keys = self.keys.lock();
        let Some(outstanding) = keys.get_mut(key) else { return false };
        let awaited = !outstanding.is_over();
        if !outstanding.created.remove(uid) && outstanding.creating > 0 {
            outstanding.seen.insert(uid.to_owned());
        }
        if gone {
            outstanding.deleted.remove(uid);
        }
        awaited && outstanding.is_over()
    }

    /// A deletion of `uid` failed or found nothing.
    pub fn not_deleted(&self, key: &Key, uid: &str) {
        self.with(key, |outstanding| {
            outstanding.deleted.remove(uid);
        });
    }

    /// The owner is gone.
    pub fn forget(&self, key: &Key) {
        self.keys.lock().remove(key);
    }

    /// Another term begins: its caches have caught up.
    pub fn clear(&self) {
        self.keys.lock().clear();
    }

    fn with(&self, key: &Key, change: impl FnOnce(&mut Outstanding)) {
        let mut keys = self.keys.lock();
        let outstanding = keys.entry(key.clone()).or_insert_with(Outstanding::new);
        if outstanding.is_over() {
            outstanding.since = clock::now();
        }
        change(outstanding);
    }
}

impl Outstanding {
    /// With no creation in flight, uids that were noted cannot be answers any more.
    fn settle(&mut self) {
        if self.creating == 0 {
            self.seen.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key() -> Key {
        Key::new("ns", "web")
    }

    #[test]
    fn a_created_pod_is_awaited_until_the_cache_shows_it() {
        let expectations = Expectations::default();
        expectations.creating(&key());
        assert!(!expectations.satisfied(&key()));
        expectations.created(&key(), "1");
        assert!(!expectations.observe(&key(), "other", false));
        assert!(!expectations.satisfied(&key()));
        assert!(expectations.observe(&key(), "1", false), "the last that was awaited");
        assert!(!expectations.observe(&key(), "1", false));
        assert!(expectations.satisfied(&key()));
    }

    #[test]
    fn an_event_that_comes_before_the_answer_counts() {
        let expectations = Expectations::default();
        expectations.creating(&key());
        expectations.observe(&key(), "1", false);
        expectations.observe(&key(), "1", true);
        expectations.created(&key(), "1");
        assert!(expectations.satisfied(&key()));
    }

    #[test]
    fn a_deletion_is_awaited_until_the_pod_is_going_or_gone() {
        let expectations = Expectations::default();
        expectations.deleting(&key(), "1");
        expectations.deleting(&key(), "2");
        expectations.observe(&key(), "1", false);
        expectations.not_deleted(&key(), "2");
        assert!(!expectations.satisfied(&key()));
        expectations.observe(&key(), "1", true);
        assert!(expectations.satisfied(&key()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_seen_is_given_up_but_an_unknown_outcome_is_not() {
        let expectations = Expectations::default();
        expectations.creating(&key());
        expectations.created(&key(), "1");
        clock::sleep(Duration::from_secs(301)).await;
        assert!(expectations.satisfied(&key()));
        expectations.creating(&key());
        expectations.not_created(&key(), false);
        clock::sleep(Duration::from_secs(301)).await;
        assert!(expectations.is_uncertain(&key()) && !expectations.satisfied(&key()));
        expectations.caught_up(&key());
        assert!(expectations.satisfied(&key()));
    }

    #[test]
    fn a_refused_creation_leaves_nothing_to_wait_for() {
        let expectations = Expectations::default();
        expectations.creating(&key());
        expectations.not_created(&key(), true);
        assert!(expectations.satisfied(&key()));
    }
}
