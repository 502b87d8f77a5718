//! Network of a local cluster: a bridge on the host and one namespace per worker, joined by a veth pair.
//!
//! Flow: [`reserve`] an octet of this machine → look at what there is ([`Seen`]) → [`plan`] (pure) → commands.
//! Always holds: every name starts with our prefix and the cluster's octet; an octet belongs to one cluster from its first
//! `up` to its removal, also while it is down; each step is decided by what is there, so an interrupted `up` is repaired by
//! the next; removing takes exactly these names away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::statfs::{FsType, statfs};

use super::reservation::Reservations;
use super::state::{ClusterState, Layout, NetworkState, clusters};

/// File system of mounted namespaces.
const NSFS: FsType = FsType(0x6e73_6673);
const NAMESPACES: &str = "/run/netns";
const INTERFACES: &str = "/sys/class/net";

/// Settings of each worker. Pods are routed between workers, and bridged pods must pass through the service rules; the last
/// one exists only where the kernel's module for it is loaded.
const SETTINGS: [(&str, bool); 3] = [
    ("net.ipv4.ip_forward=1", true),
    ("net.ipv4.conf.all.rp_filter=0", true),
    ("net.bridge.bridge-nf-call-iptables=1", false),
];

/// Picks a bridge network that no interface of this host uses and no other cluster has, and reserves it for `layout`.
pub fn choose(layout: &Layout) -> Result<NetworkState> {
    let reservations = Reservations::of_machine();
    let addresses = run("ip", &["-4", "-o", "addr", "show"])?;
    let recorded = recorded()?;
    for octet in (0..=254u8).filter(|octet| !is_used(&addresses, *octet) && !recorded.contains(octet)) {
        if reservations.take(octet, &layout.state_file())?.is_none() {
            return Ok(NetworkState { bridge: format!("pintle{octet}"), octet });
        }
    }
    bail!("all networks 10.199.0.0/24 to 10.199.254.0/24 are in use; remove one: pintle cluster down --name NAME")
}

/// Networks of the clusters of this home: their records may be older than reservations.
fn recorded() -> Result<Vec<u8>> {
    let states = clusters()?.into_iter().map(|name| Layout::of(&name)?.load()).collect::<Result<Vec<_>>>()?;
    Ok(states.into_iter().flatten().filter_map(|state| state.network).map(|network| network.octet).collect())
}

/// True if an interface has an address of network `octet`, in the words of `ip -o addr`.
fn is_used(addresses: &str, octet: u8) -> bool {
    addresses.contains(&format!(" 10.199.{octet}."))
}

/// Reserves the network a cluster already has: its record may be older than reservations.
///
/// # Errors
/// If another cluster of this machine has it.
pub fn reserve(layout: &Layout, state: &ClusterState) -> Result<()> {
    let Some(network) = &state.network else { return Ok(()) };
    match Reservations::of_machine().take(network.octet, &layout.state_file())? {
        None => Ok(()),
        Some(other) => bail!(
            "the network 10.199.{}.0/24 of cluster {} belongs to the cluster in {}; remove one of the two",
            network.octet,
            state.name,
            other.parent().unwrap_or(&other).display()
        ),
    }
}

/// Gives the network of a removed cluster to others.
pub fn release(layout: &Layout, state: &ClusterState) -> Result<()> {
    match &state.network {
        Some(network) => Reservations::of_machine().release(network.octet, &layout.state_file()),
        None => Ok(()),
    }
}

/// The namespace of worker number `index` (from 1).
pub fn namespace(network: &NetworkState, index: usize) -> String {
    format!("pintle{}-w{index}", network.octet)
}

/// Creates what is missing of bridge, namespaces and links, and mends what is half-made.
pub fn create(state: &ClusterState) -> Result<()> {
    let Some(network) = &state.network else { return Ok(()) };
    let seen = Seen { bridge: Path::new(INTERFACES).join(&network.bridge).exists() };
    for step in bridge_steps(network, &seen) {
        step.run()?;
    }
    for (index, agent) in state.agents.iter().enumerate() {
        let Some(namespace) = &agent.namespace else { continue };
        let link = Link {
            namespace,
            host: format!("{}v{}", network.bridge, index + 1),
            address: format!("{}/24", agent.address),
        };
        for step in namespace_steps(&link, look_at_namespace(namespace)?) {
            step.run()?;
        }
        for step in link_steps(network, &link, look_at_link(&link)) {
            step.run()?;
        }
    }
    Ok(())
}

