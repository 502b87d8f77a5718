//! The collector against a server that knows which nodes there are, on a paused clock.

use std::time::Duration;

use kube::client::Body;
use parking_lot::Mutex;
use pintle_client::Clients;

use super::*;

struct World {
    gc: PodGc,
    lead: Lead,
    log: Arc<Mutex<Vec<String>>>,
    /// Nodes the server has.
    stored: Arc<Mutex<BTreeSet<String>>>,
    quarantine: Quarantine,
}

impl World {
    fn new() -> Self {
        let (log, stored): (Arc<Mutex<Vec<String>>>, Arc<Mutex<BTreeSet<String>>>) = Default::default();
        let (seen, nodes) = (Arc::clone(&log), Arc::clone(&stored));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (seen, nodes) = (Arc::clone(&seen), Arc::clone(&nodes));
            async move {
                let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
                let name = path.strip_prefix("/api/v1/nodes/").map(str::to_owned);
                let known = name.is_none_or(|name| nodes.lock().contains(&name));
                if method != "GET" {
                    let short = path.strip_prefix("/api/v1/namespaces/ns/pods/").unwrap_or(&path);
                    seen.lock().push(format!("{method} {short}"));
                }
                let (code, body) = if known {
                    (200, json!({"metadata": {"name": "x"}}))
                } else {
                    (404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "m"}))
                };
                Ok::<_, tower::BoxError>(http::Response::builder().status(code).body(body.to_string())?)
            }
        });
        let gc = PodGc { nodes: SharedReflector::detached(), pods: SharedReflector::detached() };
        let lead = Lead { term: 1, client: Clients::in_process(service).fenced(1) };
        Self { gc, lead, log, stored, quarantine: Quarantine::default() }
    }

    fn pod(&self, name: &str, node: Option<&str>, phase: &str, ending: bool) {
        let mut value = json!({"metadata": {"namespace": "ns", "name": name, "uid": name},
            "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}});
        if ending {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        self.gc.pods.apply(serde_json::from_value(value).expect("pod"));
    }

    async fn look(&mut self) -> String {
        self.gc.look(&mut self.quarantine, &self.lead).await;
        let mut log = std::mem::take(&mut *self.log.lock());
        log.sort();
        log.join(", ")
    }
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_node_that_is_gone_go_after_the_quarantine_if_the_api_confirms_it() {
    let mut world = World::new();
    world.stored.lock().insert("slow".to_owned());
    world.pod("a", Some("gone"), "Running", false);
    world.pod("b", Some("gone"), "Succeeded", false);
    world.pod("c", Some("slow"), "Running", false);
    assert_eq!(world.look().await, "");
    clock::sleep(Duration::from_secs(39)).await;
    assert_eq!(world.look().await, "");
    clock::sleep(Duration::from_secs(1)).await;
    // `b` has ended already: its phase stays. `c` is on a node only the cache does not know yet.
    assert_eq!(world.look().await, "DELETE a, DELETE b, PATCH a/status");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_without_a_node_is_taken_away_at_once() {
    let mut world = World::new();
    world.pod("waiting", None, "Pending", false);
    world.pod("ending", None, "Pending", true);
    assert_eq!(world.look().await, "DELETE ending");
}
