//! Whether members may be changed as things are: a change must never leave a group that cannot agree on anything any more, not
//! even on taking the change back. Pure: it judges what the leader knows ([`View`]), and the leader asks until the answer is yes
//! or its patience is over, because what it knows is some milliseconds old.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::Instant;
use openraft::metrics::RaftMetrics;

use crate::core::{TypeConfig, next_index};
use crate::limits;
use crate::propose::Refused;

/// What a leader knows of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    voters: BTreeSet<u64>,
    /// Heard of lately, the leader itself among them.
    alive: BTreeSet<u64>,
    /// The index after the last entry each has on stable storage; absent before anything is known.
    matched: BTreeMap<u64, u64>,
    /// The index after the leader's last entry.
    next: u64,
}

impl View {
    /// `patience` is how old a sign of life may be.
    pub fn of(metrics: &RaftMetrics<TypeConfig>, patience: Duration) -> Self {
        let heard = metrics.heartbeat.iter().flatten();
        let lately = heard.filter(|(_, at)| at.as_ref().is_some_and(|at| at.elapsed() <= patience));
        let replicated = metrics.replication.iter().flatten();
        Self {
            voters: metrics.membership_config.voter_ids().collect(),
            alive: lately.map(|(id, _)| *id).chain([metrics.id]).collect(),
            matched: replicated.filter_map(|(id, last)| last.map(|last| (*id, next_index(Some(last))))).collect(),
            next: metrics.last_log_index.map_or(0, |last| last + 1),
        }
    }

    /// A member may go if a quorum of those that vote now is alive, who must agree to it, and one of those that stay. Removing a dead
    /// one is therefore always possible where anything is.
    pub fn judge_removal(&self, id: u64) -> Result<(), Refused> {
        let mut staying = self.voters.clone();
        if !staying.remove(&id) {
            return Ok(()); // a learner is in no quorum
        }
        if staying.is_empty() {
            return Err(Refused::Invalid("the last voter cannot be removed".to_owned()));
        }
        self.judge_quorum(&self.voters, "there are")?;
        self.judge_quorum(&staying, "there would be")
    }

    /// A learner may vote once it has nearly everything and is alive, and if the larger quorum is alive too: until it had caught up it
    /// would hold up every write.
    pub fn judge_promotion(&self, id: u64) -> Result<(), Refused> {
        let behind = |what: String| Err(Refused::Invalid(format!("member {id} has still to catch up: {what}")));
        let most = limits::PROMOTE_LAG.min(self.next.saturating_sub(1) / 10);
        match self.matched.get(&id).map(|matched| self.next.saturating_sub(*matched)) {
            None => return behind("it has nothing yet".to_owned()),
            Some(missing) if missing > most => return behind(format!("it lacks {missing} entries")),
            Some(_) if !self.alive.contains(&id) => return behind("it has not been heard of lately".to_owned()),
            Some(_) => (),
        }
        let mut voting = self.voters.clone();
        voting.insert(id);
        self.judge_quorum(&voting, "there would be")
    }

    fn judge_quorum(&self, voters: &BTreeSet<u64>, when: &str) -> Result<(), Refused> {
        let (alive, needed) = (voters.intersection(&self.alive).count(), voters.len() / 2 + 1);
        if alive < needed {
            let count = voters.len();
            let reason = format!("of the {count} voters {when}, {alive} are alive, {needed} must be");
            return Err(Refused::Unhealthy(reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Voters, those alive, and how much each lacks of a log of 100 entries.
    fn view(voters: &[u64], alive: &[u64], lacks: &[(u64, u64)]) -> View {
        View {
            voters: voters.iter().copied().collect(),
            alive: alive.iter().copied().collect(),
            matched: lacks.iter().map(|(id, missing)| (*id, 101 - missing)).collect(),
            next: 101,
        }
    }

    #[track_caller]
    fn check(judged: &Result<(), Refused>, want: &str) {
        let found = match judged {
            Ok(()) => String::new(),
            Err(Refused::Invalid(reason) | Refused::Unhealthy(reason)) => reason.clone(),
            Err(other) => format!("{other:?}"),
        };
        assert_eq!(found, want);
    }

    #[test]
    fn nobody_is_removed_whom_the_others_need() {
        let unhealthy = "of the 2 voters there would be, 1 are alive, 2 must be";
        for (voters, alive, id, want) in [
            (&[1, 2, 3][..], &[1, 2, 3][..], 2, ""),
            (&[1, 2, 3], &[1, 2], 3, ""),
            (&[1, 2, 3], &[1, 2], 2, unhealthy),
            (&[1, 2, 3], &[1, 2], 1, unhealthy),
            (&[1, 2], &[1], 2, "of the 2 voters there are, 1 are alive, 2 must be"),
            (&[1, 2], &[1, 2], 2, ""),
            (&[1], &[1], 1, "the last voter cannot be removed"),
            (&[1, 2, 3], &[1], 9, ""),
            (&[1, 2, 3, 4, 5], &[1, 2, 3], 3, "of the 4 voters there would be, 2 are alive, 3 must be"),
            (&[1, 2, 3, 4, 5], &[1, 2, 3], 5, ""),
        ] {
            check(&view(voters, alive, &[]).judge_removal(id), want);
        }
    }

    #[test]
    fn a_learner_votes_when_it_has_nearly_everything_and_lives_and_so_do_enough_others() {
        let still = "member 4 has still to catch up: ";
        for (alive, lacks, want) in [
            (&[1, 2, 3, 4][..], Some(0), String::new()),
            (&[1, 2, 4], Some(10), String::new()),
            (&[1, 2, 4], Some(11), format!("{still}it lacks 11 entries")),
            (&[1, 2, 3], Some(0), format!("{still}it has not been heard of lately")),
            (&[1, 2, 3, 4], None, format!("{still}it has nothing yet")),
            (&[1, 4], Some(0), "of the 4 voters there would be, 2 are alive, 3 must be".to_owned()),
        ] {
            let lacks: Vec<(u64, u64)> = lacks.map(|missing| (4, missing)).into_iter().collect();
            check(&view(&[1, 2, 3], alive, &lacks).judge_promotion(4), &want);
        }
    }

    #[test]
    fn in_a_short_log_nothing_may_be_missing() {
        let mut short = view(&[1], &[1, 2], &[(2, 1)]);
        (short.next, short.matched) = (9, BTreeMap::from([(2, 8)]));
        check(&short.judge_promotion(2), "member 2 has still to catch up: it lacks 1 entries");
        short.matched.insert(2, 9);
        check(&short.judge_promotion(2), "");
    }
}
