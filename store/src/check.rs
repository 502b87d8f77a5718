//! The door: what a request must satisfy before it reaches the log, on all branches of a transaction, with etcd's refusals.
//!
//! Always holds afterwards: a key changes at most once in a revision.

use std::collections::BTreeSet;

use bytes::Bytes;
use pintle_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use crate::error::StoreError;
use crate::mvcc::key::Interval;

pub(crate) fn range(request: &RangeRequest) -> Result<(), StoreError> {
    if request.key.is_empty() {
        return Err(StoreError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(StoreError::InvalidSortOption);
    }
    Ok(())
}

pub(crate) fn put(request: &PutRequest) -> Result<(), StoreError> {
    if request.key.is_empty() {
        return Err(StoreError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(StoreError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(StoreError::LeaseProvided);
    }
    Ok(())
}

pub(crate) fn delete_range(request: &DeleteRangeRequest) -> Result<(), StoreError> {
    if request.key.is_empty() { Err(StoreError::EmptyKey) } else { Ok(()) }
}

pub(crate) fn txn(request: &TxnRequest, most: usize) -> Result<(), StoreError> {
    operations(request, most)?;
    branch(&request.success)?;
    branch(&request.failure)?;
    Ok(())
}

/// Bytes a put takes beside its key and value, and a lease, as etcd reckons them against the quota.
pub(crate) const PUT_COST: usize = 256;
pub(crate) const LEASE_COST: usize = 64;

/// What a transaction may add to the data: the dearer of its branches.
pub(crate) fn cost(request: &TxnRequest) -> usize {
    let of = |operations: &[RequestOp]| -> usize {
        operations
            .iter()
            .map(|operation| match &operation.request {
                Some(Request::RequestPut(put)) => PUT_COST + put.key.len() + put.value.len(),
                Some(Request::RequestTxn(nested)) => cost(nested),
                Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => 0,
            })
            .sum()
    };
    of(&request.success).max(of(&request.failure))
}

/// Counts and checks operations; nested transactions share the budget that is left.
fn operations(request: &TxnRequest, budget: usize) -> Result<(), StoreError> {
    let count = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = budget.checked_sub(count).ok_or(StoreError::TooManyOperations)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(StoreError::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(nested)) => operations(nested, left)?,
            None => return Err(StoreError::KeyNotFound),
        }
    }
    Ok(())
}

/// What a branch may write, nested transactions included.
#[derive(Default)]
struct Footprint {
    puts: BTreeSet<Bytes>,
    deletes: Vec<Interval>,
}

impl Footprint {
    fn deletes(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|interval| interval.contains(key))
    }

    /// Adds what happens beside it; refuses a key put twice, or put and deleted.
    fn add(&mut self, other: Self) -> Result<(), StoreError> {
        let clash = other.puts.iter().any(|key| self.puts.contains(key) || self.deletes(key))
            || self.puts.iter().any(|key| other.deletes(key));
        if clash {
            return Err(StoreError::DuplicateKey);
        }
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
        Ok(())
    }

    /// Adds an alternative: of the two only one happens.
    fn or(mut self, other: Self) -> Self {
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
        self
    }
}

fn branch(operations: &[RequestOp]) -> Result<Footprint, StoreError> {
    let mut footprint = Footprint::default();
    for operation in operations {
        let one = match &operation.request {
            Some(Request::RequestPut(put)) => {
                Footprint { puts: BTreeSet::from([put.key.clone()]), deletes: Vec::new() }
            }
            Some(Request::RequestDeleteRange(delete)) => {
                Footprint { puts: BTreeSet::new(), deletes: vec![Interval::new(&delete.key, &delete.range_end)] }
            }
            Some(Request::RequestTxn(nested)) => branch(&nested.success)?.or(branch(&nested.failure)?),
            Some(Request::RequestRange(_)) | None => continue,
        };
        footprint.add(one)?;
    }
    Ok(footprint)
}
