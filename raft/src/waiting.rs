//! What waits to be proposed and in which order it is taken: pure, [`crate::propose`] does the rest.
//!
//! Ahead of all comes what keeps the cluster going ([`Lane::Urgent`]), then the rest by flows, each the same number of bytes, so that one who
//! floods delays itself.
//!
//! Always holds: commands and bytes that wait or are in flight are bounded ([`Weight`]); a batch is within its bounds; while all that waits
//! fits one batch nobody is sorted, and it keeps the order in which it came.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use pintle_base::fair;
use tokio::sync::oneshot;

use crate::limits;
use crate::propose::ProposeError;

/// Where a command waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Ahead of all flows, with at most half of a batch while these wait: renewals of leases, and what members say themselves.
    Urgent,
    /// With the others of this number, who have the same share as those of any other.
    Flow(u64),
}

pub(crate) struct Proposal {
    pub command: Bytes,
    pub lane: Lane,
    pub reply: oneshot::Sender<Result<Bytes, ProposeError>>,
    pub _weight: Weight,
}

/// What waits and is in flight.
#[derive(Default)]
pub(crate) struct Load {
    commands: AtomicUsize,
    bytes: AtomicUsize,
}

/// Counts a proposal as long as it lives.
pub(crate) struct Weight {
    load: Arc<Load>,
    bytes: usize,
}

