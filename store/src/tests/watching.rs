//! Watches under pressure: slow readers, replaced state, progress.

use std::time::Duration;

use bytes::Bytes;
use pintle_proto::etcdserverpb::{CompactionRequest, PutRequest};
use pintle_proto::store_v1::command::Operation;
use prost::Message;

use super::local::Local;
use crate::limits;
use crate::watch::{Feed, Filters, WatchBatch, WatchError, WatchOptions, Watcher};

fn put(local: &Local, key: &str, value: &[u8]) -> i64 {
    let request = PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value),
        ..PutRequest::default()
    };
    local.one(Operation::Put(Bytes::from(request.encode_to_vec()))).0
}

fn everything() -> WatchOptions {
    WatchOptions { range_end: Bytes::from_static(&[0]), ..WatchOptions::default() }
}

async fn next(watcher: &mut Watcher) -> Result<WatchBatch, WatchError> {
    tokio::time::timeout(Duration::from_secs(20), watcher.next()).await.expect("an event in time")
}

/// Reads until `last`, checking that every revision comes once and in order.
async fn drain(watcher: &mut Watcher, mut through: i64, last: i64) {
    while through < last {
        let batch = next(watcher).await.expect("no end");
        for event in &batch.events {
            let revision = event.kv.as_ref().expect("kv").mod_revision;
            assert_eq!(revision, through + 1, "gap or repetition");
            through = revision;
        }
        assert!(batch.revision >= through);
    }
}

#[tokio::test]
async fn a_slow_watcher_reads_the_ring_and_then_the_disk_and_misses_nothing() {
    let local = Local::open();
    let mut watcher = local.store.watch(everything()).unwrap();
    let value = vec![b'x'; 4096];
    // More than queue and ring hold together.
    let count = limits::RING_BYTES / value.len() + 2 * limits::WATCHER_QUEUE_REVISIONS;
    let mut last = 1;
    for n in 0..count {
        last = put(&local, &format!("key-{}", n % 50), &value);
    }
    drain(&mut watcher, 1, last).await;
    // Synced again: the next event comes from the hub.
    last = put(&local, "more", b"1");
    drain(&mut watcher, last - 1, last).await;
}

