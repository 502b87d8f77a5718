//! Between openraft's types and the messages of `pintle.raft.v1`. What comes from a peer is checked here: a message that
//! lacks a part, or has an impossible one, is a value, never a panic.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse};
use pintle_proto::raft_v1 as pb;
use prost::Message;

use crate::core::{Batch, Entry, Membership, RaftLogId, Record, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use crate::machine::Peer;

/// A message of a peer that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("membership is not valid: {0}")]
    Membership(String),
    #[error("membership cannot be decoded: {0}")]
    Decode(String),
    #[error("entry {found} stands where {want} is next")]
    EntryOrder { want: u64, found: u64 },
}

pub(crate) fn to_log_id(id: RaftLogId) -> pb::LogId {
    pb::LogId { term: id.leader_id.term, index: id.index }
}

pub(crate) fn from_log_id(id: pb::LogId) -> RaftLogId {
    RaftLogId::new_term_index(id.term, id.index)
}

pub(crate) fn to_vote(vote: Vote) -> pb::Vote {
    pb::Vote { term: vote.leader_id.term, node_id: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn from_vote(vote: Option<pb::Vote>) -> Result<Vote, WireError> {
    let vote = vote.ok_or(WireError::Missing("vote"))?;
    Ok(if vote.committed { Vote::new_committed(vote.term, vote.node_id) } else { Vote::new(vote.term, vote.node_id) })
}

pub(crate) fn to_member(peer: &Peer) -> pb::Member {
    pb::Member {
        id: peer.id,
        name: peer.name.clone(),
        peer_addr: peer.peer_addr.clone(),
        client_addr: peer.client_addr.clone(),
        api_addr: peer.api_addr.clone(),
    }
}

pub(crate) fn from_member(member: pb::Member) -> Peer {
    Peer {
        id: member.id,
        name: member.name,
        peer_addr: member.peer_addr,
        client_addr: member.client_addr,
        api_addr: member.api_addr,
    }
}

pub(crate) fn to_membership(log_id: Option<RaftLogId>, membership: &Membership) -> pb::Membership {
    pb::Membership {
        log_id: log_id.map(to_log_id),
        configs: membership
            .get_joint_config()
            .iter()
            .map(|ids| pb::Voters { ids: ids.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(id, record)| to_member(&record.peer(*id))).collect(),
    }
}

pub(crate) fn from_membership(membership: pb::Membership) -> Result<(Option<RaftLogId>, Membership), WireError> {
    let log_id = membership.log_id.map(from_log_id);
    if membership.configs.is_empty() && membership.nodes.is_empty() {
        return Ok((log_id, Membership::default()));
    }
    let configs: Vec<BTreeSet<u64>> = membership.configs.into_iter().map(|ids| ids.ids.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Record> =
        membership.nodes.into_iter().map(|node| (node.id, from_member(node).into())).collect();
    let membership = Membership::new(configs, nodes).map_err(|e| WireError::Membership(e.to_string()))?;
    Ok((log_id, membership))
}

/// The bytes a state machine keeps; empty for a cluster without members.
pub(crate) fn encode_membership(membership: &StoredMembership) -> Bytes {
    Bytes::from(to_membership(*membership.log_id(), membership.membership()).encode_to_vec())
}

pub(crate) fn decode_membership(bytes: &Bytes) -> Result<StoredMembership, WireError> {
    let membership = pb::Membership::decode(bytes.clone()).map_err(|e| WireError::Decode(e.to_string()))?;
    let (log_id, membership) = from_membership(membership)?;
    Ok(StoredMembership::new(log_id, membership))
}

/// The commands of an entry as one encoded batch.
pub(crate) fn encode_batch(commands: Vec<Bytes>) -> Batch {
    Batch(Bytes::from(pb::Batch { commands }.encode_to_vec()))
}

pub(crate) fn decode_batch(batch: &Batch) -> Result<Vec<Bytes>, WireError> {
    Ok(pb::Batch::decode(batch.0.clone()).map_err(|e| WireError::Decode(e.to_string()))?.commands)
}

fn to_entry(entry: Entry) -> pb::Entry {
    let payload = match entry.payload {
        EntryPayload::Blank => pb::entry::Payload::Blank(pb::Blank {}),
        EntryPayload::Normal(batch) => pb::entry::Payload::Batch(batch.0),
        EntryPayload::Membership(membership) => pb::entry::Payload::Membership(to_membership(None, &membership)),
    };
    pb::Entry { log_id: Some(to_log_id(entry.log_id)), payload: Some(payload) }
}

fn from_entry(entry: pb::Entry) -> Result<Entry, WireError> {
    let log_id = from_log_id(entry.log_id.ok_or(WireError::Missing("entry's log id"))?);
    let payload = match entry.payload.ok_or(WireError::Missing("entry's payload"))? {
        pb::entry::Payload::Blank(_) => EntryPayload::Blank,
        pb::entry::Payload::Batch(batch) => EntryPayload::Normal(Batch(batch)),
        pb::entry::Payload::Membership(membership) => EntryPayload::Membership(from_membership(membership)?.1),
    };
    Ok(Entry { log_id, payload })
}

pub(crate) fn to_append(header: Option<pb::Header>, request: AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
    pb::AppendRequest {
        header,
        vote: Some(to_vote(request.vote)),
        previous: request.prev_log_id.map(to_log_id),
        entries: request.entries.into_iter().map(to_entry).collect(),
        leader_commit: request.leader_commit.map(to_log_id),
    }
}

/// The entries must follow `previous` without gaps: openraft trusts them to.
pub(crate) fn from_append(request: pb::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let previous = request.previous.map(from_log_id);
    let mut entries = Vec::with_capacity(request.entries.len());
    let mut want = crate::core::next_index(previous);
    for entry in request.entries {
        let entry = from_entry(entry)?;
        if entry.log_id.index != want {
            return Err(WireError::EntryOrder { want, found: entry.log_id.index });
        }
        want = want.saturating_add(1);
        entries.push(entry);
    }
    Ok(AppendEntriesRequest {
        vote: from_vote(request.vote)?,
        prev_log_id: previous,
        entries,
        leader_commit: request.leader_commit.map(from_log_id),
    })
}

pub(crate) fn to_appended(result: StreamAppendResult<TypeConfig>) -> pb::AppendResponse {
    use pb::append_response::Outcome;
    let outcome = match result {
        Ok(matched) => matched.map(|id| Outcome::Matched(to_log_id(id))),
        Err(StreamAppendError::Conflict(id)) => Some(Outcome::Conflict(to_log_id(id))),
        Err(StreamAppendError::HigherVote(vote)) => Some(Outcome::HigherVote(to_vote(vote))),
    };
    pb::AppendResponse { outcome }
}

pub(crate) fn from_appended(response: pb::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    use pb::append_response::Outcome;
    Ok(match response.outcome {
        None => Ok(None),
        Some(Outcome::Matched(id)) => Ok(Some(from_log_id(id))),
        Some(Outcome::Conflict(id)) => Err(StreamAppendError::Conflict(from_log_id(id))),
        Some(Outcome::HigherVote(vote)) => Err(StreamAppendError::HigherVote(from_vote(Some(vote))?)),
    })
}

pub(crate) fn to_vote_request(header: pb::Header, request: VoteRequest<TypeConfig>, pre_vote: bool) -> pb::VoteRequest {
    pb::VoteRequest {
        header: Some(header),
        vote: Some(to_vote(request.vote)),
        last_log: request.last_log_id.map(to_log_id),
        leadership_transfer: request.leadership_transfer,
        pre_vote,
    }
}

pub(crate) fn from_vote_request(request: pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    let mut vote = VoteRequest::new(from_vote(request.vote)?, request.last_log.map(from_log_id));
    vote.leadership_transfer = request.leadership_transfer;
    Ok(vote)
}

pub(crate) fn to_vote_response(response: VoteResponse<TypeConfig>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(to_vote(response.vote)),
        granted: response.vote_granted,
        last_log: response.last_log_id.map(to_log_id),
    }
}

pub(crate) fn from_vote_response(response: pb::VoteResponse) -> Result<VoteResponse<TypeConfig>, WireError> {
    Ok(VoteResponse::new(from_vote(response.vote)?, response.last_log.map(from_log_id), response.granted))
}

pub(crate) fn to_manifest(meta: &SnapshotMeta, files: Vec<pb::SnapshotFile>) -> pb::SnapshotManifest {
    let membership = &meta.last_membership;
    pb::SnapshotManifest {
        last_log: meta.last_log_id.map(to_log_id),
        membership: Some(to_membership(*membership.log_id(), membership.membership())),
        files,
    }
}

pub(crate) fn manifest_meta(manifest: &pb::SnapshotManifest) -> Result<SnapshotMeta, WireError> {
    let membership = manifest.membership.clone().ok_or(WireError::Missing("snapshot's membership"))?;
    let (log_id, membership) = from_membership(membership)?;
    Ok(SnapshotMeta {
        last_log_id: manifest.last_log.map(from_log_id),
        last_membership: StoredMembership::new(log_id, membership),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn membership() -> StoredMembership {
        let peers = (1..=3).map(|id| (id, Record { name: format!("server-{id}"), ..Record::default() }));
        let configs = vec![BTreeSet::from([1, 2]), BTreeSet::from([1, 3])];
        let membership = Membership::new(configs, peers.collect::<BTreeMap<_, _>>()).expect("valid");
        StoredMembership::new(Some(RaftLogId::new_term_index(2, 9)), membership)
    }

    #[test]
    fn membership_bytes_read_back_as_written() {
        let membership = membership();
        assert_eq!(decode_membership(&encode_membership(&membership)).expect("decode"), membership);
        assert_eq!(decode_membership(&Bytes::new()).expect("decode"), StoredMembership::default());
    }

    #[test]
    fn a_voter_without_address_is_refused() {
        let broken = pb::Membership { configs: vec![pb::Voters { ids: vec![7] }], ..pb::Membership::default() };
        assert!(matches!(from_membership(broken), Err(WireError::Membership(_))));
    }

    #[test]
    fn entries_with_a_gap_are_refused() {
        let entry = |index| Entry { log_id: RaftLogId::new_term_index(1, index), payload: EntryPayload::Blank };
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(RaftLogId::new_term_index(1, 4)),
            entries: vec![entry(5), entry(7)],
            leader_commit: None,
        };
        let result = from_append(to_append(Some(pb::Header::default()), request));
        assert_eq!(result.err(), Some(WireError::EntryOrder { want: 6, found: 7 }));
    }

    #[test]
    fn a_batch_keeps_its_commands_in_order() {
        let commands: Vec<Bytes> = ["a", "", "c"].into_iter().map(Bytes::from).collect();
        assert_eq!(decode_batch(&encode_batch(commands.clone())).expect("decode"), commands);
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from(bytes);
            let _ = decode_membership(&bytes);
            let _ = decode_batch(&Batch(bytes.clone()));
            if let Ok(request) = pb::AppendRequest::decode(bytes.clone()) {
                let _ = from_append(request);
            }
            if let Ok(manifest) = pb::SnapshotManifest::decode(bytes) {
                let _ = manifest_meta(&manifest);
            }
        }
    }
}
