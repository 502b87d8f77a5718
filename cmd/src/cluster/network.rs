//! Network of a local cluster: a bridge on the host and one namespace per worker, joined by a veth pair.
//!
//! Always holds: every name starts with our prefix and the cluster's octet, creating is idempotent, and removing takes
//! exactly these names away.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::state::{ClusterState, NetworkState};

/// Picks a bridge network no interface of this host uses.
pub fn choose() -> Result<NetworkState> {
    let taken = run("ip", &["-4", "-o", "addr", "show"])?;
    for octet in 0..=254u8 {
        let prefix = format!(" 10.199.{octet}.");
        if !taken.contains(&prefix) {
            return Ok(NetworkState { bridge: format!("pintle{octet}"), octet });
        }
    }
    bail!("all networks 10.199.0.0/24 to 10.199.254.0/24 are in use; remove one: pintle cluster down --name NAME")
}

/// The namespace of worker number `index` (from 1).
pub fn namespace(network: &NetworkState, index: usize) -> String {
    format!("pintle{}-w{index}", network.octet)
}

/// Creates bridge, namespaces and links that are missing.
pub fn create(state: &ClusterState) -> Result<()> {
    let Some(network) = &state.network else { return Ok(()) };
    let bridge = network.bridge.as_str();
    if !Path::new("/sys/class/net").join(bridge).exists() {
        run("ip", &["link", "add", bridge, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{}/24", network.gateway()), "dev", bridge])?;
    }
    run("ip", &["link", "set", bridge, "up"])?;
    for (index, agent) in state.agents.iter().enumerate() {
        let Some(namespace) = &agent.namespace else { continue };
        if Path::new("/run/netns").join(namespace).exists() {
            continue;
        }
        let host_side = format!("{bridge}v{}", index + 1);
        run("ip", &["netns", "add", namespace])?;
        let inside = |arguments: &[&str]| run("ip", &[&["-n", namespace.as_str()], arguments].concat());
        inside(&["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", &host_side, "type", "veth", "peer", "name", "eth0", "netns", namespace])?;
        run("ip", &["link", "set", &host_side, "master", bridge, "up"])?;
        inside(&["addr", "add", &format!("{}/24", agent.address), "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["route", "add", "default", "via", &network.gateway().to_string()])?;
        // Pods are routed between workers, and bridged pods must pass through the service rules.
        for setting in
            ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.bridge.bridge-nf-call-iptables=1"]
        {
            run("nsenter", &[&format!("--net=/run/netns/{namespace}"), "sysctl", "-qw", setting])
                .or_else(|error| if setting.contains("bridge") { Ok(String::new()) } else { Err(error) })?;
        }
    }
    Ok(())
}

/// Removes what [`create`] made; what is gone already is no error.
pub fn remove(state: &ClusterState) -> Result<()> {
    let Some(network) = &state.network else { return Ok(()) };
    for namespace in state.agents.iter().filter_map(|agent| agent.namespace.as_ref()) {
        if Path::new("/run/netns").join(namespace).exists() {
            run("ip", &["netns", "del", namespace])?;
        }
    }
    if Path::new("/sys/class/net").join(&network.bridge).exists() {
        run("ip", &["link", "del", &network.bridge])?;
    }
    Ok(())
}

/// Where programs of administration are, also for a user whose `PATH` lacks them.
pub fn search_path() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::join_paths(std::env::split_paths(&path).chain(extra)).unwrap_or(path)
}

/// Runs a program to its end; its standard output, or an error with what it printed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).env("PATH", search_path()).args(arguments).output().with_context(|| {
            format!("run {program}; is it installed? `make setup` lists and installs what is needed")
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
