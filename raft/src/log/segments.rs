//! The files of the log, and where in them entries are. Written by one thread through [`Appender`], read by any.
//!
//! Always holds: a file appears whole, with its head; the numbers of files have no gaps, and each goes on where the one before ends. What is in
//! the index was synced. A file goes once all its entries are purged, the oldest first.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;
use pintle_base::rng;

use super::segment::{self, Checkpoint, Draft, End, Head, Kind, SECTOR, WRITE_HEAD, Write};
use super::{ENTRY, OpenError, TRUNCATION};
use crate::codec;
use crate::core::{Entry, RaftLogId, next_index};
use crate::identity::sync_dir;
use crate::limits;

const EXTENSION: &str = "log";
/// Of a file that is being made.
const UNFINISHED: &str = "log.new";

/// Where the entries of one write are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Index of the first; they go on until the next place begins, or the log ends.
    first: u64,
    file: u64,
    at: u64,
    /// Bytes with its head.
    length: usize,
    sequence: u64,
}

/// What readers need.
#[derive(Default)]
struct Index {
    files: BTreeMap<u64, Open>,
    /// In the order of their entries.
    places: VecDeque<Place>,
}

#[derive(Clone)]
struct Open {
    file: Arc<File>,
    path: PathBuf,
    salt: u64,
}

/// The files of a log.
pub(super) struct Segments {
    dir: PathBuf,
    index: Mutex<Index>,
    /// What was read last: whoever reads old entries takes them in small pieces, one after the other.
    read: Mutex<Option<(Place, Arc<[(Entry, usize)]>)>>,
}

/// How a write changes the index: what is no more, and what is new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// Entries of earlier writes end before it.
    pub truncated: Option<u64>,
    /// Its own begin there.
    pub first: Option<u64>,
}

impl Span {
    /// Entries from `from` on are no more.
    pub fn truncate(&mut self, from: u64) {
        self.truncated = Some(self.truncated.map_or(from, |before| before.min(from)));
        self.first = self.first.filter(|first| *first < from);
    }

    pub fn append(&mut self, index: u64) {
        self.first.get_or_insert(index);
    }
}

/// The file's path.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.{EXTENSION}"))
}

/// The numbers of the files in `dir`, and those that were not finished.
pub(super) fn list(dir: &Path) -> Result<(Vec<u64>, Vec<PathBuf>), OpenError> {
    let failed = |source| OpenError::Io { file: dir.to_owned(), source };
    let (mut numbers, mut unfinished) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match name.split_once('.') {
            Some((_, UNFINISHED)) => unfinished.push(path),
            // RocksDB's files are numbered with six digits.
            Some((number, EXTENSION)) if number.len() == 16 => match number.parse() {
                Ok(number) => numbers.push(number),
                Err(_) => return Err(OpenError::damaged(&path, "its name has no number")),
            },
            _ if name.starts_with("MANIFEST-") => return Err(OpenError::Older { dir: dir.to_owned() }),
            _ => (),
        }
    }
    numbers.sort_unstable();
    if let Some(pair) = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        return Err(OpenError::Missing { file: self::path(dir, pair[0] + 1) });
    }
    Ok((numbers, unfinished))
}

/// Told what is read from the files, in the order it was written.
pub(super) trait Replay {
    /// A file begins; `first` if nothing was read before.
    fn begin(&mut self, checkpoint: &Checkpoint, first: bool) -> Result<(), String>;

    fn record(&mut self, kind: Kind, record: &[u8], span: &mut Span) -> Result<(), OpenError>;
}

/// What there is to go on from.
pub(super) struct Loaded {
    pub segments: Segments,
    pub newest: Option<Newest>,
    pub bytes: u64,
}

/// The file that is written to.
#[derive(Clone)]
pub(super) struct Newest {
    pub head: Head,
    pub end: End,
    pub path: PathBuf,
}

/// Why reading ended; what `replay` said passes through.
enum Stop {
    Damage(String),
    Replay(OpenError),
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Damage(what)
    }
}

