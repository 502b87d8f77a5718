//! The store alone, run as an etcd: the program called `etcd`, with etcd's flags, used by the real etcdctl.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_tests::{Ran, pintle, ran, tool};
use serde_json::{Value, json};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);

/// Three members of a store of their own; ended and removed when dropped.
struct Store {
    home: TempDir,
    members: Vec<Member>,
}

struct Member {
    name: String,
    peer: u16,
    client: u16,
    child: Option<Child>,
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("bind")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("address").port()).collect()
}

impl Store {
    fn new(members: usize) -> Self {
        let home = pintle_tests::home();
        std::os::unix::fs::symlink(pintle(), home.path().join("etcd")).expect("link");
        let ports = free_ports(2 * members);
        let members = ports.chunks(2).enumerate().map(|(at, ports)| Member {
            name: format!("m{at}"),
            peer: ports[0],
            client: ports[1],
            child: None,
        });
        Self { members: members.collect(), home }
    }

    fn program(&self) -> PathBuf {
        self.home.path().join("etcd")
    }

    fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.home.path().join(format!("m{at}.log"))).unwrap_or_default()
    }

    fn flags(&self, at: usize) -> Vec<String> {
        let member = &self.members[at];
        let cluster: Vec<String> =
            self.members.iter().map(|other| format!("{}=http://127.0.0.1:{}", other.name, other.peer)).collect();
        vec![
            format!("--name={}", member.name),
            format!("--data-dir={}", self.home.path().join(&member.name).display()),
            format!("--listen-peer-urls=http://127.0.0.1:{}", member.peer),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", member.peer),
            format!("--listen-client-urls=http://127.0.0.1:{}", member.client),
            format!("--advertise-client-urls=http://127.0.0.1:{}", member.client),
            format!("--initial-cluster={}", cluster.join(",")),
            "--initial-cluster-token=test".to_owned(),
            "--snapshot-count=10000".to_owned(),
            "--logger=zap".to_owned(),
        ]
    }

    fn start(&mut self, at: usize, more: &[&str]) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.path().join(format!("m{at}.log")))
            .expect("open a log");
        let child = Command::new(self.program())
            .args(self.flags(at))
            .args(more)
            .env_remove("ETCD_NAME")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .expect("start a member");
        self.members[at].child = Some(child);
    }

    fn start_all(&mut self) {
        (0..self.members.len()).for_each(|at| self.start(at, &[]));
        for at in 0..self.members.len() {
            self.until("a member serves", || self.log(at).contains("ready to serve client requests"));
        }
    }

    fn signal(&self, at: usize, signal: Signal) {
        let id = self.members[at].child.as_ref().expect("it runs").id();
        kill(Pid::from_raw(i32::try_from(id).expect("a pid")), signal).expect("signal a member");
    }

    /// Waits until the member ended; its exit code.
    fn ended(&mut self, at: usize) -> Option<i32> {
        let mut child = self.members[at].child.take().expect("it runs");
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("wait for a member") {
                return status.code();
            }
            assert!(began.elapsed() < DEADLINE, "a member does not end: {}", self.log(at));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn until(&self, what: &str, mut test: impl FnMut() -> bool) {
        let began = Instant::now();
        while !test() {
            let logs: Vec<String> = (0..self.members.len()).map(|at| self.log(at)).collect();
            assert!(began.elapsed() < DEADLINE, "{what}: not in time\n{}", logs.join("\n"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn etcdctl_of(&self, members: &[usize], arguments: &[&str]) -> Ran {
        let endpoints: Vec<String> =
            members.iter().map(|at| format!("http://127.0.0.1:{}", self.members[*at].client)).collect();
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "30"]).arg(tool("sid", "etcdctl")).env("ETCDCTL_API", "3");
        ran(command.arg(format!("--endpoints={}", endpoints.join(","))).args(arguments))
    }

    fn etcdctl(&self, arguments: &[&str]) -> Ran {
        let all: Vec<usize> = (0..self.members.len()).collect();
        self.etcdctl_of(&all, arguments)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.etcdctl(&[arguments, &["-w", "json"]].concat()).ok();
        serde_json::from_str(&text).expect("JSON")
    }

    /// Which member leads.
    fn leader(&self) -> usize {
        let status = self.json(&["endpoint", "status"]);
        let leads = |one: &Value| one["Status"]["leader"] == one["Status"]["header"]["member_id"];
        let leader = status.as_array().expect("a list").iter().find(|one| leads(one)).expect("a leader");
        let endpoint = leader["Endpoint"].as_str().expect("an endpoint");
        let port = endpoint.rsplit(':').next().expect("a port");
        self.members.iter().position(|member| member.client.to_string() == port).expect("one of ours")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                let _ = child.kill(); // it may have ended by itself
                let _ = child.wait();
            }
        }
    }
}

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
    let program = store.program();
    let version = etcd(&program, &["--version"]).ok();
    assert!(version.starts_with("etcd Version: 3.5."), "{version}");
    let help = etcd(&program, &["--help"]).ok();
    assert!(help.contains("--listen-client-urls") && help.contains("ETCD_NAME_IN_CAPITALS"), "{help}");
    for (arguments, text) in [
        (&["--nope"][..], "flag provided but not defined: -nope"),
        (&["--auto-tls"], "flag -auto-tls is not supported"),
        (&["--config-file=/nonexistent"], "read configuration /nonexistent"),
        (&["--listen-client-urls=http://127.0.0.1:0"], "--advertise-client-urls is required"),
    ] {
        let refused = etcd(&program, arguments);
        assert!(refused.code == 2 && refused.stderr.contains(text), "{refused:?}");
    }
    let same = ran(Command::new(pintle()).args(["store", "serve", "--version"])).ok();
    assert_eq!(same, version);
}
