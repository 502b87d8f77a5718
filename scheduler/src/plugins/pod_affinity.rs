//! Pods that want to be, or must not be, in the same place as others.
//!
//! Always holds: required avoidance works both ways; a first pod that attracts itself is not kept waiting for itself.

use std::collections::{BTreeSet, HashMap};
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

/// A topology: label and value.
type Place = (String, String);

/// True if `term` is about `pod`.
fn concerns(term: &AffinityTerm, pod: &PodInfo, snapshot: &Snapshot) -> bool {
    let namespace = &pod.key.namespace;
    let selected = || {
        let selector = term.namespace_selector.as_ref()?;
        Some(selector.is_everything() || selector.matches(snapshot.namespaces.get(namespace)))
    };
    term.selector.matches(pod.labels()) && (term.namespaces.contains(namespace) || selected().unwrap_or(false))
}

fn place(term: &AffinityTerm, node: &NodeInfo) -> Option<Place> {
    node.labels.get(&term.topology_key).map(|value| (term.topology_key.clone(), value.clone()))
}

#[derive(Default)]
struct Places {
    /// Where pods are that match all of the pod's required attractions.
    attract: BTreeSet<Place>,
    /// Where pods are that match one of its avoidances.
    avoid: BTreeSet<Place>,
    /// Where pods are that avoid this one.
    forbidden: BTreeSet<Place>,
    /// Nothing matches yet, and the pod would match itself.
    first: bool,
}

impl PreFilter for InterPodAffinity {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection> {
        let mut places = Places::default();
        let looks = !(pod.affinity.is_empty() && pod.anti_affinity.is_empty());
        for node in &snapshot.nodes {
            for other in &node.with_affinity {
                let avoiding = other.anti_affinity.iter().filter(|term| concerns(term, pod, snapshot));
                places.forbidden.extend(avoiding.filter_map(|term| place(term, node)));
            }
            for other in node.pods.iter().filter(|_| looks) {
                if !pod.affinity.is_empty() && pod.affinity.iter().all(|term| concerns(term, other, snapshot)) {
                    places.attract.extend(pod.affinity.iter().filter_map(|term| place(term, node)));
                }
                let avoided = pod.anti_affinity.iter().filter(|term| concerns(term, other, snapshot));
                places.avoid.extend(avoided.filter_map(|term| place(term, node)));
            }
        }
        places.first = places.attract.is_empty() && pod.affinity.iter().all(|term| concerns(term, pod, snapshot));
        state.put(places);
        Ok(None)
    }
}

impl Filter for InterPodAffinity {
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(places) = state.get::<Places>() else { return Ok(()) };
        let attracted = pod.affinity.iter().all(|term| match place(term, node) {
            Some(place) => places.first || places.attract.contains(&place),
            None => false,
        });
        if !attracted {
            return Err(Rejection::unresolvable("node(s) didn't match pod affinity rules"));
        }
        let within = |set: &BTreeSet<Place>| set.iter().any(|(key, value)| node.labels.get(key) == Some(value));
        if within(&places.avoid) {
            return Err(Rejection::new("node(s) didn't match pod anti-affinity rules"));
        }
        if within(&places.forbidden) {
            return Err(Rejection::new("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }
}

/// What each place is worth.
#[derive(Default)]
struct Worth(HashMap<Place, i64>);

impl Worth {
    fn add(&mut self, term: &AffinityTerm, node: &NodeInfo, weight: i64) {
        if let Some(place) = place(term, node) {
            *self.0.entry(place).or_insert(0) += weight;
        }
    }
}

impl PreScore for InterPodAffinity {
    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot, _: &[Arc<NodeInfo>]) {
        let mut worth = Worth::default();
        let prefers = !pod.preferred_pods.is_empty();
        for node in &snapshot.nodes {
            for other in node.pods.iter().filter(|_| prefers) {
                for one in pod.preferred_pods.iter().filter(|one| concerns(&one.term, other, snapshot)) {
                    worth.add(&one.term, node, one.weight);
                }
            }
            for other in &node.with_affinity {
                other
                    .affinity
                    .iter()
                    .filter(|term| concerns(term, pod, snapshot))
                    .for_each(|term| worth.add(term, node, HARD_WEIGHT));
                for one in other.preferred_pods.iter().filter(|one| concerns(&one.term, pod, snapshot)) {
                    worth.add(&one.term, node, one.weight);
                }
            }
        }
        state.put(worth);
    }
}

impl Score for InterPodAffinity {
    fn score(&self, state: &CycleState, _: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        let worth = state.get::<Worth>().map(|worth| &worth.0);
        let here = worth.into_iter().flatten().filter(|((key, value), _)| node.labels.get(key) == Some(value));
        here.map(|(_, weight)| weight).sum()
    }

    fn normalize(&self, _: &CycleState, _: &[Arc<NodeInfo>], scores: &mut [i64]) {
        let (lowest, highest) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in scores {
            *score = if highest > lowest { MAX_SCORE * (*score - lowest) / (highest - lowest) } else { 0 };
        }
    }
}