impl Segments {
    /// Reads all files in `dir`. Changes nothing, unless they are to be written.
    pub fn load(dir: &Path, numbers: &[u64], write: bool, replay: &mut dyn Replay) -> Result<Loaded, OpenError> {
        let mut index = Index::default();
        let mut newest: Option<Newest> = None;
        let mut bytes = 0;
        for number in numbers {
            let path = path(dir, *number);
            let failed = |source| OpenError::Io { file: path.clone(), source };
            let file = OpenOptions::new().read(true).write(write).open(&path).map_err(failed)?;
            let content = fs::read(&path).map_err(failed)?;
            bytes += content.len() as u64;
            let (head, end) = load_file(&content, &path, *number, newest.as_ref(), replay, &mut index)?;
            index.files.insert(*number, Open { file: Arc::new(file), path: path.clone(), salt: head.salt });
            newest = Some(Newest { head, end, path });
        }
        let segments = Self { dir: dir.to_owned(), index: Mutex::new(index), read: Mutex::default() };
        Ok(Loaded { segments, newest, bytes })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Index of the first entry, purged or not.
    pub fn first(&self) -> Option<u64> {
        self.index.lock().places.front().map(|place| place.first)
    }

    /// Entries of `from..to`, which the log must hold, until they exceed `bytes`; at least one. Blocks on the disk.
    pub fn read(&self, from: u64, to: u64, bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut total = 0;
        let mut next = from;
        while next < to && (total <= bytes || entries.is_empty()) {
            let Some((place, end, open)) = self.place_of(next) else { break };
            for (entry, size) in &self.entries_of(&open, place)?[..] {
                if !(next..to.min(end)).contains(&entry.log_id.index) {
                    continue;
                }
                total += size;
                if total > bytes && !entries.is_empty() {
                    return Ok(entries);
                }
                next = entry.log_id.index.saturating_add(1);
                entries.push(entry.clone());
            }
            // What a place should hold and does not is a gap; whoever asked finds it.
            next = next.max(end);
        }
        Ok(entries)
    }

    /// The newest of the entries of `from..to` that `wanted` picks. Reads backwards.
    pub fn find_last<T>(&self, from: u64, to: u64, wanted: impl Fn(&Entry) -> Option<T>) -> io::Result<Option<T>> {
        let mut end = to;
        while end > from {
            let Some((place, _, open)) = self.place_of(end - 1) else { break };
            let within = |entry: &Entry| (from.max(place.first)..end).contains(&entry.log_id.index);
            let entries = self.entries_of(&open, place)?;
            let mut newest_first = entries.iter().rev().map(|(entry, _)| entry).filter(|entry| within(entry));
            if let Some(found) = newest_first.find_map(&wanted) {
                return Ok(Some(found));
            }
            end = place.first;
        }
        Ok(None)
    }

    fn entries_of(&self, open: &Open, place: Place) -> io::Result<Arc<[(Entry, usize)]>> {
        if let Some((read, entries)) = &*self.read.lock()
            && *read == place
        {
            return Ok(Arc::clone(entries));
        }
        let entries: Arc<[_]> = read_entries(open, place)?.into();
        *self.read.lock() = Some((place, Arc::clone(&entries)));
        Ok(entries)
    }

    /// Where the entry at `index` is, with the index at which that place ends, and its file.
    fn place_of(&self, index: u64) -> Option<(Place, u64, Open)> {
        let all = self.index.lock();
        let after = all.places.partition_point(|place| place.first <= index);
        let place = *all.places.get(after.checked_sub(1)?)?;
        let end = all.places.get(after).map_or(u64::MAX, |next| next.first);
        Some((place, end, all.files.get(&place.file)?.clone()))
    }
}

impl Index {
    fn add(&mut self, span: Span, place: impl FnOnce(u64) -> Place) {
        if let Some(from) = span.truncated {
            while self.places.back().is_some_and(|place| place.first >= from) {
                self.places.pop_back();
            }
        }
        if let Some(first) = span.first {
            self.places.push_back(place(first));
        }
    }

