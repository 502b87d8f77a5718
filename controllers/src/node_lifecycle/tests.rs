//! The controller against a server that records what is written, on a paused clock.

use futures::FutureExt;
use kube::client::Body;
use pintle_client::{Clients, WorkQueue};
use serde_json::Value;

use super::*;
use crate::limits;

const GRACE: Duration = Duration::from_secs(8);

struct World {
    controller: NodeLifecycle,
    lead: Lead,
    /// `METHOD path` of each write, and the node as it was patched.
    log: Arc<Mutex<Vec<(String, Value)>>>,
    version: std::cell::Cell<u64>,
}

impl World {
    fn new() -> Self {
        let log: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let seen = Arc::clone(&log);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let seen = Arc::clone(&seen);
            async move {
                let line = format!("{} {}", request.method(), request.uri().path());
                let body = request.into_body().collect_bytes().await?;
                seen.lock().push((line, serde_json::from_slice(&body).unwrap_or_default()));
                let answer = json!({"metadata": {"name": "x"}}).to_string();
                Ok::<_, tower::BoxError>(http::Response::new(answer))
            }
        });
        let pods: SharedReflector<Pod> = SharedReflector::detached();
        let controller = NodeLifecycle {
            nodes: SharedReflector::detached(),
            leases: SharedReflector::detached(),
            pods_by_node: Index::new(&pods, |pod| pod.spec.as_ref()?.node_name.clone()),
            pods,
            grace: GRACE,
            memory: Arc::default(),
            census: Arc::default(),
            zones: Mutex::default(),
            intake: OnceLock::new(),
            recorder: Recorder::discarding(),
        };
        controller.watch(&Intake::default());
        let lead = Lead { term: 1, client: Clients::in_process(service).fenced(1) };
        Self { controller, lead, log, version: std::cell::Cell::new(1) }
    }

    /// The node as its agent last wrote it; heartbeats of the wall clock are whatever the agent says.
    fn node(&self, name: &str, ready: &str, beat: &str) {
        let conditions = json!([{"type": "Ready", "status": ready, "lastHeartbeatTime": beat}]);
        let value =
            json!({"metadata": {"name": name, "resourceVersion": self.next()}, "status": {"conditions": conditions}});
        self.controller.nodes.apply(serde_json::from_value(value).expect("node"));
    }

    /// The node as the server has it after the controller's own writes.
    fn settle(&self, name: &str) {
        let key = Key::cluster(name);
        for (line, patch) in self.log.lock().iter().filter(|(line, _)| line.contains(&format!("/nodes/{name}"))) {
            let node = self.controller.nodes.get(&key).expect("node");
            let mut value = serde_json::to_value(&*node).expect("json");
            let (field, at) = if line.ends_with("/status") { ("status", "conditions") } else { ("spec", "taints") };
            value[field][at] = patch[field][at].clone();
            value["metadata"]["resourceVersion"] = json!(self.next());
            self.controller.nodes.apply(serde_json::from_value(value).expect("node"));
        }
    }

    fn next(&self) -> String {
        self.version.set(self.version.get() + 1);
        self.version.get().to_string()
    }

    fn pod(&self, name: &str, node: &str, seconds: u64) {
        let tolerations = json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        let spec = json!({"nodeName": node, "containers": [], "tolerations": tolerations});
        let value = json!({"metadata": {"namespace": "ns", "name": name, "uid": name}, "spec": spec});
        self.controller.pods.apply(serde_json::from_value(value).expect("pod"));
    }

    /// Looks at `name` until nothing is written any more; the pods that were deleted.
    async fn look(&self, name: &str) -> Vec<String> {
        let mut deleted = Vec::new();
        for _ in 0..5 {
            self.log.lock().clear();
            self.controller.reconcile(&Key::cluster(name), &self.lead).await.expect("reconciled");
            if self.log.lock().is_empty() {
                break;
            }
            self.settle(name);
            let log = self.log.lock();
            let gone = log.iter().filter_map(|(line, _)| line.strip_prefix("DELETE /api/v1/namespaces/ns/pods/"));
            deleted.extend(gone.map(str::to_owned));
            if !deleted.is_empty() {
                break;
            }
        }
        deleted
    }

    /// The node as its agent writes it now, seen by the controller.
    async fn beat(&self, name: &str, beat: &str) {
        self.node(name, "True", beat);
        assert!(self.look(name).await.is_empty());
    }

    fn taints(&self, name: &str) -> Vec<String> {
        let node = self.controller.nodes.get(&Key::cluster(name)).expect("node");
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        taints.map(|taint| taint.effect.clone()).collect()
    }

    fn is_ready(&self, name: &str) -> bool {
        self.controller.nodes.get(&Key::cluster(name)).is_some_and(|node| plan::is_ready(&node))
    }
}

