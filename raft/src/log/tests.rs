//! What the log survives, and what it refuses. Damage is done to real files between two openings.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, RaftLogReader};
use rocksdb::{DB, Options};
use tempfile::TempDir;

use super::{DIR, LOG, LogStore, META, OpenError, Shared, VOTE, Worker, Writer, key, open_stepwise};
use crate::codec;
use crate::core::{Batch, Entry, RaftLogId, TypeConfig, Vote, raft_log_id};
use crate::fatal::FatalCell;
use crate::machine::LogId;
use crate::mark;

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

fn id(term: u64, index: u64) -> RaftLogId {
    raft_log_id(LogId { term, index })
}

fn entry(term: u64, index: u64) -> Entry {
    let payload = EntryPayload::Normal(Batch(Bytes::from(format!("entry {index} of term {term}"))));
    Entry { log_id: id(term, index), payload }
}

struct Opened {
    store: LogStore,
    shared: Arc<Shared>,
    writer: Writer,
}

fn reopen(dir: &TempDir) -> Result<Opened, OpenError> {
    let (shared, worker) = open_stepwise(dir.path(), FatalCell::new())?;
    let writer = Writer::start(worker).expect("start the writer");
    Ok(Opened { store: LogStore(Arc::clone(&shared)), shared, writer })
}

/// A log whose writer works only when told to.
struct Stepwise {
    store: LogStore,
    shared: Arc<Shared>,
    worker: Worker,
}

impl Stepwise {
    fn open(dir: &TempDir) -> Self {
        let (shared, worker) = open_stepwise(dir.path(), FatalCell::new()).expect("open");
        Self { store: LogStore(Arc::clone(&shared)), shared, worker }
    }

    fn step(&mut self) {
        self.worker.perform(self.shared.queue.take_now());
    }

    fn flushed(&self) -> u64 {
        *self.shared.flushed().borrow()
    }
}

#[track_caller]
fn refused(dir: &TempDir) -> String {
    match reopen(dir) {
        Ok(_) => panic!("the log was opened"),
        Err(error) => error.to_string(),
    }
}

impl Opened {
    async fn append(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let (done, flushed) = TypeConfig::oneshot();
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.store.append(entries, IOFlushed::signal(done)).await.expect("append");
        flushed.await.expect("answer").expect("flush");
    }

    async fn read(&mut self, from: u64, to: u64) -> Vec<RaftLogId> {
        let mut reader = self.store.get_log_reader().await;
        let entries = reader.try_get_log_entries(from..to).await.expect("read");
        entries.iter().map(|entry| entry.log_id).collect()
    }

    /// Ends the writer and closes RocksDB.
    fn close(self) {
        drop(self.store);
        self.writer.stop(DEADLINE);
    }
}

/// A closed log with a vote of term 2 and the entries 0..10.
async fn filled() -> TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new_committed(2, 1)).await.expect("vote");
    opened.append((0..5).map(|index| entry(1, index))).await;
    opened.append((5..10).map(|index| entry(2, index))).await;
    opened.close();
    dir
}

/// Changes the closed database directly.
fn tamper(dir: &Path, change: impl FnOnce(&DB)) {
    let db = DB::open_cf(&Options::default(), dir.join(DIR), ["default", LOG, META]).expect("open the database");
    change(&db);
    db.flush_wal(true).expect("sync");
}

#[tokio::test]
async fn what_was_flushed_is_there_after_a_restart() {
    let dir = filled().await;
    let mut opened = reopen(&dir).expect("open");
    assert_eq!(
        opened.read(0, 100).await,
        (0..5).map(|i| id(1, i)).chain((5..10).map(|i| id(2, i))).collect::<Vec<_>>()
    );
    let mut reader = opened.store.get_log_reader().await;
    assert_eq!(reader.read_vote().await.expect("vote"), Some(Vote::new_committed(2, 1)));
    assert_eq!(*opened.shared.flushed().borrow(), 10);
}

#[tokio::test]
async fn a_truncated_tail_is_replaced_and_stays_so() {
    let dir = filled().await;
    let mut opened = reopen(&dir).expect("open");
    opened.store.truncate_after(Some(id(2, 6))).await.expect("truncate");
    opened.store.save_vote(&Vote::new_committed(3, 2)).await.expect("vote");
    opened.append([entry(3, 7)]).await;
    opened.close();
    let mut opened = reopen(&dir).expect("open");
    assert_eq!(opened.read(6, 100).await, [id(2, 6), id(3, 7)]);
}

