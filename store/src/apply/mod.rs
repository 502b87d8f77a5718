//! Applying log entries: a pure function from a state and an entry to a [`Plan`] of writes, answers and events.
//!
//! I4: no clock, no randomness, no hash order; every map whose order can be seen is ordered. All checks of a command come
//! before its first write, so a refused command leaves nothing behind, and no revision is used up.
//! The driver (`machine.rs`) turns the plan into one atomic write (I5).

mod alarm;
mod overlay;
mod txn;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use pintle_proto::etcdserverpb::{
    CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantResponse, LeaseRevokeResponse, PutRequest,
    PutResponse, ResponseHeader, TxnRequest,
};
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::failure::Reason;
use pintle_proto::store_v1::reply::Outcome;
use pintle_proto::store_v1::{AuthChange, AuthFailure, Command, Failure, LeaseExpire, LeaseGrant, LeaseRecord, Reply};
use prost::Message;

pub(crate) use self::alarm::member as alarm_member;
pub(crate) use self::overlay::{Change, Overlay, Plan};
pub(crate) use self::txn::{is_read_only, is_serializable, read_txn};
use crate::auth::{self, AuthState};
use crate::limits;
use crate::mvcc::key::Interval;
use crate::mvcc::view::Source;
use crate::quota::{Quotas, judge};

/// A refusal: part of the answer, the same on every member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub reason: Reason,
    pub detail: i64,
    /// For people.
    pub text: String,
}

impl Refusal {
    fn detailed(reason: Reason, detail: i64) -> Self {
        Self { detail, ..reason.into() }
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: 0, text: String::new() }
    }
}

impl From<AuthFailure> for Refusal {
    fn from(failure: AuthFailure) -> Self {
        Self::detailed(Reason::Auth, i32::from(failure).into())
    }
}

impl From<Refusal> for Failure {
    fn from(Refusal { reason, detail, text }: Refusal) -> Self {
        Self { reason: reason.into(), detail, text }
    }
}

/// A command's outcome inside an I/O result: the outer error stops the process.
pub(crate) type Applied<T> = io::Result<Result<T, Refusal>>;

/// The part of the state that is kept in memory.
pub(crate) struct Known {
    pub auth: Arc<AuthState>,
    pub quotas: Arc<Quotas>,
}

/// Plans every command of one entry of `term`, each on top of those before it.
pub(crate) fn apply(base: &dyn Source, known: Known, term: u64, commands: &[Bytes]) -> io::Result<Plan> {
    let mut overlay = Overlay::new(base, known.auth, known.quotas);
    let mut replies = Vec::with_capacity(commands.len());
    for command in commands {
        overlay.begin();
        let outcome = match run(&mut overlay, term, command)? {
            Ok(outcome) => outcome,
            Err(refusal) => Outcome::Failure(refusal.into()),
        };
        let reply = Reply { revision: overlay.revision(), outcome: Some(outcome) };
        replies.push(Bytes::from(reply.encode_to_vec()));
    }
    Ok(overlay.into_plan(replies))
}

