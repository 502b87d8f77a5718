//! Decides what to do next about one pod: objects and facts in, actions out. No clock, no I/O.
//!
//! Always holds: nothing starts before its sandbox and the init containers before it; a healthy container is never
//! touched; a container that ended is started again only as its policy and its backoff allow, also when its sandbox is
//! lost: then as much ends as the policy says, and what is over stays over.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::resources::{self, is_init, is_sidecar};
use super::seen::{ContainerSeen, Seen, State};
use crate::limits;

/// One step. Steps of a plan are done in order; the pod is looked at again afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ends everything: containers in their order, then the sandbox.
    StopPod,
    /// Stops and removes a sandbox that is not used any more, with what is left in it.
    DropSandbox {
        id: String,
    },
    /// Stops a sandbox whose records are still needed: they say which containers are over.
    StopSandbox {
        id: String,
    },
    RunSandbox {
        attempt: u32,
    },
    Start {
        name: String,
        attempt: u32,
    },
    Stop {
        id: String,
        name: String,
        why: StopReason,
    },
    Remove {
        id: String,
    },
}

/// Why a running container is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    Liveness(String),
    Startup(String),
    SpecChanged,
    Unknown,
}

/// What probes found out about one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    pub started: bool,
    pub ready: bool,
    pub failed: Option<StopReason>,
}

/// Restarts of one container so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Crashes {
    delay: i64,
    last: i64,
}

/// The pod's end as the agent decided it, whatever its containers do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
}

/// What the worker remembers between looks. Everything in here may be lost without harm.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// By container id.
    pub probed: BTreeMap<String, Probed>,
    /// Why a container could not be started the last time: reason and message. By name.
    pub trouble: BTreeMap<String, Trouble>,
    pub verdict: Option<Verdict>,
    crashes: BTreeMap<String, Crashes>,
}

/// A start that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: &'static str,
    pub message: String,
    /// Not tried again before, nanoseconds since the epoch.
    pub until: i64,
    pub delay: i64,
}

const FIRST: i64 = limits::BACKOFF_FIRST.as_nanos() as i64;
const MAX: i64 = limits::BACKOFF_MAX.as_nanos() as i64;
const FORGET: i64 = limits::BACKOFF_FORGET.as_nanos() as i64;

impl Memory {
    /// The moment from which a container that ended at `finished` may run again, and its delay.
    pub fn may_restart_at(&self, name: &str, finished: i64) -> Option<(i64, i64)> {
        let crashes = self.crashes.get(name)?;
        (finished.saturating_sub(crashes.last) <= FORGET)
            .then(|| (finished.saturating_add(crashes.delay), crashes.delay))
    }

    /// A container that had ended at `finished` is being started again.
    pub fn restarted(&mut self, name: &str, finished: i64, now: i64) {
        let delay = match self.crashes.get(name) {
            Some(crashes) if finished.saturating_sub(crashes.last) <= FORGET => (crashes.delay * 2).min(MAX),
            _ => FIRST,
        };
        self.crashes.insert(name.to_owned(), Crashes { delay, last: now });
    }

    /// A start failed; the next try waits twice as long as this one did.
    pub fn failed(&mut self, name: &str, reason: &'static str, message: String, first: i64, now: i64) {
        let delay = self
            .trouble
            .get(name)
            .filter(|trouble| trouble.reason == reason)
            .map_or(first, |trouble| (trouble.delay * 2).min(MAX));
        self.trouble.insert(name.to_owned(), Trouble { reason, message, until: now.saturating_add(delay), delay });
    }
}

/// What is to be done now, and when to look again at the latest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Nanoseconds since the epoch.
    pub wake: Option<i64>,
}

impl Plan {
    fn wake_at(&mut self, at: i64) {
        self.wake = Some(self.wake.map_or(at, |other| other.min(at)));
    }
}

/// Whether a container that ended runs again.
pub fn restarts(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    if is_sidecar(container) {
        return true;
    }
    let policy = container.restart_policy.as_deref();
    let policy = policy.or_else(|| pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()));
    match policy {
        Some("Never") => false,
        Some("OnFailure") => exit_code != 0,
        _ => true,
    }
}

/// What has become of a container in the life of its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It never ran, as far as anybody knows.
    NeverRan,
    Running,
    Ended(i32),
}

/// Exit code of a container whose end nobody saw: as if it had been killed.
pub const UNSEEN_END: i32 = 137;

/// The runtime's record counts; where it has none, what the API was told before the record was lost.
fn fate(pod: &Pod, seen: &Seen, container: &Container) -> Fate {
    let Some(latest) = seen.latest(&container.name) else { return told_fate(pod, &container.name) };
    match latest.state {
        State::Running => Fate::Running,
        State::Exited => Fate::Ended(latest.exit_code),
        // In a sandbox that works it is stopped first, and then has an exit code.
        State::Unknown if seen.current(&container.name).is_none() => Fate::Ended(UNSEEN_END),
        State::Unknown => Fate::Running,
        State::Created => Fate::NeverRan,
    }
}

