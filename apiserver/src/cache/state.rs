//! The cached key space at one revision, and who must hear of its changes. Pure: values in, values out.
//!
//! Always holds: under the lock of the owner, `kinds` is exactly the store's content at `revision` (restricted to
//! objects that decode); each ring holds every event of its kind after `floor`, in revision order (I8).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{self, Slot};
use super::object::Object;
use super::watcher::Queue;
use crate::limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// One change of one object. Shared by all watchers.
#[derive(Debug)]
pub struct Event {
    pub change: Change,
    pub revision: i64,
    /// The new version; for a deletion the last one, at the revision of the deletion.
    pub object: Arc<Object>,
    /// The version before, if there was one.
    pub previous: Option<Arc<Object>>,
}

impl Event {
    /// Bytes of object text that the event keeps alive.
    pub fn size(&self) -> usize {
        self.object.size() + self.previous.as_ref().map_or(0, |previous| previous.size())
    }
}

/// What part of a kind a watcher wants to hear of. Events outside never touch it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    All,
    Namespace(Box<str>),
    /// One object, by local key.
    Object(Box<str>),
    /// Objects whose `spec.nodeName` is, or was, this.
    Node(Box<str>),
}

impl Interest {
    fn covers(&self, event: &Event) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(namespace) => event.object.namespace() == &**namespace,
            Self::Object(key) => event.object.key == *key,
            Self::Node(node) => nodes_of(event).any(|n| n == &**node),
        }
    }
}

fn nodes_of(event: &Event) -> impl Iterator<Item = &str> {
    let new = event.object.node();
    let old = event.previous.as_ref().and_then(|o| o.node()).filter(|old| Some(*old) != new);
    new.into_iter().chain(old)
}

/// One write as the store reports it, decoded. `object` is `None` for a deletion, or if the value does not decode.
pub struct Input {
    pub slot: Slot,
    pub key: Box<str>,
    pub revision: i64,
    pub object: Option<Arc<Object>>,
}

#[derive(Default)]
pub(super) struct KindState {
    pub objects: BTreeMap<Box<str>, Arc<Object>>,
    by_node: HashMap<Box<str>, BTreeSet<Box<str>>>,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Events up to and with this revision are not in the ring.
    floor: i64,
    watchers: HashMap<Interest, Vec<Arc<Queue>>>,
    /// Changes with every event and every fill, and never returns to an earlier value.
    pub version: u64,
}

#[derive(Default)]
pub(super) struct State {
    pub revision: i64,
    kinds: Vec<KindState>,
}

/// The watch asks for events that are no longer kept; `oldest` is the oldest revision it could start after.
#[derive(Debug, PartialEq, Eq)]
pub struct TooOld {
    pub oldest: i64,
}

/// Counts the fills of all caches of this process.
static FILLS: AtomicU64 = AtomicU64::new(0);

impl State {
    /// A state filled with the objects of one revision. Watchers of a state before must have been ended.
    pub fn filled(revision: i64, objects: Vec<Arc<Object>>) -> Self {
        let mut state = Self { revision, kinds: Vec::new() };
        state.kinds.resize_with(layout::slots(), KindState::default);
        // No two fills of this process share versions: what was derived from an older state is never taken for current.
        let version = (FILLS.fetch_add(1, Ordering::Relaxed) + 1) << 32;
        for kind in &mut state.kinds {
            kind.floor = revision;
            kind.version = version;
        }
        for object in objects {
            let kind = &mut state.kinds[usize::from(object.slot.0)];
            kind.index(&object);
            kind.objects.insert(object.key.clone(), object);
        }
        state
    }

    /// Number of objects of all kinds.
    pub fn objects(&self) -> usize {
        self.kinds.iter().map(|kind| kind.objects.len()).sum()
    }

    pub fn kind(&self, slot: Slot) -> Option<&KindState> {
        self.kinds.get(usize::from(slot.0))
    }

    pub fn kind_mut(&mut self, slot: Slot) -> Option<&mut KindState> {
        self.kinds.get_mut(usize::from(slot.0))
    }

    /// Applies whole revisions up to `revision`.
    pub fn apply(&mut self, revision: i64, inputs: Vec<Input>) {
        for input in inputs {
            if let Some(kind) = self.kinds.get_mut(usize::from(input.slot.0)) {
                kind.apply(input);
            }
        }
        self.revision = self.revision.max(revision);
    }

    /// Tells every watcher that its stream is over.
    pub fn end_watchers(&mut self) {
        for queue in self.kinds.iter_mut().flat_map(|kind| kind.watchers.drain()).flat_map(|(_, queues)| queues) {
            queue.end();
        }
    }
}

