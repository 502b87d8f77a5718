//! The systems that are compared, each as the processes a user would start: the same flags, the same disk, plain loopback; and
//! each with the commands its users have for backups.
//!
//! Always holds: processes and data are gone when a [`Cluster`] is dropped; only processes started here are ended, by id.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_base::{clock, ports};
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pintle_proto::etcdserverpb::{PutRequest, RangeRequest, StatusRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use super::requests;
use crate::bench::usage;

/// How long a cluster may take until it takes writes: one of many GB has much to read.
const READY: Duration = Duration::from_secs(300);
/// A member that was asked to end is killed after this time.
const STOP: Duration = Duration::from_secs(30);
/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(5);
/// Between two reads of a client that waits for a cluster that starts.
const READ_POLL: Duration = Duration::from_millis(25);
/// Room that no benchmark fills: etcd's own limit is 2 GB unless told.
const QUOTA: u64 = 64 << 30;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    pub name: &'static str,
    program: PathBuf,
    /// What comes before etcd's flags.
    arguments: &'static [&'static str],
}

impl System {
    /// This binary.
    pub fn pintle() -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        Ok(Self { name: "pintle", program, arguments: &["store", "serve"] })
    }

    /// An etcd of the path, or by name from PATH. Its tools are looked for beside it.
    pub fn etcd(program: &Path) -> Self {
        Self { name: "etcd", program: program.to_owned(), arguments: &[] }
    }

    fn is_pintle(&self) -> bool {
        !self.arguments.is_empty()
    }

    /// What it says it is.
    pub fn version(&self) -> Result<String> {
        let output =
            plain(&self.program).args(self.arguments).arg("--version").output().with_context(|| {
                format!("run {}; --against names the program to compare with", self.program.display())
            })?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// A cluster of `members` members with its data below `dir`, none of them started.
    pub fn place(&self, members: usize, dir: &Path) -> Result<Cluster> {
        let ports = ports::several(2 * members).context("no free ports")?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let peers: Vec<String> = (0..members).map(|at| format!("m{at}={}", url(ports[2 * at]))).collect();
        let mut cluster = Cluster { system: self.clone(), members: Vec::new(), leader: 0, dir: dir.to_owned() };
        for at in 0..members {
            let home = dir.join(format!("m{at}"));
            fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
            let (peer, client) = (url(ports[2 * at]), url(ports[2 * at + 1]));
            let founding = vec![
                format!("--name=m{at}"),
                format!("--data-dir={}", home.join(DATA).display()),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", peers.join(",")),
            ];
            let serving = vec![
                format!("--listen-peer-urls={peer}"),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--quota-backend-bytes={QUOTA}"),
                "--log-level=warn".to_owned(),
            ];
            let address = format!("127.0.0.1:{}", ports[2 * at + 1]);
            cluster.members.push(Member { home, address, founding, serving, child: None });
        }
        Ok(cluster)
    }

    /// A user's command that works on a store, with the tool this system has for it.
    fn tool(&self, restoring: bool) -> tokio::process::Command {
        let beside = |name: &str| self.program.with_file_name(name);
        // Before 3.5 etcdctl restored, too.
        let has_utility = beside("etcdutl").exists() || !self.program.is_absolute();
        let mut command = match (self.is_pintle(), restoring && has_utility) {
            (true, _) => plain(&self.program),
            (false, true) => plain(&beside("etcdutl")),
            (false, false) => plain(&beside("etcdctl")),
        };
        if self.is_pintle() {
            command.arg("store");
        }
        command.env("ETCDCTL_API", "3");
        command.into()
    }

    /// Whether what [`Cluster::save`] and [`Cluster::restore`] run is there.
    pub async fn check_tools(&self) -> Result<()> {
        let version = if self.is_pintle() { "--help" } else { "version" };
        for restoring in [false, true] {
            run(self.tool(restoring).arg(version)).await.context("backups need etcdctl and etcdutl beside the etcd")?;
        }
        Ok(())
    }
}

