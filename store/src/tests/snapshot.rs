//! Snapshot files: what is in them beside the keys, and files that cannot be restored. That every revision, lease and watch comes back
//! is part of the comparison with the model.

use std::path::Path;

use bytes::Bytes;
use pintle_proto::authpb::permission::Type;
use pintle_proto::authpb::{Permission, UserAddOptions};
use pintle_proto::etcdserverpb::{
    AlarmType, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest, AuthUserGrantRoleRequest,
    PutRequest,
};
use pintle_proto::mvccpb::KeyValue;
use pintle_proto::store_v1::auth_change::Change;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::{Alarm, AuthChange, LeaseGrant, SetAlarm};
use prost::Message;
use ring::digest::{SHA256, digest};

use super::local::{Local, founding};
use crate::bolt::Layout;
use crate::mvcc::view::Source;
use crate::snapshot::{RestoreOptions, Restored, restore};

fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

fn put(key: &str, value: &str, lease: i64) -> Operation {
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
    Operation::Put(encode(&PutRequest { key, value, lease, ..PutRequest::default() }))
}

fn auth(change: Change) -> Operation {
    Operation::Auth(AuthChange { change: Some(change) })
}

/// Users, a role, leases, an alarm, and history with a compaction in it.
fn filled() -> Local {
    let local = Local::open();
    let user = |name: &str, hash: &str, no_password| {
        let (name, hashed_password) = (name.to_owned(), hash.to_owned());
        let options = Some(UserAddOptions { no_password });
        auth(Change::UserAdd(encode(&AuthUserAddRequest { name, hashed_password, options, ..Default::default() })))
    };
    let role = |name: &str| auth(Change::RoleAdd(encode(&AuthRoleAddRequest { name: name.to_owned() })));
    let grant = |user: &str, role: &str| {
        let (user, role) = (user.to_owned(), role.to_owned());
        auth(Change::UserGrantRole(encode(&AuthUserGrantRoleRequest { user, role })))
    };
    let perm = Some(Permission {
        perm_type: Type::Readwrite.into(),
        key: Bytes::from_static(b"a"),
        range_end: Bytes::from_static(b"b"),
    });
    let permission = AuthRoleGrantPermissionRequest { name: "writer".to_owned(), perm };
    for operation in [
        Operation::LeaseGrant(LeaseGrant { id: 7, ttl_seconds: 60 }),
        Operation::LeaseGrant(LeaseGrant { id: -8, ttl_seconds: 9 }),
        put("a", "1", 0),
        put("a", "2", 7),
        put("b", "1", -8),
        put("a", "3", 7),
        Operation::Compact(4),
        user("root", "hash", false),
        user("certified", "", true),
        role("root"),
        role("writer"),
        grant("root", "root"),
        grant("certified", "writer"),
        auth(Change::RoleGrantPermission(encode(&permission))),
        auth(Change::Enable(Bytes::from_static(b"key"))),
        alarm(AlarmType::Nospace),
        alarm(AlarmType::Corrupt),
    ] {
        local.one(operation);
    }
    local
}

fn alarm(kind: AlarmType) -> Operation {
    Operation::SetAlarm(SetAlarm { alarm: Some(Alarm { member: 5, kind: kind.into() }), active: true })
}

#[test]
fn users_roles_leases_and_alarms_come_back() {
    let before = filled();
    let (users, roles) = (before.store.auth().users(), before.store.auth().roles());
    let role = before.store.auth().role("writer").cloned();
    let after = before.restored();
    let state = after.store.auth();
    assert_eq!((state.users(), state.roles(), state.role("writer").cloned()), (users, roles, role));
    assert!(state.enabled && state.lacks_key(), "nobody can forge a login with what is in the file");
    let certified = state.user("certified").expect("user");
    assert_eq!((certified.no_password, &certified.roles[..]), (true, &["writer".to_owned()][..]));
    assert_eq!(state.user("root").expect("user").password_hash, "hash");
    let generation = after.engine().current();
    let view = generation.view().expect("view");
    let leases: Vec<(i64, i64)> =
        view.leases().expect("leases").into_iter().map(|(id, record)| (id, record.ttl_seconds)).collect();
    assert_eq!(leases, [(7, 60), (-8, 9)]);
    assert_eq!(view.lease_keys(7).expect("keys"), [Bytes::from_static(b"a")]);
    assert_eq!(view.lease_keys(-8).expect("keys"), [Bytes::from_static(b"b")]);
    assert_eq!(view.alarms(), [Alarm { member: 5, kind: AlarmType::Corrupt.into() }]);
    drop(view);
    // The first leader makes a key; one that is there stays.
    for (key, lacks) in [(&b"new"[..], false), (b"other", false)] {
        after.one(auth(Change::Enable(Bytes::from_static(key))));
        assert_eq!(after.store.auth().lacks_key(), lacks);
    }
    assert_eq!(after.store.auth().token_key, Bytes::from_static(b"new"));
}

fn try_restore(file: &Path, options: &RestoreOptions) -> Result<Restored, String> {
    let target = tempfile::tempdir().expect("temporary directory");
    let restored = restore(file, target.path(), &founding(), options, &mut |_| ());
    let left: Vec<_> = std::fs::read_dir(target.path().parent().expect("parent"))
        .expect("list")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.contains(&*target.path().file_name().expect("name").to_string_lossy()))
        .filter(|name| name.ends_with(".restoring"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "nothing unfinished is left");
    restored.map_err(|error| pintle_base::error::Chain(&error).to_string())
}

