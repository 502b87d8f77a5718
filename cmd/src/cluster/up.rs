//! `cluster up`: from nothing, or from what an earlier `up` left, to a cluster whose nodes are Ready.
//!
//! Every step is idempotent: what runs already stays, what is missing is started, so a second `up` changes nothing and an
//! `up` after a reboot resumes the same cluster with its data.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;
use pintle_base::{clock, ports};

use super::network;
use super::process::{Process, Program};
use super::progress::{Output, Progress};
use super::state::{AgentState, ClusterState, Layout, Runtime, ServerState};
use super::workers;
use crate::agent::AgentConfig;
use crate::exit::{self, Exit};
use crate::https::Https;
use crate::kubeconfig::{self, Access};
use crate::pki::{Authority, Leaf, Subject};
use crate::server::{MemberConfig, ServerConfig};

/// Name of the balancer's process and directory.
pub const BALANCER: &str = "balancer";
/// Name of the process of `--simulated-nodes`; its nodes are `sim-1` and so on.
const SIMULATED: &str = "sim";
/// Nodes for which the default pod range has a /24 each, less some for nodes that are replaced.
const DEFAULT_RANGE_NODES: usize = 240;
/// Room for 4,096 nodes, beside the ranges of services and of the bridge.
const LARGE_RANGE: &str = "10.128.0.0/12";
/// Pause between two looks at something that is awaited.
const POLL: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub struct UpArgs {
    /// Name of the cluster; its files, interfaces and kubeconfig context carry it
    #[arg(long, default_value = "default")]
    pub name: String,
    /// Servers (masters): an odd number, so that one may fail
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub servers: u8,
    /// Workers that run pods
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=200))]
    pub agents: u8,
    /// How workers run pods; `cri` needs root, the default without root is `simulated`
    #[arg(long, value_enum)]
    pub runtime: Option<Runtime>,
    /// Nodes that only keep books, all in one more process: for scale tests of servers, scheduler and controllers
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=2000))]
    pub simulated_nodes: u16,
    /// Local port of the API address, a free one if it is taken; with 0 every server's ports are any free ones
    #[arg(long, default_value_t = 6443)]
    pub port: u16,
    /// Give up when the cluster is not Ready after this many seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub wait: u64,
    /// Do not touch the kubeconfig of the user; only <data>/admin.kubeconfig is written
    #[arg(long)]
    pub no_kubeconfig: bool,
    /// Progress as lines of text or as JSON objects
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

pub async fn run(args: UpArgs) -> Result<()> {
    let layout = Layout::of(&args.name)?;
    let progress = Progress::new(args.output);
    progress.note(&format!(
        "pintle {} (kubernetes v1.36, etcd api 3.5)     data {}",
        env!("CARGO_PKG_VERSION"),
        layout.root.display()
    ));
    let limit = Duration::from_secs(args.wait);
    let up = Up { layout, progress, binary: std::env::current_exe().context("find this binary")? };
    let state = up.prepare(&args)?;
    match clock::timeout(limit, up.bring_up(state, &args)).await {
        Ok(result) => result,
        Err(_) => Err(exit::with(
            Exit::Unhealthy,
            format!(
                "not Ready after {} s; see the logs in {}, or wait longer with --wait",
                limit.as_secs(),
                up.layout.root.display()
            ),
        )),
    }
}

struct Up {
    layout: Layout,
    progress: Progress,
    binary: PathBuf,
}

impl Up {
    /// The state to bring up: the recorded one, or a new one made from the arguments.
    fn prepare(&self, args: &UpArgs) -> Result<ClusterState> {
        let step = self.progress.begin("preflight");
        let root = geteuid().is_root();
        let state = match self.layout.load()? {
            Some(state) => state,
            None => {
                let runtime = args.runtime.unwrap_or(if root { Runtime::Cri } else { Runtime::Simulated });
                self.plan(args, runtime)?
            }
        };
        let real = state.agents.iter().any(|agent| agent.runtime == Runtime::Cri);
        if real && !root {
            return Err(exit::with(
                Exit::Usage,
                "real containers need root: run with sudo, or choose --runtime simulated".to_owned(),
            ));
        }
        let detail = if real { workers::preflight()? } else { "simulated workers: pods run nothing".to_owned() };
        network::reserve(&self.layout, &state)?;
        self.layout.save(&state)?;
        self.progress.done(step, &detail);
        Ok(state)
    }

