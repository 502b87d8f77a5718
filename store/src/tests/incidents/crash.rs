//! What a crash leaves: copies of the state as it lies on the disk at some moment are opened like any state, and must be the state
//! after some entry, from which the log leads on.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pintle_proto::etcdserverpb::{AuthUserAddRequest, DeleteRangeRequest, PutRequest};
use pintle_proto::store_v1::auth_change::Change;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::{AuthChange, LeaseGrant};
use prost::Message;
use tempfile::TempDir;

use crate::engine::EngineOptions;
use crate::machine::{Place, StoreMachine};
use crate::mvcc::hash;
use crate::mvcc::view::Source;
use crate::store::{Store, StoreOptions};
use crate::tests::local::{Local, command};

fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

fn put(key: &str, value: Vec<u8>, lease: i64) -> Operation {
    Operation::Put(encode(&PutRequest {
        key: Bytes::from(key.to_owned()),
        value: value.into(),
        lease,
        ..PutRequest::default()
    }))
}

fn delete(key: &str) -> Operation {
    Operation::DeleteRange(encode(&DeleteRangeRequest {
        key: Bytes::from(key.to_owned()),
        ..DeleteRangeRequest::default()
    }))
}

/// Memory tables so small that RocksDB writes files all the time.
fn restless() -> StoreOptions {
    let engine = EngineOptions { write_buffer_bytes: 64 << 10, ..EngineOptions::default() };
    StoreOptions { engine, ..StoreOptions::default() }
}

/// Everything replicated, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Print {
    revision: i64,
    compacted: i64,
    hash: u32,
    leases: Vec<(i64, i64)>,
    attached: Vec<Bytes>,
    users: Vec<String>,
}

fn print(store: &Store) -> Print {
    let generation = store.shared().engine.current();
    let view = generation.view().expect("view");
    Print {
        revision: view.revision(),
        compacted: view.compacted(),
        hash: hash::hash_kv(&view, view.revision(), |_| ControlFlow::Continue(())).expect("hash"),
        leases: view.leases().expect("leases").into_iter().map(|(id, record)| (id, record.ttl_seconds)).collect(),
        attached: view.lease_keys(7).expect("keys"),
        users: view.auth().expect("users").users(),
    }
}

/// A store with its log: the commands of each entry, and the state after it.
struct Logged {
    local: Local,
    entries: Vec<Vec<Bytes>>,
    prints: Vec<Print>,
}

impl Logged {
    fn new() -> Self {
        let local = Local::with(restless());
        let prints = vec![print(&local.store)];
        Self { local, entries: Vec::new(), prints }
    }

    fn entry(&mut self, operations: &[Operation]) {
        let commands: Vec<Bytes> = operations.iter().map(|operation| command(operation.clone(), None)).collect();
        self.local.log.entry(&commands);
        self.entries.push(commands);
        self.prints.push(print(&self.local.store));
    }

    /// Opens what a crash left, and applies what the log has after it. Returns how many entries were there already.
    #[track_caller]
    fn recover(&self, image: &TempDir) -> usize {
        let (store, machine) = Store::open(image.path(), restless()).expect("open what the crash left");
        let applied = self.check(&store, &machine);
        self.go_on(store, machine, applied);
        applied
    }

    #[track_caller]
    fn check(&self, store: &Store, machine: &StoreMachine) -> usize {
        let (place, _) = machine.applied_place().expect("place");
        let applied = usize::try_from(place.map_or(0, |place| place.index)).expect("small");
        assert_eq!(print(store), self.prints[applied], "the state is not that after entry {applied}");
        applied
    }

    #[track_caller]
    fn go_on(&self, store: Store, mut machine: StoreMachine, applied: usize) {
        for (commands, index) in self.entries[applied..].iter().zip(applied as u64 + 1..) {
            machine.apply_commands(Place { term: 1, index }, commands).expect("apply");
        }
        assert_eq!(&print(&store), self.prints.last().expect("states"), "and so does the log go on from there");
    }
}

/// The state as it lies on the disk now, with nothing of what is in memory: what is left of it if the machine stops.
fn cut(local: &Local) -> TempDir {
    let state = local.path().join("state");
    for _ in 0..100 {
        let image = tempfile::tempdir_in(local.path()).expect("temporary directory");
        if copy(&state, image.path()).is_ok() {
            return image;
        }
    }
    panic!("files of {} come and go too fast to be copied", state.display());
}

