//! The key space by plain means: every state is kept whole, and each rule is written down once more, as etcd's documentation has it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use pintle_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::response_op::Response;
use pintle_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    TxnRequest, TxnResponse,
};
use pintle_proto::mvccpb::KeyValue;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::failure::Reason;
use pintle_proto::store_v1::reply::Outcome;
use pintle_proto::store_v1::{LeaseExpire, Reply};
use prost::Message;

use super::memory::Memory;

type State = BTreeMap<Bytes, KeyValue>;

pub(super) struct Model {
    revision: i64,
    compacted: i64,
    /// The state after each revision.
    states: BTreeMap<i64, State>,
    /// With the stamp of their last renewal.
    leases: BTreeMap<i64, u64>,
    stamp: u64,
}

impl Model {
    pub fn new() -> Self {
        let states = BTreeMap::from([(1, State::new())]);
        Self { revision: 1, compacted: 0, states, leases: BTreeMap::new(), stamp: 0 }
    }

    /// What a command is answered.
    pub fn run(&mut self, operation: &Operation) -> String {
        let mut now = self.states[&self.revision].clone();
        let before = now.clone();
        let answered = self.decide(operation, &mut now);
        let wrote = now != before;
        if wrote {
            self.revision += 1;
            self.states.insert(self.revision, now);
        }
        match answered {
            Ok(text) => format!("r={} {text}", self.revision),
            Err(reason) => {
                assert!(!wrote, "a refusal writes nothing");
                format!("r={} {reason:?}", self.revision)
            }
        }
    }

    fn decide(&mut self, operation: &Operation, now: &mut State) -> Result<String, Reason> {
        match operation {
            Operation::Put(raw) => {
                let put = PutRequest::decode(raw.clone()).expect("a put");
                if put.lease != 0 && !self.leases.contains_key(&put.lease) {
                    return Err(Reason::LeaseNotFound);
                }
                self.check_put(&put, now)?;
                Ok(self.put(&put, now))
            }
            Operation::DeleteRange(raw) => Ok(delete(&DeleteRangeRequest::decode(raw.clone()).expect("a delete"), now)),
            Operation::Txn(raw) => {
                let txn = TxnRequest::decode(raw.clone()).expect("a transaction");
                let before = now.clone();
                self.check_puts(&txn, &before)?;
                self.check_ranges(&txn, &before)?;
                Ok(self.execute(&txn, &before, now))
            }
            Operation::Compact(revision) if *revision <= self.compacted => Err(Reason::Compacted),
            Operation::Compact(revision) if *revision > self.revision => Err(Reason::FutureRevision),
            Operation::Compact(revision) => {
                self.compacted = *revision;
                Ok(String::new())
            }
            Operation::LeaseGrant(grant) if grant.id == 0 => Err(Reason::Malformed),
            Operation::LeaseGrant(grant) if self.leases.contains_key(&grant.id) => Err(Reason::LeaseExists),
            Operation::LeaseGrant(grant) => {
                self.renew(grant.id);
                Ok(String::new())
            }
            Operation::LeaseRevoke(id) if !self.leases.contains_key(id) => Err(Reason::LeaseNotFound),
            Operation::LeaseRevoke(id) => Ok(self.end(*id, now)),
            Operation::LeaseRenew(id) if !self.leases.contains_key(id) => Err(Reason::LeaseNotFound),
            Operation::LeaseRenew(id) => {
                self.renew(*id);
                Ok("ttl=60".to_owned())
            }
            Operation::LeaseExpire(LeaseExpire { id, stamp }) if self.leases.get(id) != Some(stamp) => {
                Err(Reason::LeaseNotFound)
            }
            Operation::LeaseExpire(expire) => Ok(self.end(expire.id, now)),
            other => panic!("scripts have no {other:?}"),
        }
    }

    fn renew(&mut self, id: i64) {
        self.stamp += 1;
        self.leases.insert(id, self.stamp);
    }

    fn end(&mut self, id: i64, now: &mut State) -> String {
        self.leases.remove(&id);
        now.retain(|_, kv| kv.lease != id);
        String::new()
    }

