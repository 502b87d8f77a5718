//! `snapshot save`: one member's data in a file; `snapshot status`: what such a file holds.
//!
//! Always holds: a saved file of that name is whole, or is not there. What arrives goes to NAME.part; its checksum is checked,
//! it is synced, and then renamed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use pintle_proto::etcdserverpb::SnapshotRequest;
use pintle_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pintle_store::bolt::{Bolt, BoltError};
use sha2::{Digest, Sha256};

use super::client::{CallError, Client, told};
use super::grammar::SnapshotCommand;
use super::print::Answer;
use super::{Context, Done, Failure, go, print};
use crate::store::restore;

/// Bytes of the checksum that a snapshot ends with.
const CHECKSUM: usize = 32;

/// Where etcd has the history, by revision.
const KEY_BUCKET: &[u8] = b"key";

pub const STATUS_HELP: &str = "\
Reads the whole file, without a server: every page, and the checksum that `snapshot save` puts behind it. A database
copied from a data directory (member/snap/db) has none. The hash is that of `etcdutl snapshot status`: files with the
same hash hold the same.

  PROGRAM snapshot status backup.db -w table";

pub async fn run(context: &Context, command: SnapshotCommand) -> Done {
    match command {
        SnapshotCommand::Save(args) => match &args.words[..] {
            [path] => save(context, Path::new(path)).await,
            _ => Err(Failure::bad_args("snapshot save expects one argument")),
        },
        SnapshotCommand::Status { words, skip_hash_check } => match &words[..] {
            [path] => {
                let path = PathBuf::from(path);
                let reading = tokio::task::spawn_blocking(move || FileStatus::read(&path, !skip_hash_check));
                let status = reading.await.map_err(|error| Failure::error(error.to_string()))??;
                context.printer.print(&Answer::File(&status))
            }
            _ => Err(Failure::bad_args("snapshot status requires exactly one argument")),
        },
        SnapshotCommand::Restore(args) => match &args.words[..] {
            [path] => restored(PathBuf::from(path), args.clone()).await,
            _ => Err(Failure::bad_args("snapshot restore requires exactly one argument")),
        },
    }
}

async fn restored(file: PathBuf, args: restore::RestoreArgs) -> Done {
    // Minutes of disk work.
    let restored = tokio::task::spawn_blocking(move || restore::run(&file, &args)).await;
    let told = restored.map_err(|error| Failure::error(error.to_string()))?;
    print::out(told.map_err(|error| Failure::error(format!("{error:#}")))?)
}

async fn save(context: &Context, path: &Path) -> Done {
    let endpoints = &context.settings.endpoints;
    if endpoints.len() != 1 {
        let list = endpoints.join(" ");
        let text = format!("snapshot must be requested to one selected node, not multiple [{list}]");
        return Err(Failure::interrupted(text));
    }
    let client = context.client().await?;
    let part = Part::create(path)?;
    // Without a time given it may take as long as it takes.
    let limit = context.settings.command_timeout_given.then_some(context.settings.command_timeout);
    let fetching = fetch(&client, part);
    let fetched = match limit {
        Some(limit) => {
            tokio::time::timeout(limit, fetching).await.unwrap_or_else(|_| Err(interrupted(CallError::Late)))
        }
        None => fetching.await,
    };
    let part = fetched?;
    eprintln!("fetched snapshot of {} from {}", go::size(part.bytes), endpoints[0]);
    part.finish(path)?;
    print::out(format!("Snapshot saved at {}\n", path.display()))
}

fn interrupted(error: impl std::fmt::Display) -> Failure {
    Failure::interrupted(error.to_string())
}

async fn fetch(client: &Client, mut part: Part) -> Result<Part, Failure> {
    let channel = client.channel(Some(client.deadline())).await.map_err(interrupted)?;
    let mut maintenance =
        MaintenanceClient::with_interceptor(channel, client.identity().await).max_decoding_message_size(usize::MAX);
    let refused = |status: tonic::Status| interrupted(told(&status));
    let mut blobs = maintenance.snapshot(SnapshotRequest {}).await.map_err(refused)?.into_inner();
    while let Some(blob) = blobs.next().await {
        part.write(&blob.map_err(refused)?.blob)?;
    }
    Ok(part)
}

/// What a snapshot comes to, as etcdutl sees it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FileStatus {
    /// CRC-32C over the names of all buckets, and all keys and values in them.
    pub hash: u32,
    /// The newest of the history.
    pub revision: i64,
    /// Items of all buckets.
    pub keys: u64,
    /// Of the database, the checksum behind it aside.
    pub bytes: u64,
}

