//! Watches over nodes: silent ones become Unknown, conditions become taints, pods leave where they are not tolerated.
//!
//! Always holds: silence is measured on this process's monotonic clock from when it saw the last change of a node's Lease or
//! status, never by comparing clocks; a new leader gives every node its full grace and every pod its full toleration, and
//! sends nobody away before it has heard from a node that works; lost nodes are emptied zone by zone at the rates of
//! [`zones`]; while no node is ready nothing is evicted, because then the fault is more likely ours, and afterwards all time
//! starts anew (upstream's full disruption mode).

pub mod plan;
pub mod zones;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use pintle_client::object::reference;
use pintle_client::{Index, Key, ObjectEvent, Recorder, SharedReflector};
use serde_json::json;

use crate::runtime::{
    Context, Controller, Intake, Lead, Outcome, ReconcileError, api, delete_same, is_not_found, is_refused,
};
use plan::{Census, Eviction, Memory, Stay};
use zones::{Turn, Zones};

/// Namespace of the nodes' Leases.
const LEASES: &str = "kube-node-lease";

pub struct NodeLifecycle {
    nodes: SharedReflector<Node>,
    leases: SharedReflector<Lease>,
    pods: SharedReflector<Pod>,
    pods_by_node: Index<Pod>,
    grace: Duration,
    memory: Arc<Mutex<Memory>>,
    census: Arc<Mutex<Census>>,
    zones: Mutex<Zones>,
    /// For those whose turn may have come because of another node.
    intake: OnceLock<Intake>,
    recorder: Recorder,
}

impl NodeLifecycle {
    /// Nodes count as lost after `grace` without a sign of life.
    pub fn new(context: &Context, grace: Duration) -> Self {
        let pods: SharedReflector<Pod> = context.reflectors.of();
        Self {
            nodes: context.reflectors.of(),
            leases: context.reflectors.of(),
            pods_by_node: Index::new(&pods, |pod| pod.spec.as_ref()?.node_name.clone()),
            pods,
            grace,
            memory: Arc::default(),
            census: Arc::default(),
            zones: Mutex::default(),
            intake: OnceLock::new(),
            recorder: context.recorder("node-controller"),
        }
    }
}