#[tokio::test]
async fn what_replaces_truncated_entries_does_not_count_as_flushed_before_it_is() {
    let dir = filled().await;
    let mut log = Stepwise::open(&dir);
    assert_eq!(log.flushed(), 10);
    log.store.truncate_after(Some(id(2, 6))).await.expect("truncate");
    assert_eq!(log.flushed(), 7, "at once, not when the writer has truncated");
    log.store.append([entry(3, 7), entry(3, 8)], IOFlushed::noop()).await.expect("append");
    assert_eq!(log.flushed(), 7);
    log.step();
    assert_eq!(log.flushed(), 9);
}

#[tokio::test]
async fn a_truncation_that_the_writer_has_not_seen_is_not_undone_by_it() {
    let dir = filled().await;
    let mut log = Stepwise::open(&dir);
    log.store.append([entry(2, 10)], IOFlushed::noop()).await.expect("append");
    let before = log.shared.queue.take_now();
    log.store.truncate_after(Some(id(2, 6))).await.expect("truncate");
    log.worker.perform(before);
    assert_eq!(log.flushed(), 7);
    log.step();
    assert_eq!(log.flushed(), 7);
}

#[tokio::test]
async fn ids_are_found_in_the_log_and_at_its_purged_end() {
    let dir = filled().await;
    let mut log = Stepwise::open(&dir);
    log.store.purge(id(1, 3)).await.expect("purge");
    let at = |index| log.shared.log_id_at(index).expect("read").map(|id| (id.term, id.index));
    assert_eq!([at(2), at(3), at(4), at(9), at(10)], [None, Some((1, 3)), Some((1, 4)), Some((2, 9)), None]);
}

#[tokio::test]
async fn purged_entries_are_gone_and_the_rest_is_there() {
    let dir = filled().await;
    let mut opened = reopen(&dir).expect("open");
    opened.store.purge(id(1, 3)).await.expect("purge");
    opened.append([entry(2, 10)]).await;
    opened.close();
    let mut opened = reopen(&dir).expect("open");
    assert_eq!(opened.read(0, 6).await, [id(1, 4), id(2, 5)]);
    assert_eq!(opened.shared.purged(), Some(LogId { term: 1, index: 3 }));
}

#[tokio::test]
async fn a_snapshot_beyond_the_log_leaves_an_empty_log_after_it() {
    let dir = filled().await;
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new_committed(4, 1)).await.expect("vote");
    opened.store.purge(id(4, 50)).await.expect("purge");
    opened.append([entry(4, 51)]).await;
    opened.close();
    let mut opened = reopen(&dir).expect("open");
    assert_eq!(opened.read(0, 100).await, [id(4, 51)]);
}

#[tokio::test]
async fn an_append_that_leaves_a_gap_is_refused() {
    let dir = filled().await;
    let mut opened = reopen(&dir).expect("open");
    let error = opened.store.append([entry(2, 12)], IOFlushed::noop()).await.expect_err("gap");
    assert_eq!(error.to_string(), "append of entry 2.12 where 10 is next");
}

#[tokio::test]
async fn a_flipped_bit_in_an_entry_is_found() {
    let dir = filled().await;
    tamper(dir.path(), |db| {
        let log = db.cf_handle(LOG).expect("family");
        let mut record = db.get_cf(log, key(4)).expect("get").expect("entry");
        *record.last_mut().expect("not empty") ^= 1;
        db.put_cf(log, key(4), record).expect("put");
    });
    assert_eq!(refused(&dir), "raft log record 4 is damaged");
}

#[tokio::test]
async fn a_missing_entry_is_found() {
    let dir = filled().await;
    tamper(dir.path(), |db| db.delete_cf(db.cf_handle(LOG).expect("family"), key(4)).expect("delete"));
    assert_eq!(refused(&dir), "raft log has a gap: entry 4 is missing, the next one is 5");
}

#[tokio::test]
async fn entries_that_were_synced_and_are_gone_are_found() {
    let dir = filled().await;
    tamper(dir.path(), |db| {
        let log = db.cf_handle(LOG).expect("family");
        (7..10).for_each(|index| db.delete_cf(log, key(index)).expect("delete"));
    });
    assert_eq!(refused(&dir), "raft log lost entries: 2.9 was synced, the log now ends with 2.6");
}

