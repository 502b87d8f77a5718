//! Feeds queue and cache from the shared reflectors, on every server all the time.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use parking_lot::Mutex;
use pintle_base::clock;
use pintle_client::object::controller_of;
use pintle_client::{Key, LabelQuery, ObjectEvent, Reflectors, SharedReflector};
use tokio::sync::Notify;

use crate::Options;
use crate::framework::{ClusterEvent, Profile};
use crate::plugins::{Budget, Budgets, SpreadDefaults};
use crate::queue::Queue;
use crate::state::{Cache, PodInfo};

/// What the handlers fill and the driver empties. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shared {
    pub profile: Arc<Profile>,
    pub inner: Arc<Mutex<Inner>>,
    /// The queue may have something new.
    pub changed: Arc<Notify>,
}

pub(crate) struct Inner {
    pub queue: Queue,
    pub cache: Cache,
}

impl Shared {
    pub fn new(profile: Arc<Profile>) -> Self {
        let inner = Inner { queue: Queue::new(Arc::clone(&profile)), cache: Cache::default() };
        Self { profile, inner: Arc::new(Mutex::new(inner)), changed: Arc::default() }
    }

    /// Changes queue and cache together, and wakes the driver.
    pub fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.inner.lock());
        self.changed.notify_one();
        result
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        name == self.profile.scheduler_name
    }
}

/// The standard profile, with services and controllers deciding which pods belong together.
pub(crate) fn profile(reflectors: &Reflectors, options: &Options) -> Arc<Profile> {
    let services: SharedReflector<Service> = reflectors.of();
    let replica_sets: SharedReflector<ReplicaSet> = reflectors.of();
    let stateful_sets: SharedReflector<StatefulSet> = reflectors.of();
    let controllers: SharedReflector<ReplicationController> = reflectors.of();
    let defaults = SpreadDefaults::new(move |pod| {
        let meta = &pod.pod.metadata;
        let labels = meta.labels.as_ref()?;
        let mut query = LabelQuery::everything();
        for service in services.in_namespace(&pod.key.namespace) {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|all| !all.is_empty());
            let chosen = selector.filter(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
            query = chosen
                .into_iter()
                .flatten()
                .fold(query, |query, (key, value)| query.and(key, std::slice::from_ref(value), true));
        }
        let owner = controller_of(meta);
        let key = |name: &str| Key::new(&pod.key.namespace, name);
        let own = match owner.map(|owner| (owner.kind.as_str(), key(&owner.name))) {
            Some(("ReplicaSet", key)) => {
                replica_sets.get(&key).and_then(|set| set.spec.as_ref().map(|spec| spec.selector.clone()))
            }
            Some(("StatefulSet", key)) => {
                stateful_sets.get(&key).and_then(|set| set.spec.as_ref().map(|spec| spec.selector.clone()))
            }
            Some(("ReplicationController", key)) => {
                let selector = controllers.get(&key).and_then(|rc| rc.spec.as_ref()?.selector.clone());
                selector.map(|match_labels| k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector {
                    match_labels: Some(match_labels),
                    match_expressions: None,
                })
            }
            _ => None,
        };
        if let Some(own) = own {
            query = query.with(&LabelQuery::compile(Some(&own)).ok()?);
        }
        (!query.is_everything()).then_some(query)
    });
    Arc::new(Profile::standard(&options.scheduler_name, defaults, budgets(reflectors)))
}

fn budgets(reflectors: &Reflectors) -> Budgets {
    let budgets: SharedReflector<PodDisruptionBudget> = reflectors.of();
    Budgets::new(move |namespace| budgets.in_namespace(namespace).iter().filter_map(|budget| read(budget)).collect())
}

/// A budget whose controller has not counted yet allows nothing.
fn read(budget: &PodDisruptionBudget) -> Option<Budget> {
    let selector = LabelQuery::compile(budget.spec.as_ref()?.selector.as_ref()).ok()?;
    let status = budget.status.as_ref();
    Some(Budget {
        selector,
        allowed: status.and_then(|status| status.disruptions_allowed).map_or(0, i64::from),
        disrupted: status
            .into_iter()
            .flat_map(|status| status.disrupted_pods.iter().flatten())
            .map(|(name, _)| name.clone())
            .collect(),
    })
}

/// Registers the handlers.
pub(crate) fn connect(reflectors: &Reflectors, shared: &Shared) {
    let sink = shared.clone();
    reflectors.of::<Namespace>().on_event(move |event| {
        let meta = &event.object().metadata;
        let labels = (!event.is_deleted()).then(|| meta.labels.clone().unwrap_or_default());
        sink.inner.lock().cache.set_namespace(meta.name.as_deref().unwrap_or_default(), labels);
    });
    listen(&reflectors.of(), &reflectors.of(), shared);
}

/// Registers the handlers of nodes and pods.
pub(crate) fn listen(nodes: &SharedReflector<Node>, pods: &SharedReflector<Pod>, shared: &Shared) {
    let sink = shared.clone();
    nodes.on_event(move |event| on_node(&sink, event));
    let sink = shared.clone();
    pods.on_event(move |event| on_pod(&sink, event));
}

