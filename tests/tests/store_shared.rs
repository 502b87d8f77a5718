//! A store that many share, over real processes: who wrote what (the audit log), how much each may have and do (quotas), and who has and
//! does most (`top`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pintle_tests::store::Store;
use pintle_tests::{Ran, pintle, ran};
use serde_json::{Value, json};

const ROOT: &str = "--user=root:secret";
const ALICE: &str = "--user=alice:hidden";

/// The store's own client, at some members.
fn client(store: &Store, members: &[usize], arguments: &[&str]) -> Ran {
    let endpoints: Vec<String> =
        members.iter().map(|at| format!("http://127.0.0.1:{}", store.members[*at].client)).collect();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "30"]).arg(pintle()).arg("store");
    ran(command.arg(format!("--endpoints={}", endpoints.join(","))).args(arguments))
}

fn json_of(ran: Ran) -> Value {
    serde_json::from_str(&ran.ok()).expect("JSON")
}

/// Users `root` and `alice`, who may write below `a/`; from now on they are asked for.
fn ask_for_users(store: &Store) {
    for arguments in [
        &["user", "add", "root:secret"][..],
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "alice:hidden"],
        &["role", "add", "writer"],
        &["role", "grant-permission", "writer", "readwrite", "a/", "--prefix"],
        &["user", "grant-role", "alice", "writer"],
        &["auth", "enable"],
    ] {
        store.etcdctl(arguments).ok();
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The lines of a log, in all its files, oldest first.
fn all_lines(path: &Path, files: usize) -> Vec<Value> {
    let numbered = |number| PathBuf::from(format!("{}.{number}", path.display()));
    let mut all: Vec<Value> = (1..files).rev().flat_map(|number| lines(&numbered(number))).collect();
    all.extend(lines(path));
    all
}

#[test]
fn the_audit_log_says_who_wrote_what_and_no_secrets() {
    let mut store = Store::new(1);
    let log = store.home.path().join("audit.log");
    let flag = format!("--audit-log={}", log.display());
    store.start(0, &[&flag]);
    store.until("it serves", || store.etcdctl(&["put", "before", "nobody-asked"]).code == 0);
    ask_for_users(&store);
    store.etcdctl(&[ALICE, "put", "a/1", "a-secret-value"]).ok();
    store.etcdctl(&[ALICE, "get", "a/1"]).ok();
    store.etcdctl(&[ALICE, "put", "b/1", "a-secret-value"]).fails();
    store.etcdctl(&["put", "b/2", "a-secret-value"]).fails();
    store.etcdctl(&[ALICE, "del", "a/", "--prefix"]).ok();
    store.etcdctl(&[ALICE, "compact", "2"]).fails();
    store.etcdctl(&[ROOT, "user", "add", "bob:bobs-password"]).ok();
    store.etcdctl(&[ROOT, "lease", "grant", "100"]).ok();
    client(&store, &[0], &[ROOT, "quota", "set", "a/", "--keys=5"]).ok();

    let told = |line: &Value| {
        let field = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        (field("user"), field("method"), field("code"))
    };
    store.until("all is written", || lines(&log).iter().any(|line| line["method"] == "QuotaSet"));
    let found = lines(&log);
    let all: Vec<(String, String, String)> = found.iter().map(told).collect();
    let want = [
        ("alice", "Put", "OK"),
        ("alice", "Put", "PermissionDenied"),
        ("-", "Put", "InvalidArgument"),
        ("alice", "DeleteRange", "OK"),
        ("alice", "Compact", "PermissionDenied"),
        ("root", "UserAdd", "OK"),
        ("root", "LeaseGrant", "OK"),
        ("root", "QuotaSet", "OK"),
    ];
    let want = want.map(|(user, method, code)| (user.to_owned(), method.to_owned(), code.to_owned()));
    assert_eq!(all, want, "{found:#?}");
    assert_eq!(found[0]["writes"], json!([{"put": {"key": "a/1", "value_bytes": 14}}]));
    let deleted = json!([{"delete": {"key": "a/", "range_end": "a0"}}]);
    assert_eq!((&found[3]["writes"], &found[3]["deleted"]), (&deleted, &json!(1)));
    assert!(found[0]["revision"].as_i64() < found[3]["revision"].as_i64(), "{found:#?}");
    assert!(found.iter().all(|line| line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:"))));
    let text = std::fs::read_to_string(&log).expect("read the log");
    for secret in ["a-secret-value", "hidden", "bobs-password", "$2"] {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn the_files_of_the_audit_log_are_bounded_and_a_restart_goes_on_with_them() {
    let mut store = Store::new(1);
    let log = store.home.path().join("audit.log");
    let flags = [
        format!("--audit-log={}", log.display()),
        "--audit-log-max-bytes=4000".into(),
        "--audit-log-max-files=3".into(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    store.start(0, &flags);
    store.until("it serves", || store.etcdctl(&["put", "a", "1"]).code == 0);
    ask_for_users(&store);
    let txn: String = (0..20).map(|number| format!("put a/{number} value\n")).collect();
    let input = store.home.path().join("txn");
    std::fs::write(&input, format!("\n{txn}\n\n")).expect("write a file");
    let port = store.members[0].client;
    let write = || {
        let script = format!(
            "for n in 1 2 3 4 5 6; do {} store --endpoints=127.0.0.1:{port} {ALICE} txn < {} || exit 1; done",
            pintle().display(),
            input.display()
        );
        ran(Command::new("timeout").args(["--kill-after=5", "60", "sh", "-c", &script])).ok();
    };
    write();
    store.signal(0, Signal::SIGTERM);
    assert_eq!(store.ended(0), Some(0), "{}", store.log(0));
    let before = all_lines(&log, 3);
    assert!(before.len() >= 3 && before.iter().all(|line| line["method"] == "Txn"), "{before:#?}");
    store.start(0, &flags);
    store.until("it serves again", || store.etcdctl(&[ALICE, "get", "a/1"]).code == 0);
    write();
    store.signal(0, Signal::SIGTERM);
    store.ended(0);
    let sizes: Vec<u64> = ["", ".1", ".2", ".3"]
        .iter()
        .filter_map(|end| std::fs::metadata(format!("{}{end}", log.display())).ok())
        .map(|file| file.len())
        .collect();
    assert!(sizes.len() == 3 && sizes.iter().all(|size| (1..=4000).contains(size)), "{sizes:?}");
    let revisions: Vec<i64> = all_lines(&log, 3).iter().filter_map(|line| line["revision"].as_i64()).collect();
    assert!(
        revisions.is_sorted() && revisions.last() > before.last().and_then(|line| line["revision"].as_i64()).as_ref()
    );
}

#[test]
fn quotas_of_prefixes_hold_at_every_member_through_restarts_and_restores() {
    let mut store = Store::new(3);
    store.start_all();
    let all = [0, 1, 2];
    for number in 0..5 {
        store.etcdctl(&["put", &format!("/tenants/a/{number}"), "x"]).ok();
    }
    client(&store, &all, &["quota", "set", "/tenants/a/", "--keys=6", "--bytes=1000"]).ok();
    client(&store, &all, &["quota", "set", "/tenants/", "--keys=100"]).ok();
    let list = |store: &Store, members: &[usize]| json_of(client(store, members, &["quota", "list", "-w", "json"]));
    let counted = |list: &Value| list["prefixes"].as_array().expect("a list").iter().all(|one| one["counted"] == true);
    store.until("they are counted", || counted(&list(&store, &all)));
    let used = |list: &Value| {
        let one = |one: &Value| (one["used_keys"].as_i64(), one["used_bytes"].as_i64());
        list["prefixes"].as_array().expect("a list").iter().map(one).collect::<Vec<_>>()
    };
    let expected = vec![(Some(5), Some(65)), (Some(5), Some(65))];
    assert!(all.iter().all(|at| used(&list(&store, &[*at])) == expected));

    let too_many = "etcdserver: quota exceeded: prefix \"/tenants/a/\" may hold 6 keys";
    let too_large = "etcdserver: quota exceeded: prefix \"/tenants/a/\" may hold 1000 bytes";
    for at in all {
        store.etcdctl_of(&[at], &["put", "/tenants/a/5", &"v".repeat(at + 1)]).ok();
        assert!(store.etcdctl_of(&[at], &["put", "/tenants/a/6", "x"]).fails().contains(too_many));
        assert!(store.etcdctl_of(&[at], &["put", "/tenants/a/5", &"v".repeat(950)]).fails().contains(too_large));
    }
    store.etcdctl(&["put", "/tenants/b/1", "not limited so"]).ok();
    store.etcdctl(&["del", "/tenants/a/0"]).ok();
    store.etcdctl(&["put", "/tenants/a/6", "x"]).ok();

    let before = used(&list(&store, &all));
    for at in all {
        store.signal(at, Signal::SIGKILL);
        store.ended(at);
    }
    all.iter().for_each(|at| store.start(*at, &[]));
    store.until("they serve again", || store.etcdctl(&["get", "a"]).code == 0);
    assert_eq!(used(&list(&store, &all)), before);
    assert!(store.etcdctl(&["put", "/tenants/a/7", "x"]).fails().contains(too_many));

    let file = store.home.path().join("backup.db");
    store.etcdctl_of(&[0], &["snapshot", "save", file.to_str().expect("path")]).ok();
    let mut other = Store::new(1);
    let url = format!("http://127.0.0.1:{}", other.members[0].peer);
    let told = ran(Command::new(pintle()).args(["store", "snapshot", "restore"]).arg(&file).args([
        "--name=m0".to_owned(),
        format!("--data-dir={}", other.home.path().join("m0").display()),
        format!("--initial-cluster=m0={url}"),
        "--initial-cluster-token=test".to_owned(),
        format!("--initial-advertise-peer-urls={url}"),
    ]))
    .ok();
    assert!(told.contains("2 quotas"), "{told}");
    other.start_all();
    assert_eq!(used(&list(&other, &[0])), before);
    assert!(other.etcdctl(&["put", "/tenants/a/7", "x"]).fails().contains(too_many));
    client(&other, &[0], &["quota", "remove", "/tenants/a/"]).ok();
    other.etcdctl(&["put", "/tenants/a/7", "x"]).ok();
}

#[test]
fn a_user_who_asks_too_often_is_told_so_and_others_are_not() {
    let mut store = Store::new(1);
    store.start_all();
    ask_for_users(&store);
    // Looking needs the right to.
    assert!(client(&store, &[0], &[ALICE, "quota", "list"]).fails().contains("permission denied"));
    assert!(client(&store, &[0], &[ALICE, "top", "--once"]).fails().contains("permission denied"));
    client(&store, &[0], &[ROOT, "quota", "set", "--of-user=alice", "--requests=1"]).ok();
    let mut refused = 0;
    let began = Instant::now();
    while refused < 3 && began.elapsed() < Duration::from_secs(20) {
        let ran = store.etcdctl(&[ALICE, "put", "a/1", "x"]);
        refused += usize::from(ran.stderr.contains("etcdserver: too many requests"));
        store.etcdctl(&[ROOT, "put", "a/2", "x"]).ok();
    }
    // A process takes its time to start: some of them come late enough.
    assert!(refused >= 1, "nothing was refused");
    client(&store, &[0], &[ROOT, "quota", "set", "--of-user=alice", "--requests=1000000", "--bytes=100"]).ok();
    let large = "v".repeat(5000);
    store.etcdctl(&[ALICE, "put", "a/1", &large]).ok();
    assert!(store.etcdctl(&[ALICE, "put", "a/1", "x"]).fails().contains("etcdserver: too many requests"));
    client(&store, &[0], &[ROOT, "quota", "remove", "--of-user=alice"]).ok();
    store.etcdctl(&[ALICE, "put", "a/1", "x"]).ok();
}

#[test]
fn top_shows_what_is_large_and_what_is_busy() {
    let mut store = Store::new(1);
    store.start_all();
    let large = "v".repeat(1000);
    for number in 0..10 {
        store.etcdctl(&["put", &format!("/registry/pods/default/{number}"), &large]).ok();
    }
    store.etcdctl(&["put", "/registry/leases/default/a", "x"]).ok();
    let top =
        |arguments: &[&str]| json_of(client(&store, &[0], &[&["top", "--once", "-w", "json"], arguments].concat()));
    let row = |answer: &Value, prefix: &str| {
        let rows = answer["prefixes"].as_array().expect("a list");
        rows.iter().find(|row| row["prefix"] == prefix).cloned().unwrap_or_else(|| panic!("{prefix}: {answer:#}"))
    };
    let first = top(&["--interval=100ms"]);
    let pods = row(&first, "/registry/pods/");
    assert_eq!((&pods["keys"], &pods["bytes"]), (&json!(10), &json!(10 * (1000 + 24))));
    assert_eq!(row(&first, "/registry/leases/")["keys"], 1);
    assert_eq!((&first["total"]["keys"], &first["counting"]), (&json!(11), &json!(false)));
    assert_eq!(row(&top(&["--interval=100ms", "--depth=1"]), "/registry/")["keys"], 11);

    // While somebody writes and reads.
    let port = store.members[0].client;
    let etcdctl = pintle_tests::tool("sid", "etcdctl");
    let script = format!(
        "export ETCDCTL_ENDPOINTS=127.0.0.1:{port}; while :; do {0} put /registry/leases/default/a y; {0} get --prefix /registry/pods/; \
         {0} del /registry/pods/default/0; done",
        etcdctl.display()
    );
    let mut busy = Command::new("timeout")
        .args(["--kill-after=1", "60", "sh", "-c", &script])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("start a writer");
    store.until("the last key is gone", || store.etcdctl(&["get", "/registry/pods/default/0"]).stdout.is_empty());
    let then = top(&["--interval=2s"]);
    let text = client(&store, &[0], &["top", "--once", "--interval=500ms"]);
    // `timeout` hands the signal on to its whole group.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(busy.id()).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("end the writer");
    busy.wait().expect("it ends");
    let (leases, pods) = (row(&then, "/registry/leases/"), row(&then, "/registry/pods/"));
    assert!(leases["writes_per_second"].as_f64() > Some(0.0), "{then:#}");
    assert!(pods["reads_per_second"].as_f64() > Some(0.0), "{then:#}");
    assert_eq!(pods["keys"], 9, "{then:#}");
    let text = text.ok();
    assert!(text.contains("busiest:") && text.contains("\"/registry/leases/\""), "{text}");
}
