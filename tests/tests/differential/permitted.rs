//! The differences that are permitted, each with its reason. What is not in this file must be the same.
//!
//! What answers may differ in stands in [`PERMITTED`] and [`settle_events`]. These requests are not sent:
//! - Transactions that change a key twice in one revision: pintle refuses more of them (`twice`).
//! - Sort orders and targets that are none: 3.6 and pintle refuse them, older ones take some and end at others.
//! - The first compaction at 0, which etcd lets through as it begins at -1; it changes nothing.
//! - HashKV of a revision that was compacted at: of those etcd remembers a hash over what the compaction removed, once it is through.
//! - Puts with a lease whose id the server chose: the ids differ, and hashes and events hold them.
//! - Empty intervals where callers have to be allowed them: pintle allows them to nobody but root, etcd by what lies around them.
//! - Of 3.4: a watch from the compacted revision itself (it loses the delete there), from a negative one (it takes it), and one that
//!   begins in the past and gets nothing of it (nothing tells when it has caught up, and a compaction would end it until then).

use pintle_proto::etcdserverpb::range_request::SortTarget;
use pintle_proto::etcdserverpb::{
    HashKvResponse, RangeRequest, RangeResponse, ResponseHeader, StatusResponse, request_op, response_op,
};
use pintle_proto::mvccpb::{Event, KeyValue};
use tonic::Code;

use super::step::{Answer, Call, Refused};

/// The line of etcd that is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    V3_4,
    V3_5,
}

/// A permitted difference: it takes out of both answers what may differ.
struct Permitted {
    why: &'static str,
    /// The lines of etcd that differ so.
    lines: &'static [Reference],
    settle: fn(&Call, &mut Answer),
}

const ALL: &[Reference] = &[Reference::V3_4, Reference::V3_5];

const OLD: &[Reference] = &[Reference::V3_4];

const PERMITTED: &[Permitted] = &[
    Permitted {
        why: "ids of cluster and member are of the cluster, terms of its elections",
        lines: ALL,
        settle: |_, answer| without_ids(answer.header()),
    },
    Permitted {
        why: "a lease's remaining time is the clock's: it must be positive, and not above what was granted",
        lines: ALL,
        settle: |_, answer| {
            if let Answer::TimeToLive(answer) = answer
                && (answer.granted_ttl.saturating_sub(60)..=answer.granted_ttl).contains(&answer.ttl)
                && answer.ttl > 0
            {
                answer.ttl = answer.granted_ttl;
            }
        },
    },
    Permitted {
        why: "leases are listed, and their keys told, in no order",
        lines: ALL,
        settle: |_, answer| match answer {
            Answer::Leases(answer) => answer.leases.sort_by_key(|lease| lease.id),
            Answer::TimeToLive(answer) => answer.keys.sort(),
            _ => (),
        },
    },
    Permitted {
        why: "etcd's sort keeps no order among more than twelve keys that are equal in what is sorted by; pintle's is by key",
        lines: ALL,
        settle: |call, answer| match (call, answer) {
            (Call::Range(request), Answer::Range(answer)) => unordered(request, answer),
            (Call::Txn(request), Answer::Txn(answer)) => unordered_within(request, answer),
            _ => (),
        },
    },
    Permitted {
        why: "etcd tells a winner the revision of its first try, pintle the one at which it was seen to have won",
        lines: ALL,
        settle: |call, answer| {
            if let (Call::Campaign(_), Some(header)) = (call, answer.header()) {
                header.revision = 0;
            }
        },
    },
    Permitted {
        why: "sizes, indexes and the version are of the implementation",
        lines: ALL,
        settle: |_, answer| {
            if let Answer::Status(answer) = answer {
                *answer = StatusResponse {
                    header: answer.header,
                    errors: std::mem::take(&mut answer.errors),
                    is_learner: answer.is_learner,
                    ..StatusResponse::default()
                };
            }
        },
    },
    Permitted {
        why: "members have ids and addresses of their own",
        lines: ALL,
        settle: |_, answer| {
            if let Answer::MemberList(answer) = answer {
                for member in &mut answer.members {
                    member.id = 0;
                    member.peer_ur_ls.truncate(1);
                    member.client_ur_ls.truncate(1);
                    member.peer_ur_ls.iter_mut().chain(&mut member.client_ur_ls).for_each(String::clear);
                }
            }
        },
    },
    Permitted {
        why: "etcd refuses strangers these calls without a code that clients would log in again for",
        lines: ALL,
        settle: |call, answer| {
            if let (Call::HashKv(_) | Call::Defragment(_), Answer::Refused(refused)) = (call, answer)
                && let Some(text) = refused.text.strip_prefix("auth: ").or(refused.text.strip_prefix("etcdserver: "))
                && ["user name is empty", "invalid auth token", "permission denied"].contains(&text)
            {
                *refused = Refused { code: Code::PermissionDenied, text: text.to_owned() };
            }
        },
    },
    Permitted {
        why: "etcd takes a stranger, whose name is empty, for the user with an empty name, who may ask for itself and does not exist; \
              here strangers are told to log in",
        lines: ALL,
        settle: |call, answer| {
            if let (Call::UserGet(request), Answer::Refused(refused)) = (call, answer)
                && request.name.is_empty()
                && refused.text == "etcdserver: user name is empty"
            {
                *refused =
                    Refused { code: Code::FailedPrecondition, text: "etcdserver: user name not found".to_owned() };
            }
        },
    },
    Permitted {
        why: "etcd sorts the permissions of a role by their keys alone, and keeps no order among equals",
        lines: ALL,
        settle: |_, answer| {
            if let Answer::RoleGet(answer) = answer {
                answer.perm.sort_by(|a, b| (&a.key, &a.range_end).cmp(&(&b.key, &b.range_end)));
            }
        },
    },
    Permitted {
        why: "3.4 answers about alarms without a header",
        lines: OLD,
        settle: |_, answer| {
            if let Answer::Alarm(answer) = answer {
                answer.header = None;
            }
        },
    },
    Permitted {
        why: "etcd tells the hashed revision from 3.6 on, as pintle does",
        lines: ALL,
        settle: |_, answer| {
            if let Answer::HashKv(HashKvResponse { hash_revision, .. }) = answer {
                *hash_revision = 0;
            }
        },
    },
    Permitted {
        why: "after a compaction the hash of 3.4 is another than that of 3.5 and pintle, which agree",
        lines: OLD,
        settle: |_, answer| {
            if let Answer::HashKv(HashKvResponse { hash, compact_revision: 1.., .. }) = answer {
                *hash = 0;
            }
        },
    },
];