    fn check_put(&self, put: &PutRequest, now: &State) -> Result<(), Reason> {
        if (put.ignore_value || put.ignore_lease) && !now.contains_key(&put.key) {
            return Err(Reason::KeyNotFound);
        }
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Reason::LeaseNotFound);
        }
        Ok(())
    }

    fn put(&self, put: &PutRequest, now: &mut State) -> String {
        let modified = self.revision + 1;
        let before = now.get(&put.key).cloned();
        let old = before.clone().unwrap_or_default();
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: if before.is_some() { old.create_revision } else { modified },
            mod_revision: modified,
            version: old.version + 1,
            value: if put.ignore_value { old.value } else { put.value.clone() },
            lease: if put.ignore_lease { old.lease } else { put.lease },
        };
        now.insert(put.key.clone(), kv);
        show_put(before.filter(|_| put.prev_kv).as_ref())
    }

    /// Every put of the branches that are taken, in order.
    fn check_puts(&self, txn: &TxnRequest, before: &State) -> Result<(), Reason> {
        taken(txn, before).iter().try_for_each(|operation| match &operation.request {
            Some(Request::RequestPut(put)) => self.check_put(put, before),
            Some(Request::RequestTxn(nested)) => self.check_puts(nested, before),
            _ => Ok(()),
        })
    }

    fn check_ranges(&self, txn: &TxnRequest, before: &State) -> Result<(), Reason> {
        taken(txn, before).iter().try_for_each(|operation| match &operation.request {
            Some(Request::RequestRange(range)) if range.revision > self.revision => Err(Reason::FutureRevision),
            Some(Request::RequestRange(range)) => match range.revision {
                0 => Ok(()),
                -1 if self.compacted == 0 => Ok(()),
                revision if revision < self.compacted || revision < 0 => Err(Reason::Compacted),
                _ => Ok(()),
            },
            Some(Request::RequestTxn(nested)) => self.check_ranges(nested, before),
            _ => Ok(()),
        })
    }

    fn execute(&self, txn: &TxnRequest, before: &State, now: &mut State) -> String {
        let mut text = if holds(txn, before) { "yes".to_owned() } else { "no".to_owned() };
        for operation in taken(txn, before) {
            let answer = match operation.request.as_ref().expect("an operation") {
                Request::RequestPut(put) => self.put(put, now),
                Request::RequestDeleteRange(request) => delete(request, now),
                Request::RequestRange(request) => self.range(request, now),
                Request::RequestTxn(nested) => self.execute(nested, before, now),
            };
            let _ = write!(text, " [{answer}]");
        }
        text
    }

    fn range(&self, request: &RangeRequest, now: &State) -> String {
        let state = if request.revision > 0 { &self.states[&request.revision] } else { now };
        let all: Vec<&KeyValue> =
            state.values().filter(|kv| within(&request.key, &request.range_end, &kv.key)).collect();
        let limit = if request.limit == 0 { usize::MAX } else { usize::try_from(request.limit).expect("small") };
        let taken = if request.count_only { 0 } else { all.len().min(limit) };
        let value = |kv: &KeyValue| if request.keys_only { Bytes::new() } else { kv.value.clone() };
        let kvs = all[..taken].iter().map(|kv| KeyValue { value: value(kv), ..(*kv).clone() }).collect();
        let more = !request.count_only && all.len() > limit;
        show_range(&RangeResponse { header: None, kvs, more, count: i64::try_from(all.len()).expect("small") })
    }

    /// Every state that can still be read.
    pub fn compare(&self, memory: &Memory) {
        assert_eq!((memory.revision, memory.compacted), (self.revision, self.compacted));
        for (revision, state) in self.states.range(self.compacted..) {
            assert_eq!(memory.state(*revision), state.values().cloned().collect::<Vec<_>>(), "at {revision}");
        }
        let stamps: BTreeMap<i64, u64> = memory.leases().iter().map(|(id, record)| (*id, record.stamp)).collect();
        assert_eq!(stamps, self.leases);
    }
}

