//! Where the last few bytes of the log begin: how far it can be cut so that a member that was away shortly still finds what it missed.
//!
//! Pure, and of fixed size: marks at every [`STEPS`]th part of what is kept. Always holds: at least the bytes asked for, and at most one
//! step and one entry more, lie at or above [`Recent::first`].

use std::collections::VecDeque;

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

#[cfg(test)]
mod tests {
    use super::Recent;

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
