//! DefaultPreemption: when no node fits, finds the node on which the least important pods would have to go, and which.
//!
//! Flow: may the pod do that? → dry run on a sample of the nodes where fewer pods might help → the best of them. Pure: the
//! driver deletes the victims. Always holds: only pods of lower priority go, as few and as unimportant ones as possible, and
//! budgets for disruptions are overdrawn only where there is no other way.
//! Rule: upstream's order of choice; see the tables in the tests.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use pintle_base::rng;
use pintle_client::LabelQuery;

use crate::cycle::Misfit;
use crate::framework::{Attempt, CycleState, Plugin, PostFilter, Preemption, Profile};
use crate::limits;
use crate::state::{NodeInfo, PodInfo, Snapshot};

/// The condition of pods that have to go, and its reason when the scheduler says so.
pub const DISRUPTION_TARGET: &str = "DisruptionTarget";
pub const PREEMPTED: &str = "PreemptionByScheduler";

/// How many pods of one application may be disrupted now.
#[derive(Clone, Debug)]
pub struct Budget {
    pub selector: LabelQuery,
    pub allowed: i64,
    /// Names of pods whose disruption is counted already.
    pub disrupted: BTreeSet<String>,
}

/// The budgets of each namespace.
#[derive(Clone)]
pub struct Budgets(Arc<dyn Fn(&str) -> Vec<Budget> + Send + Sync>);

impl Budgets {
    pub fn new(of: impl Fn(&str) -> Vec<Budget> + Send + Sync + 'static) -> Self {
        Self(Arc::new(of))
    }

    /// Every pod may be disrupted.
    pub fn none() -> Self {
        Self::new(|_| Vec::new())
    }
}

pub struct DefaultPreemption {
    budgets: Budgets,
}

impl DefaultPreemption {
    pub fn new(budgets: Budgets) -> Self {
        Self { budgets }
    }
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }
}

impl PostFilter for DefaultPreemption {
    fn post_filter(
        &self,
        profile: &Profile,
        state: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        candidates: &[usize],
    ) -> Attempt {
        if let Err(reason) = may_preempt(pod, snapshot, candidates) {
            return Attempt::Declined(format!("preemption: {reason}"));
        }
        let search = Search { profile, state, pod, snapshot, budgets: &self.budgets };
        let (found, misfit) = search.run(candidates);
        match found.into_iter().min_by_key(Candidate::cost) {
            None => Attempt::Failed(format!("preemption: {misfit}")),
            Some(best) => Attempt::Found(Preemption {
                displaced: snapshot.nominations.after(pod, &best.node),
                node: best.node,
                victims: best.victims,
            }),
        }
    }
}

/// # Errors
/// Why the pod may not make others go, or not now.
fn may_preempt(pod: &PodInfo, snapshot: &Snapshot, candidates: &[usize]) -> Result<(), &'static str> {
    if pod.spec().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    let Some(nomination) = snapshot.nominations.get(&pod.uid) else { return Ok(()) };
    let Some(at) = snapshot.place_of(&nomination.node) else { return Ok(()) };
    // If the promised node has become impossible for other reasons, another one is looked for.
    let going = |other: &PodInfo| {
        nomination.victims.contains(&other.uid) || (other.priority < pod.priority && is_preempted(other))
    };
    if candidates.contains(&at) && snapshot.nodes[at].pods.iter().any(|other| going(other)) {
        return Err("not eligible due to a terminating pod on the nominated node.");
    }
    Ok(())
}

/// True if the pod is ending because a scheduler wanted its room.
fn is_preempted(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.is_terminating()
        && conditions.into_iter().any(|condition| {
            condition.type_ == DISRUPTION_TARGET
                && condition.status == "True"
                && condition.reason.as_deref() == Some(PREEMPTED)
        })
}

/// A node on which the pod would fit without `victims`.
struct Candidate {
    node: String,
    /// The most important first.
    victims: Vec<Arc<PodInfo>>,
    /// Victims whose budget does not allow it.
    violations: usize,
}

impl Candidate {
    /// What is lost: lower is better, each part only where those before are equal.
    fn cost(&self) -> (usize, i64, i64, usize, Reverse<Timestamp>) {
        let highest = self.victims.first().map_or(i64::MIN, |first| i64::from(first.priority));
        // Shifted, so that more victims weigh more also when their priorities are negative.
        let weight = |victim: &Arc<PodInfo>| i64::from(victim.priority) + i64::from(i32::MAX) + 1;
        let sum = self.victims.iter().map(weight).fold(0, i64::saturating_add);
        let important = self.victims.iter().filter(|victim| i64::from(victim.priority) == highest);
        let earliest = important.map(|victim| started(victim)).min().unwrap_or(Timestamp::MAX);
        (self.violations, highest, sum, self.victims.len(), Reverse(earliest))
    }
}

/// When the pod was started; one that was not yet counts as the youngest.
fn started(pod: &PodInfo) -> Timestamp {
    pod.pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(Timestamp::MAX, |time| time.0)
}

