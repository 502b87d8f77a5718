//! The hub, its queues and its index against models that remember everything: random watches come and go, fall behind and are brought
//! back, while revisions are published and states replaced.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use pintle_proto::mvccpb::Event;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use super::hub::{Hub, Rejoin};
use super::index::Index;
use super::queue::{Position, Ready, Subscription, Taken};
use super::{Filters, Revision, Selector, WatchBatch, WatchOptions};
use crate::apply::Change;
use crate::mvcc::key::Interval;
use crate::mvcc::record::{Live, Version};

/// A few of these fill a queue, some more the ring.
static LARGE: [u8; 1 << 20] = [0; 1 << 20];

const KEYS: [&[u8]; 7] = [b"\0", b"a", b"a\0", b"ab", b"b", b"b\xff", b"\xff"];

fn key() -> impl Strategy<Value = Bytes> {
    (0..KEYS.len()).prop_map(|at| Bytes::from_static(KEYS[at]))
}

/// Key and range end, as requests carry them: single keys, prefixes, everything, and other ranges.
fn interval() -> impl Strategy<Value = (Bytes, Bytes)> {
    prop_oneof![
        key().prop_map(|key| (key, Bytes::new())),
        key().prop_map(|key| (key.clone(), crate::mvcc::key::prefix_end(&key))),
        key().prop_map(|key| (key, Bytes::from_static(&[0]))),
        (key(), key()).prop_map(|(one, other)| (one.clone().min(other.clone()), one.max(other))),
    ]
}

fn filters() -> impl Strategy<Value = Filters> {
    prop_oneof![4 => Just((false, false)), 1 => Just((true, false)), 1 => Just((false, true)), 1 => Just((true, true))]
        .prop_map(|(no_put, no_delete)| Filters { no_put, no_delete })
}

/// Changes of one revision: keys, and whether they are deleted.
type Written = BTreeMap<Bytes, bool>;

fn written() -> impl Strategy<Value = Written> {
    prop::collection::btree_map(key(), any::<bool>(), 1..4)
}

#[derive(Clone, Debug)]
enum Step {
    /// Revisions of one entry.
    Publish {
        revisions: Vec<Written>,
        large: bool,
    },
    /// From so many revisions before the next one; negative for the future, `None` for no start.
    Watch {
        interval: (Bytes, Bytes),
        filters: Filters,
        back: Option<i64>,
    },
    Unwatch(prop::sample::Index),
    /// Looks at what is ready of one watch; history is read so many revisions at a time.
    Read {
        which: prop::sample::Index,
        history: i64,
    },
    /// The state is replaced by one that has these revisions on top.
    Replace(Vec<Written>),
    Progress(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let revisions = || prop::collection::vec(written(), 1..4);
    let back = prop_oneof![2 => Just(None), 3 => (-3..12i64).prop_map(Some)];
    let which = any::<prop::sample::Index>;
    let step = prop_oneof![
        8 => (revisions(), any::<bool>()).prop_map(|(revisions, large)| Step::Publish { revisions, large }),
        4 => (interval(), filters(), back).prop_map(|(interval, filters, back)| Step::Watch { interval, filters, back }),
        1 => which().prop_map(Step::Unwatch),
        6 => (which(), 1..6i64).prop_map(|(which, history)| Step::Read { which, history }),
        1 => prop::collection::vec(written(), 0..3).prop_map(Step::Replace),
        3 => which().prop_map(Step::Progress),
    ];
    prop::collection::vec(step, 1..80)
}

/// What a watch was told: revision, key, whether it was deleted.
type Told = (i64, Bytes, bool);

/// A watch with a reader that does what a feed does.
struct Watch {
    subscription: Arc<Subscription>,
    ready: Arc<Ready>,
    selector: Selector,
    from: i64,
    told: Vec<Told>,
}

/// The hub, and what it should be.
struct World {
    hub: Hub,
    /// From revision 2 on.
    revisions: Vec<Written>,
    watches: Vec<Watch>,
    histories: usize,
    large: bool,
}

impl World {
    fn new() -> Self {
        Self { hub: Hub::new(1), revisions: Vec::new(), watches: Vec::new(), histories: 0, large: false }
    }

