//! Random operations against a model that remembers everything. Two members apply the same commands, cut into entries
//! differently, one of them scrubbing as it goes, and must agree with the model and with each other.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use pintle_proto::mvccpb::KeyValue;
use pintle_proto::store_v1::LeaseGrant;
use pintle_proto::store_v1::command::Operation;
use proptest::prelude::*;
use prost::Message;

use super::local::Local;
use crate::calls::read::readable;
use crate::mvcc::view::View;
use crate::mvcc::{hash, range, scrub};
use crate::verify::findings;
use crate::watch::{WatchError, WatchOptions};

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: u8,
        value: u8,
        lease: i64,
    },
    Delete {
        from: u8,
        to: u8,
    },
    /// Puts the first, deletes the range, if they do not meet.
    Txn {
        put: u8,
        from: u8,
        to: u8,
    },
    Grant(i64),
    Revoke(i64),
    Compact {
        back: i64,
    },
    /// By versions, or by changes.
    Scrub(bool),
    Reopen,
    Install,
    /// Through a snapshot file into a new cluster.
    Restore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..6u8;
    let step = prop_oneof![
        8 => (key.clone(), any::<u8>(), 0..4i64).prop_map(|(key, value, lease)| Step::Put { key, value, lease }),
        3 => (key.clone(), key.clone()).prop_map(|(from, to)| Step::Delete { from, to }),
        3 => (key.clone(), key.clone(), key).prop_map(|(put, from, to)| Step::Txn { put, from, to }),
        2 => (1..4i64).prop_map(Step::Grant),
        1 => (1..4i64).prop_map(Step::Revoke),
        2 => (0..4i64).prop_map(|back| Step::Compact { back }),
        1 => any::<bool>().prop_map(Step::Scrub),
        1 => Just(Step::Reopen),
        1 => Just(Step::Install),
        1 => Just(Step::Restore),
    ];
    prop::collection::vec(step, 1..40)
}

/// The whole history, kept by plain means.
#[derive(Default)]
struct Model {
    revision: i64,
    compacted: i64,
    /// State after each revision.
    states: BTreeMap<i64, BTreeMap<Bytes, KeyValue>>,
    leases: BTreeSet<i64>,
}

impl Model {
    fn new() -> Self {
        Self { revision: 1, states: BTreeMap::from([(1, BTreeMap::new())]), ..Self::default() }
    }

    fn now(&self) -> BTreeMap<Bytes, KeyValue> {
        self.states[&self.revision].clone()
    }

    fn commit(&mut self, state: BTreeMap<Bytes, KeyValue>) {
        self.revision += 1;
        self.states.insert(self.revision, state);
    }

    fn put(&mut self, state: &mut BTreeMap<Bytes, KeyValue>, key: &Bytes, value: u8, lease: i64) {
        let modified = self.revision + 1;
        let kv = state.entry(key.clone()).or_insert_with(|| KeyValue {
            key: key.clone(),
            create_revision: modified,
            ..KeyValue::default()
        });
        kv.mod_revision = modified;
        kv.version += 1;
        kv.value = Bytes::copy_from_slice(&[value]);
        kv.lease = lease;
    }

    /// The events of one revision, with what was there before.
    fn events(&self, revision: i64) -> Vec<String> {
        let (before, after) = (&self.states[&(revision - 1)], &self.states[&revision]);
        let keys: BTreeSet<&Bytes> = before.keys().chain(after.keys()).collect();
        let changed = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
        changed.map(|key| show_event(revision, key, after.get(key), before.get(key))).collect()
    }
}

fn show_event(revision: i64, key: &Bytes, kv: Option<&KeyValue>, before: Option<&KeyValue>) -> String {
    format!("{revision} {key:?} {kv:?} before {before:?}")
}

fn key(number: u8) -> Bytes {
    // One key is a prefix of another, and some hold zero bytes.
    Bytes::from_static([&b"a"[..], b"a\0", b"a\0b", b"ab", b"b\xff", b"c"][usize::from(number) % 6])
}

fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

/// Applies a step to the model, and returns its command if it has one.
fn advance(model: &mut Model, step: &Step) -> Option<Operation> {
    let mut state = model.now();
    match step {
        Step::Put { key: number, value, lease } => {
            let (key, value_bytes) = (key(*number), Bytes::copy_from_slice(&[*value]));
            if *lease == 0 || model.leases.contains(lease) {
                model.put(&mut state, &key, *value, *lease);
                model.commit(state);
            }
            Some(Operation::Put(encode(&PutRequest {
                key,
                value: value_bytes,
                lease: *lease,
                ..PutRequest::default()
            })))
        }
        Step::Delete { from, to } => {
            let (start, end) = (key(*from), key(*to));
            let before = state.len();
            state.retain(|key, _| !(*key >= start && *key < end));
            if state.len() < before {
                model.commit(state);
            }
            let range_end = if end <= start { Bytes::from_static(b"\x01") } else { end };
            Some(Operation::DeleteRange(encode(&DeleteRangeRequest { key: start, range_end, prev_kv: false })))
        }
        Step::Txn { put, from, to } => {
            let (one, start, end) = (key(*put), key(*from), key(*to));
            if end <= start || (one >= start && one < end) {
                return None;
            }
            state.retain(|key, _| !(*key >= start && *key < end));
            model.put(&mut state, &one, 7, 0);
            model.commit(state);
            let delete = DeleteRangeRequest { key: start, range_end: end, prev_kv: true };
            let put = PutRequest { key: one, value: Bytes::from_static(&[7]), ..PutRequest::default() };
            let success = [Request::RequestDeleteRange(delete), Request::RequestPut(put)]
                .map(|request| RequestOp { request: Some(request) });
            Some(Operation::Txn(encode(&TxnRequest { success: success.to_vec(), ..TxnRequest::default() })))
        }
        Step::Grant(id) => {
            model.leases.insert(*id);
            Some(Operation::LeaseGrant(LeaseGrant { id: *id, ttl_seconds: 60 }))
        }
        Step::Revoke(id) => {
            if model.leases.remove(id) {
                let before = state.len();
                state.retain(|_, kv| kv.lease != *id);
                if state.len() < before {
                    model.commit(state);
                }
            }
            Some(Operation::LeaseRevoke(*id))
        }
        Step::Compact { back } => {
            let at = model.revision - back;
            if at > model.compacted && at <= model.revision {
                model.compacted = at;
            }
            Some(Operation::Compact(at))
        }
        Step::Scrub(_) | Step::Reopen | Step::Install | Step::Restore => None,
    }
}