impl Weight {
    /// Refused if there is too much already. What is urgent has room of its own.
    pub fn new(load: &Arc<Load>, bytes: usize, lane: Lane) -> Result<Self, ProposeError> {
        let weight = Self { load: Arc::clone(load), bytes };
        let commands = load.commands.fetch_add(1, Ordering::Relaxed);
        let before = load.bytes.fetch_add(bytes, Ordering::Relaxed);
        let most = match lane {
            Lane::Urgent => limits::PROPOSALS_WAITING + limits::URGENT_WAITING,
            Lane::Flow(_) => limits::PROPOSALS_WAITING,
        };
        match commands >= most || (before > limits::PROPOSAL_BYTES && lane != Lane::Urgent) {
            true => Err(ProposeError::Overloaded),
            false => Ok(weight),
        }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.load.commands.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What has come and is in no batch yet.
#[derive(Default)]
pub(crate) struct Waiting {
    /// In the order it came; all of it fits one batch.
    fresh: Vec<Proposal>,
    fresh_bytes: usize,
    /// Sorted, once it was more than that.
    urgent: VecDeque<Proposal>,
    flows: fair::Queue<Proposal>,
    /// Too large for the batch before.
    carried: Option<Proposal>,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && !self.is_sorted()
    }

    fn is_sorted(&self) -> bool {
        self.carried.is_some() || !self.urgent.is_empty() || !self.flows.is_empty()
    }

    pub fn add(&mut self, proposal: Proposal) {
        if proposal.reply.is_closed() {
            return;
        }
        self.fresh_bytes += proposal.command.len();
        self.fresh.push(proposal);
        let fits = self.fresh.len() <= limits::BATCH_COMMANDS && self.fresh_bytes <= limits::BATCH_BYTES;
        if self.is_sorted() || !(fits || self.fresh.len() == 1) {
            self.sort();
        }
    }

    fn sort(&mut self) {
        self.fresh_bytes = 0;
        for proposal in self.fresh.drain(..) {
            match proposal.lane {
                Lane::Urgent => self.urgent.push_back(proposal),
                // One alone does not take all the room there is from the others.
                Lane::Flow(flow) if self.flows.waiting(flow) >= limits::PROPOSALS_OF_FLOW => {
                    let _ = proposal.reply.send(Err(ProposeError::Overloaded)); // nobody may listen any more
                }
                Lane::Flow(flow) => self.flows.push(flow, 0, proposal),
            }
        }
    }

    /// Takes a batch, within its bounds.
    pub fn batch(&mut self) -> Vec<Proposal> {
        if !self.is_sorted() {
            self.fresh_bytes = 0;
            return std::mem::take(&mut self.fresh);
        }
        let (mut batch, mut bytes, mut urgent) = (Vec::new(), 0, 0);
        while batch.len() < limits::BATCH_COMMANDS {
            let others_first = urgent >= limits::BATCH_COMMANDS / 2 && !self.flows.is_empty();
            let Some(next) = self.carried.take().or_else(|| self.next(others_first)) else { break };
            urgent += usize::from(next.lane == Lane::Urgent);
            if next.reply.is_closed() {
                continue;
            }
            bytes += next.command.len();
            if bytes > limits::BATCH_BYTES && !batch.is_empty() {
                self.carried = Some(next);
                break;
            }
            batch.push(next);
        }
        batch
    }

    fn next(&mut self, others_first: bool) -> Option<Proposal> {
        if !others_first && !self.urgent.is_empty() {
            return self.urgent.pop_front();
        }
        let (flow, next) = self.flows.pop()?;
        self.flows.charge(flow, (next.command.len() + limits::PROPOSAL_COST) as u64);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Bytes {
        Bytes::from(vec![b'x'; len])
    }

    /// What waits, as `count` commands of `len` bytes in each lane; the lanes of the batches made of it, as runs.
    fn batches(waiting: &[(Lane, usize, usize)]) -> Vec<Vec<(Lane, usize)>> {
        let (load, mut queue, mut listeners) = (Arc::new(Load::default()), Waiting::default(), Vec::new());
        for (lane, count, len) in waiting {
            for _ in 0..*count {
                let (reply, listener) = oneshot::channel();
                listeners.push(listener);
                let _weight = Weight::new(&load, *len, *lane).expect("room");
                queue.add(Proposal { command: bytes(*len), lane: *lane, reply, _weight });
            }
        }
        let mut batches = Vec::new();
        while !queue.is_empty() {
            let batch = queue.batch();
            assert!(batch.len() <= limits::BATCH_COMMANDS);
            let total: usize = batch.iter().map(|one| one.command.len()).sum();
            assert!(total <= limits::BATCH_BYTES || batch.len() == 1);
            let mut counts: Vec<(Lane, usize)> = Vec::new();
            for one in batch {
                match counts.iter_mut().find(|(lane, _)| *lane == one.lane) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((one.lane, 1)),
                }
            }
            batches.push(counts);
        }
        batches
    }

    #[test]
    fn what_fits_is_one_batch_in_the_order_it_came() {
        let waiting = [(Lane::Flow(1), 3, 10), (Lane::Urgent, 1, 10), (Lane::Flow(2), 1, limits::BATCH_BYTES - 40)];
        assert_eq!(batches(&waiting), [[(Lane::Flow(1), 3), (Lane::Urgent, 1), (Lane::Flow(2), 1)]]);
        assert_eq!(batches(&[(Lane::Flow(1), 1, limits::BATCH_BYTES + 1)]), [[(Lane::Flow(1), 1)]]);
    }

    #[test]
    fn a_flood_delays_itself_and_nothing_urgent() {
        let flood = limits::BATCH_BYTES / 16;
        let made = batches(&[(Lane::Flow(1), 100, flood), (Lane::Flow(2), 3, 100), (Lane::Urgent, 2, 10)]);
        assert_eq!(made[0][0], (Lane::Urgent, 2));
        assert!(made[0].contains(&(Lane::Flow(2), 3)), "{:?}", made[0]);
        assert!(made.len() >= 7, "the flood takes its time: {made:?}");
    }

    #[test]
    fn what_is_urgent_leaves_half_of_a_batch_to_the_rest() {
        let made = batches(&[(Lane::Urgent, 3 * limits::BATCH_COMMANDS, 10), (Lane::Flow(2), 5, 10)]);
        assert_eq!(made[0], [(Lane::Urgent, limits::BATCH_COMMANDS - 5), (Lane::Flow(2), 5)]);
    }

    #[test]
    fn too_much_is_refused_and_what_is_urgent_has_room_of_its_own() {
        let load = Arc::new(Load::default());
        let one = |lane| Weight::new(&load, 1, lane);
        let held: Vec<_> = (0..limits::PROPOSALS_WAITING).map(|_| one(Lane::Flow(1)).expect("room")).collect();
        assert_eq!(one(Lane::Flow(2)).err(), Some(ProposeError::Overloaded));
        assert!(one(Lane::Urgent).is_ok());
        drop(held);
        assert!(one(Lane::Flow(2)).is_ok());
        assert_eq!((load.commands.load(Ordering::Relaxed), load.bytes.load(Ordering::Relaxed)), (0, 0));
        let _all = Weight::new(&load, limits::PROPOSAL_BYTES + 1, Lane::Flow(1)).expect("the first");
        assert_eq!((one(Lane::Flow(1)).err(), one(Lane::Urgent).is_ok()), (Some(ProposeError::Overloaded), true));
    }
}
