//! Role-based authorization: an index over roles and bindings, and the two walks over it.
//!
//! The index is immutable and built from the watch cache; [`super::Rbac`] replaces it when one of the four kinds has
//! changed. A question costs two hash lookups per group of the user and then only the rules bound to that user.
//! Default-deny (I13): nothing here can refuse, it can only find a rule that allows.

use std::collections::HashMap;
use std::sync::Arc;

use pintle_api::selector::Labels;
use serde_json::Value;

use super::rules::{Action, Rule};
use crate::types::UserInfo;

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// Where a role is kept: cluster roles have no namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RoleKey {
    namespace: Option<String>,
    name: String,
}

/// A user or group name as bindings name it. Service accounts are users with their full name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// One binding as found for a subject: enough to say why something was allowed.
#[derive(Clone, Debug)]
struct Bound {
    role: RoleKey,
    binding: Arc<str>,
    subject: Arc<str>,
}

type BySubject = HashMap<Subject, Vec<Bound>>;

/// All roles and bindings of the cluster at one moment.
#[derive(Default)]
pub(crate) struct Index {
    roles: HashMap<RoleKey, Arc<[Rule]>>,
    cluster: BySubject,
    namespaced: HashMap<String, BySubject>,
}

/// What a walk over the rules of a user found on its way besides rules.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Bindings whose role does not exist, as text.
    pub errors: Vec<String>,
}

impl Index {
    pub fn build(
        cluster_roles: &[Arc<Value>],
        roles: &[Arc<Value>],
        cluster_bindings: &[Arc<Value>],
        bindings: &[Arc<Value>],
    ) -> Self {
        let mut index = Self::default();
        for role in cluster_roles {
            let key = RoleKey { namespace: None, name: meta(role, "name").into() };
            index.roles.insert(key, cluster_rules(role, cluster_roles, AGGREGATION_DEPTH).into());
        }
        for role in roles {
            let key = RoleKey { namespace: Some(meta(role, "namespace").into()), name: meta(role, "name").into() };
            index.roles.insert(key, rules_of(role));
        }
        for binding in cluster_bindings {
            add_binding(&mut index.cluster, binding, None);
        }
        for binding in bindings {
            let namespace = meta(binding, "namespace");
            add_binding(index.namespaced.entry(namespace.into()).or_default(), binding, Some(namespace));
        }
        index
    }

    /// Finds a rule that allows `action`; the text says which. `Err` carries what was odd on the way.
    pub fn decide(&self, user: &UserInfo, action: &Action<'_>) -> Result<String, Walk> {
        let mut found = None;
        let walk = self.visit(user, action.namespace, &mut |bound, kind, rules| {
            if rules.iter().any(|rule| rule.allows(action)) {
                found = Some(reason(bound, kind));
            }
            found.is_none()
        });
        found.ok_or(walk)
    }

    /// All rules that hold for the user in `namespace` (cluster-wide ones included; empty = only those).
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Walk) {
        let mut all = Vec::new();
        let walk = self.visit(user, namespace, &mut |_, _, rules| {
            all.extend_from_slice(rules);
            true
        });
        (all, walk)
    }

    /// The rules of a role that a binding in `namespace` refers to.
    pub fn role(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        let namespace = (kind == "Role").then(|| namespace.to_owned());
        self.roles.get(&RoleKey { namespace, name: name.into() }).cloned()
    }

    /// Calls `each` with the rules of every role bound to the user until it returns false.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        each: &mut dyn FnMut(&Bound, &'static str, &[Rule]) -> bool,
    ) -> Walk {
        let mut walk = Walk::default();
        let tables = [(Some(&self.cluster), "ClusterRoleBinding"), (self.namespaced.get(namespace), "RoleBinding")];
        let user_subject = Subject::User(user.name.clone());
        let groups = user.groups.iter().map(|group| Subject::Group(group.clone()));
        let subjects: Vec<Subject> = std::iter::once(user_subject).chain(groups).collect();
        for (table, kind) in tables {
            let Some(table) = table else { continue };
            for bound in subjects.iter().filter_map(|subject| table.get(subject)).flatten() {
                match self.roles.get(&bound.role) {
                    Some(rules) if !each(bound, kind, rules) => return walk,
                    Some(_) => (),
                    None => walk.errors.push(missing(&bound.role)),
                }
            }
        }
        walk
    }
}

