//! Plugins of a few lines: gates, priority, node marks, names and ports.

use std::cmp::Ordering;

use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, PreEnqueue, QueueSort, Rejection};
use crate::plugins::taints;
use crate::queue::Waiting;
use crate::state::{NodeInfo, PodInfo};

/// Holds back pods with scheduling gates.
pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }
}

impl PreEnqueue for SchedulingGates {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection> {
        let gates: Vec<&str> = pod
            .spec()
            .into_iter()
            .flat_map(|spec| spec.scheduling_gates.iter().flatten())
            .map(|gate| gate.name.as_str())
            .collect();
        if gates.is_empty() {
            return Ok(());
        }
        Err(Rejection::unresolvable(format!("waiting for scheduling gates: [{}]", gates.join(" "))))
    }
}

/// Higher priority first, then who waits longer.
pub struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }
}

impl QueueSort for PrioritySort {
    fn compare(&self, a: &Waiting, b: &Waiting) -> Ordering {
        b.pod.priority.cmp(&a.pod.priority).then_with(|| a.since.cmp(&b.since))
    }
}

/// Keeps pods off cordoned nodes, unless they tolerate the taint that marks them.
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn events(&self) -> ClusterEvent {
        ClusterEvent::NODE_ADDED | ClusterEvent::NODE_TAINTS
    }
}

impl Filter for NodeUnschedulable {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if node.unschedulable && !taints::tolerates_unschedulable(pod) {
            return Err(Rejection::unresolvable("node(s) were unschedulable"));
        }
        Ok(())
    }
}

/// Honours `spec.nodeName` of pods that come with one.
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn events(&self) -> ClusterEvent {
        ClusterEvent::NODE_ADDED
    }
}

impl Filter for NodeName {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.node().is_some_and(|name| name != node.name) {
            return Err(Rejection::unresolvable("node(s) didn't match the requested node name"));
        }
        Ok(())
    }
}

/// Keeps host ports from being taken twice.
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn events(&self) -> ClusterEvent {
        ClusterEvent::NODE_ADDED | ClusterEvent::POD_GONE
    }
}

impl Filter for NodePorts {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if node.has_port_conflict(&pod.ports) {
            return Err(Rejection::new("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }
}
