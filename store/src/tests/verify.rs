//! What `verify` says of a state in which something was changed behind the store's back.

use bytes::Bytes;
use pintle_proto::etcdserverpb::{DeleteRangeRequest, PutRequest};
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::{LeaseGrant, LeaseRecord, StateRecord};
use prost::Message;
use rocksdb::{IteratorMode, WriteBatch};

use super::local::Local;
use crate::engine::{Engine, EngineOptions, Generation, KV, LEASE, META, REV, STATE_KEY};
use crate::mvcc::key;
use crate::mvcc::record::{Live, Version, encode_checked};
use crate::mvcc::view::{attachment_key, lease_key};
use crate::verify::findings;

fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

/// Revisions 2 to 6: a, a on lease 7, b, a once more, b deleted.
fn filled() -> Local {
    let local = Local::open();
    let put = |key: &'static str, value: &'static str, lease| {
        let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
        Operation::Put(encode(&PutRequest { key, value, lease, ..PutRequest::default() }))
    };
    let delete = DeleteRangeRequest { key: Bytes::from_static(b"b"), ..DeleteRangeRequest::default() };
    for operation in [
        Operation::LeaseGrant(LeaseGrant { id: 7, ttl_seconds: 60 }),
        put("a", "1", 0),
        put("a", "2", 7),
        put("b", "1", 0),
        put("a", "3", 7),
        Operation::DeleteRange(encode(&delete)),
    ] {
        local.one(operation);
    }
    local
}

#[track_caller]
fn check(want: &str, tamper: impl FnOnce(&Generation, &mut WriteBatch)) {
    let local = filled();
    let generation = local.engine().current();
    assert_eq!(findings(&generation), Vec::<String>::new());
    let mut batch = WriteBatch::default();
    tamper(&generation, &mut batch);
    generation.write(batch).expect("write");
    let found = findings(&generation);
    assert!(found.iter().any(|found| found == &format!("state: {want}")), "{want}: {found:?}");
}

#[test]
fn whatever_does_not_fit_is_told() {
    let version = |modified, created, version, lease| {
        let live = Live { created, version, lease, value: Bytes::from_static(b"x") };
        Version { modified, sub: 0, live: Some(live) }.encode()
    };
    check("change 3.0 has no version of its key that fits", |generation, batch| {
        batch.delete_cf(generation.family(KV).expect("family"), key::version(b"a", 3));
    });
    check("the version 3 of the key a does not fit the others", |generation, batch| {
        batch.put_cf(generation.family(KV).expect("family"), key::version(b"a", 5), version(5, 2, 4, 7));
    });
    check("the version 3 of the key a does not fit the others", |generation, batch| {
        batch.put_cf(generation.family(KV).expect("family"), key::version(b"a", 5), version(5, 4, 3, 7));
    });
    check("it holds 4 versions of keys, but 5 changes", |generation, batch| {
        batch.delete_cf(generation.family(KV).expect("family"), key::version(b"a", 2));
    });
    check("versions of the key a before 3 are missing", |generation, batch| {
        batch.delete_cf(generation.family(KV).expect("family"), key::version(b"a", 2));
        batch.delete_cf(generation.family(REV).expect("family"), key::revision(2, 0));
    });
    check("change 5.1 cannot follow 4.0", |generation, batch| {
        let change = crate::mvcc::record::encode_change(b"a", &Version { modified: 5, sub: 1, live: None });
        batch.delete_cf(generation.family(REV).expect("family"), key::revision(5, 0));
        batch.put_cf(generation.family(REV).expect("family"), key::revision(5, 1), change);
    });
    check("the key a is attached to the lease 8, which is not its own", |generation, batch| {
        batch.put_cf(generation.family(LEASE).expect("family"), attachment_key(8, b"a"), []);
    });
    check("1 keys name a lease, but only 0 are attached to theirs", |generation, batch| {
        batch.delete_cf(generation.family(LEASE).expect("family"), attachment_key(7, b"a"));
    });
    check("the lease 9 is newer than the newest", |generation, batch| {
        let lease = LeaseRecord { ttl_seconds: 5, stamp: 900 };
        batch.put_cf(generation.family(LEASE).expect("family"), lease_key(9), encode_checked(&lease));
    });
    for (revision, compact_revision, want) in
        [(5, 0, "change 6.0 cannot follow 5.0"), (6, 7, "revision 6 and compact revision 7 cannot be")]
    {
        check(want, |generation, batch| {
            let state = StateRecord { revision, compact_revision, lease_stamp: 1, ..StateRecord::default() };
            batch.put_cf(generation.family(META).expect("family"), STATE_KEY, encode_checked(&state));
        });
    }
}