fn on_node(shared: &Shared, event: &ObjectEvent<Node>) {
    let node = event.object();
    let images = |node: &Node| node.status.as_ref().map(|status| status.images.clone());
    let change = match event {
        ObjectEvent::Added(_) => ClusterEvent::NODE_ADDED,
        ObjectEvent::Deleted(_) => ClusterEvent::NODE_GONE,
        ObjectEvent::Updated { old, new } => node_change(old, new),
    };
    // Most changes of a node are heartbeats.
    if change.is_empty() && matches!(event, ObjectEvent::Updated { old, new } if images(old) == images(new)) {
        return;
    }
    shared.with(|inner| {
        match event {
            ObjectEvent::Deleted(_) => inner.cache.remove_node(node.metadata.name.as_deref().unwrap_or_default()),
            ObjectEvent::Added(_) | ObjectEvent::Updated { .. } => inner.cache.set_node(node),
        }
        if !change.is_empty() {
            inner.queue.on_event(change, clock::now());
        }
    });
}

fn node_change(old: &Node, new: &Node) -> ClusterEvent {
    let taints = |node: &Node| node.spec.as_ref().map(|spec| (spec.taints.clone(), spec.unschedulable));
    let allocatable = |node: &Node| node.status.as_ref().map(|status| status.allocatable.clone());
    let when = |changed: bool, event| if changed { event } else { ClusterEvent::empty() };
    when(old.metadata.labels != new.metadata.labels, ClusterEvent::NODE_LABELS)
        | when(taints(old) != taints(new), ClusterEvent::NODE_TAINTS)
        | when(allocatable(old) != allocatable(new), ClusterEvent::NODE_ALLOCATABLE)
}

/// Where a pod stands, as far as scheduling goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has a node and counts there.
    Bound,
    /// It has none and is ours to place.
    Pending,
    /// It has ended, is leaving without ever having had a node, or is another scheduler's.
    Elsewhere,
}

fn standing(shared: &Shared, pod: &Pod) -> Standing {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    match (phase, bound) {
        (Some("Succeeded" | "Failed"), _) => Standing::Elsewhere,
        (_, true) => Standing::Bound,
        (_, false) if pod.metadata.deletion_timestamp.is_none() && shared.is_ours(pod) => Standing::Pending,
        (_, false) => Standing::Elsewhere,
    }
}

/// True if the change of a pod that stays on its node matters to nobody here.
fn is_idle(old: &Pod, new: &Pod) -> bool {
    let started = |pod: &Pod| pod.status.as_ref().and_then(|status| status.start_time.clone());
    let marks = |pod: &Pod| (pod.metadata.deletion_timestamp.clone(), started(pod));
    marks(old) == marks(new) && old.metadata.labels == new.metadata.labels && old.spec == new.spec
}

/// The node on which the pod is promised room.
fn nominated(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|name| !name.is_empty())
}

fn on_pod(shared: &Shared, event: &ObjectEvent<Pod>) {
    let pod = event.object();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let after = if event.is_deleted() { Standing::Elsewhere } else { standing(shared, pod) };
    let (before, relabelled) = match event {
        ObjectEvent::Added(_) => (Standing::Elsewhere, false),
        ObjectEvent::Updated { old, new } => (standing(shared, old), old.metadata.labels != new.metadata.labels),
        ObjectEvent::Deleted(old) => (standing(shared, old), false),
    };
    if let ObjectEvent::Updated { old, new } = event
        && (before, after) == (Standing::Bound, Standing::Bound)
        && is_idle(old, new)
    {
        return;
    }
    let promised = match event {
        ObjectEvent::Updated { old, .. } => nominated(old),
        ObjectEvent::Added(_) | ObjectEvent::Deleted(_) => None,
    };
    let now = clock::now();
    shared.with(|inner| {
        match after {
            Standing::Bound => {
                inner.queue.remove(uid);
                inner.cache.set_pod(&Arc::new(PodInfo::new(Arc::clone(pod))));
            }
            // Its binding is under way: the node comes with the next event.
            Standing::Pending if inner.cache.is_placed(uid) => (),
            Standing::Pending => {
                let info = Arc::new(PodInfo::new(Arc::clone(pod)));
                inner.cache.show_nomination(&info, promised, nominated(pod));
                inner.queue.set(info, now);
            }
            Standing::Elsewhere => {
                inner.queue.remove(uid);
                inner.cache.remove_pod(uid);
            }
        }
        let change = match (before, after) {
            (Standing::Bound, Standing::Elsewhere) => ClusterEvent::POD_GONE,
            (Standing::Bound, Standing::Bound) if relabelled => ClusterEvent::POD_LABELS,
            (Standing::Pending | Standing::Elsewhere, Standing::Bound) => ClusterEvent::POD_ADDED,
            _ => return,
        };
        inner.queue.on_event(change, now);
    });
}
