//! Start-time fair queueing: whose turn it is among flows that want more than there is.
//!
//! Each flow has a tag, the virtual time at which its next piece of work begins. The flow with the smallest tag is served next, and what
//! it gets moves its tag on by the cost, which may be known before or charged as the work is done. A flow that was away begins at the
//! present: it is served at once, and nothing is saved up.
//!
//! Pure: no clock, no threads, no locks. Always holds: as long as several flows wait, none of them is ahead of another by more than the
//! cost of one piece of work of each; flows that do not wait are forgotten once time has passed them.

use std::collections::{BTreeMap, BTreeSet};

/// What waits, by the flow it belongs to.
#[derive(Debug)]
pub struct Queue<T> {
    flows: BTreeMap<u64, Flow<T>>,
    /// Flows that wait, by tag.
    order: BTreeSet<(u64, u64)>,
    /// Flows that do not wait and whose tag lies ahead of the clock.
    resting: BTreeSet<(u64, u64)>,
    /// The tag of the flow that was served last.
    clock: u64,
    /// Counts what came in.
    arrivals: u64,
    len: usize,
}

#[derive(Debug)]
struct Flow<T> {
    tag: u64,
    /// By rank, then in the order they came.
    waiting: BTreeMap<(u64, u64), T>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let (flows, order, resting) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { flows, order, resting, clock: 0, arrivals: 0, len: 0 }
    }
}

impl<T> Queue<T> {
    /// Adds `item` to a flow. Within a flow those of the smallest rank come first.
    pub fn push(&mut self, flow: u64, rank: u64, item: T) {
        let known = self.flows.entry(flow).or_insert_with(|| Flow { tag: self.clock, waiting: BTreeMap::new() });
        if known.waiting.is_empty() {
            self.resting.remove(&(known.tag, flow));
            known.tag = known.tag.max(self.clock);
            self.order.insert((known.tag, flow));
        }
        known.waiting.insert((rank, self.arrivals), item);
        self.arrivals += 1;
        self.len += 1;
    }

    /// Takes what is next, with its flow. What it costs is charged by [`Queue::charge`].
    pub fn pop(&mut self) -> Option<(u64, T)> {
        self.pop_of(|_| true)
    }

    /// The same among the flows that `may` be served now.
    pub fn pop_of(&mut self, may: impl Fn(u64) -> bool) -> Option<(u64, T)> {
        let (tag, flow) = *self.order.iter().find(|(_, flow)| may(*flow))?;
        let waiting = &mut self.flows.get_mut(&flow)?.waiting;
        let (_, item) = waiting.pop_first()?;
        let over = waiting.is_empty();
        self.len -= 1;
        self.clock = self.clock.max(tag);
        if over {
            self.order.remove(&(tag, flow));
            self.resting.insert((tag, flow));
        }
        self.forget();
        Some((flow, item))
    }

    /// Moves a flow on by what it was given.
    pub fn charge(&mut self, flow: u64, cost: u64) {
        let clock = self.clock;
        let known = self.flows.entry(flow).or_insert_with(|| Flow { tag: clock, waiting: BTreeMap::new() });
        let lists = if known.waiting.is_empty() { &mut self.resting } else { &mut self.order };
        lists.remove(&(known.tag, flow));
        // Who was away meanwhile owes nothing for that time, and is owed nothing.
        known.tag = known.tag.max(clock).saturating_add(cost);
        lists.insert((known.tag, flow));
    }

