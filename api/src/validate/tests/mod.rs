//! Rules by kind: a good object is changed by a merge patch, and the errors that follow are listed.

mod pods;

use serde_json::{Value, json};

use super::{create, update, update_status};
use crate::kinds::{self, Kind};
use crate::status::FieldError;
use crate::{defaults, patch, strategy};

fn kind(group: &str, kind: &str) -> &'static Kind {
    kinds::by_gvk(group, "v1", kind).expect("known kind")
}

fn good(kind: &Kind) -> Value {
    let template =
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "web"}});
    let mut object = match kind.kind {
        "Pod" => json!({"spec": template["spec"]}),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => {
            json!({"spec": {"selector": selector, "template": template}})
        }
        "ReplicationController" => json!({"spec": {"template": template}}),
        "Job" => {
            let mut object = json!({"spec": {"selector": selector, "template": template}});
            object["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
            object["spec"]["manualSelector"] = json!(true);
            object
        }
        "CronJob" => {
            let mut object =
                json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": template}}}});
            object["spec"]["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
            object
        }
        "Service" => {
            json!({"spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "selector": {"app": "web"}, "ports": [{"port": 80}]}})
        }
        "Endpoints" => json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        "EndpointSlice" => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]})
        }
        "RoleBinding" => json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
        "Role" => json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
        "Event" => json!({"involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}}),
        "PersistentVolumeClaim" => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
        }
        "Ingress" => json!({"spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}}),
        _ => json!({}),
    };
    object["metadata"] = json!({"name": "web", "uid": "u-1", "resourceVersion": "1"});
    if kind.namespaced {
        object["metadata"]["namespace"] = json!("default");
    }
    defaults::apply(kind, &mut object);
    object
}

fn with(kind: &Kind, change: &Value) -> Value {
    patch::merge(good(kind), change).expect("merge patch")
}

#[track_caller]
fn compare(errors: Vec<FieldError>, want: &[&str]) {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), want.len(), "{texts:#?}");
    for (text, want) in texts.iter().zip(want) {
        assert!(text.contains(want), "{text:?} has no {want:?}");
    }
}

/// The errors of creating a good object with `change` merged into it.
#[track_caller]
fn check(group: &str, of: &str, change: Value, want: &[&str]) {
    let kind = kind(group, of);
    compare(create(kind, &with(kind, &change)), want);
}

/// The errors of updating a good object by merging `change` into it.
#[track_caller]
fn check_update(group: &str, of: &str, change: Value, want: &[&str]) {
    let kind = kind(group, of);
    compare(update(kind, &with(kind, &change), &good(kind)), want);
}

#[test]
fn good_objects_are_good() {
    for (group, of) in [
        ("", "Pod"),
        ("", "Service"),
        ("", "Endpoints"),
        ("", "ConfigMap"),
        ("", "Secret"),
        ("", "ServiceAccount"),
        ("", "Event"),
        ("", "Namespace"),
        ("", "Node"),
        ("", "ReplicationController"),
        ("apps", "ReplicaSet"),
        ("apps", "Deployment"),
        ("apps", "DaemonSet"),
        ("apps", "StatefulSet"),
        ("batch", "Job"),
        ("batch", "CronJob"),
        ("discovery.k8s.io", "EndpointSlice"),
        ("coordination.k8s.io", "Lease"),
        ("rbac.authorization.k8s.io", "Role"),
        ("rbac.authorization.k8s.io", "RoleBinding"),
        ("", "PersistentVolumeClaim"),
        ("networking.k8s.io", "Ingress"),
    ] {
        check(group, of, json!({}), &[]);
        check_update(group, of, json!({}), &[]);
    }
}

