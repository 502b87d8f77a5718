//! `etcdserverpb.Maintenance`: status, hashes, alarms, the leader's place. There is nothing to defragment.

use std::pin::Pin;

use futures::Stream;
use pintle_proto::etcdserverpb::alarm_request::AlarmAction;
use pintle_proto::etcdserverpb::downgrade_request::DowngradeAction;
use pintle_proto::etcdserverpb::maintenance_server::Maintenance as MaintenanceService;
use pintle_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeRequest, DowngradeResponse,
    HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest,
    SnapshotResponse, StatusRequest, StatusResponse,
};
use pintle_proto::store_v1::Alarm;
use tonic::{Request, Response, Status};

use super::{VERSION, acting, require_leader, require_voter};
use crate::apply::alarm_member;
use crate::error::StoreError;
use crate::snapshot;
use crate::store::Store;

pub(super) struct Maintenance {
    store: Store,
}

impl Maintenance {
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl MaintenanceService for Maintenance {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = self.store.status();
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let alarms = self.store.alarms();
        let errors = alarms.iter().map(|alarm| format!("memberID:{} alarm:{} ", alarm.member, alarm_name(alarm.kind)));
        let leaderless = status.standing.leader.is_none().then(|| "etcdserver: no leader".to_owned());
        let errors = leaderless.into_iter().chain(errors).collect();
        Ok(Response::new(StatusResponse {
            header: self.store.header(status.revision),
            version: VERSION.to_owned(),
            db_size: size(status.db_size),
            leader: status.standing.leader.unwrap_or(0),
            raft_index: status.standing.committed,
            raft_term: status.standing.term,
            raft_applied_index: status.standing.applied,
            errors,
            db_size_in_use: size(status.db_size_in_use.min(status.db_size)),
            is_learner: status.standing.learner,
            db_size_quota: self.store.options().quota_bytes.map_or(0, size),
            ..StatusResponse::default()
        }))
    }

    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        let store = acting(&self.store, &request);
        let request = request.into_inner();
        let active = match request.action() {
            AlarmAction::Get => {
                let revision = self.store.read_barrier().await?;
                let asked = |alarm: &Alarm| request.alarm() == AlarmType::None || alarm.kind == request.alarm;
                let alarms = self.store.alarms().iter().filter(|alarm| asked(alarm)).map(alarm_member).collect();
                return Ok(Response::new(AlarmResponse { header: self.store.header(revision), alarms }));
            }
            AlarmAction::Activate => true,
            AlarmAction::Deactivate => false,
        };
        Ok(Response::new(store.set_alarm(request.member_id, request.alarm, active).await?))
    }

    /// Space returns by itself; the call is there for scripts that make it.
    async fn defragment(&self, _: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let revision = self.store.read_barrier().await?;
        let (hash, _) = self.store.hash_kv(revision).await?;
        Ok(Response::new(HashResponse { header: self.store.header(revision), hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let (hash, hash_revision) = self.store.hash_kv(request.get_ref().revision).await?;
        let compacted = self.store.compact_revision();
        Ok(Response::new(HashKvResponse {
            header: self.store.header(self.store.revision()),
            hash,
            compact_revision: if compacted == 0 { -1 } else { compacted },
            hash_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Ok(Response::new(Box::pin(snapshot::send::stream(&self.store)?)))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        self.store.move_leader(request.into_inner().target_id).await?;
        Ok(Response::new(MoveLeaderResponse { header: None })) // as etcd: its clients look whether it is so
    }

    /// No version before this one could read the data: there is nothing to downgrade to, and never a downgrade to call off.
    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        Err(Status::from(match request.get_ref().action() {
            DowngradeAction::Cancel => StoreError::NoDowngrade,
            DowngradeAction::Validate | DowngradeAction::Enable if is_version(&request.get_ref().version) => {
                StoreError::DowngradeTarget
            }
            DowngradeAction::Validate | DowngradeAction::Enable => StoreError::DowngradeFormat,
        }))
    }
}

/// `MAJOR.MINOR` or `MAJOR.MINOR.PATCH`.
fn is_version(text: &str) -> bool {
    let numbers: Vec<&str> = text.split('.').collect();
    (2..=3).contains(&numbers.len()) && numbers.iter().all(|number| number.parse::<u32>().is_ok())
}

fn alarm_name(kind: i32) -> &'static str {
    AlarmType::try_from(kind).map_or("UNKNOWN", |kind| kind.as_str_name())
}
