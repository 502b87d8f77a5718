//! Where a pod may run: node selectors, affinity, tolerations, spreading.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Errors, checks};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

static EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn affinity(errors: &mut Errors, spec: &Value, path: &Path) {
    let Some(affinity) = tree::at(spec, "/affinity") else { return };
    let path = path.child("affinity");
    if let Some(node) = tree::at(affinity, "/nodeAffinity") {
        node_affinity(errors, node, &path.child("nodeAffinity"));
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        let Some(rules) = affinity.get(key).filter(|rules| rules.is_object()) else { continue };
        let path = path.child(key);
        let (required, preferred) =
            ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
        for (index, term) in tree::list(rules, &format!("/{required}")).iter().enumerate() {
            pod_term(errors, term, &path.child(required).index(index));
        }
        for (index, weighted) in tree::list(rules, &format!("/{preferred}")).iter().enumerate() {
            let path = path.child(preferred).index(index);
            weight(errors, weighted, &path);
            let empty = json!({});
            pod_term(errors, tree::at(weighted, "/podAffinityTerm").unwrap_or(&empty), &path.child("podAffinityTerm"));
        }
    }
}

fn node_affinity(errors: &mut Errors, node: &Value, path: &Path) {
    if let Some(selector) = tree::at(node, "/requiredDuringSchedulingIgnoredDuringExecution") {
        node_selector(errors, selector, &path.child("requiredDuringSchedulingIgnoredDuringExecution"));
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (index, term) in tree::list(node, &format!("/{preferred}")).iter().enumerate() {
        let path = path.child(preferred).index(index);
        weight(errors, term, &path);
        if let Some(preference) = tree::at(term, "/preference") {
            node_term(errors, preference, &path.child("preference"));
        }
    }
}

/// A `NodeSelector` object.
pub(super) fn node_selector(errors: &mut Errors, selector: &Value, path: &Path) {
    let path = path.child("nodeSelectorTerms");
    let terms = tree::list(selector, "/nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(FieldError::required(&path, "must have at least one node selector term"));
    }
    for (index, term) in terms.iter().enumerate() {
        node_term(errors, term, &path.index(index));
    }
}

fn node_term(errors: &mut Errors, term: &Value, path: &Path) {
    for (index, expression) in tree::list(term, "/matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        node_requirement(errors, expression, &path);
        let key = tree::text(expression, "/key");
        checks::invalid(errors, &path.child("key"), key, names::qualified_name(key));
    }
    for (index, field) in tree::list(term, "/matchFields").iter().enumerate() {
        let path = path.child("matchFields").index(index);
        match tree::text(field, "/operator") {
            "In" | "NotIn" if tree::list(field, "/values").len() == 1 => {}
            "In" | "NotIn" => {
                let text = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(FieldError::required(&path.child("values"), text));
            }
            other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
        }
        if tree::text(field, "/key") != "metadata.name" {
            let text = "not a valid field selector key";
            errors.push(FieldError::invalid(&path.child("key"), tree::text(field, "/key"), text));
        }
    }
}

fn node_requirement(errors: &mut Errors, expression: &Value, path: &Path) {
    let values = tree::list(expression, "/values");
    let at = path.child("values");
    match tree::text(expression, "/operator") {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(FieldError::required(&at, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(&at, text));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.push(FieldError::required(&at, "must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
}

fn weight(errors: &mut Errors, term: &Value, path: &Path) {
    let weight = tree::int(term, "/weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(&path.child("weight"), weight, "must be in the range 1-100"));
    }
}

fn pod_term(errors: &mut Errors, term: &Value, path: &Path) {
    checks::label_selector(errors, tree::at(term, "/labelSelector"), &path.child("labelSelector"));
    checks::label_selector(errors, tree::at(term, "/namespaceSelector"), &path.child("namespaceSelector"));
    for name in tree::list(term, "/namespaces").iter().filter_map(Value::as_str) {
        checks::invalid(errors, &path.child("namespace"), name, names::dns_label(name));
    }
    topology_key(errors, term, path);
}

fn topology_key(errors: &mut Errors, term: &Value, path: &Path) {
    match tree::some_text(term, "/topologyKey") {
        None => errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty")),
        Some(key) => checks::invalid(errors, &path.child("topologyKey"), key, names::qualified_name(key)),
    }
}

pub(super) fn tolerations(errors: &mut Errors, spec: &Value, path: &Path) {
    for (index, toleration) in tree::list(spec, "/tolerations").iter().enumerate() {
        let path = path.child("tolerations").index(index);
        let (key, operator) = (tree::text(toleration, "/key"), tree::text(toleration, "/operator"));
        let (value, effect) = (tree::text(toleration, "/value"), tree::text(toleration, "/effect"));
        if !key.is_empty() {
            checks::invalid(errors, &path.child("key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            let text = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&path.child("operator"), operator, text));
        }
        if tree::at(toleration, "/tolerationSeconds").is_some() && effect != "NoExecute" {
            let text = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(&path.child("effect"), effect, text));
        }
        match operator {
            "" | "Equal" => checks::invalid(errors, &path.child("operator"), value, names::label_value(value)),
            "Exists" if !value.is_empty() => {
                let text = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(&path.child("operator"), toleration.clone(), text));
            }
            "Exists" | "Lt" | "Gt" => {}
            other => errors.push(FieldError::not_supported(&path.child("operator"), other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.push(FieldError::not_supported(&path.child("effect"), effect, &EFFECTS));
        }
    }
}

/// `spec.taints` of a node.
pub(super) fn taints(errors: &mut Errors, spec: &Value, path: &Path) {
    let path = path.child("taints");
    let mut seen = HashSet::new();
    for (index, taint) in tree::list(spec, "/taints").iter().enumerate() {
        let path = path.index(index);
        let (key, value) = (tree::text(taint, "/key"), tree::text(taint, "/value"));
        checks::invalid(errors, &path.child("key"), key, names::qualified_name(key));
        checks::invalid(errors, &path.child("value"), value, names::label_value(value));
        let effect = tree::text(taint, "/effect");
        match effect {
            "" => errors.push(FieldError::required(&path.child("effect"), "")),
            known if EFFECTS.contains(&known) => {}
            other => errors.push(FieldError::not_supported(&path.child("effect"), other, &EFFECTS)),
        }
        if !seen.insert((key, effect)) {
            let mut error = FieldError::duplicate(&path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
}

pub(super) fn spread(errors: &mut Errors, spec: &Value, path: &Path) {
    let mut seen = HashSet::new();
    for (index, constraint) in tree::list(spec, "/topologySpreadConstraints").iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(index);
        let skew = tree::int(constraint, "/maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(&path.child("maxSkew"), skew, "must be greater than zero"));
        }
        topology_key(errors, constraint, &path);
        checks::choice(errors, constraint, "whenUnsatisfiable", &path, &["DoNotSchedule", "ScheduleAnyway"], false);
        let (key, action) = (tree::text(constraint, "/topologyKey"), tree::text(constraint, "/whenUnsatisfiable"));
        if !seen.insert((key, action)) {
            let path = path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(&path, format!("{{{key}, {action}}}")));
        }
        if let Some(domains) = tree::int(constraint, "/minDomains") {
            let path = path.child("minDomains");
            if domains <= 0 {
                errors.push(FieldError::invalid(&path, domains, "must be greater than zero"));
            }
            if action != "DoNotSchedule" {
                let text = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.push(FieldError::invalid(&path, domains, text));
            }
        }
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            checks::choice(errors, constraint, key, &path, &["Honor", "Ignore"], true);
        }
        checks::label_selector(errors, tree::at(constraint, "/labelSelector"), &path.child("labelSelector"));
    }
}
