//! `cluster status`, `list`, `kill` and `start`: looking at the members of a local cluster and breaking them on purpose.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use nix::sys::signal::Signal;
use pintle_base::clock;
use serde::Serialize;

use super::process::Process;
use super::state::{ClusterState, Layout, ServerState, clusters};
use super::up::{self, BALANCER, ready_nodes};
use super::workers;
use crate::exit::{self, Exit};
use crate::https::Https;
use crate::pki::{Authority, Subject};

/// How long a member may take to tell its status before it counts as down.
const STATUS_TIMEOUT: Duration = Duration::from_millis(800);
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
}

#[derive(clap::Args)]
pub struct StatusArgs {
    /// Name of the cluster
    #[arg(long, default_value = "default")]
    pub name: String,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

#[derive(clap::Args)]
pub struct KillArgs {
    /// A server or worker as `cluster status` names it, or `leader`
    pub member: String,
    /// Name of the cluster
    #[arg(long, default_value = "default")]
    pub name: String,
    /// KILL ends it at once, TERM lets it hand over, STOP freezes it, CONT thaws it
    #[arg(long, value_enum, default_value_t = SignalName::Kill)]
    pub signal: SignalName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum SignalName {
    Kill,
    Term,
    Stop,
    Cont,
}

#[derive(clap::Args)]
pub struct StartArgs {
    /// A server or worker as `cluster status` names it; without a name, all that do not run
    pub member: Option<String>,
    /// Name of the cluster
    #[arg(long, default_value = "default")]
    pub name: String,
}

#[derive(Serialize)]
pub struct Status {
    pub name: String,
    pub servers: Vec<ServerStatus>,
    pub agents: Vec<AgentStatus>,
    /// Whether the process behind the one address runs.
    pub balancer_runs: bool,
    /// Nodes that are Ready, those of all agents together.
    pub ready_nodes: usize,
    pub api: SocketAddr,
}

#[derive(Serialize)]
pub struct ServerStatus {
    pub name: String,
    pub pid: Option<i32>,
    pub role: &'static str,
    pub term: u64,
    pub revision: i64,
    pub memory_bytes: Option<u64>,
    pub api: SocketAddr,
    pub client: SocketAddr,
    pub peer: SocketAddr,
}

#[derive(Serialize)]
pub struct AgentStatus {
    pub name: String,
    pub pid: Option<i32>,
    pub ready: bool,
    pub memory_bytes: Option<u64>,
    pub address: std::net::IpAddr,
}

/// Reads the status of every member; what does not answer in time is down.
pub async fn read(layout: &Layout, state: &ClusterState) -> Result<Status> {
    let https = admin(layout)?;
    let servers = join_all(state.servers.iter().map(|server| server_status(layout, server, &https))).await;
    let ready = match clock::timeout(STATUS_TIMEOUT * 2, ready_nodes(&https, state.balancer)).await {
        Ok(Ok(names)) => names,
        _ => BTreeSet::new(),
    };
    let agents = state
        .agents
        .iter()
        .map(|agent| {
            let process = Process::of(layout, &agent.name);
            AgentStatus {
                name: agent.name.clone(),
                pid: process.pid(),
                ready: agent.is_ready(&ready),
                memory_bytes: process.memory(),
                address: agent.address,
            }
        })
        .collect();
    let ready_nodes = ready.len();
    let balancer_runs = Process::of(layout, BALANCER).pid().is_some();
    Ok(Status { name: state.name.clone(), servers, agents, balancer_runs, ready_nodes, api: state.balancer })
}

async fn server_status(layout: &Layout, server: &ServerState, https: &Https) -> ServerStatus {
    let process = Process::of(layout, &server.name);
    let answer = match clock::timeout(STATUS_TIMEOUT, https.member_status(server.client)).await {
        Ok(Ok(status)) if process.pid().is_some() => Some(status),
        _ => None,
    };
    let role = match &answer {
        None => "down",
        Some(status) if status.is_learner => "learner",
        Some(status) if status.leader == server.id => "leader",
        Some(_) => "follower",
    };
    ServerStatus {
        name: server.name.clone(),
        pid: process.pid(),
        role,
        term: answer.as_ref().map_or(0, |status| status.raft_term),
        revision: answer.as_ref().and_then(|status| status.header.as_ref()).map_or(0, |header| header.revision),
        memory_bytes: process.memory(),
        api: server.api,
        client: server.client,
        peer: server.peer,
    }
}

/// Prints the status; exit code 5 if a majority of servers is not there or a worker is not Ready.
pub async fn status(args: StatusArgs) -> Result<()> {
    let layout = Layout::of(&args.name)?;
    let state = layout.existing()?;
    let status = read(&layout, &state).await?;
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Format::Table => print_table(&status),
    }
    let up = status.servers.iter().filter(|server| server.role != "down").count();
    if up * 2 <= status.servers.len() || status.agents.iter().any(|agent| !agent.ready) {
        return Err(exit::with(Exit::Unhealthy, "the cluster is not healthy".to_owned()));
    }
    Ok(())
}

fn print_table(status: &Status) {
    if !status.balancer_runs {
        println!(
            "Nothing answers at {}: the balancer does not run. Start it: pintle cluster start {BALANCER}\n",
            status.api
        );
    }
    let megabytes = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| format!("{} MB", bytes / 1_000_000));
    let pid = |pid: Option<i32>| pid.map_or("-".to_owned(), |pid| pid.to_string());
    println!(
        "{:<6} {:<10} {:<8} {:<6} {:<10} {:<8} {:<22} CLIENT",
        "NAME", "ROLE", "PID", "TERM", "REVISION", "MEMORY", "API"
    );
    for s in &status.servers {
        println!(
            "{:<6} {:<10} {:<8} {:<6} {:<10} {:<8} {:<22} {}",
            s.name,
            s.role,
            pid(s.pid),
            s.term,
            s.revision,
            megabytes(s.memory_bytes),
            s.api.to_string(),
            s.client
        );
    }
    println!("\n{:<6} {:<10} {:<8} {:<8} ADDRESS", "NAME", "READY", "PID", "MEMORY");
    for a in &status.agents {
        let ready = if a.ready { "yes" } else { "no" };
        println!("{:<6} {:<10} {:<8} {:<8} {}", a.name, ready, pid(a.pid), megabytes(a.memory_bytes), a.address);
    }
}

