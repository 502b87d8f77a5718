//! The status of a pod, computed from what is seen and remembered. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{self, Memory};
use super::resources::{Qos, is_init, is_sidecar};
use super::seen::{ContainerSeen, Seen, State};

/// What a status needs beside the pod.
pub struct Facts<'a> {
    pub seen: &'a Seen,
    pub memory: &'a Memory,
    /// `containerd`, the prefix of container ids.
    pub runtime: &'a str,
    pub host_ips: &'a [String],
    /// Last words of containers that ended, by id.
    pub last_words: &'a BTreeMap<String, String>,
    /// Nanoseconds since the epoch.
    pub now: i64,
}

fn time(nanos: i64) -> Option<Time> {
    // Kubernetes' times have whole seconds.
    (nanos > 0).then(|| Timestamp::from_second(nanos / 1_000_000_000).ok().map(Time)).flatten()
}

/// Computes the whole status. Conditions that others own are kept as they are in `pod`.
pub fn compute(pod: &Pod, facts: &Facts<'_>) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let init: Vec<_> =
        spec.init_containers.iter().flatten().map(|container| container_status(pod, container, &old, facts)).collect();
    let apps: Vec<_> = spec.containers.iter().map(|container| container_status(pod, container, &old, facts)).collect();
    let mut phase = phase(pod, &init, &apps);
    let (mut reason, mut message) = (None, None);
    if let Some(verdict) = &facts.memory.verdict {
        phase = "Failed";
        reason = Some(verdict.reason.clone());
        message = Some(verdict.message.clone()).filter(|text| !text.is_empty());
    } else if plan::is_over(pod) {
        phase = if old.phase.as_deref() == Some("Failed") { "Failed" } else { "Succeeded" };
        (reason, message) = (old.reason.clone(), old.message.clone());
    }
    let host_network = spec.host_network == Some(true);
    let seen_ips = facts.seen.sandboxes.first().map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
    let ips = match (host_network, facts.seen.sandbox()) {
        (true, Some(_)) => facts.host_ips.to_vec(),
        (true, None) => old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
        (false, _) if seen_ips.is_empty() && is_final(phase) => {
            old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
        }
        (false, _) => seen_ips,
    };
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        host_ip: facts.host_ips.first().cloned(),
        host_ips: Some(facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: old.start_time.clone().or_else(|| time(facts.now)),
        qos_class: Some(old.qos_class.clone().unwrap_or_else(|| Qos::of(pod).as_str().to_owned())),
        observed_generation: pod.metadata.generation,
        nominated_node_name: old.nominated_node_name.clone(),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: (!apps.is_empty()).then_some(apps),
        ..PodStatus::default()
    };
    status.conditions = Some(conditions(pod, &status, &old, facts));
    status
}

fn is_final(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

fn phase(pod: &Pod, init: &[ContainerStatus], apps: &[ContainerStatus]) -> &'static str {
    let specs = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    for (spec, status) in specs.zip(init) {
        let state = status.state.as_ref();
        let done = if is_sidecar(spec) {
            status.started == Some(true) || status.last_state.as_ref().is_some_and(|last| last.terminated.is_some())
        } else {
            state.and_then(|state| state.terminated.as_ref()).is_some_and(|end| end.exit_code == 0)
        };
        let failed = !is_sidecar(spec)
            && state.and_then(|state| state.terminated.as_ref()).is_some_and(|end| end.exit_code != 0);
        let never = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("Never");
        let began = apps.iter().any(|app| app.container_id.is_some());
        if failed && never && !began {
            return "Failed";
        }
        if !done && !began {
            return "Pending";
        }
    }
    let (mut waiting, mut running, mut ended, mut succeeded, mut restarting) = (0, 0, 0, 0, 0);
    let specs = pod.spec.iter().flat_map(|spec| &spec.containers);
    for (spec, status) in specs.zip(apps) {
        let state = status.state.as_ref();
        let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let end = state.and_then(|state| state.terminated.as_ref());
        if state.is_some_and(|state| state.running.is_some()) {
            running += 1;
        } else if let Some(end) = end.or(last) {
            ended += 1;
            succeeded += usize::from(end.exit_code == 0);
            restarting += usize::from(plan::restarts(pod, spec, end.exit_code));
        } else {
            waiting += 1;
        }
    }
    match () {
        () if waiting > 0 => "Pending",
        () if running > 0 || restarting > 0 => "Running",
        () if ended == 0 => "Pending",
        () if ended == succeeded => "Succeeded",
        () => "Failed",
    }
}

