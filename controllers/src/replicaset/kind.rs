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
    /// Not all kinds report it.
    pub terminating: i32,
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

/// Both kinds are the same but for their types, the counts their status has, and how they select.
macro_rules! replicated {
    ($object:ident, $status:ident { $($field:ident: $count:ident),+ }, $condition:ident, $selector:expr) => {
        impl Replicated for $object {
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
                $selector(self)
            }

            fn with_status(&self, counts: &Counts, trouble: Option<Trouble<'_>>, now: &Time) -> Option<Self> {
                let mut before = self.status.clone().unwrap_or_default();
                // The stored form leaves out zeros and empty lists.
                $(before.$field.get_or_insert(0);)+
                let mut conditions = before.conditions.take().unwrap_or_default();
                before.conditions = Some(conditions.clone()).filter(|conditions| !conditions.is_empty());
                let shown = conditions.iter().position(|condition| condition.type_ == REPLICA_FAILURE);
                match (shown, trouble) {
                    (Some(at), None) => drop(conditions.remove(at)),
                    (None, Some(trouble)) => conditions.push($condition {
                        type_: REPLICA_FAILURE.to_owned(),
                        status: "True".to_owned(),
                        reason: Some(trouble.reason.to_owned()),
                        message: Some(trouble.message.to_owned()),
                        last_transition_time: Some(now.clone()),
                    }),
                    _ => (),
                }
                let status = $status {
                    replicas: counts.replicas,
                    $($field: Some(counts.$count),)+
                    observed_generation: self.metadata.generation,
                    conditions: Some(conditions).filter(|conditions| !conditions.is_empty()),
                };
                (before != status).then(|| Self { status: Some(status), ..self.clone() })
            }
        }
    };
}

replicated!(
    ReplicaSet,
    ReplicaSetStatus {
        fully_labeled_replicas: fully_labeled,
        ready_replicas: ready,
        available_replicas: available,
        terminating_replicas: terminating
    },
    ReplicaSetCondition,
    |set: &ReplicaSet| LabelQuery::compile(set.spec.as_ref().map(|spec| &spec.selector))
);

replicated!(
    ReplicationController,
    ReplicationControllerStatus {
        fully_labeled_replicas: fully_labeled,
        ready_replicas: ready,
        available_replicas: available
    },
    ReplicationControllerCondition,
    |controller: &ReplicationController| {
        // An empty selector of a replication controller would take every pod: validation forbids it, so does this.
        let spec = controller.spec.as_ref();
        let labels = spec.and_then(|spec| spec.selector.as_ref()).filter(|labels| !labels.is_empty());
        Ok(labels.map_or_else(LabelQuery::nothing, LabelQuery::equal_to))
    }
);

#[cfg(test)]
mod tests {
    use super::*;
    use pintle_client::object::time_now;
    use serde_json::{Value, json};

    /// Writes the status of an object of kind `R` with counts and perhaps trouble, twice; what it shows, as JSON.
    #[track_caller]
    fn check<R: Replicated>(trouble: Option<&str>, want: &Value) {
        let spec = json!({"selector": {}, "replicas": 3});
        let object = json!({"metadata": {"name": "web", "namespace": "ns", "generation": 2}, "spec": spec});
        let object: R = serde_json::from_value(object).expect("object");
        let counts = Counts { replicas: 3, fully_labeled: 2, ready: 1, available: 1, terminating: 4 };
        let trouble = trouble.map(|reason| Trouble { reason, message: "m" });
        let written = object.with_status(&counts, trouble, &time_now()).expect("differs");
        assert!(written.with_status(&counts, trouble, &time_now()).is_none(), "the same again is not written");
        let mut status = serde_json::to_value(&written).expect("json")["status"].take();
        if let Some(time) = status.pointer_mut("/conditions/0/lastTransitionTime") {
            *time = json!("t");
        }
        assert_eq!(&status, want);
        let healed = written.with_status(&Counts::default(), None, &time_now()).expect("differs");
        assert_eq!(serde_json::to_value(&healed).expect("json").pointer("/status/conditions"), None);
    }

    #[test]
    fn both_kinds_show_counts_and_trouble_in_their_own_terms() {
        let counts = |terminating: bool, trouble: bool| {
            let mut status = json!({"replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 1, "availableReplicas": 1,
                "observedGeneration": 2});
            if terminating {
                status["terminatingReplicas"] = json!(4);
            }
            if trouble {
                status["conditions"] = json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
                    "message": "m", "lastTransitionTime": "t"}]);
            }
            status
        };
        check::<ReplicaSet>(None, &counts(true, false));
        check::<ReplicaSet>(Some("FailedCreate"), &counts(true, true));
        check::<ReplicationController>(None, &counts(false, false));
        check::<ReplicationController>(Some("FailedCreate"), &counts(false, true));
    }

    #[test]
    fn a_status_stored_without_zeros_is_not_written_again() {
        let object = json!({"metadata": {}, "spec": {"selector": {}}, "status": {"replicas": 0, "conditions": []}});
        let set: ReplicaSet = serde_json::from_value(object.clone()).expect("set");
        let controller: ReplicationController = serde_json::from_value(object).expect("controller");
        assert!(set.with_status(&Counts::default(), None, &time_now()).is_none());
        assert!(controller.with_status(&Counts::default(), None, &time_now()).is_none());
    }
}
