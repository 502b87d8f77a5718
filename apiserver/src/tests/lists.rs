//! Lists: selectors, pages, versions, tables, collections.

use super::{ask, check, eventually};

fn fill(namespace: &str, count: usize) {
    for index in 0..count {
        let body = format!(r#"{{"metadata":{{"name":"c{index}","labels":{{"n":"{}"}}}}}}"#, index % 2);
        assert_eq!(ask(&format!("POST /api/v1/namespaces/{namespace}/configmaps"), &body).code, 201);
    }
}

fn names(answer: &super::Answer) -> String {
    let list = answer.json();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
    names.join(" ")
}

#[test]
fn selectors_choose() {
    fill("lists-sel", 4);
    let at = "/api/v1/namespaces/lists-sel/configmaps";
    assert_eq!(names(&ask(&format!("GET {at}"), "")), "c0 c1 c2 c3");
    assert_eq!(names(&ask(&format!("GET {at}?labelSelector=n%3D1"), "")), "c1 c3");
    assert_eq!(names(&ask(&format!("GET {at}?labelSelector=n+in+(0)"), "")), "c0 c2");
    assert_eq!(names(&ask(&format!("GET {at}?fieldSelector=metadata.name%3Dc2"), "")), "c2");
    check(&format!("GET {at}?fieldSelector=spec.x%3D1"), "", &["/reason"], "400 BadRequest");
    check(&format!("GET {at}?labelSelector=a%3D%3D%3Db"), "", &["/reason"], "400 BadRequest");
    check(&format!("GET {at}?labelSelector=none"), "", &["/kind", "/items"], "200 ConfigMapList []");
}

#[test]
fn pages_stay_at_one_revision() {
    fill("lists-page", 5);
    let at = "/api/v1/namespaces/lists-page/configmaps";
    let first = check(&format!("GET {at}?limit=2"), "", &["/metadata/remainingItemCount"], "200 3");
    let version = first.at("/metadata/resourceVersion");
    assert_eq!(names(&first), "c0 c1");
    // A change in between: the later pages come from the store's history.
    ask(&format!("DELETE {at}/c3"), "");
    ask(&format!("POST {at}"), r#"{"metadata":{"name":"c2a"}}"#);
    let second = ask(&format!("GET {at}?limit=2&continue={}", first.at("/metadata/continue")), "");
    assert_eq!((names(&second).as_str(), second.at("/metadata/resourceVersion")), ("c2 c3", version.clone()));
    let third = ask(&format!("GET {at}?limit=2&continue={}", second.at("/metadata/continue")), "");
    assert_eq!((names(&third).as_str(), third.at("/metadata/continue").as_str()), ("c4", "-"));
    let exact = ask(&format!("GET {at}?resourceVersion={version}&resourceVersionMatch=Exact"), "");
    assert_eq!(names(&exact), "c0 c1 c2 c3 c4");
    assert_eq!(names(&ask(&format!("GET {at}"), "")), "c0 c1 c2 c2a c4");
    check(&format!("GET {at}?continue=nonsense"), "", &["/reason"], "400 BadRequest");
    let token = second.at("/metadata/continue");
    check(&format!("GET {at}?continue={token}&resourceVersion=5"), "", &["/reason"], "400 BadRequest");
}

#[test]
fn versions_of_a_list_are_checked() {
    let at = "/api/v1/namespaces/lists-rv/configmaps";
    check(&format!("GET {at}?resourceVersion=0"), "", &["/kind"], "200 ConfigMapList");
    check(&format!("GET {at}?resourceVersion=x"), "", &["/reason"], "400 BadRequest");
    check(&format!("GET {at}?resourceVersionMatch=Exact"), "", &["/reason"], "422 Invalid");
    check(&format!("GET {at}?resourceVersion=0&resourceVersionMatch=Exact"), "", &["/reason"], "422 Invalid");
    let future = "9000000000";
    check(
        &format!("GET {at}?resourceVersion={future}&resourceVersionMatch=NotOlderThan"),
        "",
        &["/reason"],
        "504 Timeout",
    );
}

#[test]
fn a_collection_is_deleted_by_selector() {
    fill("lists-del", 4);
    let at = "/api/v1/namespaces/lists-del/configmaps";
    check(&format!("DELETE {at}?labelSelector=n%3D0"), "", &["/kind"], "200 ConfigMapList");
    assert_eq!(names(&ask(&format!("GET {at}"), "")), "c1 c3");
}

#[test]
fn tables_and_metadata_are_views() {
    fill("lists-view", 1);
    let at = "/api/v1/namespaces/lists-view/configmaps";
    let table = "accept=application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    check(
        &format!("GET {at} {table}"),
        "",
        &["/kind", "/columnDefinitions/0/name", "/rows/0/cells/0", "/rows/0/object/kind"],
        "200 Table Name c0 PartialObjectMetadata",
    );
    let partial = "accept=application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    check(
        &format!("GET {at} {partial}"),
        "",
        &["/kind", "/items/0/kind", "/items/0/data"],
        "200 PartialObjectMetadataList PartialObjectMetadata -",
    );
    let protobuf = ask(&format!("GET {at} accept=application/vnd.kubernetes.protobuf"), "");
    let tree = pintle_api::codec::decode_any_protobuf(&protobuf.body).expect("decodes");
    assert_eq!(
        (tree["kind"].as_str(), tree["items"][0]["metadata"]["name"].as_str()),
        (Some("ConfigMapList"), Some("c0"))
    );
}