pub fn list() -> Result<()> {
    println!("{:<20} {:<8} {:<8} API", "NAME", "SERVERS", "AGENTS");
    for name in clusters()? {
        if let Some(state) = Layout::of(&name)?.load()? {
            println!("{:<20} {:<8} {:<8} {}", name, state.servers.len(), state.agents.len(), state.balancer);
        }
    }
    Ok(())
}

/// Signals a member and, for KILL, waits until it is gone. Prints its name.
pub async fn kill(args: KillArgs) -> Result<()> {
    let layout = Layout::of(&args.name)?;
    let state = layout.existing()?;
    let member = if args.member == "leader" { leader(&layout, &state).await? } else { args.member.clone() };
    let known = state.servers.iter().any(|server| server.name == member)
        || state.agents.iter().any(|agent| agent.name == member);
    if !known {
        return Err(exit::with(
            Exit::NotFound,
            format!("cluster {} has no member {member:?}; see: pintle cluster status", state.name),
        ));
    }
    let process = Process::of(&layout, &member);
    let signal = match args.signal {
        SignalName::Kill => Signal::SIGKILL,
        SignalName::Term => Signal::SIGTERM,
        SignalName::Stop => Signal::SIGSTOP,
        SignalName::Cont => Signal::SIGCONT,
    };
    if !process.signal(signal)? {
        return Err(exit::with(
            Exit::Conflict,
            format!("{member} does not run; start it with: pintle cluster start {member}"),
        ));
    }
    if args.signal == SignalName::Kill && !process.gone_within(GONE_TIMEOUT).await {
        bail!("{member} is still there {} s after SIGKILL", GONE_TIMEOUT.as_secs());
    }
    println!("{member}");
    Ok(())
}

async fn leader(layout: &Layout, state: &ClusterState) -> Result<String> {
    let https = admin(layout)?;
    let statuses = join_all(state.servers.iter().map(|server| server_status(layout, server, &https))).await;
    // The leader of the newest term: a server that was paused may still believe in an old one.
    statuses
        .into_iter()
        .filter(|server| server.role == "leader")
        .max_by_key(|server| server.term)
        .map(|server| server.name)
        .ok_or_else(|| exit::with(Exit::Unhealthy, "there is no leader now; see: pintle cluster status".to_owned()))
}

/// Starts members that do not run: one, or all.
pub async fn start(args: StartArgs) -> Result<()> {
    let layout = Layout::of(&args.name)?;
    let state = layout.existing()?;
    let Some(member) = args.member else {
        let servers = state.servers.iter().map(|server| &server.name);
        let agents = state.agents.iter().map(|agent| &agent.name);
        let balancer = BALANCER.to_owned();
        let members = std::iter::once(&balancer).chain(servers).chain(agents);
        for name in members.filter(|name| Process::of(&layout, name).pid().is_none()) {
            start_member(&layout, &state, name).await?;
            println!("{name}");
        }
        return Ok(());
    };
    start_member(&layout, &state, &member).await
}

async fn start_member(layout: &Layout, state: &ClusterState, member: &str) -> Result<()> {
    let binary = std::env::current_exe().context("find this binary")?;
    if let Some(server) = state.servers.iter().find(|server| server.name == member) {
        return up::start_server(layout, state, server, &binary);
    }
    if let Some(agent) = state.agents.iter().find(|agent| agent.name == member) {
        let authority = Authority::load(&layout.pki())?;
        // A worker that has its certificate needs no token, so it can start while no server answers.
        let join = match workers::has_joined(layout, agent) {
            true => String::new(),
            false => {
                let (https, lifetime) = (admin(layout)?, Duration::from_secs(3600));
                crate::token::create(&https, state.balancer, &authority.fingerprint()?, lifetime).await?
            }
        };
        return workers::start(layout, state, agent, &join, &binary, &authority).await;
    }
    if member == BALANCER {
        return up::start_balancer(layout, state, &binary);
    }
    Err(exit::with(
        Exit::NotFound,
        format!("cluster {} has no member {member:?}; see: pintle cluster status", state.name),
    ))
}

/// Dials the cluster as its administrator.
pub fn admin(layout: &Layout) -> Result<Https> {
    let authority = Authority::load(&layout.pki())?;
    let leaf =
        authority.issue(&Subject { common_name: "pintle-admin", organizations: &["system:masters"], names: &[] })?;
    Https::new(&authority, &leaf)
}
