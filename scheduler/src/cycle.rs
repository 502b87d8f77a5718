//! One scheduling cycle: a pod and a snapshot in, a node or the reasons against all of them out. Pure.
//!
//! Flow: pre-filter → filter (the promised node, else a sample of nodes, starting where the last cycle ended) → post-filter if
//! none fits, else pre-score → score → the best node, ties at random.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use pintle_base::rng;

use crate::framework::{Attempt, CycleState, Preemption, Profile};
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
#[derive(Clone, Debug, Default)]
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
    /// How room is to be made.
    pub preemption: Option<Preemption>,
    /// No node can be made to fit: what the pod was promised before is void.
    pub hopeless: bool,
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
        let only = only.as_ref();
        if let Some(node) = promised(profile, snapshot, pod, state, only) {
            return Ok(Placement { node, evaluated: 1, feasible: 1 });
        }
        let found = self.find(profile, snapshot, pod, state, only, &mut misfit);
        let (feasible, evaluated) = (found.feasible, found.evaluated);
        if feasible.is_empty() {
            make_room(profile, snapshot, pod, state, &found.crowded, &mut misfit);
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

    /// Looks for fitting nodes until there are enough.
    fn find(
        &mut self,
        profile: &Profile,
        snapshot: &Snapshot,
        pod: &PodInfo,
        state: &CycleState,
        only: Option<&BTreeSet<String>>,
        misfit: &mut Misfit,
    ) -> Found {
        let (count, mut found) = (snapshot.nodes.len(), Found::default());
        let wanted = self.wanted(count);
        for step in 0..count {
            let at = (self.start + step) % count;
            let node = &snapshot.nodes[at];
            found.evaluated += 1;
            if only.is_some_and(|only| !only.contains(&node.name)) {
                *misfit.reasons.entry("node(s) didn't satisfy plugin(s) [NodeAffinity]".to_owned()).or_insert(0) += 1;
                misfit.rejected_by.insert("NodeAffinity");
                continue;
            }
            match profile.fits(state, pod, node, &snapshot.nominations.before(pod, &node.name)) {
                Ok(()) => found.feasible.push(Arc::clone(node)),
                Err((plugin, rejection)) => {
                    if !rejection.unresolvable {
                        found.crowded.push(at);
                    }
                    misfit.rejected_by.insert(plugin);
                    for reason in rejection.reasons {
                        *misfit.reasons.entry(reason).or_insert(0) += 1;
                    }
                }
            }
            if found.feasible.len() >= wanted {
                break;
            }
        }
        self.start = (self.start + found.evaluated) % count;
        found
    }
}

/// What a search found.
#[derive(Default)]
struct Found {
    /// Fitting nodes in the order they were found.
    feasible: Vec<Arc<NodeInfo>>,
    /// Places of nodes that do not fit, but might with fewer pods.
    crowded: Vec<usize>,
    /// How many were looked at.
    evaluated: usize,
}

/// The node on which room was made for the pod, if it fits there now.
fn promised(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    state: &CycleState,
    only: Option<&BTreeSet<String>>,
) -> Option<String> {
    let nomination = snapshot.nominations.get(&pod.uid)?;
    let node = snapshot.get(&nomination.node).filter(|node| only.is_none_or(|only| only.contains(&node.name)))?;
    profile.fits(state, pod, node, &snapshot.nominations.before(pod, &node.name)).ok().map(|()| node.name.clone())
}

/// Asks the post-filters, until one finds a way, how the pod could fit.
fn make_room(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    state: &CycleState,
    crowded: &[usize],
    misfit: &mut Misfit,
) {
    for plugin in &profile.post_filter {
        match plugin.post_filter(profile, state, pod, snapshot, crowded) {
            Attempt::Declined(message) => misfit.attempt = Some(message),
            Attempt::Failed(message) => (misfit.attempt, misfit.hopeless) = (Some(message), true),
            Attempt::Found(preemption) => {
                (misfit.attempt, misfit.hopeless, misfit.preemption) = (None, false, Some(preemption));
                return;
            }
        }
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
