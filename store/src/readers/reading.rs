//! A consistent view with an account of what is read from it.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;
use pintle_proto::store_v1::{Alarm, LeaseRecord};

use super::Turn;
use crate::mvcc::key::Interval;
use crate::mvcc::record::Version;
use crate::mvcc::view::{Source, View, Visit};

/// The stored state as a read sees it: each row that is visited counts.
pub(crate) struct Reading<'a> {
    view: View<'a>,
    /// `None` for reads so short that nobody waits for them.
    turn: Option<RefCell<Turn>>,
    broken_off: Cell<bool>,
}

impl<'a> Reading<'a> {
    pub fn new(view: View<'a>, turn: Option<Turn>) -> Self {
        Self { view, turn: turn.map(RefCell::new), broken_off: Cell::new(false) }
    }

    pub fn view(&self) -> &View<'a> {
        &self.view
    }

    /// Accounts for work on something of `bytes`. After a `Break` whatever the read comes to is thrown away.
    pub fn spend(&self, bytes: usize) -> ControlFlow<()> {
        let Some(turn) = &self.turn else { return ControlFlow::Continue(()) };
        let flow = turn.borrow_mut().spend(bytes);
        self.broken_off.set(self.broken_off.get() || flow.is_break());
        flow
    }

    /// Whether the read has to begin anew.
    pub fn is_broken_off(&self) -> bool {
        self.broken_off.get()
    }
}

impl Source for Reading<'_> {
    fn revision(&self) -> i64 {
        self.view.revision()
    }

    fn compacted(&self) -> i64 {
        self.view.compacted()
    }

    fn lease_stamp(&self) -> u64 {
        self.view.lease_stamp()
    }

    fn alarms(&self) -> &[Alarm] {
        self.view.alarms()
    }

    fn newest(&self, key: &[u8]) -> io::Result<Option<Version>> {
        self.view.newest(key)
    }

    fn scan(&self, interval: &Interval, at: i64, visit: &mut Visit<'_>) -> io::Result<()> {
        self.view.scan(interval, at, &mut |row| {
            let bytes = row.key.len() + row.value.len();
            visit(row)?;
            self.spend(bytes)
        })
    }

    fn lease(&self, id: i64) -> io::Result<Option<LeaseRecord>> {
        self.view.lease(id)
    }

    fn lease_keys(&self, id: i64) -> io::Result<Vec<Bytes>> {
        self.view.lease_keys(id)
    }
}
