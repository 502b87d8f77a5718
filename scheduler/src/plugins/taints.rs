//! Taints keep pods away that do not tolerate them; soft ones make a node less liked.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::stretch;
use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, Rejection, Score};
use crate::state::{NodeInfo, PodInfo, Snapshot, tolerates};

pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn events(&self) -> ClusterEvent {
        ClusterEvent::NODE_ADDED | ClusterEvent::NODE_TAINTS
    }
}

/// The first taint that keeps `pod` off `node`.
pub(super) fn untolerated<'a>(pod: &PodInfo, node: &'a NodeInfo) -> Option<&'a Taint> {
    let hard = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    node.taints.iter().filter(hard).find(|taint| !tolerates(&pod.tolerations, taint))
}

/// True if `pod` goes to cordoned nodes.
pub(super) fn tolerates_unschedulable(pod: &PodInfo) -> bool {
    let mark = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        value: None,
        time_added: None,
    };
    tolerates(&pod.tolerations, &mark)
}

impl Filter for TaintToleration {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        match untolerated(pod, node) {
            None => Ok(()),
            Some(taint) => {
                let value = taint.value.as_deref().unwrap_or_default();
                let reason = format!("node(s) had untolerated taint {{{}: {value}}}", taint.key);
                Err(Rejection::unresolvable(reason))
            }
        }
    }
}

impl Score for TaintToleration {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        let soft_ones = |toleration: &&Toleration| {
            toleration.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == "PreferNoSchedule")
        };
        let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        let tolerations: Vec<Toleration> = pod.tolerations.iter().filter(soft_ones).cloned().collect();
        i64::try_from(soft.filter(|taint| !tolerates(&tolerations, taint)).count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, _: &CycleState, _: &[Arc<NodeInfo>], scores: &mut [i64]) {
        stretch(scores, true);
    }
}
