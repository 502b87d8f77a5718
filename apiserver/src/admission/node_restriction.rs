//! NodeRestriction: the parts of a node agent's writes that its authorisation cannot see, because they are in the body.
//!
//! A node may not give itself labels by which it would attract pods, change its taints, speak as another node, or create
//! pods other than reports of those it runs by itself.

use pintle_api::status::Status;
use serde_json::Value;

use super::{Chain, forbidden, is_mirror_pod};
use crate::authz::live::name_of;
use crate::authz::node::{self, bound_to};
use crate::authz::references::{self, Reference};
use crate::types::{Operation, Review};

/// Labels in the Kubernetes domains that a node may set on itself.
const OWN_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const OWN_LABEL_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Labels of this domain are for administrators to fence workloads in; no node may touch them.
const RESTRICTED_DOMAIN: &str = "node-restriction.kubernetes.io";

pub(super) fn admit(_: &Chain, review: &mut Review<'_>) -> Result<(), Status> {
    let Some(node) = node::node_name(review.user) else { return Ok(()) };
    match (review.kind.group, review.kind.resource, review.operation) {
        ("", "pods", Operation::Create) if review.subresource.is_empty() => check_pod(node, review),
        ("", "pods", Operation::Update) if review.subresource == "status" => check_pod_status(node, review),
        ("", "pods", Operation::Delete) => check_pod_delete(node, review),
        ("", "nodes", _) => check_node(node, review),
        ("coordination.k8s.io", "leases", _) => own_name(node, review, "lease"),
        ("storage.k8s.io", "csinodes", _) => own_name(node, review, "CSINode"),
        _ => Ok(()),
    }
}

fn own_name(node: &str, review: &Review<'_>, what: &str) -> Result<(), Status> {
    if review.name == node {
        return Ok(());
    }
    Err(forbidden(review, &format!("can only access {what} with the same name as the requesting node")))
}

fn check_pod(node: &str, review: &Review<'_>) -> Result<(), Status> {
    if !is_mirror_pod(&review.object) {
        let why = format!(
            "pod does not have {:?} annotation, node {node:?} can only create mirror pods",
            "kubernetes.io/config.mirror"
        );
        return Err(forbidden(review, &why));
    }
    if !bound_to(&review.object, node) {
        return Err(forbidden(review, &format!("node {node:?} can only create pods with spec.nodeName set to itself")));
    }
    // What a pod names its node may read: a node must not choose that by itself.
    match references::of(&review.object).next() {
        None => Ok(()),
        Some((reference, _)) => {
            let what = match reference {
                Reference::ServiceAccount => "a service account",
                Reference::Secret => "secrets",
                Reference::ConfigMap => "configmaps",
                Reference::Claim => "persistentvolumeclaims",
            };
            Err(forbidden(review, &format!("node {node:?} can not create pods that reference {what}")))
        }
    }
}

fn check_pod_status(node: &str, review: &Review<'_>) -> Result<(), Status> {
    let Some(old) = review.old.as_deref() else { return Ok(()) };
    if !bound_to(old, node) {
        return Err(forbidden(
            review,
            &format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"),
        ));
    }
    if old.pointer("/metadata/labels") != review.object.pointer("/metadata/labels") {
        return Err(forbidden(review, &format!("node {node:?} cannot update labels through pod status")));
    }
    Ok(())
}

fn check_pod_delete(node: &str, review: &Review<'_>) -> Result<(), Status> {
    if review.old.as_deref().is_some_and(|pod| bound_to(pod, node)) {
        return Ok(());
    }
    Err(forbidden(review, &format!("node {node:?} can only delete pods with spec.nodeName set to itself")))
}

fn check_node(node: &str, review: &Review<'_>) -> Result<(), Status> {
    let name = if review.object.is_null() { review.name } else { name_of(&review.object) };
    if name != node {
        return Err(forbidden(review, &format!("node {node:?} is not allowed to modify node {name:?}")));
    }
    let old = review.old.as_deref();
    if review.operation == Operation::Update && taints(Some(&review.object)) != taints(old) {
        return Err(forbidden(review, &format!("node {node:?} is not allowed to modify taints")));
    }
    let owners = |object: &Value| object.pointer("/metadata/ownerReferences").cloned().unwrap_or(Value::Null);
    if old.is_some_and(|old| !review.object.is_null() && owners(old) != owners(&review.object)) {
        return Err(forbidden(review, &format!("node {node:?} is not allowed to modify its owner references")));
    }
    let denied: Vec<String> = changed_labels(&review.object, old).into_iter().filter(|key| !may_set(key)).collect();
    if !denied.is_empty() {
        let why = format!("is not allowed to modify labels: {}", denied.join(", "));
        return Err(forbidden(review, &why));
    }
    Ok(())
}

fn taints(node: Option<&Value>) -> Option<&Value> {
    node?.pointer("/spec/taints").filter(|taints| taints.as_array().is_some_and(|taints| !taints.is_empty()))
}

fn changed_labels(new: &Value, old: Option<&Value>) -> Vec<String> {
    let labels = |object: &Value| object.pointer("/metadata/labels").and_then(Value::as_object).cloned();
    let new = labels(new).unwrap_or_default();
    let old = old.and_then(labels).unwrap_or_default();
    let mut keys: Vec<String> =
        new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key)).cloned().collect();
    keys.sort();
    keys.dedup();
    keys
}

