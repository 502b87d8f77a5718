//! Pods that wait for a node: those to try now, those in backoff, those nothing can be done for yet, and gated ones.
//!
//! Always holds: a pod is in one place, or in flight; a change of the cluster that comes while a pod is in flight counts when
//! the pod comes back. Pure: time comes in as an argument. Bounded by the number of pods.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use pintle_base::clock::Instant;

use crate::framework::{ClusterEvent, Profile};
use crate::limits;
use crate::state::PodInfo;

/// A pod in the queue.
#[derive(Clone)]
pub struct Waiting {
    pub pod: Arc<PodInfo>,
    /// When it entered its present place.
    pub since: Instant,
    /// Scheduling cycles so far.
    pub attempts: u32,
    /// Changes that may help it; meaningful while unschedulable.
    helped_by: ClusterEvent,
    /// It failed by an error, not for want of a node: its backoff is never cut short.
    after_error: bool,
}

impl Waiting {
    fn new(pod: Arc<PodInfo>, now: Instant) -> Self {
        Self { pod, since: now, attempts: 0, helped_by: ClusterEvent::empty(), after_error: false }
    }

    fn backoff_ends(&self) -> Instant {
        let doublings = self.attempts.saturating_sub(1).min(16);
        self.since + limits::BACKOFF_FIRST.saturating_mul(1 << doublings).min(limits::BACKOFF_MAX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    Backoff,
    Unschedulable,
    Gated,
}

struct Entry {
    waiting: Waiting,
    place: Place,
    /// Its position in the ordered places.
    order: u64,
}

/// A pod being scheduled or bound.
struct InFlight {
    waiting: Waiting,
    /// Changes since it was popped.
    events: ClusterEvent,
    /// Deleted meanwhile: it must not come back.
    gone: bool,
}

pub struct Queue {
    profile: Arc<Profile>,
    entries: HashMap<String, Entry>,
    /// Uids in the order of the queue-sort plugin, by binary search.
    active: VecDeque<String>,
    /// By what helps them: an event costs as much as it wakes, however many pods wait for something else.
    unschedulable: BTreeMap<ClusterEvent, BTreeMap<u64, String>>,
    backoff: BTreeMap<(Instant, u64), String>,
    in_flight: HashMap<String, InFlight>,
    sequence: u64,
}

impl Queue {
    pub fn new(profile: Arc<Profile>) -> Self {
        Self {
            profile,
            entries: HashMap::new(),
            active: VecDeque::new(),
            unschedulable: BTreeMap::new(),
            backoff: BTreeMap::new(),
            in_flight: HashMap::new(),
            sequence: 0,
        }
    }

    /// A pod without a node appeared, or changed.
    pub fn set(&mut self, pod: Arc<PodInfo>, now: Instant) {
        if let Some(flight) = self.in_flight.get_mut(&pod.uid) {
            let changed = flight.waiting.pod.pod.spec != pod.pod.spec || flight.waiting.pod.labels() != pod.labels();
            flight.waiting.pod = pod;
            if changed {
                flight.events = ClusterEvent::all();
            }
            return;
        }
        let Some(entry) = self.take(&pod.uid) else { return self.enqueue(Waiting::new(pod, now)) };
        let mut waiting = entry.waiting;
        let changed = waiting.pod.pod.spec != pod.pod.spec || waiting.pod.labels() != pod.labels();
        waiting.pod = pod;
        match entry.place {
            Place::Active => self.activate(waiting),
            Place::Backoff => self.back_off(waiting),
            // Only a change of what it asks for can help; its own status does not.
            Place::Unschedulable if changed => self.wake(waiting, now),
            Place::Unschedulable => self.put(waiting, Place::Unschedulable),
            Place::Gated => self.enqueue(waiting),
        }
    }

    /// The pod has a node, has ended, or is gone.
    pub fn remove(&mut self, uid: &str) {
        self.take(uid);
        if let Some(flight) = self.in_flight.get_mut(uid) {
            flight.gone = true;
        }
    }

    /// The next pod to schedule; it is in flight until [`finish`](Self::finish) or one of the returns.
    pub fn pop(&mut self, now: Instant) -> Option<Waiting> {
        self.release_backoff(now);
        if self.active.is_empty() {
            self.cut_backoff_short();
        }
        let uid = self.active.pop_front()?;
        let mut waiting = self.entries.remove(&uid)?.waiting;
        waiting.attempts = waiting.attempts.saturating_add(1);
        let flight = InFlight { waiting: waiting.clone(), events: ClusterEvent::empty(), gone: false };
        self.in_flight.insert(uid, flight);
        Some(waiting)
    }

    /// When [`pop`](Self::pop) may next have something by the passing of time alone.
    pub fn next_due(&self) -> Option<Instant> {
        self.backoff.keys().next().map(|(due, _)| *due)
    }

    /// True if the pod in flight was deleted meanwhile.
    pub fn is_gone(&self, uid: &str) -> bool {
        self.in_flight.get(uid).is_none_or(|flight| flight.gone)
    }

    /// The pod is bound, or not ours any more.
    pub fn finish(&mut self, uid: &str) {
        self.in_flight.remove(uid);
    }

    /// No node fits the pod; `rejected_by` are the plugins that said so.
    pub fn put_back_unschedulable(&mut self, uid: &str, rejected_by: &[&'static str], now: Instant) {
        let Some(flight) = self.in_flight.remove(uid).filter(|flight| !flight.gone) else { return };
        let mut waiting = flight.waiting;
        waiting.since = now;
        waiting.after_error = false;
        waiting.helped_by = self.profile.events_for(rejected_by);
        if flight.events.meets(waiting.helped_by) {
            self.back_off(waiting)
        } else {
            self.put(waiting, Place::Unschedulable)
        }
    }

    /// An error kept the pod from being scheduled or bound.
    pub fn put_back_after_error(&mut self, uid: &str, now: Instant) {
        let Some(flight) = self.in_flight.remove(uid).filter(|flight| !flight.gone) else { return };
        let waiting = Waiting { since: now, after_error: true, ..flight.waiting };
        self.back_off(waiting);
    }

    /// The cluster has changed: wakes the pods it may help.
    pub fn on_event(&mut self, event: ClusterEvent, now: Instant) {
        for flight in self.in_flight.values_mut() {
            flight.events = flight.events | event;
        }
        let helped = self.unschedulable.iter().filter(|(by, _)| by.meets(event)).flat_map(|(_, pods)| pods);
        let helped = helped.map(|(order, uid)| (*order, uid.clone())).collect();
        self.wake_all(helped, now);
    }

    /// The pod may fit now, whatever it waits for.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        if self.entries.get(uid).is_some_and(|entry| entry.place == Place::Unschedulable)
            && let Some(entry) = self.take(uid)
        {
            self.wake(entry.waiting, now);
        }
    }

    /// Wakes pods that have been unschedulable for very long.
    pub fn flush_unschedulable(&mut self, now: Instant) {
        let old = |uid: &String| {
            let since = self.entries.get(uid).map(|entry| entry.waiting.since);
            since.is_some_and(|since| now.duration_since(since) > limits::UNSCHEDULABLE_MAX)
        };
        let pods = self.unschedulable.values().flatten().filter(|(_, uid)| old(uid));
        let pods = pods.map(|(order, uid)| (*order, uid.clone())).collect();
        self.wake_all(pods, now);
    }

    /// A new term begins: nothing is in flight any more, and every pod may be tried at once.
    pub fn restart(&mut self, now: Instant) {
        let flights: Vec<InFlight> = self.in_flight.drain().map(|(_, flight)| flight).collect();
        flights.into_iter().filter(|flight| !flight.gone).for_each(|flight| self.activate(flight.waiting));
        let all = self.unschedulable.values().flatten().map(|(order, uid)| (*order, uid.clone())).collect();
        self.wake_all(all, now);
    }

    /// Pods to try now, in backoff, unschedulable, gated.
    pub fn counts(&self) -> [usize; 4] {
        let of = |place| self.entries.values().filter(|entry| entry.place == place).count();
        [of(Place::Active), of(Place::Backoff), of(Place::Unschedulable), of(Place::Gated)]
    }

    /// Wakes unschedulable pods, in the order they became so.
    fn wake_all(&mut self, mut pods: Vec<(u64, String)>, now: Instant) {
        pods.sort_unstable();
        for (_, uid) in pods {
            if let Some(entry) = self.take(&uid) {
                self.wake(entry.waiting, now);
            }
        }
    }

    fn enqueue(&mut self, waiting: Waiting) {
        let gated = self.profile.pre_enqueue.iter().any(|plugin| plugin.pre_enqueue(&waiting.pod).is_err());
        if gated { self.put(waiting, Place::Gated) } else { self.activate(waiting) }
    }

    fn wake(&mut self, waiting: Waiting, now: Instant) {
        if waiting.attempts > 0 && waiting.backoff_ends() > now {
            self.back_off(waiting)
        } else {
            self.activate(waiting)
        }
    }

    fn activate(&mut self, waiting: Waiting) {
        let uid = waiting.pod.uid.clone();
        self.put(waiting, Place::Active);
        let at = self.position(&uid);
        self.active.insert(at, uid);
    }

    fn back_off(&mut self, waiting: Waiting) {
        let (uid, due) = (waiting.pod.uid.clone(), waiting.backoff_ends());
        self.put(waiting, Place::Backoff);
        self.backoff.insert((due, self.sequence), uid);
    }

    fn put(&mut self, waiting: Waiting, place: Place) {
        self.sequence += 1;
        let order = self.sequence;
        if place == Place::Unschedulable {
            let alike = self.unschedulable.entry(waiting.helped_by).or_default();
            alike.insert(order, waiting.pod.uid.clone());
        }
        self.entries.insert(waiting.pod.uid.clone(), Entry { waiting, place, order });
    }

    fn take(&mut self, uid: &str) -> Option<Entry> {
        if self.entries.get(uid)?.place == Place::Active {
            let at = self.position(uid);
            debug_assert!(self.active.get(at).is_some_and(|found| found == uid), "active pods are sorted");
            self.active.remove(at);
        }
        let entry = self.entries.remove(uid)?;
        match entry.place {
            Place::Backoff => drop(self.backoff.remove(&(entry.waiting.backoff_ends(), entry.order))),
            Place::Unschedulable => {
                if let Some(alike) = self.unschedulable.get_mut(&entry.waiting.helped_by) {
                    alike.remove(&entry.order);
                    if alike.is_empty() {
                        self.unschedulable.remove(&entry.waiting.helped_by);
                    }
                }
            }
            Place::Active | Place::Gated => (),
        }
        Some(entry)
    }

    /// Where `uid`, which is among the entries, stands or belongs in `active`.
    fn position(&self, uid: &str) -> usize {
        let Some(entry) = self.entries.get(uid) else { return self.active.len() };
        self.active.partition_point(|other| match self.entries.get(other) {
            Some(other) => self.compare(other, entry) == Ordering::Less,
            None => true,
        })
    }

    fn compare(&self, a: &Entry, b: &Entry) -> Ordering {
        self.profile.queue_sort.compare(&a.waiting, &b.waiting).then_with(|| a.order.cmp(&b.order))
    }

    fn release_backoff(&mut self, now: Instant) {
        while let Some(((due, _), uid)) = self.backoff.first_key_value() {
            if *due > now {
                return;
            }
            let uid = uid.clone();
            if let Some(entry) = self.take(&uid) {
                self.activate(entry.waiting);
            }
        }
    }

    /// With nothing else to do, the pod whose backoff ends first is tried now, unless it failed by an error.
    fn cut_backoff_short(&mut self) {
        let uid =
            self.backoff.values().find(|uid| self.entries.get(*uid).is_some_and(|entry| !entry.waiting.after_error));
        if let Some(uid) = uid.cloned()
            && let Some(entry) = self.take(&uid)
        {
            self.activate(entry.waiting);
        }
    }
}

#[cfg(test)]
mod tests;
