//! `pintle store migrate`: from a running etcd and from its snapshots into a store, the programs as users run them.

use std::path::Path;

use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::{PutRequest, RangeRequest};
use pintle_tests::etcd::{self, Etcd};
use pintle_tests::{Ran, pintle, ran};
use serde_json::Value;

fn migrate(from: &str, to: &Etcd, more: &[&str]) -> Ran {
    let mut command = etcd::command(&pintle());
    ran(command.args(["store", "migrate", "--from-etcd", from, "--to", &to.address]).args(more))
}

/// Keys with large and small values, some of them overwritten or deleted, and some with leases.
struct Filled {
    etcd: Etcd,
    lease: String,
}

fn filled(home: &Path, programs: &Path) -> Filled {
    let etcd = Etcd::real(&home.join("source"), programs);
    let granted = etcd.ctl(&["lease", "grant", "1000"]).ok();
    let lease = granted.split_whitespace().nth(1).expect("an id").to_owned();
    let id = i64::from_str_radix(&lease, 16).expect("an id");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut client = KvClient::new(etcd.channel().await);
        let put = |key: String, value: Vec<u8>, lease: i64| PutRequest {
            key: key.into(),
            value: value.into(),
            lease,
            ..PutRequest::default()
        };
        for n in 0..2500_usize {
            let request = put(format!("many/{:05}", n * 7919 % 2500), n.to_string().repeat(n % 90).into_bytes(), 0);
            client.put(request).await.expect("a write");
        }
        for n in 0..5_u8 {
            client.put(put(format!("large/{n}"), vec![n; 700_000], 0)).await.expect("a write");
            client.put(put(format!("leased/{n}"), vec![n], id)).await.expect("a write");
        }
        client.put(put("many/00007".into(), b"new".to_vec(), 0)).await.expect("a write");
    });
    etcd.ctl(&["del", "many/00008"]).ok();
    for arguments in [
        &["user", "add", "root:pw"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "reads"],
        &["role", "grant-permission", "reads", "--prefix=true", "read", "app/"],
    ] {
        etcd.ctl(arguments).ok();
    }
    Filled { etcd, lease }
}

/// All keys and values.
fn everything(etcd: &Etcd) -> Vec<(Vec<u8>, Vec<u8>, i64)> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut client = KvClient::new(etcd.channel().await).max_decoding_message_size(usize::MAX);
        let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..RangeRequest::default() };
        let found = client.range(all).await.expect("a read").into_inner();
        found.kvs.into_iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec(), kv.lease)).collect()
    })
}

fn same(source: &Etcd, target: &Etcd) {
    let (want, got) = (everything(source), everything(target));
    assert_eq!((got.len(), want.len()), (2509, 2509));
    assert!(want == got, "keys, values or leases differ");
}

fn granted(etcd: &Etcd, lease: &str) -> Value {
    serde_json::from_str(&etcd.ctl(&["lease", "timetolive", lease, "--keys", "-w", "json"]).ok()).expect("JSON")
}