struct Search<'a> {
    profile: &'a Profile,
    state: &'a CycleState,
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    budgets: &'a Budgets,
}

impl Search<'_> {
    /// Candidates from a sample of the nodes at `places`, and why the others are none.
    fn run(&self, places: &[usize]) -> (Vec<Candidate>, Misfit) {
        let nodes = self.snapshot.nodes.len();
        let mut misfit = Misfit { nodes, ..Misfit::default() };
        let mut note = |reason: &str, count| *misfit.reasons.entry(reason.to_owned()).or_insert(0) += count;
        if nodes > places.len() {
            note("Preemption is not helpful for scheduling", nodes - places.len());
        }
        let enough = (places.len() * limits::PREEMPTION_PERCENTAGE / 100).max(limits::MIN_PREEMPTION_NODES);
        let start = usize::try_from(rng::below(places.len() as u64)).unwrap_or(0);
        let mut found: Vec<Candidate> = Vec::new();
        for at in places[start..].iter().chain(&places[..start]) {
            match self.dry_run(&self.snapshot.nodes[*at]) {
                Ok(candidate) => found.push(candidate),
                Err(reasons) => reasons.iter().for_each(|reason| note(reason, 1)),
            }
            // Overdrawing a budget is the last resort, worth a look at every node.
            if found.len() >= enough && found.iter().any(|candidate| candidate.violations == 0) {
                break;
            }
        }
        (found, misfit)
    }

    /// Who would have to go from `node`.
    ///
    /// # Errors
    /// Why it would not help.
    fn dry_run(&self, node: &NodeInfo) -> Result<Candidate, Vec<String>> {
        let mut lower: Vec<Arc<PodInfo>> =
            node.pods.iter().filter(|other| other.priority < self.pod.priority).cloned().collect();
        if lower.is_empty() {
            return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
        }
        let nominated = self.snapshot.nominations.before(self.pod, &node.name);
        let mut trial = Trial { search: self, node: node.clone(), state: self.state.clone(), nominated };
        lower.iter().for_each(|victim| trial.take(victim));
        trial.fits()?;
        lower.sort_by_key(importance);
        let (violating, allowed) = self.by_budget(lower);
        let mut candidate = Candidate { node: node.name.clone(), victims: Vec::new(), violations: 0 };
        // Whoever can stay does: first those whose budget does not allow them to go, the most important first.
        let ordered = violating.into_iter().map(|pod| (pod, 1)).chain(allowed.into_iter().map(|pod| (pod, 0)));
        for (pod, violation) in ordered {
            trial.put(&pod);
            if trial.fits().is_err() {
                trial.take(&pod);
                candidate.violations += violation;
                candidate.victims.push(pod);
            }
        }
        candidate.victims.sort_by_key(importance);
        Ok(candidate)
    }

    /// Those of `pods` whose going would overdraw a budget, and the others, both in order.
    fn by_budget(&self, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        let namespaces: BTreeSet<String> = pods.iter().map(|pod| pod.key.namespace.clone()).collect();
        let mut budgets: Vec<(String, Budget)> = Vec::new();
        for namespace in namespaces {
            let own = (self.budgets.0)(&namespace).into_iter().filter(|budget| !budget.selector.is_everything());
            budgets.extend(own.map(|budget| (namespace.clone(), budget)));
        }
        pods.into_iter().partition(|pod| {
            let about = budgets.iter_mut().filter(|(namespace, budget)| {
                *namespace == pod.key.namespace
                    && budget.selector.matches(pod.labels())
                    && !budget.disrupted.contains(&pod.key.name)
            });
            let mut overdrawn = false;
            for (_, budget) in about {
                budget.allowed -= 1;
                overdrawn |= budget.allowed < 0;
            }
            overdrawn
        })
    }
}

/// Sorts the most important first: by priority, then who has run longer.
fn importance(pod: &Arc<PodInfo>) -> (Reverse<i32>, Timestamp, String) {
    (Reverse(pod.priority), started(pod), pod.uid.clone())
}

/// A node from which pods are taken in thought.
struct Trial<'a> {
    search: &'a Search<'a>,
    node: NodeInfo,
    state: CycleState,
    nominated: Vec<Arc<PodInfo>>,
}

impl Trial<'_> {
    fn take(&mut self, other: &Arc<PodInfo>) {
        self.node.remove(&other.uid);
        self.search.profile.moved(&mut self.state, self.search.pod, other, &self.node, -1);
    }

    fn put(&mut self, other: &Arc<PodInfo>) {
        self.node.add(Arc::clone(other));
        self.search.profile.moved(&mut self.state, self.search.pod, other, &self.node, 1);
    }

    fn fits(&self) -> Result<(), Vec<String>> {
        let fits = self.search.profile.fits(&self.state, self.search.pod, &self.node, &self.nominated);
        fits.map_err(|(_, rejection)| rejection.reasons)
    }
}
