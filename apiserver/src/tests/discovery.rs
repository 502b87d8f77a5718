//! Discovery, OpenAPI, health, version.

use super::{ask, check};

const V2: &str = "accept=application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
const V2BETA1: &str =
    "accept=application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

#[test]
fn aggregated_discovery_is_the_version_asked_for() {
    check(
        &format!("GET /apis {V2}"),
        "",
        &["/kind", "/apiVersion"],
        "200 APIGroupDiscoveryList apidiscovery.k8s.io/v2",
    );
    check(
        &format!("GET /api {V2BETA1}"),
        "",
        &["/kind", "/apiVersion"],
        "200 APIGroupDiscoveryList apidiscovery.k8s.io/v2beta1",
    );
    let first = ask(&format!("GET /apis {V2}"), "");
    let tag = first.headers["etag"].to_str().expect("tag").to_owned();
    let again = ask(&format!("GET /apis {V2} if-none-match={tag}"), "");
    assert_eq!((again.code, again.body.len()), (304, 0));
}

#[test]
fn plain_discovery_is_the_fallback() {
    check("GET /api", "", &["/kind", "/versions/0"], "200 APIVersions v1");
    check("GET /apis", "", &["/kind"], "200 APIGroupList");
    check("GET /apis/apps", "", &["/kind", "/preferredVersion/groupVersion"], "200 APIGroup apps/v1");
    check("GET /apis/apps/v1/", "", &["/kind", "/groupVersion"], "200 APIResourceList apps/v1");
    check("GET /api/v1", "", &["/kind"], "200 APIResourceList");
    check("GET /apis/none", "", &["/reason"], "404 NotFound");
}

#[test]
fn openapi_is_found_by_its_hash() {
    let index = check("GET /openapi/v3", "", &[], "200");
    let url = index.json()["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("url").to_owned();
    let document = check(&format!("GET {url}"), "", &["/openapi"], "200 3.0.0");
    let tag = document.headers["etag"].to_str().expect("tag").to_owned();
    assert!(url.ends_with(tag.trim_matches('"')));
    assert_eq!(ask(&format!("GET {url} if-none-match={tag}"), "").code, 304);
    check("GET /openapi/v2", "", &["/swagger"], "200 2.0");
    let protobuf = "accept=application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    assert_eq!(ask(&format!("GET /openapi/v2 {protobuf}"), "").code, 200);
    check("GET /openapi/v3/apis/none/v1", "", &["/reason"], "404 NotFound");
}

#[test]
fn health_and_version_answer() {
    for path in ["/healthz", "/livez", "/readyz", "/readyz/etcd"] {
        assert_eq!(&ask(&format!("GET {path}"), "").body[..], b"ok", "{path}");
    }
    let verbose = ask("GET /readyz?verbose", "");
    assert!(String::from_utf8_lossy(&verbose.body).contains("[+]etcd ok\n"));
    check("GET /version/", "", &["/major", "/minor", "/gitVersion"], "200 1 36 v1.36.0+pintle.0.1.0");
    let metrics = ask("GET /metrics", "");
    assert!(String::from_utf8_lossy(&metrics.body).contains("apiserver_request_total{"));
}
