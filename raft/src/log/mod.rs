//! The replicated log on this member's disk: files of its own (docs/adr/0014), written by one thread.
//!
//! [`segment`] says how a file lies on disk and tells damage from what a crash leaves; [`segments`] are the files and the index of the entries
//! in them. Reads of recent entries come from memory ([`tail`]); everything older is on disk. [`writer`] turns all waiting operations into
//! one synced write, [`open`] reads everything back.
//!
//! Always holds: votes, appends, truncations and purges reach the disk in the order openraft gave them; no gaps; an entry
//! can be read as soon as `append` returned; a callback runs only after the sync. [`open`] refuses a log that contradicts
//! itself or the low-water mark (I14).

#[cfg(any(test, debug_assertions))]
pub(crate) mod fuzzing;
mod open;
mod segment;
mod segments;
mod store;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::codec::RecordError;
use crate::core::{Membership, RaftLogId, Vote, log_id, next_index};
use crate::machine::LogId;
use segments::Segments;
use tail::Tail;
use writer::Queue;

pub(crate) use open::{Inspected, inspect, open_stepwise};
pub(crate) use store::LogStore;
pub(crate) use writer::{Operation, Worker, Writer};

/// Where the files lie in the data directory.
pub(crate) const DIR: &str = "log";

/// What records are stored under: part of their checksums.
const ENTRY: &[u8] = b"entry";
const TRUNCATION: &[u8] = b"truncation";
const VOTE: &[u8] = b"vote";
const PURGED: &[u8] = b"purged";
const COMMITTED: &[u8] = b"committed";

/// Why the log cannot be used. Each sentence names the contradiction.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("open the raft log: {file}", file = .file.display())]
    Io {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("raft log: {file} is damaged: {what}", file = .file.display())]
    Damaged { file: PathBuf, what: String },
    #[error("raft log: {file} is missing", file = .file.display())]
    Missing { file: PathBuf },
    #[error(
        "raft log in {dir} is a RocksDB of an earlier version, which this one does not read: let that version save a snapshot, and restore it \
         into a new directory",
        dir = .dir.display()
    )]
    Older { dir: PathBuf },
    #[error("raft log in {dir} is empty, although it has made promises", dir = .dir.display())]
    Gone { dir: PathBuf },
    #[error("open the low-water mark of the raft log")]
    Mark {
        #[source]
        source: std::io::Error,
    },
    #[error("raft log record {what} is damaged")]
    Record {
        what: String,
        #[source]
        source: RecordError,
    },
    #[error("raft log has a gap: entry {want} is missing, the next one is {found}")]
    Gap { want: u64, found: u64 },
    #[error("raft log contradicts itself: {what}")]
    Contradiction { what: String },
    #[error("raft log goes back in time: entry {entry} follows term {term}")]
    TermBackwards { entry: LogId, term: u64 },
    #[error("raft log has entries but no vote")]
    NoVote,
    #[error("raft log ends with entry {last} but its vote is of term {term}")]
    VoteBehind { last: LogId, term: u64 },
    #[error("raft log lost its vote: term {mark} was promised, term {found} was found")]
    VoteLost { mark: u64, found: u64 },
    #[error("raft log lost entries: {mark} was synced, the log now ends with {found}", found = .found.map_or("nothing".to_owned(), |id| id.to_string()))]
    EntriesLost { mark: LogId, found: Option<LogId> },
    #[error("raft log holds {found} where {mark} was synced")]
    EntryReplaced { mark: LogId, found: LogId },
    #[error("low-water mark is missing although the raft log is not empty")]
    MarkMissing,
}

impl OpenError {
    /// Whether something that was there is damaged or gone; not that the disk is full or refuses.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Mark { source } => source.kind() == io::ErrorKind::InvalidData,
            Self::Io { .. } | Self::Older { .. } => false,
            _ => true,
        }
    }

    fn damaged(file: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), what: what.into() }
    }
}

/// What openraft, readers and the writer share.
pub(crate) struct Shared {
    segments: Arc<Segments>,
    state: Mutex<State>,
    pub queue: Queue,
    /// Index after the last entry on stable storage.
    flushed: watch::Sender<u64>,
}

/// The log as openraft sees it: what was asked for, whether or not it has reached the disk.
#[derive(Default)]
pub(crate) struct State {
    vote: Option<Vote>,
    purged: Option<RaftLogId>,
    committed: Option<RaftLogId>,
    last: Option<RaftLogId>,
    tail: Tail,
    /// Index of the first entry if nothing was purged: 0, except in openraft's test suite.
    first: u64,
    /// Counts truncations, so that a reader notices one that happened while it read from disk.
    truncations: u64,
}

impl Shared {
    /// Index after the last entry on stable storage.
    pub fn flushed(&self) -> watch::Receiver<u64> {
        self.flushed.subscribe()
    }

    pub fn last(&self) -> Option<LogId> {
        self.state.lock().last.map(log_id)
    }

    pub fn purged(&self) -> Option<LogId> {
        self.state.lock().purged.map(log_id)
    }

    /// The newest vote on stable storage. A vote is here before anybody hears of it.
    pub fn vote(&self) -> Option<Vote> {
        self.state.lock().vote
    }

    /// Nobody writes any more: everything that waits for a write, or for its being flushed, is let go.
    #[cfg(test)]
    pub fn abandon(&self) {
        self.queue.close();
        while !self.queue.take_now().is_empty() {}
        self.flushed.send_replace(u64::MAX);
    }

    /// The id of the entry at `index`, or of the purge that ends there. Blocks on the disk for old ones.
    pub fn log_id_at(&self, index: u64) -> io::Result<Option<LogId>> {
        let state = self.state.lock();
        if state.purged.is_some_and(|purged| purged.index == index) {
            return Ok(state.purged.map(log_id));
        }
        let (first, end) = state.bounds();
        if !(first..end).contains(&index) {
            return Ok(None);
        }
        Ok(open::entry_at(&self.segments, &state, index)?.map(log_id))
    }

    /// The newest membership that an entry holds, committed or not. Reads back until one is found.
    pub fn newest_membership(&self) -> io::Result<Option<Membership>> {
        let bounds = self.state.lock().bounds();
        open::newest_membership(&self.segments, bounds)
    }

    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.vote.is_none() && state.last.is_none()
    }
}

impl State {
    /// Indexes that the log holds, `first..end`.
    fn bounds(&self) -> (u64, u64) {
        (next_index(self.purged).max(self.first), next_index(self.last))
    }
}