/// The reasons why answers may differ from this line's.
pub fn reasons(reference: Reference) -> impl Iterator<Item = &'static str> {
    PERMITTED.iter().filter(move |permitted| permitted.lines.contains(&reference)).map(|permitted| permitted.why)
}

/// Takes out of both answers what may differ.
pub fn settle(reference: Reference, call: &Call, ours: &mut Answer, theirs: &mut Answer) {
    for permitted in PERMITTED.iter().filter(|permitted| permitted.lines.contains(&reference)) {
        (permitted.settle)(call, ours);
        (permitted.settle)(call, theirs);
    }
}

/// Of what was written at the compacted revision itself etcd has lost what was there before; pintle tells it for as long as its
/// memory reaches.
pub fn settle_events(compacted: i64, events: &mut [Event]) {
    for event in events {
        if event.kv.as_ref().is_some_and(|kv| kv.mod_revision <= compacted) {
            event.prev_kv = None;
        }
    }
}

pub fn without_ids(header: Option<&mut ResponseHeader>) {
    if let Some(header) = header {
        *header = ResponseHeader { revision: header.revision, ..ResponseHeader::default() };
    }
}

/// Up to so many elements Go sorts by insertion, which keeps the order of equals.
const SORTED_BY_INSERTION: i64 = 12;

fn unordered(request: &RangeRequest, answer: &mut RangeResponse) {
    if request.sort_target == i32::from(SortTarget::Key) || answer.count <= SORTED_BY_INSERTION {
        return;
    }
    let target = request.sort_target;
    let sorted_by = |kv: &KeyValue| match SortTarget::try_from(target) {
        Ok(SortTarget::Version) => (kv.version, bytes::Bytes::new()),
        Ok(SortTarget::Create) => (kv.create_revision, bytes::Bytes::new()),
        Ok(SortTarget::Mod) => (kv.mod_revision, bytes::Bytes::new()),
        // With keys alone the value is not there to tell equals by.
        Ok(SortTarget::Value) if !request.keys_only => (0, kv.value.clone()),
        _ => (0, bytes::Bytes::new()),
    };
    let last = answer.kvs.last().map(sorted_by);
    for equals in answer.kvs.chunk_by_mut(|a, b| sorted_by(a) == sorted_by(b)) {
        if answer.more && Some(sorted_by(&equals[0])) == last {
            equals.fill(KeyValue::default()); // which of them were cut off is as open
        } else {
            equals.sort_by(|a, b| a.key.cmp(&b.key));
        }
    }
}

fn unordered_within(
    request: &pintle_proto::etcdserverpb::TxnRequest,
    answer: &mut pintle_proto::etcdserverpb::TxnResponse,
) {
    let branch = if answer.succeeded { &request.success } else { &request.failure };
    for (op, response) in branch.iter().zip(&mut answer.responses) {
        match (&op.request, &mut response.response) {
            (Some(request_op::Request::RequestRange(request)), Some(response_op::Response::ResponseRange(answer))) => {
                unordered(request, answer);
            }
            (Some(request_op::Request::RequestTxn(request)), Some(response_op::Response::ResponseTxn(answer))) => {
                unordered_within(request, answer);
            }
            _ => (),
        }
    }
}
