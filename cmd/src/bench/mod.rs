//! `pintle bench`: figures of a running cluster, as its users would feel them, and of the store beside an etcd. What is made
//! is removed again.
//!
//! Always holds: what is measured is what a client sees over TLS at the cluster's one address; figures of a run are
//! printed together with what they were measured on and, with `--json`, written to a file.

mod idle;
mod pods;
mod scale;
mod store;
mod usage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use pintle_base::clock;
use pintle_base::task::Group;
use pintle_client::remote::{Connection, Options};
use serde_json::{Value, json};

use crate::cluster::control::{self, Status};
use crate::cluster::state::{ClusterState, Layout};
use crate::pki::{Authority, Subject};

#[derive(clap::Subcommand)]
pub enum BenchCommand {
    /// Thousands of pods: time until all run, latency of the API meanwhile and after, memory of each server
    Scale(scale::Args),
    /// Time from creating a pod to seeing it run, one pod after the other
    Pods(pods::Args),
    /// Nothing happens: memory and CPU of each process, and whether anybody stood for election
    Idle(idle::Args),
    /// The store against an etcd, both started for it: throughput, latency, CPU and memory of each kind of request
    Store(Box<store::Args>),
}

pub async fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Scale(args) => scale::run(args).await,
        BenchCommand::Pods(args) => pods::run(args).await,
        BenchCommand::Idle(args) => idle::run(args).await,
        BenchCommand::Store(args) => store::run(*args).await,
    }
}

/// Tasks of a benchmark end within this time.
const STOP: Duration = Duration::from_secs(5);
/// Servers may be silent for this long before a benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running local cluster to measure.
struct Target {
    layout: Layout,
    state: ClusterState,
    group: Group,
}

impl Target {
    fn of(name: &str) -> Result<Self> {
        let layout = Layout::of(name)?;
        let state = layout.existing()?;
        let group = Group::new("bench");
        crate::signals::stop_on_signal(&group)?;
        Ok(Self { layout, state, group })
    }

    /// A client with a connection of its own to the cluster's one address.
    fn client(&self) -> Result<kube::Client> {
        let authority = Authority::load(&self.layout.pki())?;
        let leaf = authority.issue(&Subject {
            common_name: "pintle-bench",
            organizations: &["system:masters"],
            names: &[],
        })?;
        let options = Options::new(vec![self.state.balancer.into()], authority.client_config(&leaf, &["h2"])?);
        Ok(Connection::start(options, &self.group).context("connect to the cluster")?.kube_client())
    }

    /// The cluster's status; an error unless every server runs.
    async fn status(&self) -> Result<Status> {
        let status = control::read(&self.layout, &self.state).await?;
        if let Some(down) = status.servers.iter().find(|server| server.pid.is_none()) {
            bail!("{} does not run; start it first: pintle cluster start {}", down.name, down.name);
        }
        Ok(status)
    }

    /// The newest term any server is in; it moves with every election. Servers too busy to answer are waited for.
    async fn term(&self) -> Result<u64> {
        let deadline = clock::now() + PATIENCE;
        loop {
            let status = self.status().await?;
            if let Some(term) = status.servers.iter().map(|server| server.term).max().filter(|term| *term > 0) {
                return Ok(term);
            }
            if clock::now() > deadline {
                bail!("no server tells its term for {} s; see: pintle cluster status", PATIENCE.as_secs());
            }
            clock::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Runs `work` until it is done, or until a signal asks for the end; then ends all tasks.
    async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let token = self.group.token();
        let result = tokio::select! {
            result = work => result,
            () = token.cancelled() => Err(anyhow::anyhow!("interrupted")),
        };
        self.group.stop(STOP).await.context("end the tasks of the benchmark")?;
        result
    }
}

/// A namespace of the benchmark's own, with the service account its pods need.
async fn make_namespace(client: &kube::Client, name: &str, limit: Duration) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &namespace).await.with_context(|| {
        format!("create namespace {name}; if it is left from an earlier run: kubectl delete namespace {name}")
    })?;
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), name);
    let deadline = clock::now() + limit;
    while accounts.get_opt("default").await.context("look for the service account")?.is_none() {
        if clock::now() > deadline {
            bail!("namespace {name} has no service account after {} s", limit.as_secs());
        }
        clock::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Removes the namespace and waits until it is gone.
async fn remove_namespace(client: &kube::Client, name: &str, limit: Duration) -> Result<Duration> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let started = clock::now();
    namespaces.delete(name, &DeleteParams::default()).await.with_context(|| format!("remove namespace {name}"))?;
    // A look that fails tells nothing: under load a connection may be moved to another server.
    while !matches!(namespaces.get_opt(name).await, Ok(None)) {
        if started.elapsed() > limit {
            bail!("namespace {name} is still there after {} s", limit.as_secs());
        }
        clock::sleep(Duration::from_millis(200)).await;
    }
    Ok(started.elapsed())
}

/// Writes the figures of a run for programs.
fn write_json(path: Option<&Path>, figures: &Value) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, serde_json::to_string_pretty(figures)?)
        .with_context(|| format!("write the figures to {}", path.display()))
}

/// Options that every benchmark has.
#[derive(clap::Args)]
struct Common {
    /// Name of the local cluster
    #[arg(long, default_value = "default")]
    name: String,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}
