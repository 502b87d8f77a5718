//! One scheduling cycle: a pod and a snapshot in, a node or the reasons against all of them out. Pure.
//!
//! Flow: pre-filter → filter (a sample of nodes, starting where the last cycle ended) → post-filter if none fits, else
//! pre-score → score → the best node, ties at random.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use pintle_base::rng;

use crate::framework::{CycleState, Profile, Rejection};
use crate::limits;
use crate::state::{NodeInfo, PodInfo, Snapshot};

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub node: String,
    /// Nodes looked at, and those of them that fit.
    pub evaluated: usize,
    pub feasible: usize,
}

/// Why no node fits; shown as people know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Misfit {
    pub nodes: usize,
    /// Nodes per reason.
    pub reasons: BTreeMap<String, usize>,
    /// Plugins that rejected a node, or all of them.
    pub rejected_by: BTreeSet<&'static str>,
    /// What a plugin said about the pod before any node was looked at.
    pub outright: Option<String>,
    /// What became of the attempt to make room.
    pub attempt: Option<String>,
    /// The node on which room is being made.
    pub nominated: Option<String>,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available", self.nodes)?;
        let mut parts: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort();
        if let Some(outright) = &self.outright {
            write!(f, ": {outright}.")?;
        } else {
            write!(f, ": {}.", parts.join(", "))?;
        }
        match &self.attempt {
            Some(attempt) => write!(f, " {attempt}"),
            None => Ok(()),
        }
    }
}

/// What lives from one cycle to the next.
#[derive(Debug, Default)]
pub struct Cycle {
    /// The share of nodes to look for, in percent; `None` adapts it to the size of the cluster.
    percentage: Option<usize>,
    /// Where the next search begins, so that all nodes get their turn.
    start: usize,
}

impl Cycle {
    pub fn new(percentage: Option<u8>) -> Self {
        let percentage =
            percentage.map(|percentage| usize::from(percentage.min(100))).filter(|percentage| *percentage > 0);
        Self { percentage, start: 0 }
    }

    /// Finds a node for `pod`.
    ///
    /// # Errors
    /// [`Misfit`] if no node of the snapshot can run it.
    pub fn schedule(
        &mut self,
        profile: &Profile,
        snapshot: &Snapshot,
        pod: &PodInfo,
        state: &mut CycleState,
    ) -> Result<Placement, Box<Misfit>> {
        let mut misfit = Misfit { nodes: snapshot.nodes.len(), ..Misfit::default() };
        if snapshot.nodes.is_empty() {
            return Err(Box::new(misfit));
        }
        let only = pre_filter(profile, snapshot, pod, state, &mut misfit)?;
        let (feasible, evaluated) = self.find(profile, snapshot, pod, state, only.as_ref(), &mut misfit);
        if feasible.is_empty() {
            for plugin in &profile.post_filter {
                (misfit.nominated, misfit.attempt) = plugin.post_filter(state, pod, snapshot);
                if misfit.nominated.is_some() {
                    break;
                }
            }
            return Err(Box::new(misfit));
        }
        let best = if feasible.len() == 1 { 0 } else { choose(profile, snapshot, pod, state, &feasible) };
        Ok(Placement { node: feasible[best].name.clone(), evaluated, feasible: feasible.len() })
    }

    /// How many fitting nodes are enough.
    fn wanted(&self, nodes: usize) -> usize {
        if nodes < limits::MIN_FEASIBLE_NODES {
            return nodes;
        }
        let adaptive = || 50usize.saturating_sub(nodes / 125).max(limits::MIN_PERCENTAGE);
        (nodes * self.percentage.unwrap_or_else(adaptive) / 100).clamp(limits::MIN_FEASIBLE_NODES, nodes)
    }

    /// Fitting nodes in the order they were found, and how many were looked at.
    fn find(
        &mut self,
        profile: &Profile,
        snapshot: &Snapshot,
        pod: &PodInfo,
        state: &CycleState,
        only: Option<&BTreeSet<String>>,
        misfit: &mut Misfit,
    ) -> (Vec<Arc<NodeInfo>>, usize) {
        let (count, mut feasible, mut evaluated) = (snapshot.nodes.len(), Vec::new(), 0);
        let wanted = self.wanted(count);
        for step in 0..count {
            let node = &snapshot.nodes[(self.start + step) % count];
            evaluated += 1;
            if only.is_some_and(|only| !only.contains(&node.name)) {
                *misfit.reasons.entry("node(s) didn't satisfy plugin(s) [NodeAffinity]".to_owned()).or_insert(0) += 1;
                misfit.rejected_by.insert("NodeAffinity");
                continue;
            }
            match filter(profile, state, pod, node) {
                Ok(()) => feasible.push(Arc::clone(node)),
                Err((plugin, rejection)) => {
                    misfit.rejected_by.insert(plugin);
                    for reason in rejection.reasons {
                        *misfit.reasons.entry(reason).or_insert(0) += 1;
                    }
                }
            }
            if feasible.len() >= wanted {
                break;
            }
        }
        self.start = (self.start + evaluated) % count;
        (feasible, evaluated)
    }
}

/// The only nodes that come into question, if plugins know them.
fn pre_filter(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    state: &mut CycleState,
    misfit: &mut Misfit,
) -> Result<Option<BTreeSet<String>>, Box<Misfit>> {
    let mut only: Option<BTreeSet<String>> = None;
    for plugin in &profile.pre_filter {
        match plugin.pre_filter(state, pod, snapshot) {
            Ok(None) => (),
            Ok(Some(names)) => {
                only = Some(match only {
                    None => names,
                    Some(before) => before.intersection(&names).cloned().collect(),
                });
            }
            Err(rejection) => {
                misfit.rejected_by.insert(plugin.name());
                misfit.outright = Some(rejection.reasons.join(", "));
                return Err(Box::new(std::mem::take(misfit)));
            }
        }
    }
    Ok(only)
}

fn filter(
    profile: &Profile,
    state: &CycleState,
    pod: &PodInfo,
    node: &NodeInfo,
) -> Result<(), (&'static str, Rejection)> {
    profile
        .filter
        .iter()
        .try_for_each(|plugin| plugin.filter(state, pod, node).map_err(|rejection| (plugin.name(), rejection)))
}

/// The index of the node with the highest sum of weighted scores.
fn choose(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    state: &mut CycleState,
    nodes: &[Arc<NodeInfo>],
) -> usize {
    for plugin in &profile.pre_score {
        plugin.pre_score(state, pod, snapshot, nodes);
    }
    let mut totals = vec![0i64; nodes.len()];
    for (weight, plugin) in &profile.score {
        let mut scores: Vec<i64> = nodes.iter().map(|node| plugin.score(state, pod, node, snapshot)).collect();
        plugin.normalize(state, nodes, &mut scores);
        for (total, score) in totals.iter_mut().zip(&scores) {
            debug_assert!((0..=limits::MAX_SCORE).contains(score), "{} scored {score}", plugin.name());
            *total += weight * score.clamp(&0, &limits::MAX_SCORE);
        }
    }
    let highest = totals.iter().copied().max().unwrap_or(0);
    let best: Vec<usize> = (0..totals.len()).filter(|at| totals[*at] == highest).collect();
    best[usize::try_from(rng::below(best.len() as u64)).unwrap_or(0)]
}

#[cfg(test)]
mod tests;
