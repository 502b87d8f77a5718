//! Which pods nobody else will ever take away. Pure.
//!
//! Rule: upstream's pod garbage collector: pods of nodes that are gone, terminated pods beyond a number, pods that end
//! without ever having had a node, and pods that end on a node that people declared out of service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use pintle_base::clock::Instant;

use crate::limits;
use crate::runtime::pods;

/// The taint by which people say that a node is off and will not come back as it was.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Since when each missing node has been missed, by this process's own clock.
#[derive(Debug, Default)]
pub struct Quarantine {
    since: BTreeMap<String, Instant>,
}

impl Quarantine {
    /// Takes over which nodes are missing now; returns those missed for so long that they may be taken for gone.
    ///
    /// The cache of pods may be ahead of that of nodes, and a node may register again: both settle in that time.
    pub fn step(&mut self, missing: &BTreeSet<String>, now: Instant) -> Vec<String> {
        self.since.retain(|name, _| missing.contains(name));
        for name in missing {
            self.since.entry(name.clone()).or_insert(now);
        }
        let over = |since: &Instant| now.saturating_duration_since(*since) >= limits::NODE_QUARANTINE;
        self.since.iter().filter(|(_, since)| over(since)).map(|(name, _)| name.clone()).collect()
    }
}

/// The node of a pod; none if it never had one.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// True if the pod is being deleted and has no node whose agent could confirm it.
pub fn ends_unscheduled(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && node_of(pod).is_none()
}

/// True if `node` is neither ready nor expected to come back with its pods.
pub fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    !crate::node_lifecycle::plan::is_ready(node) && taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Of the pods that have ended, those beyond `keep`: evicted ones first, then the oldest.
pub fn surplus(mut ended: Vec<Arc<Pod>>, keep: usize) -> Vec<Arc<Pod>> {
    ended.retain(|pod| pods::is_finished(pod));
    let over = ended.len().saturating_sub(keep);
    let evicted = |pod: &Pod| pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("Evicted");
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    ended.sort_by_cached_key(|pod| (!evicted(pod), created(pod), pod.metadata.name.clone()));
    ended.truncate(over);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use pintle_base::clock;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn a_node_is_taken_for_gone_after_its_quarantine_and_counted_anew_if_it_was_seen() {
        let (start, mut quarantine) = (clock::now(), Quarantine::default());
        let mut step = |names: &[&str], seconds: u64| {
            let missing = names.iter().map(|name| (*name).to_owned()).collect();
            quarantine.step(&missing, start + Duration::from_secs(seconds)).join(",")
        };
        assert_eq!(step(&["a"], 0), "");
        assert_eq!(step(&["a", "b"], 39), "");
        assert_eq!(step(&["a", "b"], 40), "a");
        assert_eq!(step(&["b"], 60), "");
        assert_eq!(step(&["a", "b"], 79), "b");
        assert_eq!(step(&["a", "b"], 119), "a,b");
    }

    fn pod(name: &str, phase: &str, day: u8, reason: &str) -> Arc<Pod> {
        let metadata = json!({"name": name, "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z")});
        let value = json!({"metadata": metadata, "status": {"phase": phase, "reason": reason}});
        Arc::new(serde_json::from_value(value).expect("pod"))
    }

    #[test]
    fn evicted_and_then_the_oldest_ended_pods_go_first() {
        let pods = vec![
            pod("young", "Succeeded", 9, ""),
            pod("old", "Failed", 1, ""),
            pod("running", "Running", 1, ""),
            pod("evicted", "Failed", 9, "Evicted"),
        ];
        let names = |keep| {
            let list = surplus(pods.clone(), keep);
            list.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>().join(",")
        };
        assert_eq!([3, 2, 1, 0].map(names), ["", "evicted", "evicted,old", "evicted,old,young"]);
    }

    #[test]
    fn only_a_node_that_is_down_and_declared_so_is_out_of_service() {
        let node = |ready: &str, key: &str| -> Node {
            let taints = json!([{"key": key, "effect": "NoExecute"}]);
            let status = json!({"conditions": [{"type": "Ready", "status": ready}]});
            serde_json::from_value(json!({"metadata": {}, "spec": {"taints": taints}, "status": status})).expect("node")
        };
        assert!(is_out_of_service(&node("Unknown", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("True", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("Unknown", "other")));
    }
}
