//! Looks at the whole data directory of a member that does not run: every checksum, whether log, snapshots and state are pieces
//! of one history, and whether what the state says fits together. Nothing is changed.
//!
//! What must hold of the state: each change in `rev` has its version in `kv`, and the other way round; of a key, versions count
//! up from its creation, gaplessly above the compact revision; nothing is newer than the revision; a key is attached to the lease
//! that its newest version names, if there is that lease, and to no other; users, members and alarms can be read.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use pintle_base::dbfiles;
use pintle_proto::store_v1::LeaseRecord;
use pintle_raft::LogId;
use pintle_raft::inspect::{Finding, Inspection, inspect, unfinished};
use pintle_raft::offline::OfflineError;
use rocksdb::ReadOptions;

use crate::engine::{EngineOptions, FAMILIES, Generation, LEASE, MEMBERSHIP_KEY, SCRUBBED_KEY, current_dir};
use crate::limits;
use crate::mvcc::hash;
use crate::mvcc::key;
use crate::mvcc::record::{Row, corrupt, decode_change, encoded_size};
use crate::mvcc::view::{Source, View, parse_attachment};
use crate::snapshot::{RAFT_DIR, STATE_DIR};

/// What was found, and what was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub cluster_id: u64,
    pub member_id: u64,
    /// Members of the cluster, this one included, as far as it knows.
    pub members: Vec<u64>,
    pub term: u64,
    /// Of the last log entry, and of the last one the state has on disk: the rest is applied again at the next start.
    pub last_index: u64,
    pub applied_index: u64,
    pub log_entries: u64,
    pub revision: i64,
    pub compact_revision: i64,
    /// As `HashKV` would answer at `revision`; absent if the state could not be read.
    pub hash: Option<u32>,
    /// Keys that live, and changes that are kept.
    pub keys: u64,
    pub changes: u64,
    pub leases: u64,
    /// Snapshots in the data directory.
    pub snapshots: u64,
    /// Bytes of log files and of rows, with those of the snapshots.
    pub bytes: u64,
    pub findings: Vec<Finding>,
}

impl Verified {
    /// Whether nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.harmless)
    }
}

/// Hears what is being looked at, and how much of it has been.
pub type Tell<'a> = dyn FnMut(&'static str, u64) + 'a;

/// Looks at `data_dir`. Nobody may be running on it. Blocks.
///
/// # Errors
/// There is no member. Damage is no error, but a finding.
pub fn verify(data_dir: &Path, tell: &mut Tell<'_>) -> Result<Verified, OfflineError> {
    tell("log entries", 0);
    let (raft_dir, state_dir) = (data_dir.join(RAFT_DIR), data_dir.join(STATE_DIR));
    let mut log = match inspect(&raft_dir) {
        Err(OfflineError::NoMember { .. }) if state_dir.exists() => {
            let what = format!("{}: identity and log are missing, although there is a state", raft_dir.display());
            return Ok(Verified { findings: vec![Finding::damage(what)], ..Verified::default() });
        }
        inspected => inspected?,
    };
    let mut found = Verified {
        cluster_id: log.cluster_id,
        member_id: log.node_id,
        term: log.term,
        last_index: log.last.map_or(0, |id| id.index),
        log_entries: log.entries,
        snapshots: log.snapshots.len() as u64,
        bytes: log.bytes,
        findings: std::mem::take(&mut log.findings),
        ..Verified::default()
    };
    let membership = look_at_state(&state_dir, &log, &mut found, tell);
    found.members = log.members(&membership);
    for (id, files) in &log.snapshots {
        if let Err(error) = look_at_snapshot(*id, files, &mut found.bytes, tell) {
            found.findings.push(Finding::damage(format!("the snapshot {}: {error}", files.display())));
        }
    }
    Ok(found)
}

