//! How a leader makes sure, for a read, that it still is the only one (thesis, section 6.4): it asks the voters for the newest term in which
//! they may have voted, and none of a majority may name a later one than its own. Raft's core takes no part, here or there: a question costs
//! two messages and wakes nobody else.
//!
//! Always holds for the index that is returned: whatever was acknowledged, or shown as committed by any member, before the question was
//! asked is at it or before it. For a later leader to have acknowledged anything, a majority had voted in its term, and had made that
//! durable, before; one of them is in every majority asked here, and would have named that term. What earlier leaders acknowledged is
//! before the first entry of this term, which is applied here. What this one acknowledged, or lets anybody see who reads or watches here, it
//! has begun to apply; what it lets others see it has told them. By this very process: after a restart a member does not lead its old term
//! any more.
//!
//! openraft's own confirmation is not used: it takes an answer to an entry for one to whatever else was sent after that entry, so that a
//! leader that had slept could serve a read on the strength of answers given before it was replaced (docs/adr/0012).

use std::collections::BTreeSet;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use pintle_base::clock;

use crate::node::Node;
use crate::propose::Refused;

/// Who has answered, against the sets of voters there are: two of them while members are being changed.
struct Tally {
    sets: Vec<BTreeSet<u64>>,
    /// They have not voted in a later term.
    faithful: BTreeSet<u64>,
}

impl Tally {
    fn voters(&self) -> BTreeSet<u64> {
        self.sets.iter().flatten().copied().collect()
    }

    fn is_majority(&self) -> bool {
        self.sets.iter().all(|set| set.intersection(&self.faithful).count() > set.len() / 2)
    }
}

impl Node {
    /// The newest term in which this member may have voted for anybody, by its durable vote: votes are given only after that is written.
    /// Refused by one that may have forgotten a vote and has not yet made up for it ([`crate::fence`]).
    pub fn newest_term(&self) -> Result<u64, tonic::Status> {
        self.check_may_receive()?;
        let vote = self.persisted_vote();
        vote.map(|vote| vote.leader_id.term).ok_or_else(|| tonic::Status::unavailable("no vote was ever written here"))
    }

    /// The index that a read which has arrived by now must wait for.
    pub(crate) async fn confirm(&self) -> Result<u64, Refused> {
        let term = self.led_term().ok_or(Refused::NotLeader(None))?;
        let began = clock::timeout(self.lease, self.term_began(term)).await;
        began.map_err(|_| Refused::NotLeader(None))?;
        // Before anybody is asked: what is acknowledged from here on, the read need not see.
        let index = self.applying.begun().max(self.links.told());
        self.ask_voters(term).await?;
        Ok(index)
    }

    /// The term that this process was elected in, by openraft's last word; it may have lost it since.
    fn led_term(&self) -> Option<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.vote.leader_id;
        (metrics.state.is_leader() && leader.voted_for == self.me().id).then_some(leader.term)
    }

    /// Waits until an entry of this term is applied: everything that was committed in earlier ones is before it.
    async fn term_began(&self, term: u64) {
        let mut next = self.applying.watch();
        while self.applying.applied().is_none_or(|id| id.leader_id.term < term) {
            if next.changed().await.is_err() {
                return std::future::pending().await; // nothing will be applied any more
            }
        }
    }

    async fn ask_voters(&self, term: u64) -> Result<(), Refused> {
        let me = self.me().id;
        let sets = self.membership().membership().get_joint_config().clone();
        let mut tally = Tally { sets, faithful: BTreeSet::new() };
        if self.newest_term().is_ok_and(|newest| newest <= term) {
            tally.faithful.insert(me);
        }
        let questions = tally.voters().into_iter().filter(|voter| *voter != me);
        let questions = questions.filter_map(|voter| Some((voter, self.link(voter)?)));
        let ask = async |(voter, link): (u64, std::sync::Arc<crate::transport::client::Link>)| {
            (voter, link.newest_term(self.lease).await)
        };
        let mut answers: FuturesUnordered<_> = questions.map(ask).collect();
        while !tally.is_majority() {
            match answers.next().await {
                Some((voter, Ok(newest))) if newest <= term => drop(tally.faithful.insert(voter)),
                Some((_, Ok(_))) => return Err(Refused::NotLeader(None)),
                Some((voter, Err(status))) => tracing::debug!(voter, %status, "no answer about its newest term"),
                None => return Err(Refused::NotLeader(None)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_one_of_every_set() {
        let tally = |sets: &[&[u64]], faithful: &[u64]| Tally {
            sets: sets.iter().map(|set| set.iter().copied().collect()).collect(),
            faithful: faithful.iter().copied().collect(),
        };
        let check = |sets: &[&[u64]], faithful: &[u64], want: bool| {
            assert_eq!(tally(sets, faithful).is_majority(), want, "{sets:?} {faithful:?}");
        };
        check(&[&[1]], &[1], true);
        check(&[&[1, 2]], &[1], false);
        check(&[&[1, 2, 3]], &[1, 3], true);
        check(&[&[1, 2, 3, 4]], &[1, 2], false);
        check(&[&[1, 2, 3], &[3, 4, 5]], &[1, 2, 3], false);
        check(&[&[1, 2, 3], &[3, 4, 5]], &[1, 3, 4], true);
        // A leader that is no voter any more does not count.
        check(&[&[2, 3]], &[1, 2], false);
        assert_eq!(tally(&[&[1, 2], &[2, 3]], &[]).voters(), BTreeSet::from([1, 2, 3]));
    }
}
