//! Create, get, update, patch, delete and their refusals.

use std::sync::Arc;

use super::{admin, ask, check, harness, request, send_as, send_to, server_with};
use crate::cache::Cache;
use crate::hooks;
use crate::registry::{DeleteOptions, Registry, WriteOptions};
use crate::types::{Authorize, Decision, Hooks, RequestInfo, UserInfo};

const MESSAGE: &[&str] = &["/reason", "/message"];

fn config_map(name: &str) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"a":"1"}}}}"#)
}

#[test]
fn an_object_lives_from_create_to_delete() {
    let at = "/api/v1/namespaces/crud/configmaps";
    let made = check(
        &format!("POST {at}"),
        &config_map("one"),
        &["/kind", "/metadata/name", "/metadata/namespace"],
        "201 ConfigMap one crud",
    );
    assert!(made.at("/metadata/uid").len() == 36 && made.at("/metadata/creationTimestamp").ends_with('Z'));
    let version = made.at("/metadata/resourceVersion");
    check(&format!("GET {at}/one"), "", &["/data/a", "/metadata/resourceVersion"], &format!("200 1 {version}"));
    check(&format!("POST {at}"), &config_map("one"), MESSAGE, r#"409 AlreadyExists configmaps "one" already exists"#);

    let changed = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"one","resourceVersion":"{version}"}},"data":{{"a":"2"}}}}"#
    );
    let second = check(&format!("PUT {at}/one"), &changed, &["/data/a"], "200 2");
    check(
        &format!("PUT {at}/one"),
        &changed,
        MESSAGE,
        "409 Conflict Operation cannot be fulfilled on configmaps \"one\": the object has been modified; please apply your changes to the latest version and try again",
    );
    let again = check(&format!("PUT {at}/one"), &config_map("one").replace("\"1\"", "\"2\""), &["/data/a"], "200 2");
    assert_eq!(
        again.at("/metadata/resourceVersion"),
        second.at("/metadata/resourceVersion"),
        "nothing differs, nothing is written"
    );

    check(
        &format!("DELETE {at}/one"),
        r#"{"propagationPolicy":"Background"}"#,
        &["/kind", "/status", "/details/name"],
        "200 Status Success one",
    );
    check(&format!("GET {at}/one"), "", MESSAGE, r#"404 NotFound configmaps "one" not found"#);
    check(&format!("DELETE {at}/one"), "", MESSAGE, r#"404 NotFound configmaps "one" not found"#);
}

#[test]
fn names_are_generated() {
    let body = r#"{"metadata":{"generateName":"job-"},"data":{}}"#;
    let made = check("POST /api/v1/namespaces/crud-names/configmaps", body, &["/metadata/generateName"], "201 job-");
    assert_eq!(made.at("/metadata/name").len(), 9);
    check("POST /api/v1/namespaces/crud-names/configmaps", r#"{"metadata":{}}"#, &["/reason"], "422 Invalid");
    check(
        "POST /api/v1/namespaces/crud-names/configmaps",
        r#"{"metadata":{"name":"a","namespace":"b"}}"#,
        &["/reason"],
        "400 BadRequest",
    );
}

#[test]
fn patches_of_three_kinds_apply() {
    let at = "/api/v1/namespaces/crud-patch/configmaps";
    ask(&format!("POST {at}"), &config_map("p"));
    let merge = "type=application/merge-patch+json";
    check(&format!("PATCH {at}/p {merge}"), r#"{"data":{"b":"2","a":null}}"#, &["/data"], r#"200 {"b":"2"}"#);
    let json = "type=application/json-patch+json";
    check(&format!("PATCH {at}/p {json}"), r#"[{"op":"add","path":"/data/c","value":"3"}]"#, &["/data/c"], "200 3");
    let strategic = "type=application/strategic-merge-patch+json";
    check(
        &format!("PATCH {at}/p {strategic}"),
        r#"{"metadata":{"labels":{"x":"y"}}}"#,
        &["/metadata/labels/x"],
        "200 y",
    );
    check(&format!("PATCH {at}/p type=text/plain"), "{}", &["/reason"], "415 UnsupportedMediaType");
    check(&format!("PATCH {at}/p {merge}"), "{", &["/reason"], "400 BadRequest");
    check(&format!("PATCH {at}/none {merge}"), "{}", &["/reason"], "404 NotFound");
    let apply = "type=application/apply-patch+yaml";
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: applied\ndata:\n  k: v\n";
    check(&format!("PATCH {at}/applied?fieldManager=test {apply}"), body, &["/data/k"], "201 v");
    check(
        &format!("PATCH {at}/applied?fieldManager=test {apply}"),
        &body.replace("k: v", "k: w"),
        &["/data/k"],
        "200 w",
    );
}

#[test]
fn dry_run_stores_nothing() {
    let at = "/api/v1/namespaces/crud-dry/configmaps";
    check(&format!("POST {at}?dryRun=All"), &config_map("d"), &["/metadata/name"], "201 d");
    check(&format!("GET {at}/d"), "", &["/reason"], "404 NotFound");
    check(&format!("POST {at}?dryRun=Some"), &config_map("d"), &["/reason"], "400 BadRequest");
    ask(&format!("POST {at}"), &config_map("d"));
    check(
        &format!("PATCH {at}/d?dryRun=All type=application/merge-patch+json"),
        r#"{"data":{"a":"9"}}"#,
        &["/data/a"],
        "200 9",
    );
    check(&format!("DELETE {at}/d?dryRun=All"), "", &["/status"], "200 Success");
    check(&format!("GET {at}/d"), "", &["/data/a"], "200 1");
}

#[test]
fn finalizers_hold_an_object_until_they_are_removed() {
    let at = "/api/v1/namespaces/crud-fin/configmaps";
    ask(&format!("POST {at}"), r#"{"metadata":{"name":"f","finalizers":["example.com/x"]}}"#);
    check(&format!("DELETE {at}/f"), "", &["/kind", "/metadata/deletionGracePeriodSeconds"], "200 ConfigMap 0");
    check(&format!("GET {at}/f"), "", &["/metadata/name"], "200 f");
    let merge = "type=application/merge-patch+json";
    check(
        &format!("PATCH {at}/f {merge}"),
        r#"{"metadata":{"finalizers":["example.com/x","example.com/y"]}}"#,
        &["/reason"],
        "422 Invalid",
    );
    check(&format!("PATCH {at}/f {merge}"), r#"{"metadata":{"finalizers":null}}"#, &["/metadata/name"], "200 f");
    check(&format!("GET {at}/f"), "", &["/reason"], "404 NotFound");
}

const POD: &str = r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}],"nodeName":"n1","terminationGracePeriodSeconds":30}}"#;

#[test]
fn a_pod_is_deleted_in_two_steps_and_its_status_apart_from_its_spec() {
    let at = "/api/v1/namespaces/crud-pod/pods";
    check(
        &format!("POST {at}"),
        POD,
        &["/status/phase", "/status/qosClass", "/spec/restartPolicy"],
        "201 Pending BestEffort Always",
    );
    let merge = "type=application/merge-patch+json";
    check(
        &format!("PATCH {at}/p/status {merge}"),
        r#"{"status":{"phase":"Running"},"spec":{"nodeName":"n2"}}"#,
        &["/status/phase", "/spec/nodeName"],
        "200 Running n1",
    );
    check(
        &format!("PATCH {at}/p {merge}"),
        r#"{"status":{"phase":"Failed"},"metadata":{"labels":{"a":"b"}}}"#,
        &["/status/phase", "/metadata/labels/a"],
        "200 Running b",
    );
    check(&format!("DELETE {at}/p"), "", &["/metadata/deletionGracePeriodSeconds"], "200 30");
    check(&format!("GET {at}/p"), "", &["/metadata/name"], "200 p");
    check(&format!("DELETE {at}/p?gracePeriodSeconds=0"), "", &["/metadata/name"], "200 p");
    check(&format!("GET {at}/p"), "", &["/reason"], "404 NotFound");
}

#[test]
fn preconditions_and_versions_are_held_against_the_object() {
    let at = "/api/v1/namespaces/crud-pre/configmaps";
    ask(&format!("POST {at}"), &config_map("c"));
    check(&format!("DELETE {at}/c"), r#"{"preconditions":{"uid":"other"}}"#, &["/reason"], "409 Conflict");
    check(&format!("PUT {at}/c"), &config_map("d"), &["/reason"], "400 BadRequest");
    check(
        &format!("PATCH {at}/c type=application/merge-patch+json"),
        r#"{"metadata":{"resourceVersion":"1"}}"#,
        &["/reason"],
        "409 Conflict",
    );
}

#[test]
fn a_lease_is_created_by_its_first_update() {
    let lease = r#"{"metadata":{"name":"l"},"spec":{"holderIdentity":"a"}}"#;
    check("PUT /apis/coordination.k8s.io/v1/namespaces/crud-lease/leases/l", lease, &["/spec/holderIdentity"], "201 a");
}

#[test]
fn scale_is_a_view_of_replicas() {
    let at = "/apis/apps/v1/namespaces/crud-scale/deployments";
    let body = r#"{"metadata":{"name":"d"},"spec":{"replicas":2,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
    check(&format!("POST {at}"), body, &["/metadata/generation"], "201 1");
    check(&format!("GET {at}/d/scale"), "", &["/kind", "/spec/replicas", "/status/selector"], "200 Scale 2 a=b");
    check(
        &format!("PATCH {at}/d/scale type=application/merge-patch+json"),
        r#"{"spec":{"replicas":5}}"#,
        &["/spec/replicas"],
        "200 5",
    );
    check(&format!("GET {at}/d"), "", &["/spec/replicas", "/metadata/generation"], "200 5 2");
}

#[test]
fn a_namespace_waits_for_its_finalizer() {
    check(
        "POST /api/v1/namespaces",
        r#"{"metadata":{"name":"going"}}"#,
        &["/status/phase", "/spec/finalizers"],
        r#"201 Active ["kubernetes"]"#,
    );
    check("DELETE /api/v1/namespaces/going", "", &["/status/phase"], "200 Terminating");
    check(
        "PUT /api/v1/namespaces/going/finalize",
        r#"{"metadata":{"name":"going"},"spec":{}}"#,
        &["/metadata/name"],
        "200 going",
    );
    check("GET /api/v1/namespaces/going", "", &["/reason"], "404 NotFound");
}

#[test]
fn secrets_take_plain_text() {
    let secret = r#"{"metadata":{"name":"s"},"stringData":{"k":"v"}}"#;
    check("POST /api/v1/namespaces/crud-secret/secrets", secret, &["/data/k", "/stringData"], "201 dg== -");
}

#[test]
fn yaml_and_protobuf_bodies_are_taken_and_given() {
    let at = "/api/v1/namespaces/crud-forms/configmaps";
    check(&format!("POST {at} type=application/yaml"), "metadata: {name: yam}\ndata: {a: b}\n", &["/data/a"], "201 b");
    let answer = ask(&format!("GET {at}/yam accept=application/vnd.kubernetes.protobuf"), "");
    assert!(answer.code == 200 && answer.body.starts_with(b"k8s\0"));
    let body = answer.body.clone();
    ask(&format!("DELETE {at}/yam"), "");
    // What was read as protobuf cannot be created: it has a version.
    let request = super::request(&format!("POST {at} type=application/vnd.kubernetes.protobuf"), body);
    let answer = super::harness().runtime.block_on(send_as(super::admin(), request));
    assert_eq!(answer.code, 500, "{}", String::from_utf8_lossy(&answer.body));
    assert!(ask(&format!("GET {at} accept=application/yaml"), "").body.starts_with(b"apiVersion: v1\n"));
}

#[test]
fn what_is_not_served_is_refused() {
    check("GET /api/v1/namespaces/a/nothings", "", &["/reason"], "404 NotFound");
    check("GET /apis/none/v1/things", "", &["/reason"], "404 NotFound");
    check("POST /api/v1/pods", POD, &["/reason"], "405 MethodNotAllowed");
    check("GET /api/v1/namespaces/a/nodes", "", &["/reason"], "404 NotFound");
    check("DELETE /api/v1/namespaces", "", &["/reason"], "405 MethodNotAllowed");
    check("GET /api/v1/namespaces/a/pods/%2e%2e", "", &["/reason"], "404 NotFound");
    check("GET /api/v1/namespaces/a/pods/%00", "", &["/reason"], "400 BadRequest");
    check("GET /api/v1/pods accept=text/html", "", &["/reason"], "406 NotAcceptable");
    check("POST /api/v1/namespaces/a/configmaps type=text/plain", "{}", &["/reason"], "415 UnsupportedMediaType");
    let large = format!(r#"{{"metadata":{{"name":"big"}},"data":{{"a":"{}"}}}}"#, "x".repeat(3 << 20));
    check("POST /api/v1/namespaces/a/configmaps", &large, &["/reason"], "413 RequestEntityTooLarge");
    check("POST /api/v1/namespaces/a/configmaps", "{\"metadata\":", &["/reason"], "400 BadRequest");
}

#[test]
fn unknown_fields_warn_or_fail_as_asked() {
    let at = "/api/v1/namespaces/crud-fields/configmaps";
    let body = r#"{"metadata":{"name":"w"},"nope":1}"#;
    let warned = check(&format!("POST {at}"), body, &[], "201");
    assert!(warned.headers["warning"].to_str().is_ok_and(|text| text.contains("unknown field")));
    check(
        &format!("POST {at}?fieldValidation=Strict"),
        &body.replace("\"w\"", "\"v\""),
        &["/reason"],
        "400 BadRequest",
    );
    let ignored = check(&format!("POST {at}?fieldValidation=Ignore"), &body.replace("\"w\"", "\"u\""), &[], "201");
    assert!(!ignored.headers.contains_key("warning"));
}

#[test]
fn nobody_but_masters_passes_closed_hooks() {
    let user = UserInfo { name: "eve".into(), groups: vec!["system:authenticated".into()], ..UserInfo::default() };
    let request = super::request("GET /api/v1/namespaces/a/pods", "");
    let answer = super::harness().runtime.block_on(send_as(user, request));
    assert_eq!(
        (answer.code, answer.at("/message").as_str()),
        (403, "pods is forbidden: User \"eve\" cannot list resource \"pods\" in API group \"\" in the namespace \"a\"")
    );
}

#[test]
fn a_stale_fence_is_a_conflict() {
    let at = "/api/v1/namespaces/crud-fence/configmaps";
    check(&format!("POST {at} pintle-fence=999999"), &config_map("x"), &["/reason"], "409 Conflict");
    let term = super::harness().store.leadership().borrow().term;
    check(&format!("POST {at} pintle-fence={term}"), &config_map("x"), &["/metadata/name"], "201 x");
    check(&format!("POST {at} pintle-fence=x"), &config_map("y"), &["/reason"], "400 BadRequest");
}

/// Everything but one verb.
struct AllBut(&'static str);

impl Authorize for AllBut {
    fn authorize(&self, _: &UserInfo, info: &RequestInfo) -> Decision {
        if info.verb == self.0 { Decision::Deny { reason: "no".into() } } else { Decision::Allow }
    }
}

#[test]
fn who_may_not_create_does_not_create_by_update_or_apply() {
    let server = server_with(Hooks { authz: Arc::new(AllBut("create")), ..hooks::closed() });
    let joe = || UserInfo { name: "joe".into(), ..UserInfo::default() };
    let send =
        |line: &str, body: &str| harness().runtime.block_on(send_to(&server, joe(), request(line, body.to_owned())));
    let leases = "/apis/coordination.k8s.io/v1/namespaces/crud-verbs/leases";
    let lease = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"l"},"spec":{}}"#;
    let maps = "/api/v1/namespaces/crud-verbs/configmaps";
    let apply = "type=application/apply-patch+yaml";
    let why = |resource: &str, group: &str, name: &str| {
        let qualified = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        format!(
            "{qualified} {name:?} is forbidden: User \"joe\" cannot create resource {resource:?} in API group {group:?} \
             in the namespace \"crud-verbs\": no"
        )
    };
    for (line, body, message) in [
        (format!("PUT {leases}/l"), lease.to_owned(), why("leases", "coordination.k8s.io", "l")),
        (format!("PATCH {maps}/m?fieldManager=t {apply}"), config_map("m"), why("configmaps", "", "m")),
    ] {
        let refused = send(&line, &body);
        assert_eq!((refused.code, refused.at("/message")), (403, message), "{line}");
        // Who may create does so, and then the other may write.
        assert_eq!(ask(&line, &body).code, 201, "{line}");
        let written = || send(&line, &body).code;
        super::eventually("the object is known", || written() == 200);
    }
}

#[test]
fn a_stale_cache_does_not_answer_a_delete() {
    let at = "/api/v1/namespaces/crud-stale/configmaps";
    let held = r#"{"metadata":{"name":"h","finalizers":["example.com/hold"]}}"#;
    assert_eq!(ask(&format!("POST {at}"), held).code, 201);
    check(&format!("DELETE {at}/h"), "", &["/metadata/finalizers"], r#"200 ["example.com/hold"]"#);
    // A read is answered once the cache has what was written.
    check(&format!("GET {at}/h"), "", &["/metadata/finalizers"], r#"200 ["example.com/hold"]"#);
    let kind = pintle_api::kinds::by_gvk("", "v1", "ConfigMap").expect("served");
    let harness = harness();
    let cached = harness.server.ctx().cache.get(kind, "crud-stale", "h").expect("being deleted");
    let release = format!("PATCH {at}/h type=application/merge-patch+json");
    assert_eq!(ask(&release, r#"{"metadata":{"finalizers":null}}"#).code, 200);

    let behind = Registry::new(harness.store.clone(), Cache::stuck(cached.revision, vec![cached]));
    behind.install(hooks::closed());
    let (how, options) = (DeleteOptions::default(), WriteOptions::internal());
    for dry_run in [false, true] {
        let options = WriteOptions { dry_run, ..options.clone() };
        let deleted = harness.runtime.block_on(behind.delete(kind, "crud-stale", "h", &how, &options));
        assert_eq!(deleted.expect_err("gone").code, 404, "dry run: {dry_run}");
    }
}

#[test]
fn nothing_is_decided_before_the_cache_is_filled() {
    let server =
        crate::ApiServer::with_hooks(super::config(super::free_address()), harness().store.clone(), hooks::closed());
    let send =
        |line: &str, body: &str| harness().runtime.block_on(send_to(&server, admin(), request(line, body.to_owned())));
    for (line, body) in [
        ("GET /api/v1/namespaces/crud/configmaps/one", ""),
        ("POST /api/v1/namespaces/crud/configmaps", r#"{"metadata":{"name":"early"}}"#),
        ("GET /apis", ""),
    ] {
        let answer = send(line, body);
        let got =
            (answer.code, answer.at("/message"), answer.headers["retry-after"].to_str().expect("text").to_owned());
        assert_eq!(got, (429, "storage is (re)initializing".into(), "1".into()), "{line}");
    }
    assert_eq!(send("GET /livez", "").code, 200);
    assert_eq!(send("GET /readyz", "").code, 500);
}

#[test]
fn large_patches_are_bounded_in_work() {
    let at = "/api/v1/namespaces/crud-work/configmaps";
    let finalizers: Vec<String> = (0..20_000).map(|n| format!("\"example.com/f{n}\"")).collect();
    let held = format!(r#"{{"metadata":{{"name":"w","finalizers":[{}]}}}}"#, finalizers.join(","));
    assert_eq!(ask(&format!("POST {at}"), &held).code, 201);
    let operations = vec![r#"{"op":"move","from":"/metadata/finalizers/0","path":"/metadata/finalizers/-"}"#; 4_000];
    let line = format!("PATCH {at}/w type=application/json-patch+json");
    check(&line, &format!("[{}]", operations.join(",")), &["/reason"], "413 RequestEntityTooLarge");
    let few = format!("[{}]", operations[..10].join(","));
    check(&line, &few, &["/metadata/finalizers/19999"], "200 example.com/f9");
}
