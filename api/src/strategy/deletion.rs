//! How deletion begins: at once, after a grace that the object's node observes, or not again.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::kinds::Kind;
use crate::meta::{Meta, MetaMut, format_time};
use crate::tree;

/// What is to be done with an object whose deletion was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// The object carries its deletion time and no grace: remove it, or store it if finalizers hold it.
    Now,
    /// The object carries its deletion time and a grace: store it; its node ends it.
    Graceful,
    /// Deletion is under way and this request asks for nothing sooner: leave the object.
    Pending,
}

/// Marks `object` as being deleted. `requested` is `gracePeriodSeconds` of the request.
pub fn begin_deletion(kind: &Kind, object: &mut Value, requested: Option<i64>, now: Timestamp) -> Deletion {
    if !is_graceful(kind) {
        if !Meta::of(object).is_deleting() {
            mark(object, now, 0);
        }
        return Deletion::Now;
    }
    let period = grace(object, requested);
    if Meta::of(object).is_deleting() {
        return shorten(object, requested, period);
    }
    mark(object, now, period);
    if period == 0 { Deletion::Now } else { Deletion::Graceful }
}

/// Only pods have somebody who observes a grace.
fn is_graceful(kind: &Kind) -> bool {
    (kind.group, kind.kind) == ("", "Pod")
}

/// The grace of a pod: as asked, else as its spec says; none if no node runs it or it has ended.
fn grace(pod: &Value, requested: Option<i64>) -> i64 {
    let ended = matches!(tree::text(pod, "/status/phase"), "Succeeded" | "Failed");
    if ended || tree::text(pod, "/spec/nodeName").is_empty() {
        return 0;
    }
    let period = requested.or_else(|| tree::int(pod, "/spec/terminationGracePeriodSeconds")).unwrap_or(0);
    if period < 0 { 1 } else { period }
}

fn mark(object: &mut Value, now: Timestamp, period: i64) {
    let generation = Meta::of(object).generation();
    MetaMut::of(object).set_deletion(now, period);
    if generation > 0 {
        MetaMut::of(object).set_generation(generation + 1);
    }
}

/// A deletion that is under way can only become shorter.
fn shorten(object: &mut Value, requested: Option<i64>, period: i64) -> Deletion {
    let meta = Meta::of(object);
    let Some(current) = meta.deletion_grace_seconds() else { return Deletion::Now };
    if current == 0 {
        return Deletion::Now;
    }
    // Without a wish of its own the request changes nothing, unless the pod has ended meanwhile.
    if requested.is_none() && period != 0 || period >= current {
        return Deletion::Pending;
    }
    let due = meta.deletion_timestamp().map(|due| {
        let earlier = SignedDuration::from_secs(current.saturating_sub(period));
        due.checked_sub(earlier).unwrap_or(due)
    });
    if let (Some(due), Some(metadata)) = (due, object.get_mut("metadata")) {
        tree::set(metadata, "deletionTimestamp", format_time(due));
        tree::set(metadata, "deletionGracePeriodSeconds", period);
    }
    if period == 0 { Deletion::Now } else { Deletion::Graceful }
}
