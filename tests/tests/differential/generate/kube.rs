//! What a kube-apiserver and its compactor send, in their exact shapes.

use bytes::Bytes;
use pintle_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pintle_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, request_op,
};

use super::watch::WAITING;
use super::{Generator, Step};
use crate::step::Call;
use crate::world::World;

const PODS: (&str, &str) = ("/registry/pods/", "/registry/pods0");
const COMPACTED: &str = "compact_rev_key";

impl Generator {
    pub(super) fn kube_key(&mut self) -> Bytes {
        format!("/registry/pods/ns{}/pod-{}", self.random.below(3), self.random.below(10)).into()
    }

    pub(super) fn kube(&mut self, world: &World) -> Step {
        let key = self.kube_key();
        let known = world.keys.get(&key).map_or(0, |kv| kv.mod_revision);
        let revision = if self.once_in(6) { self.random.between(0, world.revision) } else { known };
        let value = self.value();
        Step::Call(match self.random.below(12) {
            0..3 => {
                let lease = if self.once_in(4) { self.lease_to_attach(world) } else { 0 };
                let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
                Call::Txn(guarded(&key, 0, request_op::Request::RequestPut(put), None))
            }
            3..6 => {
                let put = PutRequest { key: key.clone(), value, ..PutRequest::default() };
                Call::Txn(guarded(&key, revision, request_op::Request::RequestPut(put), Some(get(&key))))
            }
            6 => {
                let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
                Call::Txn(guarded(&key, revision, request_op::Request::RequestDeleteRange(delete), Some(get(&key))))
            }
            7 => Call::Range(RangeRequest { revision: self.revision(world), ..get(&key) }),
            8 => Call::Range(self.list_page(world)),
            9 => Call::Range(RangeRequest { count_only: true, ..pods() }),
            10 => Call::Txn(self.compactor(world)),
            _ => {
                let watch = WatchCreateRequest {
                    key: PODS.0.into(),
                    range_end: PODS.1.into(),
                    start_revision: world.revision + 1,
                    prev_kv: true,
                    progress_notify: true,
                    ..WatchCreateRequest::default()
                };
                return Step::Watch(WAITING, watch);
            }
        })
    }

    /// The first page, or one that goes on from a key at the revision of the first.
    fn list_page(&mut self, world: &World) -> RangeRequest {
        let limit = self.random.of(&[1, 5, 500]);
        if self.once_in(2) {
            return RangeRequest { limit, ..pods() };
        }
        let after = [&self.kube_key()[..], b"\0"].concat();
        let revision = self.random.between((world.revision - 10).max(1), world.revision);
        RangeRequest { key: after.into(), limit, revision, ..pods() }
    }

    /// One of the compactors wins by the version of the key that tells the last compaction.
    fn compactor(&mut self, world: &World) -> TxnRequest {
        let version = world.keys.get(COMPACTED.as_bytes()).map_or(0, |kv| kv.version);
        let key = Bytes::from_static(COMPACTED.as_bytes());
        let version = version + self.random.of(&[0, 0, -1, 1]);
        let value = format!("{}", world.revision).into();
        let put = PutRequest { key: key.clone(), value, ..PutRequest::default() };
        TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Version.into(),
                key: key.clone(),
                target_union: Some(TargetUnion::Version(version)),
                ..Compare::default()
            }],
            success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
            failure: vec![RequestOp { request: Some(request_op::Request::RequestRange(get(&key))) }],
        }
    }
}

fn get(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..RangeRequest::default() }
}

fn pods() -> RangeRequest {
    RangeRequest { key: PODS.0.into(), range_end: PODS.1.into(), ..RangeRequest::default() }
}

fn guarded(key: &Bytes, revision: i64, then: request_op::Request, otherwise: Option<RangeRequest>) -> TxnRequest {
    TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(revision)),
            ..Compare::default()
        }],
        success: vec![RequestOp { request: Some(then) }],
        failure: otherwise
            .map(|range| RequestOp { request: Some(request_op::Request::RequestRange(range)) })
            .into_iter()
            .collect(),
    }
}
