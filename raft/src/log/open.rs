//! Opens the log and proves that it is whole: every write's and every record's checksum, no gaps, terms that only grow, a vote, and nothing
//! missing of what the low-water mark says was synced (I14).

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use openraft::EntryPayload;
use parking_lot::Mutex;
use pintle_base::dbfiles::Unfinished;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::segment::{Checkpoint, Kind};
use super::segments::{self, Appender, Loaded, Newest, Replay, Segments, Span};
use super::{COMMITTED, DIR, ENTRY, OpenError, PURGED, Queue, Shared, State, VOTE, Worker};
use crate::codec::{self, RecordError};
use crate::core::{Entry, Membership, RaftLogId, Vote, log_id, next_index};
use crate::fatal::FatalCell;
use crate::identity::sync_dir;
use crate::machine::LogId;
use crate::mark::{Mark, MarkFile};

/// Opens or creates the log in `data_dir`. No entry reaches the disk until somebody lets the worker work.
pub(crate) fn open_stepwise(data_dir: &Path, fatal: FatalCell) -> Result<(Arc<Shared>, Worker), OpenError> {
    let dir = data_dir.join(DIR);
    let failed = |source| OpenError::Io { file: dir.clone(), source };
    let (numbers, unfinished) = if dir.exists() { segments::list(&dir)? } else { Default::default() };
    // It is made before anything is written to the log, and not in the place of one that is gone.
    if !numbers.is_empty() && !MarkFile::exists(data_dir) {
        return Err(OpenError::MarkMissing);
    }
    let mut mark = MarkFile::open(data_dir).map_err(|source| OpenError::Mark { source })?;
    // A log that has promised something is never made anew in the place of one that is gone.
    if numbers.is_empty() && mark.mark() != Mark::default() {
        return Err(OpenError::Gone { dir });
    }
    fs::create_dir_all(&dir).and_then(|()| sync_dir(data_dir)).map_err(failed)?;
    let (Loaded { segments, newest, .. }, state) = load(&dir, &numbers, true, mark.mark())?;
    // Only now: until then somebody may want to look at what was there.
    for file in unfinished {
        fs::remove_file(&file).map_err(|source| OpenError::Io { file, source })?;
    }
    for rest in newest.iter().filter_map(unfinished_write) {
        tracing::warn!(file = %rest.file.display(), at = rest.at, bytes = rest.bytes, "dropping a write that a crash cut off");
    }
    let segments = Arc::new(segments);
    let appender = Appender::new(Arc::clone(&segments), newest, checkpoint(&state)).map_err(failed)?;
    let flushed = watch::Sender::new(next_index(state.last));
    // What was read, of the mark too, may be in memory only, if the process ended before it was synced.
    appender.sync().map_err(failed)?;
    mark.renew(Mark { vote: state.vote, last: state.last, segment: appender.number() })
        .map_err(|source| OpenError::Mark { source })?;
    let shared = Arc::new(Shared { segments, state: Mutex::new(state), queue: Queue::new(), flushed });
    let worker = Worker::new(Arc::clone(&shared), appender, mark, fatal);
    Ok((shared, worker))
}

/// What a crash left at the end of the newest file.
fn unfinished_write(newest: &Newest) -> Option<Unfinished> {
    let Newest { end, path, .. } = newest;
    (end.unfinished > 0).then(|| Unfinished { file: path.clone(), at: end.at, bytes: end.unfinished })
}

/// The log of a member that does not run, to be read only.
pub(crate) struct Inspected {
    loaded: Loaded,
    state: State,
}

/// Reads the whole log in `data_dir` and compares it with `mark`. Changes nothing.
pub(crate) fn inspect(data_dir: &Path, mark: Mark) -> Result<Inspected, OpenError> {
    let dir = data_dir.join(DIR);
    let (numbers, _) = if dir.exists() { segments::list(&dir)? } else { Default::default() };
    if numbers.is_empty() && mark != Mark::default() {
        return Err(OpenError::Gone { dir });
    }
    let (loaded, state) = load(&dir, &numbers, false, mark)?;
    Ok(Inspected { loaded, state })
}

impl Inspected {
    pub fn vote(&self) -> Option<Vote> {
        self.state.vote
    }

    pub fn purged(&self) -> Option<LogId> {
        self.state.purged.map(log_id)
    }

    pub fn last(&self) -> Option<LogId> {
        self.state.last.map(log_id)
    }

    pub fn entries(&self) -> u64 {
        let (first, end) = self.state.bounds();
        end.saturating_sub(first)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.loaded.bytes
    }

    /// What a crash left of a write.
    pub fn unfinished(&self) -> Option<Unfinished> {
        self.loaded.newest.as_ref().and_then(unfinished_write)
    }

    pub fn newest_membership(&self) -> io::Result<Option<Membership>> {
        newest_membership(&self.loaded.segments, self.state.bounds())
    }

    /// The id of the entry at `index`, or of the purge that ends there.
    pub fn log_id_at(&self, index: u64) -> io::Result<Option<LogId>> {
        if let Some(purged) = self.state.purged.filter(|purged| purged.index == index) {
            return Ok(Some(log_id(purged)));
        }
        let (first, end) = self.state.bounds();
        let held = (first..end).contains(&index);
        let found = if held { entry_at(&self.loaded.segments, &self.state, index)? } else { None };
        Ok(found.map(log_id))
    }
}

pub(super) fn checkpoint(state: &State) -> Checkpoint {
    let State { vote, purged, committed, last, .. } = *state;
    Checkpoint { vote, purged, committed, last }
}

