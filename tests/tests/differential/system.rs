//! One system of the two: a process with one member and an empty directory, its clients and its watch streams.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use pintle_proto::etcdserverpb::{MoveLeaderRequest, RangeRequest, StatusRequest};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::DEADLINE;
use super::step::{Answer, Call, Clients, Leases};
use super::watching::WatchStream;

/// Streams that watches are spread over.
pub const STREAMS: usize = 3;

/// Stands for the id of the system's one member.
pub const OWN: u64 = u64::MAX;

/// What is run.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: &'static str,
    pub path: PathBuf,
    /// Flags beside those that both get.
    pub flags: &'static [&'static str],
}

/// A running member; ended, and its data removed, when dropped.
struct Process {
    child: Child,
    home: TempDir,
    url: String,
}

/// One of the two, ready to answer.
pub struct System {
    pub name: &'static str,
    process: Process,
    clients: Clients,
    member: u64,
    pub leases: Leases,
    /// By user.
    tokens: BTreeMap<String, String>,
    pub streams: Vec<WatchStream>,
    /// Watches everything from the first revision on.
    pub history: WatchStream,
}

impl System {
    pub async fn start(program: &Program) -> Self {
        let process = Process::start(program);
        let channel = process.ready(program.name).await;
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            streams.push(WatchStream::open(&channel).await);
        }
        let history = WatchStream::open(&channel).await;
        history.watch_everything().await;
        let clients = Clients::new(&channel);
        let mut status = clients.call(&Call::Status(StatusRequest {}), None).await;
        let member = status.header().expect("a status has a header").member_id;
        Self {
            name: program.name,
            clients,
            member,
            leases: Leases::default(),
            tokens: BTreeMap::new(),
            streams,
            history,
            process,
        }
    }

    /// Makes the call as `user`, or as nobody.
    pub async fn call(&mut self, call: &Call, user: Option<&str>) -> Answer {
        let token = user.and_then(|user| self.tokens.get(user));
        let own = match call {
            Call::MoveLeader(MoveLeaderRequest { target_id: OWN }) => {
                Call::MoveLeader(MoveLeaderRequest { target_id: self.member })
            }
            call => self.leases.for_own(call),
        };
        let mut answer = self.clients.call(&own, token.map(String::as_str)).await;
        self.leases.in_common(call, &mut answer);
        if let (Call::Authenticate(request), Answer::Authenticate(given)) = (call, &mut answer) {
            self.tokens.insert(request.name.clone(), std::mem::take(&mut given.token));
        }
        answer
    }

    /// The end of what the process said.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Process {
    fn start(program: &Program) -> Self {
        let home = home();
        let urls: Vec<String> =
            pintle_tests::free_ports(2).into_iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        let (client, peer) = (&urls[0], &urls[1]);
        // pintle is an etcd when it is called so.
        let link = home.path().join("etcd");
        std::os::unix::fs::symlink(&program.path, &link).expect("link the program");
        let log = std::fs::File::create(home.path().join("log")).expect("create a log");
        let child = Command::new(&link)
            .arg("--name=m0")
            .arg(format!("--data-dir={}", home.path().join("data").display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=m0={peer}"))
            // The shortest lease is one and a half elections: long enough to be revoked before it ends by itself.
            .args(["--heartbeat-interval=500", "--election-timeout=5000", "--logger=zap", "--log-level=warn"])
            .args(program.flags)
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program.path.display()));
        Self { child, url: client.clone(), home }
    }

    /// Waits until a linearizable read is answered.
    async fn ready(&self, name: &str) -> Channel {
        let endpoint = Endpoint::from_shared(self.url.clone()).expect("a URL");
        let channel = endpoint.connect_lazy();
        let clients = Clients::new(&channel);
        let call = Call::Range(RangeRequest { key: "x".into(), ..RangeRequest::default() });
        let began = Instant::now();
        loop {
            let answer = clients.call(&call, None).await;
            if matches!(answer, Answer::Range(_)) {
                return channel;
            }
            assert!(began.elapsed() < DEADLINE, "{name} does not serve: {answer:?}\n{}", self.log());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }
}

/// In memory where that can be had: what is compared is not how disks are written.
fn home() -> TempDir {
    let prefix = format!("pintle-test-{}-", std::process::id());
    let memory = Path::new("/dev/shm");
    let in_memory = tempfile::Builder::new().prefix(&prefix).tempdir_in(memory).ok();
    in_memory.unwrap_or_else(pintle_tests::home)
}
