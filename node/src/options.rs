//! What an agent is told when it starts. Paths and addresses are the caller's decision; everything else has a default.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use crate::{checkpoint, limits};

/// How the cluster's servers are known to be the right ones at the first contact.
#[derive(Clone, Debug)]
pub enum Trust {
    /// PEM file with the cluster's CA.
    CaFile(PathBuf),
    /// `sha256:<hex>` of the CA certificate; the servers send the certificate along.
    CaHash(String),
}

/// What runs containers.
#[derive(Clone, Debug)]
pub enum RuntimeChoice {
    /// CRI v1 at this Unix socket.
    Cri { socket: PathBuf },
    /// No containers, the same books.
    Simulated,
}

/// Name resolution and service traffic on this node.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// Where the CNI configuration goes; containerd reads it there.
    pub cni_conf_dir: PathBuf,
    /// Bridge the pods hang on.
    pub bridge: String,
    /// All pods' addresses.
    pub cluster_cidr: String,
    /// Whether this agent programs services into the kernel.
    pub proxy: bool,
    /// Whether this agent answers cluster DNS on [`AgentOptions::cluster_dns`], at this port.
    pub dns: bool,
    pub dns_port: u16,
    /// Whether this agent adds routes to the pods of other nodes.
    pub routes: bool,
}

impl NetworkOptions {
    pub fn new(cni_conf_dir: PathBuf) -> Self {
        Self {
            cni_conf_dir,
            bridge: "pintle0".to_owned(),
            cluster_cidr: "10.244.0.0/16".to_owned(),
            proxy: true,
            dns: true,
            dns_port: 53,
            routes: true,
        }
    }
}

/// Everything an agent is told.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub node_name: String,
    /// Certificates, pod volumes, logs and checkpoint of this node. One agent per directory.
    pub data_dir: PathBuf,
    /// Whether what is known is written down for an agent that starts without a server. A simulated runtime forgets its
    /// containers with its process: 500 of them need not keep one disk busy.
    pub checkpoint: bool,
    /// Where the secrets of running pods outlive the agent, but not the machine: used only if it is on a file system in
    /// memory. None: they are kept in the process alone.
    pub run_dir: Option<PathBuf>,
    /// API servers, `host:port` each.
    pub servers: Vec<String>,
    /// Name in the servers' certificates, if not the host of the address used.
    pub server_name: Option<String>,
    pub trust: Option<Trust>,
    /// Bootstrap token, needed only until the node has a certificate. Never logged.
    pub token: Option<String>,
    /// The address under which other nodes reach this one.
    pub node_ip: IpAddr,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub runtime: RuntimeChoice,
    pub network: NetworkOptions,
    pub cluster_dns: Ipv4Addr,
    pub cluster_domain: String,
    /// resolv.conf of the machine, for pods that want it and for names outside the cluster.
    pub resolv_conf: PathBuf,
    /// How often the node's Lease is renewed, and how long it holds.
    pub lease_renew: Duration,
    pub lease_duration: Duration,
    pub max_pods: usize,
    /// Amounts reported in place of the machine's own: `cpu`, `memory`. For several agents on one machine.
    pub capacity: BTreeMap<String, String>,
    /// Parent of all pods' cgroups.
    pub cgroup_root: String,
}

impl AgentOptions {
    pub fn new(node_name: impl Into<String>, data_dir: PathBuf, node_ip: IpAddr, runtime: RuntimeChoice) -> Self {
        let real = matches!(runtime, RuntimeChoice::Cri { .. });
        let mut network = NetworkOptions::new(data_dir.join("cni"));
        // Simulated containers send no packets: nobody would ask.
        (network.proxy, network.dns, network.routes) = (real, real, real);
        Self {
            node_name: node_name.into(),
            checkpoint: real,
            run_dir: real.then(|| checkpoint::default_run_dir(&data_dir)),
            data_dir,
            servers: Vec::new(),
            server_name: None,
            trust: None,
            token: None,
            node_ip,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            runtime,
            network,
            cluster_dns: Ipv4Addr::new(10, 96, 0, 10),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            lease_renew: Duration::from_secs(2),
            lease_duration: Duration::from_secs(8),
            max_pods: limits::MAX_PODS,
            capacity: BTreeMap::new(),
            cgroup_root: "/kubepods".to_owned(),
        }
    }
}
