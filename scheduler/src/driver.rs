//! Pops pods, runs cycles, and sees the bindings through, while this server leads.
//!
//! Always holds: cycles run one after the other, bindings and preemptions beside them in bounded number. A failed binding
//! frees the node before the pod is tried again; a pod that makes others go is not tried again before they were told.

mod preempt;

use std::panic::resume_unwind;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::Api;
use kube::api::{Patch, PatchParams};
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_client::object::{reference, time_now};
use pintle_client::{Clients, LeaderGate, LeaderLease, Recorder, Reflectors};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cycle::{Cycle, Misfit};
use crate::framework::{BindError, CycleState, Permission, Profile};
use crate::intake::Shared;
use crate::queue::Waiting;
use crate::state::{PodInfo, Snapshot};
use crate::{Options, limits};

pub(crate) struct Driver {
    clients: Clients,
    reflectors: Reflectors,
    recorder: Recorder,
    shared: Shared,
    lease: LeaderLease,
    percentage: Option<u8>,
}

impl Driver {
    pub fn new(
        clients: Clients,
        reflectors: Reflectors,
        recorder: Recorder,
        shared: Shared,
        options: &Options,
    ) -> Self {
        let percentage = Some(options.percentage_of_nodes_to_score).filter(|percentage| *percentage > 0);
        let lease = LeaderLease::new("kube-scheduler", &options.server);
        Self { clients, reflectors, recorder, shared, lease, percentage }
    }

    pub async fn run(self, gate: LeaderGate, stop: CancellationToken) {
        let this = Arc::new(self);
        let lead = move |term| {
            let this = Arc::clone(&this);
            async move {
                tokio::select! {
                    () = this.lease.hold(this.clients.fenced(term)) => (),
                    () = Arc::clone(&this).lead(term) => (),
                }
            }
        };
        gate.run(stop, lead).await;
    }

    /// Schedules during one term.
    async fn lead(self: Arc<Self>, term: u64) {
        self.reflectors.ready().await;
        self.reflectors.catch_up().await;
        self.shared.with(|inner| {
            inner.cache.expire_assumed(true);
            inner.queue.restart(clock::now());
        });
        tracing::info!(term, "scheduler leads");
        let term = Term {
            client: self.clients.fenced(term),
            shared: self.shared.clone(),
            recorder: self.recorder.clone(),
            room: Arc::new(Semaphore::new(limits::BINDINGS)),
        };
        let mut tasks = JoinSet::new();
        let (mut cycle, mut snapshot) = (Cycle::new(self.percentage), self.fresh_snapshot());
        let mut flush = clock::ticker(limits::UNSCHEDULABLE_CHECK);
        loop {
            tokio::select! {
                biased;
                _ = flush.tick() => self.shared.with(|inner| {
                    inner.cache.expire_assumed(false);
                    inner.queue.flush_unschedulable(clock::now());
                }),
                Some(ended) = tasks.join_next() => rethrow(ended),
                waiting = self.next() => term.attempt(waiting, &mut cycle, &mut snapshot, &mut tasks).await,
            }
        }
    }

    /// A snapshot with everything in it: the cache tells changes only relative to the one it refreshed last.
    fn fresh_snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.shared.inner.lock().cache.refresh_fully(&mut snapshot);
        snapshot
    }

    /// The next pod to schedule. Safe to drop: a pod is taken only by the poll that returns it.
    async fn next(&self) -> Waiting {
        loop {
            let changed = self.shared.changed.notified();
            let due = {
                let mut inner = self.shared.inner.lock();
                if let Some(waiting) = inner.queue.pop(clock::now()) {
                    return waiting;
                }
                inner.queue.next_due()
            };
            match due {
                Some(due) => tokio::select! {
                    () = changed => (),
                    () = clock::sleep_until(due) => (),
                },
                None => changed.await,
            }
        }
    }
}

fn rethrow(ended: Result<(), tokio::task::JoinError>) {
    match ended {
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Ok(()) | Err(_) => (),
    }
}

/// What attempts of one term share. Cheap to clone.
#[derive(Clone)]
struct Term {
    client: kube::Client,
    shared: Shared,
    recorder: Recorder,
    room: Arc<Semaphore>,
}