/// Reads everything, and compares it with itself and with the mark.
fn load(dir: &Path, numbers: &[u64], write: bool, mark: Mark) -> Result<(Loaded, State), OpenError> {
    let mut state = State::default();
    let loaded = Segments::load(dir, numbers, write, &mut state)?;
    let (first, end) = state.bounds();
    if first < end && loaded.segments.first().is_none_or(|found| found > first) {
        let found = loaded.segments.first().unwrap_or(end);
        return Err(OpenError::Gap { want: first, found });
    }
    state.tail.purge(first);
    if numbers.last().is_none_or(|newest| *newest < mark.segment) && mark.segment > 0 {
        return Err(OpenError::Missing { file: segments::path(dir, mark.segment) });
    }
    check(&loaded.segments, &state, mark)?;
    Ok((loaded, state))
}

impl Replay for State {
    fn begin(&mut self, checkpoint: &Checkpoint, first: bool) -> Result<(), String> {
        if first {
            let Checkpoint { vote, purged, committed, last } = *checkpoint;
            *self = Self { vote, purged, committed, last, ..Self::default() };
        } else if *checkpoint != self::checkpoint(self) {
            return Err("it does not go on where the file before it ends".to_owned());
        }
        Ok(())
    }

    fn record(&mut self, kind: Kind, record: &[u8], span: &mut Span) -> Result<(), OpenError> {
        match kind {
            Kind::Vote => self.vote = Some(small(VOTE, record)?),
            Kind::Committed => self.committed = small(COMMITTED, record)?,
            Kind::Purge => {
                let upto: RaftLogId = small(PURGED, record)?;
                if upto.index < next_index(self.purged) {
                    return Err(contradiction(format!("it is purged to {} again", log_id(upto))));
                }
                self.purged = Some(upto);
                self.tail.purge(upto.index.saturating_add(1));
                if next_index(self.last) <= upto.index {
                    self.last = Some(upto);
                }
            }
            Kind::Truncate => {
                let (from, kept) = segments::truncation(record).map_err(|source| damaged("of a truncation", source))?;
                if from != next_index(kept) || !(next_index(self.purged)..=next_index(self.last)).contains(&from) {
                    return Err(contradiction(format!("it is cut at entry {from}, which it does not hold")));
                }
                self.tail.truncate(from);
                self.last = kept;
                span.truncate(from);
            }
            Kind::Entry => {
                let want = next_index(self.last);
                let entry = codec::decode_entry(ENTRY, record).map_err(|source| damaged(&want.to_string(), source))?;
                self.append(entry, want)?;
                span.append(want);
            }
        }
        Ok(())
    }
}

impl State {
    fn append(&mut self, entry: Entry, want: u64) -> Result<(), OpenError> {
        let id = log_id(entry.log_id);
        // Nobody ever gets to the largest number.
        if id.index != want || want == u64::MAX {
            return Err(OpenError::Gap { want, found: id.index });
        }
        let term = self.last.map_or(0, |last| last.leader_id.term);
        if id.term < term {
            return Err(OpenError::TermBackwards { entry: id, term });
        }
        self.last = Some(entry.log_id);
        self.tail.push(entry);
        self.tail.shrink(want.saturating_add(1));
        Ok(())
    }
}

fn small<T: DeserializeOwned>(name: &[u8], record: &[u8]) -> Result<T, OpenError> {
    codec::decode(name, record).map_err(|source| damaged(&String::from_utf8_lossy(name), source))
}

fn contradiction(what: String) -> OpenError {
    OpenError::Contradiction { what }
}

fn damaged(what: &str, source: RecordError) -> OpenError {
    OpenError::Record { what: what.to_owned(), source }
}

/// Compares the log with itself and with the mark.
fn check(segments: &Segments, state: &State, mark: Mark) -> Result<(), OpenError> {
    let term = state.vote.map(|vote| vote.leader_id.term);
    if let Some(last) = state.last {
        match term {
            None => return Err(OpenError::NoVote),
            Some(term) if term < last.leader_id.term => {
                return Err(OpenError::VoteBehind { last: log_id(last), term });
            }
            Some(_) => (),
        }
    }
    if let Some(promised) = mark.vote
        && !state.vote.is_some_and(|vote| vote >= promised)
    {
        let found = term.unwrap_or(0);
        return Err(OpenError::VoteLost { mark: promised.leader_id.term, found });
    }
    let Some(synced) = mark.last else { return Ok(()) };
    if next_index(state.last) <= synced.index {
        return Err(OpenError::EntriesLost { mark: log_id(synced), found: state.last.map(log_id) });
    }
    if synced.index < next_index(state.purged) {
        return Ok(());
    }
    let found = entry_at(segments, state, synced.index)
        .map_err(|source| OpenError::Io { file: segments.dir().to_owned(), source })?;
    if found != Some(synced) {
        let found = found.map(log_id).unwrap_or_default();
        return Err(OpenError::EntryReplaced { mark: log_id(synced), found });
    }
    Ok(())
}

/// The newest membership in entries of `first..end`.
pub(super) fn newest_membership(segments: &Segments, (first, end): (u64, u64)) -> io::Result<Option<Membership>> {
    segments.find_last(first, end, |entry| match &entry.payload {
        EntryPayload::Membership(membership) => Some(membership.clone()),
        EntryPayload::Blank | EntryPayload::Normal(_) => None,
    })
}

pub(super) fn entry_at(segments: &Segments, state: &State, index: u64) -> io::Result<Option<RaftLogId>> {
    let recent = state.tail.read(index, index + 1, usize::MAX);
    let found = |entries: Vec<Entry>| entries.first().map(|entry| entry.log_id).filter(|id| id.index == index);
    match found(recent) {
        Some(id) => Ok(Some(id)),
        None => Ok(found(segments.read(index, index + 1, usize::MAX)?)),
    }
}