fn container_status(pod: &Pod, container: &Container, old: &PodStatus, facts: &Facts<'_>) -> ContainerStatus {
    let old = old
        .container_statuses
        .iter()
        .chain(&old.init_container_statuses)
        .flatten()
        .find(|old| old.name == container.name);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        restart_count: old.map_or(0, |old| old.restart_count),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let Some(latest) = facts.seen.latest(&container.name) else {
        let over = plan::is_over(pod) || facts.memory.verdict.is_some() || pod.metadata.deletion_timestamp.is_some();
        let ended = plan::outcome(pod, facts.seen).is_some();
        if let Some(old) = old.filter(|_| over || ended || plan::is_settled(pod, facts.seen, container)) {
            return gone(old, ended);
        }
        if ended && !is_init(pod, container) {
            return gone(&status, ended);
        }
        status.state = Some(waiting(container, pod, facts));
        // A sandbox was replaced: what the API knew of the earlier container is its past now.
        status.last_state = old.and_then(past_of);
        return status;
    };
    status.restart_count = i32::try_from(latest.attempt).unwrap_or(i32::MAX);
    status.container_id = Some(format!("{}://{}", facts.runtime, latest.id));
    if !latest.image.is_empty() && !latest.image.starts_with("sha256:") {
        status.image.clone_from(&latest.image);
    }
    status.image_id.clone_from(&latest.image_id);
    let previous = facts.seen.before(latest).map(|previous| terminated(previous, facts));
    status.last_state = previous
        .map(ended_state)
        .or_else(|| old.filter(|old| old.container_id == status.container_id).and_then(|old| old.last_state.clone()));
    match latest.state {
        State::Running => {
            status.started = Some(plan::started(container, facts.memory, &latest.id));
            // An init container is ready when it has done its work.
            status.ready = (is_sidecar(container) || !is_init(pod, container))
                && status.started == Some(true)
                && facts
                    .memory
                    .probed
                    .get(&latest.id)
                    .map_or(container.readiness_probe.is_none(), |probed| probed.ready);
            let running = ContainerStateRunning { started_at: time(latest.started_at) };
            status.state = Some(ContainerState { running: Some(running), ..ContainerState::default() });
        }
        State::Created | State::Unknown => status.state = Some(waiting(container, pod, facts)),
        State::Exited => exited(pod, container, latest, facts, &mut status),
    }
    status
}

/// The last known status of a container whose record the runtime has already dropped. In a pod that has `ended`, also one
/// that had no turn is over.
fn gone(old: &ContainerStatus, ended: bool) -> ContainerStatus {
    let mut status = old.clone();
    (status.ready, status.started) = (false, Some(false));
    let state = old.state.clone().unwrap_or_default();
    if state.running.is_some() || (ended && state.terminated.is_none()) {
        let end = ContainerStateTerminated {
            exit_code: plan::UNSEEN_END,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            started_at: state.running.and_then(|running| running.started_at),
            ..ContainerStateTerminated::default()
        };
        status.state = Some(ended_state(end));
    }
    status
}

fn past_of(old: &ContainerStatus) -> Option<ContainerState> {
    let state = old.state.as_ref()?;
    if state.terminated.is_some() { Some(state.clone()) } else { old.last_state.clone() }
}

