//! Checkpoints of the state machine on disk: made here, sent to members that are too far behind, received from a leader.
//!
//! `snap/` holds one current snapshot `<index>-<term>/` with the files in `data/` and a sealed manifest, besides temporary
//! directories. A snapshot exists once its manifest does: everything in it was synced before.
//!
//! Always holds: opening removes nothing; what is of no use is removed by [`Snapshots::sweep`], once the start-up checks have
//! passed (I14). Later a directory is given up when its last user drops it, so that a transfer is never cut off by the next
//! snapshot; a thread of its own removes it ([`Sweeper`]), and no lock that Raft's core may want is held over disk work.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use pintle_proto::raft_v1 as pb;
use prost::Message;

use crate::codec;
use crate::core::{RaftLogId, SnapshotMeta};
use crate::identity::{sync_dir, write_durably};
use crate::limits;
use crate::wire;

const DIR: &str = "snap";
const DATA: &str = "data";
const MANIFEST: &str = "manifest";
const TEMPORARY: &str = "tmp-";

/// Depth of directories in a checkpoint.
const DEPTH: usize = 4;

/// Where directories go that nobody needs any more. Cheap to clone. What waits is bounded by what is on the disk: one
/// snapshot is made, and one received, at a time.
#[derive(Clone, Debug)]
struct Sweeper(mpsc::Sender<PathBuf>);

impl Sweeper {
    /// A thread that ends with the last clone.
    fn start() -> io::Result<Self> {
        let (sweeper, waiting) = Self::detached();
        let run = move || waiting.iter().for_each(|path| remove(&path));
        std::thread::Builder::new().name("raft-sweep".to_owned()).spawn(run)?;
        Ok(sweeper)
    }

    fn detached() -> (Self, mpsc::Receiver<PathBuf>) {
        let (sender, waiting) = mpsc::channel();
        (Self(sender), waiting)
    }

    fn take(&self, path: &Path) {
        if self.0.send(path.to_owned()).is_err() {
            tracing::warn!(path = %path.display(), "a snapshot directory is left behind, the next start removes it");
        }
    }
}

/// One snapshot on disk.
#[derive(Debug)]
pub(crate) struct SnapshotDir {
    path: Mutex<PathBuf>,
    pub manifest: pb::SnapshotManifest,
    pub meta: SnapshotMeta,
    /// Removed with its last user.
    obsolete: AtomicBool,
    sweeper: Sweeper,
}

impl SnapshotDir {
    fn new(path: PathBuf, manifest: pb::SnapshotManifest, obsolete: bool, sweeper: &Sweeper) -> io::Result<Self> {
        let meta = wire::manifest_meta(&manifest).map_err(invalid)?;
        let (path, obsolete) = (Mutex::new(path), AtomicBool::new(obsolete));
        Ok(Self { path, manifest, meta, obsolete, sweeper: sweeper.clone() })
    }

    pub fn last_log_id(&self) -> Option<RaftLogId> {
        self.meta.last_log_id
    }

    fn data(&self) -> PathBuf {
        self.path.lock().join(DATA)
    }

    /// Opens a file of the manifest.
    pub fn open(&self, file: &pb::SnapshotFile) -> io::Result<File> {
        File::open(self.data().join(relative(&file.path)?))
    }
}

impl Drop for SnapshotDir {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Relaxed) {
            self.sweeper.take(self.path.get_mut());
        }
    }
}

/// All snapshots of this member.
pub(crate) struct Snapshots {
    dir: PathBuf,
    /// Held for a moment only: openraft's tasks ask for it.
    current: Mutex<Option<Arc<SnapshotDir>>>,
    /// Held while one is being made current: one at a time.
    promoting: Mutex<()>,
    temporaries: AtomicU64,
    /// What was found at start and is of no use.
    leftovers: Mutex<Vec<PathBuf>>,
    /// Why the last snapshot that cannot be read cannot.
    unreadable: Option<String>,
    sweeper: Sweeper,
}

