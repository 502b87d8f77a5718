//! Reconciles with a cache that is behind, and a server that creates, refuses, or leaves in doubt.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use parking_lot::Mutex;
use pintle_client::{Clients, Index, Key, Recorder, SharedReflector};
use serde_json::{Value, json};

use super::*;

/// What the server does with the next creations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Create,
    Refuse,
    /// Creates, and breaks the connection.
    Doubt,
}

#[derive(Default)]
struct Server {
    pods: Vec<Value>,
    log: Vec<String>,
    mood: Option<Mood>,
}

impl Server {
    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Value), String> {
        match (method, path.rsplit('/').next().unwrap_or_default()) {
            ("POST", "pods") => {
                let name = format!("web-{}", self.pods.len());
                self.log.push(format!("create {name}"));
                if self.mood == Some(Mood::Refuse) {
                    self.log.pop();
                    self.log.push("refuse".to_owned());
                    return Ok((403, status(403, "Forbidden", "exceeded quota")));
                }
                let mut pod: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
                pod["metadata"]["name"] = json!(name);
                pod["metadata"]["namespace"] = json!("ns");
                pod["metadata"]["uid"] = json!(name);
                pod["metadata"]["resourceVersion"] = json!((self.pods.len() + 10).to_string());
                self.pods.push(pod.clone());
                if self.mood == Some(Mood::Doubt) { Err("broken".to_owned()) } else { Ok((201, pod)) }
            }
            ("DELETE", name) => {
                self.log.push(format!("delete {name}"));
                Ok((200, json!({"metadata": {"name": name}})))
            }
            ("PUT", "status") => Ok((200, serde_json::from_slice(body).map_err(|error| error.to_string())?)),
            ("GET", "pods") => Ok((200, json!({"metadata": {"resourceVersion": "100"}, "items": self.pods}))),
            (method, path) => Err(format!("unexpected {method} {path}")),
        }
    }
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message})
}

struct World {
    server: Arc<Mutex<Server>>,
    replicas: Replicas<ReplicaSets>,
    intake: Intake,
    lead: Lead,
}

impl World {
    fn new(size: i32) -> Self {
        let server = Arc::new(Mutex::new(Server::default()));
        let serving = Arc::clone(&server);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let serving = Arc::clone(&serving);
            async move {
                let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
                let body = request.into_body().collect_bytes().await?;
                let (code, answer) = serving.lock().answer(&method, &path, &body)?;
                Ok::<_, tower::BoxError>(http::Response::builder().status(code).body(answer.to_string())?)
            }
        });
        let (owners, all_pods) = (SharedReflector::detached(), SharedReflector::detached());
        let replicas = Replicas {
            owners,
            pods: Index::by_controller(&all_pods),
            all_pods,
            siblings: None,
            expectations: Arc::default(),
            recorder: Recorder::discarding(),
            kind: PhantomData,
        };
        let intake = Intake::default();
        replicas.watch(&intake);
        let lead = Lead { term: 1, client: Clients::in_process(service).fenced(1) };
        let world = Self { server, replicas, intake, lead };
        world.size(size);
        world
    }

    fn size(&self, size: i32) {
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a"}]}});
        let spec = json!({"replicas": size, "selector": {"matchLabels": {"app": "web"}}, "template": template});
        let set = json!({"metadata": {"namespace": "ns", "name": "web", "uid": "set"}, "spec": spec});
        let set: ReplicaSet = serde_json::from_value(set).expect("replica set");
        self.replicas.owners.apply(set);
    }

    /// One reconcile; what the server was asked for, and how it ended.
    async fn reconcile(&self) -> String {
        let result = self.replicas.reconcile(&Key::new("ns", "web"), &self.lead).await;
        let mut log = std::mem::take(&mut self.server.lock().log);
        log.sort();
        log.extend(result.err().map(|_| "error".to_owned()));
        log.join(", ")
    }

    /// The watch shows the first `count` pods the server has.
    fn show(&self, count: usize) {
        let pods: Vec<Value> = self.server.lock().pods.iter().take(count).cloned().collect();
        for pod in pods {
            let pod: Pod = serde_json::from_value(pod).expect("pod");
            self.replicas.all_pods.apply(pod);
        }
    }

    fn mood(&self, mood: Mood) {
        self.server.lock().mood = Some(mood);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_behind_never_leads_to_pods_too_many() {
    let world = World::new(3);
    assert_eq!(world.reconcile().await, "create web-0, create web-1, create web-2");
    assert_eq!(world.reconcile().await, "");
    world.show(2);
    assert_eq!(world.reconcile().await, "");
    world.show(3);
    assert_eq!(world.reconcile().await, "");
    world.size(4);
    assert_eq!(world.reconcile().await, "create web-3");
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_behind_never_leads_to_pods_too_few() {
    let world = World::new(3);
    world.reconcile().await;
    world.show(3);
    world.size(2);
    assert_eq!(world.reconcile().await.matches("delete").count(), 1);
    assert_eq!(world.reconcile().await, "");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_stops_the_batch_and_is_tried_again() {
    let world = World::new(100);
    world.mood(Mood::Refuse);
    assert_eq!(world.reconcile().await, "refuse, error");
    world.mood(Mood::Create);
    assert_eq!(world.reconcile().await.matches("create").count(), 100);
}

#[tokio::test(start_paused = true)]
async fn after_an_unknown_outcome_the_cache_catches_up_before_pods_are_counted() {
    let world = World::new(1);
    world.mood(Mood::Doubt);
    assert_eq!(world.reconcile().await, "create web-0, error");
    world.mood(Mood::Create);
    let (result, ()) = tokio::join!(world.reconcile(), async {
        pintle_base::clock::sleep(std::time::Duration::from_millis(100)).await;
        world.show(1);
    });
    assert_eq!(result, "");
}

#[tokio::test(start_paused = true)]
async fn a_large_set_is_looked_at_for_many_changes_together_but_at_once_for_what_it_awaits() {
    let millis = [1, 100, 1000, 100_000].map(|size| pause(size).as_micros());
    assert_eq!(millis, [20, 2000, 20_000, 200_000]);
    let world = World::new(2);
    world.reconcile().await;
    let queue = pintle_client::WorkQueue::new();
    let _open = world.intake.open(queue.clone());
    world.show(1);
    assert!(queue.is_empty(), "one of two is not what is awaited");
    world.show(2);
    assert_eq!(queue.len(), 1);
}
