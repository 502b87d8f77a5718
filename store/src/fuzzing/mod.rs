//! What the fuzzer gives its bytes to: every decoder of this crate that reads what came from a client, from the log or from a file, and
//! applying, against a model. Only in tests, and in builds with debug assertions, which the fuzzer's is. A target panics if something is
//! wrong; the first byte often chooses what the rest is read as.

mod apply;
mod memory;
mod model;

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use pintle_proto::authpb::{Permission, Role};
use pintle_proto::etcdserverpb::{AuthUserAddRequest, PutRequest};
use pintle_proto::store_v1::auth_change::Change;
use pintle_proto::store_v1::{Alarm, AuthRecord, LeaseRecord, MemberAttributes, StateRecord, UserRecord};
use prost::Message;
use ring::hmac;

use crate::auth::{AuthState, TokenOptions, Tokens};
use crate::bolt::{Bolt, Layout};
use crate::etcd::fuzz_gateway;
use crate::mvcc::key::{self, Interval, prefix_end};
use crate::mvcc::record::{Live, Version, decode_change, decode_checked, encode_change, encode_checked};
use crate::snapshot::schema::fuzz as fuzz_row;

/// A name, what takes the bytes, and inputs to begin with.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

pub const TARGETS: [Target; 8] = [
    ("store-keys", keys, key_seeds),
    ("store-records", records, record_seeds),
    ("store-commands", apply::commands, apply::command_seeds),
    ("store-apply", apply::script, apply::script_seeds),
    ("store-bolt", bolt, bolt_seeds),
    ("store-rows", rows, row_seeds),
    ("store-tokens", tokens, token_seeds),
    ("store-gateway", fuzz_gateway, gateway_seeds),
];

/// Keys as they lie in the database: each has one form, which keeps the order of keys; and the intervals of requests.
fn keys(data: &[u8]) {
    let mut name = Vec::new();
    if let Some(revision) = key::parse_version(data, &mut name) {
        assert_eq!(key::version(&name, revision), data, "a stored key has one form");
    }
    if let Some((main, sub)) = key::parse_revision(data) {
        assert_eq!(key::revision(main, sub).as_slice(), data);
    }
    let Some((at, rest)) = data.split_first() else { return };
    let (one, other) = rest.split_at(usize::from(*at).min(rest.len()));
    assert_eq!(key::prefix(one).cmp(&key::prefix(other)), one.cmp(other), "the order of keys is kept");
    let (first, second) = (Bytes::copy_from_slice(one), Bytes::copy_from_slice(other));
    let interval = Interval::new(&first, &second);
    let point = Interval::Key(second.clone());
    assert_eq!(interval.contains(&second), interval.intersects(&point));
    assert_eq!(point.intersects(&interval), interval.intersects(&point));
    let end = prefix_end(one);
    if !one.is_empty() {
        assert_eq!(Interval::new(&first, &end).contains(other), in_prefix(one, other), "{one:?} {other:?}");
    }
}

/// Whether a key lies in the range that clients take for a prefix; one of only FF bytes has no end.
fn in_prefix(prefix: &[u8], key: &[u8]) -> bool {
    if prefix.iter().all(|byte| *byte == 0xff) { prefix <= key } else { key.starts_with(prefix) }
}

fn key_seeds() -> Vec<Vec<u8>> {
    vec![
        key::version(b"a\0b", 7),
        key::version(b"", i64::MAX),
        key::revision(3, 1).to_vec(),
        b"\x01ab".to_vec(),
        b"\x02a\xffa\xffb".to_vec(),
        b"\x01\xff\xff\xff".to_vec(),
    ]
}

