//! Authorization: who may do what. Default-deny (I13).
//!
//! Order: `system:masters` and fellow servers may everything; node agents what the [`node`] table says; everybody what
//! RBAC grants ([`rbac`], rules in [`rules`]). Nothing here can take away what another part grants. All answers come from
//! memory: the RBAC index is rebuilt when the watch cache says that a role or binding has changed.

pub(crate) mod escalation;
pub(crate) mod live;
pub(crate) mod node;
pub(crate) mod rbac;
pub(crate) mod references;
pub mod rules;

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pintle_api::status::Status;

use crate::types::{Authorize, Decision, MASTERS, RequestInfo, UserInfo};
use live::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, Live, ROLE_BINDINGS, ROLES};
use rbac::Index;
use rules::{Action, Rule};

/// Open to everybody whatever the rules say, as upstream's `--authorization-always-allow-paths` has it.
const ALWAYS_ALLOWED: [&str; 3] = ["/healthz", "/livez", "/readyz"];

/// Group of the servers' own certificates; they speak for users they have authenticated.
pub const SERVERS: &str = "system:pintle:servers";

/// Versions of the four kinds an index was built from.
type Versions = [u64; 4];

/// The authorizer of a server. Cheap to share.
pub struct Authorizer {
    live: Arc<dyn Live>,
    index: ArcSwap<(Option<Versions>, Index)>,
    building: Mutex<()>,
}

impl Authorizer {
    pub(crate) fn new(live: Arc<dyn Live>) -> Self {
        Self { live, index: ArcSwap::from_pointee((None, Index::default())), building: Mutex::new(()) }
    }

    /// Decides and says why, in the words of upstream's `SubjectAccessReview.status.reason`.
    pub(crate) fn decide(&self, user: &UserInfo, action: &Action<'_>) -> Verdict {
        if user.in_group(MASTERS) || user.in_group(SERVERS) {
            return Verdict { allowed: true, reason: String::new() };
        }
        if let Some(node) = node::node_name(user)
            && node::allows(&*self.live, node, action)
        {
            return Verdict { allowed: true, reason: String::new() };
        }
        match self.rbac().1.decide(user, action) {
            Ok(reason) => Verdict { allowed: true, reason },
            Err(walk) if walk.errors.is_empty() => Verdict { allowed: false, reason: String::new() },
            Err(walk) => Verdict { allowed: false, reason: format!("RBAC: {}", walk.errors.join(", ")) },
        }
    }

    /// All rules RBAC grants the user in `namespace`, and what could not be resolved.
    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (rules, walk) = self.rbac().1.rules_for(user, namespace);
        (rules, walk.errors)
    }

    /// The index at the cache's present state. Rebuilt by one caller at a time; others meanwhile use the last one.
    pub(crate) fn rbac(&self) -> Arc<(Option<Versions>, Index)> {
        let now = Some(self.versions());
        let held = self.index.load_full();
        if held.0 == now {
            return held;
        }
        // The first index must be waited for; later ones may lag by the milliseconds a rebuild takes.
        let guard = if held.0.is_none() { Some(self.building.lock()) } else { self.building.try_lock() };
        let Some(_guard) = guard else { return held };
        let held = self.index.load_full();
        if held.0 == now {
            return held;
        }
        let list = |res| self.live.list(res, None);
        let index =
            Index::build(&list(CLUSTER_ROLES), &list(ROLES), &list(CLUSTER_ROLE_BINDINGS), &list(ROLE_BINDINGS));
        let built = Arc::new((now, index));
        self.index.store(Arc::clone(&built));
        built
    }

    fn versions(&self) -> Versions {
        [CLUSTER_ROLES, ROLES, CLUSTER_ROLE_BINDINGS, ROLE_BINDINGS].map(|res| self.live.version(res))
    }
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub allowed: bool,
    pub reason: String,
}

impl Authorize for Authorizer {
    fn authorize(&self, user: &UserInfo, info: &RequestInfo) -> Decision {
        // Rules come from the store: a server that cannot read it yet must be able to say so.
        if !info.is_resource && ALWAYS_ALLOWED.contains(&info.path.as_str()) {
            return Decision::Allow;
        }
        match self.decide(user, &action_of(info)) {
            Verdict { allowed: true, .. } => Decision::Allow,
            Verdict { reason, .. } => Decision::Deny { reason },
        }
    }
}