/// Reads every revision and watches from every revision.
fn compare(local: &Local, model: &Model, runtime: &tokio::runtime::Runtime) {
    let generation = local.engine().current();
    let view = generation.view().expect("view");
    assert_eq!(view.state.revision, model.revision);
    assert_eq!(view.state.compact_revision, model.compacted);
    for (revision, state) in &model.states {
        match readable(&view, *revision) {
            Ok(at) => assert_eq!(read_all(&view, at), state.values().cloned().collect::<Vec<_>>(), "at {revision}"),
            Err(_) => assert!(*revision < model.compacted),
        }
    }
    let leased: BTreeSet<i64> = view.leases().expect("leases").into_iter().map(|(id, _)| id).collect();
    assert_eq!(leased, model.leases);
    assert_eq!(findings(&generation), Vec::<String>::new(), "what `verify` says");
    for start in 1..=model.revision {
        runtime.block_on(compare_watch(local, model, start));
    }
}

fn read_all(view: &View<'_>, at: i64) -> Vec<KeyValue> {
    let everything =
        RangeRequest { key: Bytes::from_static(&[0]), range_end: Bytes::from_static(&[0]), ..RangeRequest::default() };
    range::read(view, &everything, at).expect("range").kvs
}

async fn compare_watch(local: &Local, model: &Model, start: i64) {
    let options = WatchOptions {
        range_end: Bytes::from_static(&[0]),
        start_revision: start,
        prev_kv: true,
        ..WatchOptions::default()
    };
    let mut watcher = local.store.watch(options).expect("watch");
    if start < model.compacted {
        let ended = watcher.next().await.expect_err("compacted");
        assert_eq!(ended, WatchError::Compacted { compact_revision: model.compacted });
        return;
    }
    let mut seen = Vec::new();
    let mut through = start - 1;
    let last = (start..=model.revision).rev().find(|revision| *revision > 1);
    while last.is_some_and(|last| through < last) {
        let batch = tokio::time::timeout(std::time::Duration::from_secs(20), watcher.next()).await;
        let batch = batch.expect("events in time").expect("no end");
        let first = batch.events.first().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        assert!(first > through, "a revision came twice");
        through = batch.revision;
        seen.extend(batch.events);
    }
    let mut got: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for event in seen {
        let kv = event.kv.clone().expect("kv");
        let value = (event.r#type == 0).then_some(&kv);
        let shown = show_event(kv.mod_revision, &kv.key, value, event.prev_kv.as_ref());
        got.entry(kv.mod_revision).or_default().push(shown);
    }
    for revision in start.max(2)..=model.revision {
        let mut events = got.remove(&revision).unwrap_or_default();
        events.sort();
        let mut want = model.events(revision);
        want.sort();
        if revision == model.compacted {
            // What was there before it may be gone: compared without.
            let cut = |events: &mut Vec<String>| {
                for event in events {
                    *event = event.split(" before ").next().unwrap_or_default().to_owned();
                }
            };
            cut(&mut events);
            cut(&mut want);
        }
        assert_eq!(events, want, "events of {revision}, watched from {start}");
    }
    assert!(got.is_empty());
}

fn hash_of(local: &Local) -> u32 {
    let generation = local.engine().current();
    let view = generation.view().expect("view");
    hash::hash_kv(&view, view.state.revision, |_| ControlFlow::Continue(())).expect("hash")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_revision_and_every_watch_agrees_with_the_model(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let (mut single, batched) = (Local::open(), Local::open());
        let mut model = Model::new();
        let mut pending = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            if let Some(operation) = advance(&mut model, step) {
                single.one(operation.clone());
                pending.push(operation);
            }
            match step {
                Step::Scrub(by_versions) => scrub::run_now(single.engine(), *by_versions).expect("scrub"),
                Step::Reopen => single = single.reopened(),
                Step::Install => single.reinstall(),
                Step::Restore => single = single.restored(),
                _ => (),
            }
            if at % 3 == 2 {
                batched.apply(&std::mem::take(&mut pending));
            }
        }
        batched.apply(&pending);
        compare(&single, &model, &runtime);
        compare(&batched, &model, &runtime);
        for by_versions in [steps.len() % 2 == 0, steps.len() % 2 != 0] {
            scrub::run_now(single.engine(), by_versions).expect("scrub");
            prop_assert_eq!(hash_of(&single), hash_of(&batched));
        }
    }
}
