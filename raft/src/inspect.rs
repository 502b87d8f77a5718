//! What a member's data directory holds, looked at while no member runs on it: every record of the log and its checksum, and
//! whether identity, low-water mark, log, snapshots and state are pieces of one history (I14). Nothing is changed.
//!
//! The state machine's own files are looked at by whoever knows them: see [`Inspection::snapshots`] and [`Inspection::fits`].

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pintle_base::dbfiles;
use pintle_base::error::Chain;

use crate::core::{Membership, log_id};
use crate::identity::{self, Identity};
use crate::log::{self, Inspected};
use crate::machine::LogId;
use crate::mark::{self, Mark};
use crate::offline::OfflineError;
use crate::storage::{self, CheckError, History};
use crate::{snapshot, wire};

/// Something that is not as it should be, in one sentence that names the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    /// A crash leaves such things, and nothing is lost by it.
    pub harmless: bool,
}

impl Finding {
    pub fn damage(what: impl Into<String>) -> Self {
        Self { what: what.into(), harmless: false }
    }

    pub fn harmless(what: impl Into<String>) -> Self {
        Self { what: what.into(), harmless: true }
    }
}

/// What was found.
pub struct Inspection {
    dir: PathBuf,
    pub cluster_id: u64,
    pub node_id: u64,
    /// Not yet admitted to its cluster.
    pub joining: bool,
    /// Of the log's vote.
    pub term: u64,
    pub last: Option<LogId>,
    /// Entries in the log.
    pub entries: u64,
    /// Bytes of log files that were looked at.
    pub bytes: u64,
    /// Where readable snapshots end, and where their files are; the newest is the last.
    pub snapshots: Vec<(LogId, PathBuf)>,
    pub findings: Vec<Finding>,
    log: Option<Inspected>,
}

/// Looks at everything of Raft's in `dir`. Blocks.
///
/// # Errors
/// There is no member. Damage is no error, but a finding.
pub fn inspect(dir: &Path) -> Result<Inspection, OfflineError> {
    let there = |name: &str| dir.join(name).exists();
    let (has_log, has_mark) = (there(log::DIR), there(mark::FILE));
    if !there(identity::FILE) && !has_log && !has_mark {
        return Err(OfflineError::NoMember { dir: dir.to_owned() });
    }
    let mut findings = Vec::new();
    let identity = look_at_identity(dir, &mut findings);
    let promised = identity.is_none_or(|identity| !identity.joining);
    let mark = look_at_mark(dir, promised, &mut findings);
    let (log, bytes) = match has_log || promised {
        true => look_at_log(dir, mark.unwrap_or_default(), &mut findings),
        false => (None, 0),
    };
    let snapshots = match snapshot::look(dir) {
        Ok((found, unreadable)) => {
            findings.extend(unreadable.into_iter().map(Finding::damage));
            found.into_iter().filter_map(|(id, files)| Some((log_id(id?), files))).collect()
        }
        Err(error) => {
            findings.push(Finding::damage(format!("the snapshots in {} cannot be listed: {error}", dir.display())));
            Vec::new()
        }
    };
    Ok(Inspection {
        dir: dir.to_owned(),
        cluster_id: identity.map_or(0, |identity| identity.cluster_id),
        node_id: identity.map_or(0, |identity| identity.node_id),
        joining: identity.is_some_and(|identity| identity.joining),
        term: log.as_ref().and_then(Inspected::vote).map_or(0, |vote| vote.leader_id.term),
        last: log.as_ref().and_then(Inspected::last),
        entries: log.as_ref().map_or(0, Inspected::entries),
        bytes,
        snapshots,
        findings,
        log,
    })
}

fn look_at_identity(dir: &Path, findings: &mut Vec<Finding>) -> Option<Identity> {
    let file = dir.join(identity::FILE);
    match identity::read(dir) {
        Ok(Some(identity)) => return Some(identity),
        Ok(None) => findings.push(Finding::damage(format!("{} is missing", file.display()))),
        Err(error) => findings.push(Finding::damage(format!("{}: {}", file.display(), Chain(&error)))),
    }
    None
}

fn look_at_mark(dir: &Path, promised: bool, findings: &mut Vec<Finding>) -> Option<Mark> {
    let file = dir.join(mark::FILE);
    match mark::look(dir) {
        Ok((mark, false)) => Some(mark),
        Ok((mark, true)) => {
            let what = "one of its two slots cannot be read, as after a crash; the other is used";
            findings.push(Finding::harmless(format!("{}: {what}", file.display())));
            Some(mark)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !promised => None,
        Err(error) => {
            findings.push(Finding::damage(format!("{}: {error}", file.display())));
            None
        }
    }
}

fn look_at_log(dir: &Path, mark: Mark, findings: &mut Vec<Finding>) -> (Option<Inspected>, u64) {
    let path = dir.join(log::DIR);
    match log::inspect(dir, mark) {
        Ok(log) => {
            findings.extend(log.unfinished().iter().map(unfinished));
            let bytes = log.bytes();
            (Some(log), bytes)
        }
        Err(error) => {
            let what = Chain(&error).to_string();
            let named =
                if what.contains(&path.display().to_string()) { what } else { format!("{}: {what}", path.display()) };
            findings.push(Finding::damage(named));
            (None, 0)
        }
    }
}

/// What a crash left of a write.
pub fn unfinished(rest: &dbfiles::Unfinished) -> Finding {
    Finding::harmless(format!(
        "{}: the last write, {} bytes at byte {}, was cut off by a crash; nobody was told that it was done, and the next start drops it",
        rest.file.display(),
        rest.bytes,
        rest.at
    ))
}

impl Inspection {
    /// Whether a state that ends with `applied` belongs to this log and its snapshots, and the membership recorded with it to this
    /// member. Call it with what could be read.
    pub fn fits(&self, applied: Option<LogId>, membership: &Bytes) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut say = |what: String| findings.push(Finding::damage(format!("{}: {what}", self.dir.display())));
        let Some(log) = &self.log else { return findings };
        let snapshot = self.snapshots.last().map(|(id, _)| *id);
        let history = History { purged: log.purged(), snapshot, applied, last: log.last() };
        match storage::check(history, |index| log.log_id_at(index)) {
            Ok(()) => (),
            Err(CheckError::Found(error)) => say(error.to_string()),
            Err(CheckError::Read(error)) => say(format!("the log cannot be read: {error}")),
        }
        match wire::decode_membership(membership) {
            Err(error) => say(format!("the membership recorded with the state cannot be read: {error}")),
            Ok(stored) => {
                if let Some(at) = stored.log_id().map(log_id)
                    && applied.is_none_or(|applied| applied.index < at.index)
                {
                    say(format!("the state records the members of entry {at}, which it has not applied"));
                }
            }
        }
        findings
    }

    /// The members by the newest entry that names them, or by what is recorded with the state.
    pub fn members(&self, membership: &Bytes) -> Vec<u64> {
        let logged = self.log.as_ref().and_then(|log| log.newest_membership().ok().flatten());
        let recorded = || wire::decode_membership(membership).ok().map(|stored| stored.membership().clone());
        let ids = |members: Membership| members.nodes().map(|(id, _)| *id).collect();
        logged.or_else(recorded).map(ids).unwrap_or_default()
    }
}
