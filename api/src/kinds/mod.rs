//! Which kinds exist, how they are named, what may be done with them and where they are stored.
//!
//! [`KINDS`] is what discovery shows: every generally available resource of Kubernetes v1.36. [`BODIES`] are the kinds
//! that appear only as request or response bodies (options, subresource bodies, `Status`). Both are plain tables.

mod bodies;
mod resources;

use std::{
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    sync::LazyLock,
};

use crate::schema::{self, Message};

pub use bodies::BODIES;
pub use resources::KINDS;

/// One kind in one version. Compare by identity of group, version and kind.
#[derive(Debug)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// Plural name in paths; empty for kinds of [`BODIES`].
    pub resource: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// Keys start with this and a slash; empty if nothing is stored.
    pub storage_prefix: &'static str,
    /// Message of the schema table; its list is the same with `List`.
    pub message: &'static str,
}

/// A path below a named object.
#[derive(Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: &'static str,
    /// Group, version and kind of its body.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

/// `create` only: the kinds that answer a question and are not stored.
pub const CREATE: &[&str] = &["create"];
/// All verbs of stored kinds, in the order discovery lists them.
pub const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `DeploymentList`
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// True if objects of this kind are kept.
    pub fn is_stored(&self) -> bool {
        !self.storage_prefix.is_empty()
    }

    /// True if `status` is written through its own subresource only.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The schema of one object.
    pub fn schema(&self) -> Option<&'static Message> {
        schema::message(self.message)
    }

    /// The schema of a list of them.
    pub fn list_schema(&self) -> Option<&'static Message> {
        schema::message(&format!("{}List", self.message))
    }
}

impl Subresource {
    /// The kind of its body.
    pub fn body(&self) -> Option<&'static Kind> {
        by_gvk(self.group, self.version, self.kind)
    }

    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.version, self.kind) == (other.group, other.version, other.kind)
    }
}

impl Eq for Kind {}

impl Hash for Kind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.group, self.version, self.kind).hash(state);
    }
}

/// `apps/v1, Kind=Deployment`
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Kind={}", self.api_version(), self.kind)
    }
}

type Index = HashMap<(&'static str, &'static str, &'static str), &'static Kind>;

static BY_RESOURCE: LazyLock<Index> =
    LazyLock::new(|| KINDS.iter().map(|k| ((k.group, k.version, k.resource), k)).collect());

static BY_KIND: LazyLock<Index> =
    LazyLock::new(|| KINDS.iter().chain(BODIES).map(|k| ((k.group, k.version, k.kind), k)).collect());

/// Finds a served resource by the parts of its path.
pub fn by_resource(group: &str, version: &str, resource: &str) -> Option<&'static Kind> {
    BY_RESOURCE.get(&(group, version, resource)).copied()
}

/// Finds a kind by the words of a body. The options kinds (`DeleteOptions`...) are found under every served version.
pub fn by_gvk(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    let exact = BY_KIND.get(&(group, version, kind)).copied();
    exact.or_else(|| {
        let options = BODIES.iter().find(|k| k.group == bodies::META && k.kind == kind)?;
        (group == bodies::META || serves(group, version)).then_some(options)
    })
}

/// Splits `apps/v1`; the core group has no slash. `None` if there are two slashes.
pub fn split_api_version(api_version: &str) -> Option<(&str, &str)> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    (!version.contains('/')).then_some((group, version))
}

/// True if some resource is served in this group and version.
pub fn serves(group: &str, version: &str) -> bool {
    KINDS.iter().any(|k| k.group == group && k.version == version)
}

/// Groups in discovery order with their versions, the preferred one first; the core group is not among them.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for kind in KINDS.iter().filter(|k| !k.group.is_empty()) {
        match groups.iter_mut().find(|(group, _)| *group == kind.group) {
            None => groups.push((kind.group, vec![kind.version])),
            Some((_, versions)) if !versions.contains(&kind.version) => versions.push(kind.version),
            Some(_) => (),
        }
    }
    groups
}

/// Kinds served in a group and version, by resource name.
pub fn in_version(group: &str, version: &str) -> Vec<&'static Kind> {
    let mut kinds: Vec<_> = KINDS.iter().filter(|k| k.group == group && k.version == version).collect();
    kinds.sort_by_key(|k| k.resource);
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_and_a_list() {
        for kind in KINDS.iter().chain(BODIES) {
            let message = kind.schema().unwrap_or_else(|| panic!("{kind}: no message {}", kind.message));
            assert!(message.type_meta, "{kind}");
            assert!(!kind.allows("list") || kind.list_schema().is_some(), "{kind}: no list");
            assert_eq!(kind.is_stored(), kind.allows("watch"), "{kind}");
            assert!(std::ptr::eq(by_gvk(kind.group, kind.version, kind.kind).unwrap(), kind), "{kind}");
            for sub in kind.subresources {
                assert!(sub.body().is_some(), "{kind}: body of {}", sub.name);
            }
        }
    }

    #[test]
    fn a_status_subresource_means_a_status_field() {
        for kind in KINDS.iter().filter(|k| k.has_status()) {
            assert!(kind.schema().unwrap().field("status").is_some(), "{kind}");
        }
    }

    #[test]
    fn storage_prefixes_are_upstreams_and_shared_by_both_events() {
        let prefix = |g, v, r| by_resource(g, v, r).unwrap().storage_prefix;
        assert_eq!(prefix("", "v1", "services"), "/registry/services/specs");
        assert_eq!(prefix("", "v1", "endpoints"), "/registry/services/endpoints");
        assert_eq!(prefix("", "v1", "nodes"), "/registry/minions");
        assert_eq!(prefix("", "v1", "events"), prefix("events.k8s.io", "v1", "events"));
        let stored = |k: &&Kind| k.is_stored();
        for a in KINDS.iter().filter(stored) {
            for b in KINDS.iter().filter(stored).filter(|b| b.kind != a.kind) {
                assert!(!b.storage_prefix.starts_with(&format!("{}/", a.storage_prefix)), "{a} contains {b}");
                assert_ne!(a.storage_prefix, b.storage_prefix);
            }
        }
    }

    #[test]
    fn options_are_found_in_every_version() {
        for (group, version) in [("", "v1"), ("policy", "v1"), ("meta.k8s.io", "v1"), ("apps", "v1")] {
            assert_eq!(by_gvk(group, version, "DeleteOptions").unwrap().kind, "DeleteOptions");
        }
        assert!(by_gvk("nope", "v1", "DeleteOptions").is_none());
        assert!(by_gvk("apps", "v1", "Pod").is_none());
    }
}
