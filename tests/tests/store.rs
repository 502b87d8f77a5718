//! The store alone, run as an etcd: the program called `etcd`, with etcd's flags, used by the real etcdctl.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use pintle_tests::store::Store;
use pintle_tests::{Ran, pintle, ran};
use serde_json::{Value, json};

fn etcd(program: &Path, arguments: &[&str]) -> Ran {
    ran(Command::new("timeout").args(["--kill-after=5", "30"]).arg(program).args(arguments))
}

#[test]
fn three_members_are_an_etcd_to_etcdctl() {
    let mut store = Store::new(3);
    store.start_all();
    for (arguments, output) in [
        (&["put", "a", "1"][..], "OK\n"),
        (&["get", "a"], "a\n1\n"),
        (&["put", "a", "2", "--prev-kv"], "OK\na\n1\n"),
        (&["get", "a", "--rev=2", "--print-value-only"], "1\n"),
        (&["del", "a"], "1\n"),
        (&["alarm", "list"], ""),
    ] {
        assert_eq!(store.etcdctl(arguments).ok(), output, "{arguments:?}");
    }
    let members = store.json(&["member", "list"]);
    for (listed, member) in members["members"].as_array().expect("members").iter().zip(0..) {
        let known = store.members.iter().find(|known| listed["name"] == known.name.as_str());
        let known = known.unwrap_or_else(|| panic!("member {member} has a name: {listed}"));
        assert_eq!(listed["peerURLs"], json!([format!("http://127.0.0.1:{}", known.peer)]));
        assert_eq!(listed["clientURLs"], json!([format!("http://127.0.0.1:{}", known.client)]));
    }
    let health = store.json(&["endpoint", "health", "--cluster"]);
    let healthy = health.as_array().expect("a list").iter().filter(|one| one["health"] == true).count();
    assert_eq!(healthy, 3, "{health}");
    let locked = store.etcdctl(&["lock", "jobs", "--", "sh", "-c", "echo $ETCD_LOCK_KEY"]).ok();
    assert!(locked.contains("jobs/"), "{locked}");

    let (leader, all) = (store.leader(), [0, 1, 2]);
    let other = all.into_iter().find(|at| *at != leader).expect("another");
    let id = |at: usize| {
        let name = &store.members[at].name;
        let found = members["members"].as_array().expect("members").iter().find(|one| one["name"] == name.as_str());
        found.expect("a member")["ID"].as_u64().expect("an id")
    };
    let moved = store.etcdctl(&["move-leader", &format!("{:x}", id(other))]).ok();
    assert!(moved.contains("Leadership transferred"), "{moved}");
    store.until("the other one leads", || store.leader() == other);
    let refused = store.etcdctl_of(&[leader], &["move-leader", &format!("{:x}", id(other))]);
    assert_ne!(refused.code, 0, "only the leader hands over: {refused:?}");

    store.etcdctl(&["put", "kept", "1"]).ok();
    for at in all {
        store.signal(at, Signal::SIGKILL);
        store.ended(at);
    }
    (0..3).for_each(|at| store.start(at, &[]));
    store.until("what was written is there", || store.etcdctl(&["get", "kept"]).stdout == "kept\n1\n");
    store.signal(0, Signal::SIGTERM);
    assert_eq!(store.ended(0), Some(0), "{}", store.log(0));
    assert_eq!(store.etcdctl_of(&[1, 2], &["get", "kept"]).ok(), "kept\n1\n");
}

/// The row of `member list` for a member.
fn listed(store: &Store, at: usize) -> Option<Value> {
    let url = format!("http://127.0.0.1:{}", store.members[at].peer);
    let list = store.json_of(&[0], &["member", "list"]);
    list["members"].as_array().expect("members").iter().find(|member| member["peerURLs"][0] == url.as_str()).cloned()
}

