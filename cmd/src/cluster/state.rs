//! What `cluster` commands remember of a local cluster: names, addresses, where things are. One JSON file per cluster.
//!
//! Always holds: whatever `up` creates outside the cluster's directory (bridge, namespaces, kubeconfig entries) is named
//! here before it is created, so `down` can remove it after any crash.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::agent::node_names;
use crate::exit::{self, Exit};
use crate::pki::{private_directory, write_private};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterState {
    pub name: String,
    pub servers: Vec<ServerState>,
    pub agents: Vec<AgentState>,
    /// The one local address that balances over the servers.
    pub balancer: SocketAddr,
    pub network: Option<NetworkState>,
    /// Where the nodes' pod ranges are cut from.
    #[serde(default = "default_cluster_cidr")]
    pub cluster_cidr: String,
    /// Kubeconfig file that got our context, and the context that was current before.
    pub kubeconfig: Option<PathBuf>,
    pub previous_context: Option<String>,
}

fn default_cluster_cidr() -> String {
    crate::agent::AgentConfig::default().cluster_cidr
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServerState {
    pub name: String,
    pub id: u64,
    pub api: SocketAddr,
    pub client: SocketAddr,
    pub peer: SocketAddr,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AgentState {
    pub name: String,
    pub runtime: Runtime,
    /// Address of the worker on the cluster's bridge; loopback for simulated ones.
    pub address: IpAddr,
    /// Network namespace of the worker; none for simulated ones.
    pub namespace: Option<String>,
    /// Nodes in this one process; more than one only if they are simulated.
    #[serde(default = "one")]
    pub nodes: u16,
}

fn one() -> u16 {
    1
}

impl AgentState {
    /// Names under which the worker's nodes are registered.
    pub fn node_names(&self) -> Vec<String> {
        node_names(&self.name, self.nodes)
    }

    /// Whether every node of this worker is among `ready`.
    pub fn is_ready(&self, ready: &BTreeSet<String>) -> bool {
        self.node_names().iter().all(|name| ready.contains(name))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Real containers by containerd, each worker in a network namespace of its own. Needs root.
    Cri,
    /// The same agent without containers: for scale tests, and where there is no root.
    Simulated,
}

/// The bridge that connects workers with the host: `10.199.<octet>.0/24`, the host is `.1`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NetworkState {
    pub bridge: String,
    pub octet: u8,
}

impl NetworkState {
    pub fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 199, self.octet, host)
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.address(1)
    }
}

/// Where the files of one cluster are.
#[derive(Clone, Debug)]
pub struct Layout {
    pub name: String,
    pub root: PathBuf,
    /// Sockets and other files that need not survive a reboot.
    pub run: PathBuf,
}

impl Layout {
    /// The layout of cluster `name`.
    ///
    /// # Errors
    /// If the name is no DNS label of at most 20 characters: it becomes part of interface and context names.
    pub fn of(name: &str) -> Result<Self> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty()
            || name.len() > 20
            || !name.chars().all(valid)
            || name.starts_with('-')
            || name.ends_with('-')
        {
            bail!("cluster name {name:?}: use 1 to 20 lower-case letters, digits and inner dashes");
        }
        let home = home()?;
        let run = run_directory(&home, nix::unistd::geteuid().is_root());
        Ok(Self { name: name.to_owned(), root: home.join(name), run: run.join(name) })
    }

    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    pub fn member(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.member(name).join("log")
    }

    pub fn state_file(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    pub fn load(&self) -> Result<Option<ClusterState>> {
        match fs::read_to_string(self.state_file()) {
            Ok(text) => {
                Ok(Some(serde_json::from_str(&text).with_context(|| format!("parse {}", self.state_file().display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", self.state_file().display())),
        }
    }

    pub fn existing(&self) -> Result<ClusterState> {
        self.load()?.ok_or_else(|| {
            let name = &self.name;
            let message = format!("there is no cluster {name:?}; start it with: pintle cluster up --name {name}");
            exit::with(Exit::NotFound, message)
        })
    }

    pub fn save(&self, state: &ClusterState) -> Result<()> {
        private_directory(&self.root)?;
        write_private(&self.state_file(), &serde_json::to_string_pretty(state)?)
    }
}

/// `$PINTLE_HOME`, else `~/.local/share/pintle`.
pub fn home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("PINTLE_HOME") {
        return std::path::absolute(Path::new(&home)).context("make PINTLE_HOME absolute");
    }
    let home = std::env::var_os("HOME").context("neither PINTLE_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".local/share/pintle"))
}

/// Where root keeps clusters unless told otherwise.
const ROOT_HOME: &str = "/root/.local/share/pintle";

/// Where sockets of the clusters below `home` are.
///
/// For root it is short, because a socket's path has at most 107 bytes, and of its own for each home, because clusters of two
/// homes may have the same name.
fn run_directory(home: &Path, root: bool) -> PathBuf {
    if !root {
        return home.join("run");
    }
    if home == Path::new(ROOT_HOME) {
        return PathBuf::from("/run/pintle");
    }
    // By components, so that `/a/b` and `/a//b/` are one home.
    let normal: PathBuf = home.components().collect();
    let digest = Sha256::digest(normal.as_os_str().as_encoded_bytes());
    PathBuf::from(format!("/run/pintle-{}", hex::encode(&digest[..4])))
}

/// Names of all clusters below [`home`].
pub fn clusters() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(home()?) else { return Ok(Vec::new()) };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("cluster.json").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

impl ClusterState {
    pub fn context(&self) -> String {
        format!("pintle-{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["", "..", "a/b", "A", "-a", "a-", "a b", "abcdefghijklmnopqrstu", "ü"] {
            assert!(Layout::of(name).is_err(), "{name:?}");
        }
        assert!(Layout::of("default").is_ok());
    }

    #[test]
    fn homes_do_not_share_a_run_directory_and_sockets_fit_into_their_paths() {
        let run = |home: &str, root| run_directory(Path::new(home), root).display().to_string();
        assert_eq!(run(ROOT_HOME, true), "/run/pintle");
        assert_eq!(run("/home/me/pintle", false), "/home/me/pintle/run");
        let (first, second) = (run("/srv/a", true), run("/srv/b", true));
        assert!(first.starts_with("/run/pintle-") && first != second, "{first} {second}");
        assert_eq!(first, run("/srv//a/", true));
        let long = "x".repeat(4000);
        let below = run_directory(Path::new(&format!("/{long}")), true).join("a".repeat(20)).join("w200");
        let places = pintle_node::containerd::Layout::below(Path::new("/"), &below);
        assert!(places.socket().as_os_str().len() <= 107 - ".ttrpc".len(), "{:?}", places.socket());
    }
}
