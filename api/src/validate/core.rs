//! Namespaces, configuration, accounts, events, leases, quotas and priorities.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{Errors, checks, resources, spec};
use crate::meta::Meta;
use crate::names;
use crate::quantity::Quantity;
use crate::status::{FieldError, Path};
use crate::tokens::legacy;
use crate::tree;

/// Data of one ConfigMap or Secret, decoded.
const DATA_MAX: usize = 1024 * 1024;
const NOTE_MAX: usize = 1024;
const SYSTEM_PRIORITY_MIN: i64 = 1_000_000_000;

pub(super) fn namespace(object: &Value, errors: &mut Errors) {
    for finalizer in tree::list(object, "/spec/finalizers").iter().filter_map(Value::as_str) {
        let path = spec().child("finalizers");
        checks::invalid(errors, &path, finalizer, names::qualified_name(finalizer));
        if !finalizer.contains('/') && finalizer != "kubernetes" {
            let text = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(&path, finalizer, text));
        }
    }
}

pub(super) fn config_map(object: &Value, errors: &mut Errors) {
    let mut size = 0usize;
    for (key, value) in tree::entries(object, "/data") {
        let path = Path::new("data").key(key);
        checks::invalid(errors, &path, key, names::config_key(key));
        if tree::map(object, "/binaryData").is_some_and(|binary| binary.contains_key(key)) {
            errors.push(FieldError::invalid(&path, key, "duplicate of key present in binaryData"));
        }
        size += value.as_str().unwrap_or_default().len();
    }
    for (key, value) in tree::entries(object, "/binaryData") {
        let path = Path::new("binaryData").key(key);
        checks::invalid(errors, &path, key, names::config_key(key));
        size += decoded_length(value);
    }
    if size > DATA_MAX {
        errors.push(FieldError::too_long(&Path::new(""), DATA_MAX));
    }
}

/// How long base64 text is once decoded.
fn decoded_length(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    text.trim_end_matches('=').len() * 3 / 4
}

pub(super) fn config_map_step(new: &Value, old: &Value, errors: &mut Errors) {
    immutable_data(new, old, &["data", "binaryData"], errors);
}

/// Once `immutable` is set, it stays and the data stays.
fn immutable_data(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if !tree::flag(old, "/immutable") {
        return;
    }
    let text = "field is immutable when `immutable` is set";
    if !tree::flag(new, "/immutable") {
        errors.push(FieldError::forbidden(&Path::new("immutable"), text));
    }
    for field in fields {
        let pointer = format!("/{field}");
        if !tree::same(tree::at(new, &pointer), tree::at(old, &pointer)) {
            errors.push(FieldError::forbidden(&Path::new(*field), text));
        }
    }
}

