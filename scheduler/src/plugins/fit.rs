//! Resources: what must be free, and which node is left in the better state.

use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, Rejection, Score};
use crate::limits::MAX_SCORE;
use crate::state::{NodeInfo, PodInfo, Snapshot};

/// NodeResourcesFit: requests must fit; emptier nodes are better (LeastAllocated).
pub struct Fit;

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn events(&self) -> ClusterEvent {
        ClusterEvent::NODE_ADDED | ClusterEvent::NODE_ALLOCATABLE | ClusterEvent::POD_GONE
    }
}

impl Filter for Fit {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let (wanted, have, used) = (&pod.requests, &node.allocatable, &node.requested);
        let mut rejection = Rejection { reasons: Vec::new(), unresolvable: false };
        if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= have.pods {
            rejection.reasons.push("Too many pods".to_owned());
        }
        let mut check = |name: &str, wanted: i64, have: i64, used: i64| {
            if wanted > 0 && wanted > have.saturating_sub(used) {
                rejection.unresolvable |= wanted > have;
                rejection.reasons.push(format!("Insufficient {name}"));
            }
        };
        check("cpu", wanted.milli_cpu, have.milli_cpu, used.milli_cpu);
        check("memory", wanted.memory, have.memory, used.memory);
        check("ephemeral-storage", wanted.ephemeral_storage, have.ephemeral_storage, used.ephemeral_storage);
        for (name, wanted) in &wanted.others {
            let of = |resources: &crate::state::Resources| resources.others.get(name).copied().unwrap_or(0);
            check(name, *wanted, of(have), of(used));
        }
        if rejection.reasons.is_empty() { Ok(()) } else { Err(rejection) }
    }
}

/// CPU and memory of `node` with `pod` on it: what would be used, and what there is.
fn usage(pod: &PodInfo, node: &NodeInfo) -> [(i64, i64); 2] {
    [
        (node.estimated.0.saturating_add(pod.estimate.0), node.allocatable.milli_cpu),
        (node.estimated.1.saturating_add(pod.estimate.1), node.allocatable.memory),
    ]
}

impl Score for Fit {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        let known: Vec<i64> = usage(pod, node)
            .into_iter()
            .filter(|(_, have)| *have > 0)
            .map(|(used, have)| (i128::from((have - used).max(0)) * i128::from(MAX_SCORE) / i128::from(have)) as i64)
            .collect();
        known.iter().sum::<i64>() / i64::try_from(known.len().max(1)).unwrap_or(1)
    }
}

/// NodeResourcesBalancedAllocation: CPU and memory should run out at the same time.
pub struct BalancedAllocation;

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
}

impl Score for BalancedAllocation {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        // A pod without requests does not change the balance.
        if pod.requests.milli_cpu == 0 && pod.requests.memory == 0 {
            return 0;
        }
        let used = [
            (node.requested.milli_cpu.saturating_add(pod.requests.milli_cpu), node.allocatable.milli_cpu),
            (node.requested.memory.saturating_add(pod.requests.memory), node.allocatable.memory),
        ];
        let fractions = used.map(|(used, have)| if have > 0 { (used as f64 / have as f64).min(1.0) } else { 1.0 });
        // The standard deviation of two numbers is half their distance.
        let deviation = (fractions[0] - fractions[1]).abs() / 2.0;
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}