impl Term {
    fn profile(&self) -> Arc<Profile> {
        Arc::clone(&self.shared.profile)
    }

    /// One scheduling cycle; binding, or telling why not, goes on in a task.
    async fn attempt(&self, waiting: Waiting, cycle: &mut Cycle, snapshot: &mut Snapshot, tasks: &mut JoinSet<()>) {
        let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return };
        self.shared.inner.lock().cache.refresh(snapshot);
        let (profile, mut state) = (self.profile(), CycleState::default());
        let (pod, attempts) = (Arc::clone(&waiting.pod), waiting.attempts);
        let term = self.clone();
        match cycle.schedule(&profile, snapshot, &pod, &mut state) {
            Ok(placement) => {
                tracing::debug!(pod = %pod.key, node = placement.node, attempts, feasible = placement.feasible, "node chosen");
                self.shared.inner.lock().cache.assume(&pod, &placement.node);
                tasks.spawn(async move {
                    term.bind(&pod, &placement.node, state).await;
                    drop(permit);
                });
            }
            Err(misfit) => {
                tracing::debug!(pod = %pod.key, attempts, %misfit, "no node fits");
                if !self.refuse(&pod, &misfit) {
                    return;
                }
                tasks.spawn(async move {
                    match &misfit.preemption {
                        Some(preemption) => term.preempt(&pod, &misfit, preemption).await,
                        None => term.tell_misfit(&pod, &misfit, misfit.hopeless.then_some(None)).await,
                    }
                    drop(permit);
                });
            }
        }
        // A long run of pods must leave the thread to others now and then.
        tokio::task::yield_now().await;
    }

    /// Notes what a cycle without a node means for the next ones. False if the pod was deleted meanwhile: then nobody
    /// makes room for it, and nobody is told.
    fn refuse(&self, pod: &Arc<PodInfo>, misfit: &Misfit) -> bool {
        self.shared.with(|inner| {
            if inner.queue.is_gone(&pod.uid) {
                inner.queue.finish(&pod.uid);
                inner.cache.denominate(&pod.uid);
                return false;
            }
            match &misfit.preemption {
                // It stays in flight until the others were told to go.
                Some(preemption) => {
                    let victims = preemption.victims.iter().map(|victim| victim.uid.clone()).collect();
                    inner.cache.nominate(pod, &preemption.node, victims);
                }
                None => {
                    if misfit.hopeless {
                        inner.cache.denominate(&pod.uid);
                    }
                    let plugins: Vec<&'static str> = misfit.rejected_by.iter().copied().collect();
                    inner.queue.put_back_unschedulable(&pod.uid, &plugins, clock::now());
                }
            }
            true
        })
    }

    /// The binding cycle, and what follows from how it ended.
    async fn bind(&self, pod: &PodInfo, node: &str, mut state: CycleState) {
        let profile = self.profile();
        match self.binding_cycle(&profile, pod, node, &mut state).await {
            Ok(()) => {
                self.shared.with(|inner| {
                    inner.cache.bound(&pod.uid);
                    inner.queue.finish(&pod.uid);
                });
                profile.post_bind.iter().for_each(|plugin| plugin.post_bind(pod, node));
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.recorder.normal(reference(&*pod.pod), "Scheduled", message);
            }
            Err(error) => {
                profile.reserve.iter().rev().for_each(|plugin| plugin.unreserve(&state, pod, node));
                self.give_up(pod, node, &error).await;
            }
        }
    }

    async fn binding_cycle(
        &self,
        profile: &Profile,
        pod: &PodInfo,
        node: &str,
        state: &mut CycleState,
    ) -> Result<(), BindError> {
        let refused =
            |plugin: &'static str, reasons: Vec<String>| BindError::Refused { plugin, reasons: reasons.join(", ") };
        for plugin in &profile.reserve {
            plugin.reserve(state, pod, node).map_err(|rejection| refused(plugin.name(), rejection.reasons))?;
        }
        for plugin in &profile.permit {
            let until = loop_permit(&**plugin, state, pod, node).await;
            until.map_err(|reasons| refused(plugin.name(), reasons))?;
        }
        for plugin in &profile.pre_bind {
            plugin.pre_bind(&self.client, pod, node).await?;
        }
        for plugin in &profile.bind {
            if plugin.bind(&self.client, pod, node).await? {
                return Ok(());
            }
        }
        Err(refused("Bind", vec!["no plugin binds this pod".to_owned()]))
    }

    /// The pod was not bound, as far as is known: frees the node and tries again after a pause.
    ///
    /// If it was bound after all, the watch says so, and the API refuses to bind it a second time.
    async fn give_up(&self, pod: &PodInfo, node: &str, error: &BindError) {
        if is_gone(error) {
            self.shared.with(|inner| {
                inner.cache.forget(&pod.uid);
                inner.queue.finish(&pod.uid);
            });
            return;
        }
        tracing::warn!(pod = %pod.key, node, error = %Chain(error), "pod not bound, will retry");
        self.shared.with(|inner| {
            inner.cache.forget(&pod.uid);
            inner.queue.put_back_after_error(&pod.uid, clock::now());
        });
        let message = Chain(error).to_string();
        self.recorder.warning(reference(&*pod.pod), "FailedScheduling", message.clone());
        self.set_condition(pod, "SchedulerError", message, None).await;
    }

    async fn tell_misfit(&self, pod: &PodInfo, misfit: &Misfit, promise: Option<Option<&str>>) {
        let message = misfit.to_string();
        self.recorder.warning(reference(&*pod.pod), "FailedScheduling", message.clone());
        self.set_condition(pod, "Unschedulable", message, promise).await;
    }

    /// Says in `PodScheduled` why the pod has no node, and changes what it is promised if `promise` says what to; nothing is
    /// written if the pod says so already.
    async fn set_condition(&self, pod: &PodInfo, reason: &str, message: String, promise: Option<Option<&str>>) {
        let condition = scheduled_condition(&pod.pod, reason, message);
        let shown = pod.pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        let promise = promise.filter(|promise| *promise != shown);
        if condition.is_none() && promise.is_none() {
            return;
        }
        let mut status = json!({});
        if let Some(condition) = condition {
            status["conditions"] = json!([condition]);
        }
        if let Some(promise) = promise {
            status["nominatedNodeName"] = json!(promise);
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        let patch = json!({"metadata": {"uid": pod.uid}, "status": status});
        if let Err(error) = api.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            tracing::debug!(pod = %pod.key, error = %Chain(&error), "condition not written");
        }
    }
}

