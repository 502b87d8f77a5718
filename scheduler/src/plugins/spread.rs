//! Spreads pods that belong together over failure domains.
//!
//! Constraints of the pod are required or preferred; a pod without any is spread by the defaults (hosts: skew 3, zones:
//! skew 5, preferred) among the pods of its services and controllers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use pintle_client::LabelQuery;

use super::{affinity, taints};
use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, PreFilter, PreScore, Rejection, Score};
use crate::limits::MAX_SCORE;
use crate::state::{NodeInfo, PodInfo, Snapshot, SpreadConstraint};

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Which pods a pod belongs with, by its services and controllers.
#[derive(Clone)]
pub struct SpreadDefaults(Arc<dyn Fn(&PodInfo) -> Option<LabelQuery> + Send + Sync>);

impl SpreadDefaults {
    pub fn new(of: impl Fn(&PodInfo) -> Option<LabelQuery> + Send + Sync + 'static) -> Self {
        Self(Arc::new(of))
    }

    /// Pods without constraints are not spread.
    pub fn none() -> Self {
        Self::new(|_| None)
    }
}

pub struct PodTopologySpread {
    defaults: SpreadDefaults,
}

impl PodTopologySpread {
    pub fn new(defaults: SpreadDefaults) -> Self {
        Self { defaults }
    }

    /// The preferred constraints of `pod`, and whether they are its own.
    fn preferred(&self, pod: &PodInfo) -> (Vec<SpreadConstraint>, bool) {
        if !pod.spread.is_empty() {
            return (pod.spread.iter().filter(|constraint| !constraint.required).cloned().collect(), true);
        }
        let Some(selector) = (self.defaults.0)(pod) else { return (Vec::new(), false) };
        let constraint = |max_skew, key: &str| SpreadConstraint {
            max_skew,
            topology_key: key.to_owned(),
            required: false,
            selector: selector.clone(),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        };
        (vec![constraint(3, HOST), constraint(5, ZONE)], false)
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn events(&self) -> ClusterEvent {
        ClusterEvent::NODE_ADDED
            | ClusterEvent::NODE_GONE
            | ClusterEvent::NODE_LABELS
            | ClusterEvent::NODE_TAINTS
            | ClusterEvent::POD_ADDED
            | ClusterEvent::POD_LABELS
            | ClusterEvent::POD_GONE
    }
}

/// The required constraints.
#[derive(Clone)]
struct Required(Vec<Domains>);

/// Matching pods per domain of one constraint.
#[derive(Clone)]
struct Domains {
    constraint: SpreadConstraint,
    counts: BTreeMap<String, i64>,
    /// The lowest of the counts; zero if there are fewer domains than asked for, because the missing ones are empty.
    lowest: i64,
}

impl Domains {
    fn find_lowest(&mut self) {
        let enough = self.counts.len() >= self.constraint.min_domains;
        self.lowest = self.counts.values().copied().min().filter(|_| enough).unwrap_or(0);
    }
}

/// True if `node` is in the topologies of all constraints: a node outside one counts in none.
fn is_inside(domains: &[Domains], node: &NodeInfo) -> bool {
    domains.iter().all(|one| node.labels.contains_key(&one.constraint.topology_key))
}

fn counts(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    (!constraint.honor_affinity || affinity::admits(pod, node))
        && (!constraint.honor_taints || taints::untolerated(pod, node).is_none())
}

fn is_alike(constraint: &SpreadConstraint, pod: &PodInfo, other: &PodInfo) -> bool {
    !other.is_terminating() && other.key.namespace == pod.key.namespace && constraint.selector.matches(other.labels())
}

fn matching(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> i64 {
    let alike = node.pods.iter().filter(|other| is_alike(constraint, pod, other));
    i64::try_from(alike.count()).unwrap_or(i64::MAX)
}

impl PreFilter for PodTopologySpread {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection> {
        let required = pod.spread.iter().filter(|constraint| constraint.required);
        let empty = |one: &SpreadConstraint| Domains { constraint: one.clone(), counts: BTreeMap::new(), lowest: 0 };
        let mut found: Vec<Domains> = required.map(empty).collect();
        let nodes = if found.is_empty() { &[][..] } else { &snapshot.nodes[..] };
        for node in nodes {
            if !is_inside(&found, node) {
                continue;
            }
            for Domains { constraint, counts: domains, .. } in &mut found {
                let domain = node.labels.get(&constraint.topology_key).filter(|_| counts(constraint, pod, node));
                if let Some(domain) = domain {
                    *domains.entry(domain.clone()).or_insert(0) += matching(constraint, pod, node);
                }
            }
        }
        found.iter_mut().for_each(Domains::find_lowest);
        state.put(Required(found));
        Ok(None)
    }

    fn moved(&self, state: &mut CycleState, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        let Some(Required(domains)) = state.get_mut::<Required>() else { return };
        if !is_inside(domains, node) {
            return;
        }
        for one in domains {
            let about = counts(&one.constraint, pod, node) && is_alike(&one.constraint, pod, other);
            let domain = node.labels.get(&one.constraint.topology_key).filter(|_| about);
            if let Some(count) = domain.and_then(|domain| one.counts.get_mut(domain)) {
                *count += by;
                one.find_lowest();
            }
        }
    }
}

impl Filter for PodTopologySpread {
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        const REASON: &str = "node(s) didn't match pod topology spread constraints";
        for Domains { constraint, counts, lowest } in state.get::<Required>().into_iter().flat_map(|all| &all.0) {
            let Some(domain) = node.labels.get(&constraint.topology_key) else {
                return Err(Rejection::unresolvable(format!("{REASON} (missing required label)")));
            };
            let own = i64::from(constraint.selector.matches(pod.labels()));
            if counts.get(domain).copied().unwrap_or(0) + own - lowest > constraint.max_skew {
                return Err(Rejection::new(REASON));
            }
        }
        Ok(())
    }
}

/// What scoring needs: per constraint its weight and, unless the domain is the node itself, pods per domain.
#[derive(Clone)]
struct Preferred {
    constraints: Vec<(SpreadConstraint, f64, HashMap<String, i64>)>,
    /// True if a node must be in all topologies to be rated.
    strict: bool,
}

impl Preferred {
    fn rates(&self, node: &NodeInfo) -> bool {
        let mut keys = self.constraints.iter().map(|(constraint, ..)| &constraint.topology_key);
        !self.strict || keys.all(|key| node.labels.contains_key(key))
    }
}

impl PreScore for PodTopologySpread {
    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot, nodes: &[Arc<NodeInfo>]) {
        let (constraints, strict) = self.preferred(pod);
        let fresh = constraints.into_iter().map(|constraint| (constraint, 0.0, HashMap::new())).collect();
        let mut preferred = Preferred { constraints: fresh, strict };
        let rated: Vec<&Arc<NodeInfo>> = nodes.iter().filter(|node| preferred.rates(node)).collect();
        for (constraint, weight, domains) in &mut preferred.constraints {
            let key = &constraint.topology_key;
            domains.extend(rated.iter().filter_map(|node| Some((node.labels.get(key)?.clone(), 0))));
            let size = if key == HOST { rated.len() } else { domains.len() };
            *weight = (size as f64 + 2.0).ln();
            if key == HOST {
                domains.clear(); // counted on the node when it is rated
                continue;
            }
            if domains.is_empty() {
                continue; // no node that fits is in such a domain
            }
            for node in snapshot.nodes.iter().filter(|node| counts(constraint, pod, node)) {
                if let Some(count) = node.labels.get(key).and_then(|domain| domains.get_mut(domain)) {
                    *count += matching(constraint, pod, node);
                }
            }
        }
        state.put(preferred);
    }
}

