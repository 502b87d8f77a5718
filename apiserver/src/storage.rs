//! Object writes as store transactions: one compare on the object's mod_revision, the claimed and released keys beside
//! it, and the writer's fence.
//!
//! I2: the only module of the crate, with `cache::feed`, that talks to the store about objects.
//! Always holds: a refused transaction wrote nothing and says why; "outcome unknown" is an error of its own, never retried
//! here.

use bytes::Bytes;
use parking_lot::Mutex;
use pintle_api::status::{Reason, Status};
use pintle_base::clock::{self, Instant};
use pintle_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op, response_op,
};
use pintle_proto::mvccpb::KeyValue;
use pintle_store::{Store, StoreError};

use crate::limits;
use crate::types::Extra;

/// Why a conditional write did not happen. Nothing was written.
pub enum Refused {
    /// The object is not at the expected revision: what is stored now, if anything.
    Changed(Option<KeyValue>),
    /// A claimed key belongs to another object.
    Claimed,
    Store(StoreError),
}

pub struct Storage {
    store: Store,
    lease: Mutex<Option<SharedLease>>,
}

#[derive(Clone, Copy)]
struct SharedLease {
    id: i64,
    since: Instant,
    objects: u32,
}

/// One conditional write. `expected` is the mod_revision that must hold, 0 for "absent"; `value` `None` deletes.
pub struct Write<'a> {
    pub key: Bytes,
    pub expected: i64,
    pub value: Option<Bytes>,
    pub lease: i64,
    pub extra: &'a [Extra],
    pub fence: Option<u64>,
}

impl Storage {
    pub fn new(store: Store) -> Self {
        Self { store, lease: Mutex::new(None) }
    }

    /// Does the write and returns its revision.
    pub async fn write(&self, write: Write<'_>) -> Result<i64, Refused> {
        let request = transaction(&write);
        let response = self.store.txn(request, write.fence).await.map_err(Refused::Store)?;
        if response.succeeded {
            return Ok(response.header.map_or(0, |header| header.revision));
        }
        let current = found(response);
        let at = current.as_ref().map_or(0, |kv| kv.mod_revision);
        if at == write.expected { Err(Refused::Claimed) } else { Err(Refused::Changed(current)) }
    }

    /// Linearizable read of one key.
    pub async fn read(&self, key: Bytes) -> Result<Option<KeyValue>, StoreError> {
        let response = self.store.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        Ok(response.kvs.into_iter().next())
    }

    /// A lease for an object that lives [`limits::EVENT_TTL`], shared with those written about the same time.
    pub async fn event_lease(&self) -> Result<i64, StoreError> {
        let now = clock::now();
        {
            let mut lease = self.lease.lock();
            if let Some(shared) = lease.as_mut() {
                let young = now.saturating_duration_since(shared.since) < limits::LEASE_SHARE;
                if young && shared.objects < limits::LEASE_OBJECTS {
                    shared.objects += 1;
                    return Ok(shared.id);
                }
            }
        }
        let ttl = (limits::EVENT_TTL + limits::LEASE_SHARE).as_secs();
        let request = LeaseGrantRequest { ttl: i64::try_from(ttl).unwrap_or(i64::MAX), id: 0 };
        let id = self.store.lease_grant(request).await?.id;
        *self.lease.lock() = Some(SharedLease { id, since: now, objects: 1 });
        Ok(id)
    }
}

fn transaction(write: &Write<'_>) -> TxnRequest {
    let mut request = TxnRequest {
        compare: vec![at_revision(write.key.clone(), write.expected)],
        success: vec![match &write.value {
            Some(value) => put(write.key.clone(), value.clone(), write.lease),
            None => delete(write.key.clone()),
        }],
        failure: vec![RequestOp {
            request: Some(request_op::Request::RequestRange(RangeRequest {
                key: write.key.clone(),
                ..RangeRequest::default()
            })),
        }],
    };
    for extra in write.extra {
        match extra {
            Extra::Claim { key, value } => {
                request.compare.push(at_revision(key.clone(), 0));
                request.success.push(put(key.clone(), value.clone(), 0));
            }
            Extra::Release { key } => request.success.push(delete(key.clone())),
            Extra::Unchanged { key, revision } => request.compare.push(at_revision(key.clone(), *revision)),
        }
    }
    request
}

fn at_revision(key: Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Compare::default()
    }
}

fn put(key: Bytes, value: Bytes, lease: i64) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestPut(PutRequest { key, value, lease, ..PutRequest::default() })),
    }
}

fn delete(key: Bytes) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestDeleteRange(DeleteRangeRequest {
            key,
            ..DeleteRangeRequest::default()
        })),
    }
}

fn found(response: TxnResponse) -> Option<KeyValue> {
    match response.responses.into_iter().next()?.response? {
        response_op::Response::ResponseRange(range) => range.kvs.into_iter().next(),
        _ => None,
    }
}

/// The one place where store errors become what API clients see. A write that may have happened is a 504, never a
/// code that invites a retry.
pub fn status_of(error: &StoreError) -> Status {
    match error {
        StoreError::Fenced { .. } => Status {
            status: "Failure".into(),
            code: 409,
            reason: Reason::Conflict,
            message: error.to_string(),
            ..Status::default()
        },
        StoreError::Compacted { .. } => Status::expired("The provided resource version is too old"),
        StoreError::FutureRevision => Status::timeout(error, 1),
        StoreError::TooLarge => Status::too_large(limits::OBJECT_BYTES),
        StoreError::Overloaded => Status::too_many_requests(error.to_string(), 1),
        StoreError::NoLeader | StoreError::Stopped => Status::service_unavailable(error.to_string()),
        StoreError::Unknown | StoreError::ReadTimeout => Status::timeout(error, 0),
        other => Status::internal(other),
    }
}
