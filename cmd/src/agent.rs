//! `pintle agent`: one worker. Its configuration, and the node library around it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pintle_base::task::Group;
use pintle_node::{AgentOptions, RuntimeChoice, Trust};
use serde::{Deserialize, Serialize};

use crate::cluster::state::Runtime;

/// Runs a worker until it is told to stop. Its containers go on.
pub async fn run(args: AgentArgs) -> Result<()> {
    let config = AgentConfig::load(args)?;
    let (options, group) = (options(&config)?, Group::new("agent"));
    crate::signals::stop_on_signal(&group)?;
    let nodes = node_names(&config.name, config.nodes).into_iter().map(|name| {
        let mut options = options.clone();
        if config.nodes > 1 {
            options.data_dir = options.data_dir.join(&name);
        }
        options.node_name = name;
        pintle_node::run(options, &group)
    });
    futures::future::try_join_all(nodes).await?;
    if let Some(panic) = group.panicked() {
        bail!("agent ends: {panic}");
    }
    group.stop(STOP).await.context("stop the agent")
}

/// Names of the nodes of an agent: its own, or `<name>-1` and so on for several.
pub fn node_names(name: &str, nodes: u16) -> Vec<String> {
    if nodes == 1 { vec![name.to_owned()] } else { (1..=nodes).map(|number| format!("{name}-{number}")).collect() }
}

fn options(config: &AgentConfig) -> Result<AgentOptions> {
    if config.nodes == 0 || (config.nodes > 1 && config.runtime != Runtime::Simulated) {
        bail!("an agent is one node; only simulated ones can be more: give --runtime simulated with --nodes");
    }
    if config.servers.is_empty() {
        bail!("no server given: say where the API is with --server HOST:PORT, or `servers` in the configuration");
    }
    let runtime = match config.runtime {
        Runtime::Simulated => RuntimeChoice::Simulated,
        Runtime::Cri => RuntimeChoice::Cri {
            socket: config.runtime_endpoint.clone().unwrap_or_else(|| "/run/containerd/containerd.sock".into()),
        },
    };
    let address =
        config.node_ip.context("no node address given: say it with --node-ip, or `node-ip` in the configuration")?;
    let mut options = AgentOptions::new(&config.name, config.data_dir.clone(), address, runtime);
    options.servers.clone_from(&config.servers);
    let (pin, token) = match config.token.split('.').collect::<Vec<_>>()[..] {
        ["pintle1", pin, id, secret] => (Some(pin.to_owned()), Some(format!("{id}.{secret}"))),
        [""] => (None, None),
        _ => bail!("this is no join token; `pintle token create` prints one"),
    };
    options.token = token;
    options.trust = match (&config.ca_file, pin) {
        (Some(path), _) => Some(Trust::CaFile(path.clone())),
        (None, Some(pin)) => Some(Trust::CaHash(pin)),
        (None, None) => None,
    };
    if let Some(directory) = &config.cni_conf_dir {
        options.network.cni_conf_dir.clone_from(directory);
    }
    options.network.cluster_cidr.clone_from(&config.cluster_cidr);
    options.cluster_domain.clone_from(&config.cluster_domain);
    if let IpAddr::V4(address) = config.cluster_dns {
        options.cluster_dns = address;
    }
    Ok(options)
}

/// Tasks of the agent end within this time; containers go on.
const STOP: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct AgentArgs {
    /// Configuration file (YAML)
    #[arg(long, env = "PINTLE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the node; default: the host's name
    #[arg(long, env = "PINTLE_NODE_NAME")]
    name: Option<String>,
    /// API addresses of servers, host:port; repeat for each
    #[arg(long = "server", env = "PINTLE_SERVERS", value_delimiter = ',')]
    servers: Vec<String>,
    /// Token to join with (`pintle token create`); needed once
    #[arg(long, env = "PINTLE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where data is kept
    #[arg(long, env = "PINTLE_DATA_DIR", value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// Socket of the container runtime (CRI)
    #[arg(long, env = "PINTLE_RUNTIME_ENDPOINT", value_name = "SOCKET")]
    runtime_endpoint: Option<PathBuf>,
    /// Address of this worker that other workers reach
    #[arg(long, env = "PINTLE_NODE_IP", value_name = "ADDRESS")]
    node_ip: Option<IpAddr>,
    /// How pods are run
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Nodes in this one process, `<name>-1` and so on; more than one only with the simulated runtime
    #[arg(long, env = "PINTLE_NODES", value_name = "N")]
    nodes: Option<u16>,
}

/// An agent's configuration file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentConfig {
    pub name: String,
    pub data_dir: PathBuf,
    pub servers: Vec<String>,
    pub token: String,
    pub ca_file: Option<PathBuf>,
    pub node_ip: Option<IpAddr>,
    pub runtime: Runtime,
    pub nodes: u16,
    pub runtime_endpoint: Option<PathBuf>,
    pub cni_conf_dir: Option<PathBuf>,
    pub cluster_domain: String,
    pub cluster_dns: IpAddr,
    pub cluster_cidr: String,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            name: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            data_dir: "/var/lib/pintle-agent".into(),
            servers: Vec::new(),
            token: String::new(),
            ca_file: None,
            node_ip: None,
            runtime: Runtime::Cri,
            nodes: 1,
            runtime_endpoint: None,
            cni_conf_dir: None,
            cluster_domain: "cluster.local".into(),
            cluster_dns: IpAddr::from([10, 96, 0, 10]),
            cluster_cidr: "10.244.0.0/16".into(),
        }
    }
}

impl AgentConfig {
    fn load(args: AgentArgs) -> Result<Self> {
        let mut config = match &args.config {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("read configuration {}", path.display()))?;
                serde_saphyr::from_str(&text).with_context(|| format!("parse configuration {}", path.display()))?
            }
            None => Self::default(),
        };
        config.name = args.name.unwrap_or(config.name);
        config.token = args.token.unwrap_or(config.token);
        config.data_dir = args.data_dir.unwrap_or(config.data_dir);
        config.node_ip = args.node_ip.or(config.node_ip);
        config.runtime = args.runtime.unwrap_or(config.runtime);
        config.nodes = args.nodes.unwrap_or(config.nodes);
        config.runtime_endpoint = args.runtime_endpoint.or(config.runtime_endpoint);
        if !args.servers.is_empty() {
            config.servers = args.servers;
        }
        Ok(config)
    }
}
