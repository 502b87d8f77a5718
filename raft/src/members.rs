//! Changes of members and of the leader. They are made by the leader; other members pass them on to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use pintle_base::clock;
use pintle_proto::raft_v1 as pb;
use pintle_proto::raft_v1::change_request::Change as Wire;

use crate::core::{Record, TypeConfig, next_index};
use crate::limits;
use crate::machine::Peer;
use crate::node::Node;
use crate::propose::{Refused, failed, not_leader, refused};
use crate::readiness::View;
use crate::wire::{self, WireError};

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Nothing was changed.
    #[error("no leader")]
    NoLeader,
    /// Nothing was changed and nothing will be by the same request.
    #[error("{0}")]
    Refused(String),
    /// Nothing was changed: too few of the members that would have to agree afterwards have been heard of lately.
    #[error("{0}")]
    Unhealthy(String),
    #[error("raft has stopped")]
    Stopped,
    /// The change may have been made, or may yet be.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// What is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    AddLearner(Peer),
    Update(Peer),
    Promote(u64),
    Remove(u64),
    TransferLeader(Option<u64>),
}

impl From<Change> for Wire {
    fn from(change: Change) -> Self {
        match change {
            Change::AddLearner(peer) => Self::AddLearner(wire::to_member(&peer)),
            Change::Update(peer) => Self::Update(wire::to_member(&peer)),
            Change::Promote(id) => Self::Promote(id),
            Change::Remove(id) => Self::Remove(id),
            Change::TransferLeader(to) => Self::TransferLeader(to.unwrap_or(0)),
        }
    }
}

impl TryFrom<Option<Wire>> for Change {
    type Error = WireError;

    fn try_from(change: Option<Wire>) -> Result<Self, WireError> {
        Ok(match change.ok_or(WireError::Missing("change"))? {
            Wire::AddLearner(member) => Self::AddLearner(wire::from_member(member)),
            Wire::Update(member) => Self::Update(wire::from_member(member)),
            Wire::Promote(id) => Self::Promote(id),
            Wire::Remove(id) => Self::Remove(id),
            Wire::TransferLeader(to) => Self::TransferLeader((to != 0).then_some(to)),
        })
    }
}

/// Has `change` made, by this member or by the leader it knows of.
pub(crate) async fn change(node: &Arc<Node>, change: Change) -> Result<(), ChangeError> {
    let deadline = clock::now() + limits::LEADER_WAIT;
    loop {
        let made = match node.leader() {
            Some(leader) if leader == node.me().id => node.change_as_leader(change.clone()).await,
            Some(leader) => ask(node, leader, change.clone()).await,
            None => Err(Refused::NotLeader(None)),
        };
        match made {
            Ok(()) => return Ok(()),
            Err(Refused::NotLeader(_) | Refused::Overloaded) if clock::now() >= deadline => {
                return Err(ChangeError::NoLeader);
            }
            Err(Refused::NotLeader(_) | Refused::Overloaded) => node.leader_changed_or(limits::LEADER_RETRY).await,
            Err(Refused::Invalid(reason)) => return Err(ChangeError::Refused(reason)),
            Err(Refused::Unhealthy(reason)) => return Err(ChangeError::Unhealthy(reason)),
            Err(Refused::Stopped) => return Err(ChangeError::Stopped),
            Err(Refused::Unknown(reason)) => return Err(ChangeError::Unknown(reason)),
        }
    }
}

async fn ask(node: &Node, leader: u64, change: Change) -> Result<(), Refused> {
    let link = node.link(leader).ok_or(Refused::NotLeader(None))?;
    let response: pb::ChangeResponse = link.change(change.into()).await.map_err(|status| failed(&status))?;
    response.refusal.map_or(Ok(()), |refusal| Err(refused(refusal)))
}

impl Node {
    /// Makes a change, here. Changes of members are made one at a time: each is judged by what the one before it left, and
    /// openraft refuses a second one while the first is being committed.
    pub async fn change_as_leader(self: &Arc<Self>, change: Change) -> Result<(), Refused> {
        if let Change::TransferLeader(to) = change {
            let status = self.current();
            return if status.is_leader() { self.transfer(to).await } else { Err(Refused::NotLeader(status.leader)) };
        }
        let waiting = Arc::clone(&self.changing).lock_owned();
        let Ok(only) = clock::timeout(limits::CHANGE_TIMEOUT, waiting).await else {
            return Err(Refused::Overloaded);
        };
        let node = Arc::clone(self);
        // A task of its own: a change in two steps must not end after the first because nobody listens any more.
        let changing = tokio::spawn(async move {
            let changed = node.change_members(change).await;
            drop(only);
            changed
        });
        match clock::timeout(limits::CHANGE_TIMEOUT, changing).await {
            Ok(Ok(changed)) => changed,
            Ok(Err(ended)) => Err(Refused::Unknown(ended.to_string())),
            Err(_) => Err(Refused::Unknown(format!("not committed within {:?}", limits::CHANGE_TIMEOUT))),
        }
    }

