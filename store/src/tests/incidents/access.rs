//! Who may do what: verdicts that members must share, and ways around them.

use std::ops::ControlFlow;

use bytes::Bytes;
use pintle_proto::authpb::Permission;
use pintle_proto::authpb::permission::Type;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use pintle_proto::store_v1::auth_change::Change;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::{AuthChange, Caller, Command, LeaseGrant};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use prost::Message;

use crate::auth::{AuthState, access};
use crate::mvcc::hash;
use crate::mvcc::key::Interval;
use crate::mvcc::view::Source;
use crate::tests::local::Local;

fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

fn name_of(user: u8) -> String {
    if user == 0 { "root".to_owned() } else { format!("user{user}") }
}

fn user_add(name: &str) -> Change {
    let (name, hashed_password) = (name.to_owned(), "hash".to_owned());
    Change::UserAdd(encode(&AuthUserAddRequest { name, hashed_password, ..AuthUserAddRequest::default() }))
}

fn role_add(name: &str) -> Change {
    Change::RoleAdd(encode(&AuthRoleAddRequest { name: name.to_owned() }))
}

fn grant_role(user: &str, role: &str) -> Change {
    Change::UserGrantRole(encode(&AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() }))
}

fn grant_permission(role: &str, kind: Type, key: Bytes, range_end: Bytes) -> Change {
    let perm = Some(Permission { perm_type: kind.into(), key, range_end });
    Change::RoleGrantPermission(encode(&AuthRoleGrantPermissionRequest { name: role.to_owned(), perm }))
}

fn by(caller: Option<&str>, operation: Operation) -> Bytes {
    let caller = caller.map(|name| Caller { name: name.to_owned(), ..Caller::default() });
    Bytes::from(Command { fence: None, caller, operation: Some(operation) }.encode_to_vec())
}

fn change(change: Change) -> Operation {
    Operation::Auth(AuthChange { change: Some(change) })
}

fn put(key: &'static str) -> Operation {
    Operation::Put(encode(&PutRequest { key: Bytes::from_static(key.as_bytes()), ..PutRequest::default() }))
}

/// Writes between changes of what their writers may.
fn entries() -> Vec<Bytes> {
    let readers = |kind, key: &'static [u8], end: &'static [u8]| {
        change(grant_permission("r", kind, Bytes::from_static(key), Bytes::from_static(end)))
    };
    let revoke = AuthRoleRevokePermissionRequest {
        role: "r".to_owned(),
        key: Bytes::from_static(b"a"),
        range_end: Bytes::from_static(b"c"),
    };
    vec![
        by(None, change(user_add("root"))),
        by(None, change(grant_role("root", "root"))),
        by(None, change(user_add("user1"))),
        by(None, change(role_add("r"))),
        by(None, change(grant_role("user1", "r"))),
        by(Some("user1"), put("a")),
        by(None, change(Change::Enable(Bytes::from_static(b"key")))),
        by(Some("user1"), put("a")),
        by(Some("root"), readers(Type::Readwrite, b"a", b"c")),
        by(Some("user1"), put("a")),
        by(Some("user1"), put("c")),
        by(Some("user1"), readers(Type::Write, b"c", b"")),
        by(Some("root"), readers(Type::Write, b"c", b"")),
        by(Some("user1"), put("c")),
        by(Some("root"), change(Change::RoleRevokePermission(encode(&revoke)))),
        by(Some("user1"), put("a")),
        by(Some("nobody"), put("c")),
        by(None, put("a")),
        by(Some("root"), change(Change::Disable(true))),
        by(Some("user1"), put("a")),
    ]
}

fn hash_of(local: &Local) -> u32 {
    let generation = local.engine().current();
    let view = generation.view().expect("view");
    hash::hash_kv(&view, view.revision(), |_| ControlFlow::Continue(())).expect("hash")
}

/// Members of etcd judged the same entry by different users and roles: after a restart one had what belonged to another index, or had not
/// read the roles of its users. Their data drifted apart without a word. Here users and roles change in the same write as everything an
/// entry does, and are judged when it is applied: a member that restarts or receives its state before every entry answers, and holds, the
/// same as one that never did.
#[test]
fn etcd_14571_11651_restarts_and_snapshots_do_not_change_a_verdict() {
    let (steady, mut restarted, received) = (Local::open(), Local::open(), Local::open());
    let mut refused = 0;
    for (at, command) in entries().into_iter().enumerate() {
        let expected = steady.log.entry(std::slice::from_ref(&command));
        restarted = restarted.reopened();
        assert_eq!(restarted.log.entry(std::slice::from_ref(&command)), expected, "entry {at} after a restart");
        received.reinstall();
        assert_eq!(received.log.entry(&[command]), expected, "entry {at} after a snapshot");
        let outcome = crate::tests::local::read(expected[0].clone()).1;
        refused += usize::from(matches!(outcome, pintle_proto::store_v1::reply::Outcome::Failure(_)));
    }
    assert_eq!(refused, 5, "some are allowed and some are not");
    assert_eq!(hash_of(&steady), hash_of(&restarted));
    assert_eq!(hash_of(&steady), hash_of(&received));
}

