//! Environment variables, where their values come from, and references to fields of the pod.

use serde_json::Value;

use super::{Errors, checks};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

/// Fields of the pod that a variable may show.
static ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields of the pod that a file of a volume may show.
pub(super) static VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Fields that exist in pods at all; others have no meaning to name.
static POD_FIELDS: [&str; 4] = ["metadata.annotations", "metadata.labels", "spec.restartPolicy", "status.phase"];

static CONTAINER_RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

static SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];

pub(super) fn variables(errors: &mut Errors, container: &Value, path: &Path) {
    for (index, variable) in tree::list(container, "/env").iter().enumerate() {
        let path = path.child("env").index(index);
        if let Some(name) = checks::required(errors, variable, "name", &path) {
            checks::invalid(errors, &path.child("name"), name, names::env_name(name));
        }
        if let Some(source) = tree::at(variable, "/valueFrom") {
            value_from(errors, source, tree::text(variable, "/value"), &path.child("valueFrom"));
        }
    }
    for (index, source) in tree::list(container, "/envFrom").iter().enumerate() {
        env_from(errors, source, &path.child("envFrom").index(index));
    }
}

fn value_from(errors: &mut Errors, source: &Value, value: &str, path: &Path) {
    let mut count = 0;
    for name in SOURCES {
        let Some(reference) = source.get(name).filter(|reference| !reference.is_null()) else { continue };
        count += 1;
        let path = path.child(name);
        match name {
            "fieldRef" => field_reference(errors, reference, &ENV_FIELDS, &path),
            "resourceFieldRef" => resource_reference(errors, reference, false, &path),
            "fileKeyRef" => {
                checks::required(errors, reference, "volumeName", &path);
                checks::required(errors, reference, "path", &path);
                checks::required(errors, reference, "key", &path);
            }
            _ => key_reference(errors, reference, &path),
        }
    }
    if count == 0 {
        let text =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(FieldError::invalid(path, "", text));
    } else if !value.is_empty() {
        errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if count > 1 {
        errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    }
}

fn env_from(errors: &mut Errors, source: &Value, path: &Path) {
    if let Some(prefix) = tree::some_text(source, "/prefix") {
        checks::invalid(errors, &path.child("prefix"), prefix, names::env_name(prefix));
    }
    let mut count = 0;
    for name in ["configMapRef", "secretRef"] {
        let Some(reference) = source.get(name).filter(|reference| !reference.is_null()) else { continue };
        count += 1;
        if let Some(target) = checks::required(errors, reference, "name", &path.child(name)) {
            checks::invalid(errors, &path.child(name).child("name"), target, names::dns_subdomain(target));
        }
    }
    match count {
        0 => errors.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
        1 => {}
        _ => errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time")),
    }
}

fn key_reference(errors: &mut Errors, reference: &Value, path: &Path) {
    checks::required(errors, reference, "name", path);
    if let Some(key) = checks::required(errors, reference, "key", path) {
        checks::invalid(errors, &path.child("key"), key, names::config_key(key));
    }
}

/// A `fieldRef` to one of `allowed`, or to one label or annotation (`metadata.labels['x']`).
pub(super) fn field_reference(errors: &mut Errors, reference: &Value, allowed: &[&str], path: &Path) {
    checks::required(errors, reference, "apiVersion", path);
    let Some(field) = checks::required(errors, reference, "fieldPath", path) else { return };
    let path = path.child("fieldPath");
    if let Some((map, key)) = subscript(field) {
        match map {
            "metadata.annotations" => checks::invalid(errors, &path, key, names::qualified_name(&key.to_lowercase())),
            "metadata.labels" => checks::invalid(errors, &path, key, names::qualified_name(key)),
            _ => errors.push(FieldError::invalid(&path, map, "does not support subscript")),
        }
    } else if !allowed.contains(&field) {
        let known = ENV_FIELDS.contains(&field) || VOLUME_FIELDS.contains(&field) || POD_FIELDS.contains(&field);
        if known {
            errors.push(FieldError::not_supported(&path, field, allowed));
        } else {
            let text = format!("error converting fieldPath: field label not supported: {field}");
            errors.push(FieldError::invalid(&path, field, text));
        }
    }
}

/// `metadata.labels['x']` as map and key.
fn subscript(field: &str) -> Option<(&str, &str)> {
    let (map, rest) = field.strip_suffix("']")?.split_once("['")?;
    Some((map, rest))
}

/// A `resourceFieldRef`; files must name the container.
pub(super) fn resource_reference(errors: &mut Errors, reference: &Value, in_volume: bool, path: &Path) {
    if in_volume {
        checks::required(errors, reference, "containerName", path);
    }
    let Some(resource) = checks::required(errors, reference, "resource", path) else { return };
    let huge_pages = ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix));
    if !CONTAINER_RESOURCES.contains(&resource) && !huge_pages {
        errors.push(FieldError::not_supported(&path.child("resource"), resource, &CONTAINER_RESOURCES));
    }
    if let Some(divisor) = tree::at(reference, "/divisor") {
        checks::quantity(errors, divisor, &path.child("divisor"));
    }
}