impl Score for PodTopologySpread {
    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        let Some(preferred) = state.get::<Preferred>() else { return 0 };
        if !preferred.rates(node) {
            return 0;
        }
        let shares = preferred.constraints.iter().filter_map(|(constraint, weight, domains)| {
            let domain = node.labels.get(&constraint.topology_key)?;
            let count = if constraint.topology_key == HOST {
                matching(constraint, pod, node)
            } else {
                domains.get(domain).copied().unwrap_or(0)
            };
            Some(count as f64 * weight + (constraint.max_skew - 1) as f64)
        });
        shares.sum::<f64>().round() as i64
    }

    /// Fewer matching pods are better; nodes outside the topologies get nothing.
    fn normalize(&self, state: &CycleState, nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        let Some(preferred) = state.get::<Preferred>().filter(|preferred| !preferred.constraints.is_empty()) else {
            return scores.fill(0);
        };
        let rated: Vec<bool> = nodes.iter().map(|node| preferred.rates(node)).collect();
        let values = || scores.iter().zip(&rated).filter(|(_, rated)| **rated).map(|(score, _)| *score);
        let (lowest, highest) = (values().min().unwrap_or(0), values().max().unwrap_or(0));
        for (score, rated) in scores.iter_mut().zip(&rated) {
            *score = match (rated, highest) {
                (false, _) => 0,
                (true, 0) => MAX_SCORE,
                (true, _) => MAX_SCORE * (highest + lowest - *score) / highest,
            };
        }
    }
}
