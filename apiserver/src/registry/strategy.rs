//! What differs between kinds around a write: initial status, the split between spec and status, generation, and which
//! writes are allowed without a version. Tables and small pure functions; defaults and validation are elsewhere.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use pintle_api::kinds::Kind;
use pintle_api::meta::{Meta, MetaMut};
use pintle_api::quantity::Quantity;
use pintle_base::{clock, rng};
use serde_json::{Map, Value, json};

use crate::types::UserInfo;

/// Kinds whose `metadata.generation` counts changes of the specification.
const GENERATION: &[(&str, &str)] = &[
    ("", "Pod"),
    ("", "ReplicationController"),
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("apps", "DaemonSet"),
    ("batch", "Job"),
    ("batch", "CronJob"),
    ("policy", "PodDisruptionBudget"),
    ("networking.k8s.io", "Ingress"),
    ("networking.k8s.io", "IngressClass"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"),
    ("resource.k8s.io", "DeviceClass"),
    ("resource.k8s.io", "ResourceSlice"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
];

/// Kinds whose update creates the object if it is absent.
const CREATE_ON_UPDATE: &[(&str, &str)] = &[
    ("", "Endpoints"),
    ("", "Event"),
    ("", "LimitRange"),
    ("", "PodTemplate"),
    ("", "Service"),
    ("coordination.k8s.io", "Lease"),
    ("events.k8s.io", "Event"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
];

/// Kinds whose update must name the version it replaces.
const VERSION_REQUIRED: &[(&str, &str)] = &[
    ("coordination.k8s.io", "Lease"),
    ("policy", "PodDisruptionBudget"),
    ("networking.k8s.io", "ServiceCIDR"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apiregistration.k8s.io", "APIService"),
    ("storage.k8s.io", "CSIStorageCapacity"),
    ("storage.k8s.io", "VolumeAttachment"),
    ("storage.k8s.io", "CSIDriver"),
    ("storage.k8s.io", "CSINode"),
];

fn is_in(table: &[(&str, &str)], kind: &Kind) -> bool {
    table.iter().any(|(group, name)| *group == kind.group && *name == kind.kind)
}

pub fn is_event(kind: &Kind) -> bool {
    kind.kind == "Event" && matches!(kind.group, "" | "events.k8s.io")
}

pub fn is_pod(kind: &Kind) -> bool {
    kind.kind == "Pod" && kind.group.is_empty()
}

pub fn is_namespace(kind: &Kind) -> bool {
    kind.kind == "Namespace" && kind.group.is_empty()
}

pub fn creates_on_update(kind: &Kind) -> bool {
    is_in(CREATE_ON_UPDATE, kind)
}

pub fn needs_version(kind: &Kind) -> bool {
    is_in(VERSION_REQUIRED, kind)
}

/// The wall-clock time now, as objects carry it.
pub fn now() -> Timestamp {
    Timestamp::try_from(clock::wall()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Sets what the server decides about a new object, before defaults.
pub fn before_create(kind: &'static Kind, namespace: &str, object: &mut Value, user: &UserInfo) {
    let mut meta = MetaMut::of(object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
        "resourceVersion",
        "generation",
    ] {
        meta.clear(field);
    }
    meta.set_uid(&rng::uuid()).set_creation_timestamp(now());
    if kind.namespaced {
        meta.set_namespace(namespace);
    } else {
        meta.clear("namespace");
    }
    if is_in(GENERATION, kind) {
        meta.set_generation(1);
    }
    initial_status(kind, object);
    match (kind.group, kind.kind) {
        ("", "Secret") => merge_string_data(object),
        ("certificates.k8s.io", "CertificateSigningRequest") => sign_request(object, user),
        _ => (),
    }
}

/// A new object's status is the server's word, but for nodes, which report themselves, and kinds without a controller's status.
fn initial_status(kind: &'static Kind, object: &mut Value) {
    if !kind.has_status() {
        return;
    }
    let Some(map) = object.as_object_mut() else { return };
    match (kind.group, kind.kind) {
        ("", "Node") => (),
        ("", "Pod") => {
            map.insert("status".into(), json!({ "phase": "Pending" }));
        }
        ("", "Namespace") => {
            map.insert("status".into(), json!({ "phase": "Active" }));
            let spec = map.entry("spec").or_insert_with(|| json!({}));
            let finalizers = spec.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
            if let (false, Some(spec)) = (finalizers.iter().any(|f| f == "kubernetes"), spec.as_object_mut()) {
                let all = finalizers.into_iter().chain([json!("kubernetes")]).collect();
                spec.insert("finalizers".into(), Value::Array(all));
            }
        }
        ("", "PersistentVolume" | "PersistentVolumeClaim") => {
            map.insert("status".into(), json!({ "phase": "Pending" }));
        }
        ("", "Service") => {
            map.insert("status".into(), json!({ "loadBalancer": {} }));
        }
        _ => {
            map.insert("status".into(), json!({}));
        }
    }
}

/// The last touches after admission, which may have changed the parts they depend on.
pub fn after_admission(kind: &'static Kind, object: &mut Value) {
    if is_pod(kind) {
        let class = qos_class(object);
        if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
            status.insert("qosClass".into(), json!(class));
        }
    }
}

/// `stringData` is write-only: its entries win over `data`.
fn merge_string_data(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    let Some(Value::Object(texts)) = map.shift_remove("stringData") else { return };
    let data = map.entry("data").or_insert_with(|| Value::Object(Map::new()));
    if data.is_null() {
        *data = Value::Object(Map::new());
    }
    let Some(data) = data.as_object_mut() else { return };
    for (key, text) in texts {
        data.insert(key, Value::String(BASE64_STANDARD.encode(text.as_str().unwrap_or_default())));
    }
}

/// A signing request speaks for the one who made it.
fn sign_request(object: &mut Value, user: &UserInfo) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    spec.insert("username".into(), json!(user.name));
    spec.insert("groups".into(), json!(user.groups));
    for (field, value, empty) in
        [("uid", json!(user.uid), user.uid.is_empty()), ("extra", json!(user.extra), user.extra.is_empty())]
    {
        if empty {
            spec.shift_remove(field);
        } else {
            spec.insert(field.into(), value);
        }
    }
}

/// Brings an update of `subresource` into the only shape it may have: what it may not touch is as it was.
pub fn before_update(kind: &'static Kind, subresource: &str, object: &mut Value, old: &Value) {
    keep_metadata(object, old);
    match subresource {
        "" => {
            if kind.has_status() {
                keep(object, old, "status");
            }
            if is_namespace(kind) {
                keep_in(object, old, "spec", "finalizers");
            }
            if (kind.group, kind.kind) == ("certificates.k8s.io", "CertificateSigningRequest") {
                keep(object, old, "spec");
            }
        }
        "finalize" => {
            keep(object, old, "status");
            keep_labels(object, old);
        }
        // Everything but the part the subresource is about; nobody moves labels or annotations through it but nodes and pods.
        "status" | "approval" => {
            keep_all_but(object, old, &["metadata", "status"]);
            if !matches!(
                (kind.group, kind.kind),
                ("", "Pod" | "Node" | "Service" | "PersistentVolume" | "PersistentVolumeClaim")
            ) {
                keep_labels(object, old);
            }
            keep_metadata_field(object, old, "ownerReferences");
            keep_metadata_field(object, old, "finalizers");
        }
        "ephemeralcontainers" => {
            let new = object.pointer("/spec/ephemeralContainers").cloned();
            replace_in_old(object, old, "ephemeralContainers", new);
        }
        "resize" => {
            let containers = object.pointer("/spec/containers").cloned();
            replace_in_old(object, old, "containers", containers);
        }
        _ => (),
    }
    if (kind.group, kind.kind) == ("", "Secret") {
        merge_string_data(object);
    }
    set_generation(kind, object, old);
}

/// Sets `spec.<field>` in a copy of the old object, which keeps everything else as it was.
fn replace_in_old(object: &mut Value, old: &Value, field: &str, value: Option<Value>) {
    let mut result = old.clone();
    if let (Some(spec), Some(value)) = (result.get_mut("spec").and_then(Value::as_object_mut), value) {
        spec.insert(field.to_owned(), value);
    }
    *object = result;
}

fn keep(object: &mut Value, old: &Value, field: &str) {
    let Some(map) = object.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => map.insert(field.to_owned(), value.clone()),
        None => map.shift_remove(field),
    };
}

fn keep_in(object: &mut Value, old: &Value, parent: &str, field: &str) {
    let Some(old) = old.get(parent) else { return };
    let Some(map) = object.as_object_mut() else { return };
    keep(map.entry(parent).or_insert_with(|| json!({})), old, field);
}

fn keep_all_but(object: &mut Value, old: &Value, parts: &[&str]) {
    let (Some(new), Some(old)) = (object.as_object_mut(), old.as_object()) else { return };
    let mut result = old.clone();
    for part in parts {
        match new.shift_remove(*part) {
            Some(value) => result.insert((*part).to_owned(), value),
            None => result.shift_remove(*part),
        };
    }
    *new = result;
}

fn keep_metadata_field(object: &mut Value, old: &Value, field: &str) {
    keep_in(object, old, "metadata", field);
}

fn keep_labels(object: &mut Value, old: &Value) {
    keep_metadata_field(object, old, "labels");
    keep_metadata_field(object, old, "annotations");
}

/// Fields of metadata that belong to the server for good.
fn keep_metadata(object: &mut Value, old: &Value) {
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "namespace",
        "generateName",
    ] {
        keep_metadata_field(object, old, field);
    }
    MetaMut::of(object).clear("managedFields").clear("selfLink");
}

/// Counts a change of anything that is neither metadata nor status.
fn set_generation(kind: &'static Kind, object: &mut Value, old: &Value) {
    if !is_in(GENERATION, kind) {
        return;
    }
    let body = |value: &Value| -> Map<String, Value> {
        let fields = value.as_object().into_iter().flatten();
        let own = fields.filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status" | "kind" | "apiVersion"));
        own.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    if body(object) != body(old) {
        let generation = Meta::of(old).generation() + 1;
        MetaMut::of(object).set_generation(generation);
    }
}

/// The quality-of-service class of a pod, from the requests and limits of its containers.
fn qos_class(pod: &Value) -> &'static str {
    const COMPUTE: [&str; 2] = ["cpu", "memory"];
    let containers = ["/spec/containers", "/spec/initContainers"]
        .into_iter()
        .filter_map(|path| pod.pointer(path).and_then(Value::as_array))
        .flatten();
    let amount = |container: &Value, part: &str, resource: &str| {
        let value = container.get("resources")?.get(part)?.get(resource)?;
        Quantity::from_value(value).ok().filter(|quantity| !quantity.is_zero())
    };
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        for resource in COMPUTE {
            let (request, limit) = (amount(container, "requests", resource), amount(container, "limits", resource));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use pintle_api::kinds::by_resource;

    use super::*;

    fn kind(group: &str, resource: &str) -> &'static Kind {
        by_resource(group, "v1", resource).expect("served")
    }

    #[track_caller]
    fn check(kind: &'static Kind, subresource: &str, new: Value, old: Value, want: Value) {
        let mut object = new;
        before_update(kind, subresource, &mut object, &old);
        assert_eq!(object, want);
    }

    #[test]
    fn an_update_leaves_status_and_a_status_update_leaves_the_rest() {
        let deployments = kind("apps", "deployments");
        let old =
            json!({"metadata": {"name": "a", "generation": 3}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let new = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"replicas": 2}, "status": {"replicas": 9}});
        check(
            deployments,
            "",
            new.clone(),
            old.clone(),
            json!({
            "metadata": {"name": "a", "labels": {"x": "y"}, "generation": 4}, "spec": {"replicas": 2}, "status": {"replicas": 1}}),
        );
        check(
            deployments,
            "status",
            new,
            old,
            json!({
            "metadata": {"name": "a", "generation": 3}, "spec": {"replicas": 1}, "status": {"replicas": 9}}),
        );
    }

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"metadata": {"name": "s"}, "data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
        before_create(kind("", "secrets"), "default", &mut secret, &UserInfo::default());
        assert_eq!(secret["data"], json!({"a": "eQ==", "b": "eg=="}));
        assert!(secret.get("stringData").is_none());
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&pod(json!({"requests": both, "limits": both}))), "Guaranteed");
    }
}
