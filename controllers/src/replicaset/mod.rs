//! Keeps the wanted number of pods: one implementation for replica sets and replication controllers.
//!
//! Flow: events of owners and pods → [`Replicas::reconcile`] → claim → [`plan`] → creations or deletions → status.
//! Always holds: pods are counted only when the cache shows everything done before ([`Expectations`]).

mod kind;
mod plan;
mod work;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use pintle_client::object::controller_of;
use pintle_client::{Index, Key, ObjectEvent, Recorder, SharedReflector};

pub use kind::{Counts, Kind, ReplicaSets, Replicated, ReplicationControllers};

use crate::limits;
use crate::runtime::ownership::{claim, settle};
use crate::runtime::{Context, Controller, Expectations, Intake, Lead, Outcome, ReconcileError, pods};

/// The controller of replica sets.
pub fn controller(context: &Context) -> Replicas<ReplicaSets> {
    Replicas::new(context)
}

/// The controller of one kind of owner.
pub struct Replicas<T: Kind> {
    owners: SharedReflector<T::Object>,
    /// Pods by controller.
    pods: Index<Pod>,
    all_pods: SharedReflector<Pod>,
    /// Replica sets by their deployment: deletions look at all pods of one deployment.
    siblings: Option<Index<ReplicaSet>>,
    expectations: Arc<Expectations>,
    recorder: Recorder,
    kind: PhantomData<T>,
}

impl<T: Kind> Replicas<T> {
    pub(crate) fn new(context: &Context) -> Self {
        let (owners, all_pods) = (context.reflectors.of(), context.reflectors.of());
        Self {
            owners,
            pods: Index::by_controller(&all_pods),
            all_pods,
            siblings: T::HAS_SIBLINGS.then(|| Index::by_controller(&context.reflectors.of())),
            expectations: Arc::default(),
            recorder: context.recorder(T::NAME),
            kind: PhantomData,
        }
    }

    /// The owner named by the pod's controller reference, if it is one of ours and still the same object.
    fn owner_of(owners: &SharedReflector<T::Object>, pod: &Pod) -> Option<Arc<T::Object>> {
        let reference = controller_of(&pod.metadata)?;
        if reference.kind != T::Object::kind(&()) || reference.api_version != T::Object::api_version(&()) {
            return None;
        }
        let key = Key::new(pod.metadata.namespace.as_deref().unwrap_or_default(), &reference.name);
        owners.get(&key).filter(|owner| owner.meta().uid.as_deref() == Some(&reference.uid))
    }

    /// Adds the owners a pod event concerns.
    ///
    /// The more pods an owner has, the more of their changes are taken together, but what it waits for wakes it at once.
    fn on_pod(
        owners: &SharedReflector<T::Object>,
        pods: &Index<Pod>,
        expectations: &Expectations,
        intake: &Intake,
        event: &ObjectEvent<Pod>,
    ) {
        let pod = event.object();
        let gone = event.is_deleted() || pod.metadata.deletion_timestamp.is_some();
        let owner = Self::owner_of(owners, pod);
        if let Some(owner) = &owner {
            let key = Key::of(owner.meta());
            let complete = expectations.observe(&key, pod.metadata.uid.as_deref().unwrap_or_default(), gone);
            if let (Some(delay), ObjectEvent::Updated { old, .. }) =
                (availability_delay(owner.min_ready_seconds()), event)
                && pods::is_ready(pod)
                && !pods::is_ready(old)
            {
                intake.add_after(key.clone(), delay);
            }
            let size = pods.count(owner.meta().uid.as_deref().unwrap_or_default());
            intake.add_after(key, if complete { Duration::ZERO } else { pause(size) });
        }
        match event {
            ObjectEvent::Updated { old, .. } if controller_of(&old.metadata) != controller_of(&pod.metadata) => {
                if let Some(before) = Self::owner_of(owners, old) {
                    intake.add(Key::of(before.meta()));
                }
            }
            ObjectEvent::Deleted(_) => return,
            ObjectEvent::Added(_) | ObjectEvent::Updated { .. } => (),
        }
        if owner.is_none() && controller_of(&pod.metadata).is_none() && !gone {
            Self::offer_orphan(owners, intake, pod);
        }
    }

