//! The roles and bindings of a new cluster, as one table.
//!
//! Names, verbs and resources are what Kubernetes users and tools expect. A grant is (verbs, groups, resources), each a
//! list with commas; the group `url` stands for non-resource paths. Roles marked for aggregation make up admin, edit and
//! view together with whatever users mark the same way.

use serde_json::{Value, json};

type Grant = (&'static str, &'static str, &'static str);

const R: &str = "get,list,watch";
const W: &str = "create,delete,deletecollection,patch,update";
const RW: &str = "create,delete,deletecollection,get,list,patch,update,watch";
const EVENTS: Grant = ("create,patch,update", ",events.k8s.io", "events");
/// Group of everybody who has proven an identity.
const ALL: &str = "system:authenticated";
const CERTIFICATES: &str = "certificates.k8s.io";

/// Cluster roles by name.
#[rustfmt::skip]
const CLUSTER_ROLES: &[(&str, &[Grant])] = &[
    ("cluster-admin", &[("*", "*", "*"), ("*", "url", "*")]),
    ("system:discovery", &[("get", "url", "/api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/")]),
    ("system:public-info-viewer", &[("get", "url", "/healthz,/livez,/readyz,/version,/version/")]),
    ("system:monitoring", &[("get", "url", "/healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*")]),
    ("system:basic-user", &[
        ("create", "authorization.k8s.io", "selfsubjectaccessreviews,selfsubjectrulesreviews"),
        ("create", "authentication.k8s.io", "selfsubjectreviews"),
    ]),
    ("system:service-account-issuer-discovery", &[("get", "url", "/.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/")]),
    ("system:auth-delegator", &[
        ("create", "authentication.k8s.io", "tokenreviews"),
        ("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]),
    ("system:node-bootstrapper", &[("create,get,list,watch", CERTIFICATES, "certificatesigningrequests")]),
    ("system:node-proxier", &[
        ("list,watch", "", "endpoints,services"), (R, "", "nodes"), EVENTS,
        ("list,watch", "discovery.k8s.io", "endpointslices"), ("list,watch", "networking.k8s.io", "servicecidrs"),
    ]),
    ("system:node", &[
        ("create", "authentication.k8s.io", "tokenreviews"),
        ("create", "authorization.k8s.io", "localsubjectaccessreviews,subjectaccessreviews"),
        (R, "", "services"), ("create,get,list,watch", "", "nodes"), ("patch,update", "", "nodes,nodes/status"),
        EVENTS, (R, "", "pods"), ("create,delete", "", "pods"), ("patch,update", "", "pods/status"),
        ("create", "", "pods/eviction"), (R, "", "configmaps,secrets"), ("get", "", "persistentvolumeclaims,persistentvolumes"),
        ("get", "", "endpoints"), ("create,get,list,watch", CERTIFICATES, "certificatesigningrequests"),
        ("create,delete,get,patch,update", "coordination.k8s.io", "leases"), ("get", "storage.k8s.io", "volumeattachments"),
        ("create", "", "serviceaccounts/token"), ("get,patch,update", "", "persistentvolumeclaims/status"),
        (R, "storage.k8s.io", "csidrivers"), ("create,delete,get,patch,update", "storage.k8s.io", "csinodes"),
        (R, "node.k8s.io", "runtimeclasses"), ("list,watch", "discovery.k8s.io", "endpointslices"),
    ]),
    ("system:kubelet-api-admin", &[
        (R, "", "nodes"), ("proxy", "", "nodes"), ("*", "", "nodes/log,nodes/metrics,nodes/proxy,nodes/stats"),
    ]),
    ("system:persistent-volume-provisioner", &[
        ("create,delete,get,list,watch", "", "persistentvolumes"), ("get,list,update,watch", "", "persistentvolumeclaims"),
        (R, "storage.k8s.io", "storageclasses"), ("watch", "", "events"), EVENTS,
    ]),
    ("system:kube-scheduler", &[
        EVENTS, ("create", "coordination.k8s.io", "leases"), ("get,list,patch,update,watch", "coordination.k8s.io", "leases"),
        (R, "", "nodes,namespaces,replicationcontrollers,services,persistentvolumeclaims,persistentvolumes"),
        ("delete,get,list,watch", "", "pods"), ("create", "", "bindings,pods/binding"), ("patch,update", "", "pods/status"),
        (R, "apps", "replicasets,statefulsets"), (R, "policy", "poddisruptionbudgets"), (R, "scheduling.k8s.io", "priorityclasses"),
        ("get,list,patch,update,watch", "", "persistentvolumeclaims,persistentvolumes"),
        (R, "storage.k8s.io", "csidrivers,csinodes,csistoragecapacities,storageclasses,volumeattachments"),
        (R, "resource.k8s.io", "deviceclasses,resourceclaims,resourceslices"),
        ("create", "authentication.k8s.io", "tokenreviews"), ("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]),
    ("system:volume-scheduler", &[
        ("get,list,patch,update,watch", "", "persistentvolumeclaims,persistentvolumes"), (R, "storage.k8s.io", "storageclasses"),
    ]),
    ("system:kube-controller-manager", &[
        EVENTS, ("create,get,list,patch,update,watch", "coordination.k8s.io", "leases"), ("list,watch", "*", "*"),
        ("create,delete,get,update", "", "secrets"), ("create,get,update", "", "serviceaccounts"), ("get", "", "configmaps,namespaces"),
        ("create", "", "serviceaccounts/token"), ("create", "authentication.k8s.io", "tokenreviews"),
        ("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]),
    ("system:certificates.k8s.io:certificatesigningrequests:nodeclient", &[("create", CERTIFICATES, "certificatesigningrequests/nodeclient")]),
    ("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", &[("create", CERTIFICATES, "certificatesigningrequests/selfnodeclient")]),
    ("system:aggregate-to-view", &[
        (R, "", "configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status"),
        (R, "", "bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status,namespaces"),
        (R, "discovery.k8s.io", "endpointslices"),
        (R, "apps", "controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status"),
        (R, "autoscaling", "horizontalpodautoscalers,horizontalpodautoscalers/status"),
        (R, "batch", "cronjobs,cronjobs/status,jobs,jobs/status"),
        (R, "policy", "poddisruptionbudgets,poddisruptionbudgets/status"),
        (R, "networking.k8s.io", "ingresses,ingresses/status,networkpolicies"),
        (R, "events.k8s.io", "events"),
    ]),
    ("system:aggregate-to-edit", &[
        (R, "", "pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy"),
        ("impersonate", "", "serviceaccounts"),
        (W, "", "pods,pods/attach,pods/exec,pods/portforward,pods/proxy"), ("create", "", "pods/eviction"),
        (W, "", "configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy"),
        ("create", "", "serviceaccounts/token"),
        (W, "apps", "daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale"),
        (W, "autoscaling", "horizontalpodautoscalers"), (W, "batch", "cronjobs,jobs"), (W, "policy", "poddisruptionbudgets"),
        (W, "networking.k8s.io", "ingresses,networkpolicies"), (RW, "coordination.k8s.io", "leases"),
    ]),
    ("system:aggregate-to-admin", &[
        ("create", "authorization.k8s.io", "localsubjectaccessreviews"),
        (RW, "rbac.authorization.k8s.io", "rolebindings,roles"),
    ]),
];

/// Roles made of others: name, and the labels that select the parts.
const AGGREGATES: &[(&str, &str)] = &[("admin", "admin"), ("edit", "edit"), ("view", "view")];
/// Parts of aggregates, and of which: an admin may what an editor may, an editor what a viewer may.
const PARTS: &[(&str, &str)] = &[
    ("system:aggregate-to-view", "view"),
    ("system:aggregate-to-edit", "edit"),
    ("system:aggregate-to-admin", "admin"),
];
/// Aggregates that are part of the next bigger one.
const NESTED: &[(&str, &str)] = &[("view", "edit"), ("edit", "admin")];

/// Roles of our controllers; each is bound to its service account and to the user all of them run as.
#[rustfmt::skip]
const CONTROLLERS: &[(&str, &[Grant])] = &[
    ("certificate-controller", &[
        ("delete,get,list,watch", CERTIFICATES, "certificatesigningrequests"),
        ("update,patch", CERTIFICATES, "certificatesigningrequests/approval,certificatesigningrequests/status"),
        ("approve,sign", CERTIFICATES, "signers"), ("create", "authorization.k8s.io", "subjectaccessreviews"), EVENTS,
    ]),
    ("clusterrole-aggregation-controller", &[("escalate,get,list,patch,update,watch", "rbac.authorization.k8s.io", "clusterroles")]),
    ("cronjob-controller", &[
        ("get,list,update,watch", "batch", "cronjobs"), ("create,delete,get,list,patch,update,watch", "batch", "jobs"),
        ("patch,update", "batch", "cronjobs/status"), ("update", "batch", "cronjobs/finalizers"), ("delete,list", "", "pods"), EVENTS,
    ]),
    ("daemon-set-controller", &[
        (R, "apps", "daemonsets"), ("patch,update", "apps", "daemonsets/status"), ("update", "apps", "daemonsets/finalizers"),
        ("list,watch", "", "nodes"), ("create,delete,list,patch,watch", "", "pods"), ("create", "", "pods/binding"),
        ("create,delete,get,list,patch,update,watch", "apps", "controllerrevisions"), EVENTS,
    ]),
    ("deployment-controller", &[
        ("get,list,update,watch", "apps", "deployments"), ("patch,update", "apps", "deployments/status"),
        ("update", "apps", "deployments/finalizers"), ("create,delete,get,list,patch,update,watch", "apps", "replicasets"),
        ("get,list,update,watch", "", "pods"), EVENTS,
    ]),
    ("disruption-controller", &[
        (R, "apps", "deployments,replicasets,statefulsets"), (R, "", "replicationcontrollers"), (R, "policy", "poddisruptionbudgets"),
        ("patch,update", "policy", "poddisruptionbudgets/status"), ("get", "*", "*/scale"), ("get,list,patch,update,watch", "", "pods,pods/status"), EVENTS,
    ]),
    ("endpoint-controller", &[
        (R, "", "pods,services"), ("create,delete,get,list,patch,update,watch", "", "endpoints"), ("create", "", "endpoints/restricted"), EVENTS,
    ]),
    ("endpointslice-controller", &[
        (R, "", "nodes,pods,services"), ("update", "", "services/finalizers"),
        ("create,delete,get,list,patch,update,watch", "discovery.k8s.io", "endpointslices"), EVENTS,
    ]),
    ("endpointslicemirroring-controller", &[
        (R, "", "endpoints,services"), ("update", "", "endpoints/finalizers,services/finalizers"),
        ("create,delete,get,list,patch,update,watch", "discovery.k8s.io", "endpointslices"), EVENTS,
    ]),
    ("ephemeral-volume-controller", &[(R, "", "pods"), ("update", "", "pods/finalizers"), ("create,get,list,watch", "", "persistentvolumeclaims"), EVENTS]),
    ("generic-garbage-collector", &[("delete,get,list,patch,update,watch", "*", "*"), EVENTS]),
    ("horizontal-pod-autoscaler", &[
        (R, "autoscaling", "horizontalpodautoscalers"), ("patch,update", "autoscaling", "horizontalpodautoscalers/status"),
        ("get,update", "*", "*/scale"), ("list", "", "pods"), ("get,list", "metrics.k8s.io,custom.metrics.k8s.io,external.metrics.k8s.io", "*"), EVENTS,
    ]),
    ("job-controller", &[
        ("get,list,patch,update,watch", "batch", "jobs"), ("patch,update", "batch", "jobs/status"), ("update", "batch", "jobs/finalizers"),
        ("create,delete,list,patch,watch", "", "pods"), EVENTS,
    ]),
    ("namespace-controller", &[
        ("delete,get,list,patch,update,watch", "", "namespaces"), ("patch,update", "", "namespaces/finalize,namespaces/status"),
        ("delete,deletecollection,get,list", "*", "*"),
    ]),
    ("node-controller", &[
        ("delete,get,list,patch,update,watch", "", "nodes"), ("patch,update", "", "nodes/status"), ("patch,update", "", "pods/status"),
        ("delete,get,list,watch", "", "pods"), ("get,list,update,watch", "networking.k8s.io", "servicecidrs"),
        (R, "coordination.k8s.io", "leases"), EVENTS,
    ]),
    ("persistent-volume-binder", &[
        ("create,delete,get,list,patch,update,watch", "", "persistentvolumes"), ("patch,update", "", "persistentvolumes/status,persistentvolumeclaims/status"),
        ("get,list,patch,update,watch", "", "persistentvolumeclaims"), ("create,delete,get,list,watch", "", "pods"),
        (R, "storage.k8s.io", "storageclasses"), ("get,list", "", "nodes"), EVENTS,
    ]),
    ("pod-garbage-collector", &[("delete,list,watch", "", "pods"), ("get,list,watch", "", "nodes"), ("patch", "", "pods/status")]),
    ("pv-protection-controller", &[("get,list,update,watch", "", "persistentvolumes"), EVENTS]),
    ("pvc-protection-controller", &[("get,list,update,watch", "", "persistentvolumeclaims"), (R, "", "pods"), EVENTS]),
    ("replicaset-controller", &[
        ("get,list,update,watch", "apps", "replicasets"), ("patch,update", "apps", "replicasets/status"), ("update", "apps", "replicasets/finalizers"),
        ("create,delete,get,list,patch,watch", "", "pods"), EVENTS,
    ]),
    ("replication-controller", &[
        ("get,list,update,watch", "", "replicationcontrollers"), ("patch,update", "", "replicationcontrollers/status"),
        ("update", "", "replicationcontrollers/finalizers"), ("create,delete,get,list,patch,watch", "", "pods"), EVENTS,
    ]),
    ("resourcequota-controller", &[("list,watch", "*", "*"), ("patch,update", "", "resourcequotas/status"), EVENTS]),
    ("root-ca-cert-publisher", &[("create,get,list,patch,update,watch", "", "configmaps"), (R, "", "namespaces"), EVENTS]),
    ("service-account-controller", &[("create,get,list,watch", "", "serviceaccounts"), (R, "", "namespaces"), EVENTS]),
    ("statefulset-controller", &[
        ("list,watch", "", "pods"), (R, "apps", "statefulsets"), ("patch,update", "apps", "statefulsets/status"), ("update", "apps", "statefulsets/finalizers"),
        ("create,delete,get,patch,update", "", "pods"), ("create,delete,get,list,patch,update,watch", "apps", "controllerrevisions"),
        ("create,delete,get,list,patch,update,watch", "", "persistentvolumeclaims"), EVENTS,
    ]),
    ("ttl-after-finished-controller", &[("delete,get,list,watch", "batch", "jobs"), EVENTS]),
    ("ttl-controller", &[("list,patch,update,watch", "", "nodes"), EVENTS]),
];

const CONTROLLER_USER: &str = "system:kube-controller-manager";

/// Bindings of cluster roles: role and subjects; the binding is named like the role unless given.
#[rustfmt::skip]
const CLUSTER_BINDINGS: &[(&str, &str, &[(&str, &str)])] = &[
    ("cluster-admin", "cluster-admin", &[("Group", "system:masters")]),
    ("system:monitoring", "system:monitoring", &[("Group", "system:monitoring")]),
    ("system:discovery", "system:discovery", &[("Group", ALL)]),
    ("system:basic-user", "system:basic-user", &[("Group", ALL)]),
    ("system:public-info-viewer", "system:public-info-viewer", &[("Group", ALL), ("Group", "system:unauthenticated")]),
    ("system:node-proxier", "system:node-proxier", &[("User", "system:kube-proxy")]),
    ("system:kube-controller-manager", "system:kube-controller-manager", &[("User", CONTROLLER_USER)]),
    ("system:kube-scheduler", "system:kube-scheduler", &[("User", "system:kube-scheduler")]),
    ("system:volume-scheduler", "system:volume-scheduler", &[("User", "system:kube-scheduler")]),
    ("system:node", "system:node", &[]),
    ("system:service-account-issuer-discovery", "system:service-account-issuer-discovery", &[("Group", "system:serviceaccounts")]),
    ("pintle:node-bootstrap", "system:node-bootstrapper", &[("Group", "system:bootstrappers")]),
    ("pintle:node-autoapprove-bootstrap", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", &[("Group", "system:bootstrappers")]),
    ("pintle:node-autoapprove-certificate-rotation", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", &[("Group", "system:nodes")]),
];

/// Namespaced roles: namespace, name, grant with the names it is limited to if any, and the subjects of their binding.
type NamespacedRole =
    (&'static str, &'static str, Grant, &'static [&'static str], &'static [(&'static str, &'static str)]);
#[rustfmt::skip]
const ROLES: &[NamespacedRole] = &[
    ("kube-public", "pintle:cluster-info", ("get", "", "configmaps"), &["cluster-info"], &[("Group", "system:bootstrappers"), ("Group", ALL)]),
    ("kube-system", "extension-apiserver-authentication-reader", (R, "", "configmaps"), &["extension-apiserver-authentication"],
        &[("User", CONTROLLER_USER), ("User", "system:kube-scheduler")]),
    ("kube-system", "system:controller:token-cleaner", ("delete,get,list,watch", "", "secrets"), &[], &[("User", CONTROLLER_USER)]),
];

fn words(list: &str) -> Vec<&str> {
    list.split(',').collect()
}

fn rule((verbs, groups, resources): Grant) -> Value {
    if groups == "url" {
        return json!({ "verbs": words(verbs), "nonResourceURLs": words(resources) });
    }
    json!({ "verbs": words(verbs), "apiGroups": words(groups), "resources": words(resources) })
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
        "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
    })
}

fn aggregation_label(target: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{target}")
}

fn cluster_role(name: &str, grants: &[Grant]) -> Value {
    let mut metadata = metadata(name);
    for (_, target) in PARTS.iter().filter(|(part, _)| *part == name) {
        metadata["labels"][aggregation_label(target)] = "true".into();
    }
    let rules: Vec<Value> = grants.iter().map(|grant| rule(*grant)).collect();
    json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules })
}

/// An aggregate selects its parts and the aggregates below it.
fn aggregate(name: &str, target: &str) -> Value {
    let mut metadata = metadata(name);
    for (_, above) in NESTED.iter().filter(|(nested, _)| *nested == name) {
        metadata["labels"][aggregation_label(above)] = "true".into();
    }
    let label = aggregation_label(target);
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata,
        "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { (label): "true" } }] },
        "rules": [],
    })
}

fn binding(kind: &str, name: &str, role_kind: &str, role: &str, subjects: Vec<Value>) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata(name),
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role },
        "subjects": subjects,
    })
}

fn subject((kind, name): &(&str, &str)) -> Value {
    json!({ "kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name })
}

fn controller_role(controller: &str) -> String {
    format!("system:controller:{controller}")
}

pub(super) fn cluster_roles() -> Vec<Value> {
    let plain = CLUSTER_ROLES.iter().map(|(name, grants)| cluster_role(name, grants));
    let controllers = CONTROLLERS.iter().map(|(name, grants)| cluster_role(&controller_role(name), grants));
    let aggregates = AGGREGATES.iter().map(|(name, target)| aggregate(name, target));
    plain.chain(controllers).chain(aggregates).collect()
}

pub(super) fn cluster_bindings() -> Vec<Value> {
    let plain = CLUSTER_BINDINGS.iter().map(|(name, role, subjects)| {
        binding("ClusterRoleBinding", name, "ClusterRole", role, subjects.iter().map(subject).collect())
    });
    let controllers = CONTROLLERS.iter().map(|(name, _)| {
        let role = controller_role(name);
        let account = json!({ "kind": "ServiceAccount", "name": name, "namespace": "kube-system" });
        let subjects = vec![account, subject(&("User", CONTROLLER_USER))];
        binding("ClusterRoleBinding", &role, "ClusterRole", &role, subjects)
    });
    plain.chain(controllers).collect()
}

/// Roles and bindings inside namespaces, with their namespaces set.
pub(super) fn roles_and_bindings() -> (Vec<Value>, Vec<Value>) {
    let (mut roles, mut bindings) = (Vec::new(), Vec::new());
    for (namespace, name, grant, names, subjects) in ROLES {
        let mut rule = rule(*grant);
        if !names.is_empty() {
            rule["resourceNames"] = json!(names);
        }
        let mut role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata(name), "rules": [rule],
        });
        let mut binding = binding("RoleBinding", name, "Role", name, subjects.iter().map(subject).collect());
        for object in [&mut role, &mut binding] {
            object["metadata"]["namespace"] = (*namespace).into();
        }
        roles.push(role);
        bindings.push(binding);
    }
    (roles, bindings)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::authz::Authorizer;
    use crate::authz::live::tests::Fixed;
    use crate::authz::live::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS};
    use crate::authz::rules::Action;
    use crate::types::UserInfo;

    /// The bootstrap policy, with `ann` admin, `eve` editor and `vic` viewer of namespace `a`.
    fn authorizer() -> Authorizer {
        let live = Fixed::default();
        for role in cluster_roles() {
            live.put(CLUSTER_ROLES, role);
        }
        for binding in cluster_bindings() {
            live.put(CLUSTER_ROLE_BINDINGS, binding);
        }
        for (user, role) in [("ann", "admin"), ("eve", "edit"), ("vic", "view")] {
            let mut binding = binding("RoleBinding", role, "ClusterRole", role, vec![subject(&("User", user))]);
            binding["metadata"]["namespace"] = "a".into();
            live.put(ROLE_BINDINGS, binding);
        }
        Authorizer::new(Arc::new(live))
    }

    fn check(authorizer: &Authorizer, who: &str, what: &str, want: bool) {
        let (name, group) = who.split_once('/').unwrap_or((who, "system:authenticated"));
        let user = UserInfo { name: name.into(), groups: vec![group.into()], ..UserInfo::default() };
        let (verb, target) = what.split_once(' ').expect("verb and target");
        let action = if target.starts_with('/') {
            Action { verb, path: Some(target), ..Action::default() }
        } else {
            let (target, namespace) = target.split_once('@').unwrap_or((target, ""));
            let (resource, group) = target.split_once('.').unwrap_or((target, ""));
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            Action { verb, group, resource, subresource, namespace, name: "x", ..Action::default() }
        };
        assert_eq!(authorizer.decide(&user, &action).allowed, want, "{who} {what}");
    }

    #[test]
    fn the_default_policy_gives_what_users_expect() {
        let authorizer = authorizer();
        for (who, what, want) in [
            ("vic", "get pods@a", true),
            ("vic", "get pods/log@a", true),
            ("vic", "get secrets@a", false),
            ("vic", "create pods@a", false),
            ("vic", "get pods@b", false),
            ("eve", "get pods@a", true),
            ("eve", "create deployments.apps@a", true),
            ("eve", "update deployments/scale.apps@a", true),
            ("eve", "create pods/exec@a", true),
            ("eve", "get secrets@a", true),
            ("eve", "create roles.rbac.authorization.k8s.io@a", false),
            ("ann", "create roles.rbac.authorization.k8s.io@a", true),
            ("ann", "delete pods@a", true),
            ("ann", "get nodes", false),
            ("joe", "get /api/v1", true),
            ("joe", "create selfsubjectaccessreviews.authorization.k8s.io", true),
            ("joe", "get /metrics", false),
            ("system:anonymous/system:unauthenticated", "get /healthz", true),
            ("system:anonymous/system:unauthenticated", "get /livez", true),
            ("system:anonymous/system:unauthenticated", "get /api", false),
            ("system:anonymous/system:unauthenticated", "get /openid/v1/jwks", false),
            ("x/system:serviceaccounts", "get /openid/v1/jwks", true),
            (
                "system:bootstrap:abcdef/system:bootstrappers",
                "create certificatesigningrequests.certificates.k8s.io",
                true,
            ),
            ("system:bootstrap:abcdef/system:bootstrappers", "get secrets@kube-system", false),
            ("system:kube-scheduler", "create pods/binding@a", true),
            ("system:kube-scheduler", "get secrets@a", false),
            ("system:kube-controller-manager", "delete pods@a", true),
            ("system:serviceaccount:kube-system:replicaset-controller", "create pods@a", true),
            ("system:serviceaccount:kube-system:replicaset-controller", "get secrets@a", false),
            ("root/system:masters", "delete nodes", true),
        ] {
            check(&authorizer, who, what, want);
        }
    }

    #[test]
    fn names_are_unique_and_bindings_point_at_roles() {
        let mut names: Vec<String> = cluster_roles().iter().map(|role| role["metadata"]["name"].to_string()).collect();
        let total = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), total);
        for binding in cluster_bindings() {
            assert!(names.contains(&binding["roleRef"]["name"].to_string()), "{binding}");
        }
    }
}