/// Records of the database. Those with a checksum are given a right one, which no fuzzer finds, and are also read as they are.
fn records(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    let format = encode_checked(&StateRecord::default())[0];
    let checked = [&[format], &crc32c::crc32c(body).to_be_bytes()[..], body].concat();
    let _ = decode_checked::<StateRecord>(body, "record");
    match which % 8 {
        0 => {
            let Ok(version) = Version::decode(9, body) else { return };
            assert_eq!(Version::decode(9, &version.encode()).expect("what was read can be written"), version);
            let change = encode_change(b"key", &version);
            assert_eq!(decode_change(&change).expect("our own").deleted, version.live.is_none());
        }
        1 => drop(decode_change(body).map(|change| change.key.len())),
        2 => same::<StateRecord>(&checked),
        3 => same::<LeaseRecord>(&checked),
        4 => same::<MemberAttributes>(&checked),
        5 => same::<UserRecord>(&checked),
        6 => same::<AuthRecord>(&checked),
        _ => {
            let name = body.get(..3).unwrap_or_default();
            let row = |prefix: &[u8]| ([prefix, name].concat(), checked.clone());
            let rows = [row(crate::auth::USER_PREFIX), row(crate::auth::ROLE_PREFIX), row(crate::auth::HEAD_KEY)];
            for (key, value) in &rows {
                let loaded = AuthState::load([(key.as_slice(), value.as_slice())].into_iter());
                drop(loaded.map(|state| state.users()));
            }
        }
    }
}

fn same<M: Message + Default + PartialEq + std::fmt::Debug>(checked: &[u8]) {
    let Ok(message) = decode_checked::<M>(checked, "record") else { return };
    assert_eq!(decode_checked::<M>(&encode_checked(&message), "record").expect("our own"), message);
}

fn record_seeds() -> Vec<Vec<u8>> {
    let tagged = |which: u8, body: &[u8]| [&[which], body].concat();
    let live = Some(Live { created: 3, version: 2, lease: -7, value: Bytes::from_static(b"v") });
    let version = Version { modified: 9, sub: 300, live };
    let role = Role { name: Bytes::from_static(b"r"), key_permission: vec![Permission::default()] };
    vec![
        tagged(0, &version.encode()),
        tagged(0, &Version { modified: 9, sub: 1, live: None }.encode()),
        tagged(1, &encode_change(b"key", &version)),
        tagged(2, &state_record().encode_to_vec()),
        tagged(3, &LeaseRecord { ttl_seconds: 60, stamp: 3 }.encode_to_vec()),
        tagged(5, &UserRecord { roles: vec!["r".to_owned()], ..UserRecord::default() }.encode_to_vec()),
        tagged(7, &role.encode_to_vec()),
    ]
}

fn state_record() -> StateRecord {
    let alarms = vec![Alarm { member: 1, kind: 1 }];
    StateRecord {
        revision: 7,
        compact_revision: 3,
        applied_index: 9,
        has_applied: true,
        alarms,
        ..StateRecord::default()
    }
}

/// A bbolt file, as it is, and with checksums of its metas that are right.
fn bolt(data: &[u8]) {
    let path = scratch("bolt");
    for mended in [false, true] {
        let mut raw = data.to_vec();
        if mended {
            crate::bolt::mend_metas(&mut raw);
        }
        std::fs::write(&path, &raw).expect("write a file");
        let Ok(file) = Bolt::open(&path) else { continue };
        for name in file.buckets().unwrap_or_default() {
            let Ok(Some(items)) = file.bucket(&name) else { continue };
            // Damage can make a tree that leads back to itself at the same depth.
            items.take(10_000).take_while(Result::is_ok).for_each(drop);
        }
    }
}

/// A file of this process's own, in memory where that is possible.
fn scratch(name: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let dir = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let thread = format!("{:?}", std::thread::current().id());
    let number: String = thread.chars().filter(char::is_ascii_digit).collect();
    dir.join(format!("pintle-fuzz-{}-{number}-{name}", std::process::id()))
}

fn bolt_seeds() -> Vec<Vec<u8>> {
    let mut layout = Layout::builder();
    layout.bucket(b"key").expect("bucket");
    (0..3).for_each(|_| layout.item(4, 5).expect("item"));
    let mut out = layout.finish().expect("layout").write(Vec::new());
    out.bucket(b"key").expect("bucket");
    (0..3u32).for_each(|number| out.item(&number.to_be_bytes(), b"value").expect("item"));
    vec![out.finish().expect("file")]
}