fn run(overlay: &mut Overlay<'_>, term: u64, command: &Bytes) -> Applied<Outcome> {
    let Ok(command) = Command::decode(command.clone()) else { return Ok(Err(Reason::Malformed.into())) };
    if command.fence.is_some_and(|fence| fence != term) {
        return Ok(Err(Refusal::detailed(Reason::Fenced, term.cast_signed())));
    }
    let Some(operation) = command.operation else { return Ok(Err(Reason::Malformed.into())) };
    if let Some(caller) = &command.caller
        && let Err(refused) = auth::access::judge(overlay.auth(), caller, &operation, overlay)?
    {
        return Ok(Err(refused.0.into()));
    }
    if let Some(refusal) = alarm::refuses(overlay.alarms(), &operation) {
        return Ok(Err(refusal));
    }
    match operation {
        Operation::Put(request) => decoded(request, |request| put(overlay, &request)),
        Operation::DeleteRange(request) => decoded(request, |request| delete_range(overlay, &request)),
        Operation::Txn(request) => decoded(request, |request: TxnRequest| txn::apply(overlay, &request)),
        Operation::Compact(revision) => compact(overlay, revision),
        Operation::LeaseGrant(grant) => lease_grant(overlay, grant),
        Operation::LeaseRevoke(id) => lease_revoke(overlay, id),
        Operation::LeaseRenew(id) => lease_renew(overlay, id),
        Operation::LeaseExpire(expire) => lease_expire(overlay, expire),
        Operation::SetAlarm(set) => Ok(Ok(alarm::set(overlay, &set))),
        Operation::Publish(attributes) => {
            overlay.publish(attributes);
            Ok(Ok(Outcome::Answer(Bytes::new())))
        }
        Operation::ExpectVoter(id) => {
            overlay.expect_voter(id);
            Ok(Ok(Outcome::Answer(Bytes::new())))
        }
        Operation::Auth(change) => Ok(change_auth(overlay, &change)),
        Operation::Quota(change) => {
            let changed = overlay.change_quotas(|quotas, revision| quotas.change(&change, revision));
            Ok(changed.map(|()| Outcome::Answer(Bytes::new())).map_err(Refusal::from))
        }
        Operation::QuotaCount(count) => {
            overlay.change_quotas(|quotas, revision| quotas.counted(&count, revision));
            Ok(Ok(Outcome::Answer(Bytes::new())))
        }
    }
}

fn change_auth(overlay: &mut Overlay<'_>, change: &AuthChange) -> Result<Outcome, Refusal> {
    let mut state = AuthState::clone(overlay.auth());
    let change = change.change.as_ref().ok_or(Reason::Malformed)?;
    let rows = state.change(change).map_err(|_| Reason::Malformed)??;
    if !rows.is_empty() {
        overlay.change_auth(state, rows);
    }
    Ok(Outcome::Answer(Bytes::new()))
}

fn decoded<Q: Message + Default, A: Message>(raw: Bytes, run: impl FnOnce(Q) -> Applied<A>) -> Applied<Outcome> {
    match Q::decode(raw) {
        Ok(request) => answered(run(request)?),
        Err(_) => Ok(Err(Reason::Malformed.into())),
    }
}

fn answered<A: Message>(outcome: Result<A, Refusal>) -> Applied<Outcome> {
    Ok(outcome.map(|answer| Outcome::Answer(Bytes::from(answer.encode_to_vec()))))
}

pub(crate) fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

fn put(overlay: &mut Overlay<'_>, request: &PutRequest) -> Applied<PutResponse> {
    // By itself a put is refused for its lease first, within a transaction for its key.
    if !lease_exists(overlay, request)? {
        return Ok(Err(Reason::LeaseNotFound.into()));
    }
    if let Err(refusal) = check_put(overlay, request)? {
        return Ok(Err(refusal));
    }
    if let Err(refusal) = judge::put(overlay.quotas(), overlay, request)? {
        return Ok(Err(refusal));
    }
    do_put(overlay, request).map(Ok)
}

/// What only the state can tell: the lease exists, and what is to be kept exists.
fn check_put(overlay: &Overlay<'_>, request: &PutRequest) -> Applied<()> {
    if request.key.is_empty() {
        return Ok(Err(Reason::Malformed.into()));
    }
    let keeps = request.ignore_value || request.ignore_lease;
    if keeps && overlay.newest(&request.key)?.is_none_or(|version| version.live.is_none()) {
        return Ok(Err(Reason::KeyNotFound.into()));
    }
    if !lease_exists(overlay, request)? {
        return Ok(Err(Reason::LeaseNotFound.into()));
    }
    Ok(Ok(()))
}

fn lease_exists(overlay: &Overlay<'_>, request: &PutRequest) -> io::Result<bool> {
    Ok(request.lease == 0 || overlay.lease(request.lease)?.is_some())
}

fn do_put(overlay: &mut Overlay<'_>, request: &PutRequest) -> io::Result<PutResponse> {
    let before = overlay.newest(&request.key)?.and_then(|version| version.to_kv(request.key.clone()));
    let kept = before.clone().unwrap_or_default();
    let value = if request.ignore_value { kept.value.clone() } else { request.value.clone() };
    let lease = if request.ignore_lease { kept.lease } else { request.lease };
    overlay.put(request.key.clone(), value, lease, before.clone());
    let prev_kv = if request.prev_kv { before } else { None };
    Ok(PutResponse { header: header(overlay.revision()), prev_kv })
}

