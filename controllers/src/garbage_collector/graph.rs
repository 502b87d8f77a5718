//! Who owns whom, of all objects of all kinds, by uid; and what follows from it for one object. Pure.
//!
//! Always holds: nothing is judged to be without owner on the graph alone: an owner the graph does not know is asked for
//! by name first ([`Verdict::Ask`]), because its kind may not have been listed yet. A state older than the known one is
//! ignored: events come from a watch, corrections from reads, and neither waits for the other.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use pintle_client::object::resource_version;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// One object, as far as ownership goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Index of its resource in the collector's table.
    pub resource: usize,
    pub namespace: String,
    pub name: String,
    pub owners: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub deleting: bool,
    /// The resource version this state was read at.
    pub version: u64,
}

impl Node {
    pub fn new(resource: usize, meta: &ObjectMeta) -> Self {
        Self {
            resource,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            version: resource_version(meta),
        }
    }

    /// True if both say the same about ownership and deletion, so that what was decided on one holds for the other.
    pub fn agrees(&self, other: &Self) -> bool {
        let of = |node: &Self| (node.resource, node.deleting);
        of(self) == of(other) && self.owners == other.owners && self.finalizers == other.finalizers
    }

    fn awaits(&self, finalizer: &str) -> bool {
        self.deleting && self.finalizers.iter().any(|name| name == finalizer)
    }
}

#[derive(Debug, Default)]
pub struct Graph {
    nodes: BTreeMap<String, Node>,
    /// Owner's uid to the uids of its dependents; the owner itself may be unknown.
    dependents: BTreeMap<String, BTreeSet<String>>,
}

/// What is to be done with one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Nothing,
    /// These owners must be looked up; those found absent are then told to [`Graph::judge`].
    Ask(Vec<OwnerReference>),
    /// No owner is left that wants it.
    Delete {
        /// Its own dependents must go before it, because an owner waits for all of them.
        foreground: bool,
    },
    /// As for `Delete`, but one of its dependents is itself an owner that waits: the circle is broken by not holding the
    /// owners back any more.
    Unblock,
    /// Some owners are gone or wait for its end, others want it: it stays, without the references to these uids.
    Release(Vec<String>),
    /// It is being deleted in the foreground: these dependents are to be judged, each by all of its owners.
    JudgeDependents(Vec<String>),
    /// It is being deleted as orphan-maker: these dependents must forget it first.
    OrphanDependents(Vec<String>),
    /// Its dependents are settled: this finalizer comes off.
    Finish(&'static str),
}

