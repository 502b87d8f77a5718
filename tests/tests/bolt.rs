//! Files of bbolt, held against the real etcd: its snapshots are read here, and what is written here serves there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use pintle_proto::mvccpb::KeyValue;
use pintle_store::bolt::{Bolt, BoltError, Layout};
use pintle_tests::etcd::{self, Etcd, Place};
use pintle_tests::{Ran, ran};
use prost::Message;
use serde_json::{Value, json};

type Buckets = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

/// What etcd's own database has.
const BUCKETS: [&str; 10] =
    ["alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"];

fn read(bolt: &Bolt) -> Buckets {
    let mut found = Buckets::new();
    for name in bolt.buckets().expect("names of buckets") {
        let items = bolt.bucket(&name).expect("a bucket").expect("it is there");
        let items = items.map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())).expect("an item"));
        found.insert(String::from_utf8(name.to_vec()).expect("a name"), items.collect());
    }
    found
}

fn write(path: &Path, buckets: &Buckets) {
    let mut builder = Layout::builder();
    for (name, items) in buckets {
        builder.bucket(name.as_bytes()).expect("a bucket");
        items.iter().for_each(|(key, value)| builder.item(key.len(), value.len()).expect("an item"));
    }
    let file = std::io::BufWriter::new(std::fs::File::create(path).expect("create a file"));
    let layout = builder.finish().expect("a layout");
    let length = layout.bytes();
    let mut emitter = layout.write(file);
    for (name, items) in buckets {
        emitter.bucket(name.as_bytes()).expect("a bucket");
        items.iter().for_each(|(key, value)| emitter.item(key, value).expect("an item"));
    }
    emitter.finish().expect("a file");
    assert_eq!(std::fs::metadata(path).expect("the file").len(), length);
}

fn etcdutl(programs: &Path, arguments: &[&str]) -> Ran {
    ran(etcd::command(&programs.join("etcdutl")).args(arguments))
}

fn status(programs: &Path, path: &Path) -> Value {
    let told = etcdutl(programs, &["snapshot", "status", path.to_str().expect("a path"), "-w", "json"]).ok();
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("status: {error}: {told}"))
}

/// etcd's hash of all that a file holds, and how many items that is.
fn hash(buckets: &Buckets) -> (u32, usize) {
    let mut sum = 0;
    for (name, items) in buckets {
        sum = crc32c::crc32c_append(sum, name.as_bytes());
        for (key, value) in items {
            sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, key), value);
        }
    }
    (sum, buckets.values().map(BTreeMap::len).sum())
}

fn row(main: i64, sub: i64, deleted: bool) -> Vec<u8> {
    let mut key = [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat();
    key.extend(deleted.then_some(b't'));
    key
}

/// The latest row of each key, and its key and value.
fn rows(buckets: &Buckets) -> Vec<(Vec<u8>, KeyValue)> {
    let decode = |value: &Vec<u8>| KeyValue::decode(&value[..]).expect("a key and its value");
    buckets["key"].iter().map(|(row, value)| (row.clone(), decode(value))).collect()
}

#[test]
fn a_snapshot_of_a_real_etcd_is_read_whole() {
    let programs = match etcd::real() {
        Ok(programs) => programs,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let home = pintle_tests::home();
    let mut etcd = Etcd::real(&home.path().join("etcd"), &programs);
    let granted = etcd.ctl(&["lease", "grant", "500"]).ok();
    let lease = granted.split_whitespace().nth(1).expect("an id").to_owned();
    etcd.ctl(&["put", "leased", "x", &format!("--lease={lease}")]).ok();
    for arguments in
        [&["user", "add", "root:pw"][..], &["role", "add", "reads"], &["put", "gone", "1"], &["del", "gone"]]
    {
        etcd.ctl(arguments).ok();
    }
    fill(&etcd, 3000);
    etcd.ctl(&["compact", "4"]).ok();
    let large = "z".repeat(100_000);
    etcd.ctl(&["put", "large", &large]).ok();
    let path = home.path().join("saved.db");
    etcd.ctl(&["snapshot", "save", path.to_str().expect("a path")]).ok();

    let bolt = Bolt::open_snapshot(&path, true).expect("a snapshot");
    let buckets = read(&bolt);
    assert_eq!(buckets.keys().map(String::as_str).collect::<Vec<_>>(), BUCKETS);
    let rows = rows(&buckets);
    let value = |key: &str| rows.iter().rfind(|(_, kv)| kv.key == key.as_bytes()).expect("a key").1.value.clone();
    assert_eq!(value("large"), large.as_bytes());
    assert_eq!((0..3000).filter(|n| value(&format!("many/{n:05}")) == vec![b'v'; n % 700]).count(), 3000);
    assert!(rows.iter().any(|(row, kv)| row.len() == 18 && kv.key == b"gone"[..]), "a tombstone");
    assert_eq!((buckets["lease"].len(), buckets["authUsers"].len(), buckets["authRoles"].len()), (1, 1, 1));

    let (told, (sum, items)) = (status(&programs, &path), hash(&buckets));
    assert_eq!((&told["hash"], &told["totalKey"]), (&json!(sum), &json!(items)));
    assert_eq!(told["totalSize"], bolt.pages() * bolt.page_size() as u64);

    // A copied database has no checksum, is longer than its pages, and holds the same once it is closed.
    etcd.kill();
    let database = etcd.data().join("member/snap/db");
    assert!(matches!(Bolt::open_snapshot(&database, true), Err(BoltError::NoChecksum)));
    assert_eq!(read(&Bolt::open(&database).expect("a database"))["key"], buckets["key"]);
}

/// Keys of which each has a value of another length.
fn fill(etcd: &Etcd, count: usize) {
    use pintle_proto::etcdserverpb::PutRequest;
    use pintle_proto::etcdserverpb::kv_client::KvClient;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut client = KvClient::new(etcd.channel().await);
        for n in 0..count {
            let (key, value) = (format!("many/{n:05}").into(), vec![b'v'; n % 700].into());
            client.put(PutRequest { key, value, ..PutRequest::default() }).await.expect("a write");
        }
    });
}