fn now() -> Timestamp {
    Timestamp::try_from(clock::wall()).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Controller for NodeLifecycle {
    const NAME: &'static str = "node-lifecycle";

    fn watch(&self, intake: &Intake) {
        self.count(intake);
        self.intake.get_or_init(|| intake.clone());
        intake.every(&self.nodes);
        intake.mapped(&self.leases, |lease| {
            let ours = lease.metadata.namespace.as_deref() == Some(LEASES);
            lease.metadata.name.clone().filter(|_| ours).map(Key::cluster)
        });
        // A pod that was just bound to a tainted node must leave it, too. Its status does not matter.
        let sink = intake.clone();
        self.pods.on_event(move |event| {
            let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            let concerns = match event {
                ObjectEvent::Added(_) | ObjectEvent::Deleted(_) => true,
                ObjectEvent::Updated { old, new } => tolerance(old) != tolerance(new),
            };
            if let Some(name) = node(event.object()).filter(|_| concerns) {
                sink.add(Key::cluster(name));
            }
        });
    }

    fn all(&self) -> Vec<Key> {
        self.nodes.keys()
    }

    fn begin(&self) {
        *self.memory.lock() = Memory::default();
        *self.zones.lock() = Zones::default();
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let now = clock::now();
        let Some(node) = self.nodes.get(key) else {
            self.memory.lock().forget(&key.name);
            let woken = self.zones.lock().forget(&key.name, now);
            self.wake(woken);
            return Ok(Outcome::Done);
        };
        let since = self.memory.lock().note(&key.name, self.mark(&node), now);
        let silent = now.saturating_duration_since(since);
        self.judge(&node, silent, now);
        if silent >= self.grace {
            return self.lost(&node, lead).await;
        }
        let wait = self.taint_and_evict(&node, lead).await?;
        let next = self.grace - silent;
        Ok(Outcome::After(wait.map_or(next, |wait| next.min(wait))))
    }
}

/// What decides when a pod leaves a tainted node.
fn tolerance(pod: &Pod) -> Option<(Option<&String>, Option<&Vec<Toleration>>)> {
    pod.spec.as_ref().map(|spec| (spec.node_name.as_ref(), spec.tolerations.as_ref()))
}

impl NodeLifecycle {
    /// Follows which nodes are ready. When the first comes back or the last is lost, all are looked at.
    fn count(&self, intake: &Intake) {
        let (nodes, census, memory) = (self.nodes.clone(), Arc::clone(&self.census), Arc::clone(&self.memory));
        let sink = intake.clone();
        self.nodes.on_event(move |event| {
            let node = event.object();
            let ready = (!event.is_deleted()).then(|| plan::is_ready(node));
            if census.lock().set(node.metadata.name.as_deref().unwrap_or_default(), ready) {
                memory.lock().restart(clock::now());
                nodes.keys().into_iter().for_each(|key| sink.add(key));
            }
        });
    }

    /// Tells the node's zone whether it works, as far as this process can tell by itself.
    fn judge(&self, node: &Node, silent: Duration, now: Instant) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let healthy = plan::is_ready(node) && silent < self.grace && self.memory.lock().has_heard(name);
        let woken = self.zones.lock().set(name, &zones::zone_of(node), healthy, now);
        self.wake(woken);
    }

    fn wake(&self, names: Vec<String>) {
        let Some(intake) = self.intake.get() else { return };
        names.into_iter().for_each(|name| intake.add(Key::cluster(name)));
    }

    /// What changes with each sign of life of the node.
    fn mark(&self, node: &Node) -> String {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let lease = self.leases.get(&Key::new(LEASES, name));
        let renewed = lease.as_ref().and_then(|lease| lease.spec.as_ref()).and_then(|spec| spec.renew_time.as_ref());
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let beat = conditions.filter_map(|condition| condition.last_heartbeat_time.as_ref().map(|time| time.0)).max();
        format!("{:?} {beat:?}", renewed.map(|time| time.0))
    }

    async fn lost(&self, node: &Node, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let now = now();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        // On every look: an earlier one may have failed half-way, or ended with its leader.
        self.mark_pods(name, now, lead).await?;
        if let Some(conditions) = plan::silent_conditions(node, now) {
            tracing::info!(node = name, silent = ?self.grace, "node fell silent");
            let patch = json!({"status": {"conditions": conditions}});
            let nodes: Api<Node> = Api::all(lead.client.clone());
            match nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if is_not_found(&error) => return Ok(Outcome::Done),
                Err(error) => return Err(api("mark a silent node")(error)),
                Ok(_) => (),
            }
            self.recorder.normal(reference(node), "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
            // The event of our own write brings us back, with the conditions that taints follow.
            return Ok(Outcome::Done);
        }
        let wait = self.taint_and_evict(node, lead).await?;
        Ok(wait.map_or(Outcome::Done, Outcome::After))
    }

    /// Sees to the node's taints and to the pods that do not tolerate them; returns when to look again.
    async fn taint_and_evict(&self, node: &Node, lead: &Lead) -> Result<Option<Duration>, ReconcileError> {
        let (eviction, turn) = self.turn(node);
        let taints = self.taint(node, eviction, lead).await?;
        let pods = self.evict(node, &taints, lead).await?;
        Ok(turn.into_iter().chain(pods).min())
    }

    /// What may be done about the pods of `node`, and when to ask again if it has to wait for its turn.
    fn turn(&self, node: &Node) -> (Eviction, Option<Duration>) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if self.census.lock().is_disrupted() {
            return (Eviction::Stop, None);
        }
        let mut zones = self.zones.lock();
        if !plan::awaits_eviction(node) {
            zones.withdraw(name);
            return (Eviction::Hold, None);
        }
        match zones.ask(name, clock::now()) {
            Turn::Now => (Eviction::Start, None),
            Turn::In(wait) => (Eviction::Hold, Some(wait)),
            Turn::Never => (Eviction::Hold, None),
        }
    }

    /// Pods of a lost node are not ready: services must not send anything to them.
    async fn mark_pods(&self, node: &str, now: Timestamp, lead: &Lead) -> Result<(), ReconcileError> {
        for pod in self.pods_by_node.get(node) {
            let ready = crate::endpoints::select::is_ready(&pod);
            let (Some(name), Some(namespace), true) = (&pod.metadata.name, &pod.metadata.namespace, ready) else {
                continue;
            };
            let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "False",
                "reason": "NodeLost", "lastTransitionTime": Time(now)}]}});
            let pods: Api<Pod> = Api::namespaced(lead.client.clone(), namespace);
            match pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if !is_not_found(&error) => return Err(api("mark a pod of a lost node")(error)),
                _ => (),
            }
        }
        Ok(())
    }

    /// Sees that the node has the taints it should have, and returns these.
    async fn taint(&self, node: &Node, eviction: Eviction, lead: &Lead) -> Result<Vec<Taint>, ReconcileError> {
        let Some(taints) = plan::taints(node, eviction, now()) else {
            return Ok(node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default());
        };
        let name = node.metadata.name.as_deref().unwrap_or_default();
        // The version makes it a compare-and-swap: taints that people set meanwhile must not be lost.
        let patch =
            json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
        let nodes: Api<Node> = Api::all(lead.client.clone());
        match nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(taints),
            Err(error) if is_not_found(&error) => Ok(Vec::new()),
            Err(error) => {
                if eviction == Eviction::Start && is_refused(&error) {
                    self.zones.lock().give_back(name);
                }
                Err(api("taint a node")(error))
            }
        }
    }

    /// Deletes the pods whose time on this node is over; returns when the next one's is.
    async fn evict(&self, node: &Node, taints: &[Taint], lead: &Lead) -> Result<Option<Duration>, ReconcileError> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if !taints.iter().any(|taint| taint.effect == plan::NO_EXECUTE) {
            self.memory.lock().staying(name);
            return Ok(None);
        }
        let mut pods = self.pods_by_node.get(name);
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        let uids: Vec<&str> = pods.iter().map(|pod| pod.metadata.uid.as_deref().unwrap_or_default()).collect();
        let now = clock::now();
        let since = self.memory.lock().leaving(name, &uids, now);
        let (over, next) = due(&pods, &since, taints, now);
        for pod in over {
            self.delete(pod, lead).await?;
        }
        Ok(next)
    }

    async fn delete(&self, pod: &Arc<Pod>, lead: &Lead) -> Result<(), ReconcileError> {
        let (Some(name), Some(namespace)) = (&pod.metadata.name, &pod.metadata.namespace) else { return Ok(()) };
        self.recorder.normal(
            reference(&**pod),
            "TaintManagerEviction",
            format!("Marking for deletion Pod {namespace}/{name}"),
        );
        let pods: Api<Pod> = Api::namespaced(lead.client.clone(), namespace);
        delete_same(&pods, &pod.metadata, DeleteParams::default()).await.map(drop).map_err(api("evict a pod"))
    }
}

/// Which of `pods`, whose time runs since `since`, must go now, and when the next one must.
fn due<'a>(
    pods: &'a [Arc<Pod>],
    since: &[Instant],
    taints: &[Taint],
    now: Instant,
) -> (Vec<&'a Arc<Pod>>, Option<Duration>) {
    let mut over = Vec::new();
    let mut next: Option<Duration> = None;
    for (pod, since) in pods.iter().zip(since) {
        let Stay::For(limit) = plan::stay(pod, taints) else { continue };
        match limit.checked_sub(now.saturating_duration_since(*since)).filter(|left| !left.is_zero()) {
            None => over.push(pod),
            Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
        }
    }
    (over, next)
}

#[cfg(test)]
mod tests;
