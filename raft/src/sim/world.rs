//! What a simulation sees from outside: who led, what was applied, and what went wrong.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::machine::{Committed, LogId, Payload};

#[derive(Default)]
pub(super) struct World(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// By term.
    leaders: BTreeMap<u64, u64>,
    /// By index: the first member that applied it, its term, and what it held.
    applied: BTreeMap<u64, (u64, LogId, Payload)>,
    violations: Vec<String>,
    numbers: u64,
}

impl World {
    /// A number that was not given before.
    pub fn next_number(&self) -> u64 {
        let mut inner = self.0.lock();
        inner.numbers += 1;
        inner.numbers
    }

    /// Something that must never be. Not a panic: tasks swallow those.
    pub fn violated(&self, what: String) {
        self.0.lock().violations.push(what);
    }

    pub fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }

    pub fn terms(&self) -> usize {
        self.0.lock().leaders.len()
    }

    /// A member calls itself the leader of a term: nobody else ever does.
    pub fn leads(&self, id: u64, term: u64) {
        let other = *self.0.lock().leaders.entry(term).or_insert(id);
        if other != id {
            self.violated(format!("members {other} and {id} both lead in term {term}"));
        }
    }

    /// A member applies an entry: all apply the same one at that index.
    pub fn applied(&self, id: u64, entry: &Committed) {
        let mut inner = self.0.lock();
        let index = entry.log_id.index;
        let Some((first, log_id, payload)) = inner.applied.get(&index) else {
            inner.applied.insert(index, (id, entry.log_id, entry.payload.clone()));
            return;
        };
        if (*log_id, payload) != (entry.log_id, &entry.payload) {
            let what = format!("member {id} applied {:?}, member {first} had applied {log_id}: {payload:?}", entry);
            inner.violations.push(what);
        }
    }
}
