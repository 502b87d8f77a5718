//! Kinds that keep pods running from a template, and what limits or scales them.

use serde_json::Value;

use super::{Errors, checks, pod, spec};
use crate::selector::Labels;
use crate::status::{FieldError, Path};
use crate::tree;

static EMPTY: Value = Value::Null;

fn spec_of(object: &Value) -> &Value {
    tree::at(object, "/spec").unwrap_or(&EMPTY)
}

pub(super) fn scale(object: &Value, errors: &mut Errors) {
    checks::not_negative(errors, spec_of(object), "replicas", &spec());
}

pub(super) fn replication_controller(object: &Value, errors: &mut Errors) {
    let (spec, path) = (spec_of(object), spec());
    checks::not_negative(errors, spec, "minReadySeconds", &path);
    checks::not_negative(errors, spec, "replicas", &path);
    let selector = tree::map(spec, "/selector").filter(|selector| !selector.is_empty());
    if selector.is_none() {
        errors.push(FieldError::required(&path.child("selector"), ""));
    }
    let Some(template) = tree::at(spec, "/template") else {
        errors.push(FieldError::required(&path.child("template"), ""));
        return;
    };
    if selector.is_some() {
        matches_template(errors, &Labels::from_map(selector), template, &path.child("template"));
    }
    pod_template(errors, template, &path.child("template"));
}

pub(super) fn replica_set(object: &Value, errors: &mut Errors) {
    let (spec, path) = (spec_of(object), spec());
    checks::not_negative(errors, spec, "replicas", &path);
    checks::not_negative(errors, spec, "minReadySeconds", &path);
    selected_template(errors, spec, &path, "empty selector is invalid for deployment");
}

pub(super) fn deployment(object: &Value, errors: &mut Errors) {
    let (spec, path) = (spec_of(object), spec());
    checks::not_negative(errors, spec, "replicas", &path);
    selected_template(errors, spec, &path, "empty selector is invalid for deployment");
    strategy(errors, spec, &path.child("strategy"));
    checks::not_negative(errors, spec, "minReadySeconds", &path);
    checks::not_negative(errors, spec, "revisionHistoryLimit", &path);
    checks::not_negative(errors, spec, "progressDeadlineSeconds", &path);
    if let Some(deadline) = tree::int(spec, "/progressDeadlineSeconds")
        && deadline <= tree::int(spec, "/minReadySeconds").unwrap_or(0)
    {
        let text = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid(&path.child("progressDeadlineSeconds"), deadline, text));
    }
}

fn strategy(errors: &mut Errors, spec: &Value, path: &Path) {
    let rolling = tree::at(spec, "/strategy/rollingUpdate");
    match tree::text(spec, "/strategy/type") {
        "Recreate" if rolling.is_some() => {
            let text = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(&path.child("rollingUpdate"), text));
        }
        "Recreate" => {}
        "RollingUpdate" => match rolling {
            None => errors
                .push(FieldError::required(&path.child("rollingUpdate"), "this should be defaulted and never be nil")),
            Some(rolling) => rolling_update(errors, rolling, &path.child("rollingUpdate")),
        },
        "" => errors.push(FieldError::required(&path.child("type"), "")),
        other => errors.push(FieldError::not_supported(&path.child("type"), other, &["Recreate", "RollingUpdate"])),
    }
}

fn rolling_update(errors: &mut Errors, rolling: &Value, path: &Path) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    checks::count_or_percent(errors, unavailable, &path.child("maxUnavailable"));
    checks::count_or_percent(errors, surge, &path.child("maxSurge"));
    if checks::is_zero(unavailable) && checks::is_zero(surge) {
        let bad = unavailable.cloned().unwrap_or_else(|| Value::from(0));
        errors.push(FieldError::invalid(&path.child("maxUnavailable"), bad, "may not be 0 when `maxSurge` is 0"));
    }
    checks::not_above_100_percent(errors, unavailable, &path.child("maxUnavailable"));
}

/// Selector, template, and that the one selects the other.
fn selected_template(errors: &mut Errors, spec: &Value, path: &Path, empty_text: &str) {
    let selector = tree::at(spec, "/selector");
    let selector_path = path.child("selector");
    match selector {
        None => errors.push(FieldError::required(&selector_path, "")),
        Some(selector) => {
            checks::label_selector(errors, Some(selector), &selector_path);
            if tree::same(Some(selector), None) {
                errors.push(FieldError::invalid(&selector_path, selector.clone(), empty_text));
            }
        }
    }
    let template_path = path.child("template");
    let Some(template) = tree::at(spec, "/template") else {
        errors.push(FieldError::required(&template_path, ""));
        return;
    };
    match Labels::from_selector(selector) {
        Err(error) if selector.is_some() => {
            let bad = selector.cloned().unwrap_or_default();
            errors.push(FieldError::invalid(&selector_path, bad, format!("invalid label selector: {error}")));
        }
        Ok(labels) if selector.is_some() && !labels.is_everything() => {
            matches_template(errors, &labels, template, &template_path);
        }
        _ => {}
    }
    pod_template(errors, template, &template_path);
}