#[test]
fn metadata() {
    check(
        "",
        "ConfigMap",
        json!({"metadata": {"name": "A_b"}}),
        &["metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain"],
    );
    check(
        "",
        "ConfigMap",
        json!({"metadata": {"name": null}}),
        &["metadata.name: Required value: name or generateName is required"],
    );
    check("", "ConfigMap", json!({"metadata": {"namespace": null}}), &["metadata.namespace: Required value"]);
    check(
        "",
        "Namespace",
        json!({"metadata": {"namespace": "x"}}),
        &["metadata.namespace: Forbidden: not allowed on this type"],
    );
    check("", "Namespace", json!({"metadata": {"name": "a.b"}}), &["must not contain dots"]);
    check(
        "",
        "ConfigMap",
        json!({"metadata": {"labels": {"-a": "b c"}}}),
        &[
            "metadata.labels: Invalid value: \"-a\": name part",
            "metadata.labels: Invalid value: \"b c\": a valid label",
        ],
    );
    check(
        "",
        "ConfigMap",
        json!({"metadata": {"annotations": {"a": "x".repeat(300_000)}}}),
        &["metadata.annotations: Too long: may not be more than 262144 bytes"],
    );
    check(
        "",
        "ConfigMap",
        json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]}}),
        &["metadata.ownerReferences[0].uid: Required value: must not be empty"],
    );
    check(
        "",
        "ConfigMap",
        json!({"metadata": {"finalizers": ["orphan", "foregroundDeletion"]}}),
        &["finalizer orphan and foregroundDeletion cannot be both set"],
    );
    check_update(
        "",
        "ConfigMap",
        json!({"metadata": {"name": "other"}}),
        &["metadata.name: Invalid value: \"other\": field is immutable"],
    );
    check_update(
        "",
        "ConfigMap",
        json!({"metadata": {"uid": "u-2"}}),
        &["metadata.uid: Invalid value: \"u-2\": field is immutable"],
    );
    check_update(
        "",
        "ConfigMap",
        json!({"metadata": {"resourceVersion": null}}),
        &["metadata.resourceVersion: Invalid value: \"\": must be specified for an update"],
    );
    let of = kind("", "ConfigMap");
    let deleting =
        with(of, &json!({"metadata": {"deletionTimestamp": "2026-11-20T10:00:00Z", "finalizers": ["a.b/c"]}}));
    let more = patch::merge(deleting.clone(), &json!({"metadata": {"finalizers": ["a.b/c", "a.b/d"]}})).expect("patch");
    compare(
        update(of, &more, &deleting),
        &[
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"a.b/d\"}",
        ],
    );
}

#[test]
fn workloads() {
    check(
        "apps",
        "Deployment",
        json!({"spec": {"selector": {"matchLabels": {"app": "other"}}}}),
        &[
            "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
        ],
    );
    check("apps", "Deployment", json!({"spec": {"selector": null}}), &["spec.selector: Required value"]);
    check(
        "apps",
        "Deployment",
        json!({"spec": {"selector": {"matchLabels": null}}}),
        &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
    );
    check(
        "apps",
        "Deployment",
        json!({"spec": {"replicas": -1}}),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    check(
        "apps",
        "Deployment",
        json!({"spec": {"strategy": {"type": "Recreate"}}}),
        &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
    );
    check(
        "apps",
        "Deployment",
        json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}}),
        &["may not be 0 when `maxSurge` is 0"],
    );
    check(
        "apps",
        "Deployment",
        json!({"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": "150%"}}}}),
        &["must not be greater than 100%"],
    );
    check(
        "apps",
        "Deployment",
        json!({"spec": {"template": {"spec": {"restartPolicy": "Never"}}}}),
        &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
    );
    check(
        "apps",
        "Deployment",
        json!({"spec": {"progressDeadlineSeconds": 5, "minReadySeconds": 5}}),
        &["must be greater than minReadySeconds"],
    );
    check_update(
        "apps",
        "Deployment",
        json!({"spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": {"labels": {"app": "x"}}}}}),
        &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"],
    );
    check(
        "",
        "ReplicationController",
        json!({"spec": {"selector": {"a": "b"}}}),
        &["`selector` does not match template `labels`"],
    );
    check("", "ReplicationController", json!({"spec": {"selector": null}}), &["spec.selector: Required value"]);
    check_update(
        "apps",
        "StatefulSet",
        json!({"spec": {"serviceName": "x"}}),
        &["updates to statefulset spec for fields other than"],
    );
    check_update("apps", "StatefulSet", json!({"spec": {"replicas": 3}}), &[]);
    let deployment = kind("apps", "Deployment");
    compare(
        update_status(
            deployment,
            &with(deployment, &json!({"status": {"replicas": 1, "readyReplicas": 2}})),
            &good(deployment),
        ),
        &["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"],
    );
}

