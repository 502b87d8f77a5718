//! The replicated log on this member's disk: a RocksDB instance of its own (D4), written by one thread.
//!
//! Column families: `log` (big-endian index → entry) and `meta` (vote, purged, committed). Reads of recent entries come from
//! memory ([`tail`]); everything older is on disk. [`writer`] turns all waiting operations into one synced write.
//!
//! Always holds: votes, appends, truncations and purges reach the disk in the order openraft gave them; no gaps; an entry
//! can be read as soon as `append` returned; a callback runs only after the sync. [`open`] refuses a log that contradicts
//! itself or the low-water mark (I14).

mod open;
mod store;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;

use parking_lot::Mutex;
use pintle_base::dbfiles::FilesError;
use rocksdb::DB;
use tokio::sync::watch;

use crate::codec::RecordError;
use crate::core::{Membership, RaftLogId, Vote, log_id, next_index};
use crate::machine::LogId;
use tail::Tail;
use writer::Queue;

pub(crate) use open::{Inspected, inspect, open_stepwise};
pub(crate) use store::LogStore;
pub(crate) use writer::{Operation, Worker, Writer};

/// Where the instance lies in the data directory.
pub(crate) const DIR: &str = "log";

const LOG: &str = "log";
const META: &str = "meta";
const VOTE: &[u8] = b"vote";
const PURGED: &[u8] = b"purged";
const COMMITTED: &[u8] = b"committed";

/// Why the log cannot be used. Each sentence names the contradiction.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("open the raft log in {dir}", dir = .dir.display())]
    RocksDb {
        dir: PathBuf,
        #[source]
        source: rocksdb::Error,
    },
    #[error("raft log")]
    Files(#[from] FilesError),
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
    #[error("raft log entry {index} says it is {found}")]
    Misplaced { index: u64, found: LogId },
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
            Self::RocksDb { source, .. } => is_damage(source),
            Self::Mark { source } => source.kind() == io::ErrorKind::InvalidData,
            Self::Files(FilesError::Io { .. }) => false,
            _ => true,
        }
    }
}

/// Whether RocksDB found its files damaged, or missing.
pub fn is_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        rocksdb::ErrorKind::Corruption | rocksdb::ErrorKind::InvalidArgument => true,
        rocksdb::ErrorKind::IOError => error.as_ref().contains("No such file or directory"),
        _ => false,
    }
}

/// What openraft, readers and the writer share.
pub(crate) struct Shared {
    db: DB,
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
        Ok(open::entry_at(&self.db, &state, index).map_err(io::Error::other)?.map(log_id))
    }

    /// The newest membership that an entry holds, committed or not. Reads back until one is found.
    pub fn newest_membership(&self) -> io::Result<Option<Membership>> {
        open::newest_membership(&self.db).map_err(io::Error::other)
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

fn key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}