impl Snapshots {
    /// Finds the newest snapshot in `data_dir`. Removes nothing: see [`Snapshots::sweep`].
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        Self::with(data_dir, Sweeper::start()?)
    }

    fn with(data_dir: &Path, sweeper: Sweeper) -> io::Result<Self> {
        let dir = data_dir.join(DIR);
        if !dir.exists() {
            fs::create_dir(&dir)?;
            sync_dir(data_dir)?;
        }
        let mut newest: Option<SnapshotDir> = None;
        let mut leftovers = Vec::new();
        let mut unreadable = None;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let temporary = is_temporary(&path);
            match read_snapshot(&path, &sweeper) {
                Ok(found) if !temporary && newest.as_ref().is_none_or(|n| n.last_log_id() < found.last_log_id()) => {
                    leftovers.extend(newest.replace(found).map(|older| older.path.lock().clone()));
                }
                Ok(_) => leftovers.push(path),
                Err(error) => {
                    if !temporary {
                        tracing::warn!(path = %path.display(), %error, "a snapshot cannot be read");
                        unreadable = Some(format!("the snapshot {} cannot be read: {error}", path.display()));
                    }
                    leftovers.push(path);
                }
            }
        }
        let first_free = leftovers.iter().filter_map(|path| temporary_number(path)).max().map_or(0, |last| last + 1);
        Ok(Self {
            dir,
            current: Mutex::new(newest.map(Arc::new)),
            promoting: Mutex::new(()),
            temporaries: AtomicU64::new(first_free),
            leftovers: Mutex::new(leftovers),
            unreadable,
            sweeper,
        })
    }

    /// Why a snapshot found at start is none.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// Removes what is of no use. Only once everything else in the data directory was found to be in order: until then
    /// somebody may want to look at it.
    pub fn sweep(&self) {
        for path in self.leftovers.lock().drain(..) {
            tracing::info!(path = %path.display(), "removing what is left of a snapshot");
            self.sweeper.take(&path);
        }
    }

    pub fn current(&self) -> Option<Arc<SnapshotDir>> {
        self.current.lock().clone()
    }

    /// An empty directory that is removed when dropped, unless kept.
    pub fn temporary(&self) -> io::Result<Temporary> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{TEMPORARY}{number}"));
        fs::create_dir(&path)?;
        let data = path.join(DATA);
        fs::create_dir(&data)?;
        Ok(Temporary { path: Some(path), data, sweeper: self.sweeper.clone() })
    }

    /// Makes a checkpoint that lies in `temporary` the current snapshot. Blocks on syncs.
    pub fn adopt(&self, temporary: Temporary, meta: &SnapshotMeta) -> io::Result<Arc<SnapshotDir>> {
        let mut files = Vec::new();
        list(&temporary.data, Path::new(""), DEPTH, &mut files)?;
        sync_tree(&temporary.data, &files)?;
        let manifest = wire::to_manifest(meta, files);
        let snapshot = SnapshotDir::new(temporary.keep(), manifest, true, &self.sweeper)?;
        self.promote(Arc::new(snapshot))
    }

    /// Makes a complete, synced snapshot the current one, unless it is or there is a newer one. Blocks on syncs.
    pub fn promote(&self, snapshot: Arc<SnapshotDir>) -> io::Result<Arc<SnapshotDir>> {
        let _only = self.promoting.lock();
        if let Some(held) = self.current()
            && held.last_log_id() >= snapshot.last_log_id()
        {
            return Ok(held);
        }
        let name = snapshot
            .last_log_id()
            .map_or_else(|| "0-0".to_owned(), |id| format!("{:016x}-{:x}", id.index, id.leader_id.term));
        let path = self.dir.join(name);
        if path.exists() {
            // Unreadable, from before this start: otherwise it would be the current one.
            let aside = self.dir.join(format!("{TEMPORARY}{}", self.temporaries.fetch_add(1, Ordering::Relaxed)));
            fs::rename(&path, &aside)?;
            self.leftovers.lock().retain(|left| *left != path);
            self.sweeper.take(&aside);
        }
        {
            let mut old = snapshot.path.lock();
            let record = codec::wrap(MANIFEST.as_bytes(), &snapshot.manifest.encode_to_vec());
            write_durably(&old, MANIFEST, &record)?;
            fs::rename(&*old, &path)?;
            sync_dir(&self.dir)?;
            *old = path;
        }
        snapshot.obsolete.store(false, Ordering::Relaxed);
        let older = self.current.lock().replace(Arc::clone(&snapshot));
        if let Some(older) = older {
            older.obsolete.store(true, Ordering::Relaxed);
        }
        Ok(snapshot)
    }

    /// A copy of the current snapshot's files for the state machine to take over.
    pub fn copy(&self, snapshot: &SnapshotDir) -> io::Result<Temporary> {
        let temporary = self.temporary()?;
        let source = snapshot.data();
        for file in &snapshot.manifest.files {
            let path = relative(&file.path)?;
            let (from, to) = (source.join(&path), temporary.data.join(&path));
            create_parent(&to)?;
            let shared = matches!(path.extension().and_then(|e| e.to_str()), Some("sst" | "blob"));
            if shared {
                fs::hard_link(from, &to)?
            } else {
                fs::copy(from, &to).map(|_| File::open(&to)?.sync_all())??
            }
        }
        sync_tree(&temporary.data, &snapshot.manifest.files)?;
        Ok(temporary)
    }
}