    fn published(&self) -> i64 {
        i64::try_from(self.revisions.len()).expect("few") + 1
    }

    fn revision(&self, number: i64) -> Arc<Revision> {
        let written = &self.revisions[usize::try_from(number - 2).expect("published")];
        let value = if self.large { Bytes::from_static(&LARGE) } else { Bytes::new() };
        let live = Live { created: 2, version: 1, lease: 0, value };
        let changes = written.iter().zip(0..).map(|((key, deleted), sub)| Change {
            key: key.clone(),
            version: Version { modified: number, sub, live: (!deleted).then(|| live.clone()) },
            previous: None,
        });
        Revision::group(changes.collect()).remove(0)
    }

    fn publish(&mut self, revisions: &[Written], large: bool) {
        self.large = large;
        let first = self.published() + 1;
        self.revisions.extend_from_slice(revisions);
        let entry = (first..=self.published()).map(|number| self.revision(number)).collect();
        self.hub.publish(entry);
    }

    fn watch(&mut self, (key, range_end): &(Bytes, Bytes), filters: Filters, back: Option<i64>) {
        let start_revision = back.map_or(0, |back| (self.published() + 1 - back).max(1));
        let options =
            WatchOptions { key: key.clone(), range_end: range_end.clone(), filters, ..WatchOptions::default() };
        let Ok(selector) = Selector::new(&options) else { return };
        let ready: Arc<Ready> = Arc::default();
        let made = self.hub.subscribe(selector.clone(), start_revision, 0, Arc::clone(&ready));
        let (subscription, created) = made.expect("subscribe");
        assert_eq!(created, self.published());
        let from = if start_revision == 0 { created + 1 } else { start_revision };
        self.watches.push(Watch { subscription, ready, selector, from, told: Vec::new() });
    }

    /// One look at one watch; true if there was something.
    fn read(&mut self, at: usize, within: i64, history: i64) -> bool {
        let Some(subscription) = self.watches[at].ready.pop_now() else { return false };
        match subscription.take(within) {
            Taken::Batch(batch) => self.watches[at].hear(&batch),
            Taken::Behind => {
                if let Rejoin::History { next } = self.hub.rejoin(&subscription) {
                    self.histories += 1;
                    let through = (next + history - 1).min(self.published());
                    let mut batch = WatchBatch { revision: through, events: Vec::new() };
                    for number in next.max(2)..=through {
                        batch.events.extend(self.watches[at].selector.select(&self.revision(number)));
                    }
                    subscription.deliver(batch, through + 1);
                }
            }
            Taken::Nothing => (),
            Taken::Ended(error) => panic!("nothing ends a watch here: {error}"),
        }
        true
    }

    /// What a watch must have been told of the revisions up to `through`.
    fn expected(&self, watch: &Watch, through: i64) -> Vec<Told> {
        let numbered = self.revisions.iter().zip(2..).filter(|(_, number)| (watch.from..=through).contains(number));
        let changes = numbered
            .flat_map(|(written, number)| written.iter().map(move |(key, deleted)| (number, key.clone(), *deleted)));
        let Selector { interval, filters, .. } = &watch.selector;
        let wanted = |deleted: bool| if deleted { !filters.no_delete } else { !filters.no_put };
        changes.filter(|(_, key, deleted)| interval.contains(key) && wanted(*deleted)).collect()
    }