    fn plan(&self, args: &UpArgs, runtime: Runtime) -> Result<ClusterState> {
        let network = if runtime == Runtime::Cri { Some(network::choose(&self.layout)?) } else { None };
        let host = network.as_ref().map_or(Ipv4Addr::LOCALHOST, super::state::NetworkState::gateway);
        let mut ports = Ports::default();
        let preferred = |port| if args.port == 0 { 0 } else { port };
        let servers = (1..=u16::from(args.servers))
            .map(|number| {
                Ok(ServerState {
                    name: format!("s{number}"),
                    id: u64::from(number),
                    // The bridge does not exist yet, so its ports cannot be taken.
                    api: if network.is_some() {
                        SocketAddr::from((host, 6443 + number))
                    } else {
                        ports.free(preferred(args.port.saturating_add(number)))?
                    },
                    client: ports.free(preferred(2379 + (number - 1) * 100))?,
                    peer: ports.free(preferred(2380 + (number - 1) * 100))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut agents: Vec<AgentState> = (1..=args.agents)
            .map(|number| AgentState {
                name: format!("w{number}"),
                runtime,
                address: network
                    .as_ref()
                    .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |network| IpAddr::V4(network.address(10 + number))),
                namespace: network.as_ref().map(|network| network::namespace(network, usize::from(number))),
                nodes: 1,
            })
            .collect();
        if args.simulated_nodes > 0 {
            agents.push(AgentState {
                name: SIMULATED.to_owned(),
                runtime: Runtime::Simulated,
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                namespace: None,
                nodes: args.simulated_nodes,
            });
        }
        let nodes: usize = agents.iter().map(|agent| usize::from(agent.nodes)).sum();
        let cluster_cidr =
            if nodes > DEFAULT_RANGE_NODES { LARGE_RANGE.to_owned() } else { AgentConfig::default().cluster_cidr };
        Ok(ClusterState {
            name: args.name.clone(),
            servers,
            agents,
            balancer: ports.free(args.port)?,
            network,
            cluster_cidr,
            kubeconfig: None,
            previous_context: None,
        })
    }

    async fn bring_up(&self, mut state: ClusterState, args: &UpArgs) -> Result<()> {
        let (authority, admin) = self.certificates(&state)?;
        let https = Https::new(&authority, &admin)?;
        network::create(&state)?;
        self.servers(&state, &https).await?;
        self.api(&state, &https).await?;
        self.workers(&state, &authority, &https).await?;
        self.access(&mut state, &authority, &admin, args)?;
        self.summary(&state);
        Ok(())
    }

    fn certificates(&self, state: &ClusterState) -> Result<(Authority, Leaf)> {
        let step = self.progress.begin("certificates");
        let authority = Authority::load_or_create(&self.layout.pki(), &state.name)?;
        let admin = authority.issue(&Subject {
            common_name: "pintle-admin",
            organizations: &["system:masters"],
            names: &[],
        })?;
        self.progress.done(step, "authority, administrator; servers mint their own leaves");
        Ok((authority, admin))
    }

    async fn servers(&self, state: &ClusterState, https: &Https) -> Result<()> {
        let step = self.progress.begin("store");
        for server in &state.servers {
            start_server(&self.layout, state, server, &self.binary)?;
        }
        loop {
            let mut leader = None;
            let mut followers = Vec::new();
            for server in &state.servers {
                self.alive(&server.name)?;
                let answer = clock::timeout(Duration::from_secs(1), https.member_status(server.client)).await;
                let Ok(Ok(status)) = answer else { continue };
                match status.header.map(|header| header.member_id) {
                    Some(id) if id == status.leader => leader = Some((server.name.clone(), status.raft_term)),
                    Some(_) if status.leader != 0 => followers.push(server.name.clone()),
                    _ => (),
                }
            }
            if let Some((leader, term)) = leader
                && followers.len() + 1 == state.servers.len()
            {
                let total = state.servers.len();
                let others =
                    if followers.is_empty() { String::new() } else { format!(", {} followers", followers.join(" ")) };
                self.progress.done(step, &format!("{leader} leader (term {term}){others}, quorum {total}/{total}"));
                return Ok(());
            }
            self.progress.waiting(&step, "waiting for a leader");
            clock::sleep(POLL).await;
        }
    }

    async fn api(&self, state: &ClusterState, https: &Https) -> Result<()> {
        let step = self.progress.begin("api");
        start_balancer(&self.layout, state, &self.binary)?;
        loop {
            self.alive(BALANCER)?;
            let mut ready = true;
            for address in state.servers.iter().map(|server| server.api).chain([state.balancer]) {
                let answer = clock::timeout(Duration::from_secs(1), https.get(address, "/readyz")).await;
                ready &= matches!(answer, Ok(Ok((200, _))));
            }
            if ready {
                break;
            }
            self.progress.waiting(&step, "waiting for /readyz of every server");
            clock::sleep(POLL).await;
        }
        let names: Vec<&str> = state.servers.iter().map(|server| server.name.as_str()).collect();
        self.progress.done(step, &format!("https://{} ({} behind one address)", state.balancer, names.join(" ")));
        Ok(())
    }

    async fn workers(&self, state: &ClusterState, authority: &Authority, https: &Https) -> Result<()> {
        if state.agents.is_empty() {
            return Ok(());
        }
        let step = self.progress.begin("nodes");
        let join = match state.agents.iter().all(|agent| workers::has_joined(&self.layout, agent)) {
            true => String::new(),
            false => {
                let lifetime = Duration::from_secs(3600);
                crate::token::create(https, state.balancer, &authority.fingerprint()?, lifetime).await?
            }
        };
        for agent in &state.agents {
            workers::start(&self.layout, state, agent, &join, &self.binary, authority).await?;
        }
        loop {
            for agent in &state.agents {
                self.alive(&agent.name)?;
            }
            let ready = ready_nodes(https, state.balancer).await.unwrap_or_default();
            let waiting: Vec<&str> =
                state.agents.iter().filter(|agent| !agent.is_ready(&ready)).map(|agent| agent.name.as_str()).collect();
            if waiting.is_empty() {
                break;
            }
            self.progress.waiting(&step, &format!("waiting for {} ({} nodes Ready)", waiting.join(" "), ready.len()));
            clock::sleep(POLL).await;
        }
        let names: Vec<&str> = state.agents.iter().map(|agent| agent.name.as_str()).collect();
        let nodes: u32 = state.agents.iter().map(|agent| u32::from(agent.nodes)).sum();
        let runtime = if state.agents[0].runtime == Runtime::Cri { "containerd" } else { "simulated" };
        let more = if nodes as usize > names.len() { format!(", {nodes} nodes") } else { String::new() };
        self.progress.done(step, &format!("{} Ready (runtime: {runtime}{more})", names.join(" ")));
        Ok(())
    }

    fn access(&self, state: &mut ClusterState, authority: &Authority, admin: &Leaf, args: &UpArgs) -> Result<()> {
        let context = state.context();
        let server = format!("https://{}", state.balancer);
        let access = Access { context: &context, server: &server, authority: &authority.certificate, leaf: admin };
        kubeconfig::write(&self.layout.kubeconfig(), &access.document())?;
        if !args.no_kubeconfig {
            let path = kubeconfig::default_path()?;
            state.kubeconfig = Some(path.clone());
            self.layout.save(state)?;
            if let Some(previous) = kubeconfig::merge(&path, &access)? {
                state.previous_context = Some(previous);
                self.layout.save(state)?;
            }
        }
        Ok(())
    }

    fn summary(&self, state: &ClusterState) {
        let names = state.servers.iter().map(|server| &server.name).chain(state.agents.iter().map(|agent| &agent.name));
        let memory: Vec<u64> = names.filter_map(|name| Process::of(&self.layout, name).memory()).collect();
        self.progress.note(&format!(
            "Ready in {:.1}s. {} MB across {} processes.\n",
            self.progress.elapsed().as_secs_f64(),
            memory.iter().sum::<u64>() / 1_000_000,
            memory.len()
        ));
        let access = match &state.kubeconfig {
            Some(_) => format!("context \"{}\" is now current", state.context()),
            None => format!("export KUBECONFIG={}", self.layout.kubeconfig().display()),
        };
        self.progress.note(&format!("  kubectl get pods -A              {access}"));
        self.progress.note("  pintle cluster kill leader       watch a failover");
        self.progress.note("  pintle cluster down              remove everything");
    }

    fn alive(&self, name: &str) -> Result<()> {
        let process = Process::of(&self.layout, name);
        if process.pid().is_none() {
            bail!("{name} ended; the last it said, in {}:\n{}", process.log().display(), process.last_words());
        }
        Ok(())
    }
}

/// Starts one server unless it runs.
pub fn start_server(layout: &Layout, state: &ClusterState, server: &ServerState, binary: &Path) -> Result<()> {
    let directory = layout.member(&server.name);
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let config = ServerConfig {
        name: server.name.clone(),
        data_dir: directory.join("data"),
        pki_dir: layout.pki(),
        listen_api: server.api,
        listen_client: server.client,
        listen_peer: server.peer,
        tls_names: vec![state.balancer.ip().to_string()],
        cluster_cidr: state.cluster_cidr.clone(),
        members: state
            .servers
            .iter()
            .map(|member| MemberConfig {
                name: member.name.clone(),
                id: member.id,
                api: member.api.to_string(),
                client: member.client.to_string(),
                peer: member.peer.to_string(),
            })
            .collect(),
        ..ServerConfig::default()
    };
    let path = directory.join("config.yaml");
    crate::pki::write_private(&path, &serde_saphyr::to_string(&config).context("write the server's configuration")?)?;
    let program = Program {
        path: binary,
        arguments: vec!["server".into(), "--config".into(), path.display().to_string()],
        environment: Vec::new(),
        namespace: None,
    };
    Process::of(layout, &server.name).start(&program)?;
    Ok(())
}

pub fn start_balancer(layout: &Layout, state: &ClusterState, binary: &Path) -> Result<()> {
    let program = Program {
        path: binary,
        arguments: vec!["cluster".into(), "balance".into(), "--name".into(), state.name.clone()],
        environment: vec![("PINTLE_HOME".into(), super::state::home()?.display().to_string())],
        namespace: None,
    };
    Process::of(layout, BALANCER).start(&program)?;
    Ok(())
}

/// Starts the agent process of a worker unless it runs.
pub fn start_agent(layout: &Layout, agent: &AgentState, config: &AgentConfig, binary: &Path) -> Result<()> {
    let path = layout.member(&agent.name).join("config.yaml");
    fs::create_dir_all(layout.member(&agent.name)).context("create the worker's directory")?;
    crate::pki::write_private(&path, &serde_saphyr::to_string(config).context("write the agent's configuration")?)?;
    let program = Program {
        path: binary,
        arguments: vec!["agent".into(), "--config".into(), path.display().to_string()],
        environment: Vec::new(),
        namespace: agent.namespace.as_deref(),
    };
    Process::of(layout, &agent.name).start(&program)?;
    Ok(())
}

/// Names of the nodes whose Ready condition is True.
pub async fn ready_nodes(https: &Https, server: SocketAddr) -> Result<BTreeSet<String>> {
    let (status, body) = clock::timeout(Duration::from_secs(2), https.get(server, "/api/v1/nodes")).await??;
    if status != 200 {
        bail!("list nodes: HTTP {status}");
    }
    let list: serde_json::Value = serde_json::from_slice(&body).context("parse the node list")?;
    let ready = |node: &&serde_json::Value| {
        node["status"]["conditions"].as_array().is_some_and(|conditions| {
            conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        })
    };
    Ok(list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(ready)
        .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
        .collect())
}

/// Hands out loopback ports, the preferred one where it is free, each once.
#[derive(Default)]
struct Ports {
    given: Vec<u16>,
}

impl Ports {
    fn free(&mut self, preferred: u16) -> Result<SocketAddr> {
        let wanted = [preferred].into_iter().filter(|port| *port != 0 && ports::is_free(*port));
        let mut found = wanted.chain(std::iter::from_fn(ports::free)).filter(|port| !self.given.contains(port));
        let port = found.next().with_context(|| format!("no free port on loopback near {preferred}"))?;
        self.given.push(port);
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }
}
