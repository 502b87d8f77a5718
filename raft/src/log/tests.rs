//! What the log survives, and what it refuses. Damage is done to real files between two openings.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, RaftLogReader};
use tempfile::TempDir;

use super::segment::{self, Draft, Head, Kind};
use super::{DIR, ENTRY, LogStore, OpenError, Shared, VOTE, Worker, Writer, inspect, open_stepwise};
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

    /// Ends the writer and closes the files.
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

/// The files of the closed log, oldest first.
fn files(dir: &TempDir) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir.path().join(DIR)).expect("list");
    let mut files: Vec<PathBuf> = listed.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    files
}

type Records = Vec<(Kind, Vec<u8>)>;

/// Writes the only file of the closed log anew, with other writes: sound as a file, whatever it says.
fn tamper(dir: &TempDir, change: impl FnOnce(&mut Vec<Records>)) {
    let [path] = &files(dir)[..] else { panic!("one file") };
    let bytes = fs::read(path).expect("read");
    let head = Head::decode(&bytes, 1).expect("a head");
    let mut writes: Vec<Records> = Vec::new();
    let read = segment::scan(&bytes, &head, |write| {
        let records = write.records().map(|record| record.map(|(kind, record)| (kind, record.to_vec())));
        writes.push(records.collect::<Result<_, _>>()?);
        Ok::<_, String>(())
    });
    assert_eq!(read.expect("sound").unfinished, 0);
    change(&mut writes);
    let mut bytes = head.encode().expect("encode");
    for (sequence, records) in (head.first..).zip(writes) {
        let mut draft = Draft::new(Vec::new());
        for (kind, record) in records {
            draft.encoded(kind, &record);
        }
        let at = segment::next_place(bytes.len() as u64);
        bytes.resize(at as usize, 0);
        bytes.extend(draft.seal(at, sequence, head.salt));
    }
    bytes.resize(head.size as usize, 0);
    fs::write(path, bytes).expect("write");
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

fn large(index: u64) -> Entry {
    let payload = EntryPayload::Normal(Batch(Bytes::from(vec![7; 1 << 20])));
    Entry { log_id: id(1, index), payload }
}

#[tokio::test]
async fn a_file_goes_when_all_in_it_is_purged_and_the_rest_is_read_from_there_on() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new_committed(1, 1)).await.expect("vote");
    for from in (0..120).step_by(8) {
        opened.append((from..from + 8).map(large)).await;
    }
    let numbers = |dir: &TempDir| -> Vec<String> {
        files(dir).iter().map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect()
    };
    let all = numbers(&dir);
    assert!(all.len() >= 4 && all[0].ends_with("001"), "{all:?}");
    opened.store.purge(id(1, 60)).await.expect("purge");
    opened.append([large(120)]).await;
    let left = numbers(&dir);
    assert!(left.len() < all.len() && !left.contains(&all[0]) && left.contains(&all[all.len() - 1]), "{left:?}");
    assert_eq!(opened.read(0, 1000).await, (61..=120).map(|index| id(1, index)).collect::<Vec<_>>());
    opened.close();
    let mut opened = reopen(&dir).expect("open");
    assert_eq!(opened.read(0, 1000).await, (61..=120).map(|index| id(1, index)).collect::<Vec<_>>());
    // All of it; what comes next begins after it.
    opened.store.purge(id(1, 120)).await.expect("purge");
    opened.append([entry(1, 121)]).await;
    assert_eq!(numbers(&dir).len(), 1);
    opened.close();
    let mut opened = reopen(&dir).expect("open");
    assert_eq!(opened.read(0, 1000).await, [id(1, 121)]);
}

