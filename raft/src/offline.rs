//! What is done to a member's data directory while no member runs on it: beginning a cluster from a given state, and letting one
//! member go on alone after the others are lost for good.
//!
//! Always holds: a directory is made elsewhere and renamed by the caller, so a member never starts on half of one; what is written
//! into an existing log goes through the log's own writer, in one synced write, and mark and checks hold as for any other write.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::storage::IOFlushed;
use pintle_base::error::Chain;

use crate::core::{Entry, Membership, RaftLogId, Record, SnapshotMeta, StoredMembership, Vote, log_id, raft_log_id};
use crate::fatal::FatalCell;
use crate::identity::{self, Identity};
use crate::log::{self, Operation, Shared, Worker};
use crate::machine::{LogId, Peer};
use crate::mark::MarkFile;
use crate::snapshot::Snapshots;
use crate::wire;

/// Why a directory was left as it was.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error("data directory {dir} is not empty", dir = .dir.display())]
    NotEmpty { dir: PathBuf },
    #[error("data directory {dir} holds no member", dir = .dir.display())]
    NoMember { dir: PathBuf },
    #[error("the member in {dir} has not been admitted to its cluster yet: what it holds may be old", dir = .dir.display())]
    Joining { dir: PathBuf },
    /// A crash came after a snapshot was received and before the log was cut to it: the next start does that.
    #[error(
        "the member in {dir} has received a snapshot that its log does not reach yet: start it once without the flag, wait until it \
         says that it runs, stop it, and try again",
        dir = .dir.display()
    )]
    SnapshotAhead { dir: PathBuf },
    #[error("{0}")]
    Identity(String),
    #[error("{0}")]
    Log(String),
    #[error("{0}")]
    Members(String),
    #[error("access {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A member of a cluster that begins with a state instead of nothing. All its members must begin with the same one.
#[derive(Clone, Debug)]
pub struct Founding {
    pub cluster_id: u64,
    pub group_id: u64,
    pub node_id: u64,
    /// All voters, this member among them; the same everywhere.
    pub peers: Vec<Peer>,
    /// The entry the state counts as the outcome of; the log goes on after it.
    pub at: LogId,
}

impl Founding {
    /// What the state machine must have recorded as its membership.
    pub fn membership(&self) -> Result<Bytes, OfflineError> {
        Ok(wire::encode_membership(&self.stored()?))
    }

    fn stored(&self) -> Result<StoredMembership, OfflineError> {
        let nodes = self.peers.iter().map(|peer| (peer.id, peer.clone().into())).collect();
        Ok(StoredMembership::new(Some(raft_log_id(self.at)), voting(nodes)?))
    }
}

/// Makes the directory of a member whose log goes on where a state ends. `write_state` writes the state machine's checkpoint into an
/// empty directory. Blocks.
pub fn found(
    dir: &Path,
    founding: &Founding,
    write_state: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), OfflineError> {
    let access = |what| move |source| OfflineError::Io { what, source };
    std::fs::create_dir_all(dir).map_err(access("the data directory"))?;
    let mut entries = std::fs::read_dir(dir).map_err(access("the data directory"))?;
    if entries.next().is_some() {
        return Err(OfflineError::NotEmpty { dir: dir.to_owned() });
    }
    let at = raft_log_id(founding.at);
    let snapshots = Snapshots::open(dir).map_err(access("the snapshots"))?;
    let temporary = snapshots.temporary().map_err(access("the snapshots"))?;
    write_state(temporary.data()).map_err(access("the state"))?;
    let meta = SnapshotMeta { last_log_id: Some(at), last_membership: founding.stored()? };
    snapshots.adopt(temporary, &meta).map_err(access("the snapshots"))?;
    // Its vote for itself in the term of the state is worth nothing to others: every leader comes after it.
    let vote = Vote::new(founding.at.term, founding.node_id);
    write_log(dir, |_| Ok(vec![vote_operation(vote), Operation::Purge(at)]))?;
    // Last: without it the directory is that of nobody.
    let Founding { cluster_id, group_id, node_id, .. } = *founding;
    identity::write(dir, Identity { cluster_id, group_id, node_id, joining: false })
        .map_err(access("the identity file"))
}

/// Makes the member in `dir` the only one of its cluster, by an entry at the end of its log that says so: everything in its log counts
/// as committed, which it may not have been; whatever only the others have is lost, and they must never be started again on what they
/// hold. Does nothing if the log says so already. Blocks.
///
/// Answers the members that are no more.
pub fn force_alone(dir: &Path) -> Result<Vec<u64>, OfflineError> {
    let identity = identity::read(dir).map_err(|error| OfflineError::Identity(Chain(&error).to_string()))?;
    let identity = identity.ok_or_else(|| OfflineError::NoMember { dir: dir.to_owned() })?;
    if identity.joining {
        return Err(OfflineError::Joining { dir: dir.to_owned() });
    }
    // A log that is gone must not be made anew: the next start would take the member for one that never promised anything.
    if !dir.join(log::DIR).exists() || !MarkFile::exists(dir) {
        return Err(OfflineError::Log(format!("the raft log in {} is gone, or its low-water mark", dir.display())));
    }
    let snapshots = Snapshots::open(dir).map_err(|source| OfflineError::Io { what: "the snapshots", source })?;
    let snapshot = snapshots.current();
    let mut gone = Vec::new();
    write_log(dir, |log| {
        if let Some(held) = snapshot.as_ref().and_then(|snapshot| snapshot.last_log_id()).map(log_id) {
            let found =
                log.log_id_at(held.index).map_err(|source| OfflineError::Io { what: "the raft log", source })?;
            // What is appended below the snapshot, or after a tail that it overrules, would be dropped at the next start.
            if log.last().is_none_or(|last| last.index < held.index) || found.is_some_and(|found| found != held) {
                return Err(OfflineError::SnapshotAhead { dir: dir.to_owned() });
            }
        }
        let snapshot = snapshot.as_ref().map(|snapshot| &snapshot.meta.last_membership);
        let known = log.newest_membership().map_err(|source| OfflineError::Io { what: "the raft log", source })?;
        let known = known.or_else(|| snapshot.map(|stored| stored.membership().clone())).unwrap_or_default();
        gone = known.nodes().map(|(id, _)| *id).filter(|id| *id != identity.node_id).collect();
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let Some(own) = known.get_node(&identity.node_id) else {
            return Err(OfflineError::Log(format!(
                "the raft log names members, but not this one, {}",
                identity.node_id
            )));
        };
        let alone = voting(BTreeMap::from([(identity.node_id, own.clone())]))?;
        Ok(alone_operations(log, identity.node_id, alone))
    })?;
    Ok(gone)
}

