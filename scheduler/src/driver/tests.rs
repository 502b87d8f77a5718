//! The driver against a server that accepts or refuses bindings, with events fed by hand.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::client::Body;
use parking_lot::Mutex;
use pintle_base::task;
use pintle_client::{Leadership, SharedReflector};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::intake;
use crate::plugins::{Budgets, SpreadDefaults};

struct World {
    nodes: SharedReflector<Node>,
    pods: SharedReflector<Pod>,
    /// Requests as `METHOD last-path-element detail`.
    requests: mpsc::Receiver<String>,
    leadership: watch::Sender<Leadership>,
    group: task::Group,
    refuse: Arc<Mutex<u32>>,
    refuse_deletes: Arc<Mutex<u32>>,
}

impl World {
    fn start() -> Self {
        let (sent, requests) = mpsc::channel(100);
        let (refuse, refuse_deletes) = (Arc::new(Mutex::new(0u32)), Arc::new(Mutex::new(0u32)));
        let (refusals, deletes) = (Arc::clone(&refuse), Arc::clone(&refuse_deletes));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (sent, refusals, deletes) = (sent.clone(), Arc::clone(&refusals), Arc::clone(&deletes));
            async move {
                let refused = request.uri().path().ends_with("/binding") && {
                    let mut left = refusals.lock();
                    *left = left.saturating_sub(1);
                    *left > 0
                };
                let refused = refused
                    || (request.method() == http::Method::DELETE && std::mem::replace(&mut *deletes.lock(), 0) > 0);
                if let Some(line) = describe(request).await {
                    sent.send(line).await?;
                }
                let (code, body) =
                    if refused { (500, r#"{"code":500,"reason":"x","message":"m"}"#) } else { (201, "{}") };
                let response = http::Response::builder().status(code).body(body.to_owned());
                Ok::<_, tower::BoxError>(response?)
            }
        });
        let (clients, group) = (Clients::in_process(service), task::Group::new("test"));
        let profile = Arc::new(Profile::standard("default-scheduler", SpreadDefaults::none(), Budgets::none()));
        let (shared, nodes, pods) = (Shared::new(profile), SharedReflector::detached(), SharedReflector::detached());
        intake::listen(&nodes, &pods, &shared);
        let (leadership, receiver) = watch::channel(Leadership::default());
        let reflectors = Reflectors::new(clients.unfenced(), &group);
        let driver = Driver::new(clients, reflectors, Recorder::discarding(), shared, &Options::default());
        group.spawn("scheduler", driver.run(LeaderGate::new(receiver), group.token()));
        Self { nodes, pods, requests, leadership, group, refuse, refuse_deletes }
    }

    fn lead(&self, leading: bool, term: u64) {
        self.leadership.send_replace(Leadership { leading, term });
    }

    fn node(&self, name: &str, cpu: &str) {
        let allocatable = json!({"cpu": cpu, "memory": "8Gi", "pods": "10"});
        let node = json!({"metadata": {"name": name}, "status": {"allocatable": allocatable}});
        self.nodes.apply(serde_json::from_value(node).expect("node"));
    }

    fn pod(&self, name: &str, cpu: &str, node: Option<&str>) {
        self.pod_of(name, cpu, node, 0);
    }

    fn pod_of(&self, name: &str, cpu: &str, node: Option<&str>, priority: i32) {
        let container = json!({"name": "a", "resources": {"requests": {"cpu": cpu}}});
        let mut spec = json!({"containers": [container], "schedulerName": "default-scheduler", "priority": priority});
        if let Some(node) = node {
            spec["nodeName"] = json!(node);
        }
        let pod = json!({"metadata": {"namespace": "ns", "name": name, "uid": name}, "spec": spec});
        self.pods.apply(serde_json::from_value(pod).expect("pod"));
    }

    async fn request(&mut self) -> String {
        clock::timeout(Duration::from_secs(60), self.requests.recv()).await.expect("in time").expect("a request")
    }

    async fn is_quiet(&mut self) -> bool {
        clock::timeout(Duration::from_millis(500), self.requests.recv()).await.is_err()
    }

    fn gone(&self, name: &str) {
        let pod = self.pods.get(&pintle_client::Key::new("ns", name)).expect("pod");
        self.pods.remove((*pod).clone());
    }

    async fn stop(self) {
        self.group.stop(Duration::from_secs(5)).await.expect("stops");
    }
}

