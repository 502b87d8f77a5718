//! Behaviour of the codec as a whole. Byte-exactness against upstream's golden files: `api/tests/golden.rs`.

use serde_json::json;

use super::*;

fn kind(group: &str, version: &str, kind: &str) -> &'static Kind {
    kinds::by_gvk(group, version, kind).unwrap()
}

fn strict(kind: &Kind, body: &str) -> Result<Decoded, String> {
    decode(kind, None, body.as_bytes(), FieldValidation::Strict).map_err(|status| status.message)
}

#[track_caller]
fn refused(kind: &Kind, body: &str, want: &str) {
    assert_eq!(strict(kind, body).unwrap_err(), want);
}

#[test]
fn unknown_and_duplicate_fields_are_named_in_document_order() {
    let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},"unknown1":1,"spec":{
        "unknown1":"v","unknownDupe":"v","unknownDupe":"v","paused":true,"paused":false,
        "template":{"spec":{"containers":[{"name":"n","unknownNested":1,"imagePullPolicy":"Always","imagePullPolicy":"Never"}]}}}}"#;
    refused(
        kind("apps", "v1", "Deployment"),
        body,
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"unknown1\", \
         unknown field \"spec.unknown1\", unknown field \"spec.unknownDupe\", duplicate field \"spec.paused\", \
         unknown field \"spec.template.spec.containers[0].unknownNested\", \
         duplicate field \"spec.template.spec.containers[0].imagePullPolicy\"",
    );
    let deployment = kind("apps", "v1", "Deployment");
    let warned = decode(deployment, Some(JSON), body.as_bytes(), FieldValidation::Warn).unwrap();
    assert_eq!((warned.warnings.len(), warned.warnings[0].as_str()), (6, "unknown field \"unknown1\""));
    let ignored = decode(deployment, Some(JSON), body.as_bytes(), FieldValidation::Ignore).unwrap();
    assert!(ignored.warnings.is_empty() && ignored.object["spec"].get("unknown1").is_none());
}