#[test]
fn both_event_groups_show_the_same_events() {
    let event = r#"{"metadata":{"name":"e"},"involvedObject":{"kind":"Pod","name":"p","namespace":"lists-ev"},"reason":"R","message":"m","type":"Normal"}"#;
    check("POST /api/v1/namespaces/lists-ev/events", event, &["/message"], "201 m");
    check(
        "GET /apis/events.k8s.io/v1/namespaces/lists-ev/events/e",
        "",
        &["/apiVersion", "/note", "/regarding/name"],
        "200 events.k8s.io/v1 m p",
    );
    eventually("the selector of the other group finds it", || {
        names(&ask("GET /apis/events.k8s.io/v1/namespaces/lists-ev/events?fieldSelector=regarding.name%3Dp", "")) == "e"
    });
}

#[test]
fn large_answers_are_compressed_on_request() {
    let at = "/api/v1/namespaces/lists-gzip/configmaps";
    let body = format!(r#"{{"metadata":{{"name":"big"}},"data":{{"a":"{}"}}}}"#, "x".repeat(200_000));
    ask(&format!("POST {at}"), &body);
    let packed = ask(&format!("GET {at} accept-encoding=gzip"), "");
    assert!(packed.headers["content-encoding"] == "gzip" && packed.body.len() < 10_000);
    assert!(!ask(&format!("GET {at}"), "").headers.contains_key("content-encoding"));
}

#[test]
fn elements_of_lists_do_not_say_their_kind_and_events_do() {
    fill("lists-kinds", 2);
    let at = "/api/v1/namespaces/lists-kinds/configmaps";
    let fields = &["/kind", "/items/1/kind", "/items/1/apiVersion", "/items/1/metadata/name"];
    for line in [format!("GET {at}"), format!("GET {at}?pretty=1")] {
        check(&line, "", fields, "200 ConfigMapList - - c1");
    }
    let yaml = ask(&format!("GET {at} accept=application/yaml"), "");
    let text = String::from_utf8_lossy(&yaml.body).into_owned();
    assert_eq!((text.matches("kind:").count(), text.matches("apiVersion:").count()), (1, 1), "{text}");
    let event = ask(&format!("GET {at}?watch=1&timeoutSeconds=1"), "");
    let first = event.body.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first: serde_json::Value = serde_json::from_slice(first).expect("an event");
    assert_eq!((&first["object"]["kind"], &first["object"]["apiVersion"]), (&"ConfigMap".into(), &"v1".into()));
}

#[test]
fn elements_of_converted_lists_do_not_say_their_kind_either() {
    let event = r#"{"metadata":{"name":"e","namespace":"lists-events"},"involvedObject":{"namespace":"lists-events"},
        "reason":"r","type":"Normal"}"#;
    assert_eq!(ask("POST /api/v1/namespaces/lists-events/events", event).code, 201);
    let fields = &["/kind", "/items/0/kind", "/items/0/apiVersion", "/items/0/metadata/name"];
    for path in ["/api/v1", "/apis/events.k8s.io/v1"] {
        check(&format!("GET {path}/namespaces/lists-events/events"), "", fields, "200 EventList - - e");
    }
}
