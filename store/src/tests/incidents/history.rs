//! What watches and reads are told of the past, whatever was compacted of it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use pintle_proto::mvccpb::Event;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::reply::Outcome;
use prost::Message;

use crate::mvcc::{range, scrub};
use crate::tests::local::Local;
use crate::watch::{WatchError, WatchOptions, Watcher};

fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

fn put(key: &str, value: &str) -> Request {
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
    Request::RequestPut(PutRequest { key, value, ..PutRequest::default() })
}

fn delete(key: &str) -> Request {
    Request::RequestDeleteRange(DeleteRangeRequest {
        key: Bytes::from(key.to_owned()),
        ..DeleteRangeRequest::default()
    })
}

fn get(key: &str, revision: i64) -> Request {
    Request::RequestRange(RangeRequest { key: Bytes::from(key.to_owned()), revision, ..RangeRequest::default() })
}

fn txn(success: Vec<Request>) -> TxnRequest {
    let success = success.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
    TxnRequest { success, ..TxnRequest::default() }
}

async fn until(watcher: &mut Watcher, last: i64) -> Vec<Event> {
    let (mut events, mut through) = (Vec::new(), 0);
    while through < last {
        let batch = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await.expect("in time");
        let batch = batch.expect("no end");
        through = batch.revision;
        events.extend(batch.events.iter().map(|event| (**event).clone()));
    }
    events
}

fn everything(start_revision: i64) -> WatchOptions {
    WatchOptions { range_end: Bytes::from_static(&[0]), start_revision, prev_kv: true, ..WatchOptions::default() }
}

/// etcd kept the result of an operation of a transaction for a later one, and told watchers of a change twice. Here events are the write
/// set of the entry, made once: who watches live, who reads the last revisions from memory and who reads the disk are told the same, every
/// change once.
#[tokio::test]
async fn etcd_17247_a_transaction_is_told_once_and_to_all_alike() {
    let local = Local::open();
    let mut live = local.store.watch(everything(0)).expect("watch");
    let nested = |success| Request::RequestTxn(txn(success));
    for requests in [
        vec![put("a", "1"), get("a", 0), nested(vec![put("b", "1"), nested(vec![put("c", "1"), get("b", 0)])])],
        vec![get("a", 0), nested(vec![get("b", 0)])],
        vec![nested(vec![delete("a"), get("a", 0)]), put("b", "2"), delete("nothing")],
        vec![delete("nothing"), nested(vec![delete("neither")])],
        vec![put("a", "3"), nested(vec![delete("c")]), get("c", 0)],
    ] {
        let (_, outcome) = local.one(Operation::Txn(encode(&txn(requests))));
        assert!(matches!(outcome, Outcome::Answer(_)), "{outcome:?}");
    }
    let last = local.store.revision();
    assert_eq!(last, 4, "two of them change nothing");
    let told = until(&mut live, last).await;
    let mut changes: Vec<(i64, Bytes)> =
        told.iter().filter_map(|event| event.kv.as_ref()).map(|kv| (kv.mod_revision, kv.key.clone())).collect();
    changes.sort();
    let expected = [(2, "a"), (2, "b"), (2, "c"), (3, "a"), (3, "b"), (4, "a"), (4, "c")];
    assert_eq!(changes, expected.map(|(revision, key)| (revision, Bytes::from(key))));
    let mut from_memory = local.store.watch(everything(1)).expect("watch");
    assert_eq!(until(&mut from_memory, last).await, told);
    local.reinstall();
    let mut from_disk = local.store.watch(everything(1)).expect("watch");
    assert_eq!(until(&mut from_disk, last).await, told);
}

/// What is done to two keys, one step after the other.
#[derive(Clone, Copy, Debug)]
enum Step {
    PutA,
    DeleteA,
    PutB,
    /// In one revision.
    PutADeleteB,
}

const STEPS: [Step; 4] = [Step::PutA, Step::DeleteA, Step::PutB, Step::PutADeleteB];
const LENGTH: u32 = 4;

/// A key and what it holds after a change; nothing if it was deleted.
type Changed = (String, Option<i64>);

/// One sequence of steps, on keys of its own.
struct Sequence {
    prefix: String,
    /// By revision.
    events: BTreeMap<i64, Vec<Changed>>,
}

impl Sequence {
    fn run(local: &Local, number: usize) -> Self {
        let prefix = format!("{number:03}/");
        let (a, b) = (format!("{prefix}a"), format!("{prefix}b"));
        let mut events = BTreeMap::new();
        let mut alive = BTreeMap::from([(a.clone(), false), (b.clone(), false)]);
        for at in 0..LENGTH {
            let step = STEPS[number / STEPS.len().pow(at) % STEPS.len()];
            let requests = match step {
                Step::PutA => vec![put(&a, "")],
                Step::DeleteA => vec![delete(&a)],
                Step::PutB => vec![put(&b, "")],
                Step::PutADeleteB => vec![put(&a, ""), delete(&b)],
            };
            let changes: Vec<(String, bool)> = requests
                .iter()
                .filter_map(|request| match request {
                    Request::RequestPut(put) => Some((text(&put.key), true)),
                    Request::RequestDeleteRange(delete) if alive[&text(&delete.key)] => {
                        Some((text(&delete.key), false))
                    }
                    _ => None,
                })
                .collect();
            let (revision, _) = local.one(Operation::Txn(encode(&txn(requests))));
            alive.extend(changes.iter().cloned());
            if !changes.is_empty() {
                let told = changes.into_iter().map(|(key, lives)| (key, lives.then_some(revision))).collect();
                events.insert(revision, told);
            }
        }
        Self { prefix, events }
    }