/// What cannot be removed is tried again, and never leaves a gap behind it.
#[tokio::test]
async fn a_file_that_cannot_be_removed_keeps_those_after_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new_committed(1, 1)).await.expect("vote");
    for from in (0..160).step_by(8) {
        opened.append((from..from + 8).map(large)).await;
    }
    let all = files(&dir);
    assert!(all.len() >= 5, "{all:?}");
    // A directory of its name cannot be removed as a file.
    let aside = all[0].with_extension("aside");
    fs::rename(&all[0], &aside).expect("rename");
    fs::create_dir(&all[0]).expect("create");
    opened.store.purge(id(1, 70)).await.expect("purge");
    opened.append([large(160)]).await;
    assert!(all.iter().all(|file| file.exists()), "nothing after it was removed");
    fs::remove_dir(&all[0]).expect("remove");
    opened.store.purge(id(1, 71)).await.expect("purge");
    opened.append([large(161)]).await;
    assert!(!all[0].exists() && !all[1].exists(), "one that is not there has gone");
    opened.close();
    fs::remove_file(&aside).expect("remove");
    assert_eq!(reopen(&dir).expect("open").read(0, 1000).await.len(), 162 - 72);
}

/// The mark names a file before anything in it is acknowledged.
#[tokio::test]
async fn the_loss_of_the_newest_file_is_noticed_at_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut log = Stepwise::open(&dir);
    let (done, _) = tokio::sync::oneshot::channel();
    log.worker.perform(vec![super::Operation::Vote(Vote::new_committed(1, 1), done)]);
    for from in [0, 20] {
        log.store.append((from..from + 20).map(large).collect::<Vec<_>>(), IOFlushed::noop()).await.expect("append");
        log.step();
    }
    drop(log); // as a crash, without what an orderly end writes
    let [first, second] = &files(&dir)[..] else { panic!("two files") };
    // What the file before it lacks at its end is noticed, too.
    let bytes = fs::read(first).expect("read");
    let head = Head::decode(&bytes, 1).expect("a head");
    let (last, _) = segment::scan(&bytes, &head, |_| Ok::<_, String>(())).expect("sound").last.expect("a write");
    let mut cut = bytes.clone();
    cut[last as usize..].fill(0);
    fs::write(first, cut).expect("write");
    let why = refused(&dir);
    assert!(why.contains("it begins with write 3, after the file before 2 is next"), "{why}");
    fs::write(first, bytes).expect("write");
    fs::remove_file(second).expect("remove");
    let why = refused(&dir);
    assert!(why.contains("0000000000000002.log is missing"), "{why}");
}

#[tokio::test]
async fn a_log_that_was_never_written_is_none_that_was_lost() {
    let dir = tempfile::tempdir().expect("temporary directory");
    reopen(&dir).expect("open").close();
    let inspected = inspect(dir.path(), mark::Mark::default()).expect("sound");
    assert_eq!((inspected.entries(), inspected.last(), inspected.bytes()), (0, None, 0));
    let promised = mark::Mark { vote: Some(Vote::new_committed(1, 1)), ..mark::Mark::default() };
    assert!(inspect(dir.path(), promised).is_err());
}

#[tokio::test]
async fn a_file_that_is_missing_is_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new_committed(1, 1)).await.expect("vote");
    for from in (0..80).step_by(8) {
        opened.append((from..from + 8).map(large)).await;
    }
    drop(opened);
    let all = files(&dir);
    assert!(all.len() >= 3, "{all:?}");
    for (lost, why) in
        [(&all[0], "is missing, the next one is"), (&all[1], "is missing"), (&all[all.len() - 1], "is missing")]
    {
        let kept = lost.with_extension("kept");
        fs::rename(lost, &kept).expect("rename");
        let refused = refused(&dir);
        assert!(refused.contains(why), "{refused}");
        fs::rename(&kept, lost).expect("rename back");
    }
    assert_eq!(reopen(&dir).expect("open").read(0, 1000).await.len(), 80);
}

