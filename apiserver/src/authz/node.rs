//! What a node agent may do: its own Node, its Lease, the pods bound to it, and only the secrets those pods name.
//!
//! The identity is user `system:node:NAME` in group `system:nodes`. One table says who may do what; a check per row says
//! for which objects. A node that is taken over can read the secrets of the pods placed on it and nothing else.
//! What the table does not allow may still be allowed by a binding; it is never refused here.

use serde_json::Value;

use pintle_api::selector::Fields;

use super::live::{CLAIMS, Live, PODS, VOLUMES, name_of, text};
use super::references::{self, Reference};
use super::rules::Action;
use crate::types::UserInfo;

pub(crate) const NODES_GROUP: &str = "system:nodes";
pub(crate) const NODE_USER_PREFIX: &str = "system:node:";
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";

/// For which objects a row of the table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// All of them.
    Any,
    /// Name equals the node's name.
    OwnName,
    /// Lease of the node's name in `kube-node-lease`.
    OwnLease,
    /// A pod bound to the node.
    OwnPod,
    /// Lists and watches that select `spec.nodeName` = the node.
    SelectedPods,
    /// An object named by a pod bound to the node.
    Referenced(Reference),
    /// A volume bound to a claim of a pod bound to the node.
    ClaimedVolume,
}

impl Reference {
    /// What the text of a referring pod must hold. The claims of ephemeral volumes have composed names.
    fn mention(self, name: &str) -> &str {
        if self == Self::Claim { "" } else { name }
    }
}

const READ: &[&str] = &["get", "list", "watch"];
const CHANGE: &[&str] = &["update", "patch"];

/// (group, resource or resource/subresource, verbs, scope).
#[rustfmt::skip]
const TABLE: &[(&str, &str, &[&str], Scope)] = &[
    ("", "nodes", &["create", "get", "list", "watch"], Scope::Any),
    ("", "nodes", CHANGE, Scope::OwnName),
    ("", "nodes/status", CHANGE, Scope::OwnName),
    ("", "pods", &["get"], Scope::OwnPod),
    // For a pod that is gone the agent must read 404, so whose pod it is is looked at in admission (NodeRestriction).
    ("", "pods", &["delete"], Scope::Any),
    ("", "pods", &["list", "watch"], Scope::SelectedPods),
    ("", "pods", &["create"], Scope::Any),
    ("", "pods/status", &["get"], Scope::OwnPod),
    ("", "pods/status", CHANGE, Scope::Any),
    ("", "pods/eviction", &["create"], Scope::OwnPod),
    ("", "secrets", READ, Scope::Referenced(Reference::Secret)),
    ("", "configmaps", READ, Scope::Referenced(Reference::ConfigMap)),
    ("", "persistentvolumeclaims", &["get"], Scope::Referenced(Reference::Claim)),
    ("", "persistentvolumeclaims/status", &["get", "update", "patch"], Scope::Referenced(Reference::Claim)),
    ("", "persistentvolumes", &["get"], Scope::ClaimedVolume),
    ("", "serviceaccounts", &["get"], Scope::Referenced(Reference::ServiceAccount)),
    ("", "serviceaccounts/token", &["create"], Scope::Referenced(Reference::ServiceAccount)),
    ("", "services", READ, Scope::Any),
    ("", "endpoints", READ, Scope::Any),
    ("", "events", &["create", "update", "patch"], Scope::Any),
    ("events.k8s.io", "events", &["create", "update", "patch"], Scope::Any),
    ("discovery.k8s.io", "endpointslices", READ, Scope::Any),
    ("networking.k8s.io", "servicecidrs", READ, Scope::Any),
    ("coordination.k8s.io", "leases", &["get", "create", "update", "patch", "delete"], Scope::OwnLease),
    ("certificates.k8s.io", "certificatesigningrequests", &["create", "get", "list", "watch"], Scope::Any),
    ("authentication.k8s.io", "tokenreviews", &["create"], Scope::Any),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"], Scope::Any),
    ("authorization.k8s.io", "localsubjectaccessreviews", &["create"], Scope::Any),
    ("node.k8s.io", "runtimeclasses", READ, Scope::Any),
    ("storage.k8s.io", "csidrivers", READ, Scope::Any),
    ("storage.k8s.io", "csinodes", &["get", "create", "update", "patch", "delete"], Scope::OwnName),
    ("storage.k8s.io", "volumeattachments", &["get"], Scope::Any),
];