fn exited(pod: &Pod, container: &Container, latest: &ContainerSeen, facts: &Facts<'_>, status: &mut ContainerStatus) {
    let end = terminated(latest, facts);
    let init_ready = is_init(pod, container) && !is_sidecar(container) && end.exit_code == 0;
    status.ready = init_ready;
    let deleting = pod.metadata.deletion_timestamp.is_some() || facts.memory.verdict.is_some();
    let again = !init_ready && !deleting && plan::restarts(pod, container, end.exit_code);
    let held = facts.memory.may_restart_at(&container.name, latest.finished_at).filter(|(at, _)| *at > facts.now);
    let trouble = facts.memory.trouble.get(&container.name);
    match (again, held, trouble) {
        (true, Some((_, delay)), _) => {
            status.last_state = Some(ended_state(end));
            status.state = Some(waiting_state("CrashLoopBackOff", Some(crash_message(pod, container, delay))));
        }
        (true, None, Some(_)) => {
            status.last_state = Some(ended_state(end));
            status.state = Some(waiting(container, pod, facts));
        }
        _ => status.state = Some(ended_state(end)),
    }
}

/// The text of a crash-loop wait.
fn crash_message(pod: &Pod, container: &Container, delay: i64) -> String {
    let seconds = delay / 1_000_000_000;
    let shown = if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) };
    format!("back-off {shown} restarting failed container={} pod={}", container.name, identity(pod))
}

/// The text of the event about it. It names no time: events are counted as one as long as they say the same.
pub fn crash_event(pod: &Pod, container: &Container) -> String {
    format!("Back-off restarting failed container {} in pod {}", container.name, identity(pod))
}

fn identity(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let part = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}_{}({})", part(&meta.name), part(&meta.namespace), part(&meta.uid))
}

