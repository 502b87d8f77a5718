//! The census against a state that remembers every revision.

use std::collections::BTreeMap;

use pintle_proto::mvccpb::KeyValue;
use pintle_proto::store_v1::{Alarm, LeaseRecord};
use proptest::prelude::*;

use super::*;
use crate::mvcc::record::{Live, Row, Version};
use crate::mvcc::view::Visit;

/// Which keys lived at each revision.
#[derive(Default)]
struct History(BTreeMap<i64, BTreeMap<Bytes, Version>>);

impl History {
    fn at(&self, revision: i64) -> BTreeMap<Bytes, Version> {
        self.0.range(..=revision).next_back().map(|(_, keys)| keys.clone()).unwrap_or_default()
    }
}

impl Source for History {
    fn revision(&self) -> i64 {
        self.0.keys().next_back().copied().unwrap_or(1)
    }

    fn compacted(&self) -> i64 {
        0
    }

    fn lease_stamp(&self) -> u64 {
        0
    }

    fn alarms(&self) -> &[Alarm] {
        &[]
    }

    fn newest(&self, key: &[u8]) -> io::Result<Option<Version>> {
        Ok(self.at(i64::MAX).get(key).cloned())
    }

    fn scan(&self, interval: &Interval, at: i64, visit: &mut Visit<'_>) -> io::Result<()> {
        let span = Span::of(interval).expect("a range");
        for (key, version) in self.at(at).iter().filter(|(key, _)| span.has(key)) {
            if visit(Row::of(key, version)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn lease(&self, _: i64) -> io::Result<Option<LeaseRecord>> {
        Ok(None)
    }

    fn lease_keys(&self, _: i64) -> io::Result<Vec<Bytes>> {
        Ok(Vec::new())
    }
}

fn key(number: u8) -> Bytes {
    Bytes::from(format!("k{number:03}"))
}

struct World {
    census: Census,
    history: History,
    revision: i64,
}

impl World {
    fn new() -> Self {
        let census = Census::with(Sizes { bucket: 3, largest: 6, buckets: 12, recent: 20 });
        census.reset(1);
        Self { census, history: History::default(), revision: 1 }
    }

    /// One revision that puts and deletes.
    fn change(&mut self, keys: &[(u8, bool)]) {
        let mut now = self.history.at(i64::MAX);
        self.revision += 1;
        let mut changes = Vec::new();
        for &(number, put) in keys {
            let key = key(number);
            let previous = now.get(&key).map(|_| KeyValue { key: key.clone(), ..KeyValue::default() });
            if !put && previous.is_none() {
                continue;
            }
            let live = put.then(|| Live { created: 1, version: 1, lease: 0, value: Bytes::new() });
            let version = Version { modified: self.revision, sub: 0, live };
            match put {
                true => drop(now.insert(key.clone(), version.clone())),
                false => drop(now.remove(&key)),
            }
            changes.push(Change { key, version, previous });
        }
        self.census.tell(&changes);
        self.history.0.insert(self.revision, now);
    }

    fn count(&self, interval: &Interval, at: i64) -> Option<i64> {
        self.census.count(&self.history, &|| false, interval, at).expect("no error")
    }

    fn truth(&self, interval: &Interval, at: i64) -> i64 {
        let span = Span::of(interval).expect("a range");
        i64::try_from(self.history.at(at).keys().filter(|key| span.has(key)).count()).expect("few")
    }
}

#[derive(Clone, Debug)]
enum Step {
    Change(Vec<(u8, bool)>),
    /// From, to (or without end), revisions back.
    Count(u8, Option<u8>, i64),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec((0u8..60, prop::bool::weighted(0.6)), 1..6).prop_map(Step::Change),
        4 => (0u8..60, prop::option::of(0u8..70), 0i64..12).prop_map(|(from, to, back)| Step::Count(from, to, back)),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #[test]
    fn it_says_what_a_scan_would_find_or_nothing(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Change(keys) => world.change(&keys),
                Step::Reset => world.census.reset(world.revision),
                Step::Count(from, to, back) => {
                    let at = (world.revision - back).max(1);
                    let interval = match to {
                        Some(to) if to <= from => continue,
                        Some(to) => Interval::Range(key(from), key(to)),
                        None => Interval::From(key(from)),
                    };
                    let count = world.count(&interval, at);
                    prop_assert!(count.is_none_or(|count| count == world.truth(&interval, at)), "{count:?}");
                    prop_assert!(count.is_some() || back > 0, "the newest revision is always known");
                }
            }
        }
    }
}

#[test]
fn what_was_counted_once_is_not_read_again() {
    let mut world = World::new();
    (0..30).for_each(|number| world.change(&[(number, true)]));
    let all = Interval::From(Bytes::new());
    assert_eq!(world.count(&all, world.revision), Some(30));
    world.change(&[(40, true), (41, true), (3, false)]);
    let nothing = History::default();
    let counted = world.census.count(&nothing, &|| false, &all, world.revision).expect("no error");
    assert_eq!(counted, Some(31), "nothing had to be read");
    // A part of the first bucket, all of the others.
    let most = Interval::From(key(1));
    let counted = world.census.count(&nothing, &|| false, &most, world.revision).expect("no error");
    assert_eq!(
        counted,
        Some(31 - 3),
        "only what the interval has of the bucket it begins in is read, and there it found nothing"
    );
}

#[test]
fn a_read_that_is_broken_off_teaches_nothing() {
    let mut world = World::new();
    (0..30).for_each(|number| world.change(&[(number, true)]));
    let all = Interval::From(Bytes::new());
    let broken_off = world.census.count(&History::default(), &|| true, &all, world.revision).expect("no error");
    assert_eq!(broken_off, None);
    assert_eq!(world.count(&all, world.revision), Some(30));
}
