//! Finds the subscriptions of a key: single keys and prefixes by hash, other intervals one by one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::queue::Subscription;
use crate::mvcc::key::{Interval, prefix_end};

#[derive(Default)]
pub(super) struct Index {
    keys: HashMap<Bytes, Vec<Arc<Subscription>>>,
    /// By the length of the prefix: a key is looked up once per length in use.
    prefixes: BTreeMap<usize, HashMap<Bytes, Vec<Arc<Subscription>>>>,
    others: BTreeMap<u64, Arc<Subscription>>,
    count: usize,
}

impl Index {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn insert(&mut self, subscription: Arc<Subscription>) {
        self.count += 1;
        match shape(&subscription.selector.interval) {
            Shape::Key(key) => self.keys.entry(key).or_default().push(subscription),
            Shape::Prefix(prefix) => {
                self.prefixes.entry(prefix.len()).or_default().entry(prefix).or_default().push(subscription);
            }
            Shape::Other => drop(self.others.insert(subscription.id, subscription)),
        }
    }

    pub fn remove(&mut self, subscription: &Subscription) {
        let removed = match shape(&subscription.selector.interval) {
            Shape::Key(key) => remove_from(&mut self.keys, &key, subscription.id),
            Shape::Prefix(prefix) => {
                let Some(same_length) = self.prefixes.get_mut(&prefix.len()) else { return };
                let removed = remove_from(same_length, &prefix, subscription.id);
                if same_length.is_empty() {
                    self.prefixes.remove(&prefix.len());
                }
                removed
            }
            Shape::Other => self.others.remove(&subscription.id).is_some(),
        };
        self.count -= usize::from(removed);
    }

    pub fn matching(&self, key: &[u8], mut found: impl FnMut(&Arc<Subscription>)) {
        self.keys.get(key).into_iter().flatten().for_each(&mut found);
        for (&length, same_length) in self.prefixes.range(..=key.len()) {
            same_length.get(&key[..length]).into_iter().flatten().for_each(&mut found);
        }
        self.others.values().filter(|subscription| subscription.selector.interval.contains(key)).for_each(found);
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        let prefixes = self.prefixes.values().flat_map(HashMap::values).flatten();
        self.keys.values().flatten().chain(prefixes).chain(self.others.values())
    }
}

enum Shape {
    Key(Bytes),
    Prefix(Bytes),
    Other,
}

fn shape(interval: &Interval) -> Shape {
    match interval {
        Interval::Key(key) => Shape::Key(key.clone()),
        Interval::Range(start, end) if prefix_end(start) == end => Shape::Prefix(start.clone()),
        _ => Shape::Other,
    }
}

fn remove_from(map: &mut HashMap<Bytes, Vec<Arc<Subscription>>>, key: &Bytes, id: u64) -> bool {
    let Some(list) = map.get_mut(key) else { return false };
    let before = list.len();
    list.retain(|subscription| subscription.id != id);
    let removed = list.len() < before;
    if list.is_empty() {
        map.remove(key);
    }
    removed
}
