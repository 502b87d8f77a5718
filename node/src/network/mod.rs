//! The pod network of this node: CNI configuration for the runtime, routes to other nodes' pods, kernel settings.

mod cni;
mod routes;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_client::{Key, SharedReflector};
use tokio::sync::watch;

use crate::limits;
use crate::options::AgentOptions;
use crate::program::{self, ProgramError};

/// Why the pod network is not up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("write CNI configuration")]
    Configuration(#[source] io::Error),
    #[error("{cidr:?} is not a range of IPv4 addresses")]
    Range { cidr: String },
    #[error("set {path}")]
    Kernel {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("give the loopback device the address of cluster DNS")]
    DnsAddress(#[source] ProgramError),
}

/// A range like `10.244.3.0/24`, checked.
pub fn parse_cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let (address, bits) = (address.parse().ok()?, bits.parse().ok()?);
    (bits <= 32).then_some((address, bits))
}

/// Waits until the node has a pod range other than `held`; the first one is other than an empty text.
///
/// A node that was deleted and registered again may be given another range than before.
pub async fn pod_cidr(nodes: &SharedReflector<Node>, name: &str, held: &str) -> String {
    let mut changes = nodes.changes();
    loop {
        let node = nodes.get(&Key::cluster(name));
        let cidr = node.and_then(|node| node.spec.as_ref()?.pod_cidr.clone());
        if let Some(cidr) = cidr.filter(|cidr| !cidr.is_empty() && cidr != held) {
            return cidr;
        }
        changes.changed().await;
    }
}

/// Makes the network of pods in `cidr` ready and tells so; tries until it succeeds.
pub async fn bring_up(options: &AgentOptions, cidr: &str, ready: &watch::Sender<bool>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match try_bring_up(options, cidr).await {
            Ok(()) => break,
            Err(error) => tracing::error!(error = %Chain(&error), "pod network not set up, will retry"),
        }
        clock::sleep(backoff.next_delay()).await;
    }
    ready.send_replace(true);
}

async fn try_bring_up(options: &AgentOptions, cidr: &str) -> Result<(), NetworkError> {
    if parse_cidr(cidr).is_none() {
        return Err(NetworkError::Range { cidr: cidr.to_owned() });
    }
    set("/proc/sys/net/ipv4/ip_forward", "1")?;
    // Without it an answer between two pods of one bridge would not pass the translation its question went through.
    let bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if Path::new(bridged).exists() {
        set(bridged, "1")?;
    } else {
        tracing::warn!("the kernel lacks br_netfilter: pods may not reach services backed by pods of the same node");
    }
    if options.network.dns {
        let address = format!("{}/32", options.cluster_dns);
        program::run("ip", &["address", "replace", &address, "dev", "lo"], None, limits::PROGRAM)
            .await
            .map_err(NetworkError::DnsAddress)?;
    }
    cni::write(&options.network.cni_conf_dir, &options.data_dir, &options.network.bridge, cidr)
        .map_err(NetworkError::Configuration)
}

fn set(path: &'static str, value: &str) -> Result<(), NetworkError> {
    if fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(|source| NetworkError::Kernel { path, source })
}

/// Keeps routes to the pods of all other nodes. Runs until dropped.
pub async fn follow_routes(options: Arc<AgentOptions>, nodes: SharedReflector<Node>) {
    nodes.ready().await;
    let mut changes = nodes.changes();
    let mut wrong = None;
    loop {
        let wanted = routes::wanted(&nodes.list(), &options.node_name);
        if wrong.as_ref() != Some(&wanted) {
            match routes::apply(&wanted).await {
                Ok(()) => wrong = Some(wanted),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "routes not set, will retry");
                    clock::sleep(Duration::from_secs(2)).await;
                    continue;
                }
            }
        }
        changes.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn a_node_registered_anew_is_followed_to_its_new_range() {
        let nodes = SharedReflector::detached();
        let node = |uid: &str, cidr: Option<&str>| {
            let node = json!({ "metadata": { "name": "w1", "uid": uid }, "spec": { "podCIDR": cidr } });
            serde_json::from_value::<Node>(node).expect("node")
        };
        nodes.replace(vec![node("u1", Some("10.244.1.0/24"))]);
        let deadline = Duration::from_secs(60);
        let held = clock::timeout(deadline, pod_cidr(&nodes, "w1", "")).await.expect("in time");
        assert_eq!(held, "10.244.1.0/24");
        let (watched, before) = (nodes.clone(), held.clone());
        let next = tokio::spawn(async move { pod_cidr(&watched, "w1", &before).await });
        nodes.replace(Vec::new());
        nodes.replace(vec![node("u2", None)]);
        clock::sleep(Duration::from_secs(1)).await;
        assert!(!next.is_finished(), "it has no other range yet");
        nodes.replace(vec![node("u2", Some("10.244.9.0/24"))]);
        let next = clock::timeout(deadline, next).await.expect("in time").expect("ends");
        assert_eq!(next, "10.244.9.0/24");
    }
}
