//! What the fuzzer gives its bytes to: every decoder of this crate that reads what came from a peer or from the disk. Only in tests, and in builds
//! with debug assertions, which the fuzzer's is. A target panics if something is wrong; the first byte chooses what the rest is read as.
//!
//! Beside that nothing panics, each checks that what was read can be written and read again without a change.

use bytes::Bytes;
use openraft::EntryPayload;
use pintle_proto::raft_v1 as pb;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::core::{Batch, Entry, Membership, RaftLogId, Vote, raft_log_id};
use crate::identity::Identity;
use crate::machine::LogId;
use crate::{log, wire};

/// The targets of this crate, with inputs to begin with.
pub const TARGETS: [(&str, fn(&[u8]), fn() -> Vec<Vec<u8>>); 3] = [
    ("raft-records", records, record_seeds),
    ("raft-log", log::fuzzing::file, log::fuzzing::seeds),
    ("raft-wire", wire_messages, message_seeds),
];

const KEY: &[u8] = b"k";

/// Records of the log, and the small ones beside it. They are given a right checksum, which no fuzzer finds; and are also read as they are.
pub fn records(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    let _ = codec::decode_entry(KEY, body);
    let _ = codec::unwrap(KEY, body);
    let record = codec::wrap(KEY, body);
    match which % 5 {
        0 => {
            let Ok(entry) = codec::decode_entry(KEY, &record) else { return };
            let again = codec::encode_entry(KEY, &entry).expect("what was read can be written");
            assert_eq!(codec::decode_entry(KEY, &again).expect("and read"), entry);
            if let EntryPayload::Normal(batch) = &entry.payload {
                let _ = wire::decode_batch(batch);
            }
        }
        1 => small::<Membership>(&record),
        2 => small::<Option<RaftLogId>>(&record),
        3 => small::<Vote>(&record),
        _ => small::<Identity>(&record),
    }
}

fn small<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(record: &[u8]) {
    let Ok(value) = codec::decode::<T>(KEY, record) else { return };
    let again = codec::encode(KEY, &value).expect("what was read can be written");
    assert_eq!(codec::decode::<T>(KEY, &again).expect("and read"), value);
}

fn record_seeds() -> Vec<Vec<u8>> {
    let tagged = |which: u8, record: &[u8]| [&[which], codec::unwrap(KEY, record).expect("our own")].concat();
    let entry = |payload| {
        let entry = Entry { log_id: raft_log_id(LogId { term: 3, index: 7 }), payload };
        tagged(0, &codec::encode_entry(KEY, &entry).expect("encode"))
    };
    let small = |which, record: Result<Vec<u8>, codec::RecordError>| tagged(which, &record.expect("encode"));
    let identity = Identity { cluster_id: 1, group_id: 2, node_id: 3, joining: true };
    vec![
        entry(EntryPayload::Blank),
        entry(EntryPayload::Normal(wire::encode_batch(vec![Bytes::from_static(b"a"), Bytes::new()]))),
        entry(EntryPayload::Membership(membership())),
        small(1, codec::encode(KEY, &membership())),
        small(2, codec::encode(KEY, &Some(raft_log_id(LogId { term: 1, index: 2 })))),
        small(3, codec::encode(KEY, &Vote::new_committed(2, 1))),
        small(4, codec::encode(KEY, &identity)),
    ]
}

fn membership() -> Membership {
    let seed = pb::Membership {
        log_id: None,
        configs: vec![pb::Voters { ids: vec![1, 2] }, pb::Voters { ids: vec![1] }],
        nodes: (1..=3).map(|id| pb::Member { id, name: format!("s{id}"), ..pb::Member::default() }).collect(),
    };
    wire::from_membership(seed).expect("valid").1
}