async fn pass(seconds: u64) {
    clock::sleep(Duration::from_secs(seconds)).await;
}

const OLD: &str = "2001-01-01T00:00:00Z";
const FUTURE: &str = "2101-01-01T00:00:00Z";

#[tokio::test(start_paused = true)]
async fn silence_is_measured_on_this_process_s_clock_from_what_it_saw_itself() {
    let world = World::new();
    world.node("a", "True", OLD);
    world.node("b", "True", FUTURE);
    for name in ["a", "b"] {
        world.look(name).await;
    }
    pass(7).await;
    world.look("a").await;
    assert!(world.is_ready("a"), "a heartbeat from the past was seen only now");
    pass(1).await;
    world.node("a", "True", "2001-01-01T00:00:01Z");
    for name in ["a", "b"] {
        world.look(name).await;
    }
    assert_eq!((world.is_ready("a"), world.is_ready("b")), (true, false), "a heartbeat from the future does not help");
}

#[tokio::test(start_paused = true)]
async fn a_pod_leaves_a_lost_node_after_its_toleration_and_a_new_leader_starts_counting_anew() {
    let world = World::new();
    world.node("a", "True", OLD);
    world.node("b", "True", OLD);
    world.pod("p", "a", 30);
    for name in ["a", "b"] {
        world.look(name).await;
    }
    pass(8).await;
    world.beat("b", "2001-01-01T00:00:08Z").await;
    assert!(world.look("a").await.is_empty());
    pass(29).await;
    assert!(world.look("a").await.is_empty());
    world.controller.begin();
    pass(1).await;
    assert!(world.look("a").await.is_empty(), "another leader's counting is not ours");
    pass(30).await;
    assert_eq!(world.look("a").await, ["p"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_full_disruption_every_node_and_pod_gets_its_full_time_again() {
    let world = World::new();
    world.node("a", "True", OLD);
    world.node("b", "True", OLD);
    world.pod("p", "a", 30);
    for name in ["a", "b"] {
        world.look(name).await;
    }
    pass(8).await;
    for name in ["a", "b", "a", "b"] {
        assert!(world.look(name).await.is_empty());
    }
    assert_eq!(world.taints("a"), ["NoSchedule"], "nobody could take the pods");
    pass(1000).await;
    assert!(world.look("a").await.is_empty());
    world.beat("b", "2001-01-01T00:20:00Z").await;
    assert!(world.look("a").await.is_empty());
    assert_eq!(world.taints("a"), ["NoSchedule", "NoExecute"]);
    pass(29).await;
    assert!(world.look("a").await.is_empty());
    pass(1).await;
    assert_eq!(world.look("a").await, ["p"]);
}

/// The nodes that are to be looked at.
fn asked(queue: &WorkQueue<Key>) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(Some(key)) = queue.next().now_or_never() {
        queue.done(&key);
        names.push(key.name);
    }
    names
}

#[tokio::test(start_paused = true)]
async fn lost_nodes_are_emptied_one_in_ten_seconds() {
    let world = World::new();
    let (all, lost) = (["a", "b", "c", "d", "e"], ["d", "e"]);
    for name in all {
        world.node(name, "True", OLD);
        world.look(name).await;
    }
    pass(8).await;
    for name in &all[..3] {
        world.beat(name, "2001-01-01T00:00:08Z").await;
    }
    for name in lost {
        world.look(name).await;
    }
    assert_eq!(lost.map(|name| world.taints(name).len()), [2, 1], "both are closed, one is emptied");
    let outcome = world.controller.reconcile(&Key::cluster("e"), &world.lead).await.expect("reconciled");
    assert_eq!(outcome, Outcome::After(limits::EVICTION_PERIOD));
    pass(10).await;
    world.look("e").await;
    assert_eq!(world.taints("e"), ["NoSchedule", "NoExecute"]);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_sends_nobody_away_before_it_has_heard_from_a_node_that_works() {
    let world = World::new();
    world.node("a", "Unknown", OLD);
    world.node("b", "True", OLD);
    let queue = WorkQueue::new();
    let intake = world.controller.intake.get().expect("watches").clone();
    let _open = intake.open(queue.clone());
    for name in ["a", "b", "a"] {
        world.look(name).await;
    }
    assert_eq!(world.taints("a"), ["NoSchedule"], "what b is said to be is hearsay");
    asked(&queue);
    world.beat("b", "2001-01-01T00:00:02Z").await;
    assert!(asked(&queue).contains(&"a".to_owned()), "its turn has come");
    world.look("a").await;
    assert_eq!(world.taints("a"), ["NoSchedule", "NoExecute"]);
}
