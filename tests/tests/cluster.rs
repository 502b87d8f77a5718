//! `pintle cluster` and the small commands, as a user meets them: what is repeated changes nothing, what is kept comes back,
//! what was added to the user's files goes again, and every failure has its exit code.

use std::path::Path;
use std::process::Command;

use pintle_tests::{Cluster, Following, Ran, pintle, ran};
use serde_json::{Value, json};

const ARGUMENTS: [&str; 4] = ["--port", "0", "--runtime", "simulated"];

/// Exit codes of `pintle help-exit-codes`.
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const CONFLICT: i32 = 4;
const UNHEALTHY: i32 = 5;

/// What the user had before: a context of some other cluster.
const OTHERS: &str = "\
apiVersion: v1
kind: Config
preferences: {}
clusters:
- name: work
  cluster: {server: 'https://work.example:6443'}
users:
- name: me
  user: {token: secret}
contexts:
- name: work
  context: {cluster: work, user: me, namespace: mine}
current-context: work
";

fn step(name: &str) {
    println!("step: {name}");
}

/// The command failed as it should: with this code, and with one sentence that says `what`.
#[track_caller]
fn fails(ran: Ran, code: i32, what: &str) {
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(ran.stderr.contains(what) && !ran.stderr.contains("panicked"), "expected {what:?}: {}", ran.stderr);
}

fn kubeconfig(cluster: &Cluster) -> Value {
    let text = cluster.kubectl(&["config", "view", "--raw", "-o", "json"]).ok();
    serde_json::from_str(&text).expect("a kubeconfig is JSON")
}

fn authority(cluster: &Cluster) -> Vec<u8> {
    std::fs::read(cluster.path("pki/ca.crt")).expect("read the authority")
}

#[test]
fn a_cluster_is_repeated_broken_kept_resumed_and_removed() {
    let cluster = Cluster::named("whole");
    std::fs::write(cluster.kubeconfig(), OTHERS).expect("write a kubeconfig");
    let before = kubeconfig(&cluster);
    cluster.bring_up(&ARGUMENTS);
    repeated(&cluster);
    a_follower_is_frozen(&cluster);
    the_leader_is_frozen(&cluster);
    the_leader_is_asked_to_stop(&cluster);
    members_that_are_not_there(&cluster);
    a_majority_is_missing(&cluster);
    kept_and_resumed(&cluster);

    step("down removes exactly what was added");
    cluster.pintle(&["cluster", "down"]).ok();
    assert_eq!(kubeconfig(&cluster), before);
    assert!(!cluster.path("").exists(), "the cluster's directory is gone");
    cluster.pintle(&["cluster", "down"]).ok();
}

fn repeated(cluster: &Cluster) {
    step("up again changes nothing");
    let (pids, state, config) = (cluster.pids(), cluster.state(), kubeconfig(cluster));
    assert_eq!(pids.len(), 5, "three servers, two workers: {pids:?}");
    let context = format!("pintle-{}", cluster.name());
    assert_eq!(config["current-context"], context.as_str());
    assert_eq!(config["contexts"].as_array().map(Vec::len), Some(2));
    cluster.bring_up(&ARGUMENTS);
    assert_eq!((cluster.pids(), cluster.state()), (pids, state));
    let again = kubeconfig(cluster);
    let others = |config: &Value| config["contexts"].as_array().cloned();
    assert_eq!((&again["current-context"], others(&again)), (&config["current-context"], others(&config)));
}

fn role(cluster: &Cluster, member: &str) -> String {
    let status = cluster.status();
    let server = status["servers"].as_array().expect("servers").iter().find(|server| server["name"] == member);
    server.expect("a member")["role"].as_str().expect("a role").to_owned()
}

/// A server that does not lead.
fn follower(cluster: &Cluster) -> String {
    let leader = cluster.leader();
    ["s1", "s2", "s3"].into_iter().find(|name| *name != leader).expect("a follower").to_owned()
}

fn a_follower_is_frozen(cluster: &Cluster) {
    step("a follower is frozen and thawed; nobody else notices");
    let (victim, leader, pids) = (follower(cluster), cluster.leader(), cluster.pids());
    let killed = cluster.pintle(&["cluster", "kill", &victim, "--signal", "STOP"]).ok();
    assert_eq!(killed, format!("{victim}\n"));
    cluster.until("it counts as down", 10, || (role(cluster, &victim) == "down").then_some(()));
    assert_eq!(cluster.pids(), pids, "all processes are there");
    cluster.pintle(&["cluster", "status"]).ok();
    cluster.kubectl(&["create", "configmap", "meanwhile"]).ok();
    let up = cluster.pintle(&["cluster", "up", "--wait", "3"]);
    fails(up, UNHEALTHY, "not Ready after 3 s");
    cluster.pintle(&["cluster", "kill", &victim, "--signal", "CONT"]).ok();
    cluster.until("it follows again", 20, || (role(cluster, &victim) == "follower").then_some(()));
    assert_eq!((cluster.leader(), cluster.pids()), (leader, pids));
}