/// The node's name if this user is a node agent.
pub(crate) fn node_name(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(NODE_USER_PREFIX).filter(|name| !name.is_empty())?;
    user.in_group(NODES_GROUP).then_some(name)
}

/// True if the table allows `action` to the agent of `node`.
pub(crate) fn allows(live: &dyn Live, node: &str, action: &Action<'_>) -> bool {
    if let Some(path) = action.path {
        return path.starts_with(crate::node_session::PATH_PREFIX);
    }
    let rows = TABLE.iter().filter(|(group, entry, verbs, _)| {
        *group == action.group && names(entry, action) && verbs.contains(&action.verb)
    });
    rows.map(|row| row.3).any(|scope| in_scope(live, scope, node, action))
}

fn names(entry: &str, action: &Action<'_>) -> bool {
    match entry.split_once('/') {
        Some((resource, subresource)) => resource == action.resource && subresource == action.subresource,
        None => entry == action.resource && action.subresource.is_empty(),
    }
}

fn in_scope(live: &dyn Live, scope: Scope, node: &str, action: &Action<'_>) -> bool {
    match scope {
        Scope::Any => true,
        Scope::OwnName => action.name == node || (action.verb == "create" && action.name.is_empty()),
        Scope::OwnLease => {
            action.namespace == LEASE_NAMESPACE
                && (action.name == node || (action.verb == "create" && action.name.is_empty()))
        }
        Scope::OwnPod => live.get(PODS, action.namespace, action.name).is_some_and(|pod| bound_to(&pod, node)),
        Scope::SelectedPods => selects_pods_of(node, action.field_selector),
        Scope::Referenced(reference) => {
            !action.name.is_empty()
                && !action.namespace.is_empty()
                && live.pod_on(node, action.namespace, reference.mention(action.name), &|pod| {
                    refers(pod, reference, action.name)
                })
        }
        Scope::ClaimedVolume => claimed(live, node, action.name),
    }
}

pub(crate) fn bound_to(pod: &Value, node: &str) -> bool {
    text(pod, "/spec/nodeName") == node
}

fn claimed(live: &dyn Live, node: &str, volume: &str) -> bool {
    let Some(volume) = live.get(VOLUMES, "", volume) else { return false };
    let (namespace, claim) = (text(&volume, "/spec/claimRef/namespace"), text(&volume, "/spec/claimRef/name"));
    let bound = live.get(CLAIMS, namespace, claim).is_some_and(|c| text(&c, "/spec/volumeName") == name_of(&volume));
    bound && live.pod_on(node, namespace, "", &|pod| refers(pod, Reference::Claim, claim))
}

/// True if the field selector selects pods of `node` only. Parsed as it will be when it selects: its text may hold
/// `spec.nodeName=` inside an escaped value.
fn selects_pods_of(node: &str, selector: &str) -> bool {
    let Some(pods) = PODS.kind() else { return false };
    Fields::parse(pods, selector).is_ok_and(|fields| fields.exact("spec.nodeName") == Some(node))
}

/// True if the pod names the object.
fn refers(pod: &Value, reference: Reference, name: &str) -> bool {
    references::of(pod).any(|(what, named)| what == reference && named == name)
}

#[cfg(test)]
mod tests {
    use super::super::live::tests::Fixed;
    use super::*;
    use serde_json::json;