#[tokio::test]
async fn a_watcher_goes_on_while_another_task_writes() {
    let local = Local::open();
    let mut watchers: Vec<Watcher> = (0..4).map(|_| local.store.watch(everything()).unwrap()).collect();
    let log = std::sync::Arc::clone(&local.log);
    let writer = tokio::task::spawn_blocking(move || {
        for n in 0..6000 {
            let request = PutRequest { key: Bytes::from(format!("k{}", n % 7)), ..PutRequest::default() };
            log.entry(&[super::local::command(Operation::Put(Bytes::from(request.encode_to_vec())), None)]);
        }
    });
    for watcher in &mut watchers {
        drain(watcher, 1, 6001).await;
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_watch_of_the_future_gets_nothing_before_its_start_also_after_the_state_was_replaced() {
    let local = Local::open();
    let mut watcher = local.store.watch(WatchOptions { start_revision: 5, ..everything() }).unwrap();
    assert_eq!(watcher.created_revision(), 1);
    put(&local, "a", b"2");
    put(&local, "a", b"3");
    local.reinstall();
    put(&local, "a", b"4");
    put(&local, "a", b"5");
    put(&local, "a", b"6");
    drain(&mut watcher, 4, 6).await;
}

#[tokio::test]
async fn watches_survive_a_replaced_state_without_repetition() {
    let local = Local::open();
    let mut watcher = local.store.watch(everything()).unwrap();
    let donor = Local::open();
    for n in 0..5 {
        put(&local, "a", &[n]);
        put(&donor, "a", &[n]);
    }
    drain(&mut watcher, 1, 4).await; // delivers at least up to 4, perhaps more
    for n in 5..9 {
        put(&donor, "a", &[n]);
    }
    let checkpoint = tempfile::tempdir_in(local.path()).unwrap();
    donor.log.machine.lock().checkpoint_state(checkpoint.path()).unwrap();
    local.log.machine.lock().install_state(checkpoint.path()).unwrap();
    assert_eq!(local.store.revision(), 10);
    drain(&mut watcher, 6, 10).await;
    put(&local, "a", b"x");
    drain(&mut watcher, 10, 11).await;
}

#[tokio::test]
async fn filters_prefixes_and_single_keys_select() {
    let local = Local::open();
    let options = |key: &'static [u8], end: &'static [u8]| WatchOptions {
        key: Bytes::from_static(key),
        range_end: Bytes::from_static(end),
        ..WatchOptions::default()
    };
    let mut prefix = local.store.watch(options(b"a/", b"a0")).unwrap();
    let mut single = local.store.watch(options(b"a/1", b"")).unwrap();
    let no_put = Filters { no_put: true, no_delete: false };
    let mut none = local.store.watch(WatchOptions { filters: no_put, ..options(b"a/", b"a0") }).unwrap();
    assert_eq!(local.store.watch(options(b"b", b"a")).err(), Some(WatchError::EmptyRange));
    for key in ["a/1", "b/1", "a/2"] {
        put(&local, key, b"v");
    }
    let both = next(&mut prefix).await.unwrap();
    assert_eq!((both.revision, both.events.len()), (4, 2));
    assert_eq!(next(&mut single).await.unwrap().revision, 2);
    assert!(tokio::time::timeout(Duration::from_millis(20), none.next()).await.is_err());
}

#[tokio::test]
async fn progress_comes_after_the_events_it_speaks_of() {
    let local = Local::open();
    let mut feed = Feed::new(std::sync::Arc::clone(local.store.watches()));
    let (first, _) = feed.add(&everything()).unwrap();
    let (second, _) = feed.add(&WatchOptions { key: Bytes::from_static(b"quiet"), ..WatchOptions::default() }).unwrap();
    assert_eq!(feed.progress(&[first, second]), Some(1));
    for _ in 0..3 {
        put(&local, "a", b"1");
    }
    let revision = feed.progress_of_all().unwrap();
    assert_eq!(revision, 4);
    put(&local, "a", b"5");
    let (id, batch) = feed.next_within(revision).unwrap();
    assert_eq!((id, batch.unwrap().revision), (first, 4));
    assert!(feed.next_within(revision).is_none());
    assert_eq!(feed.next().await.1.unwrap().revision, 5);
    let (late, _) = feed.add(&WatchOptions { start_revision: 100, ..everything() }).unwrap();
    assert_eq!(feed.progress_of_all(), None);
    feed.remove(late);
    assert_eq!(feed.progress_of_all(), Some(5));
}

#[tokio::test]
async fn the_report_of_an_idle_watch_does_not_overtake_an_event() {
    let local = Local::open();
    let mut watcher = local.store.watch(WatchOptions { progress_notify: true, ..everything() }).unwrap();
    // It was idle long enough; and before it looks how far it is, an event comes.
    put(&local, "a", b"1");
    let batch = watcher.report().expect("synced").unwrap();
    assert_eq!((batch.revision, batch.events.len()), (2, 1), "the event first");
    let batch = watcher.report().expect("synced").unwrap();
    assert_eq!((batch.revision, batch.events.len()), (2, 0));
    put(&local, "a", b"2");
    assert_eq!(next(&mut watcher).await.unwrap().revision, 3);
}

#[tokio::test]
async fn compaction_ends_only_the_watch_that_lags_and_stopping_ends_all() {
    let local = Local::open().attached();
    for n in 0..5 {
        put(&local, "a", &[n]);
    }
    let mut synced = local.store.watch(everything()).unwrap();
    local.store.compact(CompactionRequest { revision: 5, physical: true }).await.unwrap();
    let mut lagging = local.store.watch(WatchOptions { start_revision: 4, ..everything() }).unwrap();
    assert_eq!(next(&mut lagging).await.unwrap_err(), WatchError::Compacted { compact_revision: 5 });
    let mut at = local.store.watch(WatchOptions { start_revision: 5, ..everything() }).unwrap();
    drain(&mut at, 4, 6).await;
    put(&local, "a", b"x");
    drain(&mut synced, 6, 7).await;
    local.group.token().cancel();
    assert_eq!(next(&mut synced).await.unwrap_err(), WatchError::Stopped);
}