    /// A pod nobody controls concerns every owner that selects it.
    fn offer_orphan(owners: &SharedReflector<T::Object>, intake: &Intake, pod: &Pod) {
        if pod.metadata.labels.as_ref().is_none_or(std::collections::BTreeMap::is_empty) {
            return;
        }
        for owner in owners.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if owner.selector().is_ok_and(|selector| selector.matches(pod.metadata.labels.as_ref())) {
                intake.add(Key::of(owner.meta()));
            }
        }
    }

    /// Active pods per node of `owner` and its siblings under one deployment.
    fn related(&self, owner: &T::Object, own: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let siblings = self.siblings.as_ref().zip(controller_of(owner.meta()));
        match siblings {
            None => own.to_vec(),
            Some((siblings, parent)) => {
                let sets = siblings.get(&parent.uid).into_iter();
                sets.flat_map(|set| self.pods.get(set.metadata.uid.as_deref().unwrap_or_default())).collect()
            }
        }
    }

    async fn trust_cache(&self, key: &Key, lead: &Lead) -> bool {
        if self.expectations.is_uncertain(key) {
            self.all_pods.catch_up(lead.client.clone()).await;
            self.expectations.caught_up(key);
        }
        self.expectations.satisfied(key)
    }
}

/// How long changes of pods of an owner that has `size` are collected.
fn pause(size: usize) -> Duration {
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    limits::REPLICAS_PAUSE.saturating_mul(size).min(limits::REPLICAS_PAUSE_MAX)
}

/// When to look again at a pod that just became ready; a second more than needed, because times have whole seconds.
fn availability_delay(min_ready_seconds: i32) -> Option<Duration> {
    u64::try_from(min_ready_seconds).ok().filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds + 1))
}

impl<T: Kind> Controller for Replicas<T> {
    const NAME: &'static str = T::NAME;

    fn watch(&self, intake: &Intake) {
        intake.every(&self.owners);
        let expectations = Arc::clone(&self.expectations);
        self.owners.on_event(move |event| {
            if event.is_deleted() {
                expectations.forget(&Key::of(event.object().meta()));
            }
        });
        let (owners, index) = (self.owners.clone(), self.pods.clone());
        let (expectations, intake) = (Arc::clone(&self.expectations), intake.clone());
        self.all_pods.on_event(move |event| Self::on_pod(&owners, &index, &expectations, &intake, event));
    }

    fn all(&self) -> Vec<Key> {
        self.owners.keys()
    }

    fn begin(&self) {
        self.expectations.clear();
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let Some(owner) = self.owners.get(key) else {
            self.expectations.forget(key);
            return Ok(Outcome::Done);
        };
        let may_act = self.trust_cache(key, lead).await;
        let selector = owner.selector().map_err(|error| ReconcileError::Invalid(error.to_string()))?;
        let uid = owner.meta().uid.as_deref().unwrap_or_default();
        let candidates = self.pods.owned_and_orphaned(uid, &key.namespace);
        let own = settle(&*owner, claim(owner.meta(), &selector, candidates), lead).await?;
        let now = pods::now();
        let mut result = Ok(());
        if may_act && owner.meta().deletion_timestamp.is_none() {
            let related = self.related(&owner, &own);
            let step = plan::scale(owner.wanted(), &own, &related, now);
            result = self.execute(key, &*owner, step, lead).await;
        }
        let counts = plan::count(&*owner, &own, now);
        self.publish(key, &owner, &counts, result.as_ref().err(), lead).await?;
        result.map_err(work::Failure::into_error)?;
        let unavailable = counts.ready > counts.available;
        let later = availability_delay(owner.min_ready_seconds()).filter(|_| unavailable);
        Ok(later.map_or(Outcome::Done, Outcome::After))
    }
}

#[cfg(test)]
mod tests;