    async fn change_members(&self, change: Change) -> Result<(), Refused> {
        let status = self.fresh();
        if !status.is_leader() {
            return Err(Refused::NotLeader(status.leader));
        }
        let known = |id: u64| status.peers.iter().find(|known| known.peer.id == id);
        let unknown = |id: u64| Refused::Invalid(format!("there is no member {id}"));
        match change {
            Change::AddLearner(peer) => {
                check_new(&peer, &status.peers)?;
                check_address(&peer, &status.peers)?;
                written(self.raft.add_learner(peer.id, peer.into(), false).await.map(drop))
            }
            Change::Update(peer) => {
                known(peer.id).ok_or_else(|| unknown(peer.id))?;
                check_address(&peer, &status.peers)?;
                let nodes = ChangeMembers::SetNodes(BTreeMap::from([(peer.id, peer.into())]));
                written(self.raft.change_membership(nodes, true).await.map(drop))
            }
            Change::Promote(id) => {
                if known(id).ok_or_else(|| unknown(id))?.voter {
                    return Ok(());
                }
                self.ready(|view| view.judge_promotion(id)).await?;
                let voters = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
                written(self.raft.change_membership(voters, true).await.map(drop))
            }
            Change::Remove(id) => {
                let ids = BTreeSet::from([id]);
                let Some(found) = known(id) else { return Ok(()) };
                self.ready(|view| view.judge_removal(id)).await?;
                let change: ChangeMembers<u64, Record> =
                    if found.voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
                written(self.raft.change_membership(change, false).await.map(drop))
            }
            Change::TransferLeader(to) => self.transfer(to).await,
        }
    }

    /// Asks `judge` until it agrees, for [`limits::READY_WAIT`] at most: a follower's answer may be on its way, and a new leader has
    /// heard of nobody yet.
    async fn ready(&self, judge: impl Fn(&View) -> Result<(), Refused>) -> Result<(), Refused> {
        let deadline = clock::now() + limits::READY_WAIT;
        let mut metrics = self.raft.metrics();
        loop {
            let view = View::of(&metrics.borrow_watched(), self.lease);
            let judged = judge(&view);
            let left = deadline.saturating_duration_since(clock::now());
            if judged.is_ok() || left.is_zero() {
                return judged;
            }
            // Signs of life age without a change being told.
            let _ = clock::timeout(left.min(limits::READY_TICK), metrics.changed()).await;
        }
    }

    /// Hands leadership to `to`, or to the voter whose log is longest, and waits until this member does not lead any more.
    pub async fn transfer(&self, to: Option<u64>) -> Result<(), Refused> {
        let id = self.me().id;
        let metrics = self.raft.metrics().borrow_watched().clone();
        let voters: BTreeMap<u64, u64> = metrics
            .membership_config
            .voter_ids()
            .filter(|voter| *voter != id)
            .map(|voter| {
                let matched = metrics.replication.as_ref().and_then(|all| all.get(&voter)).copied().flatten();
                (voter, next_index(matched))
            })
            .collect();
        let target = match to {
            Some(to) if to == id => return Ok(()),
            Some(to) if voters.contains_key(&to) => to,
            Some(to) => return Err(Refused::Invalid(format!("member {to} does not vote"))),
            None => match voters.iter().max_by_key(|(_, matched)| **matched) {
                Some((voter, _)) => *voter,
                None => return Err(Refused::Invalid("there is no other voter".to_owned())),
            },
        };
        tracing::info!(to = target, "handing leadership over");
        self.raft.trigger().transfer_leader(target).await.map_err(|_| Refused::Stopped)?;
        let mut status = self.watch();
        let left = status.wait_for(|status| status.leader.is_some_and(|leader| leader != id));
        match clock::timeout(limits::HANDOVER, left).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Refused::Stopped),
            Err(_) => Err(Refused::Unknown("leadership was not taken over in time".to_owned())),
        }
    }
}

/// Two members at one address would be taken for each other.
fn check_address(peer: &Peer, known: &[crate::PeerStatus]) -> Result<(), Refused> {
    match known.iter().find(|other| other.peer.id != peer.id && other.peer.peer_addr == peer.peer_addr) {
        Some(other) => Err(Refused::Invalid(format!("member {} is at {}", other.peer.id, peer.peer_addr))),
        None => Ok(()),
    }
}

fn check_new(peer: &Peer, known: &[crate::PeerStatus]) -> Result<(), Refused> {
    if peer.id == 0 || peer.peer_addr.is_empty() {
        return Err(Refused::Invalid("a member needs an id and a peer address".to_owned()));
    }
    let named = !peer.name.is_empty(); // where certificates name nobody, a member may say later what it is called
    match known.iter().find(|k| k.peer.id == peer.id || (named && k.peer.name == peer.name)) {
        Some(same) if same.peer.id == peer.id && same.peer.name == peer.name => Ok(()),
        Some(other) => Err(Refused::Invalid(format!("member {} is called {}", other.peer.id, other.peer.name))),
        None => Ok(()),
    }
}

fn written(result: Result<(), RaftError<TypeConfig, ClientWriteError<TypeConfig>>>) -> Result<(), Refused> {
    match result {
        Ok(()) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
        Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
            Err(Refused::Unknown("the leader changed meanwhile".to_owned()))
        }
        Err(RaftError::APIError(error)) => Err(Refused::Invalid(error.to_string())),
        Err(RaftError::Fatal(error)) => Err(Refused::Unknown(error.to_string())),
    }
}