    /// Forgets places of purged entries only; answers the files that are needed for nothing else, oldest first. The newest one stays.
    fn purge(&mut self, purged: u64, log_is_empty: bool, newest: u64) -> BTreeMap<u64, Open> {
        while self.places.get(1).is_some_and(|next| next.first <= purged.saturating_add(1))
            || (log_is_empty && !self.places.is_empty())
        {
            self.places.pop_front();
        }
        let needed = self.places.front().map_or(newest, |place| place.file).min(newest);
        let kept = self.files.split_off(&needed);
        std::mem::replace(&mut self.files, kept)
    }
}

fn load_file(
    content: &[u8],
    path: &Path,
    number: u64,
    before: Option<&Newest>,
    replay: &mut dyn Replay,
    index: &mut Index,
) -> Result<(Head, End), OpenError> {
    let damaged = |what: String| OpenError::damaged(path, what);
    let head = Head::decode(content, number).map_err(damaged)?;
    if let Some(before) = before {
        if before.end.unfinished > 0 {
            let what =
                format!("the write at byte {} cannot be read, and the next file goes on after it", before.end.at);
            return Err(OpenError::damaged(&before.path, what));
        }
        if head.first != before.end.sequence {
            let what =
                format!("it begins with write {}, after the file before {} is next", head.first, before.end.sequence);
            return Err(damaged(what));
        }
    }
    replay.begin(&head.checkpoint, before.is_none()).map_err(damaged)?;
    let end = segment::scan(content, &head, |write| {
        let mut span = Span::default();
        for record in write.records() {
            let (kind, record) = record?;
            replay.record(kind, record, &mut span).map_err(Stop::Replay)?;
        }
        index.add(span, |first| place(first, number, &write));
        Ok::<_, Stop>(())
    });
    let end = end.map_err(|stop| match stop {
        Stop::Damage(what) => damaged(what),
        Stop::Replay(error) => error,
    })?;
    Ok((head, end))
}

fn place(first: u64, file: u64, write: &Write<'_>) -> Place {
    Place { first, file, at: write.at, length: write.size(), sequence: write.sequence }
}

/// The entries of one write that it did not itself truncate, with their sizes on disk.
fn read_entries(open: &Open, place: Place) -> io::Result<Vec<(Entry, usize)>> {
    let damaged = |what: String| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged: {what}", open.path.display()))
    };
    let mut bytes = vec![0; place.length];
    open.file.read_exact_at(&mut bytes, place.at)?;
    let write = segment::write_at(&bytes, 0, open.salt, place.sequence)
        .ok_or_else(|| damaged(format!("the write at byte {} cannot be read", place.at)))?;
    let mut entries: Vec<(Entry, usize)> = Vec::new();
    for record in write.records() {
        match record.map_err(damaged)? {
            (Kind::Entry, record) => {
                let entry = codec::decode_entry(ENTRY, record).map_err(|error| damaged(error.to_string()))?;
                entries.push((entry, record.len()));
            }
            (Kind::Truncate, record) => {
                let from = truncated_from(record).map_err(|error| damaged(error.to_string()))?;
                entries.retain(|(entry, _)| entry.log_id.index < from);
            }
            _ => (),
        }
    }
    Ok(entries)
}

/// The index from which a record truncates, and the entry before it.
pub(super) fn truncation(record: &[u8]) -> Result<(u64, Option<RaftLogId>), codec::RecordError> {
    codec::decode(TRUNCATION, record)
}

fn truncated_from(record: &[u8]) -> Result<u64, codec::RecordError> {
    truncation(record).map(|(from, _)| from)
}

/// The end of the log, where one thread writes.
pub(super) struct Appender {
    segments: Arc<Segments>,
    /// Nothing is there yet before the first write.
    open: Option<Current>,
    /// What the log says, by all that was written.
    pub checkpoint: Checkpoint,
    memory: Vec<u8>,
}

struct Current {
    file: Arc<File>,
    head: Head,
    /// Where the next write goes, and its sequence.
    at: u64,
    sequence: u64,
}

impl Appender {
    /// Goes on where the files end. What a crash left of a write is wiped out: the next one may be shorter.
    pub fn new(segments: Arc<Segments>, newest: Option<Newest>, checkpoint: Checkpoint) -> io::Result<Self> {
        let open = newest.and_then(|newest| {
            let file = Arc::clone(&segments.index.lock().files.get(&newest.head.number)?.file);
            Some((file, newest))
        });
        let open = match open {
            None => None,
            Some((file, Newest { head, end, .. })) => {
                // If its sync failed once, the kernel takes it for written although it is in memory only.
                if let Some((at, until)) = end.last {
                    let mut last = vec![0; usize::try_from(until - at).map_err(io::Error::other)?];
                    file.read_exact_at(&mut last, at)?;
                    file.write_all_at(&last, at)?;
                }
                let mut wiped = 0;
                while wiped < end.unfinished {
                    let zeros = [0; 64 << 10];
                    let length = (end.unfinished - wiped).min(zeros.len() as u64);
                    file.write_all_at(&zeros[..usize::try_from(length).unwrap_or(0)], end.at + wiped)?;
                    wiped += length;
                }
                Some(Current { file, head, at: end.at, sequence: end.sequence })
            }
        };
        Ok(Self { segments, open, checkpoint, memory: Vec::new() })
    }

