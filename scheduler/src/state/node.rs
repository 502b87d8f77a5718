//! A node with the pods on it, summed up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::pod::{HostPort, PodInfo};
use super::resources::Resources;

const ZONE: &str = "topology.kubernetes.io/zone";

/// Everything plugins ask of a node. Copied on write: snapshots share what has not changed.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub name: String,
    pub labels: Arc<BTreeMap<String, String>>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub requested: Resources,
    /// Requested CPU (thousandths) and memory with a minimum per container.
    pub estimated: (i64, i64),
    pub pods: Vec<Arc<PodInfo>>,
    /// Those of `pods` that have pod (anti-)affinity.
    pub with_affinity: Vec<Arc<PodInfo>>,
    pub images: Arc<HashMap<String, i64>>,
}

impl NodeInfo {
    pub(super) fn set_node(&mut self, node: &Node) {
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
        self.name = node.metadata.name.clone().unwrap_or_default();
        self.labels = Arc::new(node.metadata.labels.clone().unwrap_or_default());
        self.taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        self.unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        self.allocatable = Resources::read(status.and_then(|status| status.allocatable.as_ref()));
        let images: HashMap<String, i64> = status
            .into_iter()
            .flat_map(|status| status.images.iter().flatten())
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                image.names.iter().flatten().map(move |name| (name.clone(), size))
            })
            .collect();
        if *self.images != images {
            self.images = Arc::new(images);
        }
    }

    /// The node's failure domain; nodes without one share the empty one.
    pub fn zone(&self) -> &str {
        self.labels.get(ZONE).map(String::as_str).unwrap_or_default()
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.estimated.0 = self.estimated.0.saturating_add(pod.estimate.0);
        self.estimated.1 = self.estimated.1.saturating_add(pod.estimate.1);
        if pod.has_pod_affinity() {
            self.with_affinity.push(Arc::clone(&pod));
        }
        self.pods.push(pod);
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(at) = self.pods.iter().position(|pod| pod.uid == uid) else { return };
        let pod = self.pods.swap_remove(at);
        self.with_affinity.retain(|other| other.uid != uid);
        self.requested.subtract(&pod.requests);
        self.estimated.0 = self.estimated.0.saturating_sub(pod.estimate.0);
        self.estimated.1 = self.estimated.1.saturating_sub(pod.estimate.1);
    }

    /// True if one of the pods here takes one of `ports`.
    pub fn has_port_conflict(&self, ports: &[HostPort]) -> bool {
        !ports.is_empty()
            && self
                .pods
                .iter()
                .any(|pod| pod.ports.iter().any(|taken| ports.iter().any(|port| port.conflicts_with(taken))))
    }
}