#[test]
fn jobs() {
    check(
        "batch",
        "Job",
        json!({"spec": {"template": {"spec": {"restartPolicy": "Always"}}}}),
        &["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""],
    );
    check_update(
        "batch",
        "Job",
        json!({"spec": {"template": {"spec": {"hostname": "x"}}}}),
        &["spec.template: Invalid value"],
    );
    check("batch", "CronJob", json!({"spec": {"schedule": "* * *"}}), &["expected exactly 5 fields, found 3"]);
    check("batch", "CronJob", json!({"spec": {"schedule": "0 25 * * *"}}), &["spec.schedule: Invalid value"]);
    check("batch", "CronJob", json!({"spec": {"schedule": "0 0-8/2 1,15 jan-mar MON"}}), &[]);
    check("batch", "CronJob", json!({"metadata": {"name": "x".repeat(60)}}), &["must be no more than 52 characters"]);
}

#[test]
fn services() {
    check("", "Service", json!({"spec": {"ports": []}}), &["spec.ports: Required value"]);
    let port =
        |fields: Value| patch::merge(json!({"port": 80, "targetPort": 80, "protocol": "TCP"}), &fields).expect("patch");
    check(
        "",
        "Service",
        json!({"spec": {"ports": [port(json!({})), port(json!({"port": 81}))]}}),
        &["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"],
    );
    check(
        "",
        "Service",
        json!({"spec": {"ports": [port(json!({"name": "a"})), port(json!({"name": "b"}))]}}),
        &["spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\""],
    );
    check(
        "",
        "Service",
        json!({"spec": {"ports": [port(json!({"nodePort": 30000}))]}}),
        &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
    );
    check(
        "",
        "Service",
        json!({"spec": {"ports": [port(json!({"targetPort": "Http_"}))]}}),
        &["spec.ports[0].targetPort: Invalid value: \"Http_\": must contain only alpha-numeric"],
    );
    check(
        "",
        "Service",
        json!({"spec": {"type": "Magic"}}),
        &[
            "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ],
    );
    check("", "Service", json!({"spec": {"sessionAffinity": "X"}}), &["spec.sessionAffinity: Unsupported value"]);
    check(
        "",
        "Service",
        json!({"spec": {"clusterIP": "10.96.0.9"}}),
        &["spec.clusterIPs: Invalid value: [\"10.96.0.7\"]: first value must match `clusterIP`"],
    );
    check(
        "",
        "Service",
        json!({"spec": {"externalIPs": ["127.0.0.1"]}}),
        &["may not be in the loopback range", "externalTrafficPolicy: Required value"],
    );
    check_update(
        "",
        "Service",
        json!({"spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}}),
        &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.9\"]: may not change once set"],
    );
    check("", "Service", json!({"metadata": {"name": "a.b"}}), &["must not contain dots"]);
}

#[test]
fn endpoints_and_slices() {
    check(
        "",
        "Endpoints",
        json!({"subsets": [{}]}),
        &["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"],
    );
    check(
        "",
        "Endpoints",
        json!({"subsets": [{"addresses": [{"ip": "127.0.0.1"}]}]}),
        &["subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range"],
    );
    check("discovery.k8s.io", "EndpointSlice", json!({"addressType": null}), &["addressType: Required value"]);
    check(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"endpoints": [{"addresses": []}]}),
        &["endpoints[0].addresses: Required value: must contain at least 1 address"],
    );
    check(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"endpoints": vec![json!({"addresses": ["10.0.0.1"]}); 1001]}),
        &["endpoints: Too many: 1001: must have at most 1000 items"],
    );
    check_update(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"addressType": "IPv6", "endpoints": []}),
        &["addressType: Invalid value: \"IPv6\": field is immutable"],
    );
}

#[test]
fn configuration() {
    check("", "ConfigMap", json!({"data": {"a/b": "c"}}), &["data[a/b]: Invalid value: \"a/b\": a valid config key"]);
    check(
        "",
        "ConfigMap",
        json!({"data": {"a": "x".repeat(1_100_000)}}),
        &["Too long: may not be more than 1048576 bytes"],
    );
    let of = kind("", "ConfigMap");
    let old = with(of, &json!({"immutable": true, "data": {"a": "1"}}));
    let new = with(of, &json!({"immutable": true, "data": {"a": "2"}}));
    compare(update(of, &new, &old), &["data: Forbidden: field is immutable when `immutable` is set"]);
    check(
        "",
        "Secret",
        json!({"type": "kubernetes.io/tls"}),
        &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
    );
    check(
        "",
        "Secret",
        json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "bm90IGpzb24="}}),
        &["<secret contents redacted>"],
    );
    check_update("", "Secret", json!({"type": "other"}), &["type: Invalid value: \"other\": field is immutable"]);
    check(
        "",
        "Event",
        json!({"involvedObject": {"namespace": "x"}}),
        &["involvedObject.namespace: Invalid value: \"x\": does not match event.namespace"],
    );
    check(
        "coordination.k8s.io",
        "Lease",
        json!({"spec": {"leaseDurationSeconds": 0}}),
        &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
    );
}

#[test]
fn nodes() {
    check(
        "",
        "Node",
        json!({"spec": {"taints": [{"key": "a", "effect": "X"}]}}),
        &["spec.taints[0].effect: Unsupported value"],
    );
    check(
        "",
        "Node",
        json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule", "value": "b"}]}}),
        &["taints must be unique by key and effect pair"],
    );
    let of = kind("", "Node");
    let old = with(of, &json!({"spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]}}));
    let new = with(of, &json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}}));
    compare(update(of, &new, &old), &["node updates may not change podCIDR except from \"\" to valid"]);
}

