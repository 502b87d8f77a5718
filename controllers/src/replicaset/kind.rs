//! What replica sets and replication controllers have in common, so that one implementation serves both.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::NamespaceResourceScope;
use pintle_client::LabelQuery;
use pintle_client::reflector::Reflected;
use pintle_client::selector::InvalidOperator;
use serde::Serialize;

/// The condition that tells why pods could not be created or deleted.
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// One kind of owner and its controller's name.
pub trait Kind: Send + Sync + 'static {
    const NAME: &'static str;
    /// True if owners of this kind are themselves controlled, several by one (replica sets of a deployment).
    const HAS_SIBLINGS: bool;
    type Object: Replicated;
}

pub struct ReplicaSets;
impl Kind for ReplicaSets {
    const NAME: &'static str = "replicaset-controller";
    const HAS_SIBLINGS: bool = true;
    type Object = ReplicaSet;
}

pub struct ReplicationControllers;
impl Kind for ReplicationControllers {
    const NAME: &'static str = "replication-controller";
    const HAS_SIBLINGS: bool = false;
    type Object = ReplicationController;
}

/// Pods as the status reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    /// `None` for kinds that do not report it.
    pub terminating: Option<i32>,
}

/// Why the wanted number could not be reached, as the condition shows it.
#[derive(Clone, Copy, Debug)]
pub struct Trouble<'a> {
    pub reason: &'a str,
    pub message: &'a str,
}

/// An object that wants a number of pods.
pub trait Replicated: Reflected + kube::Resource<Scope = NamespaceResourceScope> + Serialize {
    fn wanted(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// # Errors
    /// [`InvalidOperator`] if the stored selector is not valid.
    fn selector(&self) -> Result<LabelQuery, InvalidOperator>;
    /// The object with the status that `counts` and `trouble` give, or `None` if it has it already.
    fn with_status(&self, counts: &Counts, trouble: Option<Trouble<'_>>, now: &Time) -> Option<Self>;
}

impl Replicated for ReplicaSet {
    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn selector(&self) -> Result<LabelQuery, InvalidOperator> {
        LabelQuery::compile(self.spec.as_ref().map(|spec| &spec.selector))
    }

    fn with_status(&self, counts: &Counts, trouble: Option<Trouble<'_>>, now: &Time) -> Option<Self> {
        let before = self.status.clone().unwrap_or_default();
        let mut conditions = before.conditions.clone().unwrap_or_default();
        let kept = conditions.iter().position(|condition| condition.type_ == REPLICA_FAILURE);
        match (kept, trouble) {
            (Some(at), None) => drop(conditions.remove(at)),
            (None, Some(trouble)) => conditions.push(ReplicaSetCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(trouble.reason.to_owned()),
                message: Some(trouble.message.to_owned()),
                last_transition_time: Some(now.clone()),
            }),
            _ => (),
        }
        let status = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            terminating_replicas: counts.terminating,
            observed_generation: self.metadata.generation,
            conditions: Some(conditions).filter(|conditions| !conditions.is_empty()),
        };
        (normal(&before) != status).then(|| Self { status: Some(status), ..self.clone() })
    }
}

/// The status with zeros where the stored form leaves them out.
fn normal(status: &ReplicaSetStatus) -> ReplicaSetStatus {
    let mut status = status.clone();
    for count in [
        &mut status.fully_labeled_replicas,
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.terminating_replicas,
    ] {
        count.get_or_insert(0);
    }
    status.conditions = status.conditions.filter(|conditions| !conditions.is_empty());
    status
}

impl Replicated for ReplicationController {
    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn selector(&self) -> Result<LabelQuery, InvalidOperator> {
        // An empty selector of a replication controller would take every pod: validation forbids it, so does this.
        let labels = self.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|labels| !labels.is_empty());
        Ok(labels.map_or_else(LabelQuery::nothing, LabelQuery::equal_to))
    }

    fn with_status(&self, counts: &Counts, trouble: Option<Trouble<'_>>, now: &Time) -> Option<Self> {
        let before = self.status.clone().unwrap_or_default();
        let mut conditions = before.conditions.clone().unwrap_or_default();
        let kept = conditions.iter().position(|condition| condition.type_ == REPLICA_FAILURE);
        match (kept, trouble) {
            (Some(at), None) => drop(conditions.remove(at)),
            (None, Some(trouble)) => conditions.push(ReplicationControllerCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(trouble.reason.to_owned()),
                message: Some(trouble.message.to_owned()),
                last_transition_time: Some(now.clone()),
            }),
            _ => (),
        }
        let status = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            observed_generation: self.metadata.generation,
            conditions: Some(conditions).filter(|conditions| !conditions.is_empty()),
        };
        let mut normal = before;
        for count in [&mut normal.fully_labeled_replicas, &mut normal.ready_replicas, &mut normal.available_replicas] {
            count.get_or_insert(0);
        }
        normal.conditions = normal.conditions.filter(|conditions| !conditions.is_empty());
        (normal != status).then(|| Self { status: Some(status), ..self.clone() })
    }
}