fn all_workers_are_ready(cluster: &Cluster) -> bool {
    let path = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
    cluster.kubectl(&["get", "nodes", "-o", path]).ok() == "True True"
}

/// When each worker renewed its Lease last.
fn renewals(cluster: &Cluster) -> Vec<String> {
    let path = "jsonpath={.items[*].spec.renewTime}";
    let times = cluster.kubectl(&["get", "leases", "-n", "kube-node-lease", "-o", path]).ok();
    times.split_whitespace().map(str::to_owned).collect()
}

fn the_leader_is_frozen(cluster: &Cluster) {
    step("the leader is frozen: another leads, requests and workers move to it, and it follows once it is thawed");
    let frozen = cluster.leader();
    cluster.pintle(&["cluster", "kill", &frozen, "--signal", "STOP"]).ok();
    cluster.until("another leads", 10, || {
        let servers = cluster.status()["servers"].clone();
        let leads = |server: &Value| server["role"] == "leader" && server["name"] != frozen.as_str();
        servers.as_array()?.iter().any(leads).then_some(())
    });
    let manifest = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "without-leader"}}).to_string();
    cluster.until("a write is taken", 15, || {
        (cluster.kubectl_with(&["apply", "-f", "-"], &manifest).code == 0).then_some(())
    });
    // Before the time is over after which a silent worker counts as lost; twice, so that both signs came through a living server.
    for _ in 0..2 {
        let before = renewals(cluster);
        cluster.until("every worker gives a sign of life", 8, || {
            let now = renewals(cluster);
            (now.len() == 2 && now.iter().zip(&before).all(|(now, before)| now != before)).then_some(())
        });
        assert!(all_workers_are_ready(cluster), "{}", cluster.logs());
    }
    cluster.pintle(&["cluster", "kill", &frozen, "--signal", "CONT"]).ok();
    cluster.until("it follows", 20, || (role(cluster, &frozen) == "follower").then_some(()));
    assert_ne!(cluster.leader(), frozen);
}

fn the_leader_is_asked_to_stop(cluster: &Cluster) {
    step("a leader that is asked to stop hands over first, and ends in good order");
    let (leader, before) = (cluster.leader(), cluster.pids());
    cluster.pintle(&["cluster", "kill", &leader, "--signal", "TERM"]).ok();
    cluster.until("it ends", 15, || (cluster.pids().len() == before.len() - 1).then_some(()));
    let log = cluster.log(&leader);
    for text in ["handing leadership over", "server stopped"] {
        assert!(log.contains(text), "{text}: {log}");
    }
    assert!(!log.contains("was not handed over"), "{log}");
    assert_ne!(cluster.leader(), leader);
    cluster.pintle(&["cluster", "start", &leader]).ok();
    cluster.until("it follows", 20, || (role(cluster, &leader) == "follower").then_some(()));
}

fn members_that_are_not_there(cluster: &Cluster) {
    step("members that are unknown, dead or alive already");
    fails(cluster.pintle(&["cluster", "kill", "s9"]), NOT_FOUND, "has no member \"s9\"");
    fails(cluster.pintle(&["cluster", "start", "s9"]), NOT_FOUND, "has no member \"s9\"");
    fails(cluster.pintle(&["cluster", "kill", "s1", "--signal", "HUP"]), USAGE, "invalid value 'HUP'");
    cluster.pintle(&["cluster", "kill", "w1"]).ok();
    fails(cluster.pintle(&["cluster", "kill", "w1"]), CONFLICT, "w1 does not run");
    assert_eq!(cluster.pintle(&["cluster", "start"]).ok(), "w1\n", "only what did not run");
    let pids = cluster.pids();
    cluster.pintle(&["cluster", "start", "w1"]).ok();
    assert_eq!(cluster.pids(), pids, "what runs is not started again");
}

fn a_majority_is_missing(cluster: &Cluster) {
    step("without a majority the status is unhealthy, and with it healthy again");
    cluster.pintle(&["cluster", "kill", "s1"]).ok();
    cluster.pintle(&["cluster", "kill", "s2"]).ok();
    for command in [&["cluster", "status"][..], &["status"]] {
        let status = cluster.pintle(command);
        assert_eq!(status.code, UNHEALTHY, "{status:?}");
        assert!(status.stdout.contains("s1"), "it is shown all the same: {status:?}");
    }
    cluster.until("there is no leader", 10, || {
        let kill = cluster.pintle(&["cluster", "kill", "leader", "--signal", "CONT"]);
        (kill.code == UNHEALTHY && kill.stderr.contains("there is no leader now")).then_some(())
    });
    cluster.pintle(&["cluster", "start"]).ok();
    cluster.until("it is healthy", 30, || (cluster.pintle(&["cluster", "status"]).code == 0).then_some(()));
}

