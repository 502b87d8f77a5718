//! The collector against a server whose object changes between judgement and deletion.

use std::sync::Arc;

use kube::client::Body;
use pintle_client::Clients;
use serde_json::Value;

use super::*;

/// One Pod as the server has it, and what it was asked to do.
struct Server {
    pod: Option<Value>,
    log: Vec<String>,
}

impl Server {
    fn answer(&mut self, method: &str, body: &[u8]) -> (u16, Value) {
        let Some(pod) = &self.pod else { return (404, status(404, "NotFound")) };
        if method == "GET" {
            return (200, pod.clone());
        }
        let wanted = serde_json::from_slice::<Value>(body).unwrap_or_default()["preconditions"].clone();
        self.log.push(format!("delete {}@{}", wanted["uid"], wanted["resourceVersion"]).replace('"', ""));
        let holds = |field: &str| wanted[field] == Value::Null || wanted[field] == pod["metadata"][field];
        if holds("uid") && holds("resourceVersion") {
            self.pod = None;
            return (200, json!({"kind": "Status", "status": "Success"}));
        }
        (409, status(409, "Conflict"))
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": "m"})
}

fn pod(version: u64, owners: &[&str]) -> Value {
    let owner = |uid: &&str| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": uid, "uid": uid});
    let owners: Vec<Value> = owners.iter().map(owner).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "ns", "name": "a", "uid": "u",
        "resourceVersion": version.to_string(), "ownerReferences": owners}})
}

/// Lets the collector delete `judged` from a server that has `stored`; its requests, and whether the object is left.
async fn collect(judged: &Value, stored: impl Into<Option<Value>>) -> (Vec<String>, bool, Arc<Collector>) {
    let server = Arc::new(Mutex::new(Server { pod: stored.into(), log: Vec::new() }));
    let serving = Arc::clone(&server);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let serving = Arc::clone(&serving);
        async move {
            let method = request.method().to_string();
            let body = request.into_body().collect_bytes().await?;
            let (code, answer) = serving.lock().answer(&method, &body);
            Ok::<_, tower::BoxError>(http::Response::builder().status(code).body(answer.to_string())?)
        }
    });
    let pods = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let collector = Arc::new(Collector {
        resources: vec![Resource { api: pods, namespaced: true }],
        graph: Mutex::default(),
        queue: WorkQueue::new(),
        listed: watch::channel(0).0,
        lead: Lead { term: 1, client: Clients::in_process(service).fenced(1) },
    });
    let judged: Metadata = serde_json::from_value(judged.clone()).expect("metadata");
    collector.changed("u", Node::new(0, &judged.metadata));
    while !collector.queue.is_empty() {
        let uid = collector.queue.next().await.expect("open");
        collector.queue.done(&uid);
    }
    let node = collector.graph.lock().get("u").cloned().expect("known");
    collector.delete("u", node, false).await.expect("settled");
    let server = server.lock();
    (server.log.clone(), server.pod.is_some(), collector)
}

#[tokio::test]
async fn an_object_is_deleted_in_the_version_it_was_judged_in() {
    let (log, left, _) = collect(&pod(5, &["gone"]), pod(5, &["gone"])).await;
    assert_eq!((log, left), (vec!["delete u@5".to_owned()], false));
}

#[tokio::test]
async fn an_object_that_got_another_owner_meanwhile_stays_and_is_judged_again() {
    let (log, left, collector) = collect(&pod(5, &["gone"]), pod(7, &["gone", "living"])).await;
    assert_eq!((log, left), (vec!["delete u@5".to_owned()], true));
    assert_eq!(collector.graph.lock().get("u").map(|node| node.owners.len()), Some(2));
    assert!(!collector.queue.is_empty(), "it is judged again");
}

#[tokio::test]
async fn an_object_that_is_gone_or_another_is_forgotten() {
    let mut another = pod(9, &["gone"]);
    another["metadata"]["uid"] = json!("v");
    for stored in [None, Some(another)] {
        let (_, _, collector) = collect(&pod(5, &["gone"]), stored).await;
        assert!(collector.graph.lock().get("u").is_none(), "its owner does not wait for it");
    }
}

#[tokio::test]
async fn a_change_that_does_not_concern_ownership_does_not_save_it() {
    let (log, left, _) = collect(&pod(5, &["gone"]), pod(7, &["gone"])).await;
    assert_eq!((log, left), (vec!["delete u@5".to_owned(), "delete u@7".to_owned()], false));
}