fn within(key: &Bytes, range_end: &Bytes, candidate: &Bytes) -> bool {
    match range_end.as_ref() {
        [] => candidate == key,
        [0] => candidate >= key,
        end => candidate >= key && candidate.as_ref() < end,
    }
}

fn delete(request: &DeleteRangeRequest, now: &mut State) -> String {
    let gone = |kv: &&KeyValue| within(&request.key, &request.range_end, &kv.key);
    let prev_kvs: Vec<KeyValue> = now.values().filter(gone).cloned().collect();
    prev_kvs.iter().for_each(|kv| drop(now.remove(&kv.key)));
    show_delete(prev_kvs.len() as i64, if request.prev_kv { &prev_kvs } else { &[] })
}

fn taken<'a>(txn: &'a TxnRequest, before: &State) -> &'a [RequestOp] {
    if holds(txn, before) { &txn.success } else { &txn.failure }
}

/// Comparisons of all transactions see the state before the outermost one.
fn holds(txn: &TxnRequest, before: &State) -> bool {
    txn.compare.iter().all(|compare| {
        let mut kvs = before.values().filter(|kv| within(&compare.key, &compare.range_end, &kv.key)).peekable();
        if kvs.peek().is_none() {
            return compare.target != i32::from(CompareTarget::Value) && satisfies(compare, &KeyValue::default());
        }
        kvs.all(|kv| satisfies(compare, kv))
    })
}

fn satisfies(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match compare.target_union.as_ref().expect("an operand") {
        TargetUnion::Version(version) => kv.version.cmp(version),
        TargetUnion::CreateRevision(revision) => kv.create_revision.cmp(revision),
        TargetUnion::ModRevision(revision) => kv.mod_revision.cmp(revision),
        TargetUnion::Value(value) => kv.value.cmp(value),
        TargetUnion::Lease(lease) => kv.lease.cmp(lease),
    };
    match CompareResult::try_from(compare.result).expect("a known relation") {
        CompareResult::Equal => ordering == Ordering::Equal,
        CompareResult::Greater => ordering == Ordering::Greater,
        CompareResult::Less => ordering == Ordering::Less,
        CompareResult::NotEqual => ordering != Ordering::Equal,
    }
}

/// A reply as the model says it.
pub(super) fn shown(operation: &Operation, reply: Reply) -> String {
    let text = match reply.outcome.expect("an outcome") {
        Outcome::Failure(failure) => format!("{:?}", failure.reason()),
        Outcome::LeaseTtlSeconds(ttl) => format!("ttl={ttl}"),
        Outcome::Answer(raw) => match operation {
            Operation::Put(_) => show_put(PutResponse::decode(raw).expect("an answer").prev_kv.as_ref()),
            Operation::DeleteRange(_) => {
                let answer = DeleteRangeResponse::decode(raw).expect("an answer");
                show_delete(answer.deleted, &answer.prev_kvs)
            }
            Operation::Txn(_) => show_txn(&TxnResponse::decode(raw).expect("an answer")),
            _ => String::new(),
        },
    };
    format!("r={} {text}", reply.revision)
}

fn show_txn(response: &TxnResponse) -> String {
    let mut text = if response.succeeded { "yes".to_owned() } else { "no".to_owned() };
    for operation in &response.responses {
        let answer = match operation.response.as_ref().expect("an answer") {
            Response::ResponsePut(put) => show_put(put.prev_kv.as_ref()),
            Response::ResponseDeleteRange(delete) => show_delete(delete.deleted, &delete.prev_kvs),
            Response::ResponseRange(range) => show_range(range),
            Response::ResponseTxn(nested) => show_txn(nested),
        };
        let _ = write!(text, " [{answer}]");
    }
    text
}

fn show_put(before: Option<&KeyValue>) -> String {
    format!("put {before:?}")
}

fn show_delete(deleted: i64, before: &[KeyValue]) -> String {
    format!("deleted {deleted} {before:?}")
}

fn show_range(range: &RangeResponse) -> String {
    format!("{} {} {:?}", range.count, range.more, range.kvs)
}
