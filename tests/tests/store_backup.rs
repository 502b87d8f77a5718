//! Snapshots of the store and what is made of them, by this store's tools and by etcd's own; and a cluster that lost its quorum.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use pintle_tests::store::Store;
use pintle_tests::{Ran, etcd, pintle, ran};
use serde_json::Value;

fn tells(program: &Path, arguments: &[&str]) -> Ran {
    ran(etcd::command(program).args(arguments))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What is compared before and after: all keys with their revisions, as JSON without the header.
fn contents(store: &Store, members: &[usize]) -> Value {
    let mut all = store.json_of(members, &["get", "", "--prefix"]);
    all.as_object_mut().expect("an object").remove("header");
    all
}

/// Some keys with a history, one of them on a lease.
fn fill(store: &Store, members: &[usize]) {
    let granted = store.etcdctl_of(members, &["lease", "grant", "3600"]).ok();
    let lease = granted.split(' ').nth(1).expect("an id").to_owned();
    for (key, value) in [("a", "1"), ("a", "2"), ("b", "1"), ("gone", "1")] {
        store.etcdctl_of(members, &["put", key, value]).ok();
    }
    store.etcdctl_of(members, &["put", "leased", "1", &format!("--lease={lease}")]).ok();
    store.etcdctl_of(members, &["del", "gone"]).ok();
    let large = "x".repeat(100_000);
    store.etcdctl_of(members, &["put", "large", &large]).ok();
    store.etcdctl_of(members, &["put", "a", "3"]).ok();
    store.etcdctl_of(members, &["compact", "4"]).ok();
}

fn revision(store: &Store, members: &[usize]) -> i64 {
    store.json_of(members, &["get", "a"])["header"]["revision"].as_i64().expect("a revision")
}

/// Restores `file` into the directories of all founders of `store`.
fn restore(store: &Store, file: &Path) -> Vec<String> {
    let restore = |at: usize| {
        let member = &store.members[at];
        let all: Vec<String> =
            store.members.iter().map(|one| format!("{}=http://127.0.0.1:{}", one.name, one.peer)).collect();
        let arguments = [
            "store".to_owned(),
            "snapshot".to_owned(),
            "restore".to_owned(),
            text(file),
            format!("--name={}", member.name),
            format!("--data-dir={}", text(&store.home.path().join(&member.name))),
            format!("--initial-cluster={}", all.join(",")),
            "--initial-cluster-token=test".to_owned(),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", member.peer),
        ];
        tells(&pintle(), &arguments.iter().map(String::as_str).collect::<Vec<_>>()).ok()
    };
    (0..store.founders).map(restore).collect()
}

#[test]
fn a_snapshot_is_restored_into_a_new_cluster_of_three_that_can_grow() {
    let mut before = Store::new(1);
    before.start_all();
    fill(&before, &[0]);
    let file = before.home.path().join("backup.db");
    before.etcdctl(&["snapshot", "save", &text(&file)]).ok();
    let (saved, at) = (contents(&before, &[0]), revision(&before, &[0]));
    let hash = before.json(&["endpoint", "hashkv"])[0]["HashKV"]["hash"].clone();

    let mut after = Store::new(4);
    after.founders = 3;
    after.members.truncate(3);
    let told = restore(&after, &file);
    assert!(told[0].contains(&format!("revision {at}, compacted at 4, 4 keys")), "{}", told[0]);
    // All three hold the same, down to the hash.
    let what = |told: &String| told.split_once(": ").expect("a summary").1.to_owned();
    assert_eq!((what(&told[1]), what(&told[2])), (what(&told[0]), what(&told[0])));
    after.start_all();
    assert_eq!(contents(&after, &[1]), saved);
    assert_eq!(after.json(&["endpoint", "hashkv"])[2]["HashKV"]["hash"], hash);
    assert_eq!(after.etcdctl(&["get", "a", "--rev=5", "--print-value-only"]).ok(), "2\n");
    let compacted = after.etcdctl(&["get", "a", "--rev=3"]);
    assert!(compacted.stderr.contains("required revision has been compacted"), "{compacted:?}");
    let leases = after.etcdctl(&["lease", "list"]).ok();
    let lease = leases.lines().nth(1).expect("a lease").to_owned();
    assert!(after.etcdctl(&["lease", "timetolive", &lease, "--keys"]).ok().contains("leased"));
    after.etcdctl(&["lease", "revoke", &lease]).ok();
    assert_eq!(after.etcdctl(&["get", "leased"]).ok(), "");
    assert_eq!(after.etcdctl(&["put", "a", "4"]).ok(), "OK\n");
    assert_eq!(revision(&after, &[0]), at + 2);

    // Who comes later gets what was restored, not only what was logged since.
    let mut grown = Store::new(1);
    let mut new = grown.members.remove(0);
    new.name = "m3".to_owned();
    after.members.push(new);
    let url = format!("--peer-urls=http://127.0.0.1:{}", after.members[3].peer);
    after.etcdctl_of(&[0], &["member", "add", "m3", &url]).ok();
    after.start(3, &[]);
    after.until("it serves what was restored", || after.etcdctl_of(&[3], &["get", "b"]).stdout == "b\n1\n");
    assert_eq!(contents(&after, &[3]), contents(&after, &[0]));

    let again = restore_refused(&after, &file);
    assert!(again.stderr.contains("not empty or could not be read"), "{again:?}");
}

fn restore_refused(store: &Store, file: &Path) -> Ran {
    let dir = store.home.path().join(&store.members[0].name);
    tells(&pintle(), &["store", "snapshot", "restore", &text(file), &format!("--data-dir={}", text(&dir))])
}

/// etcd's server and its tool for files, unless it has been told that they are not there.
fn etcds() -> Option<(PathBuf, PathBuf)> {
    match etcd::real() {
        Ok(programs) => Some((programs.join("etcd"), programs.join("etcdutl"))),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

#[test]
fn etcd_restores_what_is_saved_here() {
    let Some((server, utility)) = etcds() else { return };
    let mut before = Store::new(1);
    before.start_all();
    fill(&before, &[0]);
    let endpoint = format!("--endpoints=http://127.0.0.1:{}", before.members[0].client);
    // What an etcd does not know must not keep it from the rest.
    tells(&pintle(), &["store", &endpoint, "quota", "set", "a", "--keys=100"]).ok();
    let (saved, at) = (contents(&before, &[0]), revision(&before, &[0]));
    let file = before.home.path().join("backup.db");
    tells(&pintle(), &["store", &endpoint, "snapshot", "save", &text(&file)]).ok();
    let status = tells(&utility, &["snapshot", "status", &text(&file), "-w", "json"]).ok();
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["revision"], at, "{status}");

    let mut theirs = Store::new(1);
    theirs.program = server;
    let url = format!("http://127.0.0.1:{}", theirs.members[0].peer);
    tells(
        &utility,
        &[
            "snapshot",
            "restore",
            &text(&file),
            "--name=m0",
            &format!("--data-dir={}", text(&theirs.home.path().join("m0"))),
            &format!("--initial-cluster=m0={url}"),
            "--initial-cluster-token=test",
            &format!("--initial-advertise-peer-urls={url}"),
        ],
    )
    .ok();
    theirs.start(0, &[]);
    theirs.until("etcd serves", || theirs.etcdctl(&["get", "a"]).code == 0);
    assert_eq!(contents(&theirs, &[0]), saved);
    assert_eq!(theirs.etcdctl(&["get", "a", "--rev=5", "--print-value-only"]).ok(), "2\n");
    assert_eq!(theirs.etcdctl(&["lease", "list"]).ok().lines().count(), 2);
}

#[test]
fn what_an_etcd_saved_is_restored_here() {
    let Some((server, _)) = etcds() else { return };
    let mut theirs = Store::new(1);
    theirs.program = server;
    theirs.start(0, &[]);
    theirs.until("etcd serves", || theirs.etcdctl(&["get", "a"]).code == 0);
    fill(&theirs, &[0]);
    for arguments in [
        &["user", "add", "root:secret"][..],
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        theirs.etcdctl(arguments).ok();
    }
    let root = |store: &Store, arguments: &[&str]| store.etcdctl(&[&["--user=root:secret"], arguments].concat());
    let file = theirs.home.path().join("backup.db");
    root(&theirs, &["snapshot", "save", &text(&file)]).ok();
    let all = |store: &Store| {
        let found = root(store, &["get", "", "--prefix", "-w", "json"]).ok();
        let mut all: Value = serde_json::from_str(&found).expect("JSON");
        all.as_object_mut().expect("an object").remove("header");
        all
    };
    let saved = all(&theirs);

    let mut ours = Store::new(1);
    let told = restore(&ours, &file);
    assert!(told[0].contains("everybody has to log in again"), "{}", told[0]);
    ours.start_all();
    ours.until("a key to sign logins with is made", || root(&ours, &["get", "a"]).code == 0);
    assert_eq!(all(&ours), saved);
    let nobody = ours.etcdctl(&["get", "a"]);
    assert!(nobody.stderr.contains("etcdserver: user name is empty"), "{nobody:?}");
}

#[test]
fn the_last_member_of_three_goes_on_alone_and_is_joined_by_new_ones() {
    let mut store = Store::new(3);
    store.start_all();
    fill(&store, &[0]);
    store.until("the last one has everything", || store.etcdctl_of(&[2], &["get", "a"]).stdout == "a\n3\n");
    let at = revision(&store, &[2]);
    for member in 0..3 {
        store.signal(member, Signal::SIGKILL);
        store.ended(member);
    }
    store.start(2, &["--force-new-cluster"]);
    store.until("it serves alone", || store.etcdctl_of(&[2], &["put", "a", "4"]).code == 0);
    assert_eq!(revision(&store, &[2]), at + 1);
    store.etcdctl_of(&[2], &["del", "a"]).ok();
    let members = store.json_of(&[2], &["member", "list"]);
    assert_eq!(members["members"].as_array().expect("members").len(), 1, "{members}");
    assert!(store.log(2).contains("must never start on it again"), "{}", store.log(2));

    // The flag may stay until the next start; the member stays who it is.
    store.signal(2, Signal::SIGKILL);
    store.ended(2);
    store.start(2, &["--force-new-cluster"]);
    store.until("it serves again", || store.etcdctl_of(&[2], &["get", "b"]).stdout == "b\n1\n");
    assert!(store.log(2).contains("is the only one already"), "{}", store.log(2));

    // A new member takes the place of a lost one.
    std::fs::remove_dir_all(store.home.path().join("m0")).expect("remove the old data");
    let url = format!("--peer-urls=http://127.0.0.1:{}", store.members[0].peer);
    store.etcdctl_of(&[2], &["member", "add", "m0", &url]).ok();
    store.start(0, &["--initial-cluster-state=existing"]);
    store.until("it has caught up", || store.etcdctl_of(&[0], &["get", "b"]).stdout == "b\n1\n");
    assert_eq!(contents(&store, &[0]), contents(&store, &[2]));
}

#[test]
fn nothing_is_forced_where_no_member_is() {
    let mut store = Store::new(1);
    store.start(0, &["--force-new-cluster"]);
    assert_eq!(store.ended(0), Some(1));
    assert!(store.log(0).contains("holds no member"), "{}", store.log(0));
}
