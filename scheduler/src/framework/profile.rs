//! The plugins of one scheduler name, per extension point, and their weights.

use std::sync::Arc;

use super::{
    Bind, ClusterEvent, Filter, Permit, PostBind, PostFilter, PreBind, PreEnqueue, PreFilter, PreScore, QueueSort,
    Reserve, Score,
};
use crate::plugins;

/// Which plugins run where. Filters and scores run in the order given; scores are multiplied by their weight.
pub struct Profile {
    /// Pods with this `schedulerName` are ours.
    pub scheduler_name: String,
    pub queue_sort: Arc<dyn QueueSort>,
    pub pre_enqueue: Vec<Arc<dyn PreEnqueue>>,
    pub pre_filter: Vec<Arc<dyn PreFilter>>,
    pub filter: Vec<Arc<dyn Filter>>,
    pub post_filter: Vec<Arc<dyn PostFilter>>,
    pub pre_score: Vec<Arc<dyn PreScore>>,
    pub score: Vec<(i64, Arc<dyn Score>)>,
    pub reserve: Vec<Arc<dyn Reserve>>,
    pub permit: Vec<Arc<dyn Permit>>,
    pub pre_bind: Vec<Arc<dyn PreBind>>,
    pub bind: Vec<Arc<dyn Bind>>,
    pub post_bind: Vec<Arc<dyn PostBind>>,
}

impl Profile {
    /// Upstream's default profile, as far as its plugins exist here. `defaults` tells which pods belong together when a pod
    /// has no spread constraints of its own.
    pub fn standard(scheduler_name: &str, defaults: plugins::SpreadDefaults) -> Self {
        let fit = Arc::new(plugins::Fit);
        let ports = Arc::new(plugins::NodePorts);
        let affinity = Arc::new(plugins::NodeAffinity);
        let taints = Arc::new(plugins::TaintToleration);
        let spread = Arc::new(plugins::PodTopologySpread::new(defaults));
        let pods = Arc::new(plugins::InterPodAffinity);
        Self {
            scheduler_name: scheduler_name.to_owned(),
            queue_sort: Arc::new(plugins::PrioritySort),
            pre_enqueue: vec![Arc::new(plugins::SchedulingGates)],
            pre_filter: vec![affinity.clone(), spread.clone(), pods.clone()],
            filter: vec![
                Arc::new(plugins::NodeUnschedulable),
                Arc::new(plugins::NodeName),
                taints.clone(),
                affinity.clone(),
                ports,
                fit.clone(),
                spread.clone(),
                pods.clone(),
            ],
            post_filter: Vec::new(),
            pre_score: vec![spread.clone(), pods.clone()],
            score: vec![
                (3, taints),
                (2, affinity),
                (1, fit),
                (2, spread),
                (2, pods),
                (1, Arc::new(plugins::BalancedAllocation)),
                (1, Arc::new(plugins::ImageLocality)),
            ],
            reserve: Vec::new(),
            permit: Vec::new(),
            pre_bind: Vec::new(),
            bind: vec![Arc::new(plugins::DefaultBinder)],
            post_bind: Vec::new(),
        }
    }

    /// The changes that may help a pod that the plugins named in `rejected_by` turned away.
    pub fn events_for(&self, rejected_by: &[&'static str]) -> ClusterEvent {
        let filters = self.filter.iter().map(|plugin| (plugin.name(), plugin.events()));
        let pre_filters = self.pre_filter.iter().map(|plugin| (plugin.name(), plugin.events()));
        let known = filters.chain(pre_filters).filter(|(name, _)| rejected_by.contains(name));
        let events = known.fold(ClusterEvent::empty(), |all, (_, events)| all | events);
        // A plugin that does not say is asked again after every change.
        if events.is_empty() { ClusterEvent::all() } else { events }
    }
}