/// Rows of etcd's buckets, as a snapshot brings them.
fn rows(data: &[u8]) {
    if let Some((which, raw)) = data.split_first() {
        fuzz_row(*which, raw);
    }
}

fn row_seeds() -> Vec<Vec<u8>> {
    let user = pintle_proto::authpb::User { name: Bytes::from_static(b"u"), ..Default::default() };
    vec![
        [&[0][..], &key::etcd_revision(3, 1, true)].concat(),
        b"\x01\x08\x07\x10\x3c".to_vec(),
        b"\x02\x08\x07\x10\x01".to_vec(),
        [&[3][..], &user.encode_to_vec()].concat(),
        b"\x04\x0a\x01r".to_vec(),
        b"\x05\0\0\0\0\0\0\0\x07".to_vec(),
    ]
}

/// Logins: as they are, and signed as ours are. Whoever is let in is who the token names.
fn tokens(data: &[u8]) {
    const KEY: &[u8] = b"a key of a cluster";
    let mut state = AuthState::default();
    let user = AuthUserAddRequest { name: "u".to_owned(), hashed_password: "hash".to_owned(), ..Default::default() };
    let added = state.change(&Change::UserAdd(user.encode_to_vec().into()));
    added.expect("a request").expect("a user");
    state.token_key = Bytes::from_static(KEY);
    let tokens = Tokens::new(&TokenOptions::Simple { unused: Duration::from_secs(300) });
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(tokens.caller(&state, text).is_err(), "nobody has signed it");
    }
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY), data);
    let token = format!("{}.{}", URL_SAFE_NO_PAD.encode(signature), URL_SAFE_NO_PAD.encode(data));
    if let Ok(caller) = tokens.caller(&state, &token) {
        assert_eq!((caller.name.as_bytes(), data.get(16..)), (&b"u"[..], Some(&b"u"[..])));
    }
}

fn token_seeds() -> Vec<Vec<u8>> {
    let body = |issued: u64, name: &str| [&issued.to_be_bytes()[..], &2u64.to_be_bytes(), name.as_bytes()].concat();
    vec![body(0, "u"), body(u64::MAX, "u"), body(u64::MAX, "v"), b"YQ.YQ".to_vec(), b"a.b.c".to_vec()]
}

fn gateway_seeds() -> Vec<Vec<u8>> {
    let put = PutRequest { key: Bytes::from_static(b"a"), lease: -1, ..PutRequest::default() }.encode_to_vec();
    let tagged = |which: u8, text: &str| [&[which], text.as_bytes()].concat();
    let mut seeds: Vec<Vec<u8>> = [
        r#"{"key":"Zm9v","range_end":"Zm9w","sort_order":"ASCEND","limit":"5"}"#,
        r#"{"compare":[{"target":"CREATE","key":"Zm9v","createRevision":"2"}],"success":[{"requestPut":{"key":"YQ==","value":"Yg=="}}]}"#,
        r#"{"create_request":{"key":"Zm9v","filters":["NOPUT"],"start_revision":7}}"#,
        r#"{"TTL": 60, "ID": "7"} {"name":"a\"}"}"#,
    ]
    .iter()
    .zip(0..)
    .map(|(text, which)| tagged(which, text))
    .collect();
    seeds.push([&[0x80][..], &put].concat());
    seeds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_fuzzer_begins_with_is_read_and_what_it_found_is_mended() {
        for (name, target, seeds) in TARGETS {
            seeds().iter().for_each(|seed| target(seed));
            let found = std::fs::read_dir(format!("{}/../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR")));
            for file in found.into_iter().flatten() {
                target(&std::fs::read(file.expect("an entry").path()).expect("read"));
            }
        }
        let _ = std::fs::remove_file(scratch("bolt"));
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(
            which in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            for (_, target, seeds) in TARGETS {
                let mut input = which.get(&seeds()).clone();
                for (at, byte) in &changes {
                    let at = at.index(input.len());
                    input[at] = *byte;
                }
                target(&input);
                target(&input[..cut.index(input.len())]);
            }
            let _ = std::fs::remove_file(scratch("bolt"));
        }
    }
}
