//! A pod as the scheduler sees it: read once, compared often.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Affinity, Pod, PodAffinityTerm, PodSpec, Toleration};
use pintle_client::{Key, LabelQuery};

use super::resources::{Resources, estimated_requests, requests};
use super::selectors::NodeQuery;

/// A port a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    /// `0.0.0.0` for all addresses.
    pub address: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts_with(&self, other: &Self) -> bool {
        const ALL: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address == ALL || other.address == ALL)
    }
}

/// A term of pod (anti-)affinity.
#[derive(Clone, Debug)]
pub struct AffinityTerm {
    pub selector: LabelQuery,
    pub namespaces: Vec<String>,
    /// `None` if namespaces are selected by name only.
    pub namespace_selector: Option<LabelQuery>,
    pub topology_key: String,
}

#[derive(Clone, Debug)]
pub struct WeightedTerm {
    pub weight: i64,
    pub term: AffinityTerm,
}

/// One topology spread constraint.
#[derive(Clone, Debug)]
pub struct SpreadConstraint {
    pub max_skew: i64,
    pub topology_key: String,
    pub required: bool,
    pub selector: LabelQuery,
    pub min_domains: usize,
    /// Nodes that the pod's node affinity excludes do not count.
    pub honor_affinity: bool,
    /// Nodes with taints the pod does not tolerate do not count.
    pub honor_taints: bool,
}

/// A pod and what plugins ask of it.
#[derive(Clone, Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub key: Key,
    pub uid: String,
    pub priority: i32,
    pub requests: Resources,
    /// CPU (thousandths) and memory for comparing nodes.
    pub estimate: (i64, i64),
    pub ports: Vec<HostPort>,
    pub images: Vec<String>,
    pub tolerations: Vec<Toleration>,
    /// `nodeSelector`, all of which must be on the node.
    pub node_labels: BTreeMap<String, String>,
    pub node_affinity: Option<NodeQuery>,
    pub preferred_nodes: Vec<(i64, NodeQuery)>,
    pub affinity: Vec<AffinityTerm>,
    pub anti_affinity: Vec<AffinityTerm>,
    /// Positive weights attract, negative ones repel.
    pub preferred_pods: Vec<WeightedTerm>,
    pub spread: Vec<SpreadConstraint>,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let default = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        let affinity = spec.affinity.clone().unwrap_or_default();
        let node = affinity.node_affinity.clone().unwrap_or_default();
        let preferred = node.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
        let required = node.required_during_scheduling_ignored_during_execution;
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let (attract, avoid, preferred_pods) = pod_terms(&affinity, &namespace, &pod);
        Self {
            key: Key::of(&pod.metadata),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            requests: requests(spec),
            estimate: estimated_requests(spec),
            ports: host_ports(spec),
            images: spec.containers.iter().filter_map(|container| container.image.clone()).collect(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            node_labels: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: required.map(|required| NodeQuery::compile(&required.node_selector_terms)),
            preferred_nodes: preferred
                .iter()
                .map(|one| (i64::from(one.weight), NodeQuery::compile(std::slice::from_ref(&one.preference))))
                .collect(),
            affinity: attract,
            anti_affinity: avoid,
            preferred_pods,
            spread: spread_constraints(spec, &pod),
            pod,
        }
    }

    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.pod.metadata.labels.as_ref()
    }

    /// The node the pod is bound to.
    pub fn node(&self) -> Option<&str> {
        self.spec()?.node_name.as_deref().filter(|node| !node.is_empty())
    }

    pub fn is_terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    pub fn has_pod_affinity(&self) -> bool {
        !(self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred_pods.is_empty())
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(HostPort {
                port: port.host_port.filter(|port| *port > 0)?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                address: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned()),
            })
        })
        .collect()
}

/// Required attraction, required avoidance, and preferences.
fn pod_terms(
    affinity: &Affinity,
    namespace: &str,
    pod: &Pod,
) -> (Vec<AffinityTerm>, Vec<AffinityTerm>, Vec<WeightedTerm>) {
    let read = |terms: Option<Vec<PodAffinityTerm>>| -> Vec<AffinityTerm> {
        terms.into_iter().flatten().filter_map(|term| affinity_term(&term, namespace, pod)).collect()
    };
    let attract = affinity.pod_affinity.clone().unwrap_or_default();
    let avoid = affinity.pod_anti_affinity.clone().unwrap_or_default();
    let attracted = attract.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
    let avoided = avoid.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
    let weighted = attracted.into_iter().map(|one| (1, one)).chain(avoided.into_iter().map(|one| (-1, one)));
    let preferred = weighted.filter_map(|(sign, one)| {
        let term = affinity_term(&one.pod_affinity_term, namespace, pod)?;
        Some(WeightedTerm { weight: sign * i64::from(one.weight), term })
    });
    (
        read(attract.required_during_scheduling_ignored_during_execution),
        read(avoid.required_during_scheduling_ignored_during_execution),
        preferred.collect(),
    )
}

fn affinity_term(term: &PodAffinityTerm, namespace: &str, pod: &Pod) -> Option<AffinityTerm> {
    let mut selector = LabelQuery::compile(term.label_selector.as_ref()).ok()?;
    if term.label_selector.is_some() {
        selector = with_own_labels(selector, term.match_label_keys.as_deref(), pod, true);
        selector = with_own_labels(selector, term.mismatch_label_keys.as_deref(), pod, false);
    }
    let named = term.namespaces.clone().unwrap_or_default();
    let namespace_selector =
        term.namespace_selector.as_ref().map(|one| LabelQuery::compile(Some(one))).transpose().ok()?;
    let own_only = named.is_empty() && namespace_selector.is_none();
    let namespaces = if own_only { vec![namespace.to_owned()] } else { named };
    Some(AffinityTerm { selector, namespaces, namespace_selector, topology_key: term.topology_key.clone() })
}

/// Adds the pod's own values of `keys` to a selector.
fn with_own_labels(selector: LabelQuery, keys: Option<&[String]>, pod: &Pod, within: bool) -> LabelQuery {
    let labels = pod.metadata.labels.as_ref();
    keys.into_iter().flatten().fold(selector, |selector, key| match labels.and_then(|labels| labels.get(key)) {
        Some(value) => selector.and(key, std::slice::from_ref(value), within),
        None => selector,
    })
}

fn spread_constraints(spec: &PodSpec, pod: &Pod) -> Vec<SpreadConstraint> {
    let constraints = spec.topology_spread_constraints.iter().flatten();
    constraints
        .filter_map(|one| {
            let selector = LabelQuery::compile(one.label_selector.as_ref()).ok()?;
            Some(SpreadConstraint {
                max_skew: i64::from(one.max_skew),
                topology_key: one.topology_key.clone(),
                required: one.when_unsatisfiable == "DoNotSchedule",
                selector: with_own_labels(selector, one.match_label_keys.as_deref(), pod, true),
                min_domains: one.min_domains.and_then(|count| usize::try_from(count).ok()).unwrap_or(1),
                honor_affinity: one.node_affinity_policy.as_deref() != Some("Ignore"),
                honor_taints: one.node_taints_policy.as_deref() == Some("Honor"),
            })
        })
        .collect()
}