#[test]
fn a_running_etcd_is_copied_with_its_leases() {
    let programs = match etcd::real() {
        Ok(programs) => programs,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let home = pintle_tests::home();
    let Filled { etcd: source, lease } = filled(home.path(), &programs);
    let target = Etcd::pintle(&home.path().join("target"));
    let from = format!("http://{}", source.address);
    let told = migrate(&from, &target, &[]).ok();
    for text in [
        "2509 keys",
        "1 leases with their ids\n",
        "Verified: the target has the same 2504 keys with the same values; 5 more hang on leases",
        "users      1 users and 1 roles; authentication is off at the source",
        "  pintle store role grant-permission reads read app/ --prefix\n",
        "  pintle store user grant-role root root\n",
    ] {
        assert!(told.contains(text), "{text}: {told}");
    }
    same(&source, &target);
    let there = granted(&target, &lease);
    assert!(there["keys"].as_array().is_some_and(|keys| keys.len() == 5), "{there}");
    assert!(there["granted-ttl"].as_i64().is_some_and(|ttl| (900..=1000).contains(&ttl)), "{there}");

    // Again: not by accident, and then with the same end.
    let refused = migrate(&from, &target, &[]);
    assert!(refused.code == 1 && refused.stderr.contains("the target has 2509 keys"), "{refused:?}");
    target.ctl(&["put", "own", "1"]).ok();
    target.ctl(&["put", "many/00007", "spoiled"]).ok();
    let again: Value =
        serde_json::from_str(&migrate(&from, &target, &["--overwrite", "-w", "json"]).ok()).expect("JSON");
    assert_eq!((&again["keys"], &again["leasesFound"], &again["otherKeys"]), (&2509.into(), &1.into(), &1.into()));
    target.ctl(&["del", "own"]).ok();
    same(&source, &target);

    source.ctl(&["auth", "enable"]).ok();
    let nobody = migrate(&from, &target, &["--overwrite"]);
    assert!(
        nobody.code == 1 && nobody.stderr.contains("read the source: etcdserver: user name is empty"),
        "{nobody:?}"
    );
    let root = migrate(&from, &target, &["--overwrite", "--from-user=root:pw"]).ok();
    assert!(root.contains("authentication is on") && root.contains("  pintle store auth enable\n"), "{root}");
    source.ctl(&["--user=root:pw", "auth", "disable"]).ok();

    let itself = migrate(&from, &source, &["--overwrite"]);
    assert!(itself.code == 1 && itself.stderr.contains("the same cluster"), "{itself:?}");
}

#[test]
fn a_snapshot_is_copied_as_the_etcd_was() {
    let programs = match etcd::real() {
        Ok(programs) => programs,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let home = pintle_tests::home();
    let Filled { etcd: mut source, lease } = filled(home.path(), &programs);
    let path = home.path().join("saved.db");
    let name = path.to_str().expect("a path");
    source.ctl(&["snapshot", "save", name]).ok();
    let target = Etcd::pintle(&home.path().join("target"));
    let told = migrate(name, &target, &["--lease-ttl=granted", "--max-txn-ops=50"]).ok();
    assert!(
        told.contains("Verified: the target has the same 2504 keys") && told.contains("1 users and 1 roles"),
        "{told}"
    );
    same(&source, &target);
    assert_eq!(granted(&target, &lease)["granted-ttl"], 1000);

    // A copied database is taken only on demand.
    source.kill();
    let database = source.data().join("member/snap/db");
    let database = database.to_str().expect("a path");
    let refused = migrate(database, &target, &["--overwrite"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("snapshot missing hash but --skip-hash-check=false"),
        "{refused:?}"
    );
    migrate(database, &target, &["--overwrite", "--skip-hash-check"]).ok();

    let mut raw = std::fs::read(&path).expect("the snapshot");
    let middle = raw.len() / 2;
    raw[middle] ^= 1;
    std::fs::write(&path, raw).expect("write the snapshot");
    let damaged = migrate(name, &target, &["--overwrite"]);
    assert!(damaged.code == 1 && damaged.stderr.contains("its checksum is wrong"), "{damaged:?}");
    let missing = migrate("/nonexistent/file.db", &target, &[]);
    assert!(missing.stderr.contains("stat /nonexistent/file.db: no such file or directory"), "{missing:?}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let run = |arguments: &[&str]| ran(etcd::command(&pintle()).args(["store", "migrate"]).args(arguments));
    let help = run(&["--help"]).ok();
    for text in ["--from-etcd", "Stop its writers first", "--overwrite", "member/snap/db"] {
        assert!(help.contains(text), "{text}: {help}");
    }
    for (arguments, code, text) in [
        (&[][..], 1, "--from-etcd"),
        (&["--from-etcd=a:1", "--to=b:1", "--endpoints=b:1"], 128, "--to and --endpoints are the same"),
        (&["--from-etcd=a:1", "--to=b:1", "--lease-ttl=half"], 128, "--lease-ttl is remaining or granted"),
        (&["--from-etcd=a:1", "--to=b:1", "-w", "table"], 4, "simple or json"),
    ] {
        let refused = run(arguments);
        assert!(refused.code == code && refused.stderr.contains(text), "{text}: {refused:?}");
    }
    let nobody = run(&["--from-etcd=127.0.0.1:1", "--to=127.0.0.1:1", "--command-timeout=1s"]);
    assert!(nobody.code == 2 && nobody.stderr.contains("read the source"), "{nobody:?}");
}