/// A directory under construction; removed when dropped.
pub(crate) struct Temporary {
    path: Option<PathBuf>,
    data: PathBuf,
    sweeper: Sweeper,
}

impl Temporary {
    /// Where the files go.
    pub fn data(&self) -> &Path {
        &self.data
    }

    fn keep(mut self) -> PathBuf {
        self.path.take().unwrap_or_default()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            self.sweeper.take(path);
        }
    }
}

/// A snapshot that is being received: chunks are checked and written as they come, in the manifest's order.
pub(crate) struct Incoming {
    temporary: Temporary,
    manifest: pb::SnapshotManifest,
    /// The file that the next chunk belongs to, and how much of it is there.
    at: usize,
    written: u64,
    open: Option<File>,
}

impl Incoming {
    pub fn new(snapshots: &Snapshots, manifest: pb::SnapshotManifest) -> io::Result<Self> {
        if manifest.files.len() > limits::SNAPSHOT_FILES {
            return Err(invalid(format!("{} files", manifest.files.len())));
        }
        wire::manifest_meta(&manifest).map_err(invalid)?;
        for file in &manifest.files {
            relative(&file.path)?;
        }
        Ok(Self { temporary: snapshots.temporary()?, manifest, at: 0, written: 0, open: None })
    }

    /// Writes the next chunk. Blocks.
    pub fn write(&mut self, chunk: &pb::SnapshotData) -> io::Result<()> {
        if chunk.data.len() > limits::SNAPSHOT_CHUNK_ACCEPTED || crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(invalid("chunk does not match its checksum"));
        }
        self.finish_files()?;
        let file = self.manifest.files.get(self.at).ok_or_else(|| invalid("chunk after the last file"))?;
        if chunk.data.is_empty() || u64::from(chunk.file) != self.at as u64 || chunk.offset != self.written {
            return Err(invalid(format!("chunk of file {} at {} is out of order", chunk.file, chunk.offset)));
        }
        let end = self.written + chunk.data.len() as u64;
        if end > file.size {
            return Err(invalid(format!("file {} is longer than {}", file.path, file.size)));
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => create(self.temporary.data(), file)?,
        };
        open.write_all_at(&chunk.data, self.written)?;
        self.open = Some(open);
        self.written = end;
        Ok(())
    }

    /// Steps over files that are complete; empty ones have no chunk.
    fn finish_files(&mut self) -> io::Result<()> {
        while let Some(file) = self.manifest.files.get(self.at)
            && self.written == file.size
        {
            let open = match self.open.take() {
                Some(open) => open,
                None => create(self.temporary.data(), file)?,
            };
            open.sync_all()?;
            self.at += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// The whole snapshot, synced but not yet current. Blocks.
    pub fn finish(mut self) -> io::Result<Arc<SnapshotDir>> {
        self.finish_files()?;
        if self.at != self.manifest.files.len() {
            return Err(invalid(format!("snapshot ends in file {} of {}", self.at, self.manifest.files.len())));
        }
        sync_tree(&self.temporary.data, &self.manifest.files)?;
        let sweeper = self.temporary.sweeper.clone();
        Ok(Arc::new(SnapshotDir::new(self.temporary.keep(), self.manifest, true, &sweeper)?))
    }
}

fn create(dir: &Path, file: &pb::SnapshotFile) -> io::Result<File> {
    let path = dir.join(relative(&file.path)?);
    create_parent(&path)?;
    File::options().write(true).create_new(true).open(path)
}

fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// A manifest's path, if it stays inside the directory.
pub(crate) fn relative(path: &str) -> io::Result<PathBuf> {
    let parts = Path::new(path);
    let inside = parts.components().all(|part| matches!(part, Component::Normal(_)));
    let depth = parts.components().count();
    if path.len() > limits::SNAPSHOT_PATH || !inside || depth == 0 || depth > DEPTH {
        return Err(invalid(format!("file name {path:?} is not allowed")));
    }
    Ok(parts.to_owned())
}

/// Lists the files below `dir` with their sizes, in a stable order.
fn list(dir: &Path, prefix: &Path, depth: usize, files: &mut Vec<pb::SnapshotFile>) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = prefix.join(entry.file_name());
        let kind = entry.metadata()?;
        if kind.is_dir() && depth > 1 {
            list(&entry.path(), &path, depth - 1, files)?;
        } else if kind.is_file() {
            let path = path.to_str().ok_or_else(|| invalid("file name is not UTF-8"))?.to_owned();
            files.push(pb::SnapshotFile { path, size: kind.len() });
        } else {
            return Err(invalid(format!("{} is neither file nor directory", path.display())));
        }
    }
    Ok(())
}

