//! `Impersonate-*` headers: acting as somebody else, for those who are allowed to.
//!
//! Every part asked for (user or service account, uid, each group, each extra value) is authorised by itself with the
//! verb `impersonate`. A part that is not granted refuses the whole request.

use http::header::HeaderMap;
use pintle_api::status::Status;

use super::proxied::extras;
use super::service_account::account_identity;
use super::{authenticated, bearer_token};
use crate::authz::rules::Action;
use crate::authz::{Authorizer, forbidden};
use crate::tokens::account_of;
use crate::types::{ANONYMOUS, UNAUTHENTICATED, UserInfo};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// True if any impersonation header is there.
pub(crate) fn asked(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("impersonate-"))
}

/// The user to act as, if `asker` may.
pub(crate) fn become_other(authorizer: &Authorizer, asker: &UserInfo, headers: &HeaderMap) -> Result<UserInfo, Status> {
    let wished = wish(headers)?;
    let actions = parts(&wished);
    for action in actions.iter().map(Part::action) {
        let verdict = authorizer.decide(asker, &action);
        if !verdict.allowed {
            return Err(forbidden(asker, &action, &verdict.reason));
        }
    }
    tracing::debug!(user = %asker.name, target = %wished.name, by_token = bearer_token(headers).is_some(), "impersonation");
    Ok(complete(wished))
}

/// The identity as asked for, without the groups that come by themselves.
fn wish(headers: &HeaderMap) -> Result<UserInfo, Status> {
    let read = |value: &http::HeaderValue| {
        value.to_str().map(str::to_owned).map_err(|_| Status::bad_request("an impersonation header cannot be read"))
    };
    let name = headers.get(USER).map(read).transpose()?.unwrap_or_default();
    if name.is_empty() {
        return Err(Status::bad_request("impersonation headers were sent without impersonating a user"));
    }
    Ok(UserInfo {
        name,
        uid: headers.get(UID).map(read).transpose()?.unwrap_or_default(),
        groups: headers.get_all(GROUP).iter().map(read).collect::<Result<_, _>>()?,
        extra: extras(headers, EXTRA_PREFIX)?,
    })
}

/// One thing that must be allowed.
struct Part<'a> {
    group: &'static str,
    resource: &'static str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl Part<'_> {
    fn action(&self) -> Action<'_> {
        Action {
            verb: "impersonate",
            group: self.group,
            resource: self.resource,
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            ..Action::default()
        }
    }
}

fn parts(wished: &UserInfo) -> Vec<Part<'_>> {
    let plain = |group, resource, name| Part { group, resource, subresource: "", namespace: "", name };
    let mut parts = vec![match account_of(&wished.name) {
        Some((namespace, name)) => Part { namespace, ..plain("", "serviceaccounts", name) },
        None => plain("", "users", wished.name.as_str()),
    }];
    if !wished.uid.is_empty() {
        parts.push(plain(AUTHENTICATION, "uids", &wished.uid));
    }
    parts.extend(wished.groups.iter().map(|group| plain("", "groups", group)));
    for (key, values) in &wished.extra {
        let part = |value| Part { subresource: key, ..plain(AUTHENTICATION, "userextras", value) };
        parts.extend(values.iter().map(|value| part(value.as_str())));
    }
    parts
}

/// Adds the groups a user of this name has by nature.
fn complete(mut wished: UserInfo) -> UserInfo {
    if let Some((namespace, name)) = account_of(&wished.name)
        && wished.groups.is_empty()
    {
        wished.groups = account_identity(namespace, name).groups;
    }
    if wished.name == ANONYMOUS {
        if !wished.in_group(UNAUTHENTICATED) {
            wished.groups.push(UNAUTHENTICATED.into());
        }
        return wished;
    }
    if wished.in_group(UNAUTHENTICATED) { wished } else { authenticated(wished) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::authz::live::tests::Fixed;
    use crate::authz::live::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES};

    /// `ann` may be `bob`, any service account, and group `dev`.
    fn authorizer() -> Authorizer {
        let rules = json!([
            {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["bob", ANONYMOUS]},
            {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["serviceaccounts"]},
            {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev"]},
            {"verbs": ["impersonate"], "apiGroups": [AUTHENTICATION], "resources": ["userextras/scope"], "resourceNames": ["a"]}]);
        let live = Fixed::default().with(CLUSTER_ROLES, json!({"metadata": {"name": "r"}, "rules": rules})).with(
            CLUSTER_ROLE_BINDINGS,
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
                       "subjects": [{"kind": "User", "name": "ann"}]}),
        );
        Authorizer::new(Arc::new(live))
    }

    fn ask(asker: &str, lines: &[(&'static str, &str)]) -> Result<UserInfo, Status> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("header"));
        }
        assert!(asked(&headers));
        let asker = UserInfo { name: asker.into(), ..UserInfo::default() };
        become_other(&authorizer(), &asker, &headers)
    }

    #[test]
    fn the_allowed_become_others_with_their_natural_groups() {
        let bob = ask("ann", &[(USER, "bob"), (GROUP, "dev")]).expect("allowed");
        assert_eq!(
            (bob.name.as_str(), bob.groups.as_slice()),
            ("bob", ["dev".to_owned(), "system:authenticated".into()].as_slice())
        );
        let bot = ask("ann", &[(USER, "system:serviceaccount:a:bot")]).expect("allowed");
        assert_eq!(bot.groups, ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
        assert_eq!(ask("ann", &[(USER, ANONYMOUS)]).expect("allowed").groups, [UNAUTHENTICATED]);
        assert!(ask("ann", &[(USER, "bob"), ("impersonate-extra-scope", "a")]).is_ok());
    }

    #[test]
    fn one_part_not_granted_refuses_all() {
        let table: [(&str, &[(&'static str, &str)]); 5] = [
            ("eve", &[(USER, "bob")]),
            ("ann", &[(USER, "root")]),
            ("ann", &[(USER, "bob"), (GROUP, "dev"), (GROUP, "system:masters")]),
            ("ann", &[(USER, "bob"), (UID, "1")]),
            ("ann", &[(USER, "bob"), ("impersonate-extra-scope", "b")]),
        ];
        for (asker, lines) in table {
            assert_eq!(ask(asker, lines).expect_err("refused").http_code(), 403, "{lines:?}");
        }
        let refused = ask("eve", &[(USER, "bob")]).expect_err("refused");
        assert_eq!(
            refused.message,
            r#"users "bob" is forbidden: User "eve" cannot impersonate resource "users" in API group "" at the cluster scope"#
        );
    }

    #[test]
    fn groups_alone_are_a_bad_request() {
        assert_eq!(ask("ann", &[(GROUP, "dev")]).expect_err("refused").http_code(), 400);
    }
}