#[test]
fn members_are_added_vote_once_they_have_caught_up_move_and_go() {
    let mut store = Store::growing(3);
    store.start(0, &[]);
    store.until("it serves", || store.etcdctl_of(&[0], &["put", "a", "1"]).code == 0);
    let url = |store: &Store, at: usize| format!("--peer-urls=http://127.0.0.1:{}", store.members[at].peer);

    // Who was not added is told what to do, and joins nothing.
    store.start(1, &[]);
    assert_eq!(store.ended(1), Some(1));
    assert!(store.log(1).contains("etcdctl member add m1"), "{}", store.log(1));

    store.etcdctl_of(&[0], &["member", "add", "m1", &url(&store, 1)]).ok();
    let unstarted = listed(&store, 1).expect("it is listed");
    assert_eq!((&unstarted["name"], &unstarted["isLearner"]), (&Value::Null, &json!(true)), "{unstarted}");
    // Adding a member that is not there yet costs no write.
    assert_eq!(store.etcdctl_of(&[0], &["put", "a", "2"]).ok(), "OK\n");
    let again = store.etcdctl_of(&[0], &["member", "add", "m1", &url(&store, 1)]);
    assert!(again.stderr.contains("etcdserver: Peer URLs already exists"), "{again:?}");
    store.start(1, &[]);
    store.until("it votes by itself", || {
        listed(&store, 1).is_some_and(|one| one["name"] == "m1" && one["isLearner"] == Value::Null)
    });
    assert_eq!(store.etcdctl_of(&[1], &["get", "a"]).ok(), "a\n2\n");

    store.etcdctl_of(&[0], &["member", "add", "m2", &url(&store, 2), "--learner"]).ok();
    let second = store.etcdctl_of(&[0], &["member", "add", "m3", "--peer-urls=http://127.0.0.1:1", "--learner"]);
    assert!(second.stderr.contains("etcdserver: too many learner members in cluster"), "{second:?}");
    store.start(2, &[]);
    store.until("it has a name", || listed(&store, 2).is_some_and(|one| one["name"] == "m2"));
    let learner = listed(&store, 2).expect("it is listed");
    assert_eq!(learner["isLearner"], json!(true), "who is to learn only does");
    let id = format!("{:x}", learner["ID"].as_u64().expect("an id"));
    store.until("it has caught up", || store.etcdctl_of(&[0], &["member", "promote", &id]).code == 0);

    // All three come back as who they were, whatever their flags say of the others.
    for at in 0..3 {
        store.signal(at, Signal::SIGKILL);
        store.ended(at);
    }
    (0..3).for_each(|at| store.start(at, &[]));
    store.until("what was written is there", || store.etcdctl(&["get", "a"]).stdout == "a\n2\n");

    let port = store.members[2].peer;
    store.etcdctl(&["member", "update", &id, &format!("--peer-urls=http://localhost:{port}")]).ok();
    let moved = store.json(&["member", "list"]).to_string();
    assert!(moved.contains(&format!("http://localhost:{port}")), "{moved}");
    store.etcdctl_of(&[0, 1], &["member", "remove", &id]).ok();
    assert_eq!(store.ended(2), Some(0), "who was removed ends");
    assert!(store.log(2).contains("permanently removed from the cluster"), "{}", store.log(2));
    assert_eq!(store.etcdctl_of(&[0, 1], &["put", "a", "3"]).ok(), "OK\n");
}

/// `pintle store member replace` at members 0 and 1; it is to end well.
fn replacing(store: &Store, old: &str, new: &str, at: usize) -> std::thread::JoinHandle<String> {
    let [first, second] = [0, 1].map(|at| format!("http://127.0.0.1:{}", store.members[at].client));
    let urls = format!("--peer-urls=http://127.0.0.1:{}", store.members[at].peer);
    let mut command = Command::new(pintle());
    command.args([
        "store",
        &format!("--endpoints={first},{second}"),
        "member",
        "replace",
        old,
        new,
        &urls,
        "--wait=60s",
    ]);
    std::thread::spawn(move || ran(&mut command).ok())
}

