//! openraft's view of the log: appends return as soon as the entries can be read, callbacks come from the writer.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use super::Shared;
use super::writer::Operation;
use crate::core::{Entry, RaftLogId, TypeConfig, Vote, next_index};
use crate::limits;

/// Given to openraft, which writes through it from one task.
pub(crate) struct LogStore(pub Arc<Shared>);

/// Reads the log; any number at once.
#[derive(Clone)]
pub(crate) struct LogReader(Arc<Shared>);

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.0.state.lock();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(Arc::clone(&self.0))
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, saved) = oneshot::channel();
        self.0.queue.push(Operation::Vote(*vote, done)).await?;
        saved.await.map_err(io::Error::other)??;
        self.0.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.0.queue.push(Operation::Committed(committed)).await?;
        self.0.state.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self.0.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut state = self.0.state.lock();
            if let (Some(first), Some(_)) = (entries.first(), state.last) {
                let want = next_index(state.last);
                if first.log_id.index != want {
                    let text = format!("append of entry {} where {want} is next", first.log_id);
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
            }
            if let (Some(first), None) = (entries.first(), state.last) {
                state.first = first.log_id.index;
            }
            for entry in &entries {
                state.tail.push(entry.clone());
                state.last = Some(entry.log_id);
            }
        }
        self.0.queue.push(Operation::Append(entries, callback)).await
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        let from = next_index(last);
        {
            let mut state = self.0.state.lock();
            if from >= next_index(state.last) {
                return Ok(());
            }
            state.tail.truncate(from);
            state.last = last;
            state.truncations += 1;
            // What takes the place of these entries has the same indexes and is not synced: from this moment nobody may
            // take it for that. The writer cannot raise the number meanwhile: it does so under the same lock.
            self.0.flushed.send_if_modified(|flushed| {
                let lowered = *flushed > from;
                *flushed = from.min(*flushed);
                lowered
            });
        }
        self.0.queue.push(Operation::Truncate(from, last)).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        {
            let mut state = self.0.state.lock();
            if state.purged.is_some_and(|purged| purged.index >= upto.index) {
                return Ok(());
            }
            state.tail.purge(upto.index.saturating_add(1));
            state.purged = Some(upto);
            if next_index(state.last) <= upto.index {
                state.last = Some(upto);
            }
        }
        self.0.queue.push(Operation::Purge(upto)).await
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.state.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, limits::APPEND_BYTES).await
    }

    /// In pieces of bounded size, so that a member that catches up does not hold all it missed in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let pieces = futures::stream::unfold((self.clone(), from), move |(reader, from)| async move {
            if from >= to {
                return None;
            }
            match reader.read(from, to, limits::APPEND_BYTES).await {
                Ok(entries) => {
                    let next = entries.last().map_or(to, |entry| entry.log_id.index + 1);
                    Some((Ok(entries), (reader, next)))
                }
                Err(error) => Some((Err(error), (reader, to))),
            }
        });
        futures::StreamExt::flat_map(pieces, |piece| {
            let items: Vec<io::Result<Entry>> = match piece {
                Ok(entries) => entries.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            futures::stream::iter(items)
        })
    }
}

impl LogReader {
    /// Entries of `from..to` that the log holds: all of them, or with a bound on `bytes` the first ones, at least one.
    async fn read(&self, from: u64, to: u64, bytes: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (from, to, recent, truncations) = {
                let state = self.0.state.lock();
                let (first, end) = state.bounds();
                let (from, to) = (from.max(first), to.min(end));
                if from >= to {
                    return Ok(Vec::new());
                }
                let recent = state.tail.first().unwrap_or(end);
                if from >= recent {
                    return complete(state.tail.read(from, to, bytes), from);
                }
                (from, to, recent, state.truncations)
            };
            let shared = Arc::clone(&self.0);
            let stop = to.min(recent);
            let read = tokio::task::spawn_blocking(move || shared.segments.read(from, stop, bytes));
            let mut entries = read.await.map_err(io::Error::other)??;
            let state = self.0.state.lock();
            if state.truncations != truncations || from < next_index(state.purged) {
                continue;
            }
            if bytes == usize::MAX && stop < to {
                if state.tail.first().is_none_or(|first| first > stop) {
                    continue;
                }
                entries.extend(state.tail.read(stop, to, bytes));
            }
            return complete(entries, from);
        }
    }
}

/// Checks that nothing is missing: openraft takes what it gets for the whole.
fn complete(entries: Vec<Entry>, from: u64) -> io::Result<Vec<Entry>> {
    let whole = !entries.is_empty() && entries.iter().zip(from..).all(|(entry, index)| entry.log_id.index == index);
    if whole {
        return Ok(entries);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("raft log has no entry {from}, or a gap after it")))
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(from) => from.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(to) => to.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}