    /// A report of progress speaks of nothing that was not told before it.
    fn progress(&mut self, at: usize) -> Result<bool, TestCaseError> {
        let Some(through) = self.hub.progress([&self.watches[at].subscription].into_iter()) else { return Ok(false) };
        while self.watches[at].subscription.lock().first().is_some_and(|first| first <= through) {
            prop_assert!(self.read(at, through, 1), "what is queued is listed as ready");
        }
        prop_assert_eq!(&self.watches[at].told, &self.expected(&self.watches[at], through), "told up to {}", through);
        Ok(true)
    }
}

impl Watch {
    fn hear(&mut self, batch: &WatchBatch) {
        let told = |event: &Arc<Event>| {
            let kv = event.kv.as_ref().expect("kv");
            (kv.mod_revision, kv.key.clone(), event.r#type == 1)
        };
        self.told.extend(batch.events.iter().map(told));
        assert!(self.told.iter().all(|(revision, ..)| *revision <= batch.revision), "a batch says how far it reaches");
    }
}

fn run(steps: &[Step], seen: &Cell<[usize; 2]>) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for step in steps {
        let some = |which: &prop::sample::Index| match world.watches.len() {
            0 => None,
            count => Some(which.index(count)),
        };
        match step {
            Step::Publish { revisions, large } => world.publish(revisions, *large),
            Step::Watch { interval, filters, back } => world.watch(interval, *filters, *back),
            Step::Unwatch(which) => {
                if let Some(at) = some(which) {
                    let watch = world.watches.swap_remove(at);
                    world.hub.unsubscribe(&watch.subscription);
                }
            }
            Step::Read { which, history } => {
                if let Some(at) = some(which) {
                    world.read(at, i64::MAX, *history);
                }
            }
            Step::Replace(revisions) => {
                world.revisions.extend_from_slice(revisions);
                world.hub.reset(world.published());
            }
            Step::Progress(which) => {
                if let Some(at) = some(which)
                    && world.progress(at)?
                {
                    seen.set([seen.get()[0], seen.get()[1] + 1]);
                }
            }
        }
    }
    prop_assert_eq!(world.hub.len(), world.watches.len());
    for at in 0..world.watches.len() {
        while world.read(at, i64::MAX, 3) {}
        let watch = &world.watches[at];
        prop_assert_eq!(&watch.told, &world.expected(watch, world.published()), "from {}", watch.from);
        let synced = matches!(watch.subscription.lock().position, Position::Synced { .. });
        prop_assert!(synced, "whoever has read everything is synced");
    }
    seen.set([seen.get()[0] + world.histories, seen.get()[1]]);
    Ok(())
}

#[test]
fn every_watch_is_told_everything_once_and_in_order_and_no_progress_comes_before_it() {
    let seen = Cell::new([0; 2]);
    let mut runner = TestRunner::new(ProptestConfig { cases: 600, ..ProptestConfig::default() });
    runner.run(&steps(), |steps| run(&steps, &seen)).expect("every sequence");
    assert!(seen.get().iter().all(|count| *count > 100), "watches fell behind, and progress was reported: {seen:?}");
}

proptest! {
    #[test]
    fn the_index_finds_what_a_look_at_every_watch_finds(
        intervals in prop::collection::vec(interval(), 1..30),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        asked in prop::collection::vec(key(), 1..8),
    ) {
        let mut index = Index::default();
        let mut all = BTreeMap::new();
        for ((key, range_end), id) in intervals.into_iter().zip(0..) {
            let interval = Interval::new(&key, &range_end);
            let selector = Selector { interval, filters: Filters::default(), prev_kv: false };
            let subscription = Subscription::new(id, selector, 0, Position::Synced { from: 1 }, Arc::default());
            index.insert(Arc::clone(&subscription));
            all.insert(id, subscription);
        }
        for which in removed {
            let id = which.index(all.len().max(1) + 3) as u64;
            if let Some(subscription) = all.remove(&id) {
                index.remove(&subscription);
                index.remove(&subscription); // twice does no harm
            }
        }
        prop_assert_eq!(index.len(), all.len());
        prop_assert_eq!(index.all().map(|one| one.id).collect::<BTreeSet<_>>(), all.keys().copied().collect());
        for key in asked {
            let mut found = Vec::new();
            index.matching(&key, |subscription| found.push(subscription.id));
            found.sort_unstable();
            let holds = |subscription: &&Arc<Subscription>| subscription.selector.interval.contains(&key);
            let expected: Vec<u64> = all.values().filter(holds).map(|subscription| subscription.id).collect();
            prop_assert_eq!(found, expected, "{:?}", key);
        }
    }
}