fn told_fate(pod: &Pod, name: &str) -> Fate {
    let status = pod.status.as_ref();
    let mut all = status.into_iter().flat_map(|status| {
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
    });
    let state = all.find(|status| status.name == name).and_then(|status| status.state.as_ref());
    match state {
        Some(state) if state.running.is_some() => Fate::Ended(UNSEEN_END),
        Some(state) => state.terminated.as_ref().map_or(Fate::NeverRan, |end| Fate::Ended(end.exit_code)),
        None => Fate::NeverRan,
    }
}

/// True if an app container has ended and will not run again, whatever becomes of its sandbox.
pub fn is_settled(pod: &Pod, seen: &Seen, container: &Container) -> bool {
    !(is_init(pod, container) || is_sidecar(container))
        && matches!(fate(pod, seen, container), Fate::Ended(code) if !restarts(pod, container, code))
}

/// How the pod as a whole ended, by its containers: `Some(true)` is success.
pub fn outcome(pod: &Pod, seen: &Seen) -> Option<bool> {
    let spec = pod.spec.as_ref()?;
    let never = spec.restart_policy.as_deref() == Some("Never");
    let fates: Vec<Fate> = spec.containers.iter().map(|container| fate(pod, seen, container)).collect();
    let began = fates.iter().any(|fate| *fate != Fate::NeverRan);
    for init in spec.init_containers.iter().flatten().filter(|container| !is_sidecar(container)) {
        // Init containers know only "again" and "never again".
        if never && !began && matches!(fate(pod, seen, init), Fate::Ended(code) if code != 0) {
            return Some(false);
        }
    }
    // Under `Never` nothing goes into a second sandbox once a container has run: what had no turn has failed.
    let lost = never && began && seen.sandbox().is_none();
    let mut success = true;
    for (container, fate) in spec.containers.iter().zip(fates) {
        match fate {
            Fate::Ended(code) if !restarts(pod, container, code) => success &= code == 0,
            Fate::NeverRan if lost => success = false,
            _ => return None,
        }
    }
    (!spec.containers.is_empty()).then_some(success)
}

/// True if the API already holds a final phase.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Makes the plan for `pod` at `now` (nanoseconds since the epoch).
pub fn plan(pod: &Pod, seen: &Seen, memory: &Memory, now: i64) -> Plan {
    let mut plan = Plan::default();
    let ending = pod.metadata.deletion_timestamp.is_some()
        || memory.verdict.is_some()
        || is_over(pod)
        || outcome(pod, seen).is_some();
    if ending {
        if seen.anything_runs() {
            plan.actions.push(Action::StopPod);
        }
        return plan;
    }
    let Some(sandbox) = seen.sandbox() else {
        renew_sandbox(pod, seen, memory, now, &mut plan);
        return plan;
    };
    for old in seen.sandboxes.iter().filter(|other| other.id != sandbox.id) {
        match (holds_records(pod, seen, &old.id), old.ready) {
            (false, _) => plan.actions.push(Action::DropSandbox { id: old.id.clone() }),
            (true, true) => plan.actions.push(Action::StopSandbox { id: old.id.clone() }),
            (true, false) => (),
        }
    }
    prune(pod, seen, &mut plan);
    let Some(spec) = &pod.spec else { return plan };
    let apps_began = spec.containers.iter().any(|container| seen.current(&container.name).is_some());
    if !init(pod, seen, memory, now, apps_began, &mut plan) {
        return plan;
    }
    for container in &spec.containers {
        tend(pod, container, seen, memory, now, &mut plan);
    }
    plan
}

/// Name under which trouble with the sandbox itself is remembered; no container can have it.
pub const SANDBOX: &str = "";

/// True if the sandbox has the only record that a container is over.
fn holds_records(pod: &Pod, seen: &Seen, sandbox: &str) -> bool {
    resources::containers(pod).any(|container| {
        is_settled(pod, seen, container)
            && seen.latest(&container.name).is_some_and(|latest| latest.sandbox_id == sandbox)
    })
}

/// Ends what still runs without its sandbox; once it has ended, its exit codes say what the next sandbox is for.
fn renew_sandbox(pod: &Pod, seen: &Seen, memory: &Memory, now: i64, plan: &mut Plan) {
    if seen.anything_runs() {
        plan.actions.push(Action::StopPod);
        return;
    }
    for old in &seen.sandboxes {
        let id = old.id.clone();
        let needed = holds_records(pod, seen, &id);
        plan.actions.push(if needed { Action::StopSandbox { id } } else { Action::DropSandbox { id } });
    }
    match memory.trouble.get(SANDBOX) {
        Some(trouble) if trouble.until > now => plan.wake_at(trouble.until),
        _ => {
            let attempt = seen.sandboxes.iter().map(|old| old.attempt.saturating_add(1)).max().unwrap_or(0);
            plan.actions.push(Action::RunSandbox { attempt });
        }
    }
}

