//! What the server adds to an object beside `pintle_api::strategy`: identity, time, and the little that depends on who asks.

use jiff::Timestamp;
use pintle_api::kinds::Kind;
use pintle_api::meta::MetaMut;
use pintle_api::{strategy, tree};
use pintle_base::{clock, rng};
use serde_json::{Value, json};

use crate::types::UserInfo;

const SIGNING_REQUEST: (&str, &str) = ("certificates.k8s.io", "CertificateSigningRequest");

pub fn is_event(kind: &Kind) -> bool {
    kind.kind == "Event" && matches!(kind.group, "" | "events.k8s.io")
}

pub fn is_pod(kind: &Kind) -> bool {
    kind.kind == "Pod" && kind.group.is_empty()
}

pub fn is_namespace(kind: &Kind) -> bool {
    kind.kind == "Namespace" && kind.group.is_empty()
}

/// The wall-clock time now, as objects carry it.
pub fn now() -> Timestamp {
    Timestamp::try_from(clock::wall()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Makes a decoded, defaulted body the first state of an object.
pub fn before_create(kind: &'static Kind, namespace: &str, object: &mut Value, user: &UserInfo) {
    strategy::prepare_for_create(kind, object);
    let mut meta = MetaMut::of(object);
    meta.clear("managedFields").clear("resourceVersion").set_uid(&rng::uuid()).set_creation_timestamp(now());
    if kind.namespaced {
        meta.set_namespace(namespace);
    } else {
        meta.clear("namespace");
    }
    if (kind.group, kind.kind) == ("batch", "Job") {
        strategy::select_own_pods(object);
    }
    if (kind.group, kind.kind) == SIGNING_REQUEST {
        sign_request(object, user);
    }
}

/// After admission, which may have changed what this depends on.
pub fn after_admission(kind: &'static Kind, object: &mut Value) {
    if is_pod(kind) {
        let class = strategy::qos_class(object);
        if let Some(status) = object.get_mut("status") {
            tree::set(status, "qosClass", class);
        }
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

/// Makes a body written to `subresource` (empty for the object itself) the next state of `old`.
pub fn before_update(kind: &'static Kind, subresource: &str, object: &mut Value, old: &Value) {
    MetaMut::of(object).clear("managedFields");
    if let Some(namespace) = tree::some_text(old, "/metadata/namespace") {
        MetaMut::of(object).set_namespace(namespace);
    }
    match subresource {
        // What a scale changes is the object's own wish.
        "" | "scale" => strategy::prepare_for_update(kind, object, old),
        _ => strategy::prepare_for_subresource(kind, subresource, object, old),
    }
}
