//! Members of a store of their own, run as `etcd` with etcd's flags and used by the real etcdctl; ended and removed when dropped.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Ran, free_ports, home, pintle, ran, tool};

/// Everything a test waits for must have come by then.
const DEADLINE: Duration = Duration::from_secs(30);

pub struct Store {
    pub home: TempDir,
    pub members: Vec<Member>,
    /// The first so many found the cluster, the others are added.
    pub founders: usize,
    /// What is run: `pintle` called `etcd`, unless it is replaced by another etcd.
    pub program: PathBuf,
}

pub struct Member {
    pub name: String,
    pub peer: u16,
    pub client: u16,
    child: Option<Child>,
}

impl Store {
    pub fn new(members: usize) -> Self {
        let home = home();
        std::os::unix::fs::symlink(pintle(), home.path().join("etcd")).expect("link");
        let ports = free_ports(2 * members);
        let members = ports.chunks(2).enumerate().map(|(at, ports)| Member {
            name: format!("m{at}"),
            peer: ports[0],
            client: ports[1],
            child: None,
        });
        let members: Vec<Member> = members.collect();
        Self { founders: members.len(), members, program: home.path().join("etcd"), home }
    }

    /// One founder, and others that are added.
    pub fn growing(members: usize) -> Self {
        let mut store = Self::new(members);
        store.founders = 1;
        store
    }

    pub fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.home.path().join(format!("m{at}.log"))).unwrap_or_default()
    }

    pub fn flags(&self, at: usize) -> Vec<String> {
        let member = &self.members[at];
        let known = if at < self.founders { self.founders } else { at + 1 };
        let cluster: Vec<String> = self.members[..known]
            .iter()
            .map(|other| format!("{}=http://127.0.0.1:{}", other.name, other.peer))
            .collect();
        vec![
            format!("--name={}", member.name),
            format!("--data-dir={}", self.home.path().join(&member.name).display()),
            format!("--listen-peer-urls=http://127.0.0.1:{}", member.peer),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", member.peer),
            format!("--listen-client-urls=http://127.0.0.1:{}", member.client),
            format!("--advertise-client-urls=http://127.0.0.1:{}", member.client),
            format!("--initial-cluster={}", cluster.join(",")),
            "--initial-cluster-token=test".to_owned(),
            format!("--initial-cluster-state={}", if at < self.founders { "new" } else { "existing" }),
            "--snapshot-count=10000".to_owned(),
            "--logger=zap".to_owned(),
        ]
    }

    pub fn start(&mut self, at: usize, more: &[&str]) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.path().join(format!("m{at}.log")))
            .expect("open a log");
        let child = Command::new(&self.program)
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

    pub fn start_all(&mut self) {
        (0..self.members.len()).for_each(|at| self.start(at, &[]));
        for at in 0..self.members.len() {
            self.until("a member serves", || self.log(at).contains("ready to serve client requests"));
        }
    }

    /// The process of a member that runs.
    pub fn pid(&self, at: usize) -> u32 {
        self.members[at].child.as_ref().expect("it runs").id()
    }

    pub fn signal(&self, at: usize, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid(at)).expect("a pid")), signal).expect("signal a member");
    }

    /// Waits until the member ended; its exit code.
    pub fn ended(&mut self, at: usize) -> Option<i32> {
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
    pub fn until(&self, what: &str, mut test: impl FnMut() -> bool) {
        let began = Instant::now();
        while !test() {
            let logs: Vec<String> = (0..self.members.len()).map(|at| self.log(at)).collect();
            assert!(began.elapsed() < DEADLINE, "{what}: not in time\n{}", logs.join("\n"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The exit code of a member that ended by itself, or `None` while it runs. What was killed has no code.
    pub fn has_ended(&mut self, at: usize) -> Option<Option<i32>> {
        let status = self.members[at].child.as_mut()?.try_wait().expect("wait for a member")?;
        self.members[at].child = None;
        Some(status.code())
    }

    /// The same for what changes the store.
    #[track_caller]
    pub fn until_mut(&mut self, what: &str, mut test: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !test(self) {
            assert!(began.elapsed() < DEADLINE, "{what}: not in time\n{}", self.log(0));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn etcdctl_of(&self, members: &[usize], arguments: &[&str]) -> Ran {
        let endpoints: Vec<String> =
            members.iter().map(|at| format!("http://127.0.0.1:{}", self.members[*at].client)).collect();
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "30"]).arg(tool("sid", "etcdctl")).env("ETCDCTL_API", "3");
        ran(command.arg(format!("--endpoints={}", endpoints.join(","))).args(arguments))
    }

    pub fn etcdctl(&self, arguments: &[&str]) -> Ran {
        let all: Vec<usize> = (0..self.members.len()).collect();
        self.etcdctl_of(&all, arguments)
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let all: Vec<usize> = (0..self.members.len()).collect();
        self.json_of(&all, arguments)
    }

    pub fn json_of(&self, members: &[usize], arguments: &[&str]) -> Value {
        let text = self.etcdctl_of(members, &[arguments, &["-w", "json"]].concat()).ok();
        serde_json::from_str(&text).expect("JSON")
    }

    /// Which member leads.
    pub fn leader(&self) -> usize {
        let status = self.json(&["endpoint", "status"]);
        let leads = |one: &Value| one["Status"]["leader"] == one["Status"]["header"]["member_id"];
        let leader = status.as_array().expect("a list").iter().find(|one| leads(one)).expect("a leader");
        let endpoint = leader["Endpoint"].as_str().expect("an endpoint");
        let port = endpoint.rsplit(':').next().expect("a port");
        self.members.iter().position(|member| member.client.to_string() == port).expect("one of ours")
    }
}

impl Store {
    /// Ends all members at once, whatever they are at.
    pub fn kill_all(&mut self) {
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                let _ = child.kill(); // it may have ended by itself
                let _ = child.wait();
            }
            member.child = None;
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.kill_all();
    }
}
