//! `pintle agent`: one worker. Its configuration, and the node library around it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use pintle_base::task::Group;
use serde::{Deserialize, Serialize};

use crate::cluster::state::Runtime;

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
    /// How pods are run
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
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
    pub runtime_endpoint: Option<PathBuf>,
    pub cni_conf_dir: Option<PathBuf>,
    pub cluster_domain: String,
    pub cluster_dns: IpAddr,
    pub cluster_cidr: String,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            name: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default(),
            data_dir: "/var/lib/pintle-agent".into(),
            servers: Vec::new(),
            token: String::new(),
            ca_file: None,
            node_ip: None,
            runtime: Runtime::Cri,
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
                let text = std::fs::read_to_string(path).with_context(|| format!("read configuration {}", path.display()))?;
                serde_saphyr::from_str(&text).with_context(|| format!("parse configuration {}", path.display()))?
            }
            None => Self::default(),
        };
        config.name = args.name.unwrap_or(config.name);
        config.token = args.token.unwrap_or(config.token);
        config.data_dir = args.data_dir.unwrap_or(config.data_dir);
        config.runtime = args.runtime.unwrap_or(config.runtime);
        config.runtime_endpoint = args.runtime_endpoint.or(config.runtime_endpoint);
        if !args.servers.is_empty() {
            config.servers = args.servers;
        }
        Ok(config)
    }
}