fn kept_and_resumed(cluster: &Cluster) {
    step("down --keep, then up: the same cluster with its data");
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]).ok();
    let identity = || cluster.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]).ok();
    let (uid, ca, pids) = (identity(), authority(cluster), cluster.pids());
    cluster.pintle(&["cluster", "down", "--keep"]).ok();
    for (name, pid) in &pids {
        let process = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!process.contains("pintle"), "{name} is gone: {process}");
    }
    assert_eq!(kubeconfig(cluster)["current-context"], "work", "its context went too");
    fails(cluster.pintle(&["cluster", "status"]), UNHEALTHY, "not healthy");
    cluster.bring_up(&ARGUMENTS);
    assert_eq!((identity(), authority(cluster)), (uid, ca));
    assert_eq!(cluster.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]).ok(), "b");
    cluster.kubectl(&["get", "configmap", "meanwhile"]).ok();
}

#[test]
fn the_kubeconfig_that_is_printed_works() {
    let cluster = Cluster::up("printed", &[&ARGUMENTS[..], &["--servers", "1", "--agents", "0"]].concat());
    let list = |arguments: &[&str]| {
        let printed = cluster.pintle(&[&["kubeconfig"], arguments].concat()).ok();
        let file = cluster.file("printed.yaml", printed.as_bytes());
        cluster.kubectl(&["--kubeconfig", file.to_str().expect("path"), "get", "namespaces", "-o", "name"])
    };
    assert!(list(&[]).ok().contains("namespace/kube-system"));
    let stranger = list(&["--user", "jane", "--group", "readers"]).fails();
    assert!(stranger.contains("User \"jane\" cannot list resource \"namespaces\""), "{stranger}");
    let following =
        Following::start(&cluster, cluster.command(&pintle()).args(["cluster", "env", "--name", cluster.name()]));
    following.until_says("ETCDCTL_ENDPOINTS=https://127.0.0.1:", 10);
}

/// Runs `pintle` with a home that is empty.
fn alone(arguments: &[&str]) -> Ran {
    let home = tempfile::tempdir().expect("home");
    let ran = ran(Command::new("timeout")
        .args(["--kill-after=5", "30"])
        .arg(pintle())
        .args(arguments)
        .env("PINTLE_HOME", home.path())
        .env("KUBECONFIG", home.path().join("kubeconfig")));
    assert_eq!(std::fs::read_dir(home.path()).expect("read").count(), 0, "nothing is left behind: {ran:?}");
    ran
}

#[test]
fn commands_without_a_cluster_say_so_and_leave_nothing() {
    for command in [
        &["cluster", "status", "--name", "nobody"][..],
        &["cluster", "status", "-o", "json", "--name", "nobody"],
        &["cluster", "kill", "s1", "--name", "nobody"],
        &["cluster", "start", "--name", "nobody"],
        &["cluster", "env", "--name", "nobody"],
        &["kubeconfig", "--name", "nobody"],
        &["token", "create", "--name", "nobody"],
        &["images", "list", "--name", "nobody"],
    ] {
        fails(alone(command), NOT_FOUND, "nobody");
    }
    let status = alone(&["status", "--name", "nobody"]);
    assert_eq!(status.code, NOT_FOUND, "{status:?}");
    assert!(status.stdout.contains("pintle cluster up"), "it says what to do: {status:?}");
    alone(&["cluster", "down", "--name", "nobody"]).ok();
    for command in [
        &[][..],
        &["nonsense"],
        &["cluster", "up", "--servers", "0"],
        &["cluster", "up", "--nonsense"],
        &["completion", "nonsense"],
        &["server", "--config"],
    ] {
        assert_eq!(alone(command).code, USAGE, "{command:?}");
    }
}

#[test]
fn version_completion_and_exit_codes_are_printed() {
    let version: Value = serde_json::from_str(&alone(&["version", "-o", "json"]).ok()).expect("the version is JSON");
    assert_eq!((&version["kubernetes"], &version["etcdApi"]), (&json!("v1.36.0"), &json!("3.5")));
    let number = version["version"].as_str().expect("a version").to_owned();
    assert!(alone(&["version"]).ok().contains(&number));
    assert_eq!(alone(&["--version"]).ok(), format!("pintle {number}\n"));
    assert!(alone(&["help-exit-codes"]).ok().contains("3    not found"));
    let script = alone(&["completion", "bash"]).ok();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), script).expect("write");
    let complete =
        r#". "$0"; COMP_WORDS=(pintle clu); COMP_CWORD=1; _pintle pintle clu pintle; echo "${COMPREPLY[@]}""#;
    let completed = ran(Command::new("bash").args(["-c", complete]).arg(file.path())).ok();
    assert_eq!(completed, "cluster\n");
}

#[test]
fn real_containers_need_root() {
    let unshare = Path::new("/usr/bin/unshare");
    // In a user namespace without a mapping nobody is root, and files stay reachable.
    if !nix::unistd::geteuid().is_root() || ran(Command::new(unshare).args(["--user", "true"])).code != 0 {
        println!("skipped: this needs root and user namespaces");
        return;
    }
    let cluster = Cluster::named("rootless");
    let up = ["cluster", "up", "--runtime", "cri", "--no-kubeconfig", "--name", cluster.name()];
    let up = ran(cluster.command(unshare).arg("--user").arg(pintle()).args(up));
    fails(up, USAGE, "real containers need root");
    assert!(!cluster.path("").exists(), "nothing is left behind");
}