#[test]
fn wrong_types_are_named_as_go_names_them() {
    refused(
        kind("apps", "v1", "Deployment"),
        r#"{"spec":{"replicas":"3"}}"#,
        "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field \
         DeploymentSpec.spec.replicas of type int32",
    );
    let pod = |spec: &str| strict(kind("", "v1", "Pod"), &format!("{{\"spec\":{spec}}}")).unwrap_err();
    let go = |what: &str| format!("Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal {what}");
    assert_eq!(
        pod(r#"{"containers":{}}"#),
        go("object into Go struct field PodSpec.spec.containers of type []v1.Container")
    );
    assert_eq!(
        pod(r#"{"containers":[{"image":1}]}"#),
        go("number into Go struct field Container.spec.containers.image of type string")
    );
    assert_eq!(
        pod(r#"{"restartPolicy":1}"#),
        go("number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy")
    );
    assert_eq!(
        pod(r#"{"nodeSelector":{"a":true}}"#),
        go("bool into Go struct field PodSpec.spec.nodeSelector.a of type string")
    );
    assert_eq!(pod(r#"{"priority":1.5}"#), go("number 1.5 into Go struct field PodSpec.spec.priority of type int32"));
    assert!(pod(r#"{"priority":3000000000}"#).contains("number 3000000000 into"));
}

#[test]
fn the_wrong_kind_or_version_is_refused() {
    let pod = kind("", "v1", "Pod");
    refused(
        pod,
        r#"{"kind":"Service","apiVersion":"v1"}"#,
        "Service in version \"v1\" cannot be handled as a Pod: converting (v1.Service) to (core.Pod): unknown conversion",
    );
    refused(
        pod,
        r#"{"kind":"Foo","apiVersion":"v1"}"#,
        "Foo in version \"v1\" cannot be handled as a Pod: no kind \"Foo\" is registered for version \"v1\" in scheme \
         \"pkg/api/legacyscheme/scheme.go:30\"",
    );
    refused(
        kind("autoscaling", "v2", "HorizontalPodAutoscaler"),
        r#"{"kind":"HorizontalPodAutoscaler","apiVersion":"autoscaling/v1"}"#,
        "the API version in the data (autoscaling/v1) does not match the expected API version (autoscaling/v2)",
    );
    refused(pod, r#"{"kind":"Pod","apiVersion":"a/b/c"}"#, "unexpected GroupVersion string: a/b/c");
    let options =
        strict(kind("meta.k8s.io", "v1", "DeleteOptions"), r#"{"kind":"DeleteOptions","apiVersion":"policy/v1"}"#);
    assert_eq!(options.unwrap().object["apiVersion"], "policy/v1");
}

#[test]
fn broken_bodies_are_refused_with_an_excerpt() {
    let pod = kind("", "v1", "Pod");
    let start = "the object provided is unrecognized (must be of type Pod): ";
    refused(
        pod,
        "",
        &format!("{start}couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)"),
    );
    refused(
        pod,
        "{",
        &format!("{start}couldn't get version/kind; json parse error: unexpected end of JSON input ({{)"),
    );
    let status = decode(pod, Some("text/plain"), b"{}", FieldValidation::Warn).unwrap_err();
    assert_eq!(status.code, 415);
    let status = decode(pod, Some(PROTOBUF), b"{}", FieldValidation::Warn).unwrap_err();
    assert!(status.message.contains("expected prefix 6b387300 ({})"), "{}", status.message);
    let status = decode(pod, None, &vec![b' '; limits::BODY_BYTES_MAX + 1], FieldValidation::Warn).unwrap_err();
    assert_eq!(status.code, 413);
}

#[test]
fn trees_settle_into_gos_form() {
    let body = json!({"spec": {"template": {"spec": {"containers": [{"image": "i", "name": "n", "resources": {"limits": {"cpu": "1000m"}},
        "env": [], "tty": false, "livenessProbe": {"periodSeconds": 0, "httpGet": {"port": 80}}}]}}, "replicas": 0, "selector": null},
        "metadata": {"labels": {"b": "1", "a": "2"}, "creationTimestamp": null}});
    let got = conform(kind("apps", "v1", "Deployment"), body, FieldValidation::Strict).unwrap().object;
    let want = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"labels": {"a": "2", "b": "1"}},
        "spec": {"replicas": 0, "template": {"metadata": {}, "spec": {"containers": [{"name": "n", "image": "i",
        "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": 80}}}]}}, "strategy": {}}, "status": {}});
    assert_eq!(serde_json::to_string(&got).unwrap(), serde_json::to_string(&want).unwrap());
    let again = conform(kind("apps", "v1", "Deployment"), got.clone(), FieldValidation::Strict).unwrap().object;
    assert_eq!(again, got);
    let pb = encode_protobuf(kind("apps", "v1", "Deployment"), &got);
    assert_eq!(decode_any_protobuf(&pb).unwrap(), got);
}

#[test]
fn yaml_is_json_by_other_means() {
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x: |\n    line\n  y: \"1\"\n";
    let config = kind("", "v1", "ConfigMap");
    let got = decode(config, Some(YAML), body.as_bytes(), FieldValidation::Strict).unwrap().object;
    assert_eq!(got["data"], json!({"x": "line\n", "y": "1"}));
    let text = encode_yaml(&got);
    assert_eq!(decode(config, Some(YAML), &text, FieldValidation::Strict).unwrap().object, got);
    let number = decode(config, Some(YAML), b"data: {y: 1}", FieldValidation::Strict).unwrap_err();
    assert!(
        number.message.contains("cannot unmarshal number into Go struct field ConfigMap.data"),
        "{}",
        number.message
    );
}

#[test]
fn secrets_hold_base64_and_raw_extensions_hold_anything() {
    let secret = kind("", "v1", "Secret");
    let got = strict(secret, r#"{"data":{"a":"aGk=","b":null}}"#).unwrap().object;
    assert_eq!(decode_any_protobuf(&encode_protobuf(secret, &got)).unwrap()["data"]["a"], "aGk=");
    assert!(strict(secret, r#"{"data":{"a":"%%%"}}"#).unwrap_err().ends_with("illegal base64 data at input byte 0"));
    let revision = kind("apps", "v1", "ControllerRevision");
    let got = strict(revision, r#"{"data":{"z":[1,{"y":null}],"a":1.5},"revision":1}"#).unwrap().object;
    let back = decode_any_protobuf(&encode_protobuf(revision, &got)).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), serde_json::to_string(&got).unwrap());
}

#[test]
fn lists_and_status_have_protobuf_forms() {
    let pod = kind("", "v1", "Pod");
    let object = strict(pod, r#"{"metadata":{"name":"a"}}"#).unwrap().object;
    let bare = encode_bare(pod, &object);
    let list = list_protobuf(pod, &json!({"resourceVersion": "7"}), [bare.as_slice(), bare.as_slice()].into_iter());
    let tree = decode_any_protobuf(&list).unwrap();
    assert_eq!((&tree["kind"], &tree["metadata"]["resourceVersion"]), (&json!("PodList"), &json!("7")));
    assert_eq!(tree["items"].as_array().unwrap().len(), 2);
    assert_eq!(encode_any_protobuf(&tree).unwrap(), list);
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404});
    assert_eq!(decode_any_protobuf(&encode_any_protobuf(&status).unwrap()).unwrap(), status);
    assert!(encode_any_protobuf(&json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1"})).is_none());
}

#[test]
fn watch_frames_carry_the_object() {
    assert_eq!(&watch_frame_json("ADDED", b"{}")[..], b"{\"type\":\"ADDED\",\"object\":{}}\n");
    let frame = watch_frame_protobuf("ADDED", b"k8s\0");
    assert_eq!(&frame[..], b"\0\0\0\x0f\x0a\x05ADDED\x12\x06\x0a\x04k8s\0");
}

#[test]
fn tiny_bodies_cannot_become_huge_trees() {
    // Each two-byte container would settle into an object of its own.
    let mut containers = Vec::new();
    for _ in 0..limits::VALUES_MAX + 1 {
        containers.extend([0x12, 0x00]);
    }
    let spec = {
        let mut w = wire::Writer::default();
        w.bytes_field(2, &containers);
        w.finish()
    };
    let body = envelope::seal("v1", "Pod", &spec);
    assert!(decode(kind("", "v1", "Pod"), Some(PROTOBUF), &body, FieldValidation::Warn).is_err());
}

#[test]
fn answers_do_not_echo_whole_bodies() {
    let long = "x".repeat(1 << 20);
    for body in [
        format!(r#"{{"kind":"{long}"}}"#),
        format!(r#"{{"apiVersion":"{long}"}}"#),
        format!(r#"{{"apiVersion":"a/b/{long}"}}"#),
        format!(r#"{{"metadata":{{"creationTimestamp":"{long}"}}}}"#),
        format!(r#"{{"metadata":{{"labels":{{"{long}":1}}}}}}"#),
        format!(r#"{{"{long}":1}}"#),
    ] {
        let refused = strict(kind("", "v1", "Pod"), &body).unwrap_err();
        assert!(refused.len() < 2 * limits::MESSAGE_BYTES_MAX, "{}", refused.len());
    }
    let tree = parse(Encoding::Yaml, format!("{{a: [{long}").as_bytes()).unwrap_err();
    assert!(tree.message.len() < 2 * limits::MESSAGE_BYTES_MAX);
}

#[test]
fn deep_trees_from_patches_are_refused() {
    let mut schema = json!({"type": "string"});
    for _ in 0..limits::DEPTH_MAX {
        schema = json!({"properties": {"a": schema}});
    }
    let tree = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}});
    let crd = kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let refused = conform(crd, tree, FieldValidation::Ignore).unwrap_err();
    assert!(refused.message.ends_with("nested more than 128 levels deep"), "{}", refused.message);
    let mut free = json!(1);
    for _ in 0..limits::DEPTH_MAX {
        free = json!([free]);
    }
    assert!(!is_deeper_than(&free, limits::DEPTH_MAX) && is_deeper_than(&free, limits::DEPTH_MAX - 1));
    let revision = kind("apps", "v1", "ControllerRevision");
    assert!(conform(revision, json!({"data": free}), FieldValidation::Ignore).is_err(), "free-form parts count too");
}

/// No golden file covers these two groups, so that what can be checked is that nothing is lost.
#[test]
fn definitions_and_services_of_apis_survive_protobuf() {
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "array", "items": {"type": "string", "default": "x", "enum": ["x", 1, null]}},
        "b": {"items": [{"type": "string"}, {"type": "integer", "maximum": 1.5}]},
        "c": {"additionalProperties": false}, "d": {"additionalProperties": {"type": "string"}},
        "e": {"additionalProperties": true, "x-kubernetes-preserve-unknown-fields": true},
        "f": {"dependencies": {"g": ["h", "i"], "j": {"type": "string"}}, "$ref": "#/x", "not": {"pattern": "y"}},
        "k": {"x-kubernetes-validations": [{"rule": "self > 1", "message": "m"}], "x-kubernetes-int-or-string": true}}});
    let crd = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "a.b"},
        "spec": {"group": "b", "names": {"plural": "a", "kind": "A"}, "scope": "Namespaced", "versions": [
            {"name": "v1", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}]}});
    let service = json!({"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1", "metadata": {"name": "v1.b"},
        "spec": {"service": {"namespace": "n", "name": "s", "port": 443}, "group": "b", "version": "v1", "caBundle": "aGk=",
        "groupPriorityMinimum": 100, "versionPriority": 15}});
    for object in [crd, service] {
        let name = object["kind"].as_str().unwrap().to_owned();
        let group = object["apiVersion"].as_str().unwrap().split('/').next().unwrap().to_owned();
        let kind = kind(&group, "v1", &name);
        let json = conform(kind, object.clone(), FieldValidation::Strict).unwrap().object;
        for (pointer, value) in [("/spec/group", json!("b")), ("/metadata", object["metadata"].clone())] {
            assert_eq!(json.pointer(pointer), Some(&value));
        }
        let back = decode_any_protobuf(&encode_protobuf(kind, &json)).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), serde_json::to_string(&json).unwrap());
        if name == "CustomResourceDefinition" {
            let kept = json.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
            assert_eq!(kept, &object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
        }
    }
}
