//! Roles and bindings.

use serde_json::Value;

use super::{Errors, RBAC, checks};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

pub(super) fn role(object: &Value, errors: &mut Errors) {
    rules(object, true, errors);
}

pub(super) fn cluster_role(object: &Value, errors: &mut Errors) {
    rules(object, false, errors);
    let Some(aggregation) = tree::at(object, "/aggregationRule") else { return };
    let path = Path::new("aggregationRule").child("clusterRoleSelectors");
    let selectors = tree::list(aggregation, "/clusterRoleSelectors");
    if selectors.is_empty() {
        errors.push(FieldError::required(
            &path,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        ));
    }
    for (index, selector) in selectors.iter().enumerate() {
        checks::label_selector(errors, Some(selector), &path.index(index));
    }
}

fn rules(object: &Value, namespaced: bool, errors: &mut Errors) {
    for (index, rule) in tree::list(object, "/rules").iter().enumerate() {
        let path = Path::new("rules").index(index);
        if tree::list(rule, "/verbs").is_empty() {
            errors.push(FieldError::required(&path.child("verbs"), "verbs must contain at least one value"));
        }
        let urls = tree::list(rule, "/nonResourceURLs");
        let (groups, resources) = (tree::list(rule, "/apiGroups"), tree::list(rule, "/resources"));
        if !urls.is_empty() {
            let at = path.child("nonResourceURLs");
            if namespaced {
                let text = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(&at, urls.to_vec(), text));
            }
            if !groups.is_empty() || !resources.is_empty() || !tree::list(rule, "/resourceNames").is_empty() {
                let text = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(&at, urls.to_vec(), text));
            }
            continue;
        }
        if groups.is_empty() {
            let text = "resource rules must supply at least one api group";
            errors.push(FieldError::required(&path.child("apiGroups"), text));
        }
        if resources.is_empty() {
            let text = "resource rules must supply at least one resource";
            errors.push(FieldError::required(&path.child("resources"), text));
        }
    }
}

pub(super) fn role_binding(object: &Value, errors: &mut Errors) {
    binding(object, &["ClusterRole", "Role"], errors);
}

pub(super) fn cluster_role_binding(object: &Value, errors: &mut Errors) {
    binding(object, &["ClusterRole"], errors);
}

fn binding(object: &Value, role_kinds: &[&str], errors: &mut Errors) {
    let path = Path::new("roleRef");
    let empty = Value::Null;
    let role = tree::at(object, "/roleRef").unwrap_or(&empty);
    let group = tree::text(role, "/apiGroup");
    if group != RBAC {
        errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[RBAC]));
    }
    let kind = tree::text(role, "/kind");
    if !role_kinds.contains(&kind) {
        errors.push(FieldError::not_supported(&path.child("kind"), kind, role_kinds));
    }
    if let Some(name) = checks::required(errors, role, "name", &path) {
        checks::invalid(errors, &path.child("name"), name, names::path_segment(name));
    }
    let cluster_wide = role_kinds.len() == 1;
    for (index, subject) in tree::list(object, "/subjects").iter().enumerate() {
        self::subject(errors, subject, !cluster_wide, &Path::new("subjects").index(index));
    }
}

fn subject(errors: &mut Errors, subject: &Value, namespaced: bool, path: &Path) {
    let name = checks::required(errors, subject, "name", path);
    let group = tree::text(subject, "/apiGroup");
    match tree::text(subject, "/kind") {
        "ServiceAccount" => {
            if let Some(name) = name {
                checks::invalid(errors, &path.child("name"), name, names::dns_subdomain(name));
            }
            if !group.is_empty() {
                errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && tree::text(subject, "/namespace").is_empty() {
                errors.push(FieldError::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != RBAC {
                errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[RBAC]));
            }
        }
        other => {
            errors.push(FieldError::not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]))
        }
    }
}

/// A binding is about one role for ever: change the subjects, not what they get.
pub(super) fn binding_step(new: &Value, old: &Value, errors: &mut Errors) {
    if !tree::same(tree::at(new, "/roleRef"), tree::at(old, "/roleRef")) {
        let bad = tree::at(new, "/roleRef").cloned().unwrap_or_default();
        errors.push(FieldError::invalid(&Path::new("roleRef"), bad, "cannot change roleRef"));
    }
}
