//! Access reviews: "may this subject do that?", and "what may I do?".

use pintle_api::status::{FieldError, Path, Status};
use serde_json::{Value, json};

use super::complete;
use crate::authz::live::{items, namespace_of, text};
use crate::authz::rules::{Action, Rule};
use crate::authz::{Authorizer, SERVERS, node};
use crate::types::{MASTERS, UserInfo};

const GROUP: &str = "authorization.k8s.io";

pub(super) fn own(authorizer: &Authorizer, user: &UserInfo, review: Value) -> Result<Value, Status> {
    let errors = check_attributes(&review);
    refuse("SelfSubjectAccessReview", errors)?;
    Ok(decided(authorizer, user, review))
}

pub(super) fn of_subject(authorizer: &Authorizer, review: Value) -> Result<Value, Status> {
    let user = subject(&review);
    refuse("SubjectAccessReview", check_subject(&review, &user))?;
    Ok(decided(authorizer, &user, review))
}

pub(super) fn local(authorizer: &Authorizer, namespace: &str, review: Value) -> Result<Value, Status> {
    let user = subject(&review);
    let mut errors = check_subject(&review, &user);
    let spec = Path::new("spec");
    let asked = text(&review, "/spec/resourceAttributes/namespace");
    if present(&review, "nonResourceAttributes") {
        let at = spec.child("nonResourceAttributes");
        errors.push(FieldError::invalid(&at, "", "disallowed on this kind of request"));
    } else if asked != namespace {
        let at = spec.child("resourceAttributes").child("namespace");
        errors.push(FieldError::invalid(&at, asked, "must match metadata.namespace"));
    }
    let given = namespace_of(&review);
    if !given.is_empty() && given != namespace {
        errors.push(FieldError::invalid(
            &Path::new("metadata.namespace"),
            given,
            "must match the namespace of the request",
        ));
    }
    refuse("LocalSubjectAccessReview", errors)?;
    Ok(decided(authorizer, &user, review))
}

/// All rules that hold for the asker in one namespace.
pub(super) fn rules(authorizer: &Authorizer, user: &UserInfo, mut review: Value) -> Result<Value, Status> {
    let namespace = text(&review, "/spec/namespace").to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut rules, mut errors) = authorizer.rules_for(user, &namespace);
    if user.in_group(MASTERS) || user.in_group(SERVERS) {
        rules.extend(everything());
    }
    if node::node_name(user).is_some() {
        errors.push("node authorizer does not support user rule resolution".to_owned());
    }
    let (paths, resources): (Vec<&Rule>, Vec<&Rule>) =
        rules.iter().partition(|rule| !rule.non_resource_urls.is_empty());
    let resources: Vec<Value> = resources.into_iter().map(resource_rule).collect();
    let paths: Vec<Value> = paths
        .into_iter()
        .map(|rule| json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls }))
        .collect();
    let mut status = json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": !errors.is_empty() });
    if !errors.is_empty() {
        status["evaluationError"] = errors.join(", ").into();
    }
    complete(&mut review, status);
    Ok(review)
}

