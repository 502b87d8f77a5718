//! Whether an object may be stored: the rules of its kind, with the field paths and texts that Kubernetes answers.
//!
//! Validation runs after defaulting and after names and addresses were allocated, on the tree as it would be stored.
//! Rules for metadata are the same for all kinds ([`meta`]); each family of kinds has a file; kinds without rules of their
//! own are checked for required fields by schema ([`generic`]). Nothing here looks at other objects.

mod affinity;
mod batch;
mod certificate;
mod checks;
mod container;
mod core;
mod env;
mod generic;
mod meta;
mod network;
mod node;
mod pod;
mod pod_update;
mod probe;
mod rbac;
mod resources;
mod security;
mod service;
mod storage;
mod volume;
mod workload;

use serde_json::Value;

use crate::kinds::Kind;
use crate::limits;
use crate::status::{FieldError, Path};

pub use meta::delete_options;
pub use pod_update::{ephemeral_containers as pod_ephemeral_containers, resize as pod_resize};

/// What validation collects: the first [`limits::FIELD_ERRORS_MAX`] errors. A body of many wrong entries must not become
/// an answer many times its size.
#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn push(&mut self, error: FieldError) {
        if self.0.len() < limits::FIELD_ERRORS_MAX {
            self.0.push(error);
        }
    }

    fn extend(&mut self, errors: impl IntoIterator<Item = FieldError>) {
        let room = limits::FIELD_ERRORS_MAX.saturating_sub(self.0.len());
        self.0.extend(errors.into_iter().take(room));
    }
}

/// The rules of one kind beyond metadata.
struct Rules {
    group: &'static str,
    kind: &'static str,
    /// Rules that hold for every stored state.
    object: fn(&Value, &mut Errors),
    /// Rules about the step from old (second) to new (first).
    step: fn(&Value, &Value, &mut Errors),
    /// Rules about writes to the status subresource, new and old.
    status: fn(&Value, &Value, &mut Errors),
}

fn no_step(_: &Value, _: &Value, _: &mut Errors) {}

const fn rules(group: &'static str, kind: &'static str, object: fn(&Value, &mut Errors)) -> Rules {
    Rules { group, kind, object, step: no_step, status: no_step }
}

impl Rules {
    const fn step(mut self, step: fn(&Value, &Value, &mut Errors)) -> Self {
        self.step = step;
        self
    }

    const fn status(mut self, status: fn(&Value, &Value, &mut Errors)) -> Self {
        self.status = status;
        self
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

static RULES: &[Rules] = &[
    rules("", "Pod", pod::object).step(pod_update::step).status(pod_update::status),
    rules("", "PodTemplate", pod::pod_template),
    rules("", "Node", node::object).step(node::step),
    rules("", "Namespace", core::namespace),
    rules("", "Service", service::object).step(service::step).status(service::status),
    rules("", "Endpoints", network::endpoints),
    rules("discovery.k8s.io", "EndpointSlice", network::endpoint_slice).step(network::endpoint_slice_step),
    rules("networking.k8s.io", "Ingress", network::ingress),
    rules("networking.k8s.io", "IngressClass", network::ingress_class).step(network::ingress_class_step),
    rules("networking.k8s.io", "NetworkPolicy", network::policy),
    rules("", "ConfigMap", core::config_map).step(core::config_map_step),
    rules("", "Secret", core::secret).step(core::secret_step),
    rules("", "ServiceAccount", core::service_account),
    rules("", "Event", core::event),
    rules("events.k8s.io", "Event", core::event),
    rules("", "LimitRange", core::limit_range),
    rules("", "ResourceQuota", core::resource_quota),
    rules("coordination.k8s.io", "Lease", core::lease),
    rules("scheduling.k8s.io", "PriorityClass", core::priority_class).step(core::priority_class_step),
    rules("", "ReplicationController", workload::replication_controller).status(workload::replica_status),
    rules("apps", "ReplicaSet", workload::replica_set).step(workload::selector_step).status(workload::replica_status),
    rules("apps", "Deployment", workload::deployment).step(workload::selector_step).status(workload::deployment_status),
    rules("apps", "DaemonSet", workload::daemon_set).step(workload::selector_step),
    rules("apps", "StatefulSet", workload::stateful_set).step(workload::stateful_set_step),
    rules("apps", "ControllerRevision", generic::nothing).step(workload::controller_revision_step),
    rules("batch", "Job", batch::job).step(batch::job_step),
    rules("batch", "CronJob", batch::cron_job),
    rules("policy", "PodDisruptionBudget", workload::disruption_budget),
    rules("autoscaling", "HorizontalPodAutoscaler", workload::autoscaler),
    rules(RBAC, "Role", rbac::role),
    rules(RBAC, "ClusterRole", rbac::cluster_role),
    rules(RBAC, "RoleBinding", rbac::role_binding).step(rbac::binding_step),
    rules(RBAC, "ClusterRoleBinding", rbac::cluster_role_binding).step(rbac::binding_step),
    rules("", "PersistentVolume", storage::volume).step(storage::volume_step),
    rules("", "PersistentVolumeClaim", storage::claim).step(storage::claim_step),
    rules("storage.k8s.io", "StorageClass", storage::class).step(storage::class_step),
    rules("autoscaling", "Scale", workload::scale),
    rules("certificates.k8s.io", "CertificateSigningRequest", certificate::object).status(certificate::status),
];

fn of(kind: &Kind) -> Option<&'static Rules> {
    RULES.iter().find(|rules| rules.group == kind.group && rules.kind == kind.kind)
}

/// The errors of a new object.
pub fn create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::object(kind, object, &mut errors);
    if (kind.group, kind.kind) == ("", "Pod") {
        pod::create_only(object, &mut errors);
    }
    if (kind.group, kind.kind) == ("batch", "Job") {
        batch::own_pods(object, &mut errors);
    }
    rules_of(kind, object, &mut errors);
    errors.0
}

/// The errors of a change from `old` to `new`. `new` must carry the resourceVersion it was read at.
pub fn update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::step(kind, new, old, &mut errors);
    if let Some(rules) = of(kind) {
        (rules.step)(new, old, &mut errors);
    }
    // A pod that exists keeps what later rules would refuse; only what may change at all is checked, by the step.
    if (kind.group, kind.kind) != ("", "Pod") {
        rules_of(kind, new, &mut errors);
    }
    errors.0
}

/// The errors of a write to the status subresource.
pub fn update_status(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::step(kind, new, old, &mut errors);
    if let Some(rules) = of(kind) {
        (rules.status)(new, old, &mut errors);
    }
    errors.0
}

/// The errors of a verdict on a certificate request.
pub fn certificate_approval(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::step(kind, new, old, &mut errors);
    certificate::approval(new, old, &mut errors);
    errors.0
}

fn rules_of(kind: &Kind, object: &Value, errors: &mut Errors) {
    match of(kind) {
        Some(rules) => (rules.object)(object, errors),
        None => generic::required(kind, object, errors),
    }
}

fn spec() -> Path {
    Path::new("spec")
}

#[cfg(test)]
mod tests;
