//! Brings claims and Services together again: claims that no Service uses go, Services without their claims get them.
//!
//! Claims and Services change in one transaction, so there is nothing to repair in an undisturbed store; restores from
//! other clusters and hands in the key space are what this is for. Run by the leader, fenced by its term.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use pintle_api::status::Status;
use pintle_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op,
};
use pintle_store::{Store, StoreError};
use serde_json::Value;

use super::plan::Holdings;
use super::{Claims, keys};
use crate::authz::live::{SERVICES, name_of, namespace_of};
use crate::cache::Cache;
use crate::{limits, storage};

/// The claims as the store has them.
pub(crate) struct Stored(pub Store);

impl Claims for Stored {
    fn held<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<BTreeSet<String>, Status>> {
        Box::pin(async move {
            let (claims, _) = claimed(&self.0, prefix).await.map_err(|error| storage::status_of(&error))?;
            Ok(claims.into_keys().filter_map(|key| key.strip_prefix(prefix).map(str::to_owned)).collect())
        })
    }
}

/// Keys below `prefix` with the revision each was written at, and the revision of the read.
async fn claimed(store: &Store, prefix: &str) -> Result<(BTreeMap<String, i64>, i64), StoreError> {
    let request = RangeRequest {
        key: prefix.to_owned().into(),
        range_end: end_of(prefix),
        keys_only: true,
        ..RangeRequest::default()
    };
    let response = store.range(request).await?;
    let revision = response.header.map_or(0, |header| header.revision);
    let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    Ok((response.kvs.iter().map(|kv| (text(&kv.key), kv.mod_revision)).collect(), revision))
}

/// The first key after all that start with `prefix`, which ends in a slash.
fn end_of(prefix: &str) -> Bytes {
    format!("{}0", prefix.trim_end_matches('/')).into()
}

/// What is wrong: claims without a Service, and claims a Service lacks, with their owner.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    unused: Vec<String>,
    missing: Vec<(Bytes, Bytes)>,
}

fn compare(claims: &BTreeMap<String, i64>, services: &[Arc<Value>]) -> Findings {
    let mut unused: BTreeSet<&String> = claims.keys().collect();
    let mut missing = Vec::new();
    for service in services {
        for key in Holdings::of(service).missing_from(&Holdings::default()) {
            let text = String::from_utf8_lossy(&key).into_owned();
            if claims.contains_key(&text) {
                unused.remove(&text);
            } else {
                missing.push((key, keys::owner(namespace_of(service), name_of(service))));
            }
        }
    }
    Findings { unused: unused.into_iter().cloned().collect(), missing }
}

/// Looks once and repairs what it finds. Each repair is conditional on what was seen.
///
/// # Errors
/// [`StoreError`], with `Fenced` if `term` is over; the rest is left to the next round.
pub(crate) async fn run(store: &Store, cache: &Cache, term: u64) -> Result<(), StoreError> {
    let (claims, revision) = claimed(store, keys::ALL).await?;
    let Some(kind) = SERVICES.kind() else { return Ok(()) };
    if cache.wait(revision, limits::CACHE_WAIT).await.is_err() {
        return Ok(());
    }
    // The cache may be newer than the claims: a Service made since shows claims that were not read. Those are put
    // "if absent", so they are left alone.
    let services: Vec<Arc<Value>> = cache.list(kind, "").iter().map(|service| service.tree()).collect();
    let findings = compare(&claims, &services);
    for key in &findings.unused {
        let seen = claims.get(key).copied().unwrap_or(0);
        tracing::warn!(key, "claim that no service uses, removed");
        store.txn(conditional(key.clone().into(), seen, None), Some(term)).await?;
    }
    for (key, owner) in findings.missing {
        let response = store.txn(conditional(key.clone(), 0, Some(owner)), Some(term)).await?;
        if response.succeeded {
            tracing::warn!(key = %String::from_utf8_lossy(&key), "service without its claim, added");
        }
    }
    Ok(())
}

/// Puts (or, without a value, deletes) `key` if it was last written at `seen`.
fn conditional(key: Bytes, seen: i64, value: Option<Bytes>) -> TxnRequest {
    let then = match value {
        Some(value) => request_op::Request::RequestPut(PutRequest { key: key.clone(), value, ..PutRequest::default() }),
        None => {
            let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
            request_op::Request::RequestDeleteRange(delete)
        }
    };
    TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Mod as i32,
            key,
            target_union: Some(TargetUnion::ModRevision(seen)),
            ..Compare::default()
        }],
        success: vec![RequestOp { request: Some(then) }],
        failure: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_and_services_are_held_against_each_other() {
        let service = |name: &str, ip: &str, port: u16| {
            Arc::new(json!({"metadata": {"namespace": "a", "name": name},
                "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"nodePort": port}]}}))
        };
        let claims = BTreeMap::from([
            (format!("{}10.0.0.1", keys::ADDRESSES), 5),
            (format!("{}30001", keys::NODE_PORTS), 5),
            (format!("{}10.0.0.9", keys::ADDRESSES), 6),
        ]);
        let findings = compare(&claims, &[service("s", "10.0.0.1", 30001), service("t", "10.0.0.2", 0)]);
        assert_eq!(findings.unused, [format!("{}10.0.0.9", keys::ADDRESSES)]);
        assert_eq!(findings.missing, [(keys::address("10.0.0.2"), keys::owner("a", "t"))]);
    }

    #[test]
    fn a_prefix_ends_before_its_neighbour() {
        assert_eq!(end_of("/pintle/alloc/"), "/pintle/alloc0");
    }
}
