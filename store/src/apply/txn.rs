//! Transactions: all comparisons first, nested ones included, then all checks of the branches taken, then the operations.
//!
//! A range inside a transaction never influences a write, and whether its revision is readable is decided by the replicated
//! compact revision, never by how far a member's scrub is: every member comes to the same outcome.

use std::cmp::Ordering;
use std::io;
use std::ops::ControlFlow;

use pintle_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::response_op::Response;
use pintle_proto::etcdserverpb::{
    Compare, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use pintle_proto::store_v1::failure::Reason;

use super::overlay::Overlay;
use super::{Applied, Refusal, check_put, do_delete_range, do_put, header};
use crate::mvcc::key::Interval;
use crate::mvcc::range;
use crate::mvcc::record::Row;
use crate::mvcc::view::Source;
use crate::quota::judge;

/// Which branch each transaction of a tree takes, in the order in which they are met.
struct Path {
    taken: Vec<bool>,
    next: usize,
}

impl Path {
    fn take(&mut self) -> bool {
        let taken = self.taken.get(self.next).copied().unwrap_or(false);
        self.next += 1;
        taken
    }
}

pub(super) fn apply(overlay: &mut Overlay<'_>, request: &TxnRequest) -> Applied<TxnResponse> {
    let mut path = Path { taken: Vec::new(), next: 0 };
    choose(overlay, request, &mut path.taken)?;
    if let Err(refusal) = check(overlay, request, &mut path)? {
        return Ok(Err(refusal));
    }
    path.next = 0;
    let mut response = execute(overlay, request, &mut path)?;
    response.header = header(overlay.revision());
    Ok(Ok(response))
}

/// Answers a transaction that only reads, without a log entry.
pub(crate) fn read_txn(source: &dyn Source, request: &TxnRequest) -> Applied<TxnResponse> {
    let mut taken = Vec::new();
    choose(source, request, &mut taken)?;
    let succeeded = taken.first().copied().unwrap_or(false);
    let mut responses = Vec::new();
    for operation in branch(request, succeeded) {
        let Some(Request::RequestRange(range)) = &operation.request else { continue };
        if let Err(refusal) = check_range(source, range) {
            return Ok(Err(refusal));
        }
        responses.push(ResponseOp { response: Some(Response::ResponseRange(read_range(source, range)?)) });
    }
    Ok(Ok(TxnResponse { header: header(source.revision()), succeeded, responses }))
}

/// True if nothing but ranges, at the top level, stands in either branch.
pub(crate) fn is_read_only(request: &TxnRequest) -> bool {
    operations(request).all(|operation| matches!(operation.request, Some(Request::RequestRange(_))))
}

/// True if every operation is a range that accepts a stale answer.
pub(crate) fn is_serializable(request: &TxnRequest) -> bool {
    operations(request).all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

fn operations(request: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    request.success.iter().chain(&request.failure)
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Decides every branch on the state before the whole transaction.
fn choose(source: &dyn Source, request: &TxnRequest, taken: &mut Vec<bool>) -> io::Result<()> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(source, compare)? {
            succeeded = false;
            break;
        }
    }
    taken.push(succeeded);
    for operation in branch(request, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &operation.request {
            choose(source, nested, taken)?;
        }
    }
    Ok(())
}

/// True if every living key of the interval satisfies the comparison; an empty interval counts as one missing key.
fn holds(source: &dyn Source, compare: &Compare) -> io::Result<bool> {
    let interval = Interval::new(&compare.key, &compare.range_end);
    let mut found = false;
    let mut all = true;
    source.scan(&interval, i64::MAX, &mut |row| {
        found = true;
        all = satisfies(compare, &row);
        if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if found {
        return Ok(all);
    }
    // A missing key has no value to compare, and is zero otherwise.
    let missing = Row { key: &[], modified: 0, sub: 0, live: false, created: 0, version: 0, lease: 0, value: &[] };
    Ok(CompareTarget::try_from(compare.target) != Ok(CompareTarget::Value) && satisfies(compare, &missing))
}

/// A target that is not known compares as equal, and a result that is not known is always met, as in etcd.
fn satisfies(compare: &Compare, row: &Row<'_>) -> bool {
    let wanted = compare.target_union.as_ref();
    let ordering = match (CompareTarget::try_from(compare.target), wanted) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(version))) => row.version.cmp(version),
        (Ok(CompareTarget::Version), _) => row.version.cmp(&0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(revision))) => row.created.cmp(revision),
        (Ok(CompareTarget::Create), _) => row.created.cmp(&0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(revision))) => row.modified.cmp(revision),
        (Ok(CompareTarget::Mod), _) => row.modified.cmp(&0),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(value))) => row.value.cmp(value.as_ref()),
        (Ok(CompareTarget::Value), _) => row.value.cmp(&[]),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(lease))) => row.lease.cmp(lease),
        (Ok(CompareTarget::Lease), _) => row.lease.cmp(&0),
        (Err(_), _) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering == Ordering::Equal,
        Ok(CompareResult::Greater) => ordering == Ordering::Greater,
        Ok(CompareResult::Less) => ordering == Ordering::Less,
        Ok(CompareResult::NotEqual) => ordering != Ordering::Equal,
        Err(_) => true,
    }
}

