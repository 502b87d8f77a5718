//! Watches: starts, selectors, bookmarks, ends.

use futures::StreamExt;
use serde_json::Value;
use tower::ServiceExt;

use pintle_base::task::Group;
use pintle_proto::etcdserverpb::CompactionRequest;

use super::{Answer, DEADLINE, admin, ask, config, free_address, harness, request, send_to, start};
use crate::{ApiServer, cache, hooks};

/// An open watch whose events are read one by one.
struct Events {
    stream: axum::body::BodyDataStream,
    rest: Vec<u8>,
}

fn open(line: &str) -> Events {
    open_on(&harness().server, line)
}

fn open_on(server: &ApiServer, line: &str) -> Events {
    let response = harness().runtime.block_on(server.local(admin()).oneshot(request(line, ""))).expect("infallible");
    assert_eq!(response.status(), 200);
    Events { stream: response.into_body().into_data_stream(), rest: Vec::new() }
}

impl Events {
    /// The next event; `None` at the end of the stream.
    fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event"));
            }
            let next = harness().runtime.block_on(async { tokio::time::timeout(DEADLINE, self.stream.next()).await });
            match next.expect("an event in time") {
                Some(chunk) => self.rest.extend_from_slice(&chunk.expect("a chunk")),
                None => return None,
            }
        }
    }

    #[track_caller]
    fn check(&mut self, want: &str) -> Value {
        let event = self.next().expect("an event");
        let name = event.pointer("/object/metadata/name").and_then(Value::as_str).unwrap_or("-");
        assert_eq!(format!("{} {name}", event["type"].as_str().unwrap_or("?")), want);
        event
    }
}

