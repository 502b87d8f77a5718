//! Transactions of every shape: nested, read-only, refused at the door and refused when applied.

use pintle_proto::etcdserverpb::compare::TargetUnion;
use pintle_proto::etcdserverpb::{Compare, RangeRequest, RequestOp, TxnRequest, request_op};

use super::Generator;
use crate::twice;
use crate::world::World;

const DEPTH: u64 = 3;

impl Generator {
    pub(super) fn txn(&mut self, world: &World) -> TxnRequest {
        match self.random.below(40) {
            0 => self.many_operations(world),
            1..5 => {
                let (success, failure) = (self.reads(world), self.reads(world));
                TxnRequest { compare: self.compares(world), success, failure }
            }
            _ => {
                let txn = self.nested(world, DEPTH);
                if twice::only_etcd_takes(&txn) { self.txn(world) } else { txn }
            }
        }
    }

    fn nested(&mut self, world: &World, depth: u64) -> TxnRequest {
        TxnRequest {
            compare: self.compares(world),
            success: self.branch(world, depth),
            failure: self.branch(world, depth),
        }
    }

    fn branch(&mut self, world: &World, depth: u64) -> Vec<RequestOp> {
        (0..self.random.below(4)).map(|_| self.operation(world, depth)).collect()
    }

    fn reads(&mut self, world: &World) -> Vec<RequestOp> {
        let read = |generator: &mut Self| request_op::Request::RequestRange(generator.range(world));
        (0..self.random.below(4)).map(|_| RequestOp { request: Some(read(self)) }).collect()
    }

    fn operation(&mut self, world: &World, depth: u64) -> RequestOp {
        let request = match self.random.below(16) {
            0 if self.once_in(10) => return RequestOp { request: None },
            0..5 => request_op::Request::RequestRange(self.range(world)),
            5..10 => request_op::Request::RequestPut(self.put(world)),
            10..13 => request_op::Request::RequestDeleteRange(self.delete(world)),
            _ if depth > 0 => request_op::Request::RequestTxn(self.nested(world, depth - 1)),
            _ => request_op::Request::RequestPut(self.put(world)),
        };
        RequestOp { request: Some(request) }
    }

    /// As many as are taken, and one more; in one list or spread over a nested transaction.
    fn many_operations(&mut self, world: &World) -> TxnRequest {
        let count = self.random.of(&[64, 127, 128, 129]);
        let range = RangeRequest { key: self.key(), ..RangeRequest::default() };
        let read = || request_op::Request::RequestRange(range.clone());
        let mut txn = TxnRequest::default();
        match self.random.below(4) {
            0 => txn.success = (0..count).map(|_| RequestOp { request: Some(read()) }).collect(),
            1 => txn.failure = (0..count).map(|_| RequestOp { request: Some(read()) }).collect(),
            2 => txn.compare = (0..count).map(|_| self.compare(world)).collect(),
            _ => {
                let inner: Vec<RequestOp> = (0..count / 2).map(|_| RequestOp { request: Some(read()) }).collect();
                let nested = TxnRequest { success: inner.clone(), ..TxnRequest::default() };
                txn.success = inner;
                txn.success.push(RequestOp { request: Some(request_op::Request::RequestTxn(nested)) });
            }
        }
        txn
    }

    fn compares(&mut self, world: &World) -> Vec<Compare> {
        let count = self.random.of(&[0, 0, 1, 1, 1, 2, 3]);
        (0..count).map(|_| self.compare(world)).collect()
    }

    /// Beside what is known of the key, so that it is true about as often as not.
    fn compare(&mut self, world: &World) -> Compare {
        let key = self.key();
        let known = world.keys.get(&key).cloned().unwrap_or_default();
        let off = self.random.of(&[0, 0, 0, -1, 1]);
        let target = i32::try_from(self.random.below(5)).expect("small");
        let aimed_at = if self.once_in(20) { i32::try_from(self.random.below(6)).expect("small") } else { target };
        let target_union = match target {
            0 => TargetUnion::Version(known.version + off),
            1 => TargetUnion::CreateRevision(known.create_revision + off),
            2 => TargetUnion::ModRevision(known.mod_revision + off),
            3 => TargetUnion::Value(if self.once_in(2) { known.value } else { self.value() }),
            _ => TargetUnion::Lease(if self.once_in(2) { known.lease } else { self.lease_to_attach(world) }),
        };
        let result = if self.once_in(50) { 7 } else { self.random.of(&[0, 0, 0, 1, 2, 3]) };
        let range_end = if self.once_in(5) { self.interval().1 } else { Default::default() };
        let key = if self.once_in(100) { Default::default() } else { key };
        let range_end = self.end_of(&key, range_end);
        let target_union = (!self.once_in(30)).then_some(target_union);
        Compare { result, target: aimed_at, key, range_end, target_union }
    }
}
