//! A reflector against a server that follows a script.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use parking_lot::Mutex;
use pintle_base::task;

use super::*;
use crate::in_process;

fn start_failed(code: u16) -> watcher::Error {
    let mut status = kube::core::response::Status::failure("refused", "Because");
    status.code = code;
    watcher::Error::WatchStartFailed(kube::Error::Api(status.boxed()))
}

#[test]
fn only_a_compacted_version_is_listed_anew() {
    assert_eq!(remedy(&start_failed(410)), Remedy::StartOver);
    assert_eq!(remedy(&start_failed(422)), Remedy::UsePages);
    assert_eq!(remedy(&start_failed(503)), Remedy::Wait);
    assert_eq!(remedy(&watcher::Error::NoResourceVersion), Remedy::Wait);
}

fn object(name: &str, version: u64) -> String {
    format!(r#"{{"metadata":{{"namespace":"ns","name":"{name}","uid":"{name}","resourceVersion":"{version}"}}}}"#)
}

fn event(kind: &str, name: &str, version: u64) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{}}}\n", object(name, version))
}

fn end_of_list(version: u64) -> String {
    let metadata = format!(r#"{{"resourceVersion":"{version}","annotations":{{"k8s.io/initial-events-end":"true"}}}}"#);
    format!(
        "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{metadata}}}}}\n"
    )
}

fn list(version: u64, objects: &[String]) -> String {
    format!(r#"{{"metadata":{{"resourceVersion":"{version}"}},"items":[{}]}}"#, objects.join(","))
}

fn status(code: u16) -> String {
    format!(r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"m","reason":"R","code":{code}}}"#)
}

/// What the request must contain, the code and the body of the answer.
type Step = (&'static str, u16, String);

/// Runs a reflector through `steps`; later requests are not answered. Returns the reflector and the requests that did not
/// fit their step.
async fn run(steps: Vec<Step>) -> (SharedReflector<ConfigMap>, Vec<String>) {
    let (done, mut finished) = tokio::sync::watch::channel(false);
    let (script, wrong) = (Arc::new(Mutex::new(VecDeque::from(steps))), Arc::new(Mutex::new(Vec::new())));
    let faults = Arc::clone(&wrong);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (step, query) = (script.lock().pop_front(), request.uri().to_string());
        let (faults, done) = (Arc::clone(&faults), done.clone());
        async move {
            let Some((wanted, code, body)) = step else {
                done.send_replace(true);
                return std::future::pending().await;
            };
            if !query.contains(wanted) {
                faults.lock().push(format!("{query} is not {wanted}"));
            }
            Response::builder().status(code).body(Full::new(Bytes::from(body))).map_err(tower::BoxError::from)
        }
    });
    let group = task::Group::new("test");
    let reflector = SharedReflector::start(in_process(service, None), Selection::all(), &group);
    clock::timeout(Duration::from_secs(60), finished.wait_for(|done| *done)).await.expect("in time").expect("served");
    group.stop(Duration::from_secs(1)).await.expect("stops");
    let wrong = wrong.lock().clone();
    (reflector, wrong)
}

fn content(reflector: &SharedReflector<ConfigMap>) -> Vec<String> {
    reflector
        .list()
        .iter()
        .map(|map| format!("{}@{}", Key::of(&map.metadata).name, resource_version(&map.metadata)))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_broken_watch_resumes_at_its_last_version() {
    let initial = event("ADDED", "a", 1) + &event("ADDED", "b", 2) + &end_of_list(5) + &event("MODIFIED", "a", 6);
    let (reflector, wrong) = run(vec![
        ("sendInitialEvents=true", 200, initial),
        ("resourceVersion=6", 200, event("DELETED", "b", 7)),
        ("resourceVersion=7", 503, status(503)),
        ("resourceVersion=7", 200, event("ADDED", "c", 9)),
        ("resourceVersion=9", 200, String::new()),
    ])
    .await;
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(content(&reflector), ["a@6", "c@9"]);
    assert!(reflector.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_compacted_version_leads_to_a_new_list() {
    let (reflector, wrong) = run(vec![
        ("sendInitialEvents=true", 200, event("ADDED", "a", 1) + &end_of_list(5)),
        ("resourceVersion=5", 410, status(410)),
        ("sendInitialEvents=true", 200, event("ADDED", "b", 8) + &end_of_list(9)),
    ])
    .await;
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(content(&reflector), ["b@8"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_stream_lists_is_asked_for_pages() {
    let (reflector, wrong) = run(vec![
        ("sendInitialEvents=true", 422, status(422)),
        ("limit=500", 200, list(3, &[object("a", 1)])),
        ("resourceVersion=3", 200, event("ADDED", "b", 4)),
    ])
    .await;
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(content(&reflector), ["a@1", "b@4"]);
}

#[tokio::test(start_paused = true)]
async fn a_cache_catches_up_with_a_consistent_list() {
    let reflector = SharedReflector::<ConfigMap>::detached();
    reflector.replace(serde_json::from_str(&format!("[{}]", object("a", 1))).expect("objects"));
    let answer = list(5, &[object("b", 4)]);
    let service = tower::service_fn(move |_: Request<Body>| {
        let answer = answer.clone();
        async move { Ok::<_, tower::BoxError>(Response::new(Full::new(Bytes::from(answer)))) }
    });
    let (watched, client) = (reflector.clone(), in_process(service, None));
    let waiting = tokio::spawn(async move { watched.catch_up(client).await });
    reflector.apply(serde_json::from_str(&object("b", 4)).expect("object"));
    clock::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished(), "a is deleted, and the cache does not know it yet");
    reflector.remove(serde_json::from_str(&object("a", 5)).expect("object"));
    clock::timeout(Duration::from_secs(5), waiting).await.expect("in time").expect("ends");
}