/// Asks a permit plugin until it grants or denies, or its time is over.
async fn loop_permit(
    plugin: &dyn crate::framework::Permit,
    state: &CycleState,
    pod: &PodInfo,
    node: &str,
) -> Result<(), Vec<String>> {
    let started = clock::now();
    loop {
        match plugin.permit(state, pod, node) {
            Permission::Granted => return Ok(()),
            Permission::Denied(rejection) => return Err(rejection.reasons),
            Permission::Wait(limit) if started.elapsed() >= limit => return Err(vec!["timed out waiting".to_owned()]),
            Permission::Wait(_) => clock::sleep(limits::PERMIT_PAUSE).await,
        }
    }
}

/// True if there is no pod to bind any more.
fn is_gone(error: &BindError) -> bool {
    matches!(error, BindError::Api { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 404))
}

/// The condition for a pod without a node, unless it has it already.
fn scheduled_condition(pod: &Pod, reason: &str, message: String) -> Option<PodCondition> {
    const KIND: &str = "PodScheduled";
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let old = conditions.into_iter().flatten().find(|condition| condition.type_ == KIND);
    if old.is_some_and(|old| {
        old.status == "False" && old.reason.as_deref() == Some(reason) && old.message.as_deref() == Some(&message)
    }) {
        return None;
    }
    let transition = old.filter(|old| old.status == "False").and_then(|old| old.last_transition_time.clone());
    Some(PodCondition {
        type_: KIND.to_owned(),
        status: "False".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(transition.unwrap_or_else(time_now)),
        ..PodCondition::default()
    })
}

#[cfg(test)]
mod tests;
