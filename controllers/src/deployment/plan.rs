//! One step of a deployment towards its template and size. Pure: objects in, writes out.
//!
//! Sits between the cache and the API. Always holds: a rolling update never plans more than `replicas + maxSurge` pods, and
//! never takes away a pod that would leave fewer than `replicas - maxUnavailable` available.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::fenceposts::Fenceposts;
use super::revision;
use super::status::{self, PROGRESSING, Totals};

/// What a step is decided from.
pub(super) struct Input<'a> {
    pub deployment: &'a Deployment,
    /// The replica sets it controls.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Uids of replica sets with pods that have not ended.
    pub busy: HashSet<String>,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    Create(Box<ReplicaSet>),
    Update(Box<ReplicaSet>),
    Delete(Arc<ReplicaSet>),
    /// The deployment's revision annotation.
    Revision(i64),
}

/// What to do, in order: the writes, then the status.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub writes: Vec<Write>,
    pub status: Option<DeploymentStatus>,
    /// Messages of `ScalingReplicaSet` events.
    pub scaled: Vec<String>,
    pub later: Option<Duration>,
}

pub(super) fn plan(input: &Input<'_>) -> Plan {
    let mut draft = Draft::new(input);
    if input.deployment.metadata.deletion_timestamp.is_some() {
        draft.note_newest();
        return draft.finish_with_status();
    }
    draft.note_pause();
    let paused = draft.is_paused();
    draft.note_newest();
    if paused || draft.is_resized() {
        draft.resize();
        if paused {
            draft.clean_up();
        }
        return draft.finish_with_status();
    }
    match draft.fence.recreate {
        true => draft.recreate(input),
        false => draft.roll(),
    }
    if draft.is_complete() {
        draft.clean_up();
    }
    draft.finish_with_progress()
}

/// A replica set as it is and as it shall be; `stored` is `None` for the one to be created.
pub(super) struct Set {
    pub stored: Option<Arc<ReplicaSet>>,
    pub set: ReplicaSet,
    pub delete: bool,
}

impl Set {
    pub fn replicas(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    pub fn available(&self) -> i32 {
        self.set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    }

    pub fn uid(&self) -> &str {
        self.set.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.set.metadata.name.as_deref().unwrap_or_default()
    }
}

/// The work on one plan.
pub(super) struct Draft<'a> {
    deployment: &'a Deployment,
    now: Timestamp,
    pub fence: Fenceposts,
    /// Oldest first.
    pub sets: Vec<Set>,
    /// Which of `sets` runs the present template.
    pub newest: Option<usize>,
    conditions: Vec<DeploymentCondition>,
    scaled: Vec<String>,
    revision: Option<i64>,
}

impl<'a> Draft<'a> {
    fn new(input: &Input<'a>) -> Self {
        let stored = input.deployment.status.as_ref();
        let mut sets: Vec<Set> = input
            .sets
            .iter()
            .map(|set| Set { stored: Some(Arc::clone(set)), set: (**set).clone(), delete: false })
            .collect();
        let age = |set: &Set| set.set.metadata.creation_timestamp.as_ref().map(|time| time.0);
        sets.sort_by(|a, b| age(a).cmp(&age(b)).then_with(|| a.name().cmp(b.name())));
        Self {
            deployment: input.deployment,
            now: input.now,
            fence: Fenceposts::of(input.deployment),
            sets,
            newest: None,
            conditions: stored.and_then(|status| status.conditions.clone()).unwrap_or_default(),
            scaled: Vec::new(),
            revision: None,
        }
    }