/// Entries that were truncated are never read, whether they were in the same write as what replaced them or in an earlier one.
#[tokio::test]
async fn what_was_truncated_is_read_as_what_replaced_it() {
    let dir = filled().await;
    let mut log = Stepwise::open(&dir);
    log.store.append([entry(2, 10), entry(2, 11)], IOFlushed::noop()).await.expect("append");
    log.store.truncate_after(Some(id(2, 10))).await.expect("truncate");
    log.store.append([entry(3, 11), entry(3, 12)], IOFlushed::noop()).await.expect("append");
    log.store.truncate_after(Some(id(2, 7))).await.expect("truncate");
    let (done, _) = tokio::sync::oneshot::channel();
    log.worker.perform(vec![super::Operation::Vote(Vote::new_committed(4, 1), done)]);
    log.store.append([entry(4, 8)], IOFlushed::noop()).await.expect("append");
    log.step();
    drop(log);
    let mut opened = reopen(&dir).expect("open");
    let want: Vec<_> = (0..5).map(|i| id(1, i)).chain((5..8).map(|i| id(2, i))).chain([id(4, 8)]).collect();
    assert_eq!(opened.read(0, 100).await, want);
    let on_disk = opened.shared.segments.read(0, 9, usize::MAX).expect("read");
    assert_eq!(on_disk.iter().map(|entry| entry.log_id).collect::<Vec<_>>(), want);
    assert_eq!(opened.shared.segments.read(6, 8, 0).expect("one").len(), 1);
}

#[tokio::test]
async fn a_membership_that_was_purged_is_not_the_newest() {
    let dir = filled().await;
    let mut opened = reopen(&dir).expect("open");
    opened.append([Entry { log_id: id(2, 10), payload: EntryPayload::Membership(Default::default()) }]).await;
    assert!(opened.shared.newest_membership().expect("read").is_some());
    opened.store.purge(id(2, 10)).await.expect("purge");
    opened.append([entry(2, 11)]).await;
    assert!(opened.shared.newest_membership().expect("read").is_none());
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
async fn a_record_that_does_not_match_its_checksum_is_found() {
    let dir = filled().await;
    tamper(&dir, |writes| *writes[1][4].1.last_mut().expect("not empty") ^= 1);
    assert_eq!(refused(&dir), "raft log record 4 is damaged");
}

#[tokio::test]
async fn a_missing_entry_is_found() {
    let dir = filled().await;
    tamper(&dir, |writes| drop(writes[1].pop()));
    assert_eq!(refused(&dir), "raft log has a gap: entry 4 is missing, the next one is 5");
}

#[tokio::test]
async fn entries_that_were_synced_and_are_gone_are_found() {
    let dir = filled().await;
    tamper(&dir, |writes| writes[2].truncate(2));
    assert_eq!(refused(&dir), "raft log lost entries: 2.9 was synced, the log now ends with 2.6");
}

#[tokio::test]
async fn an_entry_that_was_exchanged_is_found() {
    let dir = filled().await;
    let other = |term| codec::encode_entry(ENTRY, &Entry { log_id: id(term, 9), ..entry(term, 9) }).expect("encode");
    tamper(&dir, |writes| writes[2][4].1 = other(1));
    assert_eq!(refused(&dir), "raft log goes back in time: entry 1.9 follows term 2");
    tamper(&dir, |writes| {
        writes[0][0].1 = codec::encode(VOTE, &Vote::new_committed(3, 1)).expect("encode");
        writes[2][4].1 = other(3);
    });
    assert_eq!(refused(&dir), "raft log holds 3.9 where 2.9 was synced");
}

#[tokio::test]
async fn a_lost_vote_is_found() {
    let dir = filled().await;
    tamper(&dir, |writes| drop(writes.remove(0)));
    assert_eq!(refused(&dir), "raft log has entries but no vote");
}

#[tokio::test]
async fn an_older_vote_is_found() {
    let dir = filled().await;
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new(5, 3)).await.expect("vote");
    opened.close();
    tamper(&dir, |writes| drop(writes.remove(3)));
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
    for _ in 0..2 {
        assert_eq!(refused(&dir), "low-water mark is missing although the raft log is not empty");
        assert!(!dir.path().join(mark::FILE).exists(), "or the next start would find one that promises nothing");
    }
}

