//! Transactions that would change a key twice in one revision, and that etcd lets through.
//!
//! Both refuse a key that is put twice, or put and deleted. etcd's check takes a delete with an open end for one of nothing, and
//! does not hold the puts of a nested transaction against the deletes of those after it; such a transaction then makes two events
//! of one key at one revision. In pintle a key changes at most once in a revision, so it refuses these too. They are not sent.

use std::collections::BTreeSet;

use bytes::Bytes;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{RequestOp, TxnRequest};

/// True if pintle refuses it by its own rule, and etcd takes it.
pub fn only_etcd_takes(txn: &TxnRequest) -> bool {
    let clashes = |rule| branch(&txn.success, rule).is_none() || branch(&txn.failure, rule).is_none();
    clashes(Rule::Pintle) && !clashes(Rule::Etcd)
}

#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Pintle,
    Etcd,
}

#[derive(Default)]
struct Changes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

impl Changes {
    fn deleted(&self, key: &Bytes, rule: Rule) -> bool {
        self.deletes.iter().any(|(start, end)| match &end[..] {
            b"" => key == start,
            b"\0" => rule == Rule::Pintle && key >= start,
            _ => key >= start && key < end,
        })
    }

    fn put(&mut self, key: &Bytes, rule: Rule) -> Option<()> {
        (!self.deleted(key, rule) && self.puts.insert(key.clone())).then_some(())
    }
}

/// What the operations change; nothing if they clash.
fn branch(operations: &[RequestOp], rule: Rule) -> Option<Changes> {
    let mut all = Changes::default();
    for operation in operations {
        if let Some(Request::RequestDeleteRange(delete)) = &operation.request {
            all.deletes.push((delete.key.clone(), delete.range_end.clone()));
        }
    }
    for operation in operations {
        let Some(Request::RequestTxn(nested)) = &operation.request else { continue };
        let (then, otherwise) = (branch(&nested.success, rule)?, branch(&nested.failure, rule)?);
        // Only one of the two happens: they may put the same key.
        for key in then.puts.union(&otherwise.puts) {
            all.put(key, rule)?;
        }
        let deleted = |key: &Bytes| then.deleted(key, rule) || otherwise.deleted(key, rule);
        let own = |key: &Bytes| then.puts.contains(key) || otherwise.puts.contains(key);
        if rule == Rule::Pintle && all.puts.iter().any(|key| !own(key) && deleted(key)) {
            return None;
        }
        all.deletes.extend(then.deletes);
        all.deletes.extend(otherwise.deletes);
    }
    for operation in operations {
        if let Some(Request::RequestPut(put)) = &operation.request {
            all.put(&put.key, rule)?;
        }
    }
    Some(all)
}