impl Graph {
    /// Takes over the object's present state; returns the uids whose verdict may have changed.
    ///
    /// Most changes of objects have nothing to do with ownership and touch nothing.
    pub fn set(&mut self, uid: &str, node: Node) -> Vec<String> {
        if let Some(known) = self.nodes.get_mut(uid) {
            if known.version > node.version {
                return Vec::new();
            }
            if known.agrees(&node) {
                known.version = node.version;
                return Vec::new();
            }
        }
        let mut touched = self.unlink(uid);
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
            touched.push(owner.uid.clone());
        }
        touched.push(uid.to_owned());
        self.nodes.insert(uid.to_owned(), node);
        touched
    }

    /// The object is gone; returns the uids whose verdict may have changed.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut touched = self.unlink(uid);
        self.nodes.remove(uid);
        touched.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        touched
    }

    fn unlink(&mut self, uid: &str) -> Vec<String> {
        let owners: Vec<String> = self
            .nodes
            .get(uid)
            .into_iter()
            .flat_map(|node| node.owners.iter().map(|owner| owner.uid.clone()))
            .collect();
        for owner in &owners {
            if let Some(dependents) = self.dependents.get_mut(owner) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
        owners
    }

    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn uids_of(&self, resource: usize) -> Vec<String> {
        self.nodes.iter().filter(|(_, node)| node.resource == resource).map(|(uid, _)| uid.clone()).collect()
    }

    /// What is to be done with `uid`, if the owners with the uids `absent` are known to be gone.
    pub fn judge(&self, uid: &str, absent: &BTreeSet<String>) -> Verdict {
        let Some(node) = self.nodes.get(uid) else { return Verdict::Nothing };
        if node.awaits(FOREGROUND) {
            return self.foreground(uid);
        }
        if node.awaits(ORPHAN) {
            let dependents: Vec<String> = self.dependents_of(uid).map(|(uid, _)| uid.to_owned()).collect();
            return if dependents.is_empty() { Verdict::Finish(ORPHAN) } else { Verdict::OrphanDependents(dependents) };
        }
        if node.deleting || node.owners.is_empty() {
            return Verdict::Nothing;
        }
        self.by_owners(uid, node, absent)
    }

    fn foreground(&self, uid: &str) -> Verdict {
        let dependents: Vec<(&str, &Node)> = self.dependents_of(uid).collect();
        let blocks = |node: &Node| node.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true));
        if !dependents.iter().any(|(_, node)| blocks(node)) {
            return Verdict::Finish(FOREGROUND);
        }
        let alive = dependents.iter().filter(|(_, node)| !node.deleting).map(|(uid, _)| (*uid).to_owned());
        match alive.collect::<Vec<_>>() {
            // They are ending; their end brings us back.
            list if list.is_empty() => Verdict::Nothing,
            list => Verdict::JudgeDependents(list),
        }
    }

    fn by_owners(&self, uid: &str, node: &Node, absent: &BTreeSet<String>) -> Verdict {
        let known = |owner: &&OwnerReference| self.nodes.get(&owner.uid).is_some_and(|found| found.name == owner.name);
        let (there, others): (Vec<_>, Vec<_>) = node.owners.iter().partition(known);
        let (gone, unknown): (Vec<_>, Vec<_>) = others.into_iter().partition(|owner| absent.contains(&owner.uid));
        if !unknown.is_empty() {
            return Verdict::Ask(unknown.into_iter().cloned().collect());
        }
        // An owner that waits for this object to go does not keep it.
        let waits = |owner: &&OwnerReference| self.nodes.get(&owner.uid).is_some_and(|n| n.awaits(FOREGROUND));
        let (waiting, solid): (Vec<_>, Vec<_>) = there.into_iter().partition(waits);
        let left = || gone.iter().chain(&waiting).map(|owner| owner.uid.clone()).collect::<Vec<_>>();
        match (solid.is_empty(), left()) {
            (false, left) if left.is_empty() => Verdict::Nothing,
            (false, left) => Verdict::Release(left),
            (true, _) => {
                let foreground = !waiting.is_empty() && self.dependents_of(uid).next().is_some();
                let blocks = node.owners.iter().any(|owner| owner.block_owner_deletion == Some(true));
                let circle = foreground && blocks && self.dependents_of(uid).any(|(_, node)| node.awaits(FOREGROUND));
                if circle { Verdict::Unblock } else { Verdict::Delete { foreground } }
            }
        }
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = (&str, &Node)> {
        let list = self.dependents.get(uid).into_iter().flatten();
        list.filter_map(|uid| self.nodes.get(uid).map(|node| (uid.as_str(), node)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str, blocks: bool) -> OwnerReference {
        OwnerReference {
            api_version: "v1".into(),
            kind: "K".into(),
            name: uid.into(),
            uid: uid.into(),
            controller: None,
            block_owner_deletion: Some(blocks),
        }
    }

    fn node(name: &str, owners: &[&str], finalizer: Option<&str>) -> Node {
        Node {
            name: name.into(),
            owners: owners.iter().map(|uid| owner(uid, true)).collect(),
            finalizers: finalizer.into_iter().map(str::to_owned).collect(),
            deleting: finalizer.is_some(),
            ..Node::default()
        }
    }

    fn graph(nodes: &[(&str, &[&str], Option<&str>)]) -> Graph {
        let mut graph = Graph::default();
        for (uid, owners, finalizer) in nodes {
            graph.set(uid, node(uid, owners, *finalizer));
        }
        graph
    }

    const DELETE: Verdict = Verdict::Delete { foreground: false };

    #[track_caller]
    fn check(graph: &Graph, uid: &str, absent: &[&str], want: Verdict) {
        assert_eq!(graph.judge(uid, &absent.iter().map(|uid| (*uid).to_owned()).collect()), want);
    }

    #[test]
    fn an_object_whose_owners_are_all_gone_is_deleted_after_asking() {
        let graph = graph(&[("pod", &["rs"], None)]);
        check(&graph, "pod", &[], Verdict::Ask(vec![owner("rs", true)]));
        check(&graph, "pod", &["rs"], DELETE);
    }

    #[test]
    fn one_living_owner_keeps_it_and_the_dead_reference_goes() {
        let graph = graph(&[("rs", &[], None), ("pod", &["rs", "old"], None)]);
        check(&graph, "pod", &["old"], Verdict::Release(vec!["old".into()]));
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents() {
        let mut graph = graph(&[("rs", &[], Some(FOREGROUND)), ("pod", &["rs"], None)]);
        check(&graph, "rs", &[], Verdict::JudgeDependents(vec!["pod".into()]));
        check(&graph, "pod", &[], DELETE);
        let touched = graph.remove("pod");
        assert_eq!(touched, ["rs"]);
        check(&graph, "rs", &[], Verdict::Finish(FOREGROUND));
    }

    #[test]
    fn foreground_deletion_reaches_below_what_it_deletes() {
        let graph = graph(&[("d", &[], Some(FOREGROUND)), ("rs", &["d"], None), ("pod", &["rs"], None)]);
        check(&graph, "rs", &[], Verdict::Delete { foreground: true });
        check(&graph, "pod", &[], Verdict::Nothing);
    }

    #[test]
    fn a_dependent_that_another_owner_wants_survives_the_foreground_deletion_of_the_first() {
        let graph = graph(&[("rs", &[], Some(FOREGROUND)), ("other", &[], None), ("pod", &["rs", "other"], None)]);
        check(&graph, "rs", &[], Verdict::JudgeDependents(vec!["pod".into()]));
        check(&graph, "pod", &[], Verdict::Release(vec!["rs".into()]));
    }

    #[test]
    fn a_circle_does_not_hold_back_a_foreground_deletion() {
        let graph = graph(&[("a", &["b"], Some(FOREGROUND)), ("b", &["a"], None)]);
        check(&graph, "b", &[], Verdict::Unblock);
    }

    #[test]
    fn changes_that_do_not_concern_ownership_touch_nothing_and_older_states_are_ignored() {
        let at = |version: u64, owners: &[&str]| Node { version, ..node("pod", owners, None) };
        let mut graph = graph(&[("rs", &[], None)]);
        assert_eq!(graph.set("pod", at(5, &["rs"])), ["rs", "pod"]);
        assert!(graph.set("pod", at(6, &["rs"])).is_empty());
        assert!(graph.set("pod", at(4, &[])).is_empty());
        assert_eq!(graph.get("pod").map(|node| (node.version, node.owners.len())), Some((6, 1)));
        assert_eq!(graph.set("pod", at(7, &[])), ["rs", "pod"]);
    }

    #[test]
    fn orphaning_frees_the_dependents_first() {
        let mut graph = graph(&[("rs", &[], Some(ORPHAN)), ("pod", &["rs"], None)]);
        check(&graph, "rs", &[], Verdict::OrphanDependents(vec!["pod".into()]));
        graph.set("pod", node("pod", &[], None));
        check(&graph, "rs", &[], Verdict::Finish(ORPHAN));
    }

    #[test]
    fn the_end_of_an_owner_brings_its_dependents_back() {
        let mut graph = graph(&[("rs", &[], None), ("a", &["rs"], None), ("b", &["rs"], None)]);
        assert_eq!(graph.remove("rs"), ["a", "b"]);
    }

    #[test]
    fn owners_of_each_other_wait_for_nobody() {
        let graph = graph(&[("a", &["b"], None), ("b", &["a"], None)]);
        check(&graph, "a", &[], Verdict::Nothing);
    }
}