#[test]
fn the_revision_can_go_on_later_and_the_past_be_compacted() {
    let local = filled();
    let file = local.path().join("file");
    local.save(&file);
    let revision = local.store.revision();
    let plain = try_restore(&file, &RestoreOptions::default()).expect("restored");
    assert_eq!((plain.revision, plain.compact_revision, plain.keys), (revision, 4, 2));
    let options = RestoreOptions { bump_revision: 1000, mark_compacted: true, ..RestoreOptions::default() };
    let bumped = try_restore(&file, &options).expect("restored");
    assert_eq!((bumped.revision, bumped.compact_revision, bumped.keys), (revision + 1000, revision + 1000, 2));
    let options = RestoreOptions { bump_revision: i64::MAX, ..RestoreOptions::default() };
    assert_eq!(try_restore(&file, &options).expect_err("too large"), "the revision would be too large");
}

#[test]
fn a_file_that_is_not_as_it_was_written_is_not_restored() {
    let local = filled();
    let file = local.path().join("file");
    local.save(&file);
    let good = std::fs::read(&file).expect("read");
    let refused = |content: &[u8], options: &RestoreOptions| {
        std::fs::write(&file, content).expect("write");
        try_restore(&file, options).expect_err("refused")
    };
    let checked = RestoreOptions::default();
    let unchecked = RestoreOptions { skip_hash_check: true, ..RestoreOptions::default() };
    let mut flipped = good.clone();
    flipped[3 * 4096 + 100] ^= 1;
    assert!(refused(&flipped, &checked).contains("checksum is wrong"), "flipped");
    assert!(refused(&good[..good.len() - 32], &checked).contains("without a checksum"), "as a copied database");
    assert!(refused(&good[..4096], &unchecked).contains("its end is missing"));
    assert!(
        refused(b"", &unchecked).contains("no bbolt database") || refused(b"", &unchecked).contains("read the file")
    );
    std::fs::write(&file, &good[..good.len() - 32]).expect("write");
    assert_eq!(try_restore(&file, &unchecked).expect("restored").keys, 2);
}

/// A file of one bucket, with a right checksum.
fn write_bucket(file: &Path, bucket: &str, rows: &[(Vec<u8>, Vec<u8>)]) {
    let mut layout = Layout::builder();
    layout.bucket(bucket.as_bytes()).expect("bucket");
    rows.iter().for_each(|(key, value)| layout.item(key.len(), value.len()).expect("item"));
    let mut out = layout.finish().expect("layout").write(Vec::new());
    out.bucket(bucket.as_bytes()).expect("bucket");
    rows.iter().for_each(|(key, value)| out.item(key, value).expect("item"));
    let mut content = out.finish().expect("file");
    content.extend_from_slice(digest(&SHA256, &content).as_ref());
    std::fs::write(file, content).expect("write");
}

fn place(main: i64, sub: i64) -> Vec<u8> {
    [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()[..]].concat()
}

fn kv(key: &str, created: i64, modified: i64, version: i64) -> Vec<u8> {
    let key = Bytes::from(key.to_owned());
    let (create_revision, mod_revision) = (created, modified);
    KeyValue { key, create_revision, mod_revision, version, ..KeyValue::default() }.encode_to_vec()
}

#[test]
fn rows_that_do_not_fit_each_other_and_revisions_without_room_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("file");
    let refused = |rows: &[(Vec<u8>, Vec<u8>)]| {
        write_bucket(&file, "key", rows);
        try_restore(&file, &RestoreOptions::default()).expect_err("refused")
    };
    let damaged = "snapshot: a row of bucket key cannot be read";
    let twice = [(place(2, 0), kv("k", 2, 2, 1)), (place(2, 1), kv("k", 2, 2, 1))];
    assert_eq!(refused(&twice), damaged);
    let put_and_deleted = [(place(2, 0), kv("k", 2, 2, 1)), ([&place(2, 0)[..], b"t"].concat(), kv("l", 0, 0, 0))];
    assert_eq!(refused(&put_and_deleted), damaged);
    assert_eq!(refused(&[(place(i64::MAX, 0), kv("k", 2, i64::MAX, 1))]), "the revision would be too large");
    write_bucket(&file, "key", &[(place(2, 0), kv("k", 2, 2, 1)), (place(2, 1), kv("l", 2, 2, 1))]);
    assert_eq!(try_restore(&file, &RestoreOptions::default()).expect("restored").keys, 2);
}

#[test]
fn what_does_not_fit_in_a_file_with_a_right_checksum_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("file");
    for (bucket, key, value) in [
        ("key", place(2, 0), kv("", 2, 2, 1)),
        ("key", place(2, 0), kv("k", 2, 3, 1)),
        ("key", place(2, 0), kv("k", 3, 2, 1)),
        ("key", place(2, 0), kv("k", 2, 2, 0)),
        ("key", place(-2, 0), kv("k", 2, 2, 1)),
        ("key", b"short".to_vec(), kv("k", 2, 2, 1)),
        ("key", place(2, 0), vec![0xff; 9]),
        ("lease", vec![0; 8], vec![0xff; 9]),
        ("lease", vec![0; 8], Vec::new()),
        ("authUsers", b"u".to_vec(), vec![0xff; 9]),
        ("meta", b"finishedCompactRev".to_vec(), b"x".to_vec()),
    ] {
        write_bucket(&file, bucket, &[(key, value)]);
        let refused = try_restore(&file, &RestoreOptions::default()).expect_err("refused");
        assert_eq!(refused, format!("snapshot: a row of bucket {bucket} cannot be read"));
    }
}
