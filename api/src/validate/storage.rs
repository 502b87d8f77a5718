//! Persistent volumes, claims and storage classes.

use serde_json::Value;

use super::{Errors, affinity, checks, spec};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

static ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
static EMPTY: Value = Value::Null;
/// Fields of a persistent volume's spec that are not its source.
static NOT_SOURCES: [&str; 11] = [
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
    "status",
    "metadata",
];

fn access_modes(errors: &mut Errors, spec: &Value, path: &Path, missing: &str) {
    let modes = tree::list(spec, "/accessModes");
    let path = path.child("accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required(&path, missing));
    }
    for mode in modes.iter().filter_map(Value::as_str) {
        if !ACCESS_MODES.contains(&mode) {
            errors.push(FieldError::not_supported(&path, mode, &ACCESS_MODES));
        }
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode.as_str() == Some("ReadWriteOncePod")) {
        errors.push(FieldError::forbidden(&path, "may not use ReadWriteOncePod with other access modes"));
    }
}

fn positive_storage(errors: &mut Errors, value: Option<&Value>, path: &Path, missing: &str) {
    match value {
        None => errors.push(FieldError::required(path, missing)),
        Some(value) => {
            if let Some(quantity) = checks::quantity(errors, value, path)
                && quantity.is_zero()
            {
                errors.push(FieldError::invalid(path, quantity.to_string(), "must be greater than zero"));
            }
        }
    }
}

pub(super) fn volume(object: &Value, errors: &mut Errors) {
    let (spec, path) = (tree::at(object, "/spec").unwrap_or(&EMPTY), spec());
    access_modes(errors, spec, &path, "");
    positive_storage(errors, tree::at(spec, "/capacity/storage"), &path.child("capacity"), "");
    let policies = ["Delete", "Recycle", "Retain"];
    checks::choice(errors, spec, "persistentVolumeReclaimPolicy", &path, &policies, true);
    checks::choice(errors, spec, "volumeMode", &path, &["Block", "Filesystem"], true);
    let sources: Vec<&str> = tree::entries(spec, "")
        .filter(|(key, value)| value.is_object() && !NOT_SOURCES.contains(key))
        .map(|(key, _)| key)
        .collect();
    if sources.is_empty() {
        errors.push(FieldError::required(&path, "must specify a volume type"));
    }
    for extra in sources.iter().skip(1) {
        errors.push(FieldError::forbidden(&path.child(extra), "may not specify more than 1 volume type"));
    }
    if let Some(required) = tree::at(spec, "/nodeAffinity/required") {
        affinity::node_selector(errors, required, &path.child("nodeAffinity").child("required"));
    } else if sources == ["local"] {
        errors.push(FieldError::required(&path.child("nodeAffinity"), "Local volume requires node affinity"));
    }
    if let Some(class) = tree::some_text(spec, "/storageClassName") {
        checks::invalid(errors, &path.child("storageClassName"), class, names::dns_subdomain(class));
    }
}

pub(super) fn volume_step(new: &Value, old: &Value, errors: &mut Errors) {
    let source = |object: &Value| -> Vec<(String, Value)> {
        tree::entries(object, "/spec")
            .filter(|(key, value)| value.is_object() && !NOT_SOURCES.contains(key))
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect()
    };
    if source(new) != source(old) {
        let path = spec().child("persistentvolumesource");
        errors.push(FieldError::forbidden(&path, "spec.persistentvolumesource is immutable after creation"));
    }
    checks::immutable(errors, new, old, "/spec/volumeMode", &spec().child("volumeMode"));
}

pub(super) fn claim(object: &Value, errors: &mut Errors) {
    claim_spec(errors, tree::at(object, "/spec").unwrap_or(&EMPTY), &spec());
}

/// A `PersistentVolumeClaimSpec`, of a claim or of a template of one.
pub(super) fn claim_spec(errors: &mut Errors, spec: &Value, path: &Path) {
    access_modes(errors, spec, path, "at least 1 access mode is required");
    checks::label_selector(errors, tree::at(spec, "/selector"), &path.child("selector"));
    let storage = path.child("resources").key("storage");
    positive_storage(errors, tree::at(spec, "/resources/requests/storage"), &storage, "");
    checks::choice(errors, spec, "volumeMode", path, &["Block", "Filesystem"], true);
    if let Some(class) = tree::some_text(spec, "/storageClassName") {
        checks::invalid(errors, &path.child("storageClassName"), class, names::dns_subdomain(class));
    }
}

/// A claim may grow and change its attributes class; nothing else, once bound.
pub(super) fn claim_step(new: &Value, old: &Value, errors: &mut Errors) {
    let path = spec();
    let mut expected = old.clone();
    if let Some(spec) = expected.get_mut("spec") {
        let unbound = tree::text(old, "/spec/volumeName").is_empty();
        for key in ["resources", "volumeAttributesClassName", "volumeName"] {
            if key == "volumeName" && !unbound {
                continue;
            }
            if let Some(value) = tree::at(new, &format!("/spec/{key}")) {
                tree::set(spec, key, value.clone());
            }
        }
    }
    if !tree::same(tree::at(&expected, "/spec"), tree::at(new, "/spec")) {
        let text =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden(&path, text));
    }
    let amount = |object| {
        tree::at(object, "/spec/resources/requests/storage")
            .and_then(|value| crate::quantity::Quantity::from_value(value).ok())
            .unwrap_or_default()
    };
    let reported =
        tree::at(new, "/status/capacity/storage").and_then(|v| crate::quantity::Quantity::from_value(v).ok());
    let shrinks = amount(new) < amount(old) && reported.is_none_or(|reported| amount(new) <= reported);
    if shrinks {
        let path = path.child("resources").child("requests").child("storage");
        errors.push(FieldError::forbidden(&path, "field can not be less than status.capacity"));
    }
}

pub(super) fn class(object: &Value, errors: &mut Errors) {
    let root = Path::default();
    if let Some(provisioner) = checks::required(errors, object, "provisioner", &root) {
        let texts = names::qualified_name(&provisioner.to_lowercase());
        checks::invalid(errors, &Path::new("provisioner"), provisioner, texts);
    }
    checks::choice(errors, object, "reclaimPolicy", &root, &["Delete", "Retain"], false);
    checks::choice(errors, object, "volumeBindingMode", &root, &["Immediate", "WaitForFirstConsumer"], false);
}

pub(super) fn class_step(new: &Value, old: &Value, errors: &mut Errors) {
    for key in ["provisioner", "reclaimPolicy", "volumeBindingMode"] {
        checks::immutable(errors, new, old, &format!("/{key}"), &Path::new(key));
    }
    if !tree::same(tree::at(new, "/parameters"), tree::at(old, "/parameters")) {
        errors.push(FieldError::forbidden(&Path::new("parameters"), "updates to parameters are forbidden."));
    }
}
