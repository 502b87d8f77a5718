//! Locks and elections, the recipes etcd's clients know, as the server runs them: every contender writes a key that is bound to
//! its lease, and the oldest key has it.
//!
//! Always holds: whoever is told that it has it was seen to have its key still when nothing older was left. The key's create
//! revision only grows from holder to holder: a fencing token. A lease alone never is one (its time may end unnoticed).

use std::time::Duration;

use bytes::Bytes;
use pintle_base::clock;
use pintle_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pintle_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::response_op::Response;
use pintle_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse,
};
use pintle_proto::mvccpb::KeyValue;
use pintle_proto::mvccpb::event::EventType;

use crate::error::{StoreError, WatchError};
use crate::limits;
use crate::mvcc::key::prefix_end;
use crate::store::Store;
use crate::watch::{Filters, WatchOptions};

/// Why a recipe ended without what was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecipeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The contender's key went away while it waited: its lease ended, or somebody deleted it.
    #[error("mutex: session is expired")]
    SessionExpired,
    #[error("election: not leader")]
    NotLeader,
    #[error("election: no leader")]
    NoLeader,
}

/// The lease that contenders' keys are bound to, renewed while they wait.
pub(crate) struct Session {
    store: Store,
    pub lease: i64,
    granted_here: bool,
}

impl Session {
    /// Uses `lease`; grants one if it is 0.
    pub async fn open(store: &Store, lease: i64) -> Result<Self, StoreError> {
        let granted_here = lease == 0;
        let lease = match lease {
            0 => {
                let ttl = i64::try_from(limits::SESSION_TTL.as_secs()).unwrap_or(i64::MAX);
                store.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?.id
            }
            lease => lease,
        };
        Ok(Self { store: store.clone(), lease, granted_here })
    }

    /// Renews the lease for as long as it is polled; returns when it has ended.
    async fn keep(&self) {
        loop {
            let pause = match self.store.lease_keep_alive(self.lease).await {
                Ok(answer) if answer.ttl <= 0 => return,
                Err(StoreError::Auth(error)) => {
                    tracing::debug!(%error, lease = self.lease, "lease of a contender may not be renewed any more");
                    return;
                }
                Ok(answer) => Duration::from_secs(answer.ttl.unsigned_abs()) / 3,
                Err(error) => {
                    tracing::debug!(%error, lease = self.lease, "lease of a contender was not renewed, will retry");
                    limits::LEASE_TICK
                }
            };
            clock::sleep(pause).await;
        }
    }
}

/// A contender's key.
pub(crate) struct Claim {
    session: Session,
    prefix: Bytes,
    pub key: Bytes,
    /// The revision that decides who is older.
    pub created: i64,
    /// What the key held when it was found instead of written.
    found: Option<Bytes>,
}

impl Claim {
    /// Writes the key `NAME/LEASE` if there is none yet.
    pub async fn enter(store: &Store, name: &[u8], lease: i64, value: Bytes) -> Result<Self, StoreError> {
        let session = Session::open(store, lease).await?;
        let prefix = prefix(name);
        let key = [prefix.as_ref(), hex(session.lease).as_bytes()].concat().into();
        let put = PutRequest { key: Bytes::clone(&key), value, lease: session.lease, ..PutRequest::default() };
        let request = TxnRequest {
            compare: vec![is_created_at(&key, 0)],
            success: vec![op(Request::RequestPut(put))],
            failure: vec![op(Request::RequestRange(RangeRequest { key: key.clone(), ..RangeRequest::default() }))],
        };
        let answer = store.txn(request, None).await?;
        let found = if answer.succeeded { None } else { first_kv(&answer) };
        let created = found.as_ref().map_or_else(|| revision(answer.header), |kv| kv.create_revision);
        let found = found.map(|kv| kv.value);
        Ok(Self { session, prefix, key, created, found })
    }

    pub fn lease(&self) -> i64 {
        self.session.lease
    }

    fn store(&self) -> &Store {
        &self.session.store
    }

    /// Waits until no key is older, and sees that this one is still there. The header is that of the last read.
    pub async fn win(&self) -> Result<Option<ResponseHeader>, RecipeError> {
        let header = tokio::select! {
            header = self.wait_for_turn() => header?,
            () = self.session.keep() => return Err(RecipeError::SessionExpired),
        };
        // Also if nothing was waited for: the key may have gone between being written and being found the oldest.
        let own = RangeRequest { key: self.key.clone(), ..RangeRequest::default() };
        match self.store().range(own).await?.kvs.first() {
            Some(kv) if kv.create_revision == self.created => Ok(header),
            _ => Err(RecipeError::SessionExpired),
        }
    }

    /// Waits for the end of one older key after the other, youngest first, so that each contender watches one key and the end
    /// of a key wakes one contender.
    async fn wait_for_turn(&self) -> Result<Option<ResponseHeader>, RecipeError> {
        loop {
            let older = RangeRequest {
                limit: 1,
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Create.into(),
                max_create_revision: self.created - 1,
                keys_only: true,
                ..of_prefix(&self.prefix)
            };
            let answer = self.store().range(older).await?;
            let Some(before) = answer.kvs.first() else {
                return Ok(answer.header);
            };
            wait_until_deleted(self.store(), before.key.clone(), revision(answer.header)).await?;
        }
    }