/// Fails if a file went meanwhile: what was copied could then belong to different moments.
fn copy(state: &Path, image: &Path) -> std::io::Result<()> {
    fs::copy(state.join("CURRENT"), image.join("CURRENT"))?;
    let number = fs::read_to_string(image.join("CURRENT"))?;
    let (from, to) = (state.join(number.trim()), image.join(number.trim()));
    fs::create_dir(&to)?;
    let before = tables(&from)?;
    for file in fs::read_dir(&from)? {
        let (path, target) = (file.as_ref().expect("entry").path(), to.join(file?.file_name()));
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("MANIFEST-") || name == "CURRENT" || name == "IDENTITY" || name.starts_with("OPTIONS-") {
            fs::copy(path, target)?;
        }
    }
    // A file that the manifest names was there before or is there now.
    for table in before.into_iter().chain(tables(&from)?) {
        let target = to.join(table.file_name().unwrap_or_default());
        if !target.exists() {
            fs::copy(&table, target)?;
        }
    }
    let manifest = format!("{}\n", fs::read_to_string(to.join("CURRENT"))?.trim());
    if !to.join(manifest.trim()).exists() {
        return Err(std::io::Error::other("the manifest was replaced"));
    }
    Ok(())
}

fn tables(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let tables = paths
        .filter(|path| path.as_ref().map_or(true, |path| path.extension().is_some_and(|extension| extension == "sst")));
    tables.collect()
}

/// What entries do, of every kind that lies in another place.
fn operations(number: usize) -> Vec<Operation> {
    let key = format!("k{:02}", number % 17);
    let mut all = vec![put(&key, vec![number as u8; 5000], if number > 10 { 7 } else { 0 })];
    match number % 10 {
        3 => all.push(delete(&format!("k{:02}", (number + 5) % 17))),
        5 => {
            all.push(Operation::LeaseGrant(LeaseGrant { id: 7 + i64::try_from(number / 10).unwrap(), ttl_seconds: 60 }))
        }
        6 => all.push(Operation::Auth(AuthChange {
            change: Some(Change::UserAdd(encode(&AuthUserAddRequest {
                name: format!("user{number}"),
                hashed_password: "hash".to_owned(),
                ..AuthUserAddRequest::default()
            }))),
        })),
        9 => all.push(Operation::Compact(i64::try_from(number).unwrap() - 5)),
        _ => (),
    }
    all
}

/// etcd 3.5.0 to 3.5.2 committed data and the index it was applied at in two transactions: a crash between them applied an entry twice
/// or never. Here both are in one write batch, and all column families are flushed together (I5): whenever the machine stops, what is
/// on the disk is the state after a whole entry, which says which one.
#[test]
fn etcd_13766_a_crash_at_any_moment_leaves_the_state_after_a_whole_entry() {
    let mut logged = Logged::new();
    let mut images = Vec::new();
    for number in 1..=160 {
        logged.entry(&operations(number));
        if number % 4 == 0 {
            images.push(cut(&logged.local));
        }
    }
    let mut found: Vec<usize> = images.iter().map(|image| logged.recover(image)).collect();
    assert!(found.is_sorted(), "{found:?}");
    found.dedup();
    assert!(found.len() > 3, "RocksDB wrote files at several moments: {found:?}");
}

/// A crash while etcd was defragmenting left the copied database with an index that did not belong to it. Here nothing is copied and
/// switched over: giving back space rewrites tables below a state that stays one and the same.
#[test]
fn etcd_14685_a_crash_while_space_is_given_back_changes_nothing() {
    let mut logged = Logged::new();
    for number in 1..=60 {
        logged.entry(&operations(number));
    }
    let generation = logged.local.engine().current();
    let reclaiming = std::thread::spawn(move || (0..3).for_each(|_| generation.reclaim(&|| true).expect("reclaim")));
    let mut images = vec![cut(&logged.local)];
    while !reclaiming.is_finished() && images.len() < 40 {
        images.push(cut(&logged.local));
    }
    reclaiming.join().expect("no panic");
    images.push(cut(&logged.local));
    let found: Vec<_> = images.iter().map(|image| logged.recover(image)).collect();
    assert_eq!(found.last(), Some(&60), "everything was written by then");
}