/// Keeps the newest container of each name and the one that ended before it.
fn prune(pod: &Pod, seen: &Seen, plan: &mut Plan) {
    for spec in resources::containers(pod) {
        let ended = seen.containers.iter().filter(|container| container.name == spec.name).skip(1);
        for old in ended.filter(|container| !container.running()).skip(1) {
            plan.actions.push(Action::Remove { id: old.id.clone() });
        }
    }
}

/// Works on init containers; true once the app containers' turn has come.
fn init(pod: &Pod, seen: &Seen, memory: &Memory, now: i64, apps_began: bool, plan: &mut Plan) -> bool {
    for container in pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()) {
        let current = seen.current(&container.name);
        if is_sidecar(container) {
            tend(pod, container, seen, memory, now, plan);
            let up = current.is_some_and(|current| current.running() && started(container, memory, &current.id));
            if !up && !apps_began {
                return false;
            }
            continue;
        }
        match current {
            Some(current) if current.exited() && current.exit_code == 0 => (),
            // Once the apps began, initialization is over, whatever happened to its records.
            _ if apps_began => (),
            _ => {
                tend(pod, container, seen, memory, now, plan);
                return false;
            }
        }
    }
    true
}

/// True if the startup probe, if any, has passed.
pub fn started(container: &Container, memory: &Memory, id: &str) -> bool {
    memory.probed.get(id).map_or(container.startup_probe.is_none(), |probed| probed.started)
}

/// Brings one container where it should be: running, or ended for good.
fn tend(pod: &Pod, container: &Container, seen: &Seen, memory: &Memory, now: i64, plan: &mut Plan) {
    let start = |attempt| Action::Start { name: container.name.clone(), attempt };
    let Some(current) = seen.current(&container.name) else {
        if is_settled(pod, seen, container) {
            return;
        }
        return later(memory, &container.name, now, plan, start(next_attempt(pod, seen, &container.name)));
    };
    match current.state {
        State::Running => {
            if let Some(why) = stop_reason(container, current, memory) {
                plan.actions.push(Action::Stop { id: current.id.clone(), name: container.name.clone(), why });
            }
        }
        State::Created => {
            plan.actions.push(Action::Remove { id: current.id.clone() });
            later(memory, &container.name, now, plan, start(current.attempt));
        }
        State::Unknown => {
            let why = StopReason::Unknown;
            plan.actions.push(Action::Stop { id: current.id.clone(), name: container.name.clone(), why });
        }
        State::Exited if restarts_now(pod, container, current) => {
            match memory.may_restart_at(&container.name, current.finished_at) {
                Some((at, _)) if at > now => plan.wake_at(at),
                _ => later(memory, &container.name, now, plan, start(current.attempt.saturating_add(1))),
            }
        }
        State::Exited => (),
    }
}

/// Init containers that succeeded never run again in their sandbox, whatever the policy.
fn restarts_now(pod: &Pod, container: &Container, current: &ContainerSeen) -> bool {
    if is_init(pod, container) && !is_sidecar(container) {
        let never = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("Never");
        return current.exit_code != 0 && !never;
    }
    restarts(pod, container, current.exit_code)
}

/// Pushes the start, or the time to try it if the last one failed not long ago.
fn later(memory: &Memory, name: &str, now: i64, plan: &mut Plan, start: Action) {
    match memory.trouble.get(name) {
        Some(trouble) if trouble.until > now => plan.wake_at(trouble.until),
        _ => plan.actions.push(start),
    }
}

fn stop_reason(container: &Container, current: &ContainerSeen, memory: &Memory) -> Option<StopReason> {
    if !current.hash.is_empty() && current.hash != hash(container) {
        return Some(StopReason::SpecChanged);
    }
    memory.probed.get(&current.id)?.failed.clone()
}

/// Zero for the first container of a name; else one more than any that the runtime or the API knows of.
pub fn next_attempt(pod: &Pod, seen: &Seen, name: &str) -> u32 {
    let by_runtime = seen
        .containers
        .iter()
        .filter(|container| container.name == name)
        .map(|container| container.attempt.saturating_add(1))
        .max();
    let status = pod.status.as_ref();
    let statuses = status.into_iter().flat_map(|status| {
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
    });
    let by_api = statuses
        .filter(|status| status.name == name && status.container_id.as_deref().is_some_and(|id| !id.is_empty()))
        .map(|status| u32::try_from(status.restart_count).unwrap_or(0).saturating_add(1))
        .max();
    by_runtime.max(by_api).unwrap_or(0)
}

/// Identifies the parts of a container's spec that may change in place and demand a new container: name and image.
pub fn hash(container: &Container) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(&container.name);
    hash.update([0]);
    hash.update(container.image.as_deref().unwrap_or_default());
    hex::encode(&hash.finalize()[..8])
}

#[cfg(test)]
mod tests;
