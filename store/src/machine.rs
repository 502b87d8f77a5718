//! The replicated state machine: turns log entries into plans and writes each plan at once (I5).
//!
//! Runs on the one thread Raft applies on. An error from here is fatal: the state would no longer be a function of the log (I4).
//! Order of every apply: write, head index, lease times, published revision, watches. Nobody hears of what is not written (I8).

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pintle_proto::store_v1::{Alarm, LeaseRecord, StateRecord};
use pintle_raft::Flusher;
use rocksdb::WriteBatch;

use crate::apply::{self, Plan};
use crate::engine::{EXPECTED_PREFIX, Generation, KV, LEASE, MEMBER_PREFIX, MEMBERSHIP_KEY, META, REV, STATE_KEY};
use crate::mvcc::head::HeadIndex;
use crate::mvcc::key::{self, Interval};
use crate::mvcc::record::{Version, encode_change, encode_checked};
use crate::mvcc::view::{Source, View, Visit, attachment_key, lease_key};
use crate::store::Shared;
use crate::watch::Revision;
use crate::{limits, metrics, quota};

/// What is handed to Raft. Exactly one exists per [`crate::Store`].
pub struct StoreMachine {
    shared: Arc<Shared>,
    heads: RefCell<HeadIndex>,
}

/// Place of an entry in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub term: u64,
    pub index: u64,
}

/// The stored state with the head index in front of it.
struct Base<'a> {
    view: View<'a>,
    heads: &'a RefCell<HeadIndex>,
}

impl StoreMachine {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, heads: RefCell::new(HeadIndex::new(limits::HEAD_INDEX_BYTES)) }
    }

    /// The last applied entry and the membership recorded with the data.
    pub(crate) fn applied_place(&self) -> io::Result<(Option<Place>, Bytes)> {
        let generation = self.shared.engine.current();
        let view = generation.view()?;
        let place =
            view.state.has_applied.then_some(Place { term: view.state.applied_term, index: view.state.applied_index });
        let membership = view.meta(MEMBERSHIP_KEY)?.map(Bytes::from).unwrap_or_default();
        Ok((place, membership))
    }

    /// Applies the commands of one entry; one reply per command.
    pub(crate) fn apply_commands(&mut self, place: Place, commands: &[Bytes]) -> io::Result<Vec<Bytes>> {
        let generation = self.shared.engine.current();
        let plan = {
            let base = Base { view: generation.view()?, heads: &self.heads };
            apply::apply(&base, self.shared.known(), place.term, commands)?
        };
        let (batch, began) = (batch(&generation, &plan, place, None)?, metrics::begin());
        self.shared.census.tell(&plan.changes);
        generation.write(batch)?;
        self.shared.metrics.wrote(began);
        Ok(self.publish(plan))
    }

    /// Records an entry that changes no data, and the membership if it carries one.
    pub(crate) fn apply_other(&mut self, place: Place, membership: Option<&Bytes>) -> io::Result<()> {
        let generation = self.shared.engine.current();
        let plan = {
            let base = Base { view: generation.view()?, heads: &self.heads };
            apply::apply(&base, self.shared.known(), place.term, &[])?
        };
        generation.write(batch(&generation, &plan, place, membership)?)?;
        self.publish(plan);
        Ok(())
    }

    pub(crate) fn flush_state(&self) -> io::Result<()> {
        self.shared.engine.current().flush()
    }

    pub(crate) fn flusher_of_state(&self) -> Flusher {
        // Whoever has it may have it longer than the state is open.
        let shared = Arc::downgrade(&self.shared);
        Arc::new(move || {
            if let Some(shared) = shared.upgrade()
                && let Err(error) = shared.engine.current().flush()
            {
                tracing::warn!(%error, "the state was not flushed ahead of a checkpoint");
            }
        })
    }

    pub(crate) fn checkpoint_state(&self, dir: &Path) -> io::Result<()> {
        self.shared.engine.current().checkpoint(dir)
    }

    /// Replaces the whole state; watches go on from their positions in the new one.
    pub(crate) fn install_state(&mut self, dir: &Path) -> io::Result<()> {
        self.shared.census.reset(i64::MAX); // nobody may count by the old state in the new one
        self.shared.engine.install(dir)?;
        self.heads.borrow_mut().clear();
        self.shared.reload()
    }

    fn publish(&mut self, mut plan: Plan) -> Vec<Bytes> {
        let mut heads = self.heads.borrow_mut();
        let counters = &self.shared.metrics.counters;
        counters.events.inc_by(plan.changes.len() as u64);
        let (mut puts, mut put_bytes) = (0, 0);
        for change in &plan.changes {
            if let Some(live) = &change.version.live {
                puts += 1;
                put_bytes += change.key.len() + live.value.len();
            }
            heads.set(&change.key, &change.version);
        }
        counters.puts.inc_by(puts);
        counters.put_bytes.inc_by(put_bytes as u64);
        counters.deletes.inc_by(plan.changes.len() as u64 - puts);
        counters.leases_revoked.inc_by(plan.leases.values().filter(|record| record.is_none()).count() as u64);
        drop(heads);
        self.shared.top.wrote(&plan.changes);
        let revisions = Revision::group(std::mem::take(&mut plan.changes));
        self.shared.applied(&plan, revisions);
        plan.replies
    }
}