fn missing(role: &RoleKey) -> String {
    let kind = if role.namespace.is_some() { "role" } else { "clusterrole" };
    format!("{kind}.{GROUP} {:?} not found", role.name)
}

fn reason(bound: &Bound, kind: &str) -> String {
    let role_kind = if bound.role.namespace.is_some() { "Role" } else { "ClusterRole" };
    format!("RBAC: allowed by {kind} {:?} of {role_kind} {:?} to {}", bound.binding, bound.role.name, bound.subject)
}

fn rules_of(role: &Value) -> Arc<[Rule]> {
    Rule::all_of(role).into()
}

/// Aggregates of aggregates are followed this deep: view in edit in admin, and one of the user's own on top.
const AGGREGATION_DEPTH: usize = 4;

fn cluster_rules(role: &Value, all: &[Arc<Value>], depth: usize) -> Vec<Rule> {
    match aggregated(role, all) {
        Some(members) if depth > 0 => {
            members.into_iter().flat_map(|member| cluster_rules(member, all, depth - 1)).collect()
        }
        _ => Rule::all_of(role),
    }
}

/// The roles an aggregating cluster role selects, by name; `None` if it does not aggregate.
pub(crate) fn aggregated<'a>(role: &Value, all: &'a [Arc<Value>]) -> Option<Vec<&'a Value>> {
    let selectors = role.pointer("/aggregationRule/clusterRoleSelectors")?.as_array()?;
    let own = meta(role, "name");
    // A selector that cannot be read selects nothing.
    let selectors: Vec<Labels> = selectors.iter().filter_map(|one| Labels::from_selector(Some(one)).ok()).collect();
    let selected =
        |other: &&'a Value| meta(other, "name") != own && selectors.iter().any(|selector| selector.matches(other));
    let mut members: Vec<&Value> = all.iter().map(|other| &**other).filter(selected).collect();
    members.sort_by_key(|member| meta(member, "name"));
    Some(members)
}

fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.pointer("/metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or("")
}

fn add_binding(table: &mut BySubject, binding: &Value, namespace: Option<&str>) {
    let Some(role) = role_key(binding, namespace) else { return };
    let name: Arc<str> = match namespace {
        Some(namespace) => format!("{}/{namespace}", meta(binding, "name")).into(),
        None => meta(binding, "name").into(),
    };
    let subjects = binding.get("subjects").and_then(Value::as_array);
    for subject in subjects.into_iter().flatten() {
        let Some((key, text)) = subject_key(subject, namespace) else { continue };
        let bound = Bound { role: role.clone(), binding: Arc::clone(&name), subject: text.into() };
        table.entry(key).or_default().push(bound);
    }
}

/// Cluster bindings refer to cluster roles only; a reference to anything else grants nothing.
fn role_key(binding: &Value, namespace: Option<&str>) -> Option<RoleKey> {
    let reference = binding.get("roleRef")?;
    let name = reference.get("name")?.as_str()?.to_owned();
    match (reference.get("kind")?.as_str()?, namespace) {
        ("ClusterRole", _) => Some(RoleKey { namespace: None, name }),
        ("Role", Some(namespace)) => Some(RoleKey { namespace: Some(namespace.into()), name }),
        _ => None,
    }
}