    fn interval(&self) -> (Bytes, Bytes) {
        (Bytes::from(self.prefix.clone()), crate::mvcc::key::prefix_end(self.prefix.as_bytes()))
    }

    /// What lives after `revision`, with the revision it was put at.
    fn state(&self, revision: i64) -> BTreeMap<String, i64> {
        let mut state = BTreeMap::new();
        for (key, lives) in self.events.range(..=revision).flat_map(|(_, changes)| changes) {
            match lives {
                Some(modified) => drop(state.insert(key.clone(), *modified)),
                None => drop(state.remove(key)),
            }
        }
        state
    }

    /// Watches and reads from `compacted` on, with what is left.
    async fn check(&self, local: &Local, compacted: i64) {
        let (key, range_end) = self.interval();
        let last = *self.events.keys().last().expect("something was done");
        for start in compacted..=last {
            let (key, range_end) = (key.clone(), range_end.clone());
            let options = WatchOptions { key, range_end, start_revision: start, ..WatchOptions::default() };
            let mut watcher = local.store.watch(options).expect("watch");
            let mut told: BTreeMap<i64, Vec<Changed>> = BTreeMap::new();
            for event in until(&mut watcher, last).await {
                let kv = event.kv.expect("kv");
                let lives = (event.r#type == 0).then_some(kv.mod_revision);
                told.entry(kv.mod_revision).or_default().push((text(&kv.key), lives));
            }
            let expected: BTreeMap<i64, Vec<Changed>> =
                self.events.range(start..).map(|(revision, changes)| (*revision, changes.clone())).collect();
            assert_eq!(told, expected, "{}: compacted at {compacted}, watched from {start}", self.prefix);
        }
        let generation = local.engine().current();
        let view = generation.view().expect("view");
        for at in compacted..=last {
            let request = RangeRequest { key: key.clone(), range_end: range_end.clone(), ..RangeRequest::default() };
            let kvs = range::read(&view, &request, at).expect("range").kvs;
            let found = kvs.iter().map(|kv| (text(&kv.key), kv.mod_revision)).collect::<BTreeMap<_, _>>();
            assert_eq!(found, self.state(at), "{}: compacted at {compacted}, read at {at}", self.prefix);
        }
    }
}

fn text(key: &Bytes) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// A compaction at the revision of a deletion, or just before it, took the deletion with it: who watched from there was never told, and
/// believed that the key lived. Here a deletion at the compact revision stays, and no later one is touched: for every short sequence of
/// changes, compacted at every revision, watches from everywhere and reads at every revision are right before and after the removal.
#[tokio::test]
async fn etcd_18089_19179_no_compaction_takes_a_deletion_that_can_still_be_watched() {
    let local = Local::open();
    let sequences: Vec<Sequence> = (0..STEPS.len().pow(LENGTH))
        .map(|number| Sequence::run(&local, number))
        .filter(|s| !s.events.is_empty())
        .collect();
    let local = local.reopened(); // so that watches read the disk
    for sequence in &sequences {
        let revisions = sequence.events.keys().copied();
        for compacted in revisions {
            let (_, outcome) = local.one(Operation::Compact(compacted));
            assert!(matches!(outcome, Outcome::Answer(_)), "{outcome:?}");
            sequence.check(&local, compacted).await;
            scrub::run_now(local.engine(), false).expect("scrub");
            sequence.check(&local, compacted).await;
        }
        let before = *sequence.events.keys().next().expect("something was done");
        let mut late = local.store.watch(everything(before - 1)).expect("watch");
        assert!(matches!(late.next().await, Err(WatchError::Compacted { .. })));
    }
}

/// A read within a transaction was refused by members that had removed the history it asked for, and answered by those that had not yet:
/// what the transaction wrote differed. Here the replicated compact revision decides, which changes with the entry, and never how far a
/// member is with removing.
#[test]
fn etcd_18667_how_far_the_removal_of_history_is_decides_nothing() {
    let (slow, quick) = (Local::open(), Local::open());
    let entries = [
        Operation::Txn(encode(&txn(vec![put("a", "1"), put("b", "1")]))),
        Operation::Txn(encode(&txn(vec![put("a", "2")]))),
        Operation::Txn(encode(&txn(vec![delete("b")]))),
        Operation::Txn(encode(&txn(vec![put("a", "3")]))),
    ];
    let after: Vec<Operation> = (1..=6)
        .map(|revision| {
            Operation::Txn(encode(&txn(vec![
                get("a", revision),
                put(&format!("at{revision}"), "1"),
                get("b", revision),
            ])))
        })
        .collect();
    for entry in entries {
        assert_eq!(slow.one(entry.clone()), quick.one(entry));
    }
    // In one entry nothing can be removed in between.
    let together: Vec<Operation> = [Operation::Compact(4)].into_iter().chain(after.clone()).collect();
    let unremoved = slow.apply(&together);
    let compacted = quick.one(Operation::Compact(4));
    scrub::run_now(quick.engine(), true).expect("scrub");
    let removed: Vec<_> =
        [compacted].into_iter().chain(after.into_iter().map(|operation| quick.one(operation))).collect();
    assert_eq!(removed, unremoved);
    let refused = removed.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failure(_))).count();
    assert_eq!((refused, slow.store.revision()), (3, 8), "what lies before 4 is refused and writes nothing");
}