pub(super) fn secret(object: &Value, errors: &mut Errors) {
    let data = Path::new("data");
    let mut size = 0usize;
    for (key, value) in tree::entries(object, "/data") {
        checks::invalid(errors, &data.key(key), key, names::config_key(key));
        size += decoded_length(value);
    }
    if size > DATA_MAX {
        errors.push(FieldError::too_long(&data, DATA_MAX));
    }
    let has = |key: &str| tree::map(object, "/data").is_some_and(|data| data.contains_key(key));
    let require = |errors: &mut Errors, key: &str| {
        if !has(key) {
            errors.push(FieldError::required(&data.key(key), ""));
        }
    };
    match tree::text(object, "/type") {
        legacy::SECRET_TYPE if Meta::of(object).annotation(legacy::ACCOUNT_NAME).unwrap_or_default().is_empty() => {
            let path = Path::new("metadata").child("annotations").key(legacy::ACCOUNT_NAME);
            errors.push(FieldError::required(&path, ""));
        }
        "kubernetes.io/dockercfg" => docker_config(errors, object, ".dockercfg", &data),
        "kubernetes.io/dockerconfigjson" => docker_config(errors, object, ".dockerconfigjson", &data),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errors.push(FieldError::required(&data.key("username"), ""));
            errors.push(FieldError::required(&data.key("password"), ""));
        }
        "kubernetes.io/ssh-auth" if is_blank(object, "ssh-privatekey") => {
            errors.push(FieldError::required(&data.key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => {
            require(errors, "tls.crt");
            require(errors, "tls.key");
        }
        _ => {}
    }
}

/// Whether an entry of the data is missing or empty.
fn is_blank(object: &Value, key: &str) -> bool {
    tree::map(object, "/data").and_then(|data| data.get(key)).is_none_or(|value| decoded_length(value) == 0)
}

fn docker_config(errors: &mut Errors, object: &Value, key: &str, data: &Path) {
    let Some(encoded) = tree::map(object, "/data").and_then(|data| data.get(key)).and_then(Value::as_str) else {
        errors.push(FieldError::required(&data.key(key), ""));
        return;
    };
    let decoded = STANDARD.decode(encoded).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&decoded) {
        errors.push(FieldError::invalid(&data.key(key), "<secret contents redacted>", error.to_string()));
    }
}

pub(super) fn secret_step(new: &Value, old: &Value, errors: &mut Errors) {
    checks::immutable(errors, new, old, "/type", &Path::new("type"));
    immutable_data(new, old, &["data"], errors);
}

pub(super) fn service_account(object: &Value, errors: &mut Errors) {
    for (index, secret) in tree::list(object, "/imagePullSecrets").iter().enumerate() {
        checks::required(errors, secret, "name", &Path::new("imagePullSecrets").index(index));
    }
}

/// Events of both groups are one kind in store; the new form has more that must be there.
pub(super) fn event(object: &Value, errors: &mut Errors) {
    let namespace = Meta::of(object).namespace();
    let (key, pointer) = if object.get("regarding").is_some() {
        ("regarding", "/regarding")
    } else {
        ("involvedObject", "/involvedObject")
    };
    let about = tree::text(object, &format!("{pointer}/namespace"));
    let cluster_wide = about.is_empty() && matches!(namespace, "default" | "kube-system");
    if about != namespace && !cluster_wide {
        let path = Path::new(key).child("namespace");
        errors.push(FieldError::invalid(&path, about, "does not match event.namespace"));
    }
    if tree::at(object, "/eventTime").is_none() {
        return;
    }
    let root = Path::default();
    let controller =
        if object.get("reportingController").is_some() { "reportingController" } else { "reportingComponent" };
    if let Some(name) = checks::required(errors, object, controller, &root) {
        checks::invalid(errors, &Path::new(controller), name, names::qualified_name(name));
    }
    checks::required(errors, object, "reportingInstance", &root);
    checks::required(errors, object, "action", &root);
    checks::required(errors, object, "reason", &root);
    let kind = tree::text(object, "/type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid(&Path::new("type"), kind, format!("has invalid value: {kind}")));
    }
    for key in ["message", "note"] {
        if tree::text(object, &format!("/{key}")).len() > NOTE_MAX {
            errors.push(FieldError::invalid(&Path::new(key), "", format!("can have at most {NOTE_MAX} characters")));
        }
    }
}

pub(super) fn lease(object: &Value, errors: &mut Errors) {
    let path = spec();
    if let Some(seconds) = tree::int(object, "/spec/leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
    }
    if let Some(count) = tree::int(object, "/spec/leaseTransitions").filter(|count| *count < 0) {
        errors.push(FieldError::invalid(&path.child("leaseTransitions"), count, checks::NOT_NEGATIVE));
    }
}

pub(super) fn limit_range(object: &Value, errors: &mut Errors) {
    let path = spec().child("limits");
    let limits = tree::list(object, "/spec/limits");
    checks::unique(errors, limits.iter().map(|limit| tree::text(limit, "/type")), |index| {
        path.index(index).child("type")
    });
    for (index, limit) in limits.iter().enumerate() {
        let path = path.index(index);
        checks::required(errors, limit, "type", &path);
        let amount = |list: &str, resource: &str| {
            tree::map(limit, list).and_then(|list| list.get(resource)).and_then(|v| Quantity::from_value(v).ok())
        };
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            for (resource, value) in tree::entries(limit, &format!("/{list}")) {
                resources::amount(errors, resource, value, &path.child(list).key(resource));
            }
        }
        for (resource, _) in tree::entries(limit, "/min") {
            if let (Some(min), Some(max)) = (amount("/min", resource), amount("/max", resource))
                && min > max
            {
                let text = format!("min value {min} is greater than max value {max}");
                errors.push(FieldError::invalid(&path.child("min").key(resource), min.to_string(), text));
            }
        }
    }
}

pub(super) fn resource_quota(object: &Value, errors: &mut Errors) {
    for (resource, value) in tree::entries(object, "/spec/hard") {
        let path = spec().child("hard").key(resource);
        resources::name(errors, resource, &path);
        resources::amount(errors, resource, value, &path);
    }
}

pub(super) fn priority_class(object: &Value, errors: &mut Errors) {
    let name = Meta::of(object).name();
    let value = tree::int(object, "/value").unwrap_or(0);
    if name.starts_with("system-") {
        let system = matches!(
            (name, value),
            ("system-cluster-critical", 2_000_000_000) | ("system-node-critical", 2_000_001_000)
        );
        if !system {
            let text = "priority class names with 'system-' prefix are reserved for system use only. error: only system priority classes may be created";
            errors.push(FieldError::forbidden(&Path::new("metadata").child("name"), text));
        }
    } else if value > SYSTEM_PRIORITY_MIN {
        let text = format!("maximum allowed value of a user defined priority is {SYSTEM_PRIORITY_MIN}");
        errors.push(FieldError::forbidden(&Path::new("value"), text));
    }
    checks::choice(errors, object, "preemptionPolicy", &Path::default(), &["Never", "PreemptLowerPriority"], true);
}

pub(super) fn priority_class_step(new: &Value, old: &Value, errors: &mut Errors) {
    if tree::int(new, "/value") != tree::int(old, "/value") {
        errors.push(FieldError::forbidden(&Path::new("value"), "may not be changed in an update."));
    }
    checks::immutable(errors, new, old, "/preemptionPolicy", &Path::new("preemptionPolicy"));
}
