//! Renews the node's Lease in `kube-node-lease`: the cheap sign of life.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_client::object::micro_time_now;
use pintle_client::{Key, SharedReflector};
use serde_json::json;

const NAMESPACE: &str = "kube-node-lease";

/// What the Lease says about its node.
pub struct Settings {
    pub node_name: String,
    pub renew: Duration,
    pub duration: Duration,
}

/// Renews until dropped. The Lease belongs to the Node object as `nodes` has it: a node that was deleted and registered
/// again is another owner, and a Lease of the earlier one would be collected over and over.
pub async fn run(client: kube::Client, settings: Settings, nodes: SharedReflector<Node>) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut changes = nodes.changes();
    let mut ticker = clock::ticker(settings.renew);
    let mut misses = 0u32;
    // The owner that the server is known to have.
    let mut owner = None;
    loop {
        ticker.tick().await;
        let uid = loop {
            let node = nodes.get(&Key::cluster(settings.node_name.clone()));
            match node.and_then(|node| node.metadata.uid.clone()) {
                Some(uid) => break uid,
                None => changes.changed().await,
            }
        };
        let owned = owner.as_ref() == Some(&uid);
        // A renewal that takes longer than the next one is worth nothing.
        let limit = settings.renew.max(Duration::from_secs(1));
        match clock::timeout(limit, renew_once(&api, &settings, &uid, owned)).await {
            Ok(Ok(())) => (misses, owner) = (0, Some(uid)),
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

async fn renew_once(api: &Api<Lease>, settings: &Settings, uid: &str, owned: bool) -> Result<(), kube::Error> {
    let name = &settings.node_name;
    let seconds = i32::try_from(settings.duration.as_secs().max(1)).unwrap_or(i32::MAX);
    let now = micro_time_now();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    };
    let mut body = json!({ "spec": { "holderIdentity": name, "leaseDurationSeconds": seconds, "renewTime": now } });
    if !owned {
        body["metadata"] = json!({ "ownerReferences": [owner] });
    }
    match api.patch(name, &PatchParams::default(), &Patch::Merge(body)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => (),
        Err(error) => return Err(error),
        Ok(_) => return Ok(()),
    }
    let lease = Lease {
        metadata: ObjectMeta { name: Some(name.clone()), owner_references: Some(vec![owner]), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use serde_json::Value;
    use tokio::sync::mpsc;

    fn node(uid: &str) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": "w1", "uid": uid } })).expect("node")
    }

    /// A server without Leases that tells who is to own each that is written.
    fn server() -> (kube::Client, mpsc::UnboundedReceiver<String>) {
        let (told, owners) = mpsc::unbounded_channel();
        let mut exists = false;
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let told = told.clone();
            let code = if exists || request.method() == http::Method::POST { 200 } else { 404 };
            exists = true;
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let owner = body["metadata"]["ownerReferences"][0]["uid"].as_str().unwrap_or("-");
                told.send(format!("{} {owner}", head.method)).expect("heard");
                let status = json!({ "status": "Failure", "reason": "NotFound", "message": "", "code": code });
                let answer = if code == 200 { json!({ "metadata": { "name": "w1" } }) } else { status };
                let answer = Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string())));
                Ok::<_, Infallible>(answer.expect("response"))
            }
        });
        (kube::Client::new(service, "default"), owners)
    }

    #[tokio::test(start_paused = true)]
    async fn the_lease_follows_its_node_to_another_uid() {
        let (client, mut owners) = server();
        let nodes = SharedReflector::detached();
        let second = Duration::from_secs(1);
        let settings = Settings { node_name: "w1".into(), renew: second, duration: 4 * second };
        let task = tokio::spawn(run(client, settings, nodes.clone()));
        let mut next = async || clock::timeout(60 * second, owners.recv()).await.expect("in time").expect("a renewal");
        nodes.replace(vec![node("u1")]);
        assert_eq!(next().await, "PATCH u1");
        assert_eq!(next().await, "POST u1");
        assert_eq!(next().await, "PATCH -", "the server knows the owner");
        nodes.replace(vec![node("u2")]);
        assert_eq!(next().await, "PATCH u2");
        assert_eq!(next().await, "PATCH -");
        task.abort();
    }
}
