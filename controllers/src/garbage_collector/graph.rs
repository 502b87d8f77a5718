//! Who owns whom, of all objects of all kinds, by uid; and what follows from it for one object. Pure.
//!
//! Always holds: nothing is judged to be without owner on the graph alone: an owner the graph does not know is asked for
//! by name first ([`Verdict::Ask`]), because its kind may not have been listed yet.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

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
        }
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
    /// All owners are gone.
    Delete {
        foreground: bool,
    },
    /// Some owners are gone, others are not: the object stays, without the references to these uids.
    Release(Vec<String>),
    /// It is being deleted in the foreground: these dependents must go first.
    DeleteDependents(Vec<String>),
    /// It is being deleted as orphan-maker: these dependents must forget it first.
    OrphanDependents(Vec<String>),
    /// Its dependents are settled: this finalizer comes off.
    Finish(&'static str),
}

impl Graph {
    /// Takes over the object's present state; returns the uids whose verdict may have changed.
    pub fn set(&mut self, uid: &str, node: Node) -> Vec<String> {
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
        self.by_owners(node, absent)
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
            list => Verdict::DeleteDependents(list),
        }
    }

    fn by_owners(&self, node: &Node, absent: &BTreeSet<String>) -> Verdict {
        let known = |owner: &&OwnerReference| self.nodes.get(&owner.uid).is_some_and(|found| found.name == owner.name);
        let (solid, others): (Vec<_>, Vec<_>) = node.owners.iter().partition(known);
        let (gone, unknown): (Vec<_>, Vec<_>) = others.into_iter().partition(|owner| absent.contains(&owner.uid));
        if !unknown.is_empty() {
            return Verdict::Ask(unknown.into_iter().cloned().collect());
        }
        let waiting =
            solid.iter().filter(|owner| self.nodes.get(&owner.uid).is_some_and(|n| n.awaits(FOREGROUND))).count();
        if solid.is_empty() {
            Verdict::Delete { foreground: false }
        } else if waiting == solid.len() {
            // Its only owners wait for their dependents to go.
            Verdict::Delete { foreground: true }
        } else if gone.is_empty() {
            Verdict::Nothing
        } else {
            Verdict::Release(gone.iter().map(|owner| owner.uid.clone()).collect())
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

    #[track_caller]
    fn check(graph: &Graph, uid: &str, absent: &[&str], want: Verdict) {
        assert_eq!(graph.judge(uid, &absent.iter().map(|uid| (*uid).to_owned()).collect()), want);
    }

    #[test]
    fn an_object_whose_owners_are_all_gone_is_deleted_after_asking() {
        let graph = graph(&[("pod", &["rs"], None)]);
        check(&graph, "pod", &[], Verdict::Ask(vec![owner("rs", true)]));
        check(&graph, "pod", &["rs"], Verdict::Delete { foreground: false });
    }

    #[test]
    fn one_living_owner_keeps_it_and_the_dead_reference_goes() {
        let graph = graph(&[("rs", &[], None), ("pod", &["rs", "old"], None)]);
        check(&graph, "pod", &["old"], Verdict::Release(vec!["old".into()]));
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents() {
        let mut graph = graph(&[("rs", &[], Some(FOREGROUND)), ("pod", &["rs"], None)]);
        check(&graph, "rs", &[], Verdict::DeleteDependents(vec!["pod".into()]));
        check(&graph, "pod", &[], Verdict::Delete { foreground: true });
        let touched = graph.remove("pod");
        assert_eq!(touched, ["rs"]);
        check(&graph, "rs", &[], Verdict::Finish(FOREGROUND));
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
