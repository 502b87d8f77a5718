//! Nobody can grant more than they hold.
//!
//! Writing a role needs every rule in it, or the verb `escalate` on the role; writing a binding needs every rule of the
//! role it refers to, or the verb `bind` on that role. Checked on every create and update of the four RBAC kinds.

use pintle_api::status::Status;
use serde_json::Value;

use super::live::{items, text};
use super::rbac::GROUP;
use super::rules::{Action, Rule, uncovered};
use super::{Authorizer, SERVERS};
use crate::types::{MASTERS, Review, UserInfo};

/// Single-valued rules one role may break down into. The biggest bootstrap role has a few hundred.
const BREAKDOWN_MAX: usize = 20_000;

/// Refuses a role or binding that grants what its writer does not hold.
pub(crate) fn check(authorizer: &Authorizer, review: &Review<'_>) -> Result<(), Status> {
    if review.user.in_group(MASTERS) || review.user.in_group(SERVERS) || unchanged(review) {
        return Ok(());
    }
    match review.kind.resource {
        "roles" | "clusterroles" => check_role(authorizer, review),
        "rolebindings" | "clusterrolebindings" => check_binding(authorizer, review),
        _ => Ok(()),
    }
}

/// Label and annotation changes, and the removal of finalizers and owners, grant nothing.
fn unchanged(review: &Review<'_>) -> bool {
    let Some(old) = review.old.as_deref() else { return false };
    let same = |field: &str| old.get(field) == review.object.get(field);
    ["rules", "aggregationRule", "roleRef", "subjects"].into_iter().all(same) && !relabels_cluster_role(review, old)
}

/// A label can put a cluster role into an aggregating one: there it grants its rules to others.
fn relabels_cluster_role(review: &Review<'_>, old: &Value) -> bool {
    let labels = |object: &Value| object.pointer("/metadata/labels").cloned().unwrap_or(Value::Null);
    review.kind.resource == "clusterroles" && labels(old) != labels(&review.object)
}

fn check_role(authorizer: &Authorizer, review: &Review<'_>) -> Result<(), Status> {
    let name = text(&review.object, "/metadata/name");
    let action = Action {
        verb: "escalate",
        group: GROUP,
        resource: review.kind.resource,
        namespace: review.namespace,
        name,
        ..Action::default()
    };
    if authorizer.decide(review.user, &action).allowed {
        return Ok(());
    }
    let mut wanted = Rule::all_of(&review.object);
    if items(&review.object, "/aggregationRule/clusterRoleSelectors").next().is_some() {
        wanted.extend(everything());
    }
    covered(authorizer, review, &wanted)
}

fn check_binding(authorizer: &Authorizer, review: &Review<'_>) -> Result<(), Status> {
    let (kind, role) = (text(&review.object, "/roleRef/kind"), text(&review.object, "/roleRef/name"));
    let (resource, namespace) =
        if kind == "Role" { ("roles", review.namespace) } else { ("clusterroles", review.namespace) };
    let action = Action { verb: "bind", group: GROUP, resource, namespace, name: role, ..Action::default() };
    if authorizer.decide(review.user, &action).allowed {
        return Ok(());
    }
    match authorizer.rbac().1.role(kind, review.namespace, role) {
        Some(rules) => covered(authorizer, review, &rules),
        None => Err(Status::not_found(GROUP, resource, role)),
    }
}

fn covered(authorizer: &Authorizer, review: &Review<'_>, wanted: &[Rule]) -> Result<(), Status> {
    let (held, _) = authorizer.rules_for(review.user, review.namespace);
    let missing = uncovered(&held, wanted, BREAKDOWN_MAX);
    if missing.is_empty() {
        return Ok(());
    }
    let name = text(&review.object, "/metadata/name");
    Err(Status::forbidden(GROUP, review.kind.resource, name, &message(review.user, &missing)))
}

fn message(user: &UserInfo, missing: &[Rule]) -> String {
    let mut lines: Vec<String> = missing.iter().map(Rule::compact).collect();
    lines.sort();
    lines.dedup();
    let groups: Vec<String> = user.groups.iter().map(|group| format!("{group:?}")).collect();
    format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        lines.join("\n")
    )
}

/// Full authority: what an aggregating role may turn into.
fn everything() -> [Rule; 2] {
    let star = || vec!["*".to_owned()];
    [
        Rule { verbs: star(), api_groups: star(), resources: star(), ..Rule::default() },
        Rule { verbs: star(), non_resource_urls: star(), ..Rule::default() },
    ]
}