#[test]
fn rows_without_a_state_record_are_refused() {
    let local = filled();
    let generation = local.engine().current();
    let mut batch = WriteBatch::default();
    batch.delete_cf(generation.family(META).expect("family"), STATE_KEY);
    generation.write(batch).expect("write");
    generation.flush().expect("flush");
    let dir = local.path().join("copy");
    std::fs::create_dir(&dir).expect("create");
    generation.checkpoint(&dir.join("state-000001")).expect("checkpoint");
    std::fs::write(dir.join("CURRENT"), "state-000001\n").expect("write");
    let refused = Engine::open(&dir, EngineOptions::default()).err().expect("it is refused").to_string();
    assert!(refused.ends_with("there are rows but no state record"), "{refused}");
}

/// RocksDB makes a database first, then its families: a first start that was killed in between has lost nothing.
#[test]
fn a_first_start_that_was_cut_short_is_finished_by_the_next() {
    let dir = tempfile::tempdir().expect("directory");
    let number = Engine::open(dir.path(), EngineOptions::default()).expect("open").current().number;
    let state = dir.path().join(format!("state-{number:06}"));
    std::fs::remove_dir_all(&state).expect("as if it had not been made");
    drop(rocksdb::DB::open_default(&state).expect("a database without families"));
    Engine::open(dir.path(), EngineOptions::default()).expect("the next start");
}

#[test]
fn a_received_state_that_is_gone_is_not_made_anew() {
    let dir = tempfile::tempdir().expect("directory");
    drop(Engine::open(dir.path(), EngineOptions::default()).expect("open"));
    let current = dir.path().join("CURRENT");
    let text = std::fs::read_to_string(&current).expect("CURRENT");
    std::fs::remove_dir_all(dir.path().join("state-000001")).expect("remove");
    Engine::open(dir.path(), EngineOptions::default()).expect("the first one has nothing to lose");
    std::fs::remove_dir_all(dir.path().join("state-000001")).expect("remove");
    std::fs::write(&current, text.replace('1', "2")).expect("as after a snapshot that was received");
    let refused = Engine::open(dir.path(), EngineOptions::default()).err().expect("refused");
    assert!(refused.is_damage() && refused.to_string().contains("that is not there"), "{refused}");
}

#[test]
fn many_keys_deleted_from_the_last_on_leave_nothing_once_they_are_compacted() {
    let local = Local::open();
    let key = |number: u32| Bytes::from(format!("key/{number:05}"));
    let put = |number| Operation::Put(encode(&PutRequest { key: key(number), ..PutRequest::default() }));
    let delete = |number| {
        Operation::DeleteRange(encode(&DeleteRangeRequest { key: key(number), ..DeleteRangeRequest::default() }))
    };
    (0..3000).for_each(|number| drop(local.one(put(number))));
    (0..3000).rev().for_each(|number| drop(local.one(delete(number))));
    local.one(put(0));
    local.one(Operation::Compact(6002));
    crate::mvcc::scrub::run_now(local.engine(), false).expect("scrub");
    let generation = local.engine().current();
    let rows =
        |name| generation.db().iterator_cf(generation.family(name).expect("family"), IteratorMode::Start).count();
    assert_eq!((rows(KV), rows(REV)), (1, 1));
    assert_eq!(findings(&generation), Vec::<String>::new());
}
