//! The types openraft is parametrised with. Terms are plain numbers (`leader_id_std`), entries carry encoded batches.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use openraft::OptionalSend;
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use serde::{Deserialize, Serialize};

use crate::apply::Machine;
use crate::machine::{LogId, Peer};
use crate::snapshot::SnapshotDir;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig {}

/// openraft's macro leaves no choice of a responder.
impl openraft::RaftTypeConfig for TypeConfig {
    type D = Batch;
    type R = Replies;
    type NodeId = u64;
    type Node = Record;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Batch, u64, Record>;
    type Entry = openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = crate::runtime::Runtime;
    type Responder<T>
        = Responder<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// Told the result of a write by whatever thread has it: the one that applies, if all went well. `None` if there will be none.
pub(crate) struct Responder<T>(Option<Box<dyn FnOnce(Option<T>) + Send>>);

impl<T> Responder<T> {
    /// `tell` must not wait for anything.
    pub fn new(tell: impl FnOnce(Option<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    fn tell(&mut self, result: Option<T>) {
        if let Some(tell) = self.0.take() {
            tell(result);
        }
    }
}

impl<T: OptionalSend + 'static> openraft::raft::responder::Responder<TypeConfig, T> for Responder<T> {
    fn on_complete(mut self, result: T) {
        self.tell(Some(result));
    }
}

impl<T> Drop for Responder<T> {
    fn drop(&mut self) {
        self.tell(None);
    }
}

pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;
pub(crate) type Entry = EntryOf<TypeConfig>;
pub(crate) type RaftLogId = LogIdOf<TypeConfig>;
pub(crate) type Vote = VoteOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, Record>;
pub(crate) type StoredMembership = StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Arc<SnapshotDir>>;

/// What the membership records of a member, under its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub name: String,
    pub peer_addr: String,
    pub client_addr: String,
    pub api_addr: String,
}

impl Record {
    pub fn peer(&self, id: u64) -> Peer {
        let Self { name, peer_addr, client_addr, api_addr } = self.clone();
        Peer { id, name, peer_addr, client_addr, api_addr }
    }
}

impl From<Peer> for Record {
    fn from(peer: Peer) -> Self {
        let Peer { id: _, name, peer_addr, client_addr, api_addr } = peer;
        Self { name, peer_addr, client_addr, api_addr }
    }
}

/// The commands of one entry: an encoded `pintle.raft.v1.Batch`. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch(pub Bytes);

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The answers to a batch's commands, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replies(pub Vec<Bytes>);

/// openraft's form of a position.
pub(crate) fn raft_log_id(id: LogId) -> RaftLogId {
    RaftLogId::new_term_index(id.term, id.index)
}

/// Our form of a position.
pub(crate) fn log_id(id: RaftLogId) -> LogId {
    LogId { term: id.leader_id.term, index: id.index }
}

/// The index after `id`: 0 if there is none.
pub(crate) fn next_index(id: Option<RaftLogId>) -> u64 {
    id.map_or(0, |id| id.index.saturating_add(1))
}