/// Checks the branches taken, before anything is written: all puts, then all ranges, then what quotas say to all of it.
fn check(overlay: &Overlay<'_>, request: &TxnRequest, path: &mut Path) -> Applied<()> {
    let puts = check_each(request, path, &mut |operation| match operation {
        Request::RequestPut(put) => check_put(overlay, put),
        _ => Ok(Ok(())),
    })?;
    if puts.is_err() {
        return Ok(puts);
    }
    path.next = 0;
    let ranges = check_each(request, path, &mut |operation| match operation {
        Request::RequestRange(range) => Ok(check_range(overlay, range)),
        _ => Ok(Ok(())),
    })?;
    if ranges.is_err() || overlay.quotas().is_empty() {
        return Ok(ranges);
    }
    path.next = 0;
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    taken(request, path, &mut |operation| match operation {
        Request::RequestPut(put) => puts.push(put),
        Request::RequestDeleteRange(delete) => deletes.push(Interval::new(&delete.key, &delete.range_end)),
        _ => (),
    });
    judge::together(overlay.quotas(), overlay, &puts, &deletes)
}

/// Visits the operations of the branches taken.
fn taken<'a>(request: &'a TxnRequest, path: &mut Path, visit: &mut dyn FnMut(&'a Request)) {
    let succeeded = path.take();
    for operation in branch(request, succeeded) {
        match &operation.request {
            Some(Request::RequestTxn(nested)) => taken(nested, path, visit),
            Some(other) => visit(other),
            None => (),
        }
    }
}

/// Goes through the operations of the branches taken, until one is refused.
fn check_each(request: &TxnRequest, path: &mut Path, check: &mut dyn FnMut(&Request) -> Applied<()>) -> Applied<()> {
    let succeeded = path.take();
    for operation in branch(request, succeeded) {
        let checked = match &operation.request {
            Some(Request::RequestTxn(nested)) => check_each(nested, path, check)?,
            Some(other) => check(other)?,
            None => Err(Reason::KeyNotFound.into()),
        };
        if checked.is_err() {
            return Ok(checked);
        }
    }
    Ok(Ok(()))
}

/// Whether the revision a range asks for can be read, by the replicated state alone.
fn check_range(source: &dyn Source, range: &RangeRequest) -> Result<(), Refusal> {
    let compacted = source.compacted();
    // Before the first compaction etcd stands at -1, which then reads what is current.
    let first = if compacted == 0 { -1 } else { compacted };
    match range.revision {
        0 => Ok(()),
        revision if revision > source.revision() => Err(Reason::FutureRevision.into()),
        revision if revision < first => Err(Refusal::detailed(Reason::Compacted, compacted)),
        _ => Ok(()),
    }
}

fn execute(overlay: &mut Overlay<'_>, request: &TxnRequest, path: &mut Path) -> io::Result<TxnResponse> {
    let succeeded = path.take();
    let mut responses = Vec::new();
    for operation in branch(request, succeeded) {
        let response = match &operation.request {
            Some(Request::RequestRange(range)) => Response::ResponseRange(read_range(overlay, range)?),
            Some(Request::RequestPut(put)) => Response::ResponsePut(do_put(overlay, put)?),
            Some(Request::RequestDeleteRange(delete)) => {
                Response::ResponseDeleteRange(do_delete_range(overlay, delete)?)
            }
            Some(Request::RequestTxn(nested)) => Response::ResponseTxn(execute(overlay, nested, path)?),
            None => continue,
        };
        responses.push(ResponseOp { response: Some(response) });
    }
    Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
}

fn read_range(source: &dyn Source, request: &RangeRequest) -> io::Result<RangeResponse> {
    let at = if request.revision > 0 { request.revision } else { source.revision() };
    let mut response = range::read(source, request, at)?;
    response.header = header(source.revision());
    Ok(response)
}
