//! Opens what a member has on disk and proves that it fits together (I14), before anything is changed: whose directory it is,
//! that the log is whole, and that log, snapshot and state are pieces of one history.

use std::io;
use std::sync::Arc;

use openraft::storage::RaftLogStorage;
use tokio::sync::mpsc;

use crate::apply::{self, SnapshotPolicy};
use crate::core::{log_id, raft_log_id};
use crate::fatal::FatalCell;
use crate::identity::{self, Identity};
use crate::log::{self, LogStore, Shared};
use crate::machine::{LogId, StateMachine};
use crate::snapshot::Snapshots;
use crate::start::{Options, StartError};

/// What is on disk, opened and proven; and the two workers, which nobody has set to work yet.
pub(crate) struct Storage {
    pub writer: log::Worker,
    pub applier: apply::Worker,
    pub tasks: mpsc::Sender<apply::Task>,
    pub opened: Opened,
}

/// What Raft runs on.
pub(crate) struct Opened {
    pub identity: Identity,
    pub log: Arc<Shared>,
    pub snapshots: Arc<Snapshots>,
    pub machine: apply::Machine,
    pub has_log: bool,
}

pub(crate) fn open(
    options: &Options,
    machine: Box<dyn StateMachine>,
    fatal: &FatalCell,
) -> Result<Storage, StartError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| StartError::Io { what, source }
    };
    std::fs::create_dir_all(&options.data_dir).map_err(io("the data directory"))?;
    let fresh =
        Identity { cluster_id: options.cluster_id, group_id: options.group_id, node_id: options.id, joining: true };
    let identity = identity::claim(&options.data_dir, fresh)?;
    let snapshots = Arc::new(Snapshots::open(&options.data_dir).map_err(io("the snapshots"))?);
    let (log, writer) = log::open_stepwise(&options.data_dir, fatal.clone())?;
    let policy = SnapshotPolicy {
        entries: options.snapshot_entries.max(1),
        bytes: options.snapshot_bytes.max(1),
        bytes_kept: options.bytes_kept,
        entries_kept: options.entries_kept,
    };
    let (machine, applier, tasks) =
        apply::prepare(machine, Arc::clone(&snapshots), log.flushed(), policy, fatal.clone())
            .map_err(StartError::Machine)?;
    let history = History {
        purged: log.purged(),
        snapshot: newest(&snapshots),
        applied: machine.applying().applied().map(log_id),
        last: log.last(),
    };
    check(history, |index| log.log_id_at(index)).map_err(|error| match error {
        CheckError::Found(error) => match snapshots.unreadable() {
            Some(why) => StartError::Snapshot { why: why.to_owned(), error: Box::new(error) },
            None => error,
        },
        CheckError::Read(source) => StartError::Io { what: "the raft log".to_owned(), source },
    })?;
    snapshots.sweep();
    let has_log = !log.is_empty();
    Ok(Storage { writer, applier, tasks, opened: Opened { identity, log, snapshots, machine, has_log } })
}

fn newest(snapshots: &Snapshots) -> Option<LogId> {
    snapshots.current().and_then(|snapshot| snapshot.last_log_id()).map(log_id)
}

/// Where the pieces end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct History {
    pub purged: Option<LogId>,
    pub snapshot: Option<LogId>,
    pub applied: Option<LogId>,
    pub last: Option<LogId>,
}

pub(crate) enum CheckError {
    Found(StartError),
    Read(io::Error),
}

impl From<StartError> for CheckError {
    fn from(error: StartError) -> Self {
        Self::Found(error)
    }
}

/// Whether both can be in one history: a later index never has an earlier term, and the same index has the same term.
fn agree(a: LogId, b: LogId) -> bool {
    match a.index.cmp(&b.index) {
        std::cmp::Ordering::Less => a.term <= b.term,
        std::cmp::Ordering::Equal => a.term == b.term,
        std::cmp::Ordering::Greater => a.term >= b.term,
    }
}

