//! Finds the subscriptions of a key: single keys and prefixes by hash, other intervals one by one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::queue::Subscription;
use crate::mvcc::key::{Interval, prefix_end};

#[derive(Default)]
pub(super) struct Index {
    keys: HashMap<Bytes, Group>,
    /// By the length of the prefix: a key is looked up once per length in use.
    prefixes: BTreeMap<usize, HashMap<Bytes, Group>>,
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
            Shape::Key(key) => self.keys.entry(key).or_default().insert(subscription),
            Shape::Prefix(prefix) => {
                self.prefixes.entry(prefix.len()).or_default().entry(prefix).or_default().insert(subscription);
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
        self.keys.get(key).into_iter().flat_map(Group::iter).for_each(&mut found);
        for (&length, same_length) in self.prefixes.range(..=key.len()) {
            same_length.get(&key[..length]).into_iter().flat_map(Group::iter).for_each(&mut found);
        }
        self.others.values().filter(|subscription| subscription.selector.interval.contains(key)).for_each(found);
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        let prefixes = self.prefixes.values().flat_map(HashMap::values).flat_map(Group::iter);
        self.keys.values().flat_map(Group::iter).chain(prefixes).chain(self.others.values())
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

fn remove_from(map: &mut HashMap<Bytes, Group>, key: &Bytes, id: u64) -> bool {
    let Some(group) = map.get_mut(key) else { return false };
    let removed = group.remove(id);
    if group.is_empty() {
        map.remove(key);
    }
    removed
}

/// The subscriptions of one key or prefix. Mostly one or a few; where there are thousands, each leaves without a look at the others.
enum Group {
    Few(Vec<Arc<Subscription>>),
    Many(BTreeMap<u64, Arc<Subscription>>),
}

impl Default for Group {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Group {
    /// From so many on they are kept by their ids.
    const MANY: usize = 32;

    fn insert(&mut self, subscription: Arc<Subscription>) {
        match self {
            Self::Few(list) if list.len() < Self::MANY => list.push(subscription),
            Self::Few(list) => {
                let all = list.drain(..).chain([subscription]);
                *self = Self::Many(all.map(|subscription| (subscription.id, subscription)).collect());
            }
            Self::Many(by_id) => drop(by_id.insert(subscription.id, subscription)),
        }
    }

    fn remove(&mut self, id: u64) -> bool {
        match self {
            Self::Few(list) => {
                let before = list.len();
                list.retain(|subscription| subscription.id != id);
                list.len() < before
            }
            Self::Many(by_id) => by_id.remove(&id).is_some(),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Few(list) => list.is_empty(),
            Self::Many(by_id) => by_id.is_empty(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        let (few, many) = match self {
            Self::Few(list) => (Some(list), None),
            Self::Many(by_id) => (None, Some(by_id)),
        };
        few.into_iter().flatten().chain(many.into_iter().flat_map(BTreeMap::values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::queue::Position;
    use crate::watch::{Selector, WatchOptions};

    #[test]
    fn of_many_that_watch_one_key_each_is_found_until_it_leaves() {
        let mut index = Index::default();
        let options = |key: &'static str, end: &'static str| WatchOptions {
            key: Bytes::from(key),
            range_end: Bytes::from(end),
            ..WatchOptions::default()
        };
        let all: Vec<_> = (0..200)
            .map(|id| {
                let options = if id % 2 == 0 { options("a", "") } else { options("a", "b") };
                let selector = Selector::new(&options).unwrap();
                Subscription::new(id, selector, 0, Position::Synced { from: 1 }, Arc::default())
            })
            .collect();
        all.iter().for_each(|subscription| index.insert(Arc::clone(subscription)));
        let found = |index: &Index| {
            let mut ids = Vec::new();
            index.matching(b"a", |subscription| ids.push(subscription.id));
            ids.sort_unstable();
            ids
        };
        assert_eq!((found(&index), index.len()), ((0..200).collect(), 200));
        for subscription in all.iter().filter(|subscription| subscription.id < 190) {
            index.remove(subscription);
            index.remove(subscription);
        }
        assert_eq!((found(&index), index.len()), ((190..200).collect(), 10));
        assert_eq!(index.all().count(), 10);
        all.iter().for_each(|subscription| index.remove(subscription));
        assert!(index.len() == 0 && index.keys.is_empty() && index.prefixes.is_empty());
    }
}