async fn describe(request: http::Request<Body>) -> Option<String> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let fence = request.headers().get("pintle-fence").and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
    let body = request.into_body().collect_bytes().await.ok()?;
    let value: Value = serde_json::from_slice(&body).ok()?;
    if method == http::Method::DELETE {
        let uid = value["preconditions"]["uid"].as_str()?;
        return Some(format!("delete {uid} in {fence}, grace {}", value["gracePeriodSeconds"]));
    }
    let name = path.split('/').rev().nth(1)?.to_owned();
    if path.ends_with("/binding") {
        return Some(format!("bind {name} to {} in {fence}", value["target"]["name"].as_str()?));
    }
    let status = value["status"].as_object()?;
    let promise = status.get("nominatedNodeName").map(|node| format!(", promised {node}")).unwrap_or_default();
    let condition = &value["status"]["conditions"][0];
    let [reason, message] = ["reason", "message"].map(|field| condition[field].as_str().unwrap_or("-"));
    // What is said about the attempt to make room has tests of its own.
    let message = message.split(" preemption: ").next()?;
    Some(format!("condition {name} {reason} {message}{promise}"))
}

#[tokio::test(start_paused = true)]
async fn pods_are_bound_by_the_leader_only_and_once() {
    let mut world = World::start();
    world.node("n1", "4");
    world.pod("a", "1", None);
    assert!(world.is_quiet().await);
    world.lead(true, 7);
    assert_eq!(world.request().await, "bind a to n1 in 7");
    // The API shows a change of the pod that still has no node: the binding is under way.
    world.pod("a", "1", None);
    assert!(world.is_quiet().await);
    world.pod("a", "1", Some("n1"));
    world.lead(false, 8);
    world.pod("b", "1", None);
    assert!(world.is_quiet().await);
    world.lead(true, 9);
    assert_eq!(world.request().await, "bind b to n1 in 9");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_is_told_so_and_tried_again_when_room_is_made() {
    let mut world = World::start();
    world.lead(true, 1);
    world.node("n1", "2");
    world.pod("big", "2", Some("n1"));
    world.pod("next", "1", None);
    assert_eq!(world.request().await, "condition next Unschedulable 0/1 nodes are available: 1 Insufficient cpu.");
    assert!(world.is_quiet().await);
    world.gone("big");
    assert_eq!(world.request().await, "bind next to n1 in 1");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn assumed_pods_take_their_room_at_once() {
    let mut world = World::start();
    world.lead(true, 1);
    world.node("n1", "1");
    for name in ["a", "b"] {
        world.pod(name, "1", None);
    }
    let mut seen = [world.request().await, world.request().await];
    seen.sort();
    assert_eq!(seen, ["bind a to n1 in 1", "condition b Unschedulable 0/1 nodes are available: 1 Insufficient cpu."]);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_binding_frees_the_node_and_is_tried_again() {
    let mut world = World::start();
    *world.refuse.lock() = 3;
    world.lead(true, 1);
    world.node("n1", "1");
    world.pod("a", "1", None);
    let mut lines = Vec::new();
    for _ in 0..5 {
        lines.push(world.request().await);
    }
    assert!(lines[1].starts_with("condition a SchedulerError"), "{lines:?}");
    lines.retain(|line| line.starts_with("bind"));
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(world.is_quiet().await);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn room_is_made_for_an_important_pod_which_is_told_where_and_bound_when_the_other_has_gone() {
    let mut world = World::start();
    world.lead(true, 3);
    world.node("n1", "2");
    world.pod_of("low", "2", Some("n1"), 0);
    world.pod_of("high", "2", None, 10);
    let told = world.request().await;
    assert_eq!(told, "condition high Unschedulable 0/1 nodes are available: 1 Insufficient cpu., promised \"n1\"");
    assert_eq!(
        world.request().await,
        "condition low PreemptionByScheduler default-scheduler: preempting to accommodate a higher priority pod"
    );
    assert_eq!(world.request().await, "delete low in 3, grace null");
    assert!(world.is_quiet().await);
    // A lesser pod does not get what was promised.
    world.pod_of("mid", "1", None, 5);
    assert!(world.request().await.starts_with("condition mid Unschedulable"));
    world.gone("low");
    assert_eq!(world.request().await, "bind high to n1 in 3");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_victim_could_not_be_told_is_promised_nothing_and_tried_again() {
    let mut world = World::start();
    world.lead(true, 3);
    world.node("n1", "2");
    world.pod_of("low", "2", Some("n1"), 0);
    *world.refuse_deletes.lock() = 1;
    world.pod_of("high", "2", None, 10);
    let mut lines: Vec<String> = Vec::new();
    while lines.iter().filter(|line| line.starts_with("delete low")).count() < 2 {
        lines.push(world.request().await);
    }
    let void = lines.iter().position(|line| line == "condition high - -, promised null").expect("taken back");
    assert!(lines[void - 1].starts_with("delete low"), "{lines:?}");
    world.stop().await;
}