#[tokio::test]
async fn an_entry_that_was_exchanged_is_found() {
    let dir = filled().await;
    tamper(dir.path(), |db| {
        let record = codec::encode_entry(&key(9), &entry(2, 9)).expect("encode");
        let other = codec::encode_entry(&key(9), &Entry { log_id: id(1, 9), ..entry(1, 9) }).expect("encode");
        let log = db.cf_handle(LOG).expect("family");
        assert_eq!(db.get_cf(log, key(9)).expect("get"), Some(record));
        db.put_cf(log, key(9), other).expect("put");
    });
    assert_eq!(refused(&dir), "raft log goes back in time: entry 1.9 follows term 2");
}

#[tokio::test]
async fn a_lost_vote_is_found() {
    let dir = filled().await;
    tamper(dir.path(), |db| db.delete_cf(db.cf_handle(META).expect("family"), VOTE).expect("delete"));
    assert_eq!(refused(&dir), "raft log has entries but no vote");
}

#[tokio::test]
async fn an_older_vote_is_found() {
    let dir = filled().await;
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new(5, 3)).await.expect("vote");
    opened.close();
    tamper(dir.path(), |db| {
        let older = codec::encode(VOTE, &Vote::new_committed(2, 1)).expect("encode");
        db.put_cf(db.cf_handle(META).expect("family"), VOTE, older).expect("put");
    });
    assert_eq!(refused(&dir), "raft log lost its vote: term 5 was promised, term 2 was found");
}

#[tokio::test]
async fn a_wiped_log_beside_its_mark_is_found() {
    let dir = filled().await;
    fs::remove_dir_all(dir.path().join(DIR)).expect("wipe");
    let log = dir.path().join(DIR);
    assert_eq!(refused(&dir), format!("raft log in {} is empty, although it has made promises", log.display()));
    assert!(!log.exists(), "nothing was made in its place");
}

#[tokio::test]
async fn a_missing_mark_beside_a_log_is_found() {
    let dir = filled().await;
    fs::remove_file(dir.path().join(mark::FILE)).expect("remove");
    assert_eq!(refused(&dir), "low-water mark is missing although the raft log is not empty");
}

#[tokio::test]
async fn a_torn_tail_that_was_never_synced_is_cut_off() {
    let dir = filled().await;
    let wal = fs::read_dir(dir.path().join(DIR))
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max()
        .expect("a write-ahead file");
    let mut content = fs::read(&wal).expect("read");
    content.extend_from_slice(&[0x5a; 37]);
    fs::write(&wal, content).expect("write");
    let mut opened = reopen(&dir).expect("open");
    assert_eq!(opened.read(0, 100).await.len(), 10);
}

#[tokio::test]
async fn a_torn_tail_that_had_been_synced_is_found() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new_committed(1, 1)).await.expect("vote");
    opened.append((0..50).map(|index| entry(1, index))).await;
    opened.append((50..100).map(|index| entry(1, index))).await;
    opened.close();
    let wal = fs::read_dir(dir.path().join(DIR))
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max()
        .expect("a write-ahead file");
    let content = fs::read(&wal).expect("read");
    fs::write(&wal, &content[..content.len() - 100]).expect("write");
    assert_eq!(refused(&dir), "raft log lost entries: 1.99 was synced, the log now ends with 1.49");
}

#[tokio::test]
async fn old_entries_are_read_from_disk_and_joined_with_recent_ones() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new_committed(1, 1)).await.expect("vote");
    let large = |index| {
        let payload = EntryPayload::Normal(Batch(Bytes::from(vec![0; 1 << 20])));
        Entry { log_id: id(1, index), payload }
    };
    for from in (0..80).step_by(8) {
        opened.append((from..from + 8).map(large)).await;
    }
    assert_eq!(opened.read(0, 1000).await.len(), 80);
    let mut reader = opened.store.get_log_reader().await;
    let limited = reader.limited_get_log_entries(0, 80).await.expect("read");
    assert_eq!(limited.first().map(|entry| entry.log_id), Some(id(1, 0)));
    assert!(limited.len() < 4, "{} entries", limited.len());
    let stream = reader.entries_stream(0..80).await;
    let streamed = futures::StreamExt::count(stream).await;
    assert_eq!(streamed, 80);
}
