//! An agent that has an identity: its tasks, started in the order in which they need one another.
//!
//! Flow: checkpoint → reflectors, seeded → watches, which correct them → pod range → network → pods; beside it the node's
//! registration, which nothing waits for. Always holds: with a checkpoint no step waits for a server (I10).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use pintle_base::task::Group;
use pintle_client::reflector::{Reflected, Selection};
use pintle_client::{Connection, Recorder, SharedReflector};
use serde::Serialize;
use tokio::sync::watch;

use crate::checkpoint::{Checkpoint, Restored, Secrets, kind};
use crate::join::{self, Identity};
use crate::machine::heartbeat::Heartbeat;
use crate::machine::{Machine, lease};
use crate::options::{AgentOptions, RuntimeChoice};
use crate::pods::config::{DnsSettings, HostResolver, NodeFacts};
use crate::pods::references::{Kind, Saved};
use crate::pods::resources::Amounts;
use crate::pods::{Context, Dispatch, NodePlace, Statuses};
use crate::runtime::{CriRuntime, Runtime, SimulatedRuntime};
use crate::streams::session::Sessions;
use crate::{checkpoint, dns, network, proxy, streams};

/// The runtime in use.
#[derive(Clone)]
pub struct Chosen {
    pub runtime: Arc<dyn Runtime>,
    /// The same runtime, if it is the simulated one: it needs to be told its addresses.
    pub simulated: Option<Arc<SimulatedRuntime>>,
}

impl Chosen {
    pub fn of(choice: &RuntimeChoice) -> Self {
        match choice {
            RuntimeChoice::Cri { socket } => Self { runtime: Arc::new(CriRuntime::new(socket)), simulated: None },
            RuntimeChoice::Simulated => Self::simulated(Arc::default()),
        }
    }

    pub fn simulated(runtime: Arc<SimulatedRuntime>) -> Self {
        Self { runtime: Arc::clone(&runtime) as Arc<dyn Runtime>, simulated: Some(runtime) }
    }
}

/// What the agent sees of the cluster.
struct Views {
    pods: SharedReflector<Pod>,
    services: SharedReflector<Service>,
    slices: SharedReflector<EndpointSlice>,
    nodes: SharedReflector<Node>,
}

/// What tasks tell each other about the pod network.
struct Network {
    ready: watch::Sender<bool>,
    settings: watch::Sender<proxy::ruleset::Settings>,
}

/// An agent that has joined, before its tasks run.
pub struct Agent {
    options: Arc<AgentOptions>,
    identity: Identity,
    connection: Connection,
    client: kube::Client,
    machine: Machine,
    chosen: Chosen,
    checkpoint: Checkpoint,
    group: Group,
}