/// What an etcd would have after some writes and deletions: its revision is the second.
fn made(keys: i64) -> (Buckets, i64) {
    let mut buckets: Buckets = BUCKETS.iter().map(|name| ((*name).to_owned(), BTreeMap::new())).collect();
    let key = buckets.get_mut("key").expect("a bucket");
    let mut put = |main: i64, sub: i64, name: &str, version: i64, created: i64, value: Vec<u8>| {
        let key_value = KeyValue {
            key: Bytes::copy_from_slice(name.as_bytes()),
            create_revision: created,
            mod_revision: main,
            version,
            value: value.into(),
            lease: 0,
        };
        key.insert(row(main, sub, false), key_value.encode_to_vec());
    };
    for n in 0..keys {
        let length = usize::try_from(n % 400).expect("a length");
        put(n + 2, 0, &format!("k/{n:06}"), 1, n + 2, vec![b'v'; length]);
    }
    let last = keys + 2;
    put(last, 0, "twice", 1, last, b"old".to_vec());
    put(last, 1, "large", 1, last, vec![b'L'; 1_000_000]);
    put(last + 1, 0, "twice", 2, last, b"new".to_vec());
    put(last + 2, 0, "gone", 1, last + 2, b"x".to_vec());
    let gone = KeyValue { key: Bytes::from_static(b"gone"), ..KeyValue::default() };
    key.insert(row(last + 3, 0, true), gone.encode_to_vec());
    let meta = buckets.get_mut("meta").expect("a bucket");
    meta.insert(b"consistent_index".to_vec(), 7_u64.to_be_bytes().to_vec());
    meta.insert(b"term".to_vec(), 2_u64.to_be_bytes().to_vec());
    (buckets, last + 3)
}

#[test]
fn what_is_written_here_is_a_snapshot_to_etcdutl_and_serves_in_a_real_etcd() {
    let programs = match etcd::real() {
        Ok(programs) => programs,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let home = pintle_tests::home();
    for keys in [3, 20_000] {
        let (buckets, revision) = made(keys);
        let path = home.path().join(format!("{keys}.db"));
        write(&path, &buckets);
        let (told, (sum, items)) = (status(&programs, &path), hash(&buckets));
        assert_eq!(told["hash"], sum);
        assert_eq!((&told["totalKey"], &told["revision"]), (&json!(items), &json!(revision)));
        assert_eq!(told["totalSize"], std::fs::metadata(&path).expect("the file").len());

        let place = Place::new(&home.path().join(format!("restored{keys}")));
        let flags = [
            "--skip-hash-check=true".to_owned(),
            "--name=m".to_owned(),
            format!("--data-dir={}", place.data().display()),
            format!("--initial-cluster=m=http://{}", place.peer),
            format!("--initial-advertise-peer-urls=http://{}", place.peer),
        ];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        etcdutl(&programs, &[&["snapshot", "restore", path.to_str().expect("a path")], &flags[..]].concat()).ok();
        let etcd = place.start(&programs.join("etcd"));
        assert_eq!(etcd.ctl(&["get", "twice"]).ok(), "twice\nnew\n");
        assert_eq!(etcd.ctl(&["get", "twice", &format!("--rev={}", keys + 2)]).ok(), "twice\nold\n");
        assert_eq!(etcd.ctl(&["get", "gone"]).ok(), "");
        assert_eq!(etcd.ctl(&["get", "large", "--print-value-only"]).ok().len(), 1_000_001);
        let counted = etcd.ctl(&["get", "k/", "--prefix", "--count-only", "-w", "fields"]).ok();
        assert!(counted.contains(&format!("\"Count\" : {keys}\n")), "{counted}");
        let values = etcd.ctl(&["get", "k/", "--prefix", "--print-value-only"]).ok();
        let wanted: usize = (0..keys).map(|n| usize::try_from(n % 400).expect("a length") + 1).sum();
        assert_eq!(values.len(), wanted);
        // It goes on from there: pages that were written here are taken apart by bbolt.
        for n in 0..40 {
            etcd.ctl(&["put", &format!("after/{n}"), "1"]).ok();
        }
        etcd.ctl(&["compact", &(revision + 40).to_string()]).ok();
        etcd.ctl(&["defrag"]).ok();
        assert_eq!(etcd.ctl(&["get", "twice"]).ok(), "twice\nnew\n");
    }
}

#[test]
fn a_checksum_behind_what_is_written_here_satisfies_restore() {
    let programs = match etcd::real() {
        Ok(programs) => programs,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let home = pintle_tests::home();
    let path = home.path().join("made.db");
    write(&path, &made(500).0);
    let sum = ran(Command::new("sha256sum").arg(&path)).ok();
    let digits = sum.split_whitespace().next().expect("a sum");
    let bytes = (0..32).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("digits"));
    let whole = [std::fs::read(&path).expect("the file"), bytes.collect()].concat();
    std::fs::write(&path, whole).expect("write the file");
    Bolt::open_snapshot(&path, true).expect("a snapshot");
    let data = format!("--data-dir={}", home.path().join("data").display());
    etcdutl(&programs, &["snapshot", "restore", path.to_str().expect("a path"), &data]).ok();
}
