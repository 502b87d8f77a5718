//! What a member that has nothing must learn before it takes entries from anybody: which leaders are too old.
//!
//! A member whose disk was wiped may have voted for a leader and forgotten it. If it then took entries from an older leader,
//! one that was cut off and does not know that it was replaced, the two could be a majority that overrules what the newer
//! one has acknowledged. So it first asks the others for their newest votes and takes the newest of them for its own, with
//! one sync, before it answers the first append. The argument, and what it rests on, is docs/adr/0005.
//!
//! Always holds: with `n` voters, an answer comes from a majority of the `n - 1` others, none of which is joining itself; if
//! some did not answer, the answers were given after every election that this member may have forgotten was over.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::raft::VoteRequest;
use pintle_base::clock;
use pintle_proto::raft_v1 as pb;

use crate::core::{RaftLogId, Record, StoredMembership, Vote};
use crate::limits;
use crate::node::Node;
use crate::wire;

/// What this member says when it is asked.
pub(crate) fn testimony(node: &Node) -> pb::ProbeResponse {
    let membership = node.membership();
    let known = membership.membership().nodes().next().is_some();
    pb::ProbeResponse {
        established: node.is_established(),
        joining: node.joining.load(std::sync::atomic::Ordering::Acquire),
        vote: node.persisted_vote().map(wire::to_vote),
        membership: known.then(|| wire::to_membership(*membership.log_id(), membership.membership())),
    }
}

/// One round of asking.
#[derive(Debug, Default)]
struct Round {
    /// Of those that are not joining themselves.
    votes: BTreeMap<u64, Option<Vote>>,
    newest: Option<StoredMembership>,
}

/// What a round has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    TooFew,
    /// A majority of the others.
    Majority,
    /// All others.
    Everybody,
}

impl Round {
    fn note(&mut self, from: u64, answer: pb::ProbeResponse) {
        let Ok(vote) = answer.vote.map(|vote| wire::from_vote(Some(vote))).transpose() else { return };
        if let Some(Ok((log_id, membership))) = answer.membership.map(wire::from_membership) {
            let stored = StoredMembership::new(log_id, membership);
            if self.newest.as_ref().is_none_or(|newest| newest.log_id() < stored.log_id()) {
                self.newest = Some(stored);
            }
        }
        if !answer.joining {
            self.votes.insert(from, vote);
        }
    }

    /// Judged by the newest membership that any of those asked knows; by `given` if none knows any. While members are being
    /// changed there are two sets of voters, and the answers must do for both.
    fn heard(&self, me: u64, given: &BTreeSet<u64>) -> Heard {
        let sets = match &self.newest {
            Some(newest) => newest.membership().get_joint_config().clone(),
            None => vec![given.clone()],
        };
        let of = |set: &BTreeSet<u64>| {
            let others = set.iter().filter(|id| **id != me);
            let (total, answered) = others
                .fold((0, 0), |(total, answered), id| (total + 1, answered + usize::from(self.votes.contains_key(id))));
            match (total, answered) {
                (total, answered) if total == answered => Heard::Everybody,
                (total, answered) if answered > total / 2 => Heard::Majority,
                _ => Heard::TooFew,
            }
        };
        let rank = |heard: &Heard| match heard {
            Heard::TooFew => 0,
            Heard::Majority => 1,
            Heard::Everybody => 2,
        };
        sets.iter().map(of).min_by_key(rank).unwrap_or(Heard::TooFew)
    }

    fn newest_term(&self) -> Option<u64> {
        self.votes.values().flatten().map(|vote| vote.leader_id.term).max()
    }
}

/// Returns once this member may take entries.
pub(crate) async fn learn(node: &Node) {
    let given: BTreeSet<u64> = node.given.keys().copied().collect();
    let settled = clock::now() + node.lease * limits::ELECTION_LIFE;
    let mut known = node.given.clone();
    loop {
        let began = clock::now();
        let round = ask(node, &known).await;
        match round.heard(node.me().id, &given) {
            Heard::Everybody if take(node, round.newest_term()).await => break,
            Heard::Majority if began >= settled && take(node, round.newest_term()).await => break,
            heard => tracing::debug!(?heard, answers = round.votes.len(), "not yet fenced"),
        }
        if let Some(newest) = &round.newest {
            known.extend(newest.nodes().map(|(id, record)| (*id, record.clone())));
        }
        clock::sleep(limits::PROBE_RETRY).await;
    }
    node.set_fenced();
}

async fn ask(node: &Node, known: &BTreeMap<u64, Record>) -> Round {
    let others = known.iter().filter(|(id, _)| **id != node.me().id);
    let mut answers: FuturesUnordered<_> = others
        .map(|(id, record)| (*id, node.links.link(*id, record)))
        .map(|(id, link)| async move { (id, link.probe().await) })
        .collect();
    let mut round = Round::default();
    while let Some((id, answer)) = answers.next().await {
        match answer {
            Ok(answer) => round.note(id, answer),
            Err(error) => tracing::debug!(id, %error, "a member does not answer"),
        }
    }
    round
}