/// Syncs files, their directories, and the directory that holds them.
fn sync_tree(data: &Path, files: &[pb::SnapshotFile]) -> io::Result<()> {
    let mut dirs = std::collections::BTreeSet::from([data.to_owned()]);
    for file in files {
        let path = data.join(relative(&file.path)?);
        File::open(&path)?.sync_all()?;
        dirs.extend(path.ancestors().skip(1).take_while(|dir| dir.starts_with(data)).map(Path::to_owned));
    }
    dirs.iter().try_for_each(|dir| sync_dir(dir))?;
    data.parent().map_or(Ok(()), sync_dir)
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY))
}

/// The number in a temporary directory's name: not to be given again while the directory may be there.
fn temporary_number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(TEMPORARY)?.parse().ok()
}

/// A snapshot of a member that does not run: where it ends, and where its files are.
pub(crate) type Found = (Option<RaftLogId>, PathBuf);

/// The snapshots in `data_dir`, oldest first, and why the others cannot be read. Changes nothing.
pub(crate) fn look(data_dir: &Path) -> io::Result<(Vec<Found>, Vec<String>)> {
    let (sweeper, _) = Sweeper::detached();
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    let listed = match fs::read_dir(data_dir.join(DIR)) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((found, unreadable)),
        Err(error) => return Err(error),
    };
    for entry in listed {
        let path = entry?.path();
        match read_snapshot(&path, &sweeper) {
            _ if is_temporary(&path) => (),
            Ok(snapshot) => found.push((snapshot.last_log_id(), snapshot.data())),
            Err(error) => unreadable.push(format!("the snapshot {} cannot be read: {error}", path.display())),
        }
    }
    found.sort();
    Ok((found, unreadable))
}

fn read_snapshot(path: &Path, sweeper: &Sweeper) -> io::Result<SnapshotDir> {
    let of = |name: &str, error: io::Error| io::Error::new(error.kind(), format!("file {name}: {error}"));
    let record = fs::read(path.join(MANIFEST)).map_err(|error| of(MANIFEST, error))?;
    let body = codec::unwrap(MANIFEST.as_bytes(), &record).map_err(|error| of(MANIFEST, invalid(error)))?;
    let manifest = pb::SnapshotManifest::decode(body).map_err(|error| of(MANIFEST, invalid(error)))?;
    for file in &manifest.files {
        let size =
            fs::metadata(path.join(DATA).join(relative(&file.path)?)).map_err(|error| of(&file.path, error))?.len();
        if size != file.size {
            return Err(invalid(format!("file {} has {size} bytes instead of {}", file.path, file.size)));
        }
    }
    SnapshotDir::new(path.to_owned(), manifest, false, sweeper)
}

fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a snapshot directory");
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Reads a file in chunks, for sending. Blocks.
pub(crate) fn read_chunk(file: &File, number: u32, offset: u64, size: u64) -> io::Result<pb::SnapshotData> {
    let len = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(limits::SNAPSHOT_CHUNK);
    let mut data = vec![0; len];
    file.read_exact_at(&mut data, offset)?;
    Ok(pb::SnapshotData { file: number, offset, crc32c: crc32c::crc32c(&data), data: data.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{StoredMembership, raft_log_id};
    use crate::machine::LogId;

    fn meta(index: u64) -> SnapshotMeta {
        let last_log_id = Some(raft_log_id(LogId { term: 1, index }));
        SnapshotMeta { last_log_id, last_membership: StoredMembership::default() }
    }

    fn adopt(snapshots: &Snapshots, index: u64) -> Arc<SnapshotDir> {
        let temporary = snapshots.temporary().expect("temporary");
        fs::write(temporary.data().join("file"), b"content").expect("write");
        snapshots.adopt(temporary, &meta(index)).expect("adopt")
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir.join(DIR))
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_removed_before_everything_is_proven() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (sweeper, waiting) = Sweeper::detached();
        let snapshots = Snapshots::with(dir.path(), sweeper.clone()).expect("open");
        adopt(&snapshots, 7);
        let unfinished = snapshots.temporary().expect("temporary").keep();
        drop(snapshots);
        let broken = dir.path().join(DIR).join("0000000000000009-1");
        fs::create_dir(&broken).expect("create");
        fs::write(broken.join(MANIFEST), b"no manifest").expect("write");
        let before = names(dir.path());

        let snapshots = Snapshots::with(dir.path(), sweeper).expect("open");
        assert_eq!(snapshots.current().expect("the readable one").last_log_id(), meta(7).last_log_id);
        assert_eq!(names(dir.path()), before);
        let next = snapshots.temporary().expect("its name is not that of a leftover");
        assert!(waiting.try_recv().is_err());
        snapshots.sweep();
        let mut swept: Vec<PathBuf> = waiting.try_iter().collect();
        swept.sort();
        assert_eq!(swept, [broken, unfinished]);
        drop(next);
    }

    #[test]
    fn whoever_replaces_a_snapshot_does_not_remove_the_old_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (sweeper, waiting) = Sweeper::detached();
        let snapshots = Snapshots::with(dir.path(), sweeper).expect("open");
        let first = adopt(&snapshots, 7);
        let path = first.path.lock().clone();
        adopt(&snapshots, 8);
        assert!(waiting.try_recv().is_err(), "somebody still sends it");
        drop(first);
        assert!(path.exists(), "its last user, who may be Raft's core, only gave it up");
        assert_eq!(waiting.try_recv(), Ok(path));
    }

    #[test]
    fn an_unreadable_snapshot_does_not_stand_in_the_way_of_one_with_its_name() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let broken = dir.path().join(DIR).join("0000000000000007-1");
        fs::create_dir_all(&broken).expect("create");
        let (sweeper, waiting) = Sweeper::detached();
        let snapshots = Snapshots::with(dir.path(), sweeper).expect("open");
        adopt(&snapshots, 7);
        assert!(read_snapshot(&broken, &snapshots.sweeper).is_ok(), "the new one");
        assert_eq!(waiting.try_iter().count(), 1);
        snapshots.sweep();
        assert!(waiting.try_recv().is_err(), "what is at its place now is no leftover");
    }

    /// The messages in which `snapshot` is sent.
    fn chunks(snapshot: &SnapshotDir) -> Vec<pb::SnapshotData> {
        let files = snapshot.manifest.files.iter().zip(0..);
        files
            .map(|(file, number)| read_chunk(&snapshot.open(file).expect("open"), number, 0, file.size).expect("read"))
            .collect()
    }

    /// A member of etcd to which a second snapshot was sent while it was still taking in the first panicked. Here each is received into a
    /// place of its own; they are made current one at a time, and the one that reaches further stays, in whatever order they end.
    #[test]
    fn etcd_18055_two_snapshots_that_are_received_at_once_do_not_disturb_each_other() {
        let there = tempfile::tempdir().expect("temporary directory");
        let sent: Vec<Arc<SnapshotDir>> = {
            let snapshots = Snapshots::open(there.path()).expect("open");
            [7, 9].map(|index| adopt(&snapshots, index)).into()
        };
        for (first, second) in [(0, 1), (1, 0), (0, 0)] {
            let here = tempfile::tempdir().expect("temporary directory");
            let snapshots = Snapshots::open(here.path()).expect("open");
            let mut incoming = [first, second].map(|which: usize| {
                (Incoming::new(&snapshots, sent[which].manifest.clone()).expect("begin"), chunks(&sent[which]))
            });
            for (incoming, chunks) in &mut incoming {
                incoming.write(&chunks[0]).expect("the first chunk of each, before either ends");
            }
            let [one, other] = incoming.map(|(incoming, _)| incoming.finish().expect("finish"));
            let held = snapshots.promote(one).expect("promote");
            assert_eq!(held.last_log_id(), sent[first].last_log_id());
            let (one_id, other_id) = (sent[first].last_log_id(), sent[second].last_log_id());
            let further = if one_id >= other_id { one_id } else { other_id };
            assert_eq!(snapshots.promote(other).expect("promote").last_log_id(), further);
            let current = snapshots.current().expect("current");
            assert_eq!(current.last_log_id(), further);
            let copy = snapshots.copy(&current).expect("copy");
            assert_eq!(fs::read(copy.data().join("file")).expect("read"), b"content");
        }
    }
}
