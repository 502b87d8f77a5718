//! The systems that are compared, each as the processes a user would start: the same flags, the same disk, plain loopback.
//!
//! Always holds: processes and data are gone when a [`Cluster`] is dropped; only processes started here are ended, by id.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pintle_base::clock;
use pintle_proto::etcdserverpb::PutRequest;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::bench::usage;
use crate::cluster::process;

/// How long a cluster may take until it takes writes.
const READY: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    pub name: &'static str,
    program: PathBuf,
    /// What comes before etcd's flags.
    arguments: Vec<&'static str>,
}

impl System {
    /// This binary.
    pub fn pintle() -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        Ok(Self { name: "pintle", program, arguments: vec!["store", "serve"] })
    }

    /// An etcd of the path, or by name from PATH.
    pub fn etcd(program: &Path) -> Self {
        Self { name: "etcd", program: program.to_owned(), arguments: Vec::new() }
    }

    /// What it says it is.
    pub fn version(&self) -> Result<String> {
        let output =
            Command::new(&self.program).args(&self.arguments).arg("--version").output().with_context(|| {
                format!("run {}; --against names the program to compare with", self.program.display())
            })?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// Starts `members` members below `dir` and waits until they take a write.
    pub async fn start(&self, members: usize, dir: &Path) -> Result<Cluster> {
        let ports = free_ports(members * 2)?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let peers: Vec<String> = (0..members).map(|at| format!("m{at}={}", url(ports[2 * at]))).collect();
        let mut cluster = Cluster { children: Vec::new(), endpoints: Vec::new(), dir: dir.to_owned() };
        for at in 0..members {
            let (peer, client) = (url(ports[2 * at]), url(ports[2 * at + 1]));
            let home = dir.join(format!("m{at}"));
            fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
            let log = fs::File::create(home.join("log")).context("create a log")?;
            let child = Command::new(&self.program)
                .args(&self.arguments)
                .arg(format!("--name=m{at}"))
                .arg(format!("--data-dir={}", home.join("data").display()))
                .arg(format!("--listen-peer-urls={peer}"))
                .arg(format!("--initial-advertise-peer-urls={peer}"))
                .arg(format!("--listen-client-urls={client}"))
                .arg(format!("--advertise-client-urls={client}"))
                .arg(format!("--initial-cluster={}", peers.join(",")))
                .arg("--log-level=warn")
                .stdin(Stdio::null())
                .stdout(log.try_clone().context("share a log")?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("start {}", self.program.display()))?;
            cluster.children.push(child);
            cluster.endpoints.push(client);
        }
        cluster.wait(self.name).await?;
        Ok(cluster)
    }
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: std::io::Result<Vec<TcpListener>> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let listeners = listeners.context("find free ports")?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// A running cluster of one system.
pub struct Cluster {
    children: Vec<Child>,
    pub endpoints: Vec<String>,
    dir: PathBuf,
}

/// What all members together use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

impl Cluster {
    async fn wait(&mut self, name: &str) -> Result<()> {
        let deadline = clock::now() + READY;
        for endpoint in &self.endpoints {
            loop {
                if let Some(ended) = self.children.iter_mut().find_map(|child| child.try_wait().ok().flatten()) {
                    bail!("a member of {name} ended ({ended}); its log is below {}", self.dir.display());
                }
                if takes_a_write(endpoint).await.is_ok() {
                    break;
                }
                if clock::now() > deadline {
                    bail!("{name} at {endpoint} takes no write within {} s", READY.as_secs());
                }
                clock::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// `count` connections, spread over the members.
    pub async fn connect(&self, count: usize) -> Result<Vec<Channel>> {
        let mut channels = Vec::with_capacity(count);
        for endpoint in self.endpoints.iter().cycle().take(count) {
            let endpoint = Endpoint::from_shared(endpoint.clone())?.tcp_nodelay(true);
            channels.push(endpoint.connect().await.context("connect to a member")?);
        }
        Ok(channels)
    }

    /// How often the members have brought their logs to stable storage, all together, as they count it themselves.
    pub async fn syncs(&self) -> Result<f64> {
        let mut sum = 0.0;
        for endpoint in &self.endpoints {
            let text = metrics(endpoint).await.with_context(|| format!("read what {endpoint} measures"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(SYNCS));
            sum += line.with_context(|| format!("{endpoint} does not count its syncs"))?.trim().parse::<f64>()?;
        }
        Ok(sum)
    }

    pub fn usage(&self) -> Usage {
        let mut sum = Usage { disk_bytes: size(&self.dir), ..Usage::default() };
        for child in &self.children {
            let Ok(pid) = i32::try_from(child.id()) else { continue };
            #[allow(clippy::cast_precision_loss)] // ticks of a benchmark's minutes are far below 2^52
            let seconds = usage::ticks(pid).unwrap_or_default() as f64 / usage::TICKS;
            sum.cpu_seconds += seconds;
            sum.memory_bytes += process::memory(pid).unwrap_or_default();
        }
        sum
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself; what matters is that it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "data of a benchmark stays");
        }
    }
}

/// Both systems count under this name.
const SYNCS: &str = "etcd_disk_wal_fsync_duration_seconds_count ";

/// What a member measures of itself. One request, then the connection's end.
async fn metrics(endpoint: &str) -> Result<String> {
    let address = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    clock::timeout(READY, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

async fn takes_a_write(endpoint: &str) -> Result<()> {
    let channel = Endpoint::from_shared(endpoint.to_owned())?.connect_timeout(Duration::from_secs(1)).connect().await?;
    let request = PutRequest { key: "ready".into(), ..PutRequest::default() };
    clock::timeout(Duration::from_secs(2), KvClient::new(channel).put(request)).await??;
    Ok(())
}

/// Bytes that files below `dir` take.
fn size(dir: &Path) -> u64 {
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