impl FileStatus {
    /// Reads all of a snapshot, or of a database that was copied from a data directory.
    ///
    /// # Errors
    /// It is not there, damaged, or with `check` not what its checksum is of.
    fn read(path: &Path, check: bool) -> Result<Self, Failure> {
        // In the words that scripts know.
        if let Err(error) = std::fs::metadata(path) {
            return Err(Failure::error(format!("stat {}: {}", path.display(), go::system_error(&error))));
        }
        let read = match Bolt::open_snapshot(path, check) {
            Err(BoltError::NoChecksum) => Bolt::open(path),
            opened => opened,
        };
        let read = read.and_then(|bolt| Self::of(&bolt));
        read.map_err(|error| Failure::error(format!("{}: {:#}", path.display(), anyhow::Error::from(error))))
    }

    fn of(bolt: &Bolt) -> Result<Self, BoltError> {
        let mut status = Self { bytes: bolt.pages() * bolt.page_size() as u64, ..Self::default() };
        for name in bolt.buckets()? {
            status.hash = crc32c::crc32c_append(status.hash, &name);
            for item in bolt.bucket(&name)?.into_iter().flatten() {
                let (key, value) = item?;
                status.hash = crc32c::crc32c_append(crc32c::crc32c_append(status.hash, &key), &value);
                status.keys += 1;
                if name == KEY_BUCKET {
                    let main = key.first_chunk().copied().unwrap_or_default();
                    status.revision = i64::from_be_bytes(main);
                }
            }
        }
        Ok(status)
    }
}

/// The file while it grows; removed unless it is finished.
struct Part {
    path: PathBuf,
    file: File,
    hash: Sha256,
    /// What may be the checksum: the last bytes, not yet part of `hash`.
    tail: Vec<u8>,
    bytes: u64,
    finished: bool,
}

impl Part {
    fn create(path: &Path) -> Result<Self, Failure> {
        let mut name = OsString::from(path);
        name.push(".part");
        let path = PathBuf::from(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(|error| interrupted(format!("could not open {} ({error})", path.display())))?;
        Ok(Self { path, file, hash: Sha256::new(), tail: Vec::new(), bytes: 0, finished: false })
    }

    fn write(&mut self, blob: &[u8]) -> Done {
        self.file.write_all(blob).map_err(|error| interrupted(format!("write {}: {error}", self.path.display())))?;
        self.bytes += blob.len() as u64;
        self.tail.extend_from_slice(blob);
        let sure = self.tail.len().saturating_sub(CHECKSUM);
        self.hash.update(&self.tail[..sure]);
        self.tail.drain(..sure);
        Ok(())
    }

    fn finish(mut self, path: &Path) -> Done {
        if self.tail.len() < CHECKSUM || self.hash.clone().finalize()[..] != self.tail[..] {
            return Err(interrupted(format!("sha256 checksum not found [bytes: {}]", self.bytes)));
        }
        let failed = |what: &str, error: std::io::Error| interrupted(format!("could not {what}: {error}"));
        self.file.sync_all().map_err(|error| failed("sync the file", error))?;
        std::fs::rename(&self.path, path).map_err(|error| failed("rename the file", error))?;
        self.finished = true;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        synced.map_err(|error| failed("sync its directory", error))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            // What is left of a failure is of no use.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `blobs` as a snapshot; what stands below the directory afterwards.
    fn saved(blobs: &[&[u8]]) -> (Result<(), String>, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let mut part = Part::create(&path).unwrap();
        blobs.iter().for_each(|blob| part.write(blob).unwrap());
        let done = part.finish(&path).map_err(|failure| failure.text);
        let names = std::fs::read_dir(directory.path()).unwrap();
        (done, names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let sum = Sha256::digest(b"some data");
        let whole = (Ok(()), vec!["x".to_owned()]);
        assert_eq!(saved(&[b"some data", &sum]), whole);
        assert_eq!(saved(&[b"some", b" data", &sum[..10], &sum[10..]]), whole);
        for broken in [&[&b"other data"[..], &sum[..]][..], &[b"some data"], &[b"some data", &sum[1..]], &[]] {
            let (done, left) = saved(broken);
            assert!(done.unwrap_err().starts_with("sha256 checksum not found"));
            assert!(left.is_empty());
        }
    }
}