fn delete_range(overlay: &mut Overlay<'_>, request: &DeleteRangeRequest) -> Applied<DeleteRangeResponse> {
    do_delete_range(overlay, request).map(Ok)
}

fn do_delete_range(overlay: &mut Overlay<'_>, request: &DeleteRangeRequest) -> io::Result<DeleteRangeResponse> {
    let found = overlay.living(&Interval::new(&request.key, &request.range_end))?;
    let deleted = i64::try_from(found.len()).unwrap_or(i64::MAX);
    for kv in &found {
        overlay.delete(kv.clone());
    }
    let prev_kvs = if request.prev_kv { found } else { Vec::new() };
    Ok(DeleteRangeResponse { header: header(overlay.revision()), deleted, prev_kvs })
}

/// Raises the compact revision. What lies before it is unreadable from here on, whether scrubbed yet or not.
fn compact(overlay: &mut Overlay<'_>, revision: i64) -> Applied<Outcome> {
    if revision <= overlay.compacted() {
        return Ok(Err(Refusal::detailed(Reason::Compacted, overlay.compacted())));
    }
    if revision > overlay.revision() {
        return Ok(Err(Reason::FutureRevision.into()));
    }
    overlay.compact(revision);
    answered(Ok(CompactionResponse { header: header(overlay.revision()) }))
}

fn lease_grant(overlay: &mut Overlay<'_>, grant: LeaseGrant) -> Applied<Outcome> {
    if grant.ttl_seconds > limits::LEASE_TTL_MAX {
        return Ok(Err(Reason::LeaseTtlTooLarge.into()));
    }
    if grant.id == 0 {
        return Ok(Err(Reason::Malformed.into()));
    }
    if overlay.lease(grant.id)?.is_some() {
        return Ok(Err(Reason::LeaseExists.into()));
    }
    overlay.set_lease(grant.id, grant.ttl_seconds);
    let (id, ttl) = (grant.id, grant.ttl_seconds);
    answered(Ok(LeaseGrantResponse { header: header(overlay.revision()), id, ttl, error: String::new() }))
}

fn lease_revoke(overlay: &mut Overlay<'_>, id: i64) -> Applied<Outcome> {
    if overlay.lease(id)?.is_none() {
        return Ok(Err(Reason::LeaseNotFound.into()));
    }
    end_lease(overlay, id)?;
    answered(Ok(LeaseRevokeResponse { header: header(overlay.revision()) }))
}

/// The leader found the lease's time over; void if it was renewed or granted anew after that.
fn lease_expire(overlay: &mut Overlay<'_>, expire: LeaseExpire) -> Applied<Outcome> {
    match overlay.lease(expire.id)? {
        Some(LeaseRecord { stamp, .. }) if stamp == expire.stamp => {
            end_lease(overlay, expire.id)?;
            answered(Ok(LeaseRevokeResponse { header: header(overlay.revision()) }))
        }
        _ => Ok(Err(Reason::LeaseNotFound.into())),
    }
}

/// Deletes the attached keys, in order and in one revision, and the lease.
fn end_lease(overlay: &mut Overlay<'_>, id: i64) -> io::Result<()> {
    for key in overlay.lease_keys(id)? {
        if let Some(kv) = overlay.newest(&key)?.and_then(|version| version.to_kv(key)) {
            overlay.delete(kv);
        }
    }
    overlay.remove_lease(id);
    Ok(())
}

/// Answers the full time to live. Renewals go through the log: their order against an expiry is the log's.
fn lease_renew(overlay: &mut Overlay<'_>, id: i64) -> Applied<Outcome> {
    match overlay.lease(id)? {
        Some(lease) => {
            overlay.set_lease(id, lease.ttl_seconds);
            Ok(Ok(Outcome::LeaseTtlSeconds(lease.ttl_seconds)))
        }
        None => Ok(Err(Reason::LeaseNotFound.into())),
    }
}