/// The request as rules see it.
pub(crate) fn action_of(info: &RequestInfo) -> Action<'_> {
    if !info.is_resource {
        return Action { verb: &info.verb, path: Some(&info.path), ..Action::default() };
    }
    Action {
        verb: &info.verb,
        group: &info.api_group,
        version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        path: None,
        field_selector: &info.field_selector,
    }
}

/// The sentence of a Forbidden answer, without its prefix.
pub(crate) fn refusal(user: &UserInfo, action: &Action<'_>, reason: &str) -> String {
    let mut text = match action.path {
        Some(path) => format!("User {:?} cannot {} path {:?}", user.name, action.verb, path),
        None => {
            let resource = match action.subresource {
                "" => action.resource.to_owned(),
                subresource => format!("{}/{subresource}", action.resource),
            };
            let scope = match action.namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            let (name, verb, group) = (&user.name, action.verb, action.group);
            format!("User {name:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}")
        }
    };
    if !reason.is_empty() {
        text.push_str(": ");
        text.push_str(reason);
    }
    text
}

/// The Forbidden answer for an action that was refused.
pub(crate) fn forbidden(user: &UserInfo, action: &Action<'_>, reason: &str) -> Status {
    Status::forbidden(action.group, action.resource, action.name, &refusal(user, action, reason))
}

#[cfg(test)]
mod tests {
    use super::live::tests::Fixed;
    use super::*;
    use serde_json::json;

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        UserInfo { name: name.into(), groups, ..UserInfo::default() }
    }

    fn info(verb: &str, resource: &str, namespace: &str) -> RequestInfo {
        RequestInfo {
            verb: verb.into(),
            is_resource: true,
            resource: resource.into(),
            namespace: namespace.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn without_any_binding_only_masters_and_servers_come_in() {
        let authorizer = Authorizer::new(Arc::new(Fixed::default()));
        let ask = info("get", "pods", "default");
        assert_eq!(
            authorizer.authorize(&user("ann", &["system:authenticated"]), &ask),
            Decision::Deny { reason: String::new() }
        );
        assert_eq!(authorizer.authorize(&user("root", &[MASTERS]), &ask), Decision::Allow);
        assert_eq!(authorizer.authorize(&user("s1", &[SERVERS]), &ask), Decision::Allow);
        assert_eq!(
            authorizer.authorize(&UserInfo::anonymous(), &RequestInfo::default()),
            Decision::Deny { reason: String::new() }
        );
        let health = |path: &str| RequestInfo { verb: "get".into(), path: path.into(), ..RequestInfo::default() };
        for (path, open) in [("/readyz", true), ("/livez", true), ("/readyz/../metrics", false), ("/metrics", false)] {
            let decision = authorizer.authorize(&UserInfo::anonymous(), &health(path));
            assert_eq!(decision == Decision::Allow, open, "{path} before any rule is known");
        }
    }

    #[test]
    fn a_new_binding_counts_as_soon_as_the_cache_has_it() {
        let live = Arc::new(Fixed::default());
        let authorizer = Authorizer::new(live.clone());
        let ask = info("list", "pods", "default");
        let ann = user("ann", &[]);
        assert_ne!(authorizer.authorize(&ann, &ask), Decision::Allow);
        live.put(CLUSTER_ROLES, json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]}));
        live.put(
            CLUSTER_ROLE_BINDINGS,
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "User", "name": "ann"}]}),
        );
        assert_eq!(authorizer.authorize(&ann, &ask), Decision::Allow);
    }

    #[test]
    fn refusals_read_like_upstreams() {
        let ask = info("list", "pods", "default");
        assert_eq!(
            refusal(&user("x", &[]), &action_of(&ask), ""),
            r#"User "x" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        let ask = RequestInfo { subresource: "log".into(), ..info("get", "pods", "") };
        assert_eq!(
            refusal(&user("x", &[]), &action_of(&ask), "because"),
            r#"User "x" cannot get resource "pods/log" in API group "" at the cluster scope: because"#
        );
        let ask = RequestInfo { verb: "get".into(), path: "/metrics".into(), ..RequestInfo::default() };
        assert_eq!(refusal(&user("x", &[]), &action_of(&ask), ""), r#"User "x" cannot get path "/metrics""#);
    }
}
