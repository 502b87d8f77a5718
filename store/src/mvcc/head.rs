//! The head index: the newest version of the keys used last, in memory, so that a write rarely has to seek.
//!
//! A cache and nothing more: a miss falls through to the database, and no answer depends on what is in it (I4). Owned by the
//! apply thread.

use std::collections::HashMap;

use bytes::Bytes;

use super::record::{Live, Version};
use crate::limits;

/// Bytes one entry costs besides key and value.
const ENTRY_OVERHEAD: usize = 128;

/// Two generations: when the young one holds half the budget, the old one is dropped and the young one becomes old.
pub(crate) struct HeadIndex {
    young: HashMap<Box<[u8]>, Version>,
    old: HashMap<Box<[u8]>, Version>,
    young_bytes: usize,
    budget: usize,
}

impl HeadIndex {
    pub fn new(budget: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, budget }
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
        self.old.remove(key);
        if let Some(before) = self.young.remove(key) {
            self.young_bytes = self.young_bytes.saturating_sub(cost(key, &before));
        }
        if version.live.as_ref().is_some_and(|live| live.value.len() > limits::HEAD_VALUE_BYTES) {
            return;
        }
        let live =
            version.live.as_ref().map(|live| Live { value: Bytes::copy_from_slice(&live.value), ..live.clone() });
        self.insert(key.into(), Version { live, ..*version });
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.budget);
    }

    fn insert(&mut self, key: Box<[u8]>, version: Version) {
        let cost = cost(&key, &version);
        if self.young_bytes + cost > self.budget / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += cost;
        self.young.insert(key, version);
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
}