impl KindState {
    fn index(&mut self, object: &Object) {
        if let Some(node) = object.node() {
            self.by_node.entry(node.into()).or_default().insert(object.key.clone());
        }
    }

    fn unindex(&mut self, object: &Object) {
        let Some(node) = object.node() else { return };
        if let Some(keys) = self.by_node.get_mut(node) {
            keys.remove(&object.key);
            if keys.is_empty() {
                self.by_node.remove(node);
            }
        }
    }

    fn apply(&mut self, input: Input) {
        let previous = self.objects.remove(&input.key);
        if let Some(previous) = &previous {
            self.unindex(previous);
        }
        let (change, object) = match (input.object, &previous) {
            (Some(object), previous) => {
                self.index(&object);
                self.objects.insert(input.key, Arc::clone(&object));
                (if previous.is_some() { Change::Modified } else { Change::Added }, object)
            }
            (None, Some(previous)) => (Change::Deleted, Arc::new(previous.deleted_at(input.revision))),
            (None, None) => return,
        };
        let event = Arc::new(Event { change, revision: input.revision, object, previous });
        self.version += 1;
        self.deliver(&event);
        self.remember(event);
    }

    fn deliver(&mut self, event: &Arc<Event>) {
        if self.watchers.is_empty() {
            return;
        }
        let mut interests = vec![Interest::All, Interest::Object(event.object.key.clone())];
        if !event.object.namespace().is_empty() {
            interests.push(Interest::Namespace(event.object.namespace().into()));
        }
        interests.extend(nodes_of(event).map(|node| Interest::Node(node.into())));
        for interest in interests {
            if let Some(queues) = self.watchers.get_mut(&interest) {
                queues.retain(|queue| queue.push(event));
                if queues.is_empty() {
                    self.watchers.remove(&interest);
                }
            }
        }
    }

    fn remember(&mut self, event: Arc<Event>) {
        self.ring_bytes += event.object.size();
        self.ring.push_back(event);
        while self.ring.len() > limits::RING_EVENTS || (self.ring_bytes > limits::RING_BYTES && self.ring.len() > 1) {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= oldest.object.size();
            self.floor = oldest.revision;
        }
    }

    /// Events after `revision` that `interest` covers.
    pub fn since(&self, revision: i64, interest: &Interest) -> Result<Vec<Arc<Event>>, TooOld> {
        if revision < self.floor {
            return Err(TooOld { oldest: self.floor });
        }
        let from = self.ring.partition_point(|event| event.revision <= revision);
        Ok(self.ring.iter().skip(from).filter(|event| interest.covers(event)).cloned().collect())
    }

    /// Revision of the newest event kept; with none, of the floor. The content has not changed since.
    pub fn changed_at(&self) -> i64 {
        self.ring.back().map_or(self.floor, |event| event.revision)
    }

    pub fn register(&mut self, interest: Interest, queue: Arc<Queue>) {
        self.watchers.entry(interest).or_default().push(queue);
    }

    pub fn unregister(&mut self, interest: &Interest, queue: &Arc<Queue>) {
        if let Some(queues) = self.watchers.get_mut(interest) {
            queues.retain(|other| !Arc::ptr_eq(other, queue));
            if queues.is_empty() {
                self.watchers.remove(interest);
            }
        }
    }

    /// Objects of `interest` in key order, those after local key `after` only.
    pub fn objects(&self, interest: &Interest, after: Option<&str>) -> Vec<Arc<Object>> {
        let lower = after.map_or(Bound::Unbounded, Bound::Excluded);
        match interest {
            Interest::All => {
                self.objects.range::<str, _>((lower, Bound::Unbounded)).map(|(_, o)| Arc::clone(o)).collect()
            }
            Interest::Object(key) => self
                .objects
                .get(key)
                .filter(|o| after.is_none_or(|after| &*o.key > after))
                .map(Arc::clone)
                .into_iter()
                .collect(),
            Interest::Node(node) => {
                let keys = self.by_node.get(node).into_iter().flatten();
                keys.filter(|key| after.is_none_or(|after| &***key > after))
                    .filter_map(|key| self.objects.get(key).cloned())
                    .collect()
            }
            Interest::Namespace(namespace) => {
                let first = format!("{namespace}/");
                let end = format!("{namespace}0"); // '0' follows '/'
                let lower = match after {
                    Some(after) if after > first.as_str() => Bound::Excluded(after),
                    _ => Bound::Included(first.as_str()),
                };
                if after.is_some_and(|after| after >= end.as_str()) {
                    return Vec::new();
                }
                let range = self.objects.range::<str, _>((lower, Bound::Excluded(end.as_str())));
                range.map(|(_, o)| Arc::clone(o)).collect()
            }
        }
    }
}