#[test]
fn access_rules() {
    let rbac = "rbac.authorization.k8s.io";
    check(
        rbac,
        "Role",
        json!({"rules": [{"verbs": [], "apiGroups": [""], "resources": ["pods"]}]}),
        &["rules[0].verbs: Required value: verbs must contain at least one value"],
    );
    check(
        rbac,
        "Role",
        json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
        &["namespaced rules cannot apply to non-resource URLs"],
    );
    check(rbac, "Role", json!({"metadata": {"name": "system:controller:x"}}), &[]);
    check(
        rbac,
        "RoleBinding",
        json!({"roleRef": {"kind": "Pod"}}),
        &["roleRef.kind: Unsupported value: \"Pod\": supported values: \"ClusterRole\", \"Role\""],
    );
    check_update(rbac, "RoleBinding", json!({"roleRef": {"name": "other"}}), &[": cannot change roleRef"]);
}

#[test]
fn kinds_without_rules_need_what_their_schema_requires() {
    check("storage.k8s.io", "VolumeAttachment", json!({}), &["spec: Required value"]);
    check("node.k8s.io", "RuntimeClass", json!({}), &["handler: Required value"]);
}

#[test]
fn odd_shapes_break_nothing() {
    for kind in kinds::KINDS {
        for object in [
            json!(null),
            json!({}),
            json!({"spec": [], "metadata": "x", "rules": 1, "subsets": {}, "data": []}),
            json!({"spec": {"template": 1, "ports": "x", "containers": [1, null], "volumes": [[]]}}),
        ] {
            create(kind, &object);
            update(kind, &object, &json!({}));
            update(kind, &json!({}), &object);
            update_status(kind, &object, &json!({}));
        }
    }
}

#[test]
fn the_number_of_errors_is_bounded() {
    let labels: serde_json::Map<String, Value> = (0..5000).map(|n| (format!("-{n}"), json!("x"))).collect();
    let errors = create(kind("", "ConfigMap"), &with(kind("", "ConfigMap"), &json!({"metadata": {"labels": labels}})));
    assert_eq!(errors.len(), crate::limits::FIELD_ERRORS_MAX);
}

/// Replaces the `at`-th value of the tree (counted depth first) by `junk`.
fn replace(tree: &mut Value, at: &mut usize, junk: &Value) {
    if *at == 0 {
        *tree = junk.clone();
        *at = usize::MAX;
        return;
    }
    *at = at.saturating_sub(usize::from(*at != usize::MAX));
    match tree {
        Value::Object(object) => object.values_mut().for_each(|child| replace(child, at, junk)),
        Value::Array(items) => items.iter_mut().for_each(|child| replace(child, at, junk)),
        _ => {}
    }
}

#[test]
fn junk_anywhere_breaks_nothing() {
    let now = jiff::Timestamp::UNIX_EPOCH;
    let all = [
        json!(null),
        json!(-1),
        json!(i64::MAX),
        json!("\u{0}é"),
        json!([{}, [], null]),
        json!({"": {"a": "b"}}),
        json!(0.5),
    ];
    for kind in kinds::KINDS {
        let base = good(kind);
        for at in 0..60 {
            for junk in &all {
                let mut object = base.clone();
                replace(&mut object, &mut { at }, junk);
                let mut next = object.clone();
                defaults::apply(kind, &mut next);
                create(kind, &next);
                update(kind, &next, &base);
                update(kind, &base, &next);
                update_status(kind, &next, &base);
                crate::table::row(kind, &next, now);
                strategy::prepare_for_create(kind, &mut next.clone());
                strategy::prepare_for_update(kind, &mut next.clone(), &base);
                strategy::prepare_for_update(kind, &mut base.clone(), &next);
                strategy::prepare_for_subresource(kind, "status", &mut next.clone(), &base);
                strategy::begin_deletion(kind, &mut next, Some(i64::MIN), now);
                // Whether it applies does not matter here.
                let _ = patch::strategic(base.clone(), &object, kind.schema());
            }
        }
    }
}

#[test]
fn a_job_is_told_apart_from_every_other() {
    let kind = kinds::by_resource("batch", "v1", "jobs").expect("a kind");
    let of = |labels: Value, selector: Value| {
        let template = json!({"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
        let mut job = json!({"metadata": {"name": "j", "namespace": "n", "uid": "u1"}, "spec": {"selector": selector, "template": template}});
        crate::defaults::apply(kind, &mut job);
        crate::strategy::select_own_pods(&mut job);
        job
    };
    assert_eq!(create(kind, &of(json!({"app": "x"}), Value::Null)), []);
    let (old, key) = (json!({"controller-uid": "u0"}), json!({"matchLabels": {"controller-uid": "u0"}}));
    for refused in [of(old.clone(), Value::Null), of(old, key), of(json!({"job-name": "other"}), Value::Null)] {
        let texts: Vec<String> = create(kind, &refused).iter().map(|error| format!("{error:?}")).collect();
        assert!(texts.iter().any(|text| text.contains("must be '")), "{texts:?}");
    }
}
