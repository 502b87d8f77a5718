//! Applying entries: whatever the commands are, what is applied in one entry and one by one is the same; and commands that clients can
//! have sent do what the [`model`](super::model) says.

use bytes::Bytes;
use pintle_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::{Command, LeaseExpire, LeaseGrant, Reply};
use prost::Message;

use super::memory::Memory;
use super::model::{Model, shown};
use crate::{check, limits};

const TERM: u64 = 3;
/// So deep are transactions nested here.
const DEPTH: u32 = 2;
const KEYS: [&[u8]; 6] = [b"a", b"a\0", b"ab", b"b", b"b\xff", b"c"];

fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

/// Commands as they may lie in the log, each behind its length.
pub(super) fn commands(data: &[u8]) {
    let mut rest = data;
    let mut commands: Vec<Bytes> = Vec::new();
    while let Some((length, tail)) = rest.split_first() {
        let (command, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        if passes_the_door(command) {
            commands.push(Bytes::copy_from_slice(command));
        }
    }
    let (mut together, mut single) = (prepared(), prepared());
    let replies = together.entry(TERM, &commands);
    let one_by_one: Vec<Bytes> =
        commands.iter().flat_map(|one| single.entry(TERM, std::slice::from_ref(one))).collect();
    assert_eq!(replies, one_by_one);
    assert!(together.same_as(&single));
    together.check_leases();
    for reply in replies {
        Reply::decode(reply).expect("a reply").outcome.expect("with an outcome");
    }
}

/// What no member proposes is not in the log: transactions that write a key twice.
fn passes_the_door(command: &[u8]) -> bool {
    let Ok(Command { operation: Some(Operation::Txn(raw)), .. }) = Command::decode(command) else { return true };
    TxnRequest::decode(raw).map_or(true, |request| check::txn(&request, limits::TXN_OPERATIONS).is_ok())
}

/// Some keys, a lease, and one user who may do everything.
fn prepared() -> Memory {
    let mut memory = Memory::new();
    let put = |key: &'static [u8], lease| {
        Operation::Put(encode(&PutRequest { key: Bytes::from_static(key), lease, ..PutRequest::default() }))
    };
    let operations = [Operation::LeaseGrant(LeaseGrant { id: 1, ttl_seconds: 60 }), put(b"a", 1), put(b"b", 0)];
    memory.entry(TERM, &operations.map(command));
    memory
}

fn command(operation: Operation) -> Bytes {
    encode(&Command { fence: None, caller: None, operation: Some(operation) })
}

pub(super) fn command_seeds() -> Vec<Vec<u8>> {
    let framed = |commands: &[Command]| {
        let frame = |command: &Command| {
            let raw = command.encode_to_vec();
            [&[u8::try_from(raw.len()).expect("short")], &raw[..]].concat()
        };
        commands.iter().flat_map(frame).collect::<Vec<u8>>()
    };
    let plain = |operation| Command { fence: Some(TERM), caller: None, operation: Some(operation) };
    script_seeds()
        .iter()
        .map(|seed| framed(&operations(seed).into_iter().flatten().map(plain).collect::<Vec<_>>()))
        .collect()
}

/// Reads a script: entries of commands that the door lets through.
fn operations(data: &[u8]) -> Vec<Vec<Operation>> {
    let mut script = Script { data };
    let (mut entries, mut entry) = (Vec::new(), Vec::new());
    while let Some(head) = script.byte() {
        if let Some(operation) = script.operation(head % 16) {
            entry.push(operation);
        }
        if head & 0x80 != 0 {
            entries.push(std::mem::take(&mut entry));
        }
    }
    entries.push(entry);
    entries
}

/// Structured commands, against the model.
pub(super) fn script(data: &[u8]) {
    let (mut memory, mut model) = (Memory::new(), Model::new());
    for entry in operations(data) {
        let commands: Vec<Bytes> = entry.iter().cloned().map(command).collect();
        for (reply, operation) in memory.entry(TERM, &commands).into_iter().zip(&entry) {
            let expected = model.run(operation);
            assert_eq!(shown(operation, Reply::decode(reply).expect("a reply")), expected, "{operation:?}");
        }
    }
    model.compare(&memory);
    memory.check_leases();
}

