//! Cluster addresses and node ports of Services: chosen, checked, and claimed in the transaction that stores the Service.
//!
//! A claim is a key of its own ([`keys`]) that must be absent when it is written, so two servers cannot hand out the same
//! address, and a Service and its claims appear and vanish together. Addresses are picked at random without looking;
//! if a pick was taken, admission is asked again and then looks. [`repair`] removes what nothing uses and adds what is
//! missing, for stores restored from elsewhere.

pub(crate) mod keys;
mod plan;
pub(crate) mod ranges;
pub(crate) mod repair;

use std::collections::BTreeSet;

use futures::future::BoxFuture;
use pintle_api::status::Status;
use serde_json::Value;

pub(crate) use ranges::Ranges;

use crate::admission::Chain;
use crate::types::{Extra, Review};
use plan::{Holdings, Picker};

/// Reads which addresses and ports are claimed.
pub(crate) trait Claims: Send + Sync {
    /// What follows `prefix` in the keys that start with it.
    fn held<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<BTreeSet<String>, Status>>;
}

/// Completes a Service that is created or updated, and claims and releases what changes.
pub(crate) async fn admit(chain: &Chain, review: &mut Review<'_>) -> Result<(), Status> {
    if !review.subresource.is_empty() {
        return Ok(());
    }
    let old = review.old.clone();
    let before = old.as_deref().map(Holdings::of).unwrap_or_default();
    let spec = review.object.get("spec");
    if spec.is_none_or(|spec| !spec.is_object()) {
        return Ok(()); // validation says what is missing
    }
    // The first try claims blindly. After a lost claim, or when nothing will be claimed, the store says what is free.
    let look = review.attempt > 0 || review.dry_run;
    let (addresses, ports) = match look {
        true => (chain.claims.held(keys::ADDRESSES).await?, chain.claims.held(keys::NODE_PORTS).await?),
        false => Default::default(),
    };
    let picker = Picker { ranges: &chain.ranges, taken_addresses: &addresses, taken_ports: &ports, before: &before };
    let after = plan::complete(&mut review.object, old.as_deref(), &picker)
        .map_err(|errors| Status::invalid("", "Service", review.name, &errors))?;
    let owner = keys::owner(review.namespace, review.name);
    review.extra.extend(after.missing_from(&before).into_iter().map(|key| Extra::Claim { key, value: owner.clone() }));
    review.extra.extend(before.missing_from(&after).into_iter().map(|key| Extra::Release { key }));
    Ok(())
}