    /// How many of a flow wait.
    pub fn waiting(&self, flow: u64) -> usize {
        self.flows.get(&flow).map_or(0, |flow| flow.waiting.len())
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops flows that would begin at the present anyway.
    fn forget(&mut self) {
        while let Some((tag, flow)) = self.resting.first().copied().filter(|(tag, _)| *tag < self.clock) {
            self.resting.remove(&(tag, flow));
            self.flows.remove(&flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// Serves `count` pieces of the costs that flows always have, and says what each flow got.
    fn serve(queue: &mut Queue<()>, costs: &[(u64, u64)], count: usize) -> BTreeMap<u64, u64> {
        let mut got = BTreeMap::new();
        for _ in 0..count {
            let (flow, ()) = queue.pop().expect("all always wait");
            let cost = costs.iter().find(|(of, _)| *of == flow).expect("a flow").1;
            queue.charge(flow, cost);
            *got.entry(flow).or_default() += cost;
            queue.push(flow, 0, ());
        }
        got
    }

    #[test]
    fn flows_that_always_wait_get_the_same_whatever_their_pieces_cost_and_however_many_wait() {
        let mut queue = Queue::default();
        let costs = [(1, 1), (2, 7), (3, 100)];
        (0..50).for_each(|_| queue.push(3, 0, ()));
        [1, 2].into_iter().for_each(|flow| queue.push(flow, 0, ()));
        let got = serve(&mut queue, &costs, 3000);
        let (least, most) = (got.values().min().expect("some"), got.values().max().expect("some"));
        assert!(most - least <= 2 * 100, "{got:?}");
    }

    #[test]
    fn who_comes_anew_is_served_at_once_and_nothing_is_saved_up() {
        let mut queue = Queue::default();
        (0..10).for_each(|_| queue.push(1, 0, ()));
        for _ in 0..5 {
            assert_eq!(queue.pop(), Some((1, ())));
            queue.charge(1, 1000);
        }
        queue.push(2, 0, ());
        assert_eq!(queue.pop().map(|(flow, ())| flow), Some(2));
        queue.charge(2, 1);
        // Though it had nothing while the other had its 5000, from now on they take turns.
        (0..3).for_each(|_| queue.push(2, 0, ()));
        let mut next = || {
            let flow = queue.pop().expect("they wait").0;
            queue.charge(flow, 1000);
            flow
        };
        let served: Vec<u64> = (0..4).map(|_| next()).collect();
        assert_eq!(served.iter().filter(|flow| **flow == 2).count(), 2, "{served:?}");
    }

    #[test]
    fn who_goes_and_comes_back_pays_what_it_was_given() {
        let mut queue = Queue::default();
        queue.push(1, 0, 'a');
        queue.push(2, 0, 'b');
        assert_eq!(queue.pop(), Some((1, 'a')));
        queue.charge(1, 100);
        queue.push(1, 0, 'c');
        queue.push(2, 0, 'd');
        assert_eq!(
            [queue.pop(), queue.pop(), queue.pop()].map(|one| one.map(|(_, item)| item)),
            [Some('b'), Some('d'), Some('c')]
        );
    }

    #[test]
    fn within_a_flow_rank_comes_first_and_then_the_order() {
        let mut queue = Queue::default();
        for (rank, item) in [(5, 'd'), (0, 'a'), (1, 'c'), (0, 'b')] {
            queue.push(9, rank, item);
        }
        assert_eq!((queue.len(), queue.waiting(9), queue.waiting(8)), (4, 4, 0));
        let order: String = std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect();
        assert_eq!(order, "abcd");
        assert!(queue.is_empty());
    }

    #[test]
    fn who_may_not_be_served_is_passed_over_and_keeps_its_place() {
        let mut queue = Queue::default();
        [1, 2].into_iter().for_each(|flow| queue.push(flow, 0, flow));
        assert_eq!(queue.pop_of(|flow| flow != 1), Some((2, 2)));
        assert_eq!(queue.pop_of(|flow| flow != 1), None);
        assert_eq!(queue.pop(), Some((1, 1)));
    }

    #[test]
    fn flows_that_went_are_forgotten() {
        let mut queue = Queue::default();
        for flow in 0..10_000 {
            queue.push(flow, 0, ());
            queue.push(u64::MAX, 0, ());
            for _ in 0..2 {
                let (flow, ()) = queue.pop().expect("two");
                queue.charge(flow, 1 + rng::u64() % 3);
            }
            assert!(queue.flows.len() < 20, "{} are remembered", queue.flows.len());
        }
    }
}
