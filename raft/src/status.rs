//! What a member knows of itself and the cluster, as one value that can be watched.

use std::sync::Arc;
use std::time::Duration;

use openraft::metrics::RaftMetrics;
use openraft::{Instant, ServerState};

use crate::core::TypeConfig;
use crate::machine::Peer;

/// What a member currently is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    #[default]
    Learner,
}

/// A member and whether it votes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub peer: Peer,
    pub voter: bool,
}

/// A snapshot of this member's view. Indexes are those of log entries, 0 if there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub id: u64,
    pub term: u64,
    /// The leader of `term`, once it is known. None also at a leader that has lost touch with a quorum.
    pub leader: Option<u64>,
    pub role: Role,
    /// Not admitted yet: it receives the log, but does not vote.
    pub joining: bool,
    pub last_log: u64,
    pub committed: u64,
    pub applied: u64,
    /// Last entry in the newest snapshot.
    pub snapshot: u64,
    /// Last entry purged from the log.
    pub purged: u64,
    /// By id.
    pub peers: Arc<Vec<PeerStatus>>,
}

impl Status {
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    pub fn peer(&self, id: u64) -> Option<&Peer> {
        self.peers.iter().find(|status| status.peer.id == id).map(|status| &status.peer)
    }

    /// Voting members.
    pub fn voters(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|status| status.voter).map(|status| &status.peer)
    }
}

/// Derives the status from openraft's metrics, and from how far is applied: openraft's word is ahead of that. `lease` is how long a leader
/// may go without hearing from a quorum before it must not call itself one.
pub(crate) fn status(metrics: &RaftMetrics<TypeConfig>, applied: u64, previous: &Status, lease: Duration) -> Status {
    let membership = metrics.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    let peers: Vec<PeerStatus> =
        membership.nodes().map(|(id, peer)| PeerStatus { peer: peer.peer(*id), voter: voters.contains(id) }).collect();
    // Most changes leave the members alone; watchers may compare by pointer.
    let peers = if *previous.peers == peers { Arc::clone(&previous.peers) } else { Arc::new(peers) };
    let cut_off = voters.len() > 1 && metrics.last_quorum_acked.as_ref().is_some_and(|acked| acked.elapsed() > lease);
    let (role, leader) = match metrics.state {
        ServerState::Leader if cut_off => (Role::Candidate, None),
        ServerState::Leader => (Role::Leader, Some(metrics.id)),
        ServerState::Candidate => (Role::Candidate, None),
        ServerState::Follower => (Role::Follower, metrics.current_leader.filter(|id| *id != metrics.id)),
        ServerState::Learner | ServerState::Shutdown => {
            (Role::Learner, metrics.current_leader.filter(|id| *id != metrics.id))
        }
    };
    Status {
        id: metrics.id,
        term: metrics.current_term,
        leader,
        role,
        joining: previous.joining,
        last_log: metrics.last_log_index.unwrap_or(0),
        committed: metrics.local_committed.map_or(0, |id| id.index),
        applied,
        snapshot: metrics.snapshot.map_or(0, |id| id.index),
        purged: metrics.purged.map_or(0, |id| id.index),
        peers,
    }
}
