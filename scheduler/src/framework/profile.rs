//! The plugins of one scheduler name, per extension point, and their weights.

use std::sync::Arc;

use super::{
    Bind, ClusterEvent, CycleState, Filter, Permit, PostBind, PostFilter, PreBind, PreEnqueue, PreFilter, PreScore,
    QueueSort, Rejection, Reserve, Score,
};
use crate::plugins;
use crate::state::{NodeInfo, PodInfo};

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
    /// has no spread constraints of its own, `budgets` how many pods of an application may be disrupted.
    pub fn standard(scheduler_name: &str, defaults: plugins::SpreadDefaults, budgets: plugins::Budgets) -> Self {
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
            post_filter: vec![Arc::new(plugins::DefaultPreemption::new(budgets))],
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

    /// Whether `pod` fits on `node`, also when the pods that were promised room there (`nominated`) have come.
    ///
    /// # Errors
    /// The plugin that rejects it, and why.
    pub fn fits(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
        nominated: &[Arc<PodInfo>],
    ) -> Result<(), (&'static str, Rejection)> {
        if !nominated.is_empty() {
            let (mut full, mut later) = (node.clone(), state.clone());
            for other in nominated {
                self.moved(&mut later, pod, other, node, 1);
                full.add(Arc::clone(other));
            }
            self.filter(&later, pod, &full)?;
        }
        // And without them: they may never come, and others may be needed for the pod to fit.
        self.filter(state, pod, node)
    }

    /// Tells the plugins that `other` is put on `node` in thought, or taken off it.
    pub fn moved(&self, state: &mut CycleState, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        self.pre_filter.iter().for_each(|plugin| plugin.moved(state, pod, other, node, by));
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), (&'static str, Rejection)> {
        let mut filters = self.filter.iter();
        filters.try_for_each(|plugin| plugin.filter(state, pod, node).map_err(|why| (plugin.name(), why)))
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