#[test]
fn a_lost_member_is_replaced_in_one_command_also_at_its_own_address() {
    let mut store = Store::new(4);
    store.founders = 3;
    (0..3).for_each(|at| store.start(at, &[]));
    store.until("it serves", || store.etcdctl_of(&[0, 1], &["put", "a", "1"]).code == 0);
    store.until("all have names", || (0..3).all(|at| listed(&store, at).is_some_and(|one| one["name"] != Value::Null)));
    store.signal(2, Signal::SIGKILL);
    store.ended(2);

    let unknown = [
        pintle().display().to_string(),
        "store".to_owned(),
        format!("--endpoints=http://127.0.0.1:{}", store.members[0].client),
    ];
    let unknown = ran(Command::new(&unknown[0]).args(&unknown[1..]).args([
        "member",
        "replace",
        "m9",
        "m3",
        "--peer-urls=http://a:1",
    ]));
    assert!(unknown.code != 0 && unknown.stderr.contains("no member m9"), "{unknown:?}");

    let replaced = replacing(&store, "m2", "m3", 3);
    store.until("the new one is added", || listed(&store, 3).is_some());
    store.start(3, &[]);
    let told = replaced.join().expect("it ends");
    assert!(told.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\"") && told.contains(" replaced by "), "{told}");
    assert!(listed(&store, 2).is_none(), "the old one is gone");
    let new = listed(&store, 3).expect("the new one is there");
    assert_eq!((&new["name"], &new["isLearner"]), (&json!("m3"), &Value::Null), "{new}");

    // Its disk is lost, its address stays.
    store.signal(3, Signal::SIGKILL);
    store.ended(3);
    std::fs::remove_dir_all(store.home.path().join("m3")).expect("lose the data");
    let id = new["ID"].as_u64().expect("an id");
    let replaced = replacing(&store, &format!("{id:x}"), "m3", 3);
    store.until("it is added again", || listed(&store, 3).is_some_and(|one| one["ID"].as_u64() != Some(id)));
    let cluster: Vec<String> =
        [0, 1, 3].iter().map(|at| format!("m{at}=http://127.0.0.1:{}", store.members[*at].peer)).collect();
    store.start(3, &[&format!("--initial-cluster={}", cluster.join(","))]);
    replaced.join().expect("it ends");
    // It votes: with it and one more there is a majority.
    store.signal(0, Signal::SIGKILL);
    store.ended(0);
    store.until("two of three serve", || store.etcdctl_of(&[1, 3], &["put", "a", "2"]).code == 0);
}

#[test]
fn nobody_whom_the_others_need_is_removed() {
    let mut store = Store::new(3);
    store.start_all();
    let ids: Vec<String> = (0..3)
        .map(|at| format!("{:x}", listed(&store, at).expect("it is listed")["ID"].as_u64().expect("an id")))
        .collect();
    store.signal(2, Signal::SIGKILL);
    store.ended(2);
    // A sign of life is believed for as long as a leader may go without its quorum: two of these elections.
    std::thread::sleep(Duration::from_millis(2500));
    for needed in [0, 1] {
        let refused = store.etcdctl_of(&[0, 1], &["member", "remove", &ids[needed]]);
        assert!(refused.stderr.contains("etcdserver: unhealthy cluster"), "{refused:?}");
    }
    store.etcdctl_of(&[0, 1], &["member", "remove", &ids[2]]).ok();
    assert_eq!(store.etcdctl_of(&[0, 1], &["put", "a", "1"]).ok(), "OK\n");
    store.etcdctl_of(&[0, 1], &["member", "remove", &ids[1]]).ok();
    assert_eq!(store.etcdctl_of(&[0], &["put", "a", "2"]).ok(), "OK\n");
}