/// Where a member's data lie in its home; its log lies beside them.
const DATA: &str = "data";

/// A program without the variables that whoever runs a benchmark has for an etcd of their own.
fn plain(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

async fn run(command: &mut tokio::process::Command) -> Result<()> {
    let output = command.kill_on_drop(true).output().await.with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

struct Member {
    home: PathBuf,
    address: String,
    /// Flags that a restored member was made with, too.
    founding: Vec<String>,
    serving: Vec<String>,
    child: Option<Child>,
}

/// A cluster of one system, running or not.
pub struct Cluster {
    pub system: System,
    members: Vec<Member>,
    leader: usize,
    dir: PathBuf,
}

/// What all members together use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_seconds: f64,
    /// Resident, pages shared with others counted by their part (PSS).
    pub memory_bytes: u64,
    /// Of that, what is no page of a file: the system cannot take it back.
    pub anonymous_bytes: u64,
    pub disk_bytes: u64,
}

impl Cluster {
    /// Starts all members and waits until each takes a write.
    pub async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait().await
    }

    fn spawn(&mut self) -> Result<()> {
        for member in &mut self.members {
            let log = fs::OpenOptions::new().create(true).append(true).open(member.home.join("log"));
            let log = log.context("create a log")?;
            let child = plain(&self.system.program)
                .args(self.system.arguments)
                .args(&member.founding)
                .args(&member.serving)
                .stdout(log.try_clone().context("share a log")?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("start {}", self.system.program.display()))?;
            member.child = Some(child);
        }
        Ok(())
    }

    async fn wait(&mut self) -> Result<()> {
        let deadline = clock::now() + READY;
        for at in 0..self.members.len() {
            loop {
                self.all_run()?;
                let address = &self.members[at].address;
                if takes_a_write(address).await.is_ok() {
                    break;
                }
                if clock::now() > deadline {
                    bail!("{} at {address} takes no write within {} s", self.system.name, READY.as_secs());
                }
                clock::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    fn all_run(&mut self) -> Result<()> {
        for member in &mut self.members {
            if let Some(ended) = member.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                let log = fs::read(member.home.join("log")).unwrap_or_default();
                let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(1000)..]).into_owned();
                bail!("a member of {} ended ({ended}): {tail}", self.system.name);
            }
        }
        Ok(())
    }

    /// Starts all members; how long it took until one of them answered a linearizable read. They all serve afterwards.
    pub async fn restart(&mut self) -> Result<Duration> {
        let began = clock::now();
        self.spawn()?;
        let mut reads = JoinSet::new();
        for member in &self.members {
            reads.spawn(first_read(member.address.clone()));
        }
        loop {
            let read = clock::timeout(Duration::from_millis(200), reads.join_next()).await;
            if let Ok(Some(read)) = read {
                read.context("a reader panicked")??;
                break;
            }
            self.all_run()?;
            if began.elapsed() > READY {
                bail!("{} answers no read within {} s", self.system.name, READY.as_secs());
            }
        }
        let took = began.elapsed();
        reads.shutdown().await;
        self.wait().await?;
        Ok(took)
    }

    /// Ends all members, all at once, with a signal.
    pub async fn stop(&mut self, signal: Signal) -> Result<()> {
        for child in self.members.iter().filter_map(|member| member.child.as_ref()) {
            kill(Pid::from_raw(i32::try_from(child.id())?), signal).context("end a member")?;
        }
        let deadline = clock::now() + STOP;
        for member in &mut self.members {
            let Some(mut child) = member.child.take() else { continue };
            while child.try_wait().context("wait for a member")?.is_none() {
                if clock::now() > deadline {
                    child.kill().and_then(|()| child.wait()).context("kill a member")?;
                    bail!("a member of {} does not end", self.system.name);
                }
                clock::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// The addresses of clients' ports, the leader's first: who is alone asks the leader, in both systems.
    pub async fn addresses(&mut self) -> Result<Vec<String>> {
        for at in 0..self.members.len() {
            let mut client = MaintenanceClient::new(connect(&self.members[at].address).await?);
            let status = client.status(StatusRequest::default()).await.context("ask who leads")?.into_inner();
            if status.header.is_some_and(|header| header.member_id == status.leader) {
                self.leader = at;
            }
        }
        let (before, from) = self.members.split_at(self.leader);
        Ok(from.iter().chain(before).map(|member| member.address.clone()).collect())
    }

    /// A channel to the leader as [`Self::addresses`] last found it.
    pub async fn channel(&self) -> Result<Channel> {
        connect(&self.members[self.leader].address).await
    }

    /// Runs the user's command that saves what the first member has.
    pub async fn save(&self, file: &Path) -> Result<()> {
        let endpoint = format!("--endpoints=http://{}", self.members[0].address);
        run(self.system.tool(false).arg(endpoint).args(["snapshot", "save"]).arg(file)).await
    }

    /// Runs the user's command that makes the first member's data of a saved file.
    pub async fn restore(&self, file: &Path) -> Result<()> {
        let mut command = self.system.tool(true);
        run(command.args(["snapshot", "restore"]).arg(file).args(&self.members[0].founding)).await
    }

    /// One of the members' own figures, of each. Both systems give them etcd's names.
    ///
    /// # Errors
    /// A member does not answer, or has no such figure.
    pub async fn each(&self, name: &str) -> Result<Vec<f64>> {
        let mut values = Vec::new();
        for Member { address, .. } in &self.members {
            let text = metrics(address).await.with_context(|| format!("read what {address} measures"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            values.push(line.with_context(|| format!("{address} has no {name}"))?.trim().parse()?);
        }
        Ok(values)
    }

    /// How often the members have brought their logs to stable storage, all together, as they count it themselves.
    pub async fn syncs(&self) -> Result<f64> {
        Ok(self.each("etcd_disk_wal_fsync_duration_seconds_count").await?.iter().sum())
    }

    pub fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        for member in &self.members {
            sum.disk_bytes += size(&member.home.join(DATA));
            let Some(pid) = member.child.as_ref().and_then(|child| i32::try_from(child.id()).ok()) else { continue };
            sum.cpu_seconds += usage::seconds(pid);
            let (all, anonymous) = usage::share_of_memory(pid).unwrap_or_default();
            sum.memory_bytes += all;
            sum.anonymous_bytes += anonymous;
        }
        sum
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            // It may have ended by itself; what matters is that it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "data of a benchmark stays");
        }
    }
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(Duration::from_secs(1));
    endpoint.connect().await.with_context(|| format!("connect to {address}"))
}

/// Asks until a linearizable read of a key is answered; the next is sent before the one before has failed, because a member
/// that starts may be slow to give up.
async fn first_read(address: String) -> Result<()> {
    let channel = loop {
        match connect(&address).await {
            Ok(channel) => break channel,
            Err(_) => clock::sleep(POLL).await,
        }
    };
    let mut reads = JoinSet::new();
    loop {
        let mut client = KvClient::new(channel.clone());
        reads.spawn(async move {
            let read = RangeRequest { key: requests::key(0), ..RangeRequest::default() };
            let answer = client.range(read).await.ok()?;
            Some(answer.into_inner().kvs.len())
        });
        if let Ok(Some(Ok(Some(found)))) = clock::timeout(READ_POLL, reads.join_next()).await {
            return if found == 1 { Ok(()) } else { bail!("after a restart a key is missing") };
        }
        clock::sleep(POLL).await;
    }
}

/// What a member measures of itself. One request, then the connection's end.
async fn metrics(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    clock::timeout(READY, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

async fn takes_a_write(address: &str) -> Result<()> {
    let mut client = KvClient::new(connect(address).await?);
    let request = PutRequest { key: "ready".into(), ..PutRequest::default() };
    clock::timeout(Duration::from_secs(2), client.put(request)).await??;
    Ok(())
}

/// Bytes that files below `dir` take.
pub fn size(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0, // removed meanwhile
        })
        .sum()
}
