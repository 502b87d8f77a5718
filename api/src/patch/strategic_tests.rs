//! Strategic merge patch on the shapes that kubectl sends.

use serde_json::{Value, json};

use super::strategic;
use crate::schema;

#[track_caller]
fn check_as(message: &str, document: Value, patch: Value, want: Value) {
    let schema = schema::message(message);
    assert!(schema.is_some(), "{message}");
    let got = strategic(document, &patch, schema).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(got, want);
    // Order of lists counts; order of keys does not, so compare the lists' text too.
    assert_eq!(sorted(&got).to_string(), sorted(&want).to_string());
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut keys: Vec<_> = object.keys().collect();
            keys.sort_unstable();
            Value::Object(keys.into_iter().map(|key| (key.clone(), sorted(&object[key]))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

#[track_caller]
fn check_pod(document: Value, patch: Value, want: Value) {
    check_as("core.v1.PodSpec", document, patch, want);
}

#[track_caller]
fn refused(document: Value, patch: Value, want: &str) {
    let error = strategic(document, &patch, schema::message("core.v1.PodSpec")).expect_err("refused").to_string();
    assert!(error.contains(want), "{error}");
}

#[test]
fn lists_with_a_merge_key_merge_by_it() {
    check_pod(
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
        json!({"containers": [{"name": "b", "image": "2"}]}),
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}),
    );
    // A new element is put before the ones it does not know.
    check_pod(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"name": "b", "image": "x"}]}),
        json!({"containers": [{"name": "b", "image": "x"}, {"name": "a"}]}),
    );
    check_pod(
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}], "ports": [{"containerPort": 80}]}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": null, "valueFrom": {"fieldRef": {"fieldPath": "f"}}}],
                               "ports": [{"containerPort": 80, "name": "http"}]}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "f"}}}],
                               "ports": [{"containerPort": 80, "name": "http"}]}]}),
    );
}

#[test]
fn set_image_orders_elements() {
    check_as(
        "apps.v1.Deployment",
        json!({"spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}}}}),
        json!({"spec": {"template": {"spec": {"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
                                             "containers": [{"name": "b", "image": "2"}]}}}}),
        json!({"spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}}}}),
    );
    check_pod(
        json!({"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
        json!({"containers": [{"name": "server"}, {"name": "b"}, {"name": "a"}]}),
    );
    check_pod(
        json!({"containers": [{"name": "1"}, {"name": "2"}, {"name": "3"}]}),
        json!({"$setElementOrder/containers": [{"name": "1"}, {"name": "4"}, {"name": "3"}], "containers": [{"name": "4", "image": "x"}, {"name": "2", "$patch": "delete"}]}),
        json!({"containers": [{"name": "1"}, {"name": "4", "image": "x"}, {"name": "3"}]}),
    );
}

#[test]
fn elements_are_deleted_by_directive() {
    check_pod(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b"}]}),
    );
    check_pod(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
        json!({"containers": [{"name": "c"}]}),
    );
    // Deleting what is not there changes nothing.
    check_pod(json!({}), json!({"containers": [{"name": "a", "$patch": "delete"}]}), json!({"containers": []}));
}

#[test]
fn maps_are_replaced_or_deleted_by_directive() {
    check_pod(
        json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
        json!({"securityContext": {"$patch": "replace", "runAsUser": 3}}),
        json!({"securityContext": {"runAsUser": 3}}),
    );
    check_pod(
        json!({"securityContext": {"runAsUser": 1}}),
        json!({"securityContext": {"$patch": "delete"}}),
        json!({"securityContext": {}}),
    );
    check_pod(json!({}), json!({"securityContext": {"$patch": "delete"}}), json!({}));
}

#[test]
fn null_deletes_and_unmatched_nulls_vanish() {
    check_pod(
        json!({"nodeName": "n", "nodeSelector": {"a": "1", "b": "2"}}),
        json!({"nodeName": null, "nodeSelector": {"a": null}, "hostname": null}),
        json!({"nodeSelector": {"b": "2"}}),
    );
    check_pod(
        json!({}),
        json!({"affinity": {"nodeAffinity": null, "podAffinity": {}}}),
        json!({"affinity": {"podAffinity": {}}}),
    );
}

#[test]
fn retain_keys_drops_the_others() {
    check_as(
        "apps.v1.DeploymentSpec",
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
        json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        json!({"strategy": {"type": "Recreate"}}),
    );
    check_pod(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"$setElementOrder/volumes": [{"name": "v"}], "volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
    );
    refused(json!({}), json!({"$retainKeys": ["a"], "b": 1}), "invalid patch format of retainKeys");
}

#[test]
fn primitive_lists() {
    check_as(
        "core.v1.Pod",
        json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["c", "a", "d"], "finalizers": ["d"]}}),
        json!({"metadata": {"finalizers": ["c", "a", "d"]}}),
    );
    check_as(
        "core.v1.Pod",
        json!({"metadata": {"finalizers": ["a", "b"]}}),
        json!({"metadata": {"finalizers": ["b", "c"]}}),
        json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
    );
    // Lists without a strategy are replaced.
    check_pod(
        json!({"containers": [{"name": "a", "args": ["x", "y"]}]}),
        json!({"containers": [{"name": "a", "args": ["z"]}]}),
        json!({"containers": [{"name": "a", "args": ["z"]}]}),
    );
    check_pod(
        json!({"tolerations": [{"key": "a"}]}),
        json!({"tolerations": [{"key": "b"}]}),
        json!({"tolerations": [{"key": "b"}]}),
    );
}

#[test]
fn status_conditions_merge_by_type() {
    check_as(
        "core.v1.Node",
        json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}],
                          "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}]}}),
        json!({"status": {"$setElementOrder/conditions": [{"type": "DiskPressure"}, {"type": "Ready"}],
                          "conditions": [{"type": "Ready", "status": "False"}]}}),
        json!({"status": {"conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "False"}],
                          "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}]}}),
    );
}

#[test]
fn bad_patches() {
    refused(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"image": "x"}]}),
        "map: map[image:x] does not contain declared merge key: name",
    );
    refused(json!({}), json!({"$patch": "explode"}), "unknown patch type: explode in map: map[]");
    refused(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"name": "a", "$patch": "merge"}]}),
        "merging lists cannot yet",
    );
    refused(
        json!({"containers": []}),
        json!({"$setElementOrder/containers": "x"}),
        "expected a list, but received a string",
    );
    refused(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}], "containers": [{"name": "b", "image": "1"}, {"name": "a", "image": "1"}]}),
        "doesn't match $setElementOrder list",
    );
    assert!(strategic(json!({}), &json!([1]), None).is_err());
}

#[test]
fn unknown_fields_merge_as_maps_and_replace_as_lists() {
    check_pod(
        json!({"later": {"a": 1, "l": [1]}}),
        json!({"later": {"b": 2, "l": [2]}}),
        json!({"later": {"a": 1, "b": 2, "l": [2]}}),
    );
    check_pod(json!({"nodeSelector": {"a": "1"}}), json!({"nodeSelector": "x"}), json!({"nodeSelector": "x"}));
}