    /// Writes the value the contender came with, if its key held another one.
    pub async fn proclaim_found(&self, value: &Bytes) -> Result<(), RecipeError> {
        match &self.found {
            Some(found) if found != value => {
                proclaim(self.store(), &self.key, self.created, self.lease(), value.clone()).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Takes the key back; the lease too if nobody else knows it.
    pub async fn withdraw(self) {
        let gone = match self.session.granted_here {
            true => self.store().lease_revoke(self.lease()).await.map(drop),
            false => resign(self.store(), &self.key, self.created).await.map(drop),
        };
        if let Err(error) = gone {
            tracing::debug!(%error, "a contender's key stays until its lease ends");
        }
    }
}

/// Waits until `key`, which was there at `revision`, is deleted.
async fn wait_until_deleted(store: &Store, key: Bytes, revision: i64) -> Result<(), RecipeError> {
    let mut watcher = store.watch(WatchOptions {
        key,
        start_revision: revision + 1,
        filters: Filters { no_put: true, no_delete: false },
        ..WatchOptions::default()
    })?;
    loop {
        match watcher.next().await {
            Ok(batch) if batch.events.is_empty() => (),
            // What was compacted away is looked up again.
            Ok(_) | Err(WatchError::Compacted { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes a leader's new value, if it still is one.
pub(crate) async fn proclaim(
    store: &Store,
    key: &Bytes,
    created: i64,
    lease: i64,
    value: Bytes,
) -> Result<Option<ResponseHeader>, RecipeError> {
    let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
    let success = vec![op(Request::RequestPut(put))];
    let answer = store.txn(if_created_at(key, created, success), None).await?;
    if answer.succeeded { Ok(answer.header) } else { Err(RecipeError::NotLeader) }
}

/// Deletes a contender's key, if it still is that contender's.
pub(crate) async fn resign(store: &Store, key: &Bytes, created: i64) -> Result<Option<ResponseHeader>, StoreError> {
    let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
    let success = vec![op(Request::RequestDeleteRange(delete))];
    Ok(store.txn(if_created_at(key, created, success), None).await?.header)
}

/// The oldest contender of `name`, with the header it was read at.
pub(crate) async fn oldest(
    store: &Store,
    name: &[u8],
) -> Result<(Option<ResponseHeader>, Option<KeyValue>), StoreError> {
    let request = RangeRequest {
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..of_prefix(&prefix(name))
    };
    let answer = store.range(request).await?;
    Ok((answer.header, answer.kvs.into_iter().next()))
}

/// Follows who is the oldest contender of a name, and what it proclaims.
pub(crate) struct Observer {
    store: Store,
    name: Bytes,
    leader: Option<crate::watch::Watcher>,
    waiting: std::collections::VecDeque<(i64, KeyValue)>,
}

impl Observer {
    pub fn new(store: Store, name: Bytes) -> Self {
        Self { store, name, leader: None, waiting: std::collections::VecDeque::new() }
    }

    /// The next leader or the leader's next value, and the revision it is of.
    pub async fn next(&mut self) -> Result<(i64, KeyValue), RecipeError> {
        loop {
            if let Some(seen) = self.waiting.pop_front() {
                return Ok(seen);
            }
            match &mut self.leader {
                None => self.find().await?,
                Some(watcher) => match watcher.next().await {
                    Ok(batch) => self.take(batch),
                    Err(WatchError::Compacted { .. }) => self.leader = None,
                    Err(error) => return Err(error.into()),
                },
            }
        }
    }

    fn take(&mut self, batch: crate::WatchBatch) {
        for event in &batch.events {
            let Some(kv) = &event.kv else { continue };
            match event.r#type() {
                EventType::Put => self.waiting.push_back((batch.revision, kv.clone())),
                EventType::Delete => {
                    self.leader = None;
                    return;
                }
            }
        }
    }

    /// Looks for the leader; if there is none, waits until somebody enters.
    async fn find(&mut self) -> Result<(), RecipeError> {
        let (header, found) = oldest(&self.store, &self.name).await?;
        let at = revision(header);
        let from = WatchOptions { start_revision: at + 1, ..WatchOptions::default() };
        if let Some(kv) = found {
            self.leader = Some(self.store.watch(WatchOptions { key: kv.key.clone(), ..from })?);
            self.waiting.push_back((at, kv));
            return Ok(());
        }
        let prefix = prefix(&self.name);
        let filters = Filters { no_put: false, no_delete: true };
        let range_end = prefix_end(&prefix);
        let mut entries = self.store.watch(WatchOptions { key: prefix, range_end, filters, ..from })?;
        loop {
            match entries.next().await {
                Ok(batch) if batch.events.is_empty() => (),
                Ok(_) | Err(WatchError::Compacted { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// As etcd's clients write a lease into a key: hexadecimal, with a sign.
fn hex(lease: i64) -> String {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease.unsigned_abs())
}

fn of_prefix(prefix: &Bytes) -> RangeRequest {
    RangeRequest { key: prefix.clone(), range_end: prefix_end(prefix), ..RangeRequest::default() }
}

fn is_created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

fn if_created_at(key: &Bytes, revision: i64, success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { compare: vec![is_created_at(key, revision)], success, failure: Vec::new() }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn first_kv(answer: &TxnResponse) -> Option<KeyValue> {
    match &answer.responses.first()?.response {
        Some(Response::ResponseRange(range)) => range.kvs.first().cloned(),
        _ => None,
    }
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_clients_name_them() {
        let named = [(0x32_69_5a, "32695a"), (i64::MIN, "-8000000000000000"), (-31, "-1f")];
        for (lease, text) in named {
            assert_eq!(hex(lease), text);
        }
        assert_eq!(prefix(b"jobs").as_ref(), b"jobs/");
    }
}