/// Answers the membership recorded with the state.
fn look_at_state(root: &Path, log: &Inspection, found: &mut Verified, tell: &mut Tell<'_>) -> Bytes {
    let damage = |error: &io::Error, file: &Path| Finding::damage(format!("{}: {error}", file.display()));
    let dir = match current_dir(root) {
        Ok(Some((_, dir))) if dir.exists() => dir,
        Ok(_) => {
            let fits = log.fits(None, &Bytes::new());
            if fits.is_empty() && log.last.is_some() {
                let what = "there is no state; the next start makes it again from snapshot and log";
                found.findings.push(Finding::harmless(format!("{}: {what}", root.display())));
            }
            found.findings.extend(fits);
            return Bytes::new();
        }
        Err(error) => {
            found.findings.push(damage(&error, root));
            return Bytes::new();
        }
    };
    let opened = Generation::inspect(&dir, &EngineOptions::default());
    let read = opened.and_then(|generation| read_everything(&generation, tell).map(|bytes| (generation, bytes)));
    let generation = match read {
        Ok((generation, bytes)) => {
            found.bytes += bytes;
            generation
        }
        Err(error) => {
            found.findings.push(damage(&error, &dir));
            return Bytes::new();
        }
    };
    if let Ok(Some(files)) = dbfiles::check(&dir) {
        found.findings.extend(files.unfinished.iter().map(unfinished));
    }
    let checked = Check::begin(&generation, &dir).and_then(|check| check.run(found, tell));
    let (applied, membership) = match checked {
        Ok(position) => position,
        Err(error) => {
            found.findings.push(damage(&error, &dir));
            return Bytes::new();
        }
    };
    found.applied_index = applied.map_or(0, |applied| applied.index);
    found.findings.extend(log.fits(applied, &membership));
    membership
}

/// Reads every block of every table that holds a row, and compares it with its checksum. Answers the bytes of all rows.
fn read_everything(generation: &Generation, tell: &mut Tell<'_>) -> io::Result<u64> {
    let (mut rows, mut bytes) = (0, 0);
    for name in FAMILIES {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.set_verify_checksums(true);
        options.fill_cache(false);
        options.set_readahead_size(limits::VERIFY_READ_AHEAD);
        let mut iterator = generation.db().raw_iterator_cf_opt(generation.family(name)?, options);
        iterator.seek_to_first();
        while let Some((key, value)) = iterator.item() {
            (rows, bytes) = (rows + 1, bytes + (key.len() + value.len()) as u64);
            if rows % limits::VERIFY_TELL == 0 {
                tell("rows with their checksums", rows);
            }
            iterator.next();
        }
        iterator.status().map_err(io::Error::other)?;
    }
    Ok(bytes)
}

/// A snapshot is a state like any other, and ends where its name says.
fn look_at_snapshot(id: LogId, files: &Path, bytes: &mut u64, tell: &mut Tell<'_>) -> io::Result<()> {
    let generation = Generation::inspect(files, &EngineOptions::default())?;
    *bytes += read_everything(&generation, tell)?;
    let state = generation.state()?;
    let ends = LogId { term: state.applied_term, index: state.applied_index };
    if !state.has_applied || ends != id {
        return Err(io::Error::other(format!("it says that it ends with entry {id}, but its state ends with {ends}")));
    }
    Ok(())
}

/// What of the state must hold.
struct Check<'a> {
    view: Rc<View<'a>>,
    generation: &'a Generation,
    dir: &'a Path,
    findings: Vec<Finding>,
}

/// A version as the one before it in time is compared with it.
#[derive(Clone, Copy)]
struct Newer {
    modified: i64,
    live: bool,
    created: i64,
    version: i64,
}

impl<'a> Check<'a> {
    fn begin(generation: &'a Generation, dir: &'a Path) -> io::Result<Self> {
        Ok(Self { view: Rc::new(generation.view()?), generation, dir, findings: Vec::new() })
    }

    /// Notes what does not fit, up to a bound: the rest is more of the same.
    fn say(&mut self, what: impl FnOnce() -> String) {
        if self.findings.len() < limits::VERIFY_FINDINGS {
            self.findings.push(Finding::damage(format!("{}: {}", self.dir.display(), what())));
        }
    }

