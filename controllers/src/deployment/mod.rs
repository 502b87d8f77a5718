//! Rolls pod templates out through replica sets.
//!
//! Flow: events of deployments, replica sets and pods → claim → [`plan`] → creation, sizes and clean-up of replica sets →
//! status. Always holds: a replica set's name is made from its template, so a stale cache cannot make a second one; sizes
//! are written with the version they were decided on.

mod fenceposts;
mod plan;
mod revision;
mod rolling;
mod status;
mod work;

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use pintle_client::object::{controller_of, reference};
use pintle_client::{Index, Key, LabelQuery, ObjectEvent, Recorder, SharedReflector};

use crate::runtime::ownership::{claim, settle};
use crate::runtime::{Context, Controller, Intake, Lead, Outcome, ReconcileError, pods};

/// The controller of deployments.
pub struct Deployments {
    deployments: SharedReflector<Deployment>,
    sets: SharedReflector<ReplicaSet>,
    sets_by_owner: Index<ReplicaSet>,
    pods: SharedReflector<Pod>,
    pods_by_owner: Index<Pod>,
    recorder: Recorder,
}

impl Deployments {
    pub fn new(context: &Context) -> Self {
        let (sets, pods) = (context.reflectors.of(), context.reflectors.of());
        Self {
            deployments: context.reflectors.of(),
            sets_by_owner: Index::by_controller(&sets),
            pods_by_owner: Index::by_controller(&pods),
            sets,
            pods,
            recorder: context.recorder("deployment-controller"),
        }
    }

    /// Uids of the sets with pods that have not ended.
    fn busy(&self, sets: &[Arc<ReplicaSet>]) -> HashSet<String> {
        let uids = sets.iter().filter_map(|set| set.metadata.uid.clone());
        uids.filter(|uid| self.pods_by_owner.get(uid).iter().any(|pod| !pods::is_finished(pod))).collect()
    }
}

/// The deployment that controls `set`, if it is still the same object.
fn owner_of(deployments: &SharedReflector<Deployment>, set: &ReplicaSet) -> Option<Arc<Deployment>> {
    let owner = controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment")?;
    let key = Key::new(set.metadata.namespace.as_deref().unwrap_or_default(), &owner.name);
    deployments.get(&key).filter(|deployment| deployment.metadata.uid.as_deref() == Some(&owner.uid))
}

/// Adds the deployments a replica set event concerns.
fn on_set(deployments: &SharedReflector<Deployment>, intake: &Intake, event: &ObjectEvent<ReplicaSet>) {
    let set = event.object();
    let owner = owner_of(deployments, set);
    intake_owner(intake, owner.as_deref());
    if let ObjectEvent::Updated { old, .. } = event
        && controller_of(&old.metadata) != controller_of(&set.metadata)
    {
        intake_owner(intake, owner_of(deployments, old).as_deref());
    }
    if controller_of(&set.metadata).is_some() || event.is_deleted() {
        return;
    }
    for deployment in deployments.in_namespace(set.metadata.namespace.as_deref().unwrap_or_default()) {
        let selector = LabelQuery::compile(deployment.spec.as_ref().map(|spec| &spec.selector));
        if selector.is_ok_and(|selector| !selector.is_everything() && selector.matches(set.metadata.labels.as_ref())) {
            intake_owner(intake, Some(&deployment));
        }
    }
}

fn intake_owner(intake: &Intake, owner: Option<&Deployment>) {
    if let Some(owner) = owner {
        intake.add(Key::of(&owner.metadata));
    }
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment-controller";

    fn watch(&self, intake: &Intake) {
        intake.every(&self.deployments);
        let (deployments, sink) = (self.deployments.clone(), intake.clone());
        self.sets.on_event(move |event| on_set(&deployments, &sink, event));
        // A recreation goes on when the last old pod has ended.
        let (deployments, sets, sink) = (self.deployments.clone(), self.sets.clone(), intake.clone());
        self.pods.on_event(move |event| {
            let pod = event.object();
            if !event.is_deleted() && !pods::is_finished(pod) {
                return;
            }
            let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet") else { return };
            let key = Key::new(pod.metadata.namespace.as_deref().unwrap_or_default(), &owner.name);
            let deployment = sets.get(&key).and_then(|set| owner_of(&deployments, &set));
            if deployment.as_ref().is_some_and(|deployment| is_recreated(deployment)) {
                intake_owner(&sink, deployment.as_deref());
            }
        });
    }

    fn all(&self) -> Vec<Key> {
        self.deployments.keys()
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(Outcome::Done) };
        let selector = LabelQuery::compile(deployment.spec.as_ref().map(|spec| &spec.selector))
            .map_err(|error| ReconcileError::Invalid(error.to_string()))?;
        if selector.is_everything() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(reference(&*deployment), "SelectingAll", message);
            return Ok(Outcome::Done);
        }
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let candidates = self.sets_by_owner.owned_and_orphaned(uid, &key.namespace);
        let sets = settle(&*deployment, claim(&deployment.metadata, &selector, candidates), lead).await?;
        // Only a recreation asks for it, and it is a look at all pods.
        let busy = if is_recreated(&deployment) { self.busy(&sets) } else { HashSet::new() };
        let plan = plan::plan(&plan::Input { deployment: &deployment, sets, busy, now: now_in_seconds() });
        let later = plan.later;
        self.execute(&deployment, plan, lead).await?;
        Ok(later.map_or(Outcome::Done, Outcome::After))
    }
}

/// The time as the API stores it, so that a status does not differ from its stored form.
fn now_in_seconds() -> jiff::Timestamp {
    pintle_client::object::time_now().0
}

fn is_recreated(deployment: &Deployment) -> bool {
    fenceposts::Fenceposts::of(deployment).recreate
}
