//! Whose data directory this is: cluster, group and member, and whether the member has been admitted. A directory of another
//! cluster or member is refused before anything in it is read.
//!
//! A member starts as *joining* and must not vote until it has either founded the cluster together with the others or caught
//! up with a leader: a member whose disk was wiped has forgotten what it promised (I14).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::codec;

pub(crate) const FILE: &str = "identity";

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub cluster_id: u64,
    pub group_id: u64,
    pub node_id: u64,
    /// Not yet admitted: must not vote.
    pub joining: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("data directory {dir} belongs to cluster {found:x}, this is cluster {want:x}", dir = .dir.display())]
    OtherCluster { dir: PathBuf, found: u64, want: u64 },
    #[error("data directory {dir} belongs to member {found} of group {group}, this is member {want}", dir = .dir.display())]
    OtherMember { dir: PathBuf, found: u64, group: u64, want: u64 },
    #[error("data directory {dir} has a raft log but no identity file", dir = .dir.display())]
    Missing { dir: PathBuf },
    #[error(
        "data directory {dir} is that of a member which has made promises, but its raft log or its low-water mark is gone: \
         restore the whole directory as it was when the member stopped, or remove the whole directory, so that the member \
         joins again and receives everything from the others",
        dir = .dir.display()
    )]
    LogMissing { dir: PathBuf },
    #[error("identity file in {dir} is damaged", dir = .dir.display())]
    Damaged {
        dir: PathBuf,
        #[source]
        source: codec::RecordError,
    },
    #[error("access the identity file in {dir}", dir = .dir.display())]
    Io {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Reads the identity in `dir`, if there is one.
pub(crate) fn read(dir: &Path) -> Result<Option<Identity>, IdentityError> {
    let record = match fs::read(dir.join(FILE)) {
        Ok(record) => record,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(IdentityError::Io { dir: dir.to_owned(), source }),
    };
    let decoded = codec::decode(FILE.as_bytes(), &record);
    decoded.map(Some).map_err(|source| IdentityError::Damaged { dir: dir.to_owned(), source })
}

/// Reads the identity in `dir`, or writes `fresh` if the directory is empty of Raft's data.
pub(crate) fn claim(dir: &Path, fresh: Identity) -> Result<Identity, IdentityError> {
    let io = |source| IdentityError::Io { dir: dir.to_owned(), source };
    let (log, mark) = (dir.join(crate::log::DIR).exists(), dir.join(crate::mark::FILE).exists());
    let Some(found) = read(dir)? else {
        if log || mark {
            return Err(IdentityError::Missing { dir: dir.to_owned() });
        }
        write(dir, fresh).map_err(io)?;
        return Ok(fresh);
    };
    if found.cluster_id != fresh.cluster_id {
        return Err(IdentityError::OtherCluster {
            dir: dir.to_owned(),
            found: found.cluster_id,
            want: fresh.cluster_id,
        });
    }
    if (found.node_id, found.group_id) != (fresh.node_id, fresh.group_id) {
        return Err(IdentityError::OtherMember {
            dir: dir.to_owned(),
            found: found.node_id,
            group: found.group_id,
            want: fresh.node_id,
        });
    }
    // Both exist, durably, before a member is admitted. One that is still joining has promised nothing that it would have
    // to remember: it starts over.
    let whole = log && mark;
    if !found.joining && !whole {
        return Err(IdentityError::LogMissing { dir: dir.to_owned() });
    }
    Ok(found)
}

/// Replaces the identity, durably.
pub(crate) fn write(dir: &Path, identity: Identity) -> io::Result<()> {
    let record = codec::encode(FILE.as_bytes(), &identity).map_err(io::Error::other)?;
    write_durably(dir, FILE, &record)
}

/// Creates or replaces `dir/name`: after a crash it has the old content or the new.
pub(crate) fn write_durably(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)
}

/// Makes creations, renames and removals in `dir` survive a crash.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Identity = Identity { cluster_id: 10, group_id: 1, node_id: 1, joining: true };

    #[test]
    fn a_directory_is_claimed_once_and_recognised_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(claim(dir.path(), ONE).expect("claim"), ONE);
        assert_eq!(claim(dir.path(), ONE).expect("a crash before the log was made"), ONE);
        fs::create_dir(dir.path().join(crate::log::DIR)).expect("create");
        fs::write(dir.path().join(crate::mark::FILE), b"").expect("create");
        let admitted = Identity { joining: false, ..ONE };
        write(dir.path(), admitted).expect("write");
        assert_eq!(claim(dir.path(), ONE).expect("claim"), admitted);
    }

    #[test]
    fn an_admitted_member_without_its_log_or_mark_does_not_found_anew() {
        for left in [None, Some(crate::log::DIR), Some(crate::mark::FILE)] {
            let dir = tempfile::tempdir().expect("temporary directory");
            write(dir.path(), Identity { joining: false, ..ONE }).expect("write");
            if let Some(name) = left {
                fs::create_dir(dir.path().join(name)).expect("create");
            }
            let error = claim(dir.path(), ONE).expect_err("what it promised is gone");
            assert!(error.to_string().contains("remove the whole directory"), "{error}");
        }
    }

    #[test]
    fn directories_of_others_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        claim(dir.path(), ONE).expect("claim");
        let error = claim(dir.path(), Identity { cluster_id: 11, ..ONE }).expect_err("other cluster");
        assert!(error.to_string().contains("belongs to cluster a, this is cluster b"), "{error}");
        let error = claim(dir.path(), Identity { node_id: 2, ..ONE }).expect_err("other member");
        assert!(error.to_string().contains("belongs to member 1 of group 1, this is member 2"), "{error}");
    }

    #[test]
    fn a_log_without_identity_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join(crate::log::DIR)).expect("create");
        assert!(matches!(claim(dir.path(), ONE), Err(IdentityError::Missing { .. })));
    }

    #[test]
    fn a_damaged_identity_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        claim(dir.path(), ONE).expect("claim");
        let path = dir.path().join(FILE);
        let mut record = fs::read(&path).expect("read");
        record[7] ^= 1;
        fs::write(&path, record).expect("write");
        assert!(matches!(claim(dir.path(), ONE), Err(IdentityError::Damaged { .. })));
    }
}
