//! The row of a pod: the STATUS column sums up phase, reasons, containers and deletion.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{self, NONE};
use super::duration;
use crate::meta::{self, Meta};
use crate::tree;

/// Row conditions of pods that have ended.
pub(super) fn conditions(pod: &Value) -> Vec<Value> {
    let (reason, message) = match tree::text(pod, "/status/phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

/// What is counted over the containers.
struct Tally {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let tally = tally(pod);
    let restarts = match tally.last_restart {
        Some(last) if tally.restarts != 0 => {
            format!("{} ({} ago)", tally.restarts, duration::human(now.duration_since(last)))
        }
        _ => tally.restarts.to_string(),
    };
    vec![
        cells::name(pod),
        json!(format!("{}/{}", tally.ready, tally.total)),
        json!(status(pod, tally.reason)),
        json!(restarts),
        cells::age(pod, now),
        cells::text_or(pod, "/status/podIPs/0/ip", NONE),
        cells::text_or(pod, "/spec/nodeName", NONE),
        cells::text_or(pod, "/status/nominatedNodeName", NONE),
        json!(readiness_gates(pod)),
    ]
}

fn status(pod: &Value, reason: String) -> String {
    if !Meta::of(pod).is_deleting() {
        return reason;
    }
    if tree::text(pod, "/status/reason") == "NodeLost" {
        return "Unknown".to_owned();
    }
    if matches!(tree::text(pod, "/status/phase"), "Succeeded" | "Failed") { reason } else { "Terminating".to_owned() }
}

fn tally(pod: &Value) -> Tally {
    let reason = tree::some_text(pod, "/status/reason").unwrap_or_else(|| tree::text(pod, "/status/phase"));
    let gated = tree::list(pod, "/status/conditions").iter().any(|condition| {
        tree::text(condition, "/type") == "PodScheduled" && tree::text(condition, "/reason") == "SchedulingGated"
    });
    let mut tally = Tally {
        reason: if gated { "SchedulingGated" } else { reason }.to_owned(),
        ready: 0,
        total: tree::list(pod, "/spec/containers").len(),
        restarts: 0,
        last_restart: None,
    };
    let initializing = init_containers(pod, &mut tally);
    if !initializing || cells::is_true(pod, "Initialized") {
        containers(pod, &mut tally);
    }
    tally
}

fn sidecars(pod: &Value) -> HashSet<&str> {
    tree::list(pod, "/spec/initContainers")
        .iter()
        .filter(|container| tree::text(container, "/restartPolicy") == "Always")
        .map(|container| tree::text(container, "/name"))
        .collect()
}

/// Counts one container's restarts.
fn count(status: &Value, restarts: &mut i64, last: &mut Option<Timestamp>) {
    *restarts += tree::int(status, "/restartCount").unwrap_or_default();
    *last = (*last).max(meta::timestamp(status, "/lastState/terminated/finishedAt"));
}

/// Looks at the init containers in order, up to the first that has not done its part; true if there is one. Restarts of
/// sidecars are left in the tally, because they go on counting beside those of the app.
fn init_containers(pod: &Value, tally: &mut Tally) -> bool {
    let all = tree::list(pod, "/spec/initContainers");
    let sidecars = sidecars(pod);
    tally.total += sidecars.len();
    let (mut sidecar_restarts, mut sidecar_last) = (0, None);
    let mut initializing = false;
    for (index, status) in tree::list(pod, "/status/initContainerStatuses").iter().enumerate() {
        count(status, &mut tally.restarts, &mut tally.last_restart);
        let sidecar = sidecars.contains(tree::text(status, "/name"));
        if sidecar {
            count(status, &mut sidecar_restarts, &mut sidecar_last);
        }
        let terminated = tree::at(status, "/state/terminated");
        if terminated.is_some_and(|end| tree::int(end, "/exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if sidecar && tree::flag(status, "/started") {
            tally.ready += usize::from(tree::flag(status, "/ready"));
            continue;
        }
        tally.reason = match (terminated, tree::some_text(status, "/state/waiting/reason")) {
            (Some(end), _) => format!("Init:{}", end_reason(end)),
            (None, Some(reason)) if reason != "PodInitializing" => format!("Init:{reason}"),
            _ => format!("Init:{index}/{}", all.len()),
        };
        initializing = true;
        break;
    }
    if !initializing || cells::is_true(pod, "Initialized") {
        tally.restarts = sidecar_restarts;
        tally.last_restart = sidecar_last;
    }
    initializing
}

/// Why a container ended: its reason, else its signal or exit code.
fn end_reason(end: &Value) -> String {
    if let Some(reason) = tree::some_text(end, "/reason") {
        return reason.to_owned();
    }
    match tree::int(end, "/signal").unwrap_or(0) {
        0 => format!("ExitCode:{}", tree::int(end, "/exitCode").unwrap_or(0)),
        signal => format!("Signal:{signal}"),
    }
}

fn containers(pod: &Value, tally: &mut Tally) {
    let mut has_running = false;
    for status in tree::list(pod, "/status/containerStatuses").iter().rev() {
        count(status, &mut tally.restarts, &mut tally.last_restart);
        if let Some(reason) = tree::some_text(status, "/state/waiting/reason") {
            tally.reason = reason.to_owned();
        } else if let Some(end) = tree::at(status, "/state/terminated") {
            tally.reason = end_reason(end);
        } else if tree::flag(status, "/ready") && tree::at(status, "/state/running").is_some() {
            has_running = true;
            tally.ready += 1;
        }
    }
    if tally.reason == "Completed" && has_running {
        tally.reason = if cells::is_true(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = tree::list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let holding: HashSet<&str> = tree::list(pod, "/status/conditions")
        .iter()
        .filter(|condition| tree::text(condition, "/status") == "True")
        .map(|condition| tree::text(condition, "/type"))
        .collect();
    let open = gates.iter().filter(|gate| holding.contains(tree::text(gate, "/conditionType"))).count();
    format!("{open}/{}", gates.len())
}
