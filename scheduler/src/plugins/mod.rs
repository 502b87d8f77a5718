//! The plugins: one small file per concern, with upstream's names and the words people know from `kubectl describe`.

mod affinity;
mod basic;
mod binder;
mod fit;
mod images;
mod pod_affinity;
mod preemption;
mod spread;
mod taints;

pub use affinity::NodeAffinity;
pub use basic::{NodeName, NodePorts, NodeUnschedulable, PrioritySort, SchedulingGates};
pub use binder::DefaultBinder;
pub use fit::{BalancedAllocation, Fit};
pub use images::ImageLocality;
pub use pod_affinity::InterPodAffinity;
pub use preemption::{Budget, Budgets, DISRUPTION_TARGET, DefaultPreemption, PREEMPTED};
pub use spread::{PodTopologySpread, SpreadDefaults};
pub use taints::TaintToleration;

use crate::limits::MAX_SCORE;

/// Stretches scores so that the highest becomes 100; with `reverse` the highest becomes 0.
fn stretch(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let share = if highest > 0 { score.saturating_mul(MAX_SCORE) / highest } else { 0 };
        *score = if reverse { MAX_SCORE - share } else { share };
    }
}