fn matches_template(errors: &mut Errors, selector: &Labels, template: &Value, path: &Path) {
    if !selector.matches(template) {
        let labels = tree::at(template, "/metadata/labels").cloned().unwrap_or_else(|| serde_json::json!({}));
        let path = path.child("metadata").child("labels");
        errors.push(FieldError::invalid(&path, labels, "`selector` does not match template `labels`"));
    }
}

/// A template whose pods are kept running: they restart always and have no deadline.
fn pod_template(errors: &mut Errors, template: &Value, path: &Path) {
    pod::template(errors, Some(template), path);
    let policy = tree::text(template, "/spec/restartPolicy");
    if !matches!(policy, "Always" | "") {
        let path = path.child("spec").child("restartPolicy");
        errors.push(FieldError::not_supported(&path, policy, &["Always"]));
    }
    if tree::at(template, "/spec/activeDeadlineSeconds").is_some() {
        let path = path.child("spec").child("activeDeadlineSeconds");
        errors.push(FieldError::forbidden(&path, "activeDeadlineSeconds in ReplicaSet is not Supported"));
    }
}

pub(super) fn daemon_set(object: &Value, errors: &mut Errors) {
    let (spec, path) = (spec_of(object), spec());
    selected_template(errors, spec, &path, "empty selector is invalid for daemonset");
    checks::not_negative(errors, spec, "minReadySeconds", &path);
    checks::not_negative(errors, spec, "revisionHistoryLimit", &path);
    let path = path.child("updateStrategy");
    match tree::text(spec, "/updateStrategy/type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = tree::at(spec, "/updateStrategy/rollingUpdate").unwrap_or(&EMPTY);
            let path = path.child("rollingUpdate");
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            checks::count_or_percent(errors, unavailable, &path.child("maxUnavailable"));
            checks::count_or_percent(errors, surge, &path.child("maxSurge"));
            checks::not_above_100_percent(errors, unavailable, &path.child("maxUnavailable"));
            checks::not_above_100_percent(errors, surge, &path.child("maxSurge"));
            match (checks::is_zero(unavailable), checks::is_zero(surge)) {
                (true, true) => {
                    errors.push(FieldError::required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"));
                }
                (false, false) => {
                    let bad = surge.cloned().unwrap_or_default();
                    let text = "may not be set when maxUnavailable is non-zero";
                    errors.push(FieldError::invalid(&path.child("maxSurge"), bad, text));
                }
                _ => {}
            }
        }
        other => {
            errors.push(FieldError::not_supported(&path, other, &["RollingUpdate", "OnDelete"]));
        }
    }
}

pub(super) fn stateful_set(object: &Value, errors: &mut Errors) {
    let (spec, path) = (spec_of(object), spec());
    checks::choice(errors, spec, "podManagementPolicy", &path, &["OrderedReady", "Parallel"], false);
    let strategy_path = path.child("updateStrategy");
    let rolling = tree::at(spec, "/updateStrategy/rollingUpdate");
    match tree::text(spec, "/updateStrategy/type") {
        "" => errors.push(FieldError::required(&strategy_path, "")),
        "OnDelete" if rolling.is_some() => {
            let text = format!("only allowed for updateStrategy '{}'", "RollingUpdate");
            let bad = rolling.cloned().unwrap_or_default();
            errors.push(FieldError::invalid(&strategy_path.child("rollingUpdate"), bad, text));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            if let Some(rolling) = rolling {
                let path = strategy_path.child("rollingUpdate");
                checks::not_negative(errors, rolling, "partition", &path);
                checks::count_or_percent(errors, rolling.get("maxUnavailable"), &path.child("maxUnavailable"));
            }
        }
        other => {
            let text = "must be 'RollingUpdate' or 'OnDelete'";
            errors.push(FieldError::invalid(&strategy_path, other, text));
        }
    }
    if let Some(policy) = tree::at(spec, "/persistentVolumeClaimRetentionPolicy") {
        let path = path.child("persistentVolumeClaimRetentionPolicy");
        for key in ["whenDeleted", "whenScaled"] {
            checks::choice(errors, policy, key, &path, &["Retain", "Delete"], false);
        }
    }
    checks::not_negative(errors, spec, "replicas", &path);
    checks::not_negative(errors, spec, "minReadySeconds", &path);
    if let Some(ordinals) = tree::at(spec, "/ordinals") {
        checks::not_negative(errors, ordinals, "start", &path.child("ordinals"));
    }
    selected_template(errors, spec, &path, "empty selector is invalid for statefulset");
}