/// Where the writes of the newest file end.
fn end(dir: &TempDir) -> (PathBuf, u64) {
    let path = files(dir).pop().expect("a file");
    let bytes = fs::read(&path).expect("read");
    let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).expect("a number");
    let head = Head::decode(&bytes, number).expect("a head");
    (path, segment::scan(&bytes, &head, |_| Ok::<_, String>(())).expect("sound").at)
}

#[tokio::test]
async fn an_unfinished_write_is_wiped_out_and_what_follows_is_there() {
    let dir = filled().await;
    let (path, before) = end(&dir);
    let mut opened = reopen(&dir).expect("open");
    opened.append((10..14).map(|index| Entry { log_id: id(2, index), ..large(index) })).await;
    opened.close();
    // As a crash would leave it that came before the write was synced: of its first sectors some are there.
    let (_, after) = end(&dir);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("open");
    file.write_all_at(&vec![0; (after - before) as usize - 2000], before + 2000).expect("tear");
    fs::remove_file(dir.path().join(mark::FILE)).expect("remove");
    let mark = mark::Mark { vote: Some(Vote::new_committed(2, 1)), last: Some(id(2, 9)), segment: 1 };
    mark::MarkFile::open(dir.path()).expect("make").set(mark).expect("as it was");
    let inspected = inspect(dir.path(), mark).expect("sound");
    assert_eq!(inspected.unfinished().map(|rest| (rest.at, rest.bytes)), Some((before, 2000)));
    assert_eq!((inspected.entries(), inspected.last()), (10, Some(LogId { term: 2, index: 9 })));
    // A shorter write takes its place.
    let mut opened = reopen(&dir).expect("open");
    assert_eq!(opened.read(10, 100).await, []);
    opened.store.save_vote(&Vote::new_committed(3, 1)).await.expect("vote");
    opened.append([entry(3, 10)]).await;
    opened.close();
    let mut opened = reopen(&dir).expect("open");
    assert_eq!(opened.read(10, 100).await, [id(3, 10)]);
}

#[tokio::test]
async fn a_write_that_had_been_synced_and_is_gone_is_found() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new_committed(1, 1)).await.expect("vote");
    opened.append((0..50).map(|index| entry(1, index))).await;
    opened.close();
    let (_, before) = end(&dir);
    let mut opened = reopen(&dir).expect("open");
    opened.append((50..100).map(|index| entry(1, index))).await;
    opened.close();
    let (path, after) = end(&dir);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("open");
    file.write_all_at(&vec![0; (after - before) as usize], before).expect("wipe");
    assert_eq!(refused(&dir), "raft log lost entries: 1.99 was synced, the log now ends with 1.49");
}

#[tokio::test]
async fn the_log_of_an_earlier_version_is_not_touched() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join(DIR);
    fs::create_dir(&log).expect("create");
    for name in ["CURRENT", "MANIFEST-000005", "000004.log"] {
        fs::write(log.join(name), b"RocksDB").expect("write");
    }
    let refused = refused(&dir);
    assert!(refused.contains("is a RocksDB of an earlier version") && refused.contains("restore it"), "{refused}");
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "nothing was made");
}

#[tokio::test]
async fn old_entries_are_read_from_disk_and_joined_with_recent_ones() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut opened = reopen(&dir).expect("open");
    opened.store.save_vote(&Vote::new_committed(1, 1)).await.expect("vote");
    for from in (0..80).step_by(8) {
        opened.append((from..from + 8).map(large)).await;
    }
    assert_eq!(opened.read(0, 1000).await.len(), 80);
    assert_eq!(opened.read(3, 5).await, [id(1, 3), id(1, 4)], "a part of one write");
    let mut reader = opened.store.get_log_reader().await;
    let limited = reader.limited_get_log_entries(0, 80).await.expect("read");
    assert_eq!(limited.first().map(|entry| entry.log_id), Some(id(1, 0)));
    assert!(limited.len() < 4, "{} entries", limited.len());
    let stream = reader.entries_stream(0..80).await;
    let streamed = futures::StreamExt::count(stream).await;
    assert_eq!(streamed, 80);
}
