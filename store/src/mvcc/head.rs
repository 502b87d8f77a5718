//! The head index: the newest version of the keys used last, in memory, so that a write rarely has to seek.
//!
//! A cache and nothing more: a miss falls through to the database, and no answer depends on what is in it (I4). Owned by the
//! apply thread.

use std::collections::HashMap;

use bytes::Bytes;
use foldhash::fast::RandomState;

use super::record::{Live, Version};
use crate::limits;

/// Bytes one entry costs besides key and value.
const ENTRY_OVERHEAD: usize = 128;

/// Keys are chosen by clients; the hash is seeded, and nothing is ever enumerated.
type Versions = HashMap<Box<[u8]>, Version, RandomState>;

/// Two generations: when the young one holds half the budget, the old one is dropped and the young one becomes old.
pub(crate) struct HeadIndex {
    young: Versions,
    old: Versions,
    young_bytes: usize,
    budget: usize,
}

impl HeadIndex {
    pub fn new(budget: usize) -> Self {
        Self { young: Versions::default(), old: Versions::default(), young_bytes: 0, budget }
    }

    pub fn get(&mut self, key: &[u8]) -> Option<Version> {
        if let Some(version) = self.young.get(key) {
            return Some(version.clone());
        }
        let (key, version) = self.old.remove_entry(key)?;
        self.insert(key, version.clone());
        Some(version)
    }

    /// Remembers `version`, copied, so that it does not pin the buffer it was received in.
    pub fn set(&mut self, key: &[u8], version: &Version) {
        if version.live.as_ref().is_some_and(|live| live.value.len() > limits::HEAD_VALUE_BYTES) {
            return self.forget(key);
        }
        let live =
            version.live.as_ref().map(|live| Live { value: Bytes::copy_from_slice(&live.value), ..live.clone() });
        let version = Version { live, ..*version };
        match self.young.get_mut(key) {
            Some(before) => {
                let freed = cost(key, before);
                self.young_bytes = (self.young_bytes + cost(key, &version)).saturating_sub(freed);
                *before = version;
                self.age();
            }
            None => {
                self.old.remove(key);
                self.insert(key.into(), version);
            }
        }
    }

    fn forget(&mut self, key: &[u8]) {
        self.old.remove(key);
        if let Some(before) = self.young.remove(key) {
            self.young_bytes = self.young_bytes.saturating_sub(cost(key, &before));
        }
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.budget);
    }

    fn insert(&mut self, key: Box<[u8]>, version: Version) {
        self.young_bytes += cost(&key, &version);
        self.young.insert(key, version);
        self.age();
    }

    fn age(&mut self) {
        if self.young_bytes > self.budget / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

fn cost(key: &[u8], version: &Version) -> usize {
    ENTRY_OVERHEAD + key.len() + version.live.as_ref().map_or(0, |live| live.value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_stays_within_its_budget_and_keeps_what_is_used() {
        let mut index = HeadIndex::new(20 * 200);
        let version = |modified| Version { modified, sub: 0, live: None };
        for n in 0..100i64 {
            index.set(format!("key-{n}").as_bytes(), &version(n));
            assert_eq!(index.get(b"key-0").map(|found| found.modified), Some(0));
            assert!(index.young.len() + index.old.len() <= 40);
        }
        assert!(index.get(b"key-5").is_none());
        index.set(b"key-0", &version(7));
        assert_eq!(index.get(b"key-0").map(|found| found.modified), Some(7));
    }

    #[test]
    fn what_is_written_again_and_again_is_counted_once() {
        let mut index = HeadIndex::new(4 * 400);
        let live =
            |value: &'static [u8]| Some(Live { created: 1, version: 1, lease: 0, value: Bytes::from_static(value) });
        for modified in 0..100 {
            index.set(b"a", &Version { modified, sub: 0, live: live(b"some value") });
            index.set(b"b", &Version { modified, sub: 0, live: None });
            assert!(index.old.is_empty(), "two keys never fill it");
        }
        assert_eq!(index.young_bytes, 2 * ENTRY_OVERHEAD + 2 + 10);
        let large = vec![0; limits::HEAD_VALUE_BYTES + 1];
        let large = Some(Live { created: 1, version: 2, lease: 0, value: Bytes::from(large) });
        index.set(b"a", &Version { modified: 100, sub: 0, live: large });
        assert_eq!((index.get(b"a"), index.young_bytes), (None, ENTRY_OVERHEAD + 1));
    }
}
