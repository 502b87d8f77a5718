//! Rules of `metadata`, the same for every kind.

use std::collections::HashSet;

use serde_json::Value;

use super::{Errors, checks};
use crate::kinds::Kind;
use crate::meta::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN, Meta};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

/// All annotations of an object, keys and values.
const ANNOTATIONS_MAX: usize = 256 * 1024;
const FIELD_MANAGER_MAX: usize = 128;

/// Rules for an object that is to be created.
pub(super) fn object(kind: &Kind, object: &Value, errors: &mut Errors) {
    let path = Path::new("metadata");
    let meta = Meta::of(object);
    let rule = names::Rule::of(kind);
    if !meta.generate_name().is_empty() {
        let texts = rule.check(meta.generate_name(), true);
        checks::invalid(errors, &path.child("generateName"), meta.generate_name(), texts);
    }
    if meta.name().is_empty() {
        errors.push(FieldError::required(&path.child("name"), "name or generateName is required"));
    } else {
        checks::invalid(errors, &path.child("name"), meta.name(), rule.check(meta.name(), false));
    }
    namespace(kind, meta, &path, errors);
    checks::not_negative(errors, tree::at(object, "/metadata").unwrap_or(&Value::Null), "generation", &path);
    common(object, &path, errors);
    finalizers(meta, &path.child("finalizers"), errors);
}

fn namespace(kind: &Kind, meta: Meta<'_>, path: &Path, errors: &mut Errors) {
    let path = path.child("namespace");
    match (kind.namespaced, meta.namespace()) {
        (true, "") => errors.push(FieldError::required(&path, "")),
        (true, name) => checks::invalid(errors, &path, name, names::dns_label(name)),
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden(&path, "not allowed on this type")),
    }
}

/// Rules that hold on creation and on every change.
fn common(object: &Value, path: &Path, errors: &mut Errors) {
    checks::labels(errors, object, "/metadata/labels", &path.child("labels"));
    annotations(object, &path.child("annotations"), errors);
    owners(object, &path.child("ownerReferences"), errors);
    managed_fields(object, &path.child("managedFields"), errors);
}

fn annotations(object: &Value, path: &Path, errors: &mut Errors) {
    let mut size = 0usize;
    for (key, value) in tree::entries(object, "/metadata/annotations") {
        checks::invalid(errors, path, key, names::qualified_name(&key.to_lowercase()));
        size = size.saturating_add(key.len()).saturating_add(value.as_str().unwrap_or_default().len());
    }
    if size > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX));
    }
}

fn owners(object: &Value, path: &Path, errors: &mut Errors) {
    let owners = tree::list(object, "/metadata/ownerReferences");
    let mut controller: Option<String> = None;
    for (index, owner) in owners.iter().enumerate() {
        let at = path.index(index);
        owner_reference(owner, &at, errors);
        if !tree::flag(owner, "/controller") {
            continue;
        }
        let name = format!("{}/{}", tree::text(owner, "/kind"), tree::text(owner, "/name"));
        match &controller {
            None => controller = Some(name),
            Some(first) => errors.push(FieldError::invalid(
                path,
                owners.to_vec(),
                format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"),
            )),
        }
    }
}

fn owner_reference(owner: &Value, path: &Path, errors: &mut Errors) {
    let version = tree::text(owner, "/apiVersion");
    if version.is_empty() {
        errors.push(FieldError::required(&path.child("apiVersion"), "must not be empty"));
    } else if version.matches('/').count() > 1 || version.ends_with('/') {
        let text = "must be <group>/<version> or <version>";
        errors.push(FieldError::invalid(&path.child("apiVersion"), version, text));
    }
    for key in ["kind", "name", "uid"] {
        if owner.get(key).and_then(Value::as_str).unwrap_or_default().is_empty() {
            errors.push(FieldError::required(&path.child(key), "must not be empty"));
        }
    }
    if (version, tree::text(owner, "/kind")) == ("v1", "Event") {
        errors.push(FieldError::invalid(path, owner.clone(), "/v1, Kind=Event is disallowed from being an owner"));
    }
}