    fn cluster() -> Fixed {
        let pod = |name: &str, node: &str, suffix: &str| {
            json!({"metadata": {"namespace": "a", "name": name}, "spec": {
                "nodeName": node, "serviceAccountName": format!("sa-{suffix}"),
                "imagePullSecrets": [{"name": format!("pull-{suffix}")}],
                "volumes": [
                    {"name": "s", "secret": {"secretName": format!("vol-{suffix}")}},
                    {"name": "p", "projected": {"sources": [{"configMap": {"name": format!("proj-{suffix}")}}]}},
                    {"name": "c", "persistentVolumeClaim": {"claimName": format!("claim-{suffix}")}}],
                "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": format!("env-{suffix}")}}}]}],
                "containers": [{"envFrom": [{"configMapRef": {"name": format!("from-{suffix}")}}]}]}})
        };
        Fixed::default()
            .with(PODS, pod("mine", "n1", "1"))
            .with(PODS, pod("other", "n2", "2"))
            .with(
                VOLUMES,
                json!({"metadata": {"name": "pv1"}, "spec": {"claimRef": {"namespace": "a", "name": "claim-1"}}}),
            )
            .with(CLAIMS, json!({"metadata": {"namespace": "a", "name": "claim-1"}, "spec": {"volumeName": "pv1"}}))
    }

    #[track_caller]
    fn check(verb: &str, resource: &str, namespace: &str, name: &str, selector: &str, want: bool) {
        let (group, resource) = match resource.split_once('.') {
            Some((resource, group)) => (group, resource),
            None => ("", resource),
        };
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let action = Action {
            verb,
            group,
            resource,
            subresource,
            namespace,
            name,
            field_selector: selector,
            ..Action::default()
        };
        assert_eq!(allows(&cluster(), "n1", &action), want, "{action:?}");
    }

    #[test]
    fn a_node_changes_itself_only() {
        check("patch", "nodes/status", "", "n1", "", true);
        check("patch", "nodes/status", "", "n2", "", false);
        check("delete", "nodes", "", "n1", "", false);
        check("update", "leases.coordination.k8s.io", LEASE_NAMESPACE, "n1", "", true);
        check("update", "leases.coordination.k8s.io", LEASE_NAMESPACE, "n2", "", false);
        check("update", "leases.coordination.k8s.io", "default", "n1", "", false);
    }

    #[test]
    fn a_node_sees_its_pods_only() {
        check("watch", "pods", "", "", "spec.nodeName=n1", true);
        check("watch", "pods", "", "", "status.phase!=Failed,spec.nodeName==n1", true);
        check("watch", "pods", "", "", "spec.nodeName=n2", false);
        check("watch", "pods", "", "", "", false);
        check("watch", "pods", "", "", r"metadata.name!=x\,spec.nodeName=n1", false);
        check("watch", "pods", "", "", "spec.nodeName=n1,nonsense", false);
        check("get", "pods", "a", "mine", "", true);
        check("get", "pods", "a", "other", "", false);
        check("patch", "pods/status", "a", "mine", "", true);
        check("get", "pods/status", "a", "other", "", false);
        check("patch", "pods", "a", "mine", "", false);
    }

    #[test]
    fn secrets_and_configmaps_must_be_named_by_a_pod_on_the_node() {
        for name in ["pull-1", "vol-1", "env-1"] {
            check("get", "secrets", "a", name, "", true);
        }
        for name in ["pull-2", "vol-2", "env-2", "", "unrelated"] {
            check("get", "secrets", "a", name, "", false);
        }
        check("get", "secrets", "b", "vol-1", "", false);
        check("list", "secrets", "a", "", "", false);
        check("get", "configmaps", "a", "proj-1", "", true);
        check("get", "configmaps", "a", "from-1", "", true);
        check("get", "configmaps", "a", "from-2", "", false);
        check("update", "configmaps", "a", "from-1", "", false);
    }

    #[test]
    fn tokens_and_volumes_follow_the_pods() {
        check("create", "serviceaccounts/token", "a", "sa-1", "", true);
        check("create", "serviceaccounts/token", "a", "sa-2", "", false);
        check("get", "persistentvolumes", "", "pv1", "", true);
        check("get", "persistentvolumeclaims", "a", "claim-2", "", false);
        check("get", "persistentvolumes", "", "pv2", "", false);
    }

    #[test]
    fn only_the_group_makes_a_node() {
        let user =
            |name: &str, group: &str| UserInfo { name: name.into(), groups: vec![group.into()], ..UserInfo::default() };
        assert_eq!(node_name(&user("system:node:n1", NODES_GROUP)), Some("n1"));
        assert_eq!(node_name(&user("system:node:n1", "other")), None);
        assert_eq!(node_name(&user("system:node:", NODES_GROUP)), None);
    }
}