#[test]
fn users_of_etcdctl_log_in_and_may_do_what_their_roles_say() {
    let mut store = Store::new(1);
    store.start(0, &["--bcrypt-cost=4"]);
    store.until("it serves", || store.etcdctl(&["get", "x"]).code == 0);
    for arguments in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "reader:pw"],
        &["role", "add", "reads"],
        &["role", "grant-permission", "reads", "--prefix=true", "read", "app/"],
        &["user", "grant-role", "reader", "reads"],
        &["put", "app/a", "1"],
        &["put", "other", "1"],
        &["auth", "enable"],
    ] {
        store.etcdctl(arguments).ok();
    }
    let reader = |arguments: &[&str]| store.etcdctl(&[&["--user=reader:pw"], arguments].concat());
    assert_eq!(reader(&["get", "app/a"]).ok(), "app/a\n1\n");
    assert_eq!(reader(&["get", "app/", "--prefix", "--keys-only"]).ok(), "app/a\n\n");
    for (ran, text) in [
        (store.etcdctl(&["get", "app/a"]), "etcdserver: user name is empty"),
        (reader(&["get", "other"]), "etcdserver: permission denied"),
        (reader(&["put", "app/a", "2"]), "etcdserver: permission denied"),
        (reader(&["member", "remove", "1"]), "etcdserver: permission denied"),
        (store.etcdctl(&["--user=reader:no", "get", "app/a"]), "authentication failed, invalid user ID or password"),
    ] {
        assert!(ran.code != 0 && ran.stderr.contains(text), "{text}: {ran:?}");
    }
    store.signal(0, Signal::SIGKILL);
    store.ended(0);
    assert!(!store.log(0).contains("secret"), "a password was logged");
    store.start(0, &["--bcrypt-cost=4"]);
    store.until("users are still asked for", || {
        store.etcdctl(&["get", "app/a"]).stderr.contains("etcdserver: user name is empty")
    });
    let root = store.etcdctl(&["--user=root:secret", "auth", "disable"]).ok();
    assert!(root.contains("Authentication Disabled"), "{root}");
    assert_eq!(store.etcdctl(&["get", "app/a"]).ok(), "app/a\n1\n");
}

#[test]
fn a_member_without_space_says_so_until_there_is_some() {
    let mut store = Store::new(1);
    store.start(0, &["--quota-backend-bytes=3000000"]);
    store.until("it serves", || store.etcdctl(&["get", "x"]).code == 0);
    let value = "x".repeat(100_000);
    let refused = (0..200).map(|n| store.etcdctl(&["put", &format!("k{n}"), &value])).find(|put| put.code != 0);
    let refused = refused.expect("the quota is reached");
    assert!(refused.stderr.contains("etcdserver: mvcc: database space exceeded"), "{refused:?}");
    store.until("the alarm is raised", || store.etcdctl(&["alarm", "list"]).stdout.contains("alarm:NOSPACE"));
    let small = store.etcdctl(&["put", "small", "1"]);
    assert!(small.stderr.contains("database space exceeded"), "{small:?}");
    assert_eq!(store.etcdctl(&["get", "k0", "--print-value-only"]).ok().len(), value.len() + 1);
    store.etcdctl(&["del", "k", "--prefix"]).ok();
    let revision = store.json(&["get", "x"])["header"]["revision"].as_i64().expect("a revision");
    store.etcdctl(&["compact", &revision.to_string()]).ok();
    store.until("there is space again", || store.etcdctl(&["alarm", "list"]).stdout.is_empty());
    store.until("and it is used", || store.etcdctl(&["put", "small", "1"]).code == 0);
}

#[test]
fn the_program_answers_as_etcd_does() {
    let store = Store::new(1);
    let program = store.program.clone();
    let version = etcd(&program, &["--version"]).ok();
    assert!(version.starts_with("etcd Version: 3.5."), "{version}");
    let help = etcd(&program, &["--help"]).ok();
    assert!(help.contains("--listen-client-urls") && help.contains("ETCD_NAME_IN_CAPITALS"), "{help}");
    for (arguments, text) in [
        (&["--nope"][..], "flag provided but not defined: -nope"),
        (&["--discovery=x"], "flag -discovery is not supported"),
        (&["--config-file=/nonexistent"], "read configuration /nonexistent"),
        (&["--listen-client-urls=http://127.0.0.1:0"], "--advertise-client-urls is required"),
    ] {
        let refused = etcd(&program, arguments);
        assert!(refused.code == 2 && refused.stderr.contains(text), "{refused:?}");
    }
    let same = ran(Command::new(pintle()).args(["store", "serve", "--version"])).ok();
    assert_eq!(same, version);
}