fn resource_rule(rule: &Rule) -> Value {
    let mut out = json!({ "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources });
    if !rule.resource_names.is_empty() {
        out["resourceNames"] = rule.resource_names.clone().into();
    }
    out
}

fn everything() -> [Rule; 2] {
    let star = || vec!["*".to_owned()];
    [
        Rule { verbs: star(), api_groups: star(), resources: star(), ..Rule::default() },
        Rule { verbs: star(), non_resource_urls: star(), ..Rule::default() },
    ]
}

fn decided(authorizer: &Authorizer, user: &UserInfo, mut review: Value) -> Value {
    let verdict = authorizer.decide(user, &action(&review));
    let mut status = json!({ "allowed": verdict.allowed });
    if !verdict.reason.is_empty() {
        status["reason"] = verdict.reason.into();
    }
    complete(&mut review, status);
    review
}

fn action(review: &Value) -> Action<'_> {
    if present(review, "nonResourceAttributes") {
        let field = |name: &str| text(review, &format!("/spec/nonResourceAttributes/{name}"));
        return Action { verb: field("verb"), path: Some(field("path")), ..Action::default() };
    }
    let field = |name: &str| text(review, &format!("/spec/resourceAttributes/{name}"));
    Action {
        verb: field("verb"),
        group: field("group"),
        version: field("version"),
        resource: field("resource"),
        subresource: field("subresource"),
        namespace: field("namespace"),
        name: field("name"),
        path: None,
        field_selector: text(review, "/spec/resourceAttributes/fieldSelector/rawSelector"),
    }
}

/// The subject of a review. Its groups are taken as they stand: the asker knows whom it asks about.
fn subject(review: &Value) -> UserInfo {
    let strings = |list: &Value| {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let extra = review.pointer("/spec/extra").and_then(Value::as_object);
    UserInfo {
        name: text(review, "/spec/user").to_owned(),
        uid: text(review, "/spec/uid").to_owned(),
        groups: items(review, "/spec/groups").filter_map(Value::as_str).map(str::to_owned).collect(),
        extra: extra.into_iter().flatten().map(|(key, values)| (key.clone(), strings(values))).collect(),
    }
}

fn present(review: &Value, field: &str) -> bool {
    review.get("spec").and_then(|spec| spec.get(field)).is_some_and(Value::is_object)
}

fn check_subject(review: &Value, user: &UserInfo) -> Vec<FieldError> {
    let mut errors = check_attributes(review);
    if user.name.is_empty() && user.groups.is_empty() {
        let at = Path::new("spec.user");
        errors.push(FieldError::invalid(&at, "", "at least one of user or group must be specified"));
    }
    errors
}

fn check_attributes(review: &Value) -> Vec<FieldError> {
    let spec = Path::new("spec");
    match (present(review, "resourceAttributes"), present(review, "nonResourceAttributes")) {
        (true, true) => {
            let why = "cannot be specified in combination with resourceAttributes";
            vec![FieldError::invalid(&spec.child("nonResourceAttributes"), "", why)]
        }
        (false, false) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            vec![FieldError::invalid(&spec.child("resourceAttributes"), Value::Null, why)]
        }
        _ => Vec::new(),
    }
}

fn refuse(kind: &str, errors: Vec<FieldError>) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(GROUP, kind, "", &errors)) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::authz::live::tests::Fixed;
    use crate::authz::live::{CLUSTER_ROLES, ROLE_BINDINGS};

    fn authorizer() -> Authorizer {
        let live = Fixed::default()
            .with(
                CLUSTER_ROLES,
                json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
            )
            .with(
                ROLE_BINDINGS,
                json!({"metadata": {"namespace": "a", "name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
                       "subjects": [{"kind": "User", "name": "ann"}]}),
            );
        Authorizer::new(Arc::new(live))
    }

    fn pods(namespace: &str, verb: &str) -> Value {
        json!({"resourceAttributes": {"namespace": namespace, "verb": verb, "resource": "pods"}})
    }

    #[test]
    fn reviews_answer_for_self_and_for_others() {
        let ann = UserInfo { name: "ann".into(), ..UserInfo::default() };
        let answer = own(&authorizer(), &ann, json!({"spec": pods("a", "get")})).expect("answer");
        assert_eq!(answer["status"]["allowed"], true);
        assert_eq!(
            answer["status"]["reason"],
            r#"RBAC: allowed by RoleBinding "b/a" of ClusterRole "r" to User "ann""#
        );
        let answer = own(&authorizer(), &ann, json!({"spec": pods("b", "get")})).expect("answer");
        assert_eq!(answer["status"], json!({"allowed": false}));
        let mut spec = pods("a", "get");
        spec["user"] = "bob".into();
        assert_eq!(of_subject(&authorizer(), json!({"spec": spec})).expect("answer")["status"]["allowed"], false);
        let mut spec = pods("a", "get");
        spec["user"] = "ann".into();
        assert_eq!(local(&authorizer(), "a", json!({"spec": spec})).expect("answer")["status"]["allowed"], true);
        assert_eq!(local(&authorizer(), "b", json!({"spec": spec})).expect_err("refused").http_code(), 422);
    }

    #[test]
    fn incomplete_questions_are_invalid() {
        for spec in [json!({}), json!({"user": "a"}), pods("a", "get")] {
            assert_eq!(of_subject(&authorizer(), json!({"spec": spec})).expect_err("refused").http_code(), 422);
        }
        assert!(own(&authorizer(), &UserInfo::default(), Value::Null).is_err());
    }

    #[test]
    fn rules_are_listed_by_kind() {
        let ann = UserInfo { name: "ann".into(), ..UserInfo::default() };
        let answer = rules(&authorizer(), &ann, json!({"spec": {"namespace": "a"}})).expect("answer");
        assert_eq!(
            answer["status"],
            json!({"resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
                   "nonResourceRules": [], "incomplete": false})
        );
        let root = UserInfo { groups: vec![MASTERS.into()], ..UserInfo::default() };
        let answer = rules(&authorizer(), &root, json!({"spec": {"namespace": "a"}})).expect("answer");
        assert_eq!(answer["status"]["nonResourceRules"], json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]));
    }
}
