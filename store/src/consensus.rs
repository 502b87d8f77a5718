//! What the store needs of consensus, and `pintle_raft` seen as that. The only file that names Raft's types.
//!
//! The seam lets the store's own tests run it on a log that is just a queue.

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use pintle_raft::{
    Applied, ChangeError, Committed, Flusher, Handle, Lane, LogId, Payload, Peer, ProposeError, ReadError, Role,
    StateMachine,
};

use crate::machine::{Place, StoreMachine};

/// Why a command got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProposeFailure {
    /// It was certainly not logged; it may be sent again.
    NotSent,
    Overloaded,
    TooLarge,
    /// It may or may not be applied.
    Unknown,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFailure {
    /// No leader confirmed in time; reading changes nothing, so it may be asked again.
    Unconfirmed,
    Stopped,
}

/// How this member stands in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub term: u64,
    pub leader: Option<u64>,
    pub leading: bool,
    pub learner: bool,
    /// Last entry of the log, last committed, last applied.
    pub last_log: u64,
    pub committed: u64,
    pub applied: u64,
}

/// A server of the cluster, as clients are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    pub name: String,
    pub peer_addr: String,
    pub client_addr: String,
    pub api_addr: String,
    pub learner: bool,
    /// What the member said itself.
    pub client_urls: Vec<String>,
}

/// A change of who the members are, or which of them leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MemberChange {
    /// Adds one that learns.
    Add {
        id: u64,
        peer_addr: String,
    },
    /// Records another address.
    Move {
        id: u64,
        peer_addr: String,
    },
    Promote(u64),
    Remove(u64),
    MoveLeader(u64),
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChangeFailure {
    /// Nothing was changed; no leader was found.
    NotMade,
    Refused(String),
    /// Nothing was changed: the quorum would have been lost.
    Unhealthy,
    Unknown,
    Stopped,
}

pub(crate) trait Consensus: Send + Sync + 'static {
    fn propose(&self, lane: Lane, command: Bytes) -> BoxFuture<'_, Result<Bytes, ProposeFailure>>;
    /// Returns once this member has applied everything that was committed when it was called.
    fn read_index(&self) -> BoxFuture<'_, Result<(), ReadFailure>>;
    fn standing(&self) -> Standing;
    /// The same with indexes that may be a moment old: asked with every request, for role, term and leader.
    fn published(&self) -> Standing {
        self.standing()
    }
    fn members(&self) -> Vec<Member>;
    fn change(&self, change: MemberChange) -> BoxFuture<'_, Result<(), ChangeFailure>>;
    /// Has a snapshot made soon, so that the one before gives back what only it still holds.
    fn snapshot(&self);
}

impl Consensus for Handle {
    fn propose(&self, lane: Lane, command: Bytes) -> BoxFuture<'_, Result<Bytes, ProposeFailure>> {
        async move { Self::propose_in(self, lane, command).await.map_err(|error| propose_failure(&error)) }.boxed()
    }

    fn read_index(&self) -> BoxFuture<'_, Result<(), ReadFailure>> {
        async move { Self::read_index(self).await.map(drop).map_err(|error| read_failure(&error)) }.boxed()
    }

    fn standing(&self) -> Standing {
        standing(&self.status())
    }

    fn members(&self) -> Vec<Member> {
        let status = self.status();
        status
            .peers
            .iter()
            .map(|member| Member {
                id: member.peer.id,
                name: member.peer.name.clone(),
                peer_addr: member.peer.peer_addr.clone(),
                client_addr: member.peer.client_addr.clone(),
                api_addr: member.peer.api_addr.clone(),
                learner: !member.voter,
                client_urls: Vec::new(),
            })
            .collect()
    }

    fn published(&self) -> Standing {
        self.with_status(standing)
    }

    fn snapshot(&self) {
        Self::snapshot(self);
    }

    fn change(&self, change: MemberChange) -> BoxFuture<'_, Result<(), ChangeFailure>> {
        async move {
            let changed = match change {
                MemberChange::Add { id, peer_addr } => {
                    self.add_learner(Peer { id, peer_addr, ..Peer::default() }).await
                }
                MemberChange::Move { id, peer_addr } => {
                    let known = self.status().peer(id).cloned().unwrap_or_default();
                    self.update(Peer { id, peer_addr, ..known }).await
                }
                MemberChange::Promote(id) => self.promote(id).await,
                MemberChange::Remove(id) => self.remove(id).await,
                MemberChange::MoveLeader(to) => self.transfer_leader(Some(to)).await,
            };
            changed.map_err(|error| match error {
                ChangeError::NoLeader => ChangeFailure::NotMade,
                ChangeError::Refused(reason) => ChangeFailure::Refused(reason),
                ChangeError::Unhealthy(_) => ChangeFailure::Unhealthy,
                ChangeError::Stopped => ChangeFailure::Stopped,
                ChangeError::Unknown(_) => ChangeFailure::Unknown,
            })
        }
        .boxed()
    }
}

pub(crate) fn standing(status: &pintle_raft::Status) -> Standing {
    Standing {
        term: status.term,
        leader: status.leader,
        // A leader that lost touch with its quorum names no leader: it must stop acting as one.
        leading: matches!(status.role, Role::Leader) && status.leader == Some(status.id),
        learner: matches!(status.role, Role::Learner),
        last_log: status.last_log,
        committed: status.committed,
        applied: status.applied,
    }
}

fn propose_failure(error: &ProposeError) -> ProposeFailure {
    match error {
        ProposeError::NoLeader => ProposeFailure::NotSent,
        ProposeError::Overloaded => ProposeFailure::Overloaded,
        ProposeError::TooLarge { .. } => ProposeFailure::TooLarge,
        ProposeError::Stopped => ProposeFailure::Stopped,
        ProposeError::Unknown { .. } | ProposeError::ReplyTooLarge => ProposeFailure::Unknown,
    }
}

fn read_failure(error: &ReadError) -> ReadFailure {
    match error {
        ReadError::Stopped => ReadFailure::Stopped,
        ReadError::NoLeader | ReadError::Overloaded => ReadFailure::Unconfirmed,
    }
}

impl StateMachine for StoreMachine {
    fn flusher(&self) -> Option<Flusher> {
        Some(self.flusher_of_state())
    }

    fn applied(&self) -> io::Result<Applied> {
        let (place, membership) = self.applied_place()?;
        Ok(Applied { log_id: place.map(|Place { term, index }| LogId { term, index }), membership })
    }

    fn apply(&mut self, entry: Committed) -> io::Result<Vec<Bytes>> {
        let place = Place { term: entry.log_id.term, index: entry.log_id.index };
        match entry.payload {
            Payload::Commands(commands) => self.apply_commands(place, &commands),
            Payload::Blank => self.apply_other(place, None).map(|()| Vec::new()),
            Payload::Membership(membership) => self.apply_other(place, Some(&membership)).map(|()| Vec::new()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_state()
    }

    fn checkpoint(&mut self, dir: &Path) -> io::Result<()> {
        self.checkpoint_state(dir)
    }

    fn install(&mut self, dir: &Path) -> io::Result<()> {
        self.install_state(dir)
    }
}