/// What there is of the host's side.
struct Seen {
    bridge: bool,
}

/// The connection of one worker.
struct Link<'a> {
    namespace: &'a str,
    /// Name of the veth's end on the host; the other is `eth0`.
    host: String,
    address: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Missing,
    /// The file is there, but no namespace is mounted on it: `ip netns add` was interrupted.
    Broken,
    There,
}

/// What there is of a worker's veth pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    /// Index of the host's end.
    host: Option<u32>,
    /// Whether the worker has an `eth0`, and the index of its other end.
    inside: Option<Option<u32>>,
}

/// A command, and whether its failure matters.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    program: &'static str,
    arguments: Vec<String>,
    must: bool,
}

impl Step {
    fn ip(arguments: &[&str]) -> Self {
        Self { program: "ip", arguments: arguments.iter().map(|word| (*word).to_owned()).collect(), must: true }
    }

    fn optional(self) -> Self {
        Self { must: false, ..self }
    }

    fn run(&self) -> Result<()> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        match run(self.program, &arguments) {
            Err(error) if self.must => Err(error),
            _ => Ok(()),
        }
    }
}

/// `replace` and `set` are right however often they are said; only what cannot be said twice is asked for first.
fn bridge_steps(network: &NetworkState, seen: &Seen) -> Vec<Step> {
    let bridge = network.bridge.as_str();
    let add = (!seen.bridge).then(|| Step::ip(&["link", "add", bridge, "type", "bridge"]));
    add.into_iter()
        .chain([
            Step::ip(&["addr", "replace", &format!("{}/24", network.gateway()), "dev", bridge]),
            Step::ip(&["link", "set", bridge, "up"]),
        ])
        .collect()
}

fn namespace_steps(link: &Link<'_>, seen: Namespace) -> Vec<Step> {
    let remove = (seen == Namespace::Broken).then(|| Step::ip(&["netns", "del", link.namespace]));
    let add = (seen != Namespace::There).then(|| Step::ip(&["netns", "add", link.namespace]));
    remove.into_iter().chain(add).chain([Step::ip(&["-n", link.namespace, "link", "set", "lo", "up"])]).collect()
}

fn link_steps(network: &NetworkState, link: &Link<'_>, seen: Ends) -> Vec<Step> {
    let (namespace, host, bridge) = (link.namespace, link.host.as_str(), network.bridge.as_str());
    let gateway = network.gateway().to_string();
    let joined = seen.host.is_some() && seen.inside == Some(seen.host);
    let mut steps = Vec::new();
    if !joined {
        // Ends of another pair. They may go by themselves at any moment, with their peer or its namespace.
        steps.extend(seen.host.map(|_| Step::ip(&["link", "del", host]).optional()));
        steps.extend(seen.inside.map(|_| Step::ip(&["-n", namespace, "link", "del", "eth0"]).optional()));
        steps.push(Step::ip(&["link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", namespace]));
    }
    steps.extend([
        Step::ip(&["link", "set", host, "master", bridge, "up"]),
        Step::ip(&["-n", namespace, "addr", "replace", &link.address, "dev", "eth0"]),
        Step::ip(&["-n", namespace, "link", "set", "eth0", "up"]),
        Step::ip(&["-n", namespace, "route", "replace", "default", "via", &gateway]),
    ]);
    steps.extend(SETTINGS.map(|(setting, must)| Step {
        program: "nsenter",
        arguments: [&format!("--net={NAMESPACES}/{namespace}"), "sysctl", "-qw", setting].map(str::to_owned).into(),
        must,
    }));
    steps
}

fn look_at_namespace(name: &str) -> Result<Namespace> {
    match statfs(&Path::new(NAMESPACES).join(name)) {
        Ok(found) if found.filesystem_type() == NSFS => Ok(Namespace::There),
        Ok(_) => Ok(Namespace::Broken),
        Err(nix::errno::Errno::ENOENT) => Ok(Namespace::Missing),
        Err(error) => Err(error).with_context(|| format!("look at network namespace {name}")),
    }
}

