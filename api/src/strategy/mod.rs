//! What the registry does to an object before it validates and stores it, kind by kind: which fields a request may set,
//! when `generation` moves, how deletion begins, what a subresource may touch.
//!
//! Pure functions on trees. The order of a write is: decode, default, prepare (here), admission, validate, store.

mod deletion;
mod job;
mod pod;
mod scale;
mod service;

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::meta::{Meta, MetaMut};
use crate::tree;

pub use deletion::{Deletion, begin_deletion};
pub use job::select_own_pods;
pub use pod::qos_class;
pub use scale::{replicas, scale_of, set_scale};

/// Kinds that count changes of their wish in `metadata.generation`, with the fields whose change counts.
static GENERATION: &[(&str, &str, &[&str])] = &[
    ("", "Pod", &["/spec"]),
    ("", "ReplicationController", &["/spec"]),
    ("apps", "ReplicaSet", &["/spec"]),
    ("apps", "Deployment", &["/spec", "/metadata/annotations"]),
    ("apps", "DaemonSet", &["/spec"]),
    ("apps", "StatefulSet", &["/spec"]),
    ("batch", "Job", &["/spec"]),
    ("batch", "CronJob", &["/spec"]),
    ("policy", "PodDisruptionBudget", &["/spec"]),
    ("networking.k8s.io", "Ingress", &["/spec"]),
    ("networking.k8s.io", "IngressClass", &["/spec"]),
    ("networking.k8s.io", "NetworkPolicy", &["/spec"]),
    ("networking.k8s.io", "ServiceCIDR", &["/spec"]),
    ("discovery.k8s.io", "EndpointSlice", &["/endpoints", "/ports", "/addressType", "/metadata/labels"]),
    ("scheduling.k8s.io", "PriorityClass", &["/value", "/globalDefault", "/description", "/preemptionPolicy"]),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", &["/spec"]),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", &["/spec"]),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", &["/webhooks"]),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", &["/webhooks"]),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", &["/spec"]),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", &["/spec"]),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy", &["/spec"]),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", &["/spec"]),
    ("apiextensions.k8s.io", "CustomResourceDefinition", &["/spec"]),
    ("resource.k8s.io", "ResourceSlice", &["/spec"]),
    ("resource.k8s.io", "DeviceClass", &["/spec"]),
];