/// Votes for nobody in `term`, durably: no older leader is followed after that, and no candidate of that term gets a vote
/// that may have been given to another. The leader of that term is followed, since it has been elected.
async fn take(node: &Node, term: Option<u64>) -> bool {
    let Some(term) = term else { return true };
    let mut request = VoteRequest::new(Vote::new(term, 0), Some(RaftLogId::new_term_index(u64::MAX, u64::MAX)));
    // Also if a leader was followed before a restart.
    request.leadership_transfer = true;
    let asked = node.raft.vote(request).await;
    let newest = node.persisted_vote().map(|vote| vote.leader_id.term);
    tracing::info!(term, ?newest, "leaders before this term are too old");
    asked.is_ok() && newest >= Some(term)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Membership;

    const ME: u64 = 1;

    fn answer(term: u64, joining: bool) -> pb::ProbeResponse {
        let vote = Some(wire::to_vote(Vote::new(term, 2)));
        pb::ProbeResponse { established: true, joining, vote, membership: None }
    }

    fn membership(index: u64, sets: &[&[u64]]) -> pb::Membership {
        let sets: Vec<BTreeSet<u64>> = sets.iter().map(|ids| ids.iter().copied().collect()).collect();
        let ids: BTreeSet<u64> = sets.iter().flatten().copied().collect();
        let record = |id: u64| Record { name: format!("server-{id}"), ..Record::default() };
        let nodes: BTreeMap<u64, Record> = ids.into_iter().map(|id| (id, record(id))).collect();
        let membership = Membership::new(sets, nodes).expect("valid");
        wire::to_membership(Some(RaftLogId::new_term_index(1, index)), &membership)
    }

    /// `voters` includes this member; `from` are those who answer.
    #[track_caller]
    fn check(voters: &[u64], from: &[u64], want: Heard) {
        let given: BTreeSet<u64> = voters.iter().copied().collect();
        let mut round = Round::default();
        for id in from {
            round.note(*id, answer(3, false));
        }
        assert_eq!(round.heard(ME, &given), want, "{from:?} of {voters:?}");
    }

    #[test]
    fn a_majority_of_the_others_must_answer() {
        check(&[1], &[], Heard::Everybody);
        check(&[1, 2], &[], Heard::TooFew);
        check(&[1, 2], &[2], Heard::Everybody);
        check(&[1, 2, 3], &[2], Heard::TooFew);
        check(&[1, 2, 3], &[2, 3], Heard::Everybody);
        check(&[1, 2, 3, 4], &[2], Heard::TooFew);
        check(&[1, 2, 3, 4], &[2, 4], Heard::Majority);
        check(&[1, 2, 3, 4, 5], &[2, 3], Heard::TooFew);
        check(&[1, 2, 3, 4, 5], &[2, 3, 5], Heard::Majority);
        // This member's own word, and that of strangers, counts for nothing.
        check(&[1, 2, 3], &[1, 2, 9], Heard::TooFew);
    }

    #[test]
    fn the_majority_meets_every_quorum_that_this_member_may_have_been_part_of() {
        for voters in 1..=9_usize {
            let (quorum, others) = (voters / 2 + 1, voters - 1);
            let asked = if others == 0 { 0 } else { others / 2 + 1 };
            assert!(asked + (quorum - 1) > others || others == 0, "{voters} voters");
        }
    }

    #[test]
    fn the_newest_vote_counts_and_that_of_a_joining_member_does_not() {
        let mut round = Round::default();
        round.note(2, answer(7, false));
        round.note(3, answer(9, true));
        assert_eq!(round.newest_term(), Some(7));
        assert_eq!(round.heard(ME, &BTreeSet::from([1, 2, 3])), Heard::TooFew);
        round.note(3, answer(4, false));
        assert_eq!(round.newest_term(), Some(7));
        assert_eq!(round.heard(ME, &BTreeSet::from([1, 2, 3])), Heard::Everybody);
    }

    #[test]
    fn the_newest_membership_decides_whose_answers_are_needed_and_both_halves_of_a_change_count() {
        let given = BTreeSet::from([1, 2]);
        let mut round = Round::default();
        let with = |membership| pb::ProbeResponse { membership: Some(membership), ..answer(1, false) };
        round.note(2, with(membership(5, &[&[1, 2, 3], &[1, 2, 4]])));
        round.note(3, with(membership(2, &[&[1, 2]])));
        assert_eq!(round.heard(ME, &given), Heard::TooFew, "nobody has heard 4");
        round.note(4, answer(1, false));
        assert_eq!(round.heard(ME, &given), Heard::Everybody);
    }

    #[test]
    fn answers_that_cannot_be_are_ignored() {
        let mut round = Round::default();
        let odd = pb::Membership { configs: vec![pb::Voters { ids: vec![9] }], ..pb::Membership::default() };
        round.note(2, pb::ProbeResponse { membership: Some(odd), ..answer(u64::MAX, false) });
        assert!(round.newest.is_none());
    }
}