fn managed_fields(object: &Value, path: &Path, errors: &mut Errors) {
    for (index, entry) in tree::list(object, "/metadata/managedFields").iter().enumerate() {
        let path = path.index(index);
        if !matches!(tree::text(entry, "/operation"), "Apply" | "Update") {
            let text = "must be `Apply` or `Update`";
            errors.push(FieldError::invalid(&path.child("operation"), tree::text(entry, "/operation"), text));
        }
        if !matches!(tree::text(entry, "/fieldsType"), "" | "FieldsV1") {
            let text = "must be `FieldsV1`";
            errors.push(FieldError::invalid(&path.child("fieldsType"), tree::text(entry, "/fieldsType"), text));
        }
        if tree::text(entry, "/manager").len() > FIELD_MANAGER_MAX {
            errors.push(FieldError::too_long(&path.child("manager"), FIELD_MANAGER_MAX));
        }
    }
}

fn finalizers(meta: Meta<'_>, path: &Path, errors: &mut Errors) {
    for finalizer in meta.finalizers() {
        checks::invalid(errors, path, finalizer, names::qualified_name(finalizer));
    }
    if meta.has_finalizer(FINALIZER_ORPHAN) && meta.has_finalizer(FINALIZER_FOREGROUND) {
        let all: Vec<&str> = meta.finalizers().collect();
        let text = format!("finalizer {FINALIZER_ORPHAN} and {FINALIZER_FOREGROUND} cannot be both set");
        errors.push(FieldError::invalid(path, all, text));
    }
}

/// Rules for a change.
pub(super) fn step(_kind: &Kind, new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("metadata");
    let (now, before) = (Meta::of(new), Meta::of(old));
    if before.is_deleting() {
        no_new_finalizers(now, before, &path.child("finalizers"), errors);
    }
    if now.resource_version().is_empty() {
        let text = "must be specified for an update";
        errors.push(FieldError::invalid(&path.child("resourceVersion"), now.resource_version(), text));
    }
    if now.generation() < 0 {
        errors.push(FieldError::invalid(&path.child("generation"), now.generation(), checks::NOT_NEGATIVE));
    }
    if now.generation() < before.generation() {
        errors.push(FieldError::invalid(&path.child("generation"), now.generation(), "must not be decremented"));
    }
    let fixed = ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
    for key in fixed {
        checks::immutable(errors, new, old, &format!("/metadata/{key}"), &path.child(key));
    }
    common(new, &path, errors);
    finalizers_format(now, before, &path.child("finalizers"), errors);
}

/// Finalizers that were there keep their names, whatever they look like.
fn finalizers_format(now: Meta<'_>, before: Meta<'_>, path: &Path, errors: &mut Errors) {
    let old: HashSet<&str> = before.finalizers().collect();
    for finalizer in now.finalizers().filter(|finalizer| !old.contains(finalizer)) {
        checks::invalid(errors, path, finalizer, names::qualified_name(finalizer));
    }
}

fn no_new_finalizers(now: Meta<'_>, before: Meta<'_>, path: &Path, errors: &mut Errors) {
    let old: HashSet<&str> = before.finalizers().collect();
    let mut extra: Vec<&str> = now.finalizers().filter(|finalizer| !old.contains(finalizer)).collect();
    extra.sort_unstable();
    extra.dedup();
    if !extra.is_empty() {
        let list: Vec<String> = extra.iter().map(|finalizer| format!("{finalizer:?}")).collect();
        let text = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            list.join(", ")
        );
        errors.push(FieldError::forbidden(path, text));
    }
}

/// The errors of the options of a deletion.
pub fn delete_options(options: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let policy = tree::some_text(options, "/propagationPolicy");
    let path = Path::new("propagationPolicy");
    if tree::at(options, "/orphanDependents").is_some() && policy.is_some() {
        let text = "orphanDependents and deletionPropagation cannot be both set";
        errors.push(FieldError::invalid(&path, policy.unwrap_or_default(), text));
    }
    if let Some(policy) = policy.filter(|policy| !matches!(*policy, "Foreground" | "Background" | "Orphan")) {
        errors.push(FieldError::not_supported(&path, policy, &["Foreground", "Background", "Orphan", "nil"]));
    }
    for value in tree::list(options, "/dryRun").iter().filter(|value| value.as_str() != Some("All")) {
        errors.push(FieldError::not_supported(&Path::new("dryRun"), value.clone(), &["All"]));
    }
    errors.0
}
