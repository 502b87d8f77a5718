//! The node agent: the pods of this machine, their runtime, volumes, probes, service traffic and cluster DNS.
//!
//! Flow: [`join`] (certificate) → one connection to a server → watches (pods, services, nodes) → [`pods`] (one worker
//! each) → [`runtime`] → statuses back; beside it [`streams`] (logs, exec), [`network`], [`proxy`] and [`dns`].
//! Always holds: the agent connects outwards only (D11); running pods and service traffic need no server (I10); stopping
//! or losing the agent stops no container: the next one adopts what it finds.

mod checkpoint;
pub mod containerd;
pub mod dns;
pub mod images;
pub mod join;
pub mod limits;
mod machine;
pub mod network;
pub mod options;
pub mod pods;
pub mod program;
pub mod proxy;
pub mod runtime;
pub mod streams;
pub mod volumes;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_base::task::Group;
use pintle_client::reflector::Selection;
use pintle_client::{Connection, Recorder, SharedReflector, remote as client_remote};
use tokio::sync::watch;

pub use checkpoint::forget_secrets;
pub use join::JoinError;
pub use options::{AgentOptions, NetworkOptions, RuntimeChoice, Trust};

use join::Identity;
use machine::Machine;
use machine::heartbeat::{self, Heartbeat};
use pods::config::{DnsSettings, HostResolver, NodeFacts};
use pods::resources::Amounts;
use pods::{Context, Dispatch, NodePlace, Statuses};
use runtime::{CriRuntime, Runtime, SimulatedRuntime};
use streams::session::Sessions;

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("join the cluster")]
    Join(#[source] JoinError),
    #[error("start connection to the servers")]
    Connection(#[source] client_remote::StartError),
    #[error("make data directory {}", path.display())]
    DataDir {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Runs an agent until `group` is told to stop. Containers stay.
///
/// # Errors
/// [`AgentError`] if it cannot begin; once it runs, nothing ends it but `group`.
pub async fn run(options: AgentOptions, group: &Group) -> Result<(), AgentError> {
    let options = Arc::new(options);
    std::fs::create_dir_all(&options.data_dir)
        .map_err(|source| AgentError::DataDir { path: options.data_dir.clone(), source })?;
    let token = group.token();
    let identity = tokio::select! {
        identity = join_patiently(&options, group) => identity?,
        () = token.cancelled() => return Ok(()),
    };
    let connection = connect(&options, &identity, group)?;
    let agent = Agent::new(options, identity, connection, group);
    tokio::select! {
        () = agent.run() => (),
        () = token.cancelled() => (),
    }
    token.cancelled().await;
    Ok(())
}

/// Servers may come up after the agent: what can pass by itself is tried again.
async fn join_patiently(options: &AgentOptions, group: &Group) -> Result<Identity, AgentError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match join::identity(options, group).await {
            Ok(identity) => return Ok(identity),
            Err(error) if error.is_transient() => tracing::warn!(error = %Chain(&error), "not joined yet, will retry"),
            Err(error) => return Err(AgentError::Join(error)),
        }
        clock::sleep(backoff.next_delay()).await;
    }
}

fn connect(options: &AgentOptions, identity: &Identity, group: &Group) -> Result<Connection, AgentError> {
    let endpoints = join::endpoints(&options.servers).map_err(AgentError::Join)?;
    let mut settings = client_remote::Options::new(endpoints, identity.client_config().map_err(AgentError::Join)?);
    settings.server_name.clone_from(&options.server_name);
    Connection::start(settings, group).map_err(AgentError::Connection)
}

/// An agent that has joined, before its tasks run.
struct Agent {
    options: Arc<AgentOptions>,
    identity: Identity,
    connection: Connection,
    client: kube::Client,
    machine: Machine,
    runtime: Arc<dyn Runtime>,
    /// The same runtime, if it is the simulated one: it needs to be told its addresses.
    simulated: Option<Arc<SimulatedRuntime>>,
    group: Group,
}

impl Agent {
    fn new(options: Arc<AgentOptions>, identity: Identity, connection: Connection, group: &Group) -> Self {
        let client = connection.kube_client();
        let machine = Machine::read(&options.data_dir);
        let simulated =
            matches!(options.runtime, RuntimeChoice::Simulated).then(|| Arc::new(SimulatedRuntime::default()));
        let runtime: Arc<dyn Runtime> = match (&options.runtime, &simulated) {
            (RuntimeChoice::Cri { socket }, _) => Arc::new(CriRuntime::new(socket)),
            (RuntimeChoice::Simulated, Some(simulated)) => Arc::clone(simulated) as Arc<dyn Runtime>,
            (RuntimeChoice::Simulated, None) => Arc::new(SimulatedRuntime::default()),
        };
        Self { options, identity, connection, client, machine, runtime, simulated, group: group.clone() }
    }

    /// Registers the node, then starts everything in the order in which it is needed.
    async fn run(self) {
        let options = Arc::clone(&self.options);
        let renewal =
            join::renew(Arc::clone(&options), self.identity.clone(), self.connection.clone(), self.client.clone());
        self.group.spawn_until_stopped("certificate", renewal);

        let node = heartbeat::register(&options, &self.machine, &self.client, self.runtime.as_ref()).await;
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let lease = machine::lease(self.client.clone(), &options, uid);
        self.group.spawn_until_stopped("lease", lease);

        let nodes = self.nodes();
        let (network_ready, network) = watch::channel(false);
        let heartbeat = Heartbeat {
            options: Arc::clone(&options),
            machine: self.machine.clone(),
            client: self.client.clone(),
            runtime: Arc::clone(&self.runtime),
            nodes: nodes.clone(),
            network,
        };
        self.group.spawn_until_stopped("heartbeat", heartbeat.run());

        let (services, slices) = self.services();
        let cidr = network::pod_cidr(&nodes, &options.node_name).await;
        match &self.simulated {
            Some(simulated) => {
                simulated.set_pod_cidr(&cidr);
                network_ready.send_replace(true);
            }
            None => self.start_network(&cidr, nodes, &services, &slices, &network_ready).await,
        }
        self.start_pods(services).await;
        // The heartbeat reads this for as long as the agent runs.
        network_ready.closed().await;
    }

    /// All nodes where routes are needed, otherwise only this one: 500 simulated agents must not watch 500 nodes each.
    fn nodes(&self) -> SharedReflector<Node> {
        let all = self.runtime.is_real() && self.options.network.routes;
        let selection =
            if all { Selection::all() } else { Selection::fields(format!("metadata.name={}", self.options.node_name)) };
        SharedReflector::start(self.client.clone(), selection, &self.group)
    }

    /// Services and their endpoints; empty and complete for a simulated node, which has no use for them.
    fn services(&self) -> (SharedReflector<Service>, SharedReflector<EndpointSlice>) {
        if self.runtime.is_real() {
            let services = SharedReflector::start(self.client.clone(), Selection::all(), &self.group);
            return (services, SharedReflector::start(self.client.clone(), Selection::all(), &self.group));
        }
        let (services, slices) = (SharedReflector::detached(), SharedReflector::detached());
        services.replace(Vec::new());
        slices.replace(Vec::new());
        (services, slices)
    }

    async fn start_network(
        &self,
        cidr: &str,
        nodes: SharedReflector<Node>,
        services: &SharedReflector<Service>,
        slices: &SharedReflector<EndpointSlice>,
        ready: &watch::Sender<bool>,
    ) {
        let options = &self.options;
        network::bring_up(options, cidr, ready).await;
        if options.network.routes {
            self.group.spawn_until_stopped("routes", network::follow_routes(Arc::clone(options), nodes));
        }
        if options.network.proxy {
            let settings = proxy::ruleset::Settings {
                node_name: options.node_name.clone(),
                dns_address: options.cluster_dns.to_string(),
                cluster_cidr: options.network.cluster_cidr.clone(),
                pod_cidr: cidr.to_owned(),
            };
            let (_, settings) = watch::channel(settings);
            self.group.spawn_until_stopped("proxy", proxy::run(services.clone(), slices.clone(), settings));
        }
        if options.network.dns {
            let settings = dns::Settings {
                address: options.cluster_dns,
                port: options.network.dns_port,
                domain: options.cluster_domain.clone(),
                upstreams: upstreams(&host_resolver(&options.resolv_conf), options),
            };
            dns::start(&settings, services.clone(), slices.clone(), &self.group);
        }
    }

    async fn start_pods(&self, services: SharedReflector<Service>) {
        let options = &self.options;
        let capacity = self.machine.capacity(options.max_pods, &options.capacity);
        let allocatable = Amounts::of(capacity.iter().map(|(name, amount)| (name.as_str(), amount.as_str())));
        let facts = NodeFacts {
            cgroup_root: options.cgroup_root.clone(),
            memory: allocatable.units("memory").unwrap_or(0),
            log_dir: options.data_dir.join("logs"),
            dns: DnsSettings {
                cluster_ip: if options.network.dns { options.cluster_dns.to_string() } else { String::new() },
                domain: options.cluster_domain.clone(),
                host: host_resolver(&options.resolv_conf),
            },
        };
        let place = NodePlace {
            name: options.node_name.clone(),
            data_dir: options.data_dir.clone(),
            host_ips: vec![options.node_ip.to_string()],
            facts,
            allocatable,
        };
        let statuses = Statuses::start(self.client.clone(), &self.group);
        let recorder = Recorder::start(self.client.clone(), "kubelet", &options.node_name, &self.group);
        let selection = Selection::fields(format!("spec.nodeName={}", options.node_name));
        let pods: SharedReflector<Pod> = SharedReflector::start(self.client.clone(), selection, &self.group);
        let context =
            Context::new(self.client.clone(), statuses, recorder, services.clone(), Arc::clone(&self.runtime), place);
        if let Ok(version) = self.runtime.version().await {
            *context.runtime_name.write() = version.split("://").next().unwrap_or_default().to_owned();
        }
        let context = Arc::new(context);
        let sessions = Sessions::new(Arc::clone(&context), pods.clone(), self.connection.clone(), self.group.clone());
        self.group.spawn_until_stopped("session", sessions.run());
        if self.runtime.is_real() {
            self.group.spawn_until_stopped("log-rotation", streams::rotate::run(Arc::clone(&self.runtime)));
        }
        // Service variables need the services: a pod started without them would miss them for ever.
        services.ready().await;
        let dispatch = Dispatch::new(context, pods, self.group.clone());
        self.group.spawn_until_stopped("pods", dispatch.run());
    }
}

fn host_resolver(path: &Path) -> HostResolver {
    HostResolver::parse(&std::fs::read_to_string(path).unwrap_or_default())
}

/// The machine's resolvers that can be asked from here: not ourselves, and none that only the machine's own loopback has.
fn upstreams(host: &HostResolver, options: &AgentOptions) -> Vec<SocketAddr> {
    let addresses = host.servers.iter().filter_map(|server| server.parse::<std::net::IpAddr>().ok());
    let usable =
        addresses.filter(|address| !address.is_loopback() && *address != std::net::IpAddr::from(options.cluster_dns));
    usable.map(|address| SocketAddr::new(address, 53)).collect()
}