/// Kinds whose update must name the resourceVersion it is based on.
static CONDITIONAL_ONLY: &[(&str, &str)] = &[
    ("coordination.k8s.io", "Lease"),
    ("policy", "PodDisruptionBudget"),
    ("certificates.k8s.io", "ClusterTrustBundle"),
    ("storage.k8s.io", "VolumeAttachment"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "CSIDriver"),
    ("node.k8s.io", "RuntimeClass"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"),
    ("apiregistration.k8s.io", "APIService"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"),
];

/// Kinds that an update creates if they are not there.
static CREATED_ON_UPDATE: &[(&str, &str)] = &[
    ("", "Service"),
    ("", "Endpoints"),
    ("", "Event"),
    ("events.k8s.io", "Event"),
    ("", "LimitRange"),
    ("coordination.k8s.io", "Lease"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
];

fn contains(table: &[(&str, &str)], kind: &Kind) -> bool {
    table.iter().any(|(group, name)| *group == kind.group && *name == kind.kind)
}

/// Whether an update without a resourceVersion overwrites whatever is there.
pub fn allows_unconditional_update(kind: &Kind) -> bool {
    !contains(CONDITIONAL_ONLY, kind)
}

/// Whether an update of an object that is not there creates it.
pub fn allows_create_on_update(kind: &Kind) -> bool {
    contains(CREATED_ON_UPDATE, kind)
}

fn counted(kind: &Kind) -> Option<&'static [&'static str]> {
    GENERATION.iter().find(|(group, name, _)| *group == kind.group && *name == kind.kind).map(|(.., fields)| *fields)
}

/// Makes a decoded, defaulted body the first state of an object: no status but the initial one, generation 1, no traces
/// of another life. Name, uid and time are the registry's to set.
pub fn prepare_for_create(kind: &Kind, object: &mut Value) {
    MetaMut::of(object)
        .clear("deletionTimestamp")
        .clear("deletionGracePeriodSeconds")
        .clear("selfLink")
        .clear("generation");
    if counted(kind).is_some() {
        MetaMut::of(object).set_generation(1);
    }
    // Nodes register with their status; that saves a round trip in which they would look dead.
    if kind.has_status() && !matches!((kind.group, kind.kind), ("", "Node")) {
        tree::remove(object, "status");
    }
    match (kind.group, kind.kind) {
        ("", "Pod") => {
            let status = json!({"phase": "Pending", "qosClass": qos_class(object)});
            tree::set(object, "status", status);
        }
        ("", "Namespace") => {
            tree::set(object, "status", json!({"phase": "Active"}));
            namespace_finalizer(object);
        }
        ("", "Service") => {
            service::normalize(object, None);
            tree::set(object, "status", json!({"loadBalancer": {}}));
        }
        ("", "PersistentVolume" | "PersistentVolumeClaim") => {
            tree::set(object, "status", json!({"phase": "Pending"}));
        }
        _ if kind.has_status() && object.get("status").is_none() => tree::set(object, "status", json!({})),
        _ => {}
    }
}

/// Namespaces are emptied before they go: the finalizer of their controller is always there.
fn namespace_finalizer(object: &mut Value) {
    let present = tree::list(object, "/spec/finalizers").iter().any(|finalizer| finalizer == "kubernetes");
    if present {
        return;
    }
    let mut finalizers = tree::list(object, "/spec/finalizers").to_vec();
    finalizers.push(json!("kubernetes"));
    if let Some(spec) = tree::object(object, "spec") {
        tree::set(spec, "finalizers", finalizers);
    }
}

/// Makes a body the next state of `old`: status as it was, generation moved if the wish changed, fields that only the
/// server sets taken over where the request left them out.
pub fn prepare_for_update(kind: &Kind, new: &mut Value, old: &Value) {
    keep_server_metadata(new, old);
    if kind.has_status() {
        keep(new, old, "status");
    }
    match (kind.group, kind.kind) {
        ("", "Service") => service::normalize(new, Some(old)),
        // Finalizers of namespaces have a subresource of their own.
        ("", "Namespace") => keep(new, old, "spec"),
        ("certificates.k8s.io", "CertificateSigningRequest") => keep(new, old, "spec"),
        _ => {}
    }
    move_generation(kind, new, old);
}

/// Metadata that no update changes, set where the request left it out.
fn keep_server_metadata(new: &mut Value, old: &Value) {
    let Some(metadata) = tree::object(new, "metadata") else { return };
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName"] {
        if let Some(value) = old.pointer(&format!("/metadata/{key}"))
            && metadata.get(key).is_none_or(|value| value.is_null() || value == "")
        {
            tree::set(metadata, key, value.clone());
        }
    }
    tree::remove(metadata, "selfLink");
}

/// Takes the top-level field `key` from `old`.
fn keep(new: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(value) => tree::set(new, key, value.clone()),
        None => drop(tree::remove(new, key)),
    }
}

fn move_generation(kind: &Kind, new: &mut Value, old: &Value) {
    let generation = Meta::of(old).generation();
    let Some(fields) = counted(kind) else {
        if generation > 0 {
            MetaMut::of(new).set_generation(generation);
        }
        return;
    };
    let changed = fields.iter().any(|field| !tree::same(tree::at(new, field), tree::at(old, field)));
    MetaMut::of(new).set_generation(generation + i64::from(changed));
}

