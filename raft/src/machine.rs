//! What the rest of the system sees of the log: positions, committed entries, members, and the state machine that applies
//! entries. Plain data and one trait; nothing of openraft.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

/// Position of a log entry. Ordered by term, then index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    pub term: u64,
    pub index: u64,
}

impl std::fmt::Display for LogId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Written by every new leader.
    Blank,
    /// In the order they were proposed. Never empty.
    Commands(Vec<Bytes>),
    /// Opaque; to be kept with the data and returned by [`StateMachine::applied`].
    Membership(Bytes),
}

/// An entry that a quorum has on stable storage, and this member too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub log_id: LogId,
    pub payload: Payload,
}

/// What the state machine has recorded together with its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last entry applied; `None` before the first.
    pub log_id: Option<LogId>,
    /// Of the last [`Payload::Membership`] applied; empty before the first.
    pub membership: Bytes,
}

/// See [`StateMachine::flusher`]. Blocks.
pub type Flusher = Arc<dyn Fn() + Send + Sync>;

/// Applies committed entries. Called from one thread of its own, in log order, without gaps.
///
/// Any `Err` stops the process (I4): the caller never retries.
pub trait StateMachine: Send + 'static {
    /// What is recorded with the data, as it would be found after a restart if everything were flushed now.
    fn applied(&self) -> io::Result<Applied>;

    /// Applies one entry in one atomic write that includes its log id and, for a membership, its bytes (I5).
    ///
    /// Returns one reply for each command, in order; none for other payloads.
    fn apply(&mut self, entry: Committed) -> io::Result<Vec<Bytes>>;

    /// Returns once all applied entries would survive a crash.
    fn flush(&mut self) -> io::Result<()>;

    /// Flushes beside applying, before a checkpoint is asked for: applying waits for a checkpoint, which then flushes only what was applied
    /// since. Asked for once; nothing is told of an outcome.
    fn flusher(&self) -> Option<Flusher> {
        None
    }

    /// Writes a consistent copy of everything into the empty directory `dir`, of hard links where possible.
    ///
    /// Files whose names end in `.sst` or `.blob` must never be written to again: copies of the directory share them.
    fn checkpoint(&mut self, dir: &Path) -> io::Result<()>;

    /// Replaces the whole state by the checkpoint in `dir`, atomically: after a crash it is the old or the new one.
    ///
    /// `dir` is the callee's: it may be moved away. It is on the file system of [`crate::Options::data_dir`].
    fn install(&mut self, dir: &Path) -> io::Result<()>;
}

/// A member as recorded in the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Never reused, also after the member was removed.
    pub id: u64,
    pub name: String,
    /// `host:port` of the peer transport. The host must be in the member's certificate.
    pub peer_addr: String,
    /// Where etcd clients connect.
    pub client_addr: String,
    /// Where the Kubernetes API is served.
    pub api_addr: String,
}
