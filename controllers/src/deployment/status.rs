//! Conditions and status of a deployment. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::runtime::pods::since;

pub(super) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
pub(super) const REPLICA_FAILURE: &str = "ReplicaFailure";

pub(super) const PAUSED: &str = "DeploymentPaused";
pub(super) const RESUMED: &str = "DeploymentResumed";
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub(super) const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub(super) const NEW_SET_CREATED: &str = "NewReplicaSetCreated";
pub(super) const SET_FOUND: &str = "FoundNewReplicaSet";
pub(super) const SET_UPDATED: &str = "ReplicaSetUpdated";
pub(super) const SET_FAILED: &str = "ReplicaSetCreateError";

/// The progress deadline, if the deployment has one.
pub(super) fn progress_deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

pub(super) fn condition<'a>(conditions: &'a [DeploymentCondition], kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

pub(super) fn new_condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts `new` in place unless a condition with its status and reason is there already.
pub(super) fn set_condition(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    if let Some(old) = condition(conditions, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time.clone_from(&old.last_transition_time);
        }
    }
    remove_condition(conditions, &new.type_);
    conditions.push(new);
}

pub(super) fn remove_condition(conditions: &mut Vec<DeploymentCondition>, kind: &str) {
    conditions.retain(|condition| condition.type_ != kind);
}

/// What replica sets together report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub replicas: i32,
    pub updated: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
}

/// The status that `totals` give, with `conditions` and an up-to-date `Available`.
pub(super) fn calculate(
    deployment: &Deployment,
    totals: Totals,
    mut conditions: Vec<DeploymentCondition>,
    min_available: i32,
    now: Timestamp,
) -> DeploymentStatus {
    let available = if totals.available >= min_available {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    let (status, reason, message) = available;
    set_condition(&mut conditions, new_condition(AVAILABLE, status, reason, message.to_owned(), now));
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(totals.replicas),
        updated_replicas: Some(totals.updated),
        ready_replicas: Some(totals.ready),
        available_replicas: Some(totals.available),
        unavailable_replicas: Some((totals.replicas - totals.available).max(0)),
        terminating_replicas: Some(totals.terminating),
        collision_count: collisions,
        conditions: Some(conditions),
    }
}

/// Everything is updated, available and nothing old is left.
pub(super) fn is_complete(deployment: &Deployment, wanted: i32, totals: Totals) -> bool {
    let observed = deployment.status.as_ref().and_then(|status| status.observed_generation);
    totals.updated == wanted
        && totals.replicas == wanted
        && totals.available == wanted
        && observed >= deployment.metadata.generation
}

/// Something moved towards the new template since the status that was written last.
pub(super) fn is_progressing(before: &DeploymentStatus, totals: Totals) -> bool {
    let old = |count: Option<i32>| count.unwrap_or(0);
    let old_sets = old(before.replicas) - old(before.updated_replicas);
    totals.updated > old(before.updated_replicas)
        || totals.replicas - totals.updated < old_sets
        || totals.ready > old(before.ready_replicas)
        || totals.available > old(before.available_replicas)
}

/// No progress for the deadline, counted from the last one.
pub(super) fn is_timed_out(conditions: &[DeploymentCondition], deadline: Duration, now: Timestamp) -> bool {
    let Some(progress) = condition(conditions, PROGRESSING) else { return false };
    match progress.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => progress.last_update_time.as_ref().is_some_and(|at| since(now, at.0) > deadline),
    }
}

/// When to look again at a rollout that may get stuck.
pub(super) fn next_look(conditions: &[DeploymentCondition], deadline: Duration, now: Timestamp) -> Option<Duration> {
    let progress = condition(conditions, PROGRESSING)?;
    if matches!(progress.reason.as_deref(), Some(TIMED_OUT | NEW_SET_AVAILABLE | PAUSED)) {
        return None;
    }
    let waited = since(now, progress.last_update_time.as_ref()?.0);
    // A second more: times have whole seconds.
    Some(deadline.saturating_sub(waited) + Duration::from_secs(1))
}

/// True if the stored status says the same as `new`; absent counts are zeros.
pub(super) fn is_same(stored: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let mut stored = stored.cloned().unwrap_or_default();
    for count in [
        &mut stored.replicas,
        &mut stored.updated_replicas,
        &mut stored.ready_replicas,
        &mut stored.available_replicas,
        &mut stored.unavailable_replicas,
        &mut stored.terminating_replicas,
    ] {
        count.get_or_insert(0);
    }
    stored.conditions.get_or_insert_default();
    stored == *new
}