const KEYS: [&[u8]; 4] = [b"a", b"b", b"b\0", b"c"];

fn key() -> impl Strategy<Value = Bytes> {
    (0..KEYS.len()).prop_map(|at| Bytes::from_static(KEYS[at]))
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => Just(Bytes::new()), 2 => key(), 1 => Just(Bytes::from_static(&[0]))]
}

fn grants() -> impl Strategy<Value = Vec<(Type, Bytes, Bytes)>> {
    let kind = prop_oneof![Just(Type::Read), Just(Type::Write), Just(Type::Readwrite)];
    prop::collection::vec((kind, key(), range_end()), 0..4)
}

fn leaf() -> impl Strategy<Value = Request> {
    prop_oneof![
        (key(), any::<bool>(), 0..3i64).prop_map(|(key, prev_kv, lease)| {
            Request::RequestPut(PutRequest { key, prev_kv, lease, ..PutRequest::default() })
        }),
        (key(), range_end()).prop_map(|(key, range_end)| {
            Request::RequestRange(RangeRequest { key, range_end, ..RangeRequest::default() })
        }),
        (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| {
            Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv })
        }),
    ]
}

fn txn_of(compare: Vec<(Bytes, Bytes)>, success: Vec<Request>, failure: Vec<Request>) -> TxnRequest {
    let wrap = |list: Vec<Request>| list.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
    let compare = compare.into_iter().map(|(key, range_end)| Compare { key, range_end, ..Compare::default() });
    TxnRequest { compare: compare.collect(), success: wrap(success), failure: wrap(failure) }
}

/// Transactions within each other, the dangerous leaf at any depth and on any branch.
fn txn() -> impl Strategy<Value = Request> {
    leaf().prop_recursive(4, 24, 3, |inner| {
        let list = || prop::collection::vec(inner.clone(), 0..3);
        let compare = prop::collection::vec((key(), range_end()), 0..2);
        (compare, list(), list())
            .prop_map(|(compare, success, failure)| Request::RequestTxn(txn_of(compare, success, failure)))
    })
}

/// The leaves, each as a transaction of its own; comparisons too.
fn leaves(request: &Request, found: &mut Vec<TxnRequest>) {
    let Request::RequestTxn(txn) = request else {
        found.push(txn_of(Vec::new(), vec![request.clone()], Vec::new()));
        return;
    };
    for compare in &txn.compare {
        found.push(txn_of(vec![(compare.key.clone(), compare.range_end.clone())], Vec::new(), Vec::new()));
    }
    for operation in txn.success.iter().chain(&txn.failure) {
        leaves(operation.request.as_ref().expect("an operation"), found);
    }
}

/// What a put may do by the permissions alone, worked out by looking at each.
fn put_is_granted(put: &PutRequest, grants: &[(Type, Bytes, Bytes)], leased: &dyn Fn(i64) -> Vec<Bytes>) -> bool {
    let may = |wanted: Type, key: &Bytes| {
        grants
            .iter()
            .any(|(kind, from, end)| [wanted, Type::Readwrite].contains(kind) && Interval::new(from, end).contains(key))
    };
    let attached = if put.lease == 0 { Vec::new() } else { leased(put.lease) };
    may(Type::Write, &put.key)
        && (!put.prev_kv || may(Type::Read, &put.key))
        && attached.iter().all(|key| may(Type::Write, key))
}

