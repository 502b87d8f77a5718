//! A snapshot as a source: the newest version of each key that is not deleted.
//!
//! The file is in the order of revisions. It is read twice: first to learn which revision is the newest of each key, which is
//! remembered under a hash of 128 bits that the file's maker cannot foresee, then to send those.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pintle_proto::mvccpb::KeyValue;
use pintle_store::bolt::{Bolt, BoltError};
use prost::Message;
use tokio::sync::mpsc;

use super::auth::Auth;
use super::source::{Lease, Outline, PAGE_BYTES, Page};
use crate::store::ctl::{Failure, go};

/// Bytes of a revision's name: its number, `_`, the number of the change in it; one more for deletions.
const REVISION: usize = 17;

/// Cheap to clone.
#[derive(Clone)]
pub struct File(Arc<Opened>);

struct Opened {
    path: PathBuf,
    bolt: Bolt,
    newest: Newest,
    revision: i64,
}

#[derive(Default)]
struct Newest {
    hashers: [RandomState; 2],
    revisions: HashMap<u128, Revision>,
}

/// Number, and number of the change in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Revision(i64, i64);

impl File {
    /// Opens a file and learns which versions are the newest.
    pub fn open(path: &Path, check: bool) -> Result<Self, Failure> {
        if let Err(error) = std::fs::metadata(path) {
            return Err(Failure::error(format!("stat {}: {}", path.display(), go::system_error(&error))));
        }
        let bolt = Bolt::open_snapshot(path, check).map_err(|error| match error {
            BoltError::NoChecksum => Failure::error("snapshot missing hash but --skip-hash-check=false"),
            error => damaged(path, error),
        })?;
        let mut newest = Newest::default();
        let mut revision = 1;
        each_row(path, &bolt, |row| {
            revision = revision.max(row.revision.0);
            let hash = newest.hash(&row.pair.key);
            match row.deleted {
                true => newest.revisions.remove(&hash),
                false => newest.revisions.insert(hash, row.revision),
            };
            Ok(())
        })?;
        Ok(Self(Arc::new(Opened { path: path.to_owned(), bolt, newest, revision })))
    }

    pub fn outline(&self) -> Result<Outline, Failure> {
        let Opened { path, bolt, newest, revision } = &*self.0;
        let read = || -> Result<(Vec<Lease>, Auth, usize), BoltError> {
            let mut leases = Vec::new();
            for item in bolt.bucket(b"lease")?.into_iter().flatten() {
                let (_, value) = item?;
                leases.extend(lease(value));
            }
            let mut alarms = 0;
            for item in bolt.bucket(b"alarm")?.into_iter().flatten() {
                item?;
                alarms += 1;
            }
            Ok((leases, Auth::of_file(bolt)?, alarms))
        };
        let (leases, auth, alarms) = read().map_err(|error| damaged(path, error))?;
        Ok(Outline {
            name: path.display().to_string(),
            cluster: None,
            revision: *revision,
            keys: newest.revisions.len() as u64,
            leases,
            auth,
            alarms,
        })
    }

    pub fn read(&self, out: &mpsc::Sender<Page>) -> Result<(), Failure> {
        let Opened { path, bolt, newest, .. } = &*self.0;
        let (mut page, mut bytes) = (Vec::new(), 0);
        let gone = || Failure::error("nobody takes the keys any more");
        each_row(path, bolt, |row| {
            if row.deleted || newest.revisions.get(&newest.hash(&row.pair.key)) != Some(&row.revision) {
                return Ok(());
            }
            bytes += row.pair.key.len() + row.pair.value.len();
            page.push(row.pair);
            if bytes < PAGE_BYTES {
                return Ok(());
            }
            bytes = 0;
            out.blocking_send(Ok(std::mem::take(&mut page))).map_err(|_| gone())
        })?;
        out.blocking_send(Ok(page)).map_err(|_| gone())
    }
}

impl Newest {
    fn hash(&self, key: &[u8]) -> u128 {
        let [high, low] = &self.hashers;
        u128::from(high.hash_one(key)) << 64 | u128::from(low.hash_one(key))
    }
}

/// A version of a key.
struct Row {
    revision: Revision,
    deleted: bool,
    pair: KeyValue,
}

fn each_row(path: &Path, bolt: &Bolt, mut take: impl FnMut(Row) -> Result<(), Failure>) -> Result<(), Failure> {
    let items = bolt.bucket(b"key").map_err(|error| damaged(path, error))?;
    let items =
        items.ok_or_else(|| Failure::error(format!("{}: it has no keys, so it is not etcd's", path.display())))?;
    for item in items {
        let (name, value) = item.map_err(|error| damaged(path, error))?;
        take(row(&name, value).ok_or_else(|| {
            Failure::error(format!("{}: what stands under {} is no version of a key", path.display(), go::quote(&name)))
        })?)?;
    }
    Ok(())
}

/// A row of etcd's bucket `key`. `None` if it is none.
fn row(name: &[u8], value: Bytes) -> Option<Row> {
    let (revision, mark) = name.split_at_checked(REVISION)?;
    let deleted = match mark {
        [] => false,
        b"t" => true,
        _ => return None,
    };
    let number = |at: usize| Some(i64::from_be_bytes(*revision.get(at..)?.first_chunk()?));
    let revision = (revision[8] == b'_').then_some(Revision(number(0)?, number(9)?))?;
    let pair = KeyValue::decode(value).ok().filter(|pair| !pair.key.is_empty())?;
    Some(Row { revision, deleted, pair })
}

/// A lease as etcd stores it. What is none has no id, and no key can be attached to it.
fn lease(raw: Bytes) -> Option<Lease> {
    let stored = StoredLease::decode(raw).ok().filter(|stored| stored.id != 0)?;
    let remaining = (stored.remaining > 0).then_some(stored.remaining);
    Some(Lease { id: stored.id, granted: stored.granted, remaining })
}

/// `leasepb.Lease`
#[derive(Clone, PartialEq, Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    granted: i64,
    /// 0 unless it was checkpointed.
    #[prost(int64, tag = "3")]
    remaining: i64,
}

fn damaged(path: &Path, error: BoltError) -> Failure {
    Failure::error(format!("{}: {:#}", path.display(), anyhow::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_leases_are_read_as_etcd_writes_them() {
        let pair = KeyValue { key: "k".into(), value: "v".into(), ..KeyValue::default() };
        let name = [&7_i64.to_be_bytes()[..], b"_", &1_i64.to_be_bytes()].concat();
        let read = row(&name, pair.encode_to_vec().into()).unwrap();
        assert_eq!((read.revision, read.deleted, read.pair.clone()), (Revision(7, 1), false, pair.clone()));
        let tombstone = [&name[..], b"t"].concat();
        assert!(row(&tombstone, pair.encode_to_vec().into()).unwrap().deleted);
        for wrong in [&name[..16], &[&name[..], b"x"].concat(), &[&name[..], b"tt"].concat(), &[0; 17]] {
            assert!(row(wrong, pair.encode_to_vec().into()).is_none());
        }
        assert!(row(&name, Bytes::from_static(b"\xff")).is_none());
        assert!(row(&name, Bytes::new()).is_none());
        let stored = Bytes::from_static(b"\x08\x05\x10\xf4\x03");
        assert_eq!(lease(stored), Some(Lease { id: 5, granted: 500, remaining: None }));
        assert_eq!(lease(Bytes::from_static(b"\xff")), None);
    }
}
