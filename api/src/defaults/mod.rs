//! What the API fills in when a request leaves it out.
//!
//! Most defaults are rows of a table ([`rules`]); what depends on other fields is code beside the table: [`pod`] for pods
//! and everything that carries a pod template, [`workload`], [`network`], [`other`]. Applying twice changes nothing.

mod network;
mod other;
mod pod;
mod quantities;
mod rules;
mod workload;

use serde_json::Value;

use crate::kinds::Kind;

pub use pod::image_pull_policy;

/// Fills in the defaults of an object of `kind` and writes its quantities in canonical form.
pub fn apply(kind: &Kind, object: &mut Value) {
    if let Some(schema) = kind.schema() {
        quantities::canonicalize(object, schema);
    }
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::pod(object),
        ("", "PodTemplate") => pod::template(object, "template"),
        ("", "ReplicationController") => workload::replication_controller(object),
        ("apps", "ReplicaSet") => workload::replica_set(object),
        ("apps", "Deployment") => workload::deployment(object),
        ("apps", "DaemonSet") => workload::daemon_set(object),
        ("apps", "StatefulSet") => workload::stateful_set(object),
        ("batch", "Job") => workload::job(object),
        ("batch", "CronJob") => workload::cron_job(object),
        ("", "Service") => network::service(object),
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(object),
        ("networking.k8s.io", "NetworkPolicy") => network::policy(object),
        ("", "Secret") => other::secret(object),
        ("", "Namespace") => other::namespace(object),
        ("", "Node") => other::node(object),
        ("", "LimitRange") => other::limit_range(object),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => other::role_binding(object),
        ("autoscaling", "HorizontalPodAutoscaler") => other::autoscaler(kind.version, object),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => other::priority_level(object),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => other::custom_resource_definition(object),
        (group, name) => {
            if let Some((.., table)) = other::TABLES.iter().find(|(g, k, _)| *g == group && *k == name) {
                rules::apply(object, table);
            }
        }
    }
}

#[cfg(test)]
mod tests;