/// Nested transactions of etcd were not looked into, nor previous values and leases of puts within transactions (CVE-2026-44283): who had
/// few rights hid there what they might not do. Here one visitor goes through the whole tree: a transaction is allowed exactly if each of
/// its leaves is, by itself.
#[test]
fn cve_2026_33343_a_transaction_is_allowed_if_and_only_if_all_in_it_is() {
    let local = Local::open();
    for id in [1, 2] {
        local.one(Operation::LeaseGrant(LeaseGrant { id, ttl_seconds: 60 }));
    }
    for (key, lease) in [(KEYS[0], 1), (KEYS[3], 1), (KEYS[1], 2)] {
        let put = PutRequest { key: Bytes::from_static(key), lease, ..PutRequest::default() };
        local.one(Operation::Put(encode(&put)));
    }
    let generation = local.engine().current();
    let view = generation.view().expect("view");
    let caller = Caller { name: "user1".to_owned(), ..Caller::default() };
    let verdicts = std::cell::Cell::new([0; 2]);
    let mut runner = TestRunner::new(ProptestConfig { cases: 2000, ..ProptestConfig::default() });
    let strategy = (grants(), txn());
    let checked = runner.run(&strategy, |(grants, request)| {
        let grants: Vec<_> = grants.into_iter().filter(valid).collect();
        let state = state(&grants);
        let judge = |txn: &TxnRequest| {
            let operation = Operation::Txn(encode(txn));
            access::judge(&state, &caller, &operation, &view).expect("the lease is read").is_ok()
        };
        let mut parts = Vec::new();
        leaves(&request, &mut parts);
        let all = parts.iter().all(judge);
        let whole = judge(&txn_of(Vec::new(), vec![request.clone()], Vec::new()));
        prop_assert_eq!(whole, all, "{:?} for {:?}", request, grants);
        prop_assert_eq!(judge(&txn_of(Vec::new(), Vec::new(), vec![request.clone()])), all, "the branch matters");
        if let Request::RequestPut(put) = &request {
            let leased = |id| view.lease_keys(id).expect("keys");
            prop_assert_eq!(whole, put_is_granted(put, &grants, &leased), "{:?} for {:?}", put, grants);
        }
        let mut counted = verdicts.get();
        counted[usize::from(all)] += 1;
        verdicts.set(counted);
        Ok::<(), TestCaseError>(())
    });
    checked.expect("every transaction");
    assert!(verdicts.get().iter().all(|count| *count > 100), "both verdicts are given: {verdicts:?}");
}

fn valid((_, key, range_end): &(Type, Bytes, Bytes)) -> bool {
    Interval::new(key, range_end) != Interval::Empty
}

fn state(grants: &[(Type, Bytes, Bytes)]) -> AuthState {
    let mut state = AuthState::default();
    let mut apply = |change: Change| drop(state.change(&change).expect("it can be read").expect("it is allowed"));
    for user in [0, 1] {
        apply(user_add(&name_of(user)));
    }
    apply(role_add("r"));
    apply(grant_role("root", "root"));
    apply(grant_role("user1", "r"));
    // The same interval twice would replace what was granted first.
    for (at, (kind, key, end)) in grants.iter().enumerate() {
        let role = format!("r{at}");
        apply(role_add(&role));
        apply(grant_permission(&role, *kind, key.clone(), end.clone()));
        apply(grant_role("user1", &role));
    }
    apply(Change::Enable(Bytes::from_static(b"key")));
    state
}

/// A leader that had been replaced, and did not know, ended a lease which its successor had renewed. Here what a leader finds due is only
/// a proposal: it carries the term it was made in and the stamp of the renewal it counted from, and is void if either is not the present
/// one when it is applied.
#[test]
fn etcd_15247_12528_a_replaced_leader_ends_no_lease_that_was_renewed() {
    use pintle_proto::store_v1::failure::Reason;
    use pintle_proto::store_v1::reply::Outcome;
    let local = Local::open();
    local.one(Operation::LeaseGrant(LeaseGrant { id: 7, ttl_seconds: 1 }));
    let key = Bytes::from_static(b"a");
    local.one(Operation::Put(encode(&PutRequest { key, lease: 7, ..PutRequest::default() })));
    let stamp = |local: &Local| {
        let generation = local.engine().current();
        generation.view().expect("view").lease(7).expect("lease").expect("there").stamp
    };
    let found_due = stamp(&local);
    let expire = |stamp, term| {
        let operation = Operation::LeaseExpire(pintle_proto::store_v1::LeaseExpire { id: 7, stamp });
        let reply = local.log.entry(&[crate::tests::local::command(operation, Some(term))]).remove(0);
        match crate::tests::local::read(reply).1 {
            Outcome::Failure(failure) => Some(failure.reason()),
            _ => None,
        }
    };
    // Another leads, and has not heard of the renewal either: the term is enough.
    local.log.term.store(2, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(expire(found_due, 1), Some(Reason::Fenced));
    // The old one leads again, and comes back to what it had found before the renewal.
    local.one(Operation::LeaseRenew(7));
    assert_eq!(expire(found_due, 2), Some(Reason::LeaseNotFound));
    assert_eq!(local.store.revision(), 2, "the key is there");
    // Also if it was ended and granted anew meanwhile.
    local.one(Operation::LeaseRevoke(7));
    local.one(Operation::LeaseGrant(LeaseGrant { id: 7, ttl_seconds: 1 }));
    assert_eq!(expire(found_due, 2), Some(Reason::LeaseNotFound));
    assert_eq!(expire(stamp(&local), 2), None, "what is due now ends");
}
