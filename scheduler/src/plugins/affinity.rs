//! Node selectors and node affinity.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::stretch;
use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, PreFilter, Rejection, Score};
use crate::state::{NodeInfo, PodInfo, Snapshot};

pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn events(&self) -> ClusterEvent {
        ClusterEvent::NODE_ADDED | ClusterEvent::NODE_LABELS
    }
}

/// True if `node` is among those the pod asks for.
pub(super) fn admits(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.node_labels.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && pod.node_affinity.as_ref().is_none_or(|query| query.matches(&node.name, &node.labels))
}

impl PreFilter for NodeAffinity {
    /// A pod that names its nodes, as those of daemon sets do, is not compared with all the others.
    fn pre_filter(
        &self,
        _: &mut CycleState,
        pod: &PodInfo,
        _: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection> {
        let names = pod.node_affinity.as_ref().and_then(|query| query.names());
        Ok(names.map(|names| names.into_iter().map(str::to_owned).collect()))
    }
}

impl Filter for NodeAffinity {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if admits(pod, node) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) didn't match Pod's node affinity/selector"))
    }
}

impl Score for NodeAffinity {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        let holding = pod.preferred_nodes.iter().filter(|(_, query)| query.matches(&node.name, &node.labels));
        holding.map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, _: &CycleState, _: &[Arc<NodeInfo>], scores: &mut [i64]) {
        stretch(scores, false);
    }
}