    /// Answers the last applied entry and the membership that are recorded.
    fn run(mut self, found: &mut Verified, tell: &mut Tell<'_>) -> io::Result<(Option<LogId>, Bytes)> {
        let state = self.view.state.clone();
        (found.revision, found.compact_revision) = (state.revision, state.compact_revision);
        self.counters()?;
        found.changes = self.changes(tell)?;
        self.view.quotas()?;
        let leases: BTreeMap<i64, LeaseRecord> = self.view.leases()?.into_iter().collect();
        found.leases = leases.len() as u64;
        let (versions, keys, leased) = self.versions(&leases, tell)?;
        found.keys = keys;
        if versions != found.changes {
            let changes = found.changes;
            self.say(|| format!("it holds {versions} versions of keys, but {changes} changes"));
        }
        self.leases(&leases, leased)?;
        tell("hash", 0);
        found.hash = Some(hash::hash_kv(&self.view, state.revision, |_| ControlFlow::Continue(()))?);
        let membership = self.view.meta(MEMBERSHIP_KEY)?.map(Bytes::from).unwrap_or_default();
        found.findings.append(&mut self.findings);
        let applied = LogId { term: state.applied_term, index: state.applied_index };
        Ok((state.has_applied.then_some(applied), membership))
    }

    fn counters(&mut self) -> io::Result<()> {
        let (revision, compacted) = (self.view.revision(), self.view.compacted());
        if revision < 1 || !(0..=revision).contains(&compacted) {
            self.say(|| format!("revision {revision} and compact revision {compacted} cannot be"));
        }
        if let Some(raw) = self.view.meta(SCRUBBED_KEY)? {
            let scrubbed = raw.try_into().map(i64::from_be_bytes).map_err(|_| corrupt("scrub progress"))?;
            if scrubbed > compacted {
                self.say(|| format!("history was removed up to {scrubbed}, but compacted only up to {compacted}"));
            }
        }
        // Each is read as the next start reads it.
        self.view.auth()?;
        self.view.members()?;
        self.view.expected_voters()?;
        Ok(())
    }

    /// Each change has its version. Answers how many there are.
    fn changes(&mut self, tell: &mut Tell<'_>) -> io::Result<u64> {
        let mut problems = Vec::new();
        let (mut count, mut last) = (0, (0, -1));
        let mut iterator = self.view.changes(0)?;
        while let Some((raw, value)) = iterator.item() {
            let (main, sub) = key::parse_revision(raw).ok_or_else(|| corrupt("revision key"))?;
            let change = decode_change(value)?;
            let version = self.view.version(change.key, main)?;
            let fits = version.as_ref().is_some_and(|version| {
                let sized = change.size.is_none() || change.size == encoded_size(change.key, version);
                version.sub == sub && version.live.is_none() == change.deleted && sized
            });
            let follows = if main == last.0 { sub == last.1 + 1 } else { sub == 0 };
            if problems.len() < limits::VERIFY_FINDINGS {
                if !fits {
                    problems.push(format!("change {main}.{sub} has no version of its key that fits"));
                }
                // Of older revisions only what still counts is kept.
                if main < 2 || main > self.view.revision() || (main > self.view.compacted() && !follows) {
                    problems.push(format!("change {main}.{sub} cannot follow {}.{}", last.0, last.1));
                }
            }
            (count, last) = (count + 1, (main, sub));
            if count % limits::VERIFY_TELL == 0 {
                tell("changes", count);
            }
            iterator.next();
        }
        iterator.status().map_err(io::Error::other)?;
        drop(iterator);
        problems.into_iter().for_each(|problem| self.say(|| problem));
        Ok(count)
    }

