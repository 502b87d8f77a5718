//! Quotas: what is used is always what is there, and exactly what would go beyond is refused, whatever happens to the store in between.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use pintle_base::clock;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::failure::Reason;
use pintle_proto::store_v1::reply::Outcome;
use pintle_proto::store_v1::{
    LeaseGrant, PrefixQuota, Quota, QuotaChange, QuotaCount, QuotaName, UserQuota, quota, quota_change, quota_name,
};
use proptest::prelude::*;
use prost::Message;

use super::local::Local;
use crate::error::StoreError;
use crate::mvcc::key::{Interval, prefix_end};
use crate::mvcc::view::Source;
use crate::quota::Size;

const KEYS: [&str; 8] = ["a/1", "a/2", "a/b/1", "a/b/2", "a/b/c/1", "b", "b/1", "c"];
const PREFIXES: [&str; 5] = ["", "a/", "a/b/", "b", "nothing/"];
const LEASE: i64 = 7;

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: usize,
        len: usize,
        leased: bool,
    },
    /// All keys from one to before another.
    Delete(usize, usize),
    /// Each key is put with so many bytes, deleted, or left alone.
    Txn(Vec<Option<Option<usize>>>),
    EndLease,
    Set(usize, Option<u64>, Option<u64>),
    Remove(usize),
    /// What the leader does beside.
    Count,
    Compact,
    Reopen,
    Reinstall,
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let limit = || prop::option::of(0..8u64);
    let change = prop::option::weighted(0.4, prop::option::weighted(0.6, 0..30usize));
    prop_oneof![
        8 => (0..KEYS.len(), 0..30usize, any::<bool>()).prop_map(|(key, len, leased)| Step::Put { key, len, leased }),
        2 => (0..KEYS.len(), 0..=KEYS.len()).prop_map(|(from, to)| Step::Delete(from, to)),
        6 => prop::collection::vec(change, KEYS.len()).prop_map(Step::Txn),
        1 => Just(Step::EndLease),
        3 => (0..PREFIXES.len(), limit(), prop::option::of(0..120u64))
            .prop_map(|(prefix, keys, bytes)| Step::Set(prefix, keys, bytes)),
        1 => (0..PREFIXES.len()).prop_map(Step::Remove),
        4 => Just(Step::Count),
        1 => Just(Step::Compact),
        1 => Just(Step::Reopen),
        1 => Just(Step::Reinstall),
        1 => Just(Step::Restore),
    ]
}

/// A key's bytes of value, and whether it has the lease.
type Contents = BTreeMap<&'static str, (usize, bool)>;

#[derive(Debug, Default)]
struct Model {
    contents: Contents,
    /// Limits of keys and bytes, and whether they are kept.
    quotas: BTreeMap<&'static str, (Option<u64>, Option<u64>, bool)>,
}

fn size_of(contents: &Contents, prefix: &str) -> Size {
    let mut size = Size::default();
    for (key, (len, _)) in contents.iter().filter(|(key, _)| key.starts_with(prefix)) {
        size += Size::of(key.as_bytes(), &vec![0; *len]);
    }
    size
}

impl Model {
    fn refuses(&self, after: &Contents) -> bool {
        self.quotas.iter().filter(|(_, (.., kept))| *kept).any(|(prefix, (keys, bytes, _))| {
            let (before, after) = (size_of(&self.contents, prefix), size_of(after, prefix));
            let beyond = |before: i64, after: i64, most: &Option<u64>| {
                after > before && most.is_some_and(|most| after > most.cast_signed())
            };
            beyond(before.keys, after.keys, keys) || beyond(before.bytes, after.bytes, bytes)
        })
    }
}

fn put_request(key: &str, len: usize, lease: i64) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::from(vec![0; len]),
        lease,
        ..PutRequest::default()
    }
}

fn delete_request(key: &str, range_end: &str) -> DeleteRangeRequest {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    DeleteRangeRequest { key: bytes(key), range_end: bytes(range_end), ..DeleteRangeRequest::default() }
}

