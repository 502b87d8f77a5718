//! Pods that want to be, or must not be, in the same place as others.
//!
//! Always holds: required avoidance works both ways; a first pod that attracts itself is not kept waiting for itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, PreFilter, PreScore, Rejection, Score};
use crate::limits::MAX_SCORE;
use crate::state::{AffinityTerm, NodeInfo, PodInfo, Snapshot};

/// Weight of others' required attraction when it would be met, as upstream.
const HARD_WEIGHT: i64 = 1;

pub struct InterPodAffinity;

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn events(&self) -> ClusterEvent {
        ClusterEvent::NODE_ADDED
            | ClusterEvent::NODE_LABELS
            | ClusterEvent::POD_ADDED
            | ClusterEvent::POD_LABELS
            | ClusterEvent::POD_GONE
    }
}

type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// True if `term` is about `pod`.
fn concerns(term: &AffinityTerm, pod: &PodInfo, namespaces: &Namespaces) -> bool {
    let namespace = &pod.key.namespace;
    let selected = || {
        let selector = term.namespace_selector.as_ref()?;
        Some(selector.is_everything() || selector.matches(namespaces.get(namespace)))
    };
    term.selector.matches(pod.labels()) && (term.namespaces.contains(namespace) || selected().unwrap_or(false))
}

/// A number for each place: topology label, then its value. Places with zero are not kept.
#[derive(Clone, Default)]
struct Places(HashMap<String, HashMap<String, i64>>);

impl Places {
    /// Adds `by` to where `term` sees `node`.
    fn add(&mut self, term: &AffinityTerm, node: &NodeInfo, by: i64) {
        let Some(value) = node.labels.get(&term.topology_key) else { return };
        let values = self.0.entry(term.topology_key.clone()).or_default();
        let number = values.entry(value.clone()).or_insert(0);
        *number = number.saturating_add(by);
        if *number == 0 {
            values.remove(value);
            if values.is_empty() {
                self.0.remove(&term.topology_key);
            }
        }
    }

    fn has(&self, term: &AffinityTerm, node: &NodeInfo) -> bool {
        let value = node.labels.get(&term.topology_key);
        value.is_some_and(|value| self.0.get(&term.topology_key).is_some_and(|values| values.contains_key(value)))
    }

    /// The numbers of all places that `node` is in.
    fn of<'a>(&'a self, node: &'a NodeInfo) -> impl Iterator<Item = i64> + 'a {
        self.0.iter().filter_map(|(key, values)| values.get(node.labels.get(key)?).copied())
    }
}

/// How many pods are where, as far as the pod's and their requirements go.
#[derive(Clone, Default)]
struct Relations {
    /// Pods that match all of the pod's required attractions.
    attract: Places,
    /// Pods that match one of its avoidances.
    avoid: Places,
    /// Pods that avoid this one.
    forbidden: Places,
    /// The pod would match its own attractions: the first of its kind need not wait for another.
    attracts_itself: bool,
    namespaces: Arc<Namespaces>,
}

impl Relations {
    fn count(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        let namespaces = Arc::clone(&self.namespaces);
        let about = |term: &&AffinityTerm, whom: &PodInfo| concerns(term, whom, &namespaces);
        let avoiding = other.anti_affinity.iter().filter(|term| about(term, pod));
        avoiding.for_each(|term| self.forbidden.add(term, node, by));
        if !pod.affinity.is_empty() && pod.affinity.iter().all(|term| about(&term, other)) {
            pod.affinity.iter().for_each(|term| self.attract.add(term, node, by));
        }
        let avoided = pod.anti_affinity.iter().filter(|term| about(term, other));
        avoided.for_each(|term| self.avoid.add(term, node, by));
    }
}

impl PreFilter for InterPodAffinity {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection> {
        let mut relations = Relations { namespaces: Arc::clone(&snapshot.namespaces), ..Relations::default() };
        let to_itself = |term: &AffinityTerm| concerns(term, pod, &snapshot.namespaces);
        relations.attracts_itself = pod.affinity.iter().all(to_itself);
        if pod.affinity.is_empty() && pod.anti_affinity.is_empty() {
            // Only those with requirements of their own can have something against it.
            for node in snapshot.affine_nodes() {
                node.with_affinity.iter().for_each(|other| relations.count(pod, other, node, 1));
            }
        } else {
            for node in &snapshot.nodes {
                node.pods.iter().for_each(|other| relations.count(pod, other, node, 1));
            }
        }
        state.put(relations);
        Ok(None)
    }

    fn moved(&self, state: &mut CycleState, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        if let Some(relations) = state.get_mut::<Relations>() {
            relations.count(pod, other, node, by);
        }
    }
}

impl Filter for InterPodAffinity {
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(relations) = state.get::<Relations>() else { return Ok(()) };
        let first = relations.attract.0.is_empty() && relations.attracts_itself;
        let placed = |term: &AffinityTerm| node.labels.contains_key(&term.topology_key);
        if !pod.affinity.iter().all(|term| relations.attract.has(term, node) || (first && placed(term))) {
            return Err(Rejection::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if relations.avoid.of(node).next().is_some() {
            return Err(Rejection::new("node(s) didn't match pod anti-affinity rules"));
        }
        if relations.forbidden.of(node).next().is_some() {
            return Err(Rejection::new("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }
}

/// What each place is worth.
#[derive(Clone, Default)]
struct Worth(Places);

impl Worth {
    /// What the wishes of `other`, which is on `node`, say about `pod`.
    fn add_wishes_of(&mut self, other: &PodInfo, pod: &PodInfo, node: &NodeInfo, namespaces: &Namespaces) {
        let required = other.affinity.iter().map(|term| (term, HARD_WEIGHT));
        let preferred = other.preferred_pods.iter().map(|one| (&one.term, one.weight));
        let about = required.chain(preferred).filter(|(term, _)| concerns(term, pod, namespaces));
        about.for_each(|(term, weight)| self.0.add(term, node, weight));
    }
}

impl PreScore for InterPodAffinity {
    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot, _: &[Arc<NodeInfo>]) {
        let (mut worth, namespaces) = (Worth::default(), &snapshot.namespaces);
        let everywhere = if pod.preferred_pods.is_empty() { &[][..] } else { &snapshot.nodes[..] };
        for node in everywhere {
            for other in &node.pods {
                let about = pod.preferred_pods.iter().filter(|one| concerns(&one.term, other, namespaces));
                about.for_each(|one| worth.0.add(&one.term, node, one.weight));
            }
        }
        for node in snapshot.affine_nodes() {
            node.with_affinity.iter().for_each(|other| worth.add_wishes_of(other, pod, node, namespaces));
        }
        state.put(worth);
    }
}

impl Score for InterPodAffinity {
    fn score(&self, state: &CycleState, _: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        state.get::<Worth>().map_or(0, |worth| worth.0.of(node).fold(0, i64::saturating_add))
    }

    fn normalize(&self, _: &CycleState, _: &[Arc<NodeInfo>], scores: &mut [i64]) {
        let (lowest, highest) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in scores {
            *score = if highest > lowest { MAX_SCORE * (*score - lowest) / (highest - lowest) } else { 0 };
        }
    }
}
