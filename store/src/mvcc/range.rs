//! Range reads over any [`Source`]: the interval, then filters, order and limit as etcd's clients know them.
//!
//! Quirks kept because clients see them: `count` ignores limit and filters; an order by another target than the key without a
//! direction sorts only the first `limit + 1` keys; filters and directions make the server read everything first.

use std::cmp::Ordering;
use std::io;
use std::ops::ControlFlow;

use pintle_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pintle_proto::etcdserverpb::{RangeRequest, RangeResponse};
use pintle_proto::mvccpb::KeyValue;

use super::key::Interval;
use super::pieces::{Draft, Pieces};
use super::record::Row;
use super::view::Source;

/// Reads `request` at revision `at`. The header is the caller's.
pub(crate) fn read(source: &dyn Source, request: &RangeRequest, at: i64) -> io::Result<RangeResponse> {
    read_counted(source, request, at, &mut |_| Ok(None))
}

/// How many keys an interval has, from whoever knows it without a scan.
pub(crate) type Count<'a> = dyn FnMut(&Interval) -> io::Result<Option<i64>> + 'a;

/// The same, with somebody to ask for the count of what is not read.
pub(crate) fn read_counted(
    source: &dyn Source,
    request: &RangeRequest,
    at: i64,
    counted: &mut Count<'_>,
) -> io::Result<RangeResponse> {
    let mut kvs: Vec<KeyValue> = Vec::new();
    let count = take(source, request, at, counted, &mut |row| kvs.push(row.to_kv()))?;
    kvs.retain(|kv| passes(kv, request));
    sort(&mut kvs, request.sort_order(), request.sort_target());
    let mut more = false;
    if let Some(limit) = usize::try_from(request.limit).ok().filter(|&limit| limit > 0)
        && kvs.len() > limit
    {
        kvs.truncate(limit);
        more = true;
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    Ok(RangeResponse { header: None, kvs, more, count })
}

/// Whether the answer is what is read, in the order it is read.
pub(crate) fn is_plain(request: &RangeRequest) -> bool {
    request.sort_order() == SortOrder::None && request.sort_target() == SortTarget::Key && !has_filters(request)
}

/// Reads a plain request at revision `at` into an answer that has its header.
pub(crate) fn encode(
    source: &dyn Source,
    request: &RangeRequest,
    at: i64,
    counted: &mut Count<'_>,
    mut draft: Draft,
) -> io::Result<Pieces> {
    let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0);
    let mut read = 0;
    let count = take(source, request, at, counted, &mut |row| {
        read += 1;
        if limit.is_none_or(|limit| read <= limit) {
            draft.push(&if request.keys_only { Row { value: &[], ..row } } else { row });
        }
    })?;
    Ok(draft.finish(limit.is_some_and(|limit| read > limit), count))
}

/// Visits the rows that must be fetched, and says how many there are in all.
fn take(
    source: &dyn Source,
    request: &RangeRequest,
    at: i64,
    counted: &mut Count<'_>,
    each: &mut dyn FnMut(Row<'_>),
) -> io::Result<i64> {
    let interval = Interval::new(&request.key, &request.range_end);
    let take = rows_to_take(request);
    let (mut taken, mut beyond) = (0, false);
    source.scan(&interval, at, &mut |row| {
        if take.is_some_and(|take| taken >= take) {
            beyond = true;
            return ControlFlow::Break(());
        }
        taken += 1;
        each(row);
        ControlFlow::Continue(())
    })?;
    if !beyond {
        return Ok(i64::try_from(taken).unwrap_or(i64::MAX));
    }
    match counted(&interval)? {
        Some(count) => Ok(count),
        None => count_all(source, &interval, at),
    }
}

fn count_all(source: &dyn Source, interval: &Interval, at: i64) -> io::Result<i64> {
    let mut count = 0;
    source.scan(interval, at, &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

/// How many rows must be fetched: one above the limit tells whether there are more.
fn rows_to_take(request: &RangeRequest) -> Option<usize> {
    if request.count_only {
        return Some(0);
    }
    let everything = request.sort_order() != SortOrder::None || has_filters(request);
    usize::try_from(request.limit).ok().filter(|&limit| limit > 0 && !everything).map(|limit| limit.saturating_add(1))
}

pub(crate) fn has_filters(request: &RangeRequest) -> bool {
    [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision]
        .iter()
        .any(|&bound| bound != 0)
}

fn passes(kv: &KeyValue, request: &RangeRequest) -> bool {
    let above = |bound: i64, value: i64| bound == 0 || value >= bound;
    let below = |bound: i64, value: i64| bound == 0 || value <= bound;
    above(request.min_mod_revision, kv.mod_revision)
        && below(request.max_mod_revision, kv.mod_revision)
        && above(request.min_create_revision, kv.create_revision)
        && below(request.max_create_revision, kv.create_revision)
}

fn sort(kvs: &mut [KeyValue], order: SortOrder, target: SortTarget) {
    let by = |a: &KeyValue, b: &KeyValue| -> Ordering {
        match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        }
    };
    match (order, target) {
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => (), // rows come in key order
        (SortOrder::None | SortOrder::Ascend, _) => kvs.sort_by(by),
        (SortOrder::Descend, _) => kvs.sort_by(|a, b| by(b, a)),
    }
}