fn encoded(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn set(prefix: &str, keys: Option<u64>, bytes: Option<u64>) -> Operation {
    let quota = PrefixQuota { prefix: Bytes::copy_from_slice(prefix.as_bytes()), keys, bytes };
    let quota = Quota { of: Some(quota::Of::Prefix(quota)) };
    Operation::Quota(QuotaChange { change: Some(quota_change::Change::Set(quota)) })
}

fn remove(prefix: &str) -> Operation {
    let name = QuotaName { of: Some(quota_name::Of::Prefix(Bytes::copy_from_slice(prefix.as_bytes()))) };
    Operation::Quota(QuotaChange { change: Some(quota_change::Change::Remove(name)) })
}

fn reason(outcome: &Outcome) -> Option<Reason> {
    if let Outcome::Failure(failure) = outcome { Some(failure.reason()) } else { None }
}

/// Does what the leader does for quotas that are not counted.
fn count(local: &Local) {
    for (prefix, since) in local.store.uncounted_quotas() {
        let generation = local.engine().current();
        let view = generation.view().expect("view");
        let mut size = Size::default();
        let anew = view.compacted() > since;
        if !anew {
            let interval = Interval::new(&prefix, &prefix_end(&prefix));
            view.scan(&interval, since, &mut |row| {
                size += Size::of(row.key, row.value);
                ControlFlow::Continue(())
            })
            .expect("scan");
        }
        drop(view);
        let count = QuotaCount { prefix, since, keys: size.keys, bytes: size.bytes, anew };
        local.one(Operation::QuotaCount(count));
    }
}

/// Writes `after`, which must be refused exactly if it is to be.
fn write(local: &Local, model: &mut Model, operation: Operation, after: Contents) {
    let revision = local.store.revision();
    let (_, outcome) = local.one(operation);
    if model.refuses(&after) {
        assert_eq!(reason(&outcome), Some(Reason::Quota), "{outcome:?} {model:?}");
        assert_eq!(local.store.revision(), revision, "nothing was written");
    } else {
        assert_eq!(reason(&outcome), None, "{outcome:?} {model:?} {after:?}");
        model.contents = after;
    }
}

fn run(local: &mut Local, model: &mut Model, step: &Step) {
    match step {
        Step::Put { key, len, leased } => {
            let mut after = model.contents.clone();
            after.insert(KEYS[*key], (*len, *leased));
            let request = put_request(KEYS[*key], *len, if *leased { LEASE } else { 0 });
            write(local, model, Operation::Put(encoded(&request)), after);
        }
        Step::Delete(from, to) => {
            let range_end = KEYS.get(*to).copied().unwrap_or("\0");
            local.one(Operation::DeleteRange(encoded(&delete_request(KEYS[*from], range_end))));
            if to > from {
                model.contents.retain(|key, _| *key < KEYS[*from] || (range_end != "\0" && *key >= range_end));
            }
        }
        Step::Txn(changes) => {
            let (mut after, mut success) = (model.contents.clone(), Vec::new());
            for (key, change) in KEYS.iter().zip(changes) {
                success.push(match change {
                    None => continue,
                    Some(None) => {
                        after.remove(key);
                        Request::RequestDeleteRange(delete_request(key, ""))
                    }
                    Some(Some(len)) => {
                        after.insert(key, (*len, false));
                        Request::RequestPut(put_request(key, *len, 0))
                    }
                });
            }
            let success = success.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
            let request = TxnRequest { success, ..TxnRequest::default() };
            write(local, model, Operation::Txn(encoded(&request)), after);
        }
        Step::EndLease => {
            local.one(Operation::LeaseRevoke(LEASE));
            local.one(Operation::LeaseGrant(LeaseGrant { id: LEASE, ttl_seconds: 1000 }));
            model.contents.retain(|_, (_, leased)| !*leased);
        }
        Step::Set(prefix, keys, bytes) => {
            let refused = reason(&local.one(set(PREFIXES[*prefix], *keys, *bytes)).1).is_some();
            assert_eq!(refused, (keys, bytes) == (&None, &None));
            if !refused {
                let entry = model.quotas.entry(PREFIXES[*prefix]).or_default();
                (entry.0, entry.1) = (*keys, *bytes);
            }
        }
        Step::Remove(prefix) => {
            let removed = reason(&local.one(remove(PREFIXES[*prefix])).1).is_none();
            assert_eq!(removed, model.quotas.remove(PREFIXES[*prefix]).is_some());
        }
        Step::Count => {
            count(local);
            count(local); // those that had to begin anew
            model.quotas.values_mut().for_each(|(.., kept)| *kept = true);
        }
        Step::Compact => drop(local.one(Operation::Compact(local.store.revision()))),
        Step::Reinstall => local.reinstall(),
        Step::Reopen | Step::Restore => unreachable!("they take the store"),
    }
}

fn check(local: &Local, model: &Model) {
    let usage = local.store.shared().quotas.load().usage();
    assert_eq!(usage.len(), model.quotas.len());
    for used in usage {
        let quota = used.quota.expect("a quota");
        let prefix = std::str::from_utf8(&quota.prefix).expect("text");
        let (keys, bytes, kept) = model.quotas[prefix];
        assert_eq!((quota.keys, quota.bytes, used.counted), (keys, bytes, kept), "{prefix:?}");
        if kept {
            assert_eq!(Size { keys: used.keys, bytes: used.bytes }, size_of(&model.contents, prefix), "{prefix:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_is_used_is_what_is_there_and_exactly_what_would_go_beyond_is_refused(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (mut local, mut model) = (Local::open(), Model::default());
        local.one(Operation::LeaseGrant(LeaseGrant { id: LEASE, ttl_seconds: 1000 }));
        for step in &steps {
            match step {
                Step::Reopen => local = local.reopened(),
                Step::Restore => {
                    local = local.restored();
                    model.quotas.values_mut().for_each(|(.., kept)| *kept = true);
                }
                step => run(&mut local, &mut model, step),
            }
            check(&local, &model);
        }
    }
}

#[tokio::test]
async fn what_was_there_before_a_quota_is_counted_and_then_it_is_kept() {
    let local = Local::open().attached();
    let store = &local.store;
    for number in 0..20 {
        store.put(put_request(&format!("a/{number}"), 10, 0)).await.expect("put");
    }
    let quota = PrefixQuota { prefix: Bytes::from_static(b"a/"), keys: Some(21), bytes: None };
    store.set_quota(Quota { of: Some(quota::Of::Prefix(quota)) }).await.expect("set");
    store.put(put_request("a/new", 1, 0)).await.expect("put while it is counted, or after");
    let counted = async {
        while !store.quotas().await.expect("quotas").prefixes[0].counted {
            clock::sleep(Duration::from_millis(10)).await;
        }
    };
    clock::timeout(Duration::from_secs(20), counted).await.expect("in time");
    assert_eq!(store.quotas().await.expect("quotas").prefixes[0].keys, 21);
    let refused = store.put(put_request("a/more", 1, 0)).await.expect_err("it is full");
    assert_eq!(refused.to_string(), "etcdserver: quota exceeded: prefix \"a/\" may hold 21 keys");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    store.put(put_request("a/new", 500, 0)).await.expect("only keys are limited");
    store.delete_range(delete_request("a/0", "")).await.expect("deletes always pass");
    store.put(put_request("a/more", 1, 0)).await.expect("there is room again");
    let name = QuotaName { of: Some(quota_name::Of::Prefix(Bytes::from_static(b"b/"))) };
    assert!(matches!(store.remove_quota(name).await, Err(StoreError::QuotaNotFound)));
    assert!(matches!(store.set_quota(Quota::default()).await, Err(StoreError::QuotaMalformed)));
}

#[test]
fn there_are_so_many_quotas_and_those_of_users_come_back_too() {
    let local = Local::open();
    let user = |number: usize| {
        let quota = UserQuota { user: format!("u{number}"), requests: Some(1), bytes: None };
        let quota = Quota { of: Some(quota::Of::User(quota)) };
        Operation::Quota(QuotaChange { change: Some(quota_change::Change::Set(quota)) })
    };
    let operations: Vec<Operation> = (0..=crate::limits::QUOTAS).map(user).collect();
    let outcomes = local.apply(&operations);
    let refused: Vec<_> = outcomes.iter().filter_map(|(_, outcome)| reason(outcome)).collect();
    assert_eq!(refused, [Reason::TooManyQuotas]);
    assert_eq!(reason(&local.one(set("a/", Some(1), None)).1), Some(Reason::TooManyQuotas));
    assert_eq!(reason(&local.one(user(3)).1), None, "another limit is not another quota");
    let users = |local: &Local| local.store.shared().quotas.load().users();
    let before = users(&local);
    assert_eq!(before.len(), crate::limits::QUOTAS);
    assert_eq!(users(&local.restored()), before);
}
