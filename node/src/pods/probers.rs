//! Keeps the right probe tasks running for a pod's containers and holds what they found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use parking_lot::Mutex;
use pintle_base::clock;
use pintle_base::rng;
use pintle_base::task::Group;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Context;
use super::images::about;
use super::plan::{Probed, StopReason};
use super::probes::{self, Answer, Counter, Kind, Pace, Target};
use super::resources;
use super::seen::{ContainerSeen, Seen};

type Found = Arc<Mutex<BTreeMap<String, Probed>>>;

/// Probe tasks of one pod.
pub struct Probers {
    context: Arc<Context>,
    group: Group,
    wake: Arc<Notify>,
    found: Found,
    /// Containers with running probe tasks, and what stops them.
    running: BTreeMap<String, CancellationToken>,
}

impl Drop for Probers {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl Probers {
    pub fn new(context: Arc<Context>, group: Group, wake: Arc<Notify>) -> Self {
        Self { context, group, wake, found: Arc::default(), running: BTreeMap::new() }
    }

    /// What is known of each container now.
    pub fn found(&self) -> BTreeMap<String, Probed> {
        self.found.lock().clone()
    }

    pub fn stop_all(&mut self) {
        for stop in std::mem::take(&mut self.running).into_values() {
            stop.cancel();
        }
    }

    /// Starts probes of containers that run and stops those of containers that do not.
    pub fn follow(&mut self, pod: &Arc<Pod>, seen: &Seen) {
        let alive: BTreeSet<&str> =
            seen.containers.iter().filter(|one| one.running()).map(|one| one.id.as_str()).collect();
        self.running.retain(|id, stop| {
            let keep = alive.contains(id.as_str());
            if !keep {
                stop.cancel();
            }
            keep
        });
        self.found.lock().retain(|id, _| alive.contains(id.as_str()));
        for container in resources::containers(pod) {
            if let Some(current) = seen.current(&container.name).filter(|current| current.running())
                && !self.running.contains_key(&current.id)
            {
                self.begin(pod, container, current, seen);
            }
        }
    }

    fn begin(&mut self, pod: &Arc<Pod>, container: &Container, current: &ContainerSeen, seen: &Seen) {
        let probes = [
            (Kind::Startup, &container.startup_probe),
            (Kind::Liveness, &container.liveness_probe),
            (Kind::Readiness, &container.readiness_probe),
        ];
        if probes.iter().all(|(_, probe)| probe.is_none()) {
            return;
        }
        // A container that was ready before the agent restarted stays ready until its probe says otherwise.
        let known = adopted(pod, &current.id);
        let first = Probed {
            started: container.startup_probe.is_none() || known.is_some_and(|(started, _)| started),
            ready: container.readiness_probe.is_none() || known.is_some_and(|(_, ready)| ready),
            failed: None,
        };
        self.found.lock().insert(current.id.clone(), first);
        let stop = self.group.token().child_token();
        self.running.insert(current.id.clone(), stop.clone());
        let ip = seen.sandbox().and_then(|sandbox| sandbox.ips.first().cloned());
        let ip = ip.or_else(|| self.context.host_ips.first().cloned()).unwrap_or_default();
        for (kind, probe) in probes {
            let Some(probe) = probe.clone() else { continue };
            let target = Target {
                runtime: Arc::clone(&self.context.runtime),
                container_id: current.id.clone(),
                ip: ip.clone(),
                container: container.clone(),
            };
            let task = Task {
                context: Arc::clone(&self.context),
                pod: Arc::clone(pod),
                found: Arc::clone(&self.found),
                wake: Arc::clone(&self.wake),
                kind,
                probe,
                target,
            };
            let stop = stop.clone();
            self.group.spawn("probe", async move {
                tokio::select! {
                    () = stop.cancelled() => (),
                    () = task.run() => (),
                }
            });
        }
    }
}

/// (started, ready) as the API last had it for this container.
fn adopted(pod: &Pod, id: &str) -> Option<(bool, bool)> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let found =
        all.into_iter().find(|status| status.container_id.as_deref().is_some_and(|known| known.ends_with(id)))?;
    Some((found.started == Some(true), found.ready))
}

struct Task {
    context: Arc<Context>,
    pod: Arc<Pod>,
    found: Found,
    wake: Arc<Notify>,
    kind: Kind,
    probe: Probe,
    target: Target,
}

impl Task {
    async fn run(self) {
        let pace = Pace::of(&self.probe);
        let mut counter = Counter::new(pace);
        clock::sleep(pace.delay).await;
        if self.adopted_agent_restart() {
            clock::sleep(rng::jitter(pace.period / 4, 1.0)).await; // not all probes of a node at once
        }
        loop {
            if self.is_due() {
                let answer = probes::ask(&self.probe, &self.target, pace.timeout).await;
                if let Answer::Failure(text) = &answer {
                    let text = format!("{} probe failed: {text}", self.kind.word());
                    self.context.recorder.warning(about(&self.pod, &self.target.container), "Unhealthy", text);
                }
                if let Some(result) = counter.take(answer == Answer::Success)
                    && self.record(result, &answer)
                {
                    return;
                }
            }
            clock::sleep(pace.period).await;
        }
    }

    fn adopted_agent_restart(&self) -> bool {
        adopted(&self.pod, &self.target.container_id).is_some()
    }

    /// Liveness and readiness begin when the startup probe has passed.
    fn is_due(&self) -> bool {
        self.kind == Kind::Startup
            || self.found.lock().get(&self.target.container_id).is_some_and(|probed| probed.started)
    }

    /// Notes a result; true if this probe has nothing more to find out.
    fn record(&self, success: bool, answer: &Answer) -> bool {
        let text = match answer {
            Answer::Success => String::new(),
            Answer::Failure(text) => text.clone(),
        };
        let mut found = self.found.lock();
        let Some(probed) = found.get_mut(&self.target.container_id) else { return true };
        let before = probed.clone();
        let over = match (self.kind, success) {
            (Kind::Readiness, ready) => {
                probed.ready = ready;
                false
            }
            (Kind::Startup, true) => {
                probed.started = true;
                true
            }
            (Kind::Startup, false) => {
                probed.failed = Some(StopReason::Startup(text));
                true
            }
            (Kind::Liveness, true) => false,
            (Kind::Liveness, false) => {
                probed.failed = Some(StopReason::Liveness(text));
                true
            }
        };
        let changed = *probed != before;
        drop(found);
        if changed {
            self.wake.notify_one();
        }
        over
    }
}