/// Makes a body written to a subresource the next state of `old`: only what the subresource is about is taken from it.
/// `scale` is not written through here, see [`set_scale`].
pub fn prepare_for_subresource(kind: &Kind, subresource: &str, new: &mut Value, old: &Value) {
    keep_server_metadata(new, old);
    match (kind.group, kind.kind, subresource) {
        (_, _, "status") => status_only(kind, new, old),
        ("", "Namespace", "finalize") => {
            let finalizers = tree::list(new, "/spec/finalizers").to_vec();
            take_from_old(new, old, &[]);
            if let Some(spec) = tree::object(new, "spec") {
                tree::set(spec, "finalizers", finalizers);
            }
        }
        ("", "Pod", "ephemeralcontainers") => spec_fields_only(new, old, &["ephemeralContainers"]),
        ("", "Pod", "resize") => pod::resized_only(new, old),
        ("certificates.k8s.io", "CertificateSigningRequest", "approval") => {
            let conditions = tree::list(new, "/status/conditions").to_vec();
            take_from_old(new, old, &[]);
            if let Some(status) = tree::object(new, "status") {
                tree::set(status, "conditions", conditions);
            }
        }
        _ => {}
    }
    if subresource == "status" {
        MetaMut::of(new).set_generation(Meta::of(old).generation());
        if Meta::of(old).generation() == 0 {
            MetaMut::of(new).clear("generation");
        }
    } else {
        move_generation(kind, new, old);
    }
}

/// Everything but metadata and status stays; of metadata, what tells whose object it is.
fn status_only(kind: &Kind, new: &mut Value, old: &Value) {
    take_from_old(new, old, &["status"]);
    let kept: &[&str] = match (kind.group, kind.kind) {
        ("apps", "Deployment") | ("", "Service") => &["labels"],
        ("", "Pod") => &["ownerReferences"],
        _ => &[],
    };
    for key in kept {
        let value = old.pointer(&format!("/metadata/{key}")).cloned();
        match (value, new.get_mut("metadata")) {
            (Some(value), Some(metadata)) => tree::set(metadata, key, value),
            (None, Some(metadata)) => drop(tree::remove(metadata, key)),
            _ => {}
        }
    }
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::keep_status(new, old),
        ("certificates.k8s.io", "CertificateSigningRequest") => VERDICTS.into_iter().for_each(|verdict| {
            keep_conditions(new, old, verdict);
        }),
        _ => {}
    }
}

/// The conditions by which a certificate request is decided. Approvers set them, signers must not.
pub(crate) const APPROVED: &str = "Approved";
pub(crate) const DENIED: &str = "Denied";
pub(crate) const VERDICTS: [&str; 2] = [APPROVED, DENIED];

/// Takes the conditions of one type over from `old`, unless there are more or fewer of them: that is for validation to
/// refuse.
fn keep_conditions(new: &mut Value, old: &Value, condition: &str) {
    let is_it = |one: &Value| tree::text(one, "/type") == condition;
    let kept: Vec<&Value> = tree::list(old, "/status/conditions").iter().filter(|one| is_it(one)).collect();
    let mut places: Vec<&mut Value> =
        tree::list_mut(new, "/status/conditions").iter_mut().filter(|one| is_it(one)).collect();
    if places.len() == kept.len() {
        places.iter_mut().zip(kept).for_each(|(place, one)| place.clone_from(one));
    }
}

/// Makes all top-level fields but metadata and `except` those of `old`.
fn take_from_old(new: &mut Value, old: &Value, except: &[&str]) {
    let (Some(fields), Some(before)) = (new.as_object_mut(), old.as_object()) else { return };
    let free = |key: &str| key == "metadata" || except.contains(&key);
    fields.retain(|key, _| free(key) || before.contains_key(key));
    for (key, value) in before.iter().filter(|(key, _)| !free(key)) {
        fields.insert(key.clone(), value.clone());
    }
}

fn spec_fields_only(new: &mut Value, old: &Value, keys: &[&str]) {
    let taken: Vec<Option<Value>> = keys.iter().map(|key| tree::at(new, &format!("/spec/{key}")).cloned()).collect();
    take_from_old(new, old, &[]);
    let Some(spec) = new.get_mut("spec") else { return };
    for (key, value) in keys.iter().zip(taken) {
        match value {
            Some(value) => tree::set(spec, key, value),
            None => drop(tree::remove(spec, key)),
        }
    }
}

#[cfg(test)]
mod tests;