/// Messages of other members.
pub fn wire_messages(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    let body = Bytes::copy_from_slice(body);
    match which % 6 {
        0 => {
            let Some(request) = read(&body).and_then(|request| wire::from_append(request).ok()) else { return };
            let mut next = crate::core::next_index(request.prev_log_id);
            for entry in &request.entries {
                assert_eq!(entry.log_id.index, next, "entries follow each other");
                next = next.saturating_add(1);
            }
            let again = pb::AppendRequest::decode(
                &*wire::to_append(Some(pb::Header::default()), request.clone()).encode_to_vec(),
            );
            let again = wire::from_append(again.expect("our own")).expect("what was read can be sent on");
            assert_eq!(
                (again.vote, again.prev_log_id, again.entries),
                (request.vote, request.prev_log_id, request.entries)
            );
        }
        1 => drop(read(&body).map(wire::from_appended)),
        2 => drop(read(&body).map(wire::from_vote_request)),
        3 => drop(read(&body).map(wire::from_vote_response)),
        4 => {
            let Ok(membership) = wire::decode_membership(&body) else { return };
            let again = wire::decode_membership(&wire::encode_membership(&membership));
            assert_eq!(again.expect("what was read can be kept"), membership);
            drop(wire::decode_batch(&Batch(body)));
        }
        _ => {
            let Some(manifest) = read::<pb::SnapshotManifest>(&body) else { return };
            let _ = wire::manifest_meta(&manifest);
            for file in &manifest.files {
                let Ok(path) = crate::snapshot::relative(&file.path) else { continue };
                let inside = std::path::Path::new("/snap").join(path);
                assert!(inside.starts_with("/snap") && !inside.to_string_lossy().contains("/../"), "{inside:?}");
            }
        }
    }
}

fn read<M: Message + Default>(body: &Bytes) -> Option<M> {
    M::decode(body.clone()).ok()
}

fn message_seeds() -> Vec<Vec<u8>> {
    let tagged = |which: u8, message: &[u8]| [&[which], message].concat();
    let id = |index| Some(pb::LogId { term: 2, index });
    let vote = Some(pb::Vote { term: 2, node_id: 1, committed: true });
    let payloads = [
        pb::entry::Payload::Blank(pb::Blank {}),
        pb::entry::Payload::Batch(Bytes::from_static(b"\n\x01a")),
        pb::entry::Payload::Membership(wire::to_membership(None, &membership())),
    ];
    let entries =
        payloads.into_iter().zip(5..).map(|(payload, index)| pb::Entry { log_id: id(index), payload: Some(payload) });
    let append = pb::AppendRequest {
        header: Some(pb::Header::default()),
        vote,
        previous: id(4),
        entries: entries.collect(),
        leader_commit: id(5),
    };
    let outcome = Some(pb::append_response::Outcome::Conflict(pb::LogId { term: 1, index: 9 }));
    let request = pb::VoteRequest { vote, last_log: id(4), ..pb::VoteRequest::default() };
    let response = pb::VoteResponse { vote, granted: true, last_log: id(4) };
    let membership = wire::to_membership(None, &membership());
    let file = |path: &str| pb::SnapshotFile { path: path.to_owned(), size: 7 };
    let manifest = pb::SnapshotManifest {
        last_log: id(4),
        membership: Some(membership.clone()),
        files: vec![file("a/b.sst"), file("CURRENT"), file("../x"), file("/etc/passwd")],
    };
    vec![
        tagged(0, &append.encode_to_vec()),
        tagged(1, &pb::AppendResponse { outcome }.encode_to_vec()),
        tagged(2, &request.encode_to_vec()),
        tagged(3, &response.encode_to_vec()),
        tagged(4, &membership.encode_to_vec()),
        tagged(5, &manifest.encode_to_vec()),
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_fuzzer_begins_with_is_read_and_what_it_found_is_mended() {
        for (name, target, seeds) in TARGETS {
            seeds().iter().for_each(|seed| target(seed));
            let found = std::fs::read_dir(format!("{}/../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR")));
            for file in found.into_iter().flatten() {
                target(&std::fs::read(file.expect("an entry").path()).expect("read"));
            }
        }
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(
            which in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            for (_, target, seeds) in TARGETS {
                let all = seeds();
                let mut input = which.get(&all).clone();
                for (at, byte) in &changes {
                    let at = at.index(input.len());
                    input[at] = *byte;
                }
                target(&input);
                target(&input[..cut.index(input.len())]);
            }
        }
    }
}