pub(super) fn script_seeds() -> Vec<Vec<u8>> {
    vec![
        b"\x09\x01\x00\x01\x07\x01\x80\x00\x02\x08\x00\x83\x00\x02".to_vec(),
        b"\x00\x01\x01\x00\x00\x01\x02\x00\x08\x00\x80\x03\x01\x00\x88\x01".to_vec(),
        b"\x04\x01\x01\x00\x00\x02\x02\x00\x01\x05\x00\x01\x02\x01\x03\x00\x84\x01\x00\x02\x00".to_vec(),
        b"\x09\x02\x09\x02\x00\x03\x09\x02\x8b\x02\x8a\x02\x01\x8c\x02\x01\x8a\x02".to_vec(),
    ]
}

/// Bytes that become commands. When they end, everything else is zero.
struct Script<'a> {
    data: &'a [u8],
}

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.data.split_first()?;
        self.data = rest;
        Some(*first)
    }

    fn next(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    fn number(&mut self, bound: u8) -> i64 {
        i64::from(self.next() % bound)
    }

    fn key(&mut self) -> Bytes {
        Bytes::from_static(KEYS[usize::from(self.next()) % KEYS.len()])
    }

    fn range_end(&mut self) -> Bytes {
        match self.next() % 4 {
            0 => Bytes::new(),
            1 => Bytes::from_static(&[0]),
            _ => self.key(),
        }
    }

    fn operation(&mut self, kind: u8) -> Option<Operation> {
        Some(match kind {
            0..=2 => Operation::Put(encode(&self.put())),
            3 => Operation::DeleteRange(encode(&self.delete())),
            4..=7 => {
                let txn = self.txn(DEPTH);
                check::txn(&txn, limits::TXN_OPERATIONS).ok()?;
                Operation::Txn(encode(&txn))
            }
            8 => Operation::Compact(self.number(40)),
            9 => Operation::LeaseGrant(LeaseGrant { id: self.number(4), ttl_seconds: 60 }),
            10 => Operation::LeaseRevoke(self.number(4)),
            11 => Operation::LeaseRenew(self.number(4)),
            _ => Operation::LeaseExpire(LeaseExpire { id: self.number(4), stamp: self.number(12).unsigned_abs() }),
        })
    }

    fn put(&mut self) -> PutRequest {
        let (key, flags) = (self.key(), self.next());
        let (ignore_value, ignore_lease) = (flags & 1 != 0, flags & 2 != 0);
        let value = if ignore_value { Bytes::new() } else { Bytes::from(vec![flags >> 6]) };
        let lease = if ignore_lease || flags & 8 == 0 { 0 } else { self.number(4) };
        PutRequest { key, value, lease, prev_kv: flags & 4 != 0, ignore_value, ignore_lease }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = (self.key(), self.range_end());
        DeleteRangeRequest { key, range_end, prev_kv: self.next() & 1 != 0 }
    }

    fn range(&mut self) -> RangeRequest {
        let (key, range_end, flags) = (self.key(), self.range_end(), self.next());
        RangeRequest {
            key,
            range_end,
            limit: if flags & 1 == 0 { 0 } else { self.number(4) },
            revision: if flags & 2 == 0 { 0 } else { self.number(40) - 2 },
            keys_only: flags & 4 != 0,
            count_only: flags & 8 != 0,
            ..RangeRequest::default()
        }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        let compare = (0..self.next() % 3).map(|_| self.compare()).collect();
        let branch = |script: &mut Self| -> Vec<RequestOp> {
            (0..script.next() % 4).map(|_| RequestOp { request: Some(script.request(depth)) }).collect()
        };
        let success = branch(self);
        TxnRequest { compare, success, failure: branch(self) }
    }

    fn request(&mut self, depth: u32) -> Request {
        match self.next() % 8 {
            0..=2 => Request::RequestPut(self.put()),
            3 => Request::RequestDeleteRange(self.delete()),
            4 | 5 if depth > 0 => Request::RequestTxn(self.txn(depth - 1)),
            _ => Request::RequestRange(self.range()),
        }
    }

    fn compare(&mut self) -> Compare {
        let (key, range_end) = (self.key(), self.range_end());
        let (target, target_union) = match self.next() % 5 {
            0 => (CompareTarget::Version, TargetUnion::Version(self.number(4))),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(self.number(12))),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(self.number(12))),
            3 => (CompareTarget::Lease, TargetUnion::Lease(self.number(4))),
            _ => (CompareTarget::Value, TargetUnion::Value(Bytes::from(vec![self.next() % 4]))),
        };
        let results = [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual];
        let result = results[usize::from(self.next()) % results.len()].into();
        Compare { result, target: target.into(), key, range_end, target_union: Some(target_union) }
    }
}
