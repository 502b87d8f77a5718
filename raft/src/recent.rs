//! How far the log can be cut: what a snapshot holds is kept for a while, so that a member that was away shortly still finds what it
//! missed, and for as long as a member that is there catches up.
//!
//! Pure. Always holds: at least the bytes asked for, and at most one step and one entry more, lie at or above [`Recent::first`]; what is
//! cut is in the snapshot.

use std::collections::VecDeque;

use crate::limits;

/// Marks, so that at most an eighth more is kept than asked for.
const STEPS: usize = 8;

pub(crate) struct Recent {
    step: u64,
    bytes: u64,
    marks: VecDeque<u64>,
}

impl Recent {
    pub fn new(kept_bytes: u64) -> Self {
        Self { step: (kept_bytes / STEPS as u64).max(1), bytes: 0, marks: VecDeque::with_capacity(STEPS + 2) }
    }

    /// Counts an entry with `bytes` at `index`.
    pub fn count(&mut self, index: u64, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= self.step {
            self.bytes = 0;
            self.marks.push_back(index + 1);
            if self.marks.len() > STEPS + 1 {
                self.marks.pop_front();
            }
        }
    }

    /// Index of the first entry to keep.
    pub fn first(&self) -> u64 {
        if self.marks.len() > STEPS { self.marks.front().copied().unwrap_or(0) } else { 0 }
    }
}

/// What of the log may be needed.
pub(crate) struct Kept {
    /// The last entry that the snapshot holds.
    pub snapshot: u64,
    /// The first entry to keep by size.
    pub recent: u64,
    /// The first entry to keep for a member that lacks it.
    pub held: u64,
    /// Entries to keep however small they are.
    pub entries: u64,
}

impl Kept {
    /// The last entry that may go, if there is one. `missing` are the first entries that members lack which are there.
    pub fn cut(&self, missing: impl Iterator<Item = u64>) -> Option<u64> {
        let after = self.snapshot.saturating_add(1);
        let by_number = after.saturating_sub(self.entries);
        let by_size = self.recent.min(after.saturating_sub(limits::ENTRIES_KEPT_ALWAYS.min(self.entries)));
        // The disk is not filled for one that is slow: it gets the next snapshot.
        let held = missing.filter(|first| *first >= self.held);
        held.chain([by_number.max(by_size)]).min()?.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(snapshot: u64, recent: u64, entries: u64, missing: &[u64], cut: Option<u64>) {
        let kept = Kept { snapshot, recent, held: 900_000, entries };
        assert_eq!(kept.cut(missing.iter().copied()), cut);
    }

    #[test]
    fn the_log_is_cut_behind_the_snapshot_by_number_or_by_size_and_not_under_who_catches_up() {
        check(990_000, 0, 4096, &[], Some(985_904));
        check(990_000, 980_000, 4096, &[], Some(985_904));
        check(990_000, 989_000, 4096, &[], Some(988_999));
        check(990_000, 999_000, 4096, &[], Some(990_000 - limits::ENTRIES_KEPT_ALWAYS));
        check(990_000, 999_000, 20, &[], Some(989_980));
        check(990_000, 989_000, 4096, &[1_000_001, 950_000], Some(949_999));
        check(990_000, 989_000, 4096, &[0, 899_999], Some(988_999));
        check(990_000, 989_000, 4096, &[900_000], Some(899_999));
        check(10, 0, 20, &[], None);
        check(0, 0, 0, &[], Some(0));
    }

    #[test]
    fn what_was_asked_for_is_kept_and_at_most_an_eighth_and_an_entry_more() {
        for (size, kept) in [(1, 800), (100, 800), (799, 800), (5000, 800), (7, 64 << 10)] {
            let mut recent = Recent::new(kept);
            for index in 0..20_000 {
                recent.count(index, size);
                let behind = (index + 1 - recent.first()) * size;
                assert!(behind >= kept.min((index + 1) * size), "{size} {kept}: {behind} at {index}");
                if recent.first() > 0 {
                    let step = kept.div_ceil(8);
                    let rounded = |bytes: u64| bytes.div_ceil(size) * size;
                    assert!(behind < 9 * rounded(step) + rounded(step), "{size} {kept}: {behind} at {index}");
                }
            }
            assert!(recent.first() > 0);
        }
    }

    #[test]
    fn a_short_log_is_kept_whole() {
        let mut recent = Recent::new(800);
        (0..7).for_each(|index| recent.count(index, 100));
        assert_eq!(recent.first(), 0);
    }
}