fn terminated(container: &ContainerSeen, facts: &Facts<'_>) -> ContainerStateTerminated {
    let words = facts.last_words.get(&container.id).cloned().filter(|words| !words.is_empty());
    let reason = match (container.reason.as_str(), container.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    ContainerStateTerminated {
        container_id: Some(format!("{}://{}", facts.runtime, container.id)),
        exit_code: container.exit_code,
        reason: Some(reason.to_owned()),
        message: words.or_else(|| Some(container.message.clone()).filter(|message| !message.is_empty())),
        started_at: time(container.started_at),
        finished_at: time(container.finished_at),
        signal: None,
    }
}

fn ended_state(end: ContainerStateTerminated) -> ContainerState {
    ContainerState { terminated: Some(end), ..ContainerState::default() }
}

fn waiting_state(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn waiting(container: &Container, pod: &Pod, facts: &Facts<'_>) -> ContainerState {
    if let Some(trouble) = facts.memory.trouble.get(&container.name) {
        return waiting_state(trouble.reason, Some(trouble.message.clone()));
    }
    let has_init =
        pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).is_some_and(|init| !init.is_empty());
    waiting_state(if has_init { "PodInitializing" } else { "ContainerCreating" }, None)
}

struct Wanted {
    kind: &'static str,
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn conditions(pod: &Pod, status: &PodStatus, old: &PodStatus, facts: &Facts<'_>) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let wanted = [
        sandboxed(facts),
        initialized(pod, status, phase),
        containers_ready(pod, status, phase),
        ready(pod, status, old, phase),
        Wanted { kind: "PodScheduled", status: true, reason: None, message: None },
    ];
    let mut conditions: Vec<PodCondition> = old.conditions.clone().unwrap_or_default();
    for want in wanted {
        let value = if want.status { "True" } else { "False" };
        let place = conditions.iter().position(|condition| condition.type_ == want.kind);
        let kept = place.and_then(|place| conditions.get(place)).filter(|condition| condition.status == value);
        let since = kept.and_then(|condition| condition.last_transition_time.clone()).or_else(|| time(facts.now));
        let fresh = PodCondition {
            type_: want.kind.to_owned(),
            status: value.to_owned(),
            reason: want.reason.map(str::to_owned),
            message: want.message,
            last_transition_time: since,
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        };
        match place {
            Some(place) => conditions[place] = fresh,
            None => conditions.push(fresh),
        }
    }
    conditions
}

fn sandboxed(facts: &Facts<'_>) -> Wanted {
    Wanted { kind: "PodReadyToStartContainers", status: facts.seen.sandbox().is_some(), reason: None, message: None }
}

fn initialized(pod: &Pod, status: &PodStatus, phase: &str) -> Wanted {
    let kind = "Initialized";
    if phase == "Succeeded" {
        return Wanted { kind, status: true, reason: Some("PodCompleted"), message: None };
    }
    let began = status.container_statuses.iter().flatten().any(|app| app.container_id.is_some());
    let specs = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let open: Vec<&str> = specs
        .zip(status.init_container_statuses.iter().flatten())
        .filter(|(spec, status)| if is_sidecar(spec) { status.started != Some(true) } else { !status.ready })
        .map(|(spec, _)| spec.name.as_str())
        .collect();
    if began || open.is_empty() {
        return Wanted { kind, status: true, reason: None, message: None };
    }
    let message = format!("containers with incomplete status: [{}]", open.join(" "));
    Wanted { kind, status: false, reason: Some("ContainersNotInitialized"), message: Some(message) }
}

fn containers_ready(pod: &Pod, status: &PodStatus, phase: &str) -> Wanted {
    let kind = "ContainersReady";
    match phase {
        "Succeeded" => return Wanted { kind, status: false, reason: Some("PodCompleted"), message: None },
        "Failed" => return Wanted { kind, status: false, reason: Some("PodFailed"), message: None },
        _ => (),
    }
    let sidecars =
        pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).filter(|spec| is_sidecar(spec));
    let sidecars = sidecars.map(|spec| &spec.name).collect::<Vec<_>>();
    let init = status.init_container_statuses.iter().flatten().filter(|status| sidecars.contains(&&status.name));
    let unready: Vec<&str> = init
        .chain(status.container_statuses.iter().flatten())
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() {
        return Wanted { kind, status: true, reason: None, message: None };
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    Wanted { kind, status: false, reason: Some("ContainersNotReady"), message: Some(message) }
}

fn ready(pod: &Pod, status: &PodStatus, old: &PodStatus, phase: &str) -> Wanted {
    let containers = containers_ready(pod, status, phase);
    if !containers.status {
        return Wanted { kind: "Ready", ..containers };
    }
    let open: Vec<String> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten())
        .filter(|gate| {
            !old.conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == gate.condition_type && condition.status == "True")
        })
        .map(|gate| {
            format!("corresponding condition of pod readiness gate \"{}\" does not exist.", gate.condition_type)
        })
        .collect();
    if open.is_empty() {
        return Wanted { kind: "Ready", status: true, reason: None, message: None };
    }
    Wanted { kind: "Ready", status: false, reason: Some("ReadinessGatesNotReady"), message: Some(open.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::seen::SandboxSeen;
    use serde_json::{Value, json};

    fn shown(spec: Value, containers: Vec<ContainerSeen>, memory: &Memory) -> Value {
        let pod: Pod = serde_json::from_value(
            json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u", "generation": 3 }, "spec": spec }),
        )
        .expect("pod");
        let sandbox =
            SandboxSeen { id: "s".into(), ready: true, ips: vec!["10.244.0.5".into()], ..SandboxSeen::default() };
        let seen = Seen { sandboxes: vec![sandbox], containers };
        let facts = Facts {
            seen: &seen,
            memory,
            runtime: "containerd",
            host_ips: &["10.0.0.1".into()],
            last_words: &BTreeMap::new(),
            now: 1_000_000_000,
        };
        serde_json::to_value(compute(&pod, &facts)).expect("value")
    }

    fn container(name: &str, state: State, exit_code: i32) -> ContainerSeen {
        ContainerSeen {
            id: format!("{name}-id"),
            name: name.into(),
            sandbox_id: "s".into(),
            state,
            exit_code,
            finished_at: 900_000_000,
            ..ContainerSeen::default()
        }
    }

    fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
        status["conditions"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["type"] == kind))
            .unwrap_or(&Value::Null)
    }

    #[test]
    fn running_and_ready() {
        let status = shown(
            json!({ "containers": [{ "name": "a" }] }),
            vec![container("a", State::Running, 0)],
            &Memory::default(),
        );
        assert_eq!(
            (&status["phase"], &status["podIP"], &status["qosClass"]),
            (&json!("Running"), &json!("10.244.0.5"), &json!("BestEffort"))
        );
        assert_eq!(condition(&status, "Ready")["status"], "True");
        assert_eq!(status["containerStatuses"][0]["containerID"], "containerd://a-id");
        assert_eq!(status["observedGeneration"], 3);
    }

    #[test]
    fn not_ready_names_the_containers() {
        let spec = json!({ "containers": [{ "name": "a", "readinessProbe": {} }, { "name": "b" }] });
        let status =
            shown(spec, vec![container("a", State::Running, 0), container("b", State::Running, 0)], &Memory::default());
        assert_eq!(condition(&status, "Ready")["message"], "containers with unready status: [a]");
        assert_eq!(condition(&status, "ContainersReady")["reason"], "ContainersNotReady");
    }

    #[test]
    fn initialization_is_pending() {
        let spec = json!({ "initContainers": [{ "name": "i" }], "containers": [{ "name": "a" }] });
        let status = shown(spec, vec![container("i", State::Running, 0)], &Memory::default());
        assert_eq!(status["phase"], "Pending");
        assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
        assert_eq!(condition(&status, "Initialized")["message"], "containers with incomplete status: [i]");
    }

    #[test]
    fn a_crash_loop_waits_with_its_past() {
        let mut memory = Memory::default();
        memory.restarted("a", 0, 0);
        let status = shown(json!({ "containers": [{ "name": "a" }] }), vec![container("a", State::Exited, 1)], &memory);
        assert_eq!(status["phase"], "Running");
        let a = &status["containerStatuses"][0];
        assert_eq!(a["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(a["state"]["waiting"]["message"], "back-off 10s restarting failed container=a pod=p_ns(u)");
        assert_eq!(a["lastState"]["terminated"]["exitCode"], 1);
    }

    #[test]
    fn ends() {
        let phase = |policy: &str, code| {
            let spec = json!({ "restartPolicy": policy, "containers": [{ "name": "a" }] });
            shown(spec, vec![container("a", State::Exited, code)], &Memory::default())["phase"].clone()
        };
        assert_eq!((phase("Never", 0), phase("Never", 1)), (json!("Succeeded"), json!("Failed")));
        assert_eq!((phase("OnFailure", 1), phase("Always", 0)), (json!("Running"), json!("Running")));
    }

    #[test]
    fn a_pod_that_lost_its_sandbox_for_good_has_ended_with_all_its_containers() {
        let spec = json!({ "restartPolicy": "Never", "containers": [{ "name": "a" }, { "name": "b" }] });
        let pod: Pod = serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).expect("pod");
        let seen = Seen { sandboxes: Vec::new(), containers: vec![container("a", State::Exited, 0)] };
        let (memory, words) = (Memory::default(), BTreeMap::new());
        let facts =
            Facts { seen: &seen, memory: &memory, runtime: "containerd", host_ips: &[], last_words: &words, now: 1 };
        let status = serde_json::to_value(compute(&pod, &facts)).expect("value");
        assert_eq!(status["phase"], "Failed");
        let ends: Vec<_> = (0..2).map(|place| &status["containerStatuses"][place]["state"]["terminated"]).collect();
        assert_eq!((&ends[0]["exitCode"], &ends[1]["exitCode"]), (&json!(0), &json!(137)));
        assert_eq!(ends[1]["reason"], "ContainerStatusUnknown");
    }

    #[test]
    fn a_pull_that_fails_shows_its_reason() {
        let mut memory = Memory::default();
        memory.failed("a", "ErrImagePull", "no such image".into(), 1, 1);
        let status = shown(json!({ "containers": [{ "name": "a" }] }), vec![], &memory);
        assert_eq!(
            status["containerStatuses"][0]["state"]["waiting"],
            json!({ "reason": "ErrImagePull", "message": "no such image" })
        );
        assert_eq!(status["phase"], "Pending");
    }
}