/// purged <= snapshot; what the log lacks is in the state or the snapshot; the state is not ahead of the log; and where two
/// of them meet they hold the same entry. `at` reads the log's entry at an index.
pub(crate) fn check(
    History { purged, snapshot, applied, last }: History,
    at: impl Fn(u64) -> io::Result<Option<LogId>>,
) -> Result<(), CheckError> {
    let next = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
    if let Some(purged) = purged {
        if next(snapshot) <= purged.index || snapshot.is_some_and(|snapshot| !agree(purged, snapshot)) {
            return Err(StartError::PurgedBeyondSnapshot { purged, snapshot }.into());
        }
        if next(applied) <= purged.index && next(snapshot) <= next(applied) {
            return Err(StartError::StateBehindLog { purged, applied }.into());
        }
        if let Some(applied) = applied
            && !agree(purged, applied)
        {
            return Err(StartError::PurgedAndState { applied, purged }.into());
        }
    }
    if let (Some(applied), Some(snapshot)) = (applied, snapshot)
        && !agree(applied, snapshot)
    {
        return Err(StartError::SnapshotAndState { applied, snapshot }.into());
    }
    if let Some(snapshot) = snapshot
        && let Some(found) = at(snapshot.index).map_err(CheckError::Read)?
        && found.term > snapshot.term
    {
        // An older one is a tail that the snapshot overruled, see `drop_overruled`.
        return Err(StartError::SnapshotReplaced { snapshot, found }.into());
    }
    match applied {
        // What came in a snapshot need not be in the log; everything else was synced there before it was applied.
        Some(applied) if next(Some(applied)) > next(snapshot) => {
            if applied.index >= next(last) {
                return Err(StartError::StateBeyondLog { applied, last }.into());
            }
            let found = at(applied.index).map_err(CheckError::Read)?;
            if found != Some(applied) {
                return Err(StartError::StateReplaced { applied, found }.into());
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Ends the log before the snapshot if it holds another entry where the snapshot ends: a crash came after the snapshot was
/// received and before the log, which it overrules from there on, was truncated.
pub(crate) async fn drop_overruled(store: &mut LogStore, snapshots: &Snapshots) -> Result<(), StartError> {
    let io = |source| StartError::Io { what: "the raft log".to_owned(), source };
    let Some(snapshot) = newest(snapshots) else { return Ok(()) };
    let found = store.0.log_id_at(snapshot.index).map_err(io)?;
    if found.is_none_or(|found| found == snapshot) {
        return Ok(());
    }
    let before = match snapshot.index.checked_sub(1) {
        Some(index) => store.0.log_id_at(index).map_err(io)?,
        None => None,
    };
    tracing::warn!(%snapshot, ?found, "the end of the raft log was overruled by a snapshot, dropping it");
    store.truncate_after(before.map(raft_log_id)).await.map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Option<LogId> {
        let (term, index) = text.split_once('.')?;
        Some(LogId { term: term.parse().ok()?, index: index.parse().ok()? })
    }

    /// `log` is the entries in order; purged, snapshot and applied are ids, or `-`.
    #[track_caller]
    fn verdict(purged: &str, snapshot: &str, applied: &str, log: &[&str]) -> String {
        let entries: Vec<LogId> = log.iter().filter_map(|text| id(text)).collect();
        let last = entries.last().copied().or(id(purged));
        let history = History { purged: id(purged), snapshot: id(snapshot), applied: id(applied), last };
        let at = |index| Ok(entries.iter().copied().chain(id(purged)).find(|entry| entry.index == index));
        match check(history, at) {
            Ok(()) => "fits".to_owned(),
            Err(CheckError::Found(error)) => error.to_string(),
            Err(CheckError::Read(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn what_belongs_together_is_accepted() {
        assert_eq!(verdict("-", "-", "-", &[]), "fits");
        assert_eq!(verdict("-", "-", "1.1", &["1.0", "1.1", "2.2"]), "fits");
        assert_eq!(verdict("1.3", "2.5", "2.6", &["1.4", "2.5", "2.6", "3.7"]), "fits");
        // Crashes while a snapshot is installed: the state, or the log, has not followed yet.
        assert_eq!(verdict("1.3", "4.9", "1.4", &["1.4", "1.5"]), "fits");
        assert_eq!(verdict("-", "4.2", "4.2", &["1.0", "1.1", "3.2", "3.3"]), "fits");
    }

    #[test]
    fn pieces_that_do_not_reach_each_other_are_refused() {
        for (found, want) in [
            (
                verdict("1.5", "1.4", "1.4", &[]),
                "raft log was purged up to 1.5, but the newest snapshot holds only 1.4",
            ),
            (
                verdict("1.5", "-", "1.6", &["1.6"]),
                "raft log was purged up to 1.5, but the newest snapshot holds only nothing",
            ),
            (verdict("-", "-", "1.2", &["1.0", "1.1"]), "the state holds entry 1.2, but the raft log ends with 1.1"),
        ] {
            assert_eq!(found, want);
        }
    }

    #[test]
    fn pieces_of_different_histories_are_refused() {
        for (found, want) in [
            (
                verdict("3.5", "2.6", "3.7", &["3.6", "3.7"]),
                "raft log was purged up to 3.5, but the newest snapshot holds only 2.6",
            ),
            (verdict("2.5", "2.6", "1.6", &["2.6"]), "the state ends with 1.6, but the raft log was purged up to 2.5"),
            (
                verdict("-", "2.2", "1.3", &["1.0", "1.1", "2.2", "2.3"]),
                "the state ends with 1.3, but the newest snapshot with 2.2",
            ),
            (
                verdict("-", "2.2", "2.2", &["1.0", "1.1", "3.2"]),
                "the newest snapshot ends with 2.2, but the raft log holds 3.2 there",
            ),
            (
                verdict("-", "-", "1.1", &["1.0", "2.1", "2.2"]),
                "the state holds entry 1.1, but the raft log holds 2.1 there",
            ),
            (
                verdict("-", "-", "2.1", &["1.0", "1.1", "2.2"]),
                "the state holds entry 2.1, but the raft log holds 1.1 there",
            ),
        ] {
            assert_eq!(found, want);
        }
    }
}