/// etcd took the revision from the data after a restart. If a crash came in the middle of a compaction whose last revision was a deleted
/// key, that revision was gone from the data, and the store went back in time. Here revision and compact revision are records of their
/// own, in the same write as what they speak of.
#[test]
fn etcd_17780_the_revision_stays_when_a_compaction_removed_all_there_was() {
    let mut logged = Logged::new();
    for number in 0..200 {
        logged.entry(&[put(&format!("k{number:03}"), vec![1; 300], 0)]);
    }
    for number in 0..200 {
        logged.entry(&[delete(&format!("k{number:03}"))]);
    }
    let revision = logged.local.store.revision();
    assert_eq!(revision, 401);
    logged.local.log.machine.lock().flush_state().expect("flush");
    let mut images = vec![cut(&logged.local)];
    logged.entry(&[Operation::Compact(revision)]);
    let shared = Arc::clone(logged.local.store.shared());
    // Tables of what was removed are written while it is being removed.
    while shared.scrubbed() < revision && images.len() < 60 {
        shared.engine.current().flush().expect("flush");
        images.push(cut(&logged.local));
    }
    crate::mvcc::scrub::run_now(&shared.engine, true).expect("scrub");
    shared.engine.current().reclaim(&|| true).expect("reclaim");
    images.push(cut(&logged.local));
    for image in &images {
        let (store, machine) = Store::open(image.path(), restless()).expect("open");
        assert_eq!(store.revision(), revision);
        let applied = logged.check(&store, &machine);
        logged.go_on(store, machine, applied);
    }
    // With nothing left of it, and the next write is one later.
    let last = images.pop().expect("images");
    let (store, mut machine) = Store::open(last.path(), restless()).expect("open");
    assert_eq!(store.compact_revision(), revision);
    let index = logged.entries.len() as u64 + 1;
    machine.apply_commands(Place { term: 1, index }, &[command(put("k", vec![], 0), None)]).expect("apply");
    assert_eq!(store.revision(), revision + 1);
}

/// A database that was received was opened before it was whole. Here a checkpoint takes the place of the state only once it is complete,
/// synced, and was opened and read: by the rename of one file. One that is damaged is refused, and the state stays what it was.
#[test]
fn etcd_20271_a_damaged_checkpoint_or_half_an_installation_leaves_the_state_as_it_was() {
    let donor = Local::open();
    (0..20).for_each(|number| drop(donor.one(put(&format!("k{number}"), vec![7; 100], 0))));
    let mut local = Local::open();
    local.one(put("mine", vec![1], 0));
    let before = print(&local.store);
    let checkpoint = || {
        let dir = tempfile::tempdir_in(donor.path()).expect("temporary directory");
        donor.log.machine.lock().checkpoint_state(dir.path()).expect("checkpoint");
        dir
    };
    let damages: [(&str, &dyn Fn(&Path)); 4] = [
        ("a table is missing", &|dir| fs::remove_file(&tables(dir).expect("list")[0]).expect("remove")),
        ("a table is cut off", &|dir| {
            let table = tables(dir).expect("list").remove(0);
            let content = fs::read(&table).expect("read");
            fs::remove_file(&table).expect("unlink"); // its data is shared with the donor
            fs::write(&table, &content[..content.len() / 2]).expect("write");
        }),
        ("the manifest is missing", &|dir| {
            let all = fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path());
            let manifest = all.filter(|path| path.to_string_lossy().contains("MANIFEST-"));
            manifest.for_each(|path| fs::remove_file(path).expect("remove"));
        }),
        ("there is nothing", &|dir| {
            fs::remove_dir_all(dir).expect("remove");
            fs::create_dir(dir).expect("create");
        }),
    ];
    for (what, damage) in damages {
        let dir = checkpoint();
        damage(dir.path());
        local.log.machine.lock().install_state(dir.path()).expect_err(what);
        assert_eq!(print(&local.store), before, "{what}");
        local = local.reopened();
        assert_eq!(print(&local.store), before, "{what}, after a restart");
    }
    // As a crash leaves it between the copy and the rename.
    let half = local.path().join("state").join("state-000099");
    fs::create_dir(&half).expect("create");
    fs::write(half.join("000001.sst"), b"half a table").expect("write");
    local = local.reopened();
    assert_eq!(print(&local.store), before);
    assert!(!half.exists(), "nobody needs it any more");
    local.log.machine.lock().install_state(checkpoint().path()).expect("install");
    assert_eq!(print(&local.store), print(&donor.store));
}
