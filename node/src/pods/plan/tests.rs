//! Plans as stories: a pod, what the runtime shows, and the actions that follow.

use super::*;
use crate::pods::seen::SandboxSeen;
use serde_json::{Value, json};

const SECOND: i64 = 1_000_000_000;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).expect("pod")
}

fn sandbox() -> SandboxSeen {
    SandboxSeen { id: "s".into(), ready: true, ..SandboxSeen::default() }
}

/// `a running`, `a exited 1 @5`: name, state, exit code, second of the end.
fn container(text: &str, attempt: u32) -> ContainerSeen {
    let words: Vec<&str> = text.split(' ').collect();
    let state = match words[1] {
        "running" => State::Running,
        "exited" => State::Exited,
        "created" => State::Created,
        _ => State::Unknown,
    };
    ContainerSeen {
        id: format!("{}{attempt}", words[0]),
        name: words[0].into(),
        sandbox_id: "s".into(),
        attempt,
        state,
        exit_code: words.get(2).and_then(|code| code.parse().ok()).unwrap_or(0),
        finished_at: words.get(3).and_then(|at| at.trim_start_matches('@').parse::<i64>().ok()).unwrap_or(0) * SECOND,
        ..ContainerSeen::default()
    }
}

fn seen(containers: &[&str]) -> Seen {
    Seen { sandboxes: vec![sandbox()], containers: containers.iter().map(|text| container(text, 0)).collect() }
}

fn shown(plan: &Plan) -> String {
    let actions = plan.actions.iter().map(|action| match action {
        Action::StopPod => "stop pod".to_owned(),
        Action::DropSandbox { id } => format!("drop {id}"),
        Action::StopSandbox { id } => format!("halt {id}"),
        Action::RunSandbox { attempt } => format!("sandbox {attempt}"),
        Action::Start { name, attempt } => format!("start {name} {attempt}"),
        Action::Stop { name, why, .. } => format!("stop {name} {why:?}"),
        Action::Remove { id } => format!("remove {id}"),
    });
    let mut words: Vec<String> = actions.collect();
    words.extend(plan.wake.map(|at| format!("wake @{}", at / SECOND)));
    words.join(", ")
}

#[track_caller]
fn check(spec: Value, seen: &Seen, want: &str) {
    assert_eq!(shown(&plan(&pod(spec), seen, &Memory::default(), 100 * SECOND)), want);
}

fn two() -> Value {
    json!({ "initContainers": [{ "name": "i" }, { "name": "j" }], "containers": [{ "name": "a" }, { "name": "b" }] })
}

#[test]
fn a_new_pod_begins_with_its_sandbox() {
    check(two(), &Seen::default(), "sandbox 0");
}

/// What was seen, after the sandbox has died.
fn lost(containers: &[&str]) -> Seen {
    let mut seen = seen(containers);
    seen.sandboxes[0].ready = false;
    seen
}

#[test]
fn a_dead_sandbox_is_replaced_by_the_next_one() {
    check(two(), &lost(&["a running"]), "stop pod");
    check(two(), &lost(&["a exited 137"]), "drop s, sandbox 1");
}

#[test]
fn containers_that_are_over_stay_over_when_their_sandbox_is_lost() {
    let spec = |policy: &str| json!({ "restartPolicy": policy, "containers": [{ "name": "a" }, { "name": "b" }] });
    // (policy, containers, plan, outcome)
    let table: [(&str, &[&str], &str, Option<bool>); 9] = [
        ("Never", &["a exited 0", "b running"], "stop pod", None),
        ("Never", &["a exited 0", "b exited 137"], "", Some(false)),
        ("Never", &["a exited 0", "b exited 0"], "", Some(true)),
        ("Never", &["a exited 0"], "", Some(false)),
        ("Never", &["a created"], "drop s, sandbox 1", None),
        ("OnFailure", &["a exited 0", "b exited 137"], "halt s, sandbox 1", None),
        ("OnFailure", &["a exited 0", "b exited 0"], "", Some(true)),
        ("OnFailure", &["a exited 0"], "halt s, sandbox 1", None),
        ("Always", &["a exited 0", "b exited 0"], "drop s, sandbox 1", None),
    ];
    for (policy, containers, want, end) in table {
        let (pod, seen) = (pod(spec(policy)), lost(containers));
        assert_eq!(shown(&plan(&pod, &seen, &Memory::default(), 0)), want, "{policy} {containers:?}");
        assert_eq!(outcome(&pod, &seen), end, "{policy} {containers:?}");
    }
}