/// The claims of a Service that goes away.
pub(crate) fn released(service: &Value) -> Vec<Extra> {
    Holdings::of(service).missing_from(&Holdings::default()).into_iter().map(|key| Extra::Release { key }).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;
    use crate::admission::Chain;
    use crate::authz::Authorizer;
    use crate::authz::live::Live;
    use crate::authz::live::tests::Fixed;
    use crate::types::{Operation, UserInfo};

    /// Claimed keys in memory, with the store's rule: all claims of a write or none.
    #[derive(Clone, Default)]
    pub(crate) struct Held(Arc<Mutex<BTreeSet<String>>>);

    impl Held {
        fn write(&self, extra: &[Extra]) -> bool {
            let mut held = self.0.lock();
            let text = |key: &bytes::Bytes| String::from_utf8_lossy(key).into_owned();
            let free = extra.iter().all(|extra| match extra {
                Extra::Claim { key, .. } => !held.contains(&text(key)),
                Extra::Release { .. } | Extra::Unchanged { .. } => true,
            });
            for extra in extra.iter().filter(|_| free) {
                match extra {
                    Extra::Claim { key, .. } => held.insert(text(key)),
                    Extra::Release { key } => held.remove(&text(key)),
                    Extra::Unchanged { .. } => false,
                };
            }
            free
        }
    }

    impl Claims for Held {
        fn held<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<BTreeSet<String>, Status>> {
            let held = self.0.lock();
            let found = held.iter().filter_map(|key| key.strip_prefix(prefix)).map(str::to_owned).collect();
            Box::pin(std::future::ready(Ok(found)))
        }
    }

    fn chain(held: &Held, cidr: &str, ports: std::ops::RangeInclusive<u16>) -> Chain {
        let live: Arc<dyn Live> = Arc::new(Fixed::default());
        let ranges = Ranges::new(cidr, ports).expect("ranges");
        let authorizer = Arc::new(Authorizer::new(Arc::clone(&live)));
        Chain { live, authorizer, ranges, claims: Arc::new(held.clone()) }
    }

    /// Writes a Service as the registry does: asked again while a claim is lost.
    async fn write(chain: &Chain, held: &Held, object: Value, old: Option<&Value>) -> Result<Value, Status> {
        let user = UserInfo::internal();
        for attempt in 0..crate::limits::CLAIM_RETRIES {
            let mut review =
                crate::admission::tests::creation(crate::admission::tests::kind("", "services"), &object, &user);
            review.attempt = attempt;
            if let Some(old) = old {
                review.operation = Operation::Update;
                review.old = Some(Arc::new(old.clone()));
            }
            admit(chain, &mut review).await?;
            if held.write(&review.extra) {
                return Ok(review.object);
            }
        }
        Err(Status::conflict("", "services", "s", "taken again and again"))
    }

    fn service(name: &str, spec: Value) -> Value {
        json!({"metadata": {"namespace": "a", "name": name}, "spec": spec})
    }

    #[tokio::test]
    async fn a_range_is_filled_without_doubles_by_many_at_once() {
        let held = Held::default();
        let chain = Arc::new(chain(&held, "10.0.0.0/26", 30000..=30100));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..70 {
            let (chain, held) = (Arc::clone(&chain), held.clone());
            tasks.spawn(async move {
                write(&chain, &held, service(&format!("s{n}"), json!({"type": "ClusterIP"})), None).await
            });
        }
        let results: Vec<_> = tasks.join_all().await;
        let (given, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let addresses: BTreeSet<String> =
            given.iter().map(|r| r.as_ref().expect("given")["spec"]["clusterIP"].to_string()).collect();
        assert_eq!((addresses.len(), given.len()), (62, 62));
        let text = &refused[0].as_ref().expect_err("full").message;
        assert!(text.ends_with("failed to allocate IP: range is full"), "{text}");
    }

    #[tokio::test]
    async fn an_address_asked_for_twice_is_refused_with_its_reason() {
        let held = Held::default();
        let chain = chain(&held, "10.96.0.0/16", 30000..=32767);
        let want = json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"});
        assert!(write(&chain, &held, service("dns", want.clone()), None).await.is_ok());
        let refused = write(&chain, &held, service("other", want), None).await.expect_err("taken");
        assert_eq!(
            refused.message,
            r#"Service "other" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.10"]: failed to allocate IP 10.96.0.10: provided IP is already allocated"#
        );
    }

    #[tokio::test]
    async fn a_service_gives_back_what_it_no_longer_needs() {
        let held = Held::default();
        let chain = chain(&held, "10.96.0.0/16", 30000..=32767);
        let ports = json!([{"port": 80}]);
        let first =
            write(&chain, &held, service("s", json!({"type": "NodePort", "ports": ports})), None).await.expect("ok");
        assert_eq!(held.0.lock().len(), 2);
        let mut plain = first.clone();
        plain["spec"]["type"] = "ClusterIP".into();
        let plain = write(&chain, &held, plain, Some(&first)).await.expect("ok");
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
        assert_eq!(held.0.lock().len(), 1);
        let mut named = plain.clone();
        named["spec"]["type"] = "ExternalName".into();
        let named = write(&chain, &held, named, Some(&plain)).await.expect("ok");
        assert!(named["spec"].get("clusterIP").is_none());
        assert!(held.0.lock().is_empty());
        let back = write(&chain, &held, service("s", json!({"type": "ClusterIP"})), Some(&named)).await.expect("ok");
        assert!(held.write(&released(&back)));
        assert!(held.0.lock().is_empty());
    }
}