fn may_set(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let below = |parent: &str| domain == parent || domain.ends_with(&format!(".{parent}"));
    if below(RESTRICTED_DOMAIN) {
        return false;
    }
    !(below("kubernetes.io") || below("k8s.io"))
        || OWN_LABELS.contains(&key)
        || OWN_LABEL_DOMAINS.iter().any(|parent| below(parent))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::tests::{chain, creation, kind};
    use super::*;
    use crate::authz::live::tests::Fixed;
    use crate::types::UserInfo;

    fn run(resource: &str, subresource: &'static str, object: Value, old: Option<Value>) -> Result<(), Status> {
        let (group, resource) = resource.split_once('/').unwrap_or(("", resource));
        let user = agent();
        let mut review = creation(kind(group, resource), &object, &user);
        if let Some(old) = old {
            review.operation = Operation::Update;
            review.old = Some(Arc::new(old));
        }
        review.subresource = subresource;
        admit(&chain(Fixed::default()), &mut review)
    }

    fn delete(old: Value) -> Result<(), Status> {
        let (nothing, user) = (Value::Null, agent());
        let mut review = creation(kind("", "pods"), &nothing, &user);
        review.operation = Operation::Delete;
        review.old = Some(Arc::new(old));
        admit(&chain(Fixed::default()), &mut review)
    }

    fn agent() -> UserInfo {
        UserInfo { name: "system:node:n1".into(), groups: vec![node::NODES_GROUP.into()], ..UserInfo::default() }
    }

    fn node_with(name: &str, labels: Value) -> Value {
        json!({"metadata": {"name": name, "labels": labels}})
    }

    #[test]
    fn a_node_is_itself_and_labels_itself_harmlessly() {
        assert!(run("nodes", "", node_with("n1", json!({"kubernetes.io/hostname": "n1", "team": "x"})), None).is_ok());
        assert!(run("nodes", "", node_with("n2", json!({})), None).is_err());
        for label in ["node-role.kubernetes.io/control-plane", "a.node-restriction.kubernetes.io/x", "x.k8s.io/y"] {
            assert!(run("nodes", "", node_with("n1", json!({label: ""})), None).is_err(), "{label}");
            assert!(
                run("nodes", "status", node_with("n1", json!({})), Some(node_with("n1", json!({label: ""})))).is_err()
            );
        }
        let kept = node_with("n1", json!({"node-role.kubernetes.io/control-plane": ""}));
        assert!(run("nodes", "status", kept.clone(), Some(kept)).is_ok());
    }

    #[test]
    fn taints_are_set_at_birth_only() {
        let tainted = |taints: Value| json!({"metadata": {"name": "n1"}, "spec": {"taints": taints}});
        assert!(run("nodes", "", tainted(json!([{"key": "a"}])), None).is_ok());
        assert!(run("nodes", "", tainted(json!([])), Some(tainted(json!([{"key": "a"}])))).is_err());
        assert!(run("nodes", "", tainted(json!([])), Some(tainted(Value::Null))).is_ok());
    }

    #[test]
    fn a_mirror_pod_names_nothing_that_its_node_could_then_read() {
        use crate::authz::live::PODS;
        use crate::authz::rules::Action;
        for (reference, spec) in references::tests::examples() {
            let mirror = json!({"kubernetes.io/config.mirror": "x"});
            let mut pod = json!({"metadata": {"name": "p", "namespace": "a", "annotations": mirror}, "spec": spec});
            pod["spec"]["nodeName"] = json!("n1");
            let (resource, what) = match reference {
                Reference::Secret => ("secrets", "secrets"),
                Reference::ConfigMap => ("configmaps", "configmaps"),
                Reference::Claim => ("persistentvolumeclaims", "persistentvolumeclaims"),
                Reference::ServiceAccount => ("serviceaccounts", "a service account"),
            };
            let name = if pod.pointer("/spec/volumes/0/ephemeral").is_some() { "p-x" } else { "x" };
            let action = Action { verb: "get", resource, namespace: "a", name, ..Action::default() };
            assert!(node::allows(&Fixed::default().with(PODS, pod.clone()), "n1", &action), "{pod}");
            let refused = run("pods", "", pod.clone(), None).expect_err("refused");
            let why = format!(r#"pods "p" is forbidden: node "n1" can not create pods that reference {what}"#);
            assert_eq!(refused.message, why, "{pod}");
        }
    }

    #[test]
    fn pods_are_mirrors_and_statuses_keep_labels() {
        let pod = |node: &str, annotations: Value, labels: Value| {
            json!({"metadata": {"name": "p", "namespace": "a", "annotations": annotations, "labels": labels},
                   "spec": {"nodeName": node}})
        };
        let mirror = json!({"kubernetes.io/config.mirror": "x"});
        assert!(run("pods", "", pod("n1", mirror.clone(), json!({})), None).is_ok());
        assert!(run("pods", "", pod("n2", mirror, json!({})), None).is_err());
        assert!(run("pods", "", pod("n1", json!({}), json!({})), None).is_err());
        let mine = |labels: Value| pod("n1", json!({}), labels);
        assert!(run("pods", "status", mine(json!({})), Some(mine(json!({})))).is_ok());
        assert!(run("pods", "status", mine(json!({"app": "x"})), Some(mine(json!({})))).is_err());
        let other = || pod("n2", json!({}), json!({}));
        assert!(run("pods", "status", other(), Some(other())).is_err());
        assert!(delete(mine(json!({}))).is_ok());
        assert!(delete(other()).is_err());
        assert!(
            run(
                "coordination.k8s.io/leases",
                "",
                json!({"metadata": {"name": "n2", "namespace": "kube-node-lease"}}),
                None
            )
            .is_err()
        );
    }
}