/// A vote and an entry of a term nobody has led in.
fn alone_operations(log: &Shared, node_id: u64, alone: Membership) -> Vec<Operation> {
    let term = log.vote().map_or(0, |vote| vote.leader_id.term).max(log.last().map_or(0, |last| last.term)) + 1;
    let index = log.last().map_or(0, |last| last.index + 1);
    let id: RaftLogId = raft_log_id(LogId { term, index });
    tracing::warn!(entry = %log_id(id), "this member goes on alone");
    let entry = Entry::new_membership(id, alone);
    vec![vote_operation(Vote::new(term, node_id)), Operation::Append(vec![entry], IOFlushed::noop())]
}

/// A membership in which all `nodes` vote.
fn voting(nodes: BTreeMap<u64, Record>) -> Result<Membership, OfflineError> {
    let voters: BTreeSet<u64> = nodes.keys().copied().collect();
    Membership::new(vec![voters], nodes).map_err(|error| OfflineError::Members(error.to_string()))
}

fn vote_operation(vote: Vote) -> Operation {
    let (done, _) = tokio::sync::oneshot::channel();
    Operation::Vote(vote, done)
}

/// Opens the log, proves it whole, and performs what `plan` says in one synced write.
fn write_log(
    dir: &Path,
    plan: impl FnOnce(&Shared) -> Result<Vec<Operation>, OfflineError>,
) -> Result<(), OfflineError> {
    let fatal = FatalCell::new();
    let (log, mut worker): (_, Worker) =
        log::open_stepwise(dir, fatal.clone()).map_err(|error| OfflineError::Log(Chain(&error).to_string()))?;
    let operations = plan(&log)?;
    worker.perform(operations);
    worker.finish();
    match fatal.get() {
        None => Ok(()),
        Some(fatal) => Err(OfflineError::Log(fatal.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark;

    /// A member whose log ends at 1.7, with a snapshot at `id` received since.
    fn interrupted(id: LogId) -> Result<Vec<u64>, OfflineError> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let peer = |id| Peer { id, peer_addr: format!("127.0.0.1:{id}"), ..Peer::default() };
        let at = LogId { term: 1, index: 7 };
        let founding = Founding { cluster_id: 1, group_id: 0, node_id: 1, peers: vec![peer(1), peer(2)], at };
        found(dir.path(), &founding, |into| std::fs::write(into.join("file"), b"first")).expect("found");
        let snapshots = Snapshots::open(dir.path()).expect("snapshots");
        let temporary = snapshots.temporary().expect("temporary");
        std::fs::write(temporary.data().join("file"), b"second").expect("write");
        let last_membership = founding.stored().expect("members");
        let meta = SnapshotMeta { last_log_id: Some(raft_log_id(id)), last_membership };
        drop(snapshots.adopt(temporary, &meta).expect("adopt"));
        drop(snapshots);
        force_alone(dir.path())
    }

    #[test]
    fn nobody_goes_on_alone_without_the_log_that_was_there() {
        for lost in [&[log::DIR, mark::FILE][..], &[log::DIR], &[mark::FILE]] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let at = LogId { term: 1, index: 7 };
            let peers = vec![Peer { id: 1, peer_addr: "127.0.0.1:1".to_owned(), ..Peer::default() }];
            let founding = Founding { cluster_id: 1, group_id: 0, node_id: 1, peers, at };
            found(dir.path(), &founding, |into| std::fs::write(into.join("file"), b"state")).expect("found");
            for name in lost {
                let path = dir.path().join(name);
                if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.expect("remove");
            }
            let refused = force_alone(dir.path());
            assert!(
                matches!(&refused, Err(OfflineError::Log(why)) if why.contains("is gone")),
                "{lost:?}: {refused:?}"
            );
            assert!(lost.iter().all(|name| !dir.path().join(name).exists()), "nothing is made in its place");
        }
    }

    #[test]
    fn nobody_goes_on_alone_on_a_log_that_its_snapshot_overrules() {
        for (term, index) in [(1, 8), (2, 9), (2, 7)] {
            let refused = interrupted(LogId { term, index });
            assert!(matches!(refused, Err(OfflineError::SnapshotAhead { .. })), "{term}.{index}: {refused:?}");
        }
        assert_eq!(interrupted(LogId { term: 1, index: 7 }).expect("the snapshot the log begins after"), [2]);
    }
}
