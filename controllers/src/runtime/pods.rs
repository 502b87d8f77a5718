//! What controllers ask of pods, and how they make new ones.

use std::cmp::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use pintle_base::clock;

/// Annotation by which people say which pod is cheapest to delete.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The wall-clock time now.
pub fn now() -> Timestamp {
    let millis = i64::try_from(clock::unix_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// `a - b`, zero if that is negative.
pub fn since(a: Timestamp, b: Timestamp) -> Duration {
    Duration::try_from(a.duration_since(b)).unwrap_or(Duration::ZERO)
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// True if the pod has ended for good.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// True if the pod counts towards the wanted number.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// When the pod last became ready; `None` while it is not.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// True if the pod has been ready for `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    if !is_ready(pod) {
        return false;
    }
    let wanted = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    wanted.is_zero() || ready_since(pod).is_some_and(|at| since(now, at) >= wanted)
}

/// A pod after `template`, controlled by `owner`; the server makes its name from the owner's.
pub fn from_template(template: &PodTemplateSpec, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// A pod with the number of its relatives on the same node.
#[derive(Clone, Copy)]
pub struct Ranked<'a> {
    pub pod: &'a Pod,
    pub neighbours: usize,
}

/// Orders pods so that those to delete first come first: unassigned, pending, not ready, cheap, crowded, recently ready,
/// restarting, young.
pub fn deletion_order(a: &Ranked<'_>, b: &Ranked<'_>, now: Timestamp) -> Ordering {
    let assigned =
        |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().is_some_and(|n| !n.is_empty()));
    let step = assigned(a.pod).cmp(&assigned(b.pod));
    step.then_with(|| phase_rank(a.pod).cmp(&phase_rank(b.pod)))
        .then_with(|| is_ready(a.pod).cmp(&is_ready(b.pod)))
        .then_with(|| deletion_cost(a.pod).cmp(&deletion_cost(b.pod)))
        .then_with(|| b.neighbours.cmp(&a.neighbours))
        .then_with(|| age_bucket(ready_since(a.pod), now).cmp(&age_bucket(ready_since(b.pod), now)))
        .then_with(|| restarts(b.pod).cmp(&restarts(a.pod)))
        .then_with(|| age_bucket(created(a.pod), now).cmp(&age_bucket(created(b.pod), now)))
        .then_with(|| a.pod.metadata.uid.cmp(&b.pod.metadata.uid))
}

fn phase_rank(pod: &Pod) -> u8 {
    match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(DELETION_COST)).and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Ages by powers of two, so that among pods of about the same age the choice is spread (by uid) and not always the same.
fn age_bucket(at: Option<Timestamp>, now: Timestamp) -> u32 {
    at.map_or(0, |at| {
        u64::try_from(since(now, at).as_nanos()).unwrap_or(u64::MAX).checked_ilog2().map_or(0, |log| log + 1)
    })
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, node: &str, phase: &str, ready: bool, extra: Value) -> Pod {
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "annotations": {}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"},
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        for (path, change) in extra.as_object().expect("object") {
            *value.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = change.clone();
        }
        serde_json::from_value(value).expect("pod")
    }

    #[test]
    fn pods_that_are_worth_least_go_first() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().expect("time");
        let cost = json!({"/metadata/annotations": {DELETION_COST: "-5"}});
        let late = json!({"/status/conditions/0/lastTransitionTime": "2026-01-01T00:59:59Z"});
        let pods = [
            (pod("old", "n1", "Running", true, json!({})), 0),
            (pod("late", "n1", "Running", true, late), 0),
            (pod("crowded", "n1", "Running", true, json!({})), 2),
            (pod("cheap", "n1", "Running", true, cost), 0),
            (pod("unready", "n1", "Running", false, json!({})), 0),
            (pod("pending", "n1", "Pending", false, json!({})), 0),
            (pod("unassigned", "", "Pending", false, json!({})), 0),
        ];
        let mut ranked: Vec<_> = pods.iter().map(|(pod, neighbours)| Ranked { pod, neighbours: *neighbours }).collect();
        ranked.sort_by(|a, b| deletion_order(a, b, now));
        let names: Vec<_> = ranked.iter().filter_map(|ranked| ranked.pod.metadata.name.as_deref()).collect();
        assert_eq!(names, ["unassigned", "pending", "unready", "cheap", "crowded", "late", "old"]);
    }

    #[test]
    fn a_pod_is_available_after_it_was_ready_long_enough() {
        let at = |text: &str| text.parse::<Timestamp>().expect("time");
        let pod = pod("a", "n", "Running", true, json!({}));
        assert!(is_available(&pod, 0, at("2026-01-01T00:00:00Z")));
        assert!(!is_available(&pod, 10, at("2026-01-01T00:00:09Z")));
        assert!(is_available(&pod, 10, at("2026-01-01T00:00:10Z")));
    }
}