/// One write for everything an entry does, its place included.
fn batch(generation: &Generation, plan: &Plan, place: Place, membership: Option<&Bytes>) -> io::Result<WriteBatch> {
    let (kv, rev, lease, meta) =
        (generation.family(KV)?, generation.family(REV)?, generation.family(LEASE)?, generation.family(META)?);
    let mut batch = WriteBatch::default();
    for change in &plan.changes {
        let version = &change.version;
        batch.put_cf(kv, key::version(&change.key, version.modified), version.encode());
        batch.put_cf(rev, key::revision(version.modified, version.sub), encode_change(&change.key, version));
    }
    for (id, record) in &plan.leases {
        match record {
            Some(record) => batch.put_cf(lease, lease_key(*id), encode_checked(record)),
            None => batch.delete_cf(lease, lease_key(*id)),
        }
    }
    for ((id, key), attached) in &plan.attached {
        match attached {
            true => batch.put_cf(lease, attachment_key(*id, key), []),
            false => batch.delete_cf(lease, attachment_key(*id, key)),
        }
    }
    let state = StateRecord {
        revision: plan.revision,
        compact_revision: plan.compacted,
        applied_term: place.term,
        applied_index: place.index,
        has_applied: true,
        lease_stamp: plan.lease_stamp,
        alarms: plan.alarms.clone(),
    };
    batch.put_cf(meta, STATE_KEY, encode_checked(&state));
    if let Some(membership) = membership {
        batch.put_cf(meta, MEMBERSHIP_KEY, membership);
    }
    for id in &plan.expected {
        batch.put_cf(meta, [EXPECTED_PREFIX, &id.to_be_bytes()].concat(), []);
    }
    for (key, row) in &plan.auth_rows {
        match row {
            Some(row) => batch.put_cf(meta, key, row),
            None => batch.delete_cf(meta, key),
        }
    }
    for (key, row) in quota::rows(&plan.quotas) {
        match row {
            Some(row) => batch.put_cf(meta, key, row),
            None => batch.delete_cf(meta, key),
        }
    }
    for member in &plan.published {
        batch.put_cf(meta, [MEMBER_PREFIX, &member.id.to_be_bytes()].concat(), encode_checked(member));
    }
    Ok(batch)
}

impl Source for Base<'_> {
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
        if let Some(version) = self.heads.borrow_mut().get(key) {
            return Ok(Some(version));
        }
        let version = self.view.newest(key)?;
        if let Some(version) = &version {
            self.heads.borrow_mut().set(key, version);
        }
        Ok(version)
    }

    fn scan(&self, interval: &Interval, at: i64, visit: &mut Visit<'_>) -> io::Result<()> {
        // Comparisons and reads of one key as it is now are what transactions mostly do.
        if let Interval::Key(key) = interval
            && at >= self.revision()
        {
            if let Some(version) = self.newest(key)?.filter(|version| version.live.is_some()) {
                let _ = visit(crate::mvcc::record::Row::of(key, &version));
            }
            return Ok(());
        }
        self.view.scan(interval, at, visit)
    }

    fn lease(&self, id: i64) -> io::Result<Option<LeaseRecord>> {
        self.view.lease(id)
    }

    fn lease_keys(&self, id: i64) -> io::Result<Vec<Bytes>> {
        self.view.lease_keys(id)
    }
}
