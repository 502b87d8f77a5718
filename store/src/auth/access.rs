//! What a request touches, and whether its caller may: one visitor over the whole tree of a request.
//!
//! Every branch and every comparison of a transaction counts, whichever is taken. What a put answers of the value before is a
//! read; a put with a lease is a write to all keys of the lease, which would go with it.

use std::io;

use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest};
use pintle_proto::store_v1::Caller;
use pintle_proto::store_v1::command::Operation;
use prost::Message;

use super::failure::AuthError;
use super::state::{AuthState, Grant};
use crate::mvcc::key::Interval;
use crate::mvcc::view::Source;

/// A verdict inside an I/O result: the keys of a lease are read for it.
type Verdict = io::Result<Result<(), AuthError>>;

/// One thing a request does.
enum Access {
    Read(Interval),
    Write(Interval),
    /// Everything attached to the lease.
    WriteLease(i64),
}

/// Judges a command before it is applied. What cannot be decoded is refused later, for that.
pub(crate) fn judge(state: &AuthState, caller: &Caller, operation: &Operation, source: &dyn Source) -> Verdict {
    if !state.enabled {
        return Ok(Ok(()));
    }
    let grant = match state.grant(caller) {
        Ok(grant) => grant,
        Err(_) if caller.name.is_empty() && touches_nothing(operation) => return Ok(Ok(())),
        Err(error) => return Ok(Err(error)),
    };
    let mut all = Vec::new();
    match operation {
        Operation::Put(raw) => PutRequest::decode(raw.clone()).iter().for_each(|request| put(request, &mut all)),
        Operation::DeleteRange(raw) => {
            DeleteRangeRequest::decode(raw.clone()).iter().for_each(|request| delete(request, &mut all));
        }
        Operation::Txn(raw) => TxnRequest::decode(raw.clone()).iter().for_each(|request| txn(request, &mut all)),
        // Renewing keeps alive what ending it would delete.
        Operation::LeaseRevoke(id) | Operation::LeaseRenew(id) => all.push(Access::WriteLease(*id)),
        // Any user may have leases.
        Operation::LeaseGrant(_) => (),
        // Clients ask for none of the last three.
        Operation::Compact(_)
        | Operation::SetAlarm(_)
        | Operation::ExpectVoter(_)
        | Operation::Auth(_)
        | Operation::Quota(_)
        | Operation::QuotaCount(_)
        | Operation::LeaseExpire(_)
        | Operation::Publish(_) => return Ok(grant.administer()),
    }
    allowed(&grant, &all, source)
}

/// As in etcd anybody may have what a transaction of nothing is answered: the revision.
fn touches_nothing(operation: &Operation) -> bool {
    let Operation::Txn(raw) = operation else { return false };
    TxnRequest::decode(raw.clone()).is_ok_and(|request| is_of_nothing(&request))
}

/// Whether there is no key in a transaction.
pub(crate) fn is_of_nothing(request: &TxnRequest) -> bool {
    let mut all = Vec::new();
    txn(request, &mut all);
    all.is_empty()
}

/// Judges a read of one range.
pub(crate) fn judge_range(grant: &Grant, request: &RangeRequest) -> Result<(), AuthError> {
    grant.read(&Interval::new(&request.key, &request.range_end))
}

/// Judges a transaction that is answered without the log: it writes nothing, so no lease has to be looked at.
pub(crate) fn judge_read_txn(grant: &Grant, request: &TxnRequest) -> Result<(), AuthError> {
    let mut all = Vec::new();
    txn(request, &mut all);
    all.iter().try_for_each(|access| match access {
        Access::Read(interval) => grant.read(interval),
        Access::Write(interval) => grant.write(interval),
        Access::WriteLease(_) => grant.administer(),
    })
}

fn allowed(grant: &Grant, all: &[Access], source: &dyn Source) -> Verdict {
    if grant.administer().is_ok() {
        return Ok(Ok(())); // everything, without looking what that is
    }
    for access in all {
        let verdict = match access {
            Access::Read(interval) => grant.read(interval),
            Access::Write(interval) => grant.write(interval),
            Access::WriteLease(id) => {
                let mut keys = source.lease_keys(*id)?.into_iter();
                keys.try_for_each(|key| grant.write(&Interval::Key(key)))
            }
        };
        if verdict.is_err() {
            return Ok(verdict);
        }
    }
    Ok(Ok(()))
}

fn range(request: &RangeRequest, all: &mut Vec<Access>) {
    all.push(Access::Read(Interval::new(&request.key, &request.range_end)));
}

fn put(request: &PutRequest, all: &mut Vec<Access>) {
    let key = Interval::Key(request.key.clone());
    if request.prev_kv {
        all.push(Access::Read(key.clone()));
    }
    all.push(Access::Write(key));
    if request.lease != 0 {
        all.push(Access::WriteLease(request.lease));
    }
}

fn delete(request: &DeleteRangeRequest, all: &mut Vec<Access>) {
    let interval = Interval::new(&request.key, &request.range_end);
    if request.prev_kv {
        all.push(Access::Read(interval.clone()));
    }
    all.push(Access::Write(interval));
}

fn txn(request: &TxnRequest, all: &mut Vec<Access>) {
    for compare in &request.compare {
        all.push(Access::Read(Interval::new(&compare.key, &compare.range_end)));
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(request)) => range(request, all),
            Some(Request::RequestPut(request)) => put(request, all),
            Some(Request::RequestDeleteRange(request)) => delete(request, all),
            Some(Request::RequestTxn(request)) => txn(request, all),
            None => (),
        }
    }
}