    /// The versions of each key follow each other. Answers how many there are, how many keys live, and how many of these are on a lease
    /// that exists.
    fn versions(&mut self, leases: &BTreeMap<i64, LeaseRecord>, tell: &mut Tell<'_>) -> io::Result<(u64, u64, u64)> {
        let (revision, compacted) = (self.view.revision(), self.view.compacted());
        let view = Rc::clone(&self.view);
        let mut iterator = view.every_version(&[])?;
        let (mut versions, mut keys, mut leased) = (0, 0, 0);
        let (mut own, mut before) = (Vec::new(), Vec::new());
        let mut newer: Option<Newer> = None;
        while let Some((raw, value)) = iterator.item() {
            let modified = key::parse_version(raw, &mut own).ok_or_else(|| corrupt("version key"))?;
            let row = Row::parse(&own, modified, value)?;
            let same = own == before;
            if !same {
                self.oldest(newer.take(), &before, compacted);
                keys += u64::from(row.live);
                leased += u64::from(row.live && leases.contains_key(&row.lease));
            }
            let bounds = modified <= revision && (!row.live || (1..=modified).contains(&row.created));
            let follows = newer.is_none_or(|newer| newer.modified <= compacted || newer.follows(&row));
            if !bounds || !follows || (row.live && row.version < 1) {
                self.say(|| format!("the version {modified} of the key {} does not fit the others", shown(&own)));
            }
            newer = Some(Newer { modified, live: row.live, created: row.created, version: row.version });
            std::mem::swap(&mut own, &mut before);
            versions += 1;
            if versions % limits::VERIFY_TELL == 0 {
                tell("versions of keys", versions);
            }
            iterator.next();
        }
        iterator.status().map_err(io::Error::other)?;
        self.oldest(newer, &before, compacted);
        Ok((versions, keys, leased))
    }

    /// The oldest version of a key that is kept, if it is from after the compaction, is the first.
    fn oldest(&mut self, oldest: Option<Newer>, own: &[u8], compacted: i64) {
        let Some(oldest) = oldest.filter(|oldest| oldest.modified > compacted) else { return };
        if !oldest.live || oldest.version != 1 || oldest.created != oldest.modified {
            self.say(|| format!("versions of the key {} before {} are missing", shown(own), oldest.modified));
        }
    }

    /// Keys are attached to leases that exist, which the keys name; `leased` keys name one.
    fn leases(&mut self, leases: &BTreeMap<i64, LeaseRecord>, leased: u64) -> io::Result<()> {
        let stamp = self.view.lease_stamp();
        if let Some((id, _)) = leases.iter().find(|(_, lease)| lease.stamp > stamp) {
            self.say(|| format!("the lease {id:x} is newer than the newest"));
        }
        let mut iterator = self.generation.db().raw_iterator_cf(self.generation.family(LEASE)?);
        iterator.seek_to_first();
        let (mut attached, mut wrong) = (0, Vec::new());
        while let Some(raw) = iterator.key() {
            if let Some((id, own)) = parse_attachment(raw) {
                attached += 1;
                let live = self.view.newest(own)?.and_then(|version| version.live);
                let wrongly = !leases.contains_key(&id) || live.is_none_or(|live| live.lease != id);
                if wrongly && wrong.len() < limits::VERIFY_FINDINGS {
                    wrong.push(format!("the key {} is attached to the lease {id:x}, which is not its own", shown(own)));
                }
            }
            iterator.next();
        }
        iterator.status().map_err(io::Error::other)?;
        drop(iterator);
        let missing = attached < leased;
        wrong.into_iter().for_each(|wrong| self.say(|| wrong));
        if missing {
            self.say(|| format!("{leased} keys name a lease, but only {attached} are attached to theirs"));
        }
        Ok(())
    }
}

impl Newer {
    /// Whether this version follows the one that `row` is.
    fn follows(self, row: &Row<'_>) -> bool {
        match (self.live, self.version) {
            (false, _) => row.live,
            (true, 1) => !row.live && self.created == self.modified,
            (true, version) => row.live && row.created == self.created && row.version == version - 1,
        }
    }
}

/// A key for people.
fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(&key[..key.len().min(limits::VERIFY_KEY_BYTES)]).escape_debug().collect()
}

/// What does not fit in an open state.
#[cfg(test)]
pub(crate) fn findings(generation: &Generation) -> Vec<String> {
    let mut found = Verified::default();
    let checked = Check::begin(generation, Path::new("state")).and_then(|check| check.run(&mut found, &mut |_, _| ()));
    checked.expect("a readable state");
    found.findings.into_iter().map(|finding| finding.what).collect()
}