fn subject_key(subject: &Value, binding_namespace: Option<&str>) -> Option<(Subject, String)> {
    let name = subject.get("name")?.as_str()?;
    match subject.get("kind")?.as_str()? {
        "User" => Some((Subject::User(name.into()), format!("User {name:?}"))),
        "Group" => Some((Subject::Group(name.into()), format!("Group {name:?}"))),
        "ServiceAccount" => {
            let given = subject.get("namespace").and_then(Value::as_str).filter(|ns| !ns.is_empty());
            let namespace = given.or(binding_namespace)?;
            let text = format!("ServiceAccount \"{name}/{namespace}\"");
            Some((Subject::User(format!("system:serviceaccount:{namespace}:{name}")), text))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn index() -> Index {
        let role = |name: &str, ns: Option<&str>, verbs: &[&str], resource: &str| {
            Arc::new(json!({"metadata": {"name": name, "namespace": ns},
                "rules": [{"verbs": verbs, "apiGroups": [""], "resources": [resource]}]}))
        };
        let binding = |name: &str, ns: Option<&str>, kind: &str, role: &str, subject: Value| {
            Arc::new(json!({"metadata": {"name": name, "namespace": ns},
                "roleRef": {"kind": kind, "name": role}, "subjects": [subject]}))
        };
        Index::build(
            &[role("reader", None, &["get", "list"], "pods"), role("nodes", None, &["get"], "nodes")],
            &[role("writer", Some("a"), &["create"], "pods")],
            &[
                binding("all-nodes", None, "ClusterRole", "nodes", json!({"kind": "Group", "name": "ops"})),
                binding("wrong", None, "Role", "writer", json!({"kind": "User", "name": "eve"})),
            ],
            &[
                binding("r", Some("a"), "ClusterRole", "reader", json!({"kind": "User", "name": "ann"})),
                binding("w", Some("a"), "Role", "writer", json!({"kind": "ServiceAccount", "name": "bot"})),
                binding("x", Some("b"), "Role", "writer", json!({"kind": "User", "name": "ann"})),
            ],
        )
    }

    fn check(user: &str, groups: &[&str], verb: &str, resource: &str, namespace: &str, want: bool) {
        let user = UserInfo {
            name: user.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..UserInfo::default()
        };
        let action = Action { verb, resource, namespace, ..Action::default() };
        assert_eq!(index().decide(&user, &action).is_ok(), want, "{} {action:?}", user.name);
    }

    #[test]
    fn bindings_grant_where_they_stand_and_nowhere_else() {
        check("ann", &[], "list", "pods", "a", true);
        check("ann", &[], "list", "pods", "b", false);
        check("ann", &[], "list", "pods", "", false);
        check("ann", &[], "create", "pods", "a", false);
        check("system:serviceaccount:a:bot", &[], "create", "pods", "a", true);
        check("system:serviceaccount:b:bot", &[], "create", "pods", "a", false);
        check("bob", &["ops"], "get", "nodes", "", true);
        check("ops", &[], "get", "nodes", "", false);
        check("eve", &[], "create", "pods", "a", false);
        check("", &[], "get", "pods", "a", false);
    }

    #[test]
    fn an_aggregating_role_has_the_rules_of_what_it_selects() {
        let member = |name: &str, label: &str| {
            Arc::new(json!({"metadata": {"name": name, "labels": {label: "true"}},
                "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [name]}]}))
        };
        let whole = Arc::new(json!({"metadata": {"name": "whole"}, "rules": [],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to-whole": "true"}}]}}));
        let binding = Arc::new(json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "whole"},
            "subjects": [{"kind": "User", "name": "ann"}]}));
        let index = Index::build(&[member("pods", "to-whole"), member("nodes", "other"), whole], &[], &[binding], &[]);
        let user = UserInfo { name: "ann".into(), ..UserInfo::default() };
        let may = |resource| index.decide(&user, &Action { verb: "get", resource, ..Action::default() }).is_ok();
        assert!(may("pods"));
        assert!(!may("nodes"));
    }

    #[test]
    fn a_missing_role_is_reported_not_granted() {
        let user = UserInfo { name: "ann".into(), ..UserInfo::default() };
        let action = Action { verb: "create", resource: "pods", namespace: "b", ..Action::default() };
        let walk = index().decide(&user, &action).expect_err("denied");
        assert_eq!(walk.errors, [r#"role.rbac.authorization.k8s.io "writer" not found"#]);
    }

    #[test]
    fn the_reason_names_binding_role_and_subject() {
        let user = UserInfo { name: "ann".into(), ..UserInfo::default() };
        let action = Action { verb: "get", resource: "pods", namespace: "a", ..Action::default() };
        let reason = index().decide(&user, &action).expect("allowed");
        assert_eq!(reason, r#"RBAC: allowed by RoleBinding "r/a" of ClusterRole "reader" to User "ann""#);
    }
}