fn look_at_link(link: &Link<'_>) -> Ends {
    let index = PathBuf::from(INTERFACES).join(&link.host).join("ifindex");
    let host = fs::read_to_string(index).ok().and_then(|text| text.trim().parse().ok());
    // Fails if there is no such interface.
    let inside = run("ip", &["-n", link.namespace, "-o", "link", "show", "dev", "eth0"]).ok();
    Ends { host, inside: inside.map(|line| peer_index(&line)) }
}

/// The index of the other end of a veth, from a line such as `2: eth0@if17: <...`.
fn peer_index(line: &str) -> Option<u32> {
    let rest = line.split_once("@if")?.1;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Removes what [`create`] made; what is gone already is no error.
pub fn remove(state: &ClusterState) -> Result<()> {
    let Some(network) = &state.network else { return Ok(()) };
    for namespace in state.agents.iter().filter_map(|agent| agent.namespace.as_ref()) {
        if Path::new(NAMESPACES).join(namespace).exists() {
            run("ip", &["netns", "del", namespace])?;
        }
    }
    if Path::new(INTERFACES).join(&network.bridge).exists() {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkState {
        NetworkState { bridge: "pintle7".into(), octet: 7 }
    }

    fn link() -> Link<'static> {
        Link { namespace: "pintle7-w1", host: "pintle7v1".into(), address: "10.199.7.11/24".into() }
    }

    /// The commands that change more than a value, joined.
    fn made(steps: &[Step]) -> String {
        let words = steps.iter().map(|step| step.arguments.join(" "));
        words.filter(|line| line.contains(" add ") || line.contains(" del ")).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_used_network_is_told_from_its_neighbours() {
        let addresses = "5: pintle1    inet 10.199.1.1/24 brd 10.199.1.255 scope global pintle1";
        assert!(is_used(addresses, 1) && !is_used(addresses, 10) && !is_used(addresses, 11));
    }

    #[test]
    fn the_bridge_gets_its_address_also_when_it_was_there_already() {
        let steps = |bridge| bridge_steps(&network(), &Seen { bridge });
        assert_eq!(made(&steps(false)), "link add pintle7 type bridge");
        assert_eq!(made(&steps(true)), "");
        assert!(steps(true).contains(&Step::ip(&["addr", "replace", "10.199.7.1/24", "dev", "pintle7"])));
    }

    #[test]
    fn a_half_made_namespace_is_made_again() {
        let steps = |seen| made(&namespace_steps(&link(), seen));
        assert_eq!(steps(Namespace::Missing), "netns add pintle7-w1");
        assert_eq!(steps(Namespace::Broken), "netns del pintle7-w1; netns add pintle7-w1");
        assert_eq!(steps(Namespace::There), "");
    }

    #[test]
    fn only_ends_of_one_pair_are_kept() {
        let add = "link add pintle7v1 type veth peer name eth0 netns pintle7-w1";
        let (del_host, del_inside) = ("link del pintle7v1", "-n pintle7-w1 link del eth0");
        let cases = [
            (None, None, add.to_owned()),
            (Some(9), Some(Some(9)), String::new()),
            (Some(9), None, format!("{del_host}; {add}")),
            (None, Some(Some(4)), format!("{del_inside}; {add}")),
            (Some(9), Some(Some(4)), format!("{del_host}; {del_inside}; {add}")),
            (Some(9), Some(None), format!("{del_host}; {del_inside}; {add}")),
        ];
        for (host, inside, want) in cases {
            let steps = link_steps(&network(), &link(), Ends { host, inside });
            assert_eq!(made(&steps), want, "{host:?} {inside:?}");
            assert!(steps.contains(&Step::ip(&[
                "-n",
                "pintle7-w1",
                "addr",
                "replace",
                "10.199.7.11/24",
                "dev",
                "eth0"
            ])));
        }
    }

    #[test]
    fn the_other_end_is_read_from_what_ip_prints() {
        assert_eq!(peer_index("2: eth0@if17: <BROADCAST,MULTICAST,UP> mtu 1500"), Some(17));
        assert_eq!(peer_index("2: eth0: <BROADCAST> mtu 1500"), None);
        assert_eq!(peer_index("2: eth0@if99999999999: <"), None);
    }
}