/// The selector is what tells a controller its pods; it never changes.
pub(super) fn selector_step(new: &Value, old: &Value, errors: &mut Errors) {
    checks::immutable(errors, new, old, "/spec/selector", &spec().child("selector"));
}

pub(super) fn stateful_set_step(new: &Value, old: &Value, errors: &mut Errors) {
    let mut expected = old.clone();
    let mutable = [
        "replicas",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "ordinals",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
    ];
    if let Some(spec) = expected.get_mut("spec") {
        for key in mutable {
            match tree::at(new, &format!("/spec/{key}")) {
                Some(value) => tree::set(spec, key, value.clone()),
                None => drop(tree::remove(spec, key)),
            }
        }
    }
    if !tree::same(tree::at(new, "/spec"), tree::at(&expected, "/spec")) {
        let text = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.push(FieldError::forbidden(&spec(), text));
    }
}

pub(super) fn controller_revision_step(new: &Value, old: &Value, errors: &mut Errors) {
    checks::immutable(errors, new, old, "/data", &Path::new("data"));
}

/// Counts that a controller reports: not negative, none larger than all.
pub(super) fn replica_status(new: &Value, _old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let status = tree::at(new, "/status").unwrap_or(&EMPTY);
    for key in ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"] {
        checks::not_negative(errors, status, key, &path);
    }
    let count = |key: &str| status.get(key).and_then(Value::as_i64).unwrap_or(0);
    for key in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        if count(key) > count("replicas") {
            errors.push(FieldError::invalid(&path.child(key), count(key), "cannot be greater than status.replicas"));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let text = "cannot be greater than readyReplicas";
        errors.push(FieldError::invalid(&path.child("availableReplicas"), count("availableReplicas"), text));
    }
}

pub(super) fn deployment_status(new: &Value, _old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let status = tree::at(new, "/status").unwrap_or(&EMPTY);
    let counts = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
    ];
    for key in counts {
        checks::not_negative(errors, status, key, &path);
    }
    let count = |key: &str| status.get(key).and_then(Value::as_i64).unwrap_or(0);
    for key in ["updatedReplicas", "readyReplicas", "availableReplicas"] {
        if count(key) > count("replicas") {
            errors.push(FieldError::invalid(&path.child(key), count(key), "cannot be greater than status.replicas"));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let text = "cannot be greater than readyReplicas";
        errors.push(FieldError::invalid(&path.child("availableReplicas"), count("availableReplicas"), text));
    }
}

pub(super) fn disruption_budget(object: &Value, errors: &mut Errors) {
    let (spec, path) = (spec_of(object), spec());
    let (min, max) = (tree::at(spec, "/minAvailable"), tree::at(spec, "/maxUnavailable"));
    if min.is_some() && max.is_some() {
        let text = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid(&path, spec.clone(), text));
    }
    for (key, value) in [("minAvailable", min), ("maxUnavailable", max)] {
        checks::count_or_percent(errors, value, &path.child(key));
        checks::not_above_100_percent(errors, value, &path.child(key));
    }
    checks::label_selector(errors, tree::at(spec, "/selector"), &path.child("selector"));
    checks::choice(errors, spec, "unhealthyPodEvictionPolicy", &path, &["AlwaysAllow", "IfHealthyBudget"], true);
}

pub(super) fn autoscaler(object: &Value, errors: &mut Errors) {
    let (spec, path) = (spec_of(object), spec());
    let min = tree::int(spec, "/minReplicas");
    let max = tree::int(spec, "/maxReplicas").unwrap_or(0);
    if let Some(min) = min.filter(|min| *min < 1) {
        errors.push(FieldError::invalid(&path.child("minReplicas"), min, "must be greater than or equal to 1"));
    }
    if max < 1 {
        errors.push(FieldError::invalid(&path.child("maxReplicas"), max, "must be greater than 0"));
    }
    if min.is_some_and(|min| max < min) {
        errors.push(FieldError::invalid(
            &path.child("maxReplicas"),
            max,
            "must be greater than or equal to `minReplicas`",
        ));
    }
    let target = tree::at(spec, "/scaleTargetRef").unwrap_or(&EMPTY);
    for key in ["kind", "name"] {
        if let Some(text) = checks::required(errors, target, key, &path.child("scaleTargetRef")) {
            let texts = crate::names::path_segment(text);
            checks::invalid(errors, &path.child("scaleTargetRef").child(key), text, texts);
        }
    }
}
