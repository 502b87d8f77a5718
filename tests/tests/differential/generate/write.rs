//! Puts and deletes.

use bytes::Bytes;
use pintle_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCreateRequest, request_op,
};

use super::{Generator, Step};
use crate::step::Call;
use crate::system::STREAMS;
use crate::world::World;

/// Keys and bytes of each value of a change that does not fit one message of a watch together with what was there before.
const FRAGMENT_KEYS: usize = 25;
const FRAGMENT_VALUE: usize = 50_000;

impl Generator {
    pub(super) fn put(&mut self, world: &World) -> PutRequest {
        let mut request = PutRequest { key: self.key(), value: self.value(), ..PutRequest::default() };
        if self.once_in(5) {
            request.lease = self.lease_to_attach(world);
        }
        request.prev_kv = self.once_in(4);
        if self.once_in(12) {
            request.ignore_value = true;
            request.value = if self.once_in(6) { request.value } else { Bytes::new() };
        }
        if self.once_in(12) {
            request.ignore_lease = true;
            request.lease = if self.once_in(6) { request.lease } else { 0 };
        }
        if self.once_in(80) {
            request.key = Bytes::new();
        }
        request
    }

    pub(super) fn delete(&mut self, _: &World) -> DeleteRangeRequest {
        let (mut key, mut range_end) = self.interval();
        // Everything at once is rare, or there is nothing left to compare.
        if range_end[..] == *b"\0" && !self.once_in(8) {
            range_end = Bytes::new();
        }
        if self.once_in(80) {
            key = Bytes::new();
        }
        DeleteRangeRequest { key, range_end, prev_kv: self.once_in(2) }
    }

    /// A request beyond what a server takes, or beyond what its transport takes.
    pub(super) fn oversized(&mut self, _: &World) -> Step {
        let bytes = self.random.of(&[1_572_864 - 1000, 1_572_864, 1_600_000, 2_000_000, 2_097_152 + 100, 3_000_000]);
        Step::Call(Call::Put(PutRequest {
            key: "big".into(),
            value: vec![b'x'; bytes].into(),
            ..PutRequest::default()
        }))
    }

    /// A watch that takes fragments, and a change that needs them.
    pub(super) fn fragments(&mut self, _: &World) -> Step {
        let op = |n: usize| RequestOp {
            request: Some(request_op::Request::RequestPut(PutRequest {
                key: format!("many/{n:02}").into(),
                value: vec![b'a' + u8::try_from(n).unwrap_or(0); FRAGMENT_VALUE].into(),
                ..PutRequest::default()
            })),
        };
        let all = TxnRequest { success: (0..FRAGMENT_KEYS).map(op).collect(), ..TxnRequest::default() };
        let gone = DeleteRangeRequest { key: "many/".into(), range_end: "many0".into(), prev_kv: self.once_in(2) };
        self.next.extend([
            Step::Call(Call::Txn(all.clone())),
            Step::Call(Call::Txn(all)),
            Step::Sync,
            Step::Call(Call::Delete(gone)),
            Step::Sync,
        ]);
        let watch = WatchCreateRequest {
            key: "many/".into(),
            range_end: "many0".into(),
            prev_kv: true,
            fragment: true,
            ..WatchCreateRequest::default()
        };
        Step::Watch(usize::try_from(self.random.below(STREAMS as u64)).expect("small"), watch)
    }
}