#[test]
fn only_what_failed_runs_again_in_the_next_sandbox() {
    let spec = json!({ "restartPolicy": "OnFailure", "initContainers": [{ "name": "i" }],
        "containers": [{ "name": "a" }, { "name": "b" }] });
    let mut seen = lost(&["a exited 0", "b exited 1"]);
    seen.sandboxes.insert(0, SandboxSeen { id: "t".into(), ready: true, attempt: 1, ..SandboxSeen::default() });
    check(spec.clone(), &seen, "start i 0");
    let inside = |text: &str, attempt| ContainerSeen { sandbox_id: "t".into(), ..container(text, attempt) };
    seen.containers.insert(0, inside("i exited 0", 0));
    check(spec.clone(), &seen, "start b 1");
    seen.containers.insert(0, inside("b exited 0", 1));
    check(spec.clone(), &seen, "stop pod");
    assert_eq!(outcome(&pod(spec), &seen), Some(true));
}

#[test]
fn what_the_api_was_told_counts_where_the_runtime_has_no_record() {
    let told = |policy: &str, state: Value| {
        let mut pod = pod(json!({ "restartPolicy": policy, "containers": [{ "name": "a" }] }));
        pod.status = serde_json::from_value(json!({ "containerStatuses": [
            { "name": "a", "restartCount": 0, "image": "", "imageID": "", "ready": false, "state": state },
        ] }))
        .expect("status");
        shown(&plan(&pod, &Seen::default(), &Memory::default(), 0))
    };
    let ended = |code: i32| json!({ "terminated": { "exitCode": code } });
    assert_eq!(told("Never", ended(0)), "");
    assert_eq!(told("Never", json!({ "running": {} })), "");
    assert_eq!(told("OnFailure", ended(0)), "");
    assert_eq!(told("OnFailure", ended(1)), "sandbox 0");
    assert_eq!(told("Always", json!({ "running": {} })), "sandbox 0");
    assert_eq!(told("Never", json!({ "waiting": {} })), "sandbox 0");
}

#[test]
fn init_containers_run_one_after_the_other() {
    check(two(), &seen(&[]), "start i 0");
    check(two(), &seen(&["i running"]), "");
    check(two(), &seen(&["i exited 0"]), "start j 0");
    check(two(), &seen(&["i exited 0", "j exited 0"]), "start a 0, start b 0");
    check(two(), &seen(&["i exited 1"]), "start i 1");
    check(two(), &seen(&["a running"]), "start b 0");
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let mut spec = two();
    spec["restartPolicy"] = json!("Never");
    check(spec.clone(), &seen(&["i exited 1"]), "stop pod");
    assert_eq!(outcome(&pod(spec), &seen(&["i exited 1"])), Some(false));
}

#[test]
fn sidecars_start_first_and_stay() {
    let spec = json!({
        "initContainers": [{ "name": "s", "restartPolicy": "Always", "startupProbe": {} }], "containers": [{ "name": "a" }],
    });
    check(spec.clone(), &seen(&[]), "start s 0");
    check(spec.clone(), &seen(&["s running"]), "");
    let mut memory = Memory::default();
    memory.probed.insert("s0".into(), Probed { started: true, ready: true, failed: None });
    assert_eq!(shown(&plan(&pod(spec.clone()), &seen(&["s running"]), &memory, 0)), "start a 0");
    check(spec, &seen(&["a running", "s exited 0"]), "start s 1");
}

