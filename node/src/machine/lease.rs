//! Renews the node's Lease in `kube-node-lease`: the cheap sign of life.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_client::object::micro_time_now;
use serde_json::json;

const NAMESPACE: &str = "kube-node-lease";

/// Renews until dropped. `uid` is the Node object's, which owns the Lease.
pub async fn run(client: kube::Client, node_name: String, uid: String, renew: Duration, duration: Duration) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut ticker = clock::ticker(renew);
    let mut misses = 0u32;
    loop {
        ticker.tick().await;
        // A renewal that takes longer than the next one is worth nothing.
        match clock::timeout(renew.max(Duration::from_secs(1)), renew_once(&api, &node_name, &uid, duration)).await {
            Ok(Ok(())) => misses = 0,
            Ok(Err(error)) => {
                misses += 1;
                tracing::debug!(misses, error = %Chain(&error), "lease not renewed");
            }
            Err(_) => misses += 1,
        }
        if misses == 5 {
            tracing::warn!("no server renewed the node's lease for five tries; pods go on running");
        }
    }
}

async fn renew_once(api: &Api<Lease>, node_name: &str, uid: &str, duration: Duration) -> Result<(), kube::Error> {
    let seconds = i32::try_from(duration.as_secs().max(1)).unwrap_or(i32::MAX);
    let now = micro_time_now();
    let body = json!({ "spec": { "holderIdentity": node_name, "leaseDurationSeconds": seconds, "renewTime": now } });
    match api.patch(node_name, &PatchParams::default(), &Patch::Merge(body)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => (),
        Err(error) => return Err(error),
        Ok(_) => return Ok(()),
    }
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node_name.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node_name.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node_name.to_owned()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(|_| ())
}