impl Agent {
    pub fn new(
        options: Arc<AgentOptions>,
        identity: Identity,
        connection: Connection,
        chosen: Chosen,
        group: &Group,
    ) -> Self {
        let client = connection.kube_client();
        let machine = Machine::read(&options.data_dir);
        let checkpoint = Checkpoint::open(&options);
        Self { options, identity, connection, client, machine, chosen, checkpoint, group: group.clone() }
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.chosen.runtime)
    }

    /// Starts everything; returns when the agent stops.
    pub async fn run(self) {
        let mut restored = self.checkpoint.restore();
        let views = self.views(&mut restored);
        let network = Network { ready: watch::channel(false).0, settings: watch::channel(self.proxy_settings()).0 };
        self.start_node(&views.nodes, network.ready.subscribe());
        let cidr = network::pod_cidr(&views.nodes, &self.options.node_name, "").await;
        self.take_range(&cidr, &network).await;
        self.start_network(&views);
        self.start_proxy(&views, &network);
        self.start_pods(&views, restored.config_maps, restored.secrets).await;
        self.follow_range(cidr, &views.nodes, &network).await;
    }

    /// The node's certificate, object, status and Lease.
    fn start_node(&self, nodes: &SharedReflector<Node>, network: watch::Receiver<bool>) {
        let (options, client) = (Arc::clone(&self.options), self.client.clone());
        let (identity, connection) = (self.identity.clone(), self.connection.clone());
        let renewal = join::renew(options, identity, connection, client, self.group.clone());
        self.group.spawn_until_stopped("certificate", renewal);
        let settings = lease::Settings {
            node_name: self.options.node_name.clone(),
            renew: self.options.lease_renew,
            duration: self.options.lease_duration,
        };
        self.group.spawn_until_stopped("lease", lease::run(self.client.clone(), settings, nodes.clone()));
        let heartbeat = Heartbeat {
            options: Arc::clone(&self.options),
            machine: self.machine.clone(),
            client: self.client.clone(),
            runtime: self.runtime(),
            nodes: nodes.clone(),
            network,
        };
        self.group.spawn_until_stopped("heartbeat", heartbeat.run());
    }

    /// Caches that begin with what an earlier agent knew, and are written down from the first confirmed list on.
    fn views(&self, restored: &mut Restored) -> Views {
        let (options, own) = (&self.options, self.options.node_name.clone());
        // All nodes where routes are needed: 500 simulated agents must not watch 500 nodes each.
        let all = self.runtime().is_real() && options.network.routes;
        let node = if all { Selection::all() } else { Selection::fields(format!("metadata.name={own}")) };
        let here = Selection::fields(format!("spec.nodeName={own}"));
        let is_own = move |node: &Node| node.metadata.name.as_deref() == Some(own.as_str());
        let nodes = self.view(kind::NODES, node, restored.nodes.take(), is_own);
        let pods = self.view(kind::PODS, here, restored.pods.take(), |_| true);
        if self.runtime().is_real() || options.network.dns || options.network.proxy {
            let services = self.view(kind::SERVICES, Selection::all(), restored.services.take(), |_| true);
            let slices = self.view(kind::SLICES, Selection::all(), restored.slices.take(), |_| true);
            return Views { pods, services, slices, nodes };
        }
        // Empty and complete: nobody here has a use for them.
        let (services, slices) = (SharedReflector::detached(), SharedReflector::detached());
        services.replace(Vec::new());
        slices.replace(Vec::new());
        Views { pods, services, slices, nodes }
    }

    fn view<K: Reflected + Serialize>(
        &self,
        kind: &'static str,
        selection: Selection,
        seed: Option<Vec<K>>,
        kept: impl Fn(&K) -> bool + Send + Sync + 'static,
    ) -> SharedReflector<K> {
        let view = SharedReflector::detached();
        if let Some(objects) = seed {
            tracing::info!(kind, count = objects.len(), "begins with what an earlier agent knew");
            view.seed(objects);
        }
        view.follow(self.client.clone(), selection, &self.group);
        self.checkpoint.keep(kind, &view, kept, &self.group);
        view
    }

    fn proxy_settings(&self) -> proxy::ruleset::Settings {
        proxy::ruleset::Settings {
            node_name: self.options.node_name.clone(),
            dns_address: self.options.cluster_dns.to_string(),
            cluster_cidr: self.options.network.cluster_cidr.clone(),
            pod_cidr: String::new(),
        }
    }

    /// Makes the pod network use `cidr`.
    async fn take_range(&self, cidr: &str, network: &Network) {
        match &self.chosen.simulated {
            Some(simulated) => {
                simulated.set_pod_cidr(cidr);
                network.ready.send_replace(true);
            }
            None => {
                network.ready.send_replace(false);
                network::bring_up(&self.options, cidr, &network.ready).await;
            }
        }
        network.settings.send_modify(|settings| cidr.clone_into(&mut settings.pod_cidr));
    }

    /// Takes every other range the node is given later. Runs until the agent stops.
    async fn follow_range(&self, mut held: String, nodes: &SharedReflector<Node>, network: &Network) {
        loop {
            let cidr = network::pod_cidr(nodes, &self.options.node_name, &held).await;
            tracing::warn!(before = held, now = cidr, "the node was given another pod range");
            self.take_range(&cidr, network).await;
            held = cidr;
        }
    }

    fn start_network(&self, views: &Views) {
        let options = &self.options;
        if self.runtime().is_real() && options.network.routes {
            let routes = network::follow_routes(Arc::clone(options), views.nodes.clone());
            self.group.spawn_until_stopped("routes", routes);
        }
        if options.network.dns {
            let settings = dns::Settings {
                address: options.cluster_dns,
                port: options.network.dns_port,
                domain: options.cluster_domain.clone(),
                upstreams: upstreams(&host_resolver(&options.resolv_conf), options),
            };
            dns::start(&settings, views.services.clone(), views.slices.clone(), &self.group);
        }
    }

    fn start_proxy(&self, views: &Views, network: &Network) {
        if self.runtime().is_real() && self.options.network.proxy {
            let settings = network.settings.subscribe();
            let proxy = proxy::run(views.services.clone(), views.slices.clone(), settings);
            self.group.spawn_until_stopped("proxy", proxy);
        }
    }

    async fn start_pods(&self, views: &Views, config_maps: Vec<Saved>, secrets: Secrets) {
        let (options, pods) = (&self.options, &views.pods);
        let statuses = Statuses::start(self.client.clone(), &self.group);
        let recorder = Recorder::start(self.client.clone(), "kubelet", &options.node_name, &self.group);
        let (services, place) = (views.services.clone(), self.place());
        let context = Context::new(self.client.clone(), statuses, recorder, services, self.runtime(), place);
        context.references.restore(Kind::ConfigMap, config_maps);
        context.references.restore(Kind::Secret, secrets.secrets);
        context.tokens.restore(secrets.tokens);
        if let Ok(version) = self.chosen.runtime.version().await {
            *context.runtime_name.write() = version.split("://").next().unwrap_or_default().to_owned();
        }
        let context = Arc::new(context);
        self.checkpoint.keep_references(Arc::clone(&context), pods.clone(), &self.group);
        let sessions = Sessions::new(Arc::clone(&context), pods.clone(), self.connection.clone(), self.group.clone());
        self.group.spawn_until_stopped("session", sessions.run());
        if self.chosen.runtime.is_real() {
            self.group.spawn_until_stopped("log-rotation", streams::rotate::run(self.runtime()));
        }
        let (services, dispatch) = (views.services.clone(), Dispatch::new(context, pods.clone(), self.group.clone()));
        self.group.spawn_until_stopped("pods", async move {
            // Service variables need the services: a pod started without them would miss them for ever.
            checkpoint::settled(&services).await;
            dispatch.run().await;
        });
    }

    fn place(&self) -> NodePlace {
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
        NodePlace {
            name: options.node_name.clone(),
            data_dir: options.data_dir.clone(),
            host_ips: vec![options.node_ip.to_string()],
            facts,
            allocatable,
        }
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

#[cfg(test)]
mod tests;