fn create(namespace: &str, name: &str, label: &str) -> String {
    let body = format!(r#"{{"metadata":{{"name":"{name}","labels":{{"l":"{label}"}}}}}}"#);
    let answer = ask(&format!("POST /api/v1/namespaces/{namespace}/configmaps"), &body);
    assert_eq!(answer.code, 201);
    answer.at("/metadata/resourceVersion")
}

fn relabel(namespace: &str, name: &str, label: &str) {
    let body = format!(r#"{{"metadata":{{"labels":{{"l":"{label}"}}}}}}"#);
    let line = format!("PATCH /api/v1/namespaces/{namespace}/configmaps/{name} type=application/merge-patch+json");
    assert_eq!(ask(&line, &body).code, 200);
}

#[test]
fn a_watch_without_version_starts_with_what_is_there() {
    create("watch-a", "one", "x");
    let mut events = open("GET /api/v1/namespaces/watch-a/configmaps?watch=true");
    events.check("ADDED one");
    create("watch-a", "two", "x");
    events.check("ADDED two");
    relabel("watch-a", "one", "y");
    events.check("MODIFIED one");
    let deleted = ask("DELETE /api/v1/namespaces/watch-a/configmaps/one", "");
    assert_eq!(deleted.code, 200);
    events.check("DELETED one");
}

#[test]
fn a_watch_resumes_after_a_version() {
    let version = create("watch-b", "one", "x");
    create("watch-b", "two", "x");
    let mut events = open(&format!("GET /api/v1/namespaces/watch-b/configmaps?watch=true&resourceVersion={version}"));
    events.check("ADDED two");
}

#[test]
fn selectors_turn_changes_into_additions_and_deletions() {
    create("watch-c", "one", "x");
    let version = create("watch-c", "two", "y");
    let mut events = open(&format!(
        "GET /api/v1/namespaces/watch-c/configmaps?watch=true&resourceVersion={version}&labelSelector=l%3Dx"
    ));
    relabel("watch-c", "two", "x");
    events.check("ADDED two");
    relabel("watch-c", "one", "y");
    let gone = events.check("DELETED one");
    assert_eq!(gone["object"]["metadata"]["labels"]["l"], "x", "the client sees what it knew");
    ask("DELETE /api/v1/namespaces/watch-c/configmaps/two", "");
    events.check("DELETED two");
}

#[test]
fn initial_events_end_with_a_bookmark() {
    create("watch-d", "one", "x");
    let options =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut events = open(&format!("GET /api/v1/namespaces/watch-d/configmaps?{options}"));
    events.check("ADDED one");
    let mark = events.check("BOOKMARK -");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(
        mark["object"]["metadata"]["resourceVersion"].as_str().is_some_and(|version| version.parse::<u64>().is_ok())
    );
}

#[test]
fn a_watch_ends_at_its_time_with_a_bookmark() {
    let version = create("watch-e", "one", "x");
    let line = format!(
        "GET /api/v1/namespaces/watch-e/configmaps?watch=true&allowWatchBookmarks=true&timeoutSeconds=1&resourceVersion={version}"
    );
    let mut events = open(&line);
    create("watch-e-other", "one", "x");
    let mut last = None;
    while let Some(event) = events.next() {
        last = Some(event);
    }
    assert_eq!(last.expect("a bookmark")["type"], "BOOKMARK");
}

#[test]
fn one_object_is_watched_by_name() {
    let mut events = open("GET /api/v1/namespaces/watch-f/configmaps?watch=true&fieldSelector=metadata.name%3Dtwo");
    create("watch-f", "one", "x");
    create("watch-f", "two", "x");
    events.check("ADDED two");
}

#[test]
fn a_watch_path_of_one_object_shows_that_object_only() {
    let mut events = open("GET /api/v1/watch/namespaces/watch-p/configmaps/two?timeoutSeconds=20");
    create("watch-p", "one", "x");
    create("watch-p", "two", "x");
    events.check("ADDED two");
    let other = "GET /api/v1/watch/namespaces/watch-p/configmaps/two?fieldSelector=metadata.name";
    for selector in ["%3Done", "!%3Done"] {
        let answer = ask(&format!("{other}{selector}"), "");
        let want = "fieldSelector metadata.name doesn't match requested name";
        assert_eq!((answer.code, answer.at("/message").as_str()), (400, want), "{selector}");
    }
    open(&format!("{other}%3Dtwo&timeoutSeconds=20")).check("ADDED two");
}

#[test]
fn an_agent_hears_only_of_its_pods() {
    let pod = |name: &str, node: &str| {
        format!(
            r#"{{"metadata":{{"name":"{name}"}},"spec":{{"nodeName":"{node}","containers":[{{"name":"c","image":"i"}}]}}}}"#
        )
    };
    let mut events = open("GET /api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Dwatch-n1");
    ask("POST /api/v1/namespaces/watch-g/pods", &pod("other", "watch-n2"));
    ask("POST /api/v1/namespaces/watch-g/pods", &pod("mine", "watch-n1"));
    events.check("ADDED mine");
}

#[test]
fn a_version_from_before_the_history_is_an_error_event() {
    // Revision 1 is the empty store: older than anything kept once something was compacted or the ring began later.
    let mut events = open("GET /api/v1/namespaces/watch-h/configmaps?watch=true&resourceVersion=1&timeoutSeconds=1");
    create("watch-h", "one", "x");
    let first = events.next().expect("an event");
    assert!(first["type"] == "ADDED" || first["object"]["code"] == 410, "{first}");
    let answer = ask("GET /api/v1/namespaces/watch-h/configmaps?watch=true&resourceVersionMatch=Exact", "");
    assert_eq!(answer.code, 422);
}

#[test]
fn table_watches_send_rows() {
    create("watch-i", "one", "x");
    let line =
        "GET /api/v1/namespaces/watch-i/configmaps?watch=true accept=application/json;as=Table;v=v1;g=meta.k8s.io";
    let event = open(line).next().expect("an event");
    assert_eq!((&event["object"]["kind"], &event["object"]["rows"][0]["cells"][0]), (&"Table".into(), &"one".into()));
}

#[test]
fn a_watch_from_before_the_cache_begins_in_the_stores_history() {
    let (dir, group, runtime) = (tempfile::tempdir().expect("directory"), Group::new("past"), &harness().runtime);
    let (writer, store) = runtime.block_on(start(dir.path(), &group));
    let send = |line: &str, body: &str| -> Answer {
        runtime.block_on(send_to(&writer, admin(), request(line, body.to_owned())))
    };
    let at = "/api/v1/namespaces/past/configmaps";
    let map = |name: &str, label: &str| format!(r#"{{"metadata":{{"name":"{name}","labels":{{"l":"{label}"}}}}}}"#);
    let label = |name: &str, label: &str| {
        send(&format!("PATCH {at}/{name} type=application/merge-patch+json"), &map(name, label))
    };
    let version = send(&format!("POST {at}"), &map("one", "x")).at("/metadata/resourceVersion");
    send(&format!("POST {at}"), &map("two", "x"));
    send("POST /api/v1/namespaces/elsewhere/configmaps", &map("other", "x"));
    label("one", "y");
    send(&format!("DELETE {at}/two"), "");
    let late = label("one", "x").at("/metadata/resourceVersion");

    // A server whose cache keeps nothing of all that.
    let server = ApiServer::with_hooks(config(free_address()), store.clone(), hooks::closed());
    let ctx = server.ctx();
    runtime.block_on(async {
        group.spawn("cache", cache::feed::run(ctx.cache.clone(), store.clone(), 0, group.token()));
        ctx.cache.wait(1, DEADLINE).await.expect("cache fills");
    });
    let mut events = open_on(&server, &format!("GET {at}?watch=1&resourceVersion={version}"));
    let mut selected = open_on(&server, &format!("GET {at}?watch=1&resourceVersion={version}&labelSelector=l%3Dx"));
    for want in ["ADDED two", "MODIFIED one", "DELETED two", "MODIFIED one"] {
        events.check(want);
    }
    for want in ["ADDED two", "DELETED one", "DELETED two", "ADDED one"] {
        selected.check(want);
    }
    send(&format!("POST {at}"), &map("three", "x"));
    events.check("ADDED three");
    selected.check("ADDED three");

    let revision = late.parse().expect("a revision");
    runtime.block_on(store.compact(CompactionRequest { revision, physical: false })).expect("compacted");
    let gone = open_on(&server, &format!("GET {at}?watch=1&resourceVersion={version}")).next().expect("an event");
    assert_eq!((&gone["type"], &gone["object"]["code"]), (&"ERROR".into(), &410.into()), "{gone}");
    open_on(&server, &format!("GET {at}?watch=1&resourceVersion={late}")).check("ADDED three");
    runtime.block_on(group.stop(DEADLINE)).expect("stops");
}