#[test]
fn policies() {
    let spec = |policy: &str| json!({ "restartPolicy": policy, "containers": [{ "name": "a" }] });
    check(spec("Always"), &seen(&["a exited 0"]), "start a 1");
    check(spec("OnFailure"), &seen(&["a exited 1"]), "start a 1");
    check(spec("OnFailure"), &seen(&["a exited 0"]), "stop pod");
    check(spec("Never"), &seen(&["a exited 1"]), "stop pod");
    assert_eq!(outcome(&pod(spec("OnFailure")), &seen(&["a exited 0"])), Some(true));
    assert_eq!(outcome(&pod(spec("Always")), &seen(&["a exited 0"])), None);
}

#[test]
fn crashes_wait_longer_each_time() {
    let pod = pod(json!({ "containers": [{ "name": "a" }] }));
    let mut memory = Memory::default();
    let mut waits = Vec::new();
    let mut now = 0;
    for attempt in 0..7 {
        let mut seen = seen(&[]);
        seen.containers.push(ContainerSeen { finished_at: now, ..container("a exited 1", attempt) });
        let first = plan(&pod, &seen, &memory, now);
        let at = first.wake.unwrap_or(now);
        assert_eq!(shown(&plan(&pod, &seen, &memory, at)), format!("start a {}", attempt + 1));
        memory.restarted("a", now, at);
        waits.push((at - now) / SECOND);
        now = at + SECOND;
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300]);
    assert_eq!(memory.may_restart_at("a", now + FORGET + SECOND), None, "a good run is forgiven");
}

#[test]
fn trouble_waits_and_doubles() {
    let pod = pod(json!({ "containers": [{ "name": "a" }] }));
    let mut memory = Memory::default();
    memory.failed("a", "ErrImagePull", String::new(), 10 * SECOND, 100 * SECOND);
    assert_eq!(shown(&plan(&pod, &seen(&[]), &memory, 101 * SECOND)), "wake @110");
    assert_eq!(shown(&plan(&pod, &seen(&[]), &memory, 110 * SECOND)), "start a 0");
    memory.failed("a", "ErrImagePull", String::new(), 10 * SECOND, 110 * SECOND);
    assert_eq!(memory.trouble["a"].until, 130 * SECOND);
}

#[test]
fn a_healthy_container_is_left_alone_and_a_failed_probe_is_not() {
    let spec = json!({ "containers": [{ "name": "a", "image": "x" }] });
    let mut seen = seen(&["a running"]);
    seen.containers[0].hash = hash(&pod(spec.clone()).spec.expect("spec").containers[0]);
    check(spec.clone(), &seen, "");
    let changed = json!({ "containers": [{ "name": "a", "image": "y" }] });
    check(changed, &seen, "stop a SpecChanged");
    let mut memory = Memory::default();
    let failed = Some(StopReason::Liveness("dead".into()));
    memory.probed.insert("a0".into(), Probed { started: true, ready: false, failed });
    assert_eq!(shown(&plan(&pod(spec), &seen, &memory, 0)), "stop a Liveness(\"dead\")");
}

#[test]
fn deletion_stops_what_runs_and_then_does_nothing() {
    let mut pod = pod(two());
    pod.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    let memory = Memory::default();
    assert_eq!(shown(&plan(&pod, &seen(&["a running"]), &memory, 0)), "stop pod");
    assert_eq!(shown(&plan(&pod, &Seen::default(), &memory, 0)), "");
}

#[test]
fn an_unstarted_container_is_made_anew_and_old_ones_are_removed() {
    let spec = json!({ "containers": [{ "name": "a" }] });
    check(spec.clone(), &seen(&["a created"]), "remove a0, start a 0");
    let mut seen = seen(&[]);
    for (text, attempt) in [("a running", 3), ("a exited 1", 2), ("a exited 1", 1), ("a exited 1", 0)] {
        seen.containers.push(container(text, attempt));
    }
    check(spec, &seen, "remove a1, remove a0");
}

#[test]
fn counts_survive_the_loss_of_the_runtimes_records() {
    let mut pod = pod(json!({ "containers": [{ "name": "a" }] }));
    pod.status = serde_json::from_value(json!({ "containerStatuses": [
        { "name": "a", "containerID": "containerd://x", "restartCount": 4, "image": "", "imageID": "", "ready": false },
    ] }))
    .expect("status");
    assert_eq!(next_attempt(&pod, &Seen::default(), "a"), 5);
}