    /// Number of the file that is written to; 0 before the first.
    pub fn number(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.head.number)
    }

    /// Everything that was read is on stable storage afterwards, and so are the names of all files.
    pub fn sync(&self) -> io::Result<()> {
        self.open.as_ref().map_or(Ok(()), |open| open.file.sync_data())?;
        sync_dir(&self.segments.dir)
    }

    pub fn draft(&mut self) -> Draft {
        Draft::new(std::mem::take(&mut self.memory))
    }

    /// Makes room for a write of so many bytes; true if a file was made for it.
    pub fn make_room(&mut self, bytes: usize) -> io::Result<bool> {
        if self.open.as_ref().is_some_and(|open| open.at.saturating_add(bytes as u64) <= open.head.size) {
            return Ok(false);
        }
        let (number, first) = self.open.as_ref().map_or((1, 1), |open| (open.head.number + 1, open.sequence));
        let size = limits::SEGMENT_BYTES.max((SECTOR + bytes).next_multiple_of(SECTOR) as u64);
        let head = Head { number, size, first, salt: rng::u64(), checkpoint: self.checkpoint };
        let (file, path) = make(&self.segments.dir, &head)?;
        let file = Arc::new(file);
        let open = Open { file: Arc::clone(&file), path, salt: head.salt };
        self.segments.index.lock().files.insert(number, open);
        self.open = Some(Current { file, head, at: SECTOR as u64, sequence: first });
        Ok(true)
    }

    /// Writes and syncs; there must be room. `after` is what the log says then.
    pub fn write(&mut self, draft: Draft, span: Span, after: Checkpoint) -> io::Result<()> {
        let open = self.open.as_mut().ok_or_else(|| io::Error::other("no file of the log is open"))?;
        let bytes = draft.seal(open.at, open.sequence, open.head.salt);
        open.file.write_all_at(&bytes, open.at)?;
        open.file.sync_data()?;
        let place = |first| {
            let (file, at, length, sequence) = (open.head.number, open.at, bytes.len(), open.sequence);
            Place { first, file, at, length, sequence }
        };
        self.segments.index.lock().add(span, place);
        open.at = segment::next_place(open.at + bytes.len() as u64);
        open.sequence += 1;
        self.checkpoint = after;
        if bytes.capacity() <= limits::WRITE_MEMORY {
            self.memory = bytes;
        }
        Ok(())
    }

    /// Removes files that hold purged entries only, after the purge was synced.
    pub fn drop_files(&self) {
        let Some(purged) = self.checkpoint.purged else { return };
        let empty = next_index(self.checkpoint.last) <= next_index(Some(purged));
        *self.segments.read.lock() = None;
        let mut gone = self.segments.index.lock().purge(purged.index, empty, self.number());
        // Oldest first, and durably before the next: what is left has no gaps.
        while let Some(oldest) = gone.first_entry() {
            if let Err(error) = remove(&self.segments.dir, &oldest.get().path) {
                tracing::warn!(%error, "files of purged log entries stay until the next purge");
                self.segments.index.lock().files.append(&mut gone);
                return;
            }
            oldest.remove();
        }
    }
}

/// Removes a file, durably; it may have gone before.
fn remove(dir: &Path, path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_dir(dir),
    }
}

/// Makes a file with its head, durably.
fn make(dir: &Path, head: &Head) -> io::Result<(File, PathBuf)> {
    let draft = dir.join(format!("{:016}.{UNFINISHED}", head.number));
    make_by(&draft, dir, head).inspect_err(|_| {
        // It may have all the room that was left.
        let _ = fs::remove_file(&draft);
    })
}

fn make_by(draft: &Path, dir: &Path, head: &Head) -> io::Result<(File, PathBuf)> {
    let path = path(dir, head.number);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(draft)?;
    let size = i64::try_from(head.size).map_err(io::Error::other)?;
    loop {
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => break,
            Err(Errno::EINTR) => (),
            // Not every file system can; a full disk is another matter.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => break file.set_len(head.size)?,
            Err(error) => return Err(error.into()),
        }
    }
    file.write_all_at(&head.encode().map_err(io::Error::other)?, 0)?;
    file.sync_all()?;
    fs::rename(draft, &path)?;
    sync_dir(dir)?;
    Ok((file, path))
}

const _: () = assert!(WRITE_HEAD < SECTOR);
