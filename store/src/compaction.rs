//! Which revision automatic compaction may forget up to: a pure plan, fed with the time and the revision.

use std::collections::VecDeque;
use std::time::Duration;

use pintle_base::clock::Instant;

use crate::limits;

/// What history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Of at least so long a time.
    Periodic(Duration),
    /// So many revisions.
    Revisions(i64),
}

impl AutoCompaction {
    /// Between two looks at the revision: a tenth of the time between two compactions, which is an hour at most.
    pub(crate) fn pause(self) -> Duration {
        match self {
            Self::Periodic(kept) => (kept.min(limits::COMPACTION_PERIOD) / 10).max(limits::COMPACTION_PAUSE_MIN),
            Self::Revisions(_) => limits::COMPACTION_TICK,
        }
    }
}

/// Revisions seen, and when.
pub(crate) struct Plan {
    mode: AutoCompaction,
    /// Oldest first.
    seen: VecDeque<(Instant, i64)>,
}

impl Plan {
    pub fn new(mode: AutoCompaction) -> Self {
        Self { mode, seen: VecDeque::new() }
    }

    /// Takes note of the revision of `now`; the one to compact at, if there is one beyond `compacted`.
    pub fn next(&mut self, now: Instant, revision: i64, compacted: i64) -> Option<i64> {
        let due = match self.mode {
            AutoCompaction::Revisions(kept) => revision - kept,
            AutoCompaction::Periodic(kept) => {
                self.seen.push_back((now, revision));
                let mut due = 0;
                while let Some((at, old)) = self.seen.front().copied()
                    && now.duration_since(at) >= kept
                {
                    due = old;
                    self.seen.pop_front();
                }
                due
            }
        };
        (due > compacted && due > 0).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_of_at_least_the_time_is_kept() {
        let mut plan = Plan::new(AutoCompaction::Periodic(Duration::from_secs(100)));
        let begin = pintle_base::clock::Instant::now();
        let mut compacted = 0;
        for tenth in 0..40 {
            let revision = 10 + tenth;
            let now = begin + Duration::from_secs(10) * u32::try_from(tenth).unwrap();
            if let Some(due) = plan.next(now, revision, compacted) {
                assert_eq!(due, revision - 10, "what was there 100 seconds ago");
                compacted = due;
            }
        }
        assert_eq!(compacted, 39);
    }

    #[test]
    fn so_many_revisions_are_kept() {
        let mut plan = Plan::new(AutoCompaction::Revisions(1000));
        let now = pintle_base::clock::Instant::now();
        assert_eq!(plan.next(now, 900, 0), None);
        assert_eq!(plan.next(now, 1500, 0), Some(500));
        assert_eq!(plan.next(now, 1500, 500), None);
    }
}
