//! The most recent entries in memory: without gaps, at least everything not yet on disk. Replication, apply and the
//! conflict checks of openraft read them from here.

use std::collections::VecDeque;

use openraft::EntryPayload;

use crate::core::Entry;
use crate::limits;

#[derive(Default)]
pub(super) struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Tail {
    /// Index of the oldest entry held; `None` if there is none.
    pub fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.log_id.index)
    }

    /// Adds an entry, which must follow the last one.
    pub fn push(&mut self, entry: Entry) {
        if let Some(last) = self.entries.back() {
            assert_eq!(last.log_id.index + 1, entry.log_id.index, "log entries must be appended without gaps");
        }
        self.bytes += size(&entry);
        self.entries.push_back(entry);
    }

    /// Forgets entries from `index` on.
    pub fn truncate(&mut self, index: u64) {
        while self.entries.back().is_some_and(|entry| entry.log_id.index >= index) {
            self.bytes -= self.entries.pop_back().map_or(0, |entry| size(&entry));
        }
    }

    /// Forgets entries before `index`.
    pub fn purge(&mut self, index: u64) {
        while self.entries.front().is_some_and(|entry| entry.log_id.index < index) {
            self.pop_front();
        }
    }

    /// Forgets the oldest entries of those before `flushed`, until the rest is within bounds.
    pub fn shrink(&mut self, flushed: u64) {
        while self.bytes > limits::TAIL_BYTES && self.first().is_some_and(|first| first < flushed) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        self.bytes -= self.entries.pop_front().map_or(0, |entry| size(&entry));
    }

    /// Copies entries of `from..to` until they exceed `bytes`; at least one if any is held.
    pub fn read(&self, from: u64, to: u64, bytes: usize) -> Vec<Entry> {
        let Some(first) = self.first() else { return Vec::new() };
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut read = Vec::new();
        let mut total = 0;
        for entry in self.entries.iter().skip(skip).take_while(|entry| entry.log_id.index < to) {
            total += size(entry);
            if total > bytes && !read.is_empty() {
                break;
            }
            read.push(entry.clone());
        }
        read
    }
}

/// Bytes an entry takes, roughly.
pub(super) fn size(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(batch) => batch.0.len(),
        EntryPayload::Membership(membership) => membership.nodes().count() * 256,
    };
    size_of::<Entry>() + payload
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Batch, raft_log_id};
    use crate::machine::LogId;
    use bytes::Bytes;

    fn tail(indexes: std::ops::Range<u64>, bytes: usize) -> Tail {
        let mut tail = Tail::default();
        for index in indexes {
            let payload = EntryPayload::Normal(Batch(Bytes::from(vec![0; bytes])));
            tail.push(Entry { log_id: raft_log_id(LogId { term: 1, index }), payload });
        }
        tail
    }

    fn indexes(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn a_read_stops_at_its_bound_but_returns_one_entry() {
        let tail = tail(5..10, 1000);
        assert_eq!(indexes(&tail.read(6, 9, usize::MAX)), [6, 7, 8]);
        assert_eq!(indexes(&tail.read(6, 9, 2500)), [6, 7]);
        assert_eq!(indexes(&tail.read(6, 9, 0)), [6]);
        assert!(tail.read(10, 12, usize::MAX).is_empty());
    }

    #[test]
    fn only_what_is_on_disk_is_forgotten() {
        let mut tail = tail(0..100, 1 << 20);
        tail.shrink(10);
        assert_eq!(tail.first(), Some(10));
        tail.shrink(100);
        assert!(tail.bytes <= limits::TAIL_BYTES && tail.first() > Some(10));
    }

    #[test]
    fn truncating_and_purging_cut_both_ends() {
        let mut tail = tail(0..10, 10);
        tail.truncate(8);
        tail.purge(3);
        assert_eq!(indexes(&tail.read(0, 100, usize::MAX)), [3, 4, 5, 6, 7]);
        tail.purge(100);
        assert_eq!((tail.first(), tail.bytes), (None, 0));
    }
}
