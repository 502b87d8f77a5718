//! Defaults of the kinds that run pods from a template.

use serde_json::{Value, json};

use super::pod;
use super::rules::{self, Rules, To};
use crate::tree;

static DEPLOYMENT: Rules = &[
    ("spec+/replicas", To::Int(1)),
    ("spec+/strategy+/type", To::Text("RollingUpdate")),
    ("spec+/revisionHistoryLimit", To::Int(10)),
    ("spec+/progressDeadlineSeconds", To::Int(600)),
];

static ROLLING_UPDATE: Rules = &[
    ("spec/strategy/rollingUpdate+/maxUnavailable", To::Text("25%")),
    ("spec/strategy/rollingUpdate+/maxSurge", To::Text("25%")),
];

static DAEMON_SET: Rules =
    &[("spec+/updateStrategy+/type", To::Text("RollingUpdate")), ("spec+/revisionHistoryLimit", To::Int(10))];

static DAEMON_SET_ROLLING: Rules = &[
    ("spec/updateStrategy/rollingUpdate+/maxUnavailable", To::Int(1)),
    ("spec/updateStrategy/rollingUpdate+/maxSurge", To::Int(0)),
];

static STATEFUL_SET: Rules = &[
    ("spec+/replicas", To::Int(1)),
    ("spec+/podManagementPolicy", To::Text("OrderedReady")),
    ("spec+/updateStrategy+/type", To::Text("RollingUpdate")),
    ("spec+/persistentVolumeClaimRetentionPolicy+/whenDeleted", To::Text("Retain")),
    ("spec+/persistentVolumeClaimRetentionPolicy+/whenScaled", To::Text("Retain")),
    ("spec+/revisionHistoryLimit", To::Int(10)),
    ("spec+/volumeClaimTemplates/*/apiVersion", To::Text("v1")),
    ("spec+/volumeClaimTemplates/*/kind", To::Text("PersistentVolumeClaim")),
    ("spec+/volumeClaimTemplates/*/spec+/volumeMode", To::Text("Filesystem")),
    ("spec+/volumeClaimTemplates/*/status+/phase", To::Text("Pending")),
];

static JOB: Rules = &[
    ("spec+/completionMode", To::Text("NonIndexed")),
    ("spec+/suspend", To::Flag(false)),
    ("spec+/manualSelector", To::Flag(false)),
    ("spec+/podFailurePolicy/rules/*/onPodConditions/*/status", To::Text("True")),
];

static CRON_JOB: Rules = &[
    ("spec+/concurrencyPolicy", To::Text("Allow")),
    ("spec+/suspend", To::Flag(false)),
    ("spec+/successfulJobsHistoryLimit", To::Int(3)),
    ("spec+/failedJobsHistoryLimit", To::Int(1)),
];

pub(super) fn deployment(object: &mut Value) {
    rules::apply(object, DEPLOYMENT);
    if tree::text(object, "/spec/strategy/type") == "RollingUpdate" {
        rules::apply(object, ROLLING_UPDATE);
    }
    template(object);
}

pub(super) fn replica_set(object: &mut Value) {
    rules::apply(object, &[("spec+/replicas", To::Int(1))]);
    template(object);
}

/// The labels of the template stand in for a missing selector and for missing labels.
pub(super) fn replication_controller(object: &mut Value) {
    rules::apply(object, &[("spec+/replicas", To::Int(1))]);
    template(object);
    let labels = tree::map(object, "/spec/template/metadata/labels").filter(|labels| !labels.is_empty()).cloned();
    if let Some(labels) = labels {
        if tree::map(object, "/spec/selector").is_none_or(|selector| selector.is_empty())
            && let Some(spec) = object.get_mut("spec")
        {
            tree::set(spec, "selector", Value::Object(labels.clone()));
        }
        if tree::map(object, "/metadata/labels").is_none_or(|labels| labels.is_empty())
            && let Some(metadata) = tree::object(object, "metadata")
        {
            tree::set(metadata, "labels", Value::Object(labels));
        }
    }
}

pub(super) fn daemon_set(object: &mut Value) {
    rules::apply(object, DAEMON_SET);
    if tree::text(object, "/spec/updateStrategy/type") == "RollingUpdate" {
        rules::apply(object, DAEMON_SET_ROLLING);
    }
    template(object);
}

pub(super) fn stateful_set(object: &mut Value) {
    rules::apply(object, STATEFUL_SET);
    if tree::text(object, "/spec/updateStrategy/type") == "RollingUpdate" {
        rules::apply(object, &[("spec/updateStrategy/rollingUpdate+/partition", To::Int(0))]);
    }
    template(object);
}

pub(super) fn job(object: &mut Value) {
    let Some(spec) = tree::object(object, "spec") else { return };
    let (completions, parallelism) = (tree::int(spec, "/completions"), tree::int(spec, "/parallelism"));
    if completions.is_none() && parallelism.is_none() {
        tree::set(spec, "completions", 1);
    }
    tree::set_default(spec, "parallelism", 1);
    let per_index = tree::int(spec, "/backoffLimitPerIndex").is_some();
    tree::set_default(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    let replacement = if tree::map(spec, "/podFailurePolicy").is_some() { "Failed" } else { "TerminatingOrFailed" };
    tree::set_default(spec, "podReplacementPolicy", replacement);
    rules::apply(object, JOB);
    template(object);
    let labels = tree::map(object, "/spec/template/metadata/labels").filter(|labels| !labels.is_empty()).cloned();
    if let Some(labels) = labels
        && tree::map(object, "/metadata/labels").is_none_or(|labels| labels.is_empty())
        && let Some(metadata) = tree::object(object, "metadata")
    {
        tree::set(metadata, "labels", Value::Object(labels));
    }
}

pub(super) fn cron_job(object: &mut Value) {
    rules::apply(object, CRON_JOB);
    if let Some(job) = object.pointer_mut("/spec/jobTemplate/spec") {
        pod::template(job, "template");
    }
}

fn template(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec") {
        tree::set_default(spec, "template", json!({}));
        pod::template(spec, "template");
    }
}