    fn is_paused(&self) -> bool {
        self.deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false)
    }

    pub fn wanted(&self) -> i32 {
        self.fence.wanted
    }

    /// Sets other than the newest, oldest first.
    pub fn old(&self) -> impl Iterator<Item = usize> + use<> {
        let newest = self.newest;
        (0..self.sets.len()).filter(move |at| Some(*at) != newest)
    }

    /// Says in `Progressing` that the rollout is paused, or goes on again.
    fn note_pause(&mut self) {
        if status::progress_deadline(self.deployment).is_none() {
            return;
        }
        let reason = status::condition(&self.conditions, PROGRESSING).and_then(|condition| condition.reason.as_deref());
        let (reason, message) = match (self.is_paused(), reason) {
            (_, Some(status::TIMED_OUT)) => return, // the verdict on the old rollout stays
            (true, Some(status::PAUSED)) => return,
            (true, _) => (status::PAUSED, "Deployment is paused"),
            (false, Some(status::PAUSED)) => (status::RESUMED, "Deployment is resumed"),
            (false, _) => return,
        };
        self.progress("Unknown", reason, message.to_owned());
    }

    fn progress(&mut self, status: &str, reason: &str, message: String) {
        let condition = status::new_condition(PROGRESSING, status, reason, message, self.now);
        status::set_condition(&mut self.conditions, condition);
    }

    /// Finds the set of the present template and numbers it as the newest revision.
    fn note_newest(&mut self) {
        let Some(spec) = &self.deployment.spec else { return };
        self.newest = self.sets.iter().position(|set| revision::runs_template(&set.set, &spec.template));
        let Some(at) = self.newest else { return };
        let number = self.next_revision();
        let set = &mut self.sets[at].set;
        revision::mark_newest(set, self.deployment, number);
        if let Some(set_spec) = &mut set.spec
            && set_spec.min_ready_seconds.unwrap_or(0) != spec.min_ready_seconds.unwrap_or(0)
        {
            set_spec.min_ready_seconds = spec.min_ready_seconds;
        }
        let (number, name) = (revision::revision(&set.metadata), self.sets[at].name().to_owned());
        self.note_revision(number);
        let deadline = status::progress_deadline(self.deployment);
        if deadline.is_some() && status::condition(&self.conditions, PROGRESSING).is_none() {
            self.progress("True", status::SET_FOUND, format!("Found new replica set {name:?}"));
        }
    }

    fn next_revision(&self) -> i64 {
        self.old().map(|at| revision::revision(&self.sets[at].set.metadata)).max().unwrap_or(0).saturating_add(1)
    }

    fn note_revision(&mut self, number: i64) {
        self.revision = Some(number).filter(|number| *number != revision::revision(&self.deployment.metadata));
    }

    /// Adds the set of the present template, if there is none, with as many replicas as may be started now.
    pub fn ensure_newest(&mut self) {
        if self.newest.is_some() {
            return;
        }
        let mut set = revision::new_replica_set(self.deployment);
        let number = self.next_revision();
        revision::mark_newest(&mut set, self.deployment, number);
        revision::note_replicas(&mut set, self.wanted(), self.fence.max_total());
        self.sets.push(Set { stored: None, set, delete: false });
        let at = self.sets.len() - 1;
        self.newest = Some(at);
        let first = self.room_for_newest(at);
        self.scale(at, first);
        self.note_revision(number);
        if status::progress_deadline(self.deployment).is_some() {
            let message = format!("Created new replica set {:?}", self.sets[at].name());
            self.progress("True", status::NEW_SET_CREATED, message);
        }
    }

    /// Sets the size of a set and notes the deployment's on it. True if the size changed.
    pub fn scale(&mut self, at: usize, to: i32) -> bool {
        let (desired, max) = (self.wanted(), self.fence.max_total());
        let (from, name) = (self.sets[at].replicas(), self.sets[at].name().to_owned());
        let set = &mut self.sets[at].set;
        revision::note_replicas(set, desired, max);
        if from == to {
            return false;
        }
        set.spec.get_or_insert_default().replicas = Some(to);
        let direction = if to > from { "up" } else { "down" };
        self.scaled.push(format!("Scaled {direction} replica set {name} from {from} to {to}"));
        true
    }

    /// Deletes the oldest sets without pods beyond the history that is kept.
    fn clean_up(&mut self) {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        if limit == i32::MAX {
            return;
        }
        let mut old: Vec<usize> =
            self.old().filter(|at| self.sets[*at].set.metadata.deletion_timestamp.is_none()).collect();
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|at| revision::revision(&self.sets[*at].set.metadata));
        for at in old.into_iter().take(surplus) {
            let set = &self.sets[at].set;
            let status = set.status.clone().unwrap_or_default();
            let settled = status.observed_generation >= set.metadata.generation;
            if status.replicas == 0 && self.sets[at].replicas() == 0 && settled {
                self.sets[at].delete = true;
            }
        }
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for (at, set) in self.sets.iter().enumerate() {
            let Some(status) = &set.set.status else { continue };
            totals.replicas += status.replicas;
            totals.ready += status.ready_replicas.unwrap_or(0);
            totals.available += status.available_replicas.unwrap_or(0);
            totals.terminating += status.terminating_replicas.unwrap_or(0);
            if Some(at) == self.newest {
                totals.updated = status.replicas;
            }
        }
        totals
    }

    fn is_complete(&self) -> bool {
        status::is_complete(self.deployment, self.wanted(), self.totals())
    }

    fn finish_with_status(self) -> Plan {
        let conditions = self.conditions.clone();
        self.finish(conditions)
    }

    /// As [`finish_with_status`](Self::finish_with_status), with `Progressing` and `ReplicaFailure` brought up to date.
    fn finish_with_progress(self) -> Plan {
        let mut conditions = self.conditions.clone();
        match status::progress_deadline(self.deployment) {
            None => status::remove_condition(&mut conditions, PROGRESSING),
            Some(deadline) => self.judge_progress(&mut conditions, deadline),
        }
        status::remove_condition(&mut conditions, status::REPLICA_FAILURE);
        conditions.extend(self.replica_failure());
        self.finish(conditions)
    }

    fn judge_progress(&self, conditions: &mut Vec<DeploymentCondition>, deadline: Duration) {
        let stored = self.deployment.status.clone().unwrap_or_default();
        let totals = self.totals();
        let was_complete = totals.replicas == totals.updated
            && status::condition(conditions, PROGRESSING)
                .is_some_and(|condition| condition.reason.as_deref() == Some(status::NEW_SET_AVAILABLE));
        if was_complete {
            return;
        }
        let subject = match self.newest {
            Some(at) => format!("ReplicaSet {:?}", self.sets[at].name()),
            None => format!("Deployment {:?}", self.deployment.metadata.name.as_deref().unwrap_or_default()),
        };
        let new = |status: &str, reason: &str, what: &str| {
            status::new_condition(PROGRESSING, status, reason, format!("{subject} {what}"), self.now)
        };
        if self.is_complete() {
            status::set_condition(conditions, new("True", status::NEW_SET_AVAILABLE, "has successfully progressed."));
        } else if status::is_progressing(&stored, totals) {
            let mut condition = new("True", status::SET_UPDATED, "is progressing.");
            if let Some(current) = status::condition(conditions, PROGRESSING).filter(|current| current.status == "True")
            {
                condition.last_transition_time.clone_from(&current.last_transition_time);
            }
            // Replaced also when nothing but the time differs: the deadline counts from the last progress.
            status::remove_condition(conditions, PROGRESSING);
            conditions.push(condition);
        } else if status::is_timed_out(conditions, deadline, self.now) {
            status::set_condition(conditions, new("False", status::TIMED_OUT, "has timed out progressing."));
        }
    }

    /// The failure a replica set reports, the newest one's first.
    fn replica_failure(&self) -> Option<DeploymentCondition> {
        let order = self.newest.into_iter().chain(self.old());
        let mut conditions =
            order.flat_map(|at| self.sets[at].set.status.iter().flat_map(|status| &status.conditions).flatten());
        let failure = conditions.find(|condition| condition.type_ == status::REPLICA_FAILURE)?;
        Some(DeploymentCondition {
            type_: failure.type_.clone(),
            status: failure.status.clone(),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            last_transition_time: failure.last_transition_time.clone(),
            last_update_time: failure.last_transition_time.clone().or(Some(Time(self.now))),
        })
    }

    fn finish(self, conditions: Vec<DeploymentCondition>) -> Plan {
        let min_available = self.wanted() - self.fence.max_unavailable;
        let status = status::calculate(self.deployment, self.totals(), conditions, min_available, self.now);
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let deadline = status::progress_deadline(self.deployment).filter(|_| !self.is_paused());
        let later = deadline.and_then(|deadline| status::next_look(conditions, deadline, self.now));
        let same = status::is_same(self.deployment.status.as_ref(), &status);
        let mut writes: Vec<Write> = self.sets.into_iter().filter_map(write_for).collect();
        writes.extend(self.revision.map(Write::Revision));
        Plan { writes, status: (!same).then_some(status), scaled: self.scaled, later }
    }
}

fn write_for(set: Set) -> Option<Write> {
    match set.stored {
        None => Some(Write::Create(Box::new(set.set))),
        Some(stored) if set.delete => Some(Write::Delete(stored)),
        Some(stored) if *stored != set.set => Some(Write::Update(Box::new(set.set))),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
