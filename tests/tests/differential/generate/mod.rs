//! Random steps from a seed: what is done, and how often, stands in [`MIX`].
//!
//! Arguments aim at what is there and just beside it: revisions around the compacted and the current one, compares that are just
//! true or just false, leases and watches that live or have just ended, and requests that must be refused.

mod access;
mod kube;
mod lease;
mod owner;
mod read;
mod txn;
mod watch;
mod write;

use std::collections::VecDeque;

use bytes::Bytes;

use super::step::{Call, Step};
use super::world::World;

/// The user that may do everything.
pub const ROOT: &str = "root";

/// How often each kind of step comes, in parts of the whole.
const MIX: &[(u64, fn(&mut Generator, &World) -> Step)] = &[
    (2500, |generator, world| Step::Call(Call::Range(generator.range(world)))),
    (2000, |generator, world| Step::Call(Call::Put(generator.put(world)))),
    (800, |generator, world| Step::Call(Call::Delete(generator.delete(world)))),
    (2500, |generator, world| Step::Call(Call::Txn(generator.txn(world)))),
    (1000, Generator::kube),
    (100, Generator::compact),
    (150, Generator::hash),
    (200, Generator::grant),
    (120, Generator::revoke),
    (200, Generator::time_to_live),
    (100, Generator::keep_alive),
    (60, |_, _| Step::Call(Call::Leases(Default::default()))),
    (250, Generator::watch),
    (160, Generator::cancel),
    (80, Generator::progress),
    (80, |_, _| Step::Sync),
    (200, Generator::owner),
    (60, Generator::maintenance),
    (15, Generator::oversized),
    (3, Generator::fragments),
];

/// Beside [`MIX`] when users and roles are wanted too.
const ACCESS: (u64, fn(&mut Generator, &World) -> Step) = (1500, Generator::access);

pub struct Generator {
    random: Random,
    mix: Vec<(u64, fn(&mut Generator, &World) -> Step)>,
    /// What must follow the last step.
    next: VecDeque<Step>,
    auth: bool,
}

impl Generator {
    pub fn new(seed: u64, auth: bool) -> Self {
        let mix = if auth { [MIX, &[ACCESS]].concat() } else { MIX.to_vec() };
        Self { random: Random(seed), mix, next: VecDeque::new(), auth }
    }

    pub fn next(&mut self, world: &World) -> Step {
        match self.next.pop_front() {
            Some(Step::Call(call)) if self.auth => return Step::CallAs(ROOT.to_owned(), call),
            Some(step) => return step,
            None => (),
        }
        let whole: u64 = self.mix.iter().map(|(part, _)| part).sum();
        let mut at = self.random.below(whole);
        let kind = self.mix.iter().find(|(part, _)| match at.checked_sub(*part) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        let step = (kind.expect("it is within the whole").1)(self, world);
        match step {
            Step::Call(call) if self.auth => Step::CallAs(self.user(), call),
            other => other,
        }
    }

    /// A revision to read or watch at: mostly one that there is.
    fn revision(&mut self, world: &World) -> i64 {
        let oldest = world.compacted.max(1);
        match self.random.below(20) {
            0..10 => 0,
            10..14 => self.random.between(oldest, world.revision),
            14..16 => self.random.between((world.revision - 20).max(oldest), world.revision),
            16 => world.compacted,
            17 => world.revision,
            18 => self.random.between(world.compacted - 2, world.compacted + 2),
            _ => self.random.between(world.revision - 1, world.revision + 2),
        }
    }

    fn key(&mut self) -> Bytes {
        match self.random.below(40) {
            0 => Bytes::from_static(b"\0"),
            1 => Bytes::from_static(b"\xff\xff"),
            2 => Bytes::from_static(b"k1\0"),
            3..8 => format!("dir/{}/{}", self.random.below(3), self.random.below(5)).into(),
            8..12 => self.kube_key(),
            _ => format!("k{:02}", self.random.below(24)).into(),
        }
    }

    /// An interval by its key and end, as requests carry it.
    fn interval(&mut self) -> (Bytes, Bytes) {
        let (key, end) = self.any_interval();
        let end = self.end_of(&key, end);
        (key, end)
    }

    /// The end itself, unless the interval would be empty and callers have to be allowed it.
    fn end_of(&self, key: &Bytes, end: Bytes) -> Bytes {
        let empty = !end.is_empty() && end.as_ref() != b"\0" && end <= *key;
        if self.auth && empty { Bytes::new() } else { end }
    }

    fn any_interval(&mut self) -> (Bytes, Bytes) {
        let key = self.key();
        let end = match self.random.below(16) {
            0..5 => Bytes::new(),
            5..8 => self.key(),
            8 => return ("dir/".into(), "dir0".into()),
            9 => return ("k".into(), "l".into()),
            10 => return ("/registry/pods/".into(), "/registry/pods0".into()),
            11 => Bytes::from_static(b"\0"),
            12 => return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            13 => key.clone(),
            14 => [&key[..], b"\0"].concat().into(),
            _ => {
                let other = self.key();
                return if other < key { (other, key) } else { (key, other) };
            }
        };
        (key, end)
    }

    fn value(&mut self) -> Bytes {
        match self.random.below(20) {
            0 => Bytes::new(),
            1 => vec![b'v'; usize::try_from(self.random.below(4000)).expect("small")].into(),
            2..10 => format!("{}", self.random.below(5)).into(),
            _ => format!("value-{}", self.random.u64() % 100_000).into(),
        }
    }

    /// True once in `times`.
    fn once_in(&mut self, times: u64) -> bool {
        self.random.below(times) == 0
    }
}

/// A generator of numbers that stays as it is, so that a seed is good for ever (splitmix64).
struct Random(u64);

impl Random {
    fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In `0..bound`; 0 when `bound` is 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.u64().checked_rem(bound).unwrap_or(0)
    }

    /// In `low..=high`; `low` when there is nothing between.
    fn between(&mut self, low: i64, high: i64) -> i64 {
        let span = u64::try_from(high.saturating_sub(low)).unwrap_or(0);
        low + i64::try_from(self.below(span + 1)).unwrap_or(0)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).expect("an index")]
    }
}
