//! Workers of a local cluster: their containerd, their images, their agent, and taking all of it away again.
//!
//! Always holds: [`stop`] ends only processes whose shim names this worker's containerd socket, and unmounts only below
//! this worker's directories; it works also when containerd or the agent are dead.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_base::clock;

use super::network;
use super::process::{Process, Program};
use super::state::{AgentState, ClusterState, Layout, Runtime};
use super::up;
use crate::agent::AgentConfig;
use crate::exit::{self, Exit};
use crate::images;
use crate::pki::Authority;

/// Containerd answers within this time after its start.
const CONTAINERD_TIMEOUT: Duration = Duration::from_secs(15);
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks what real containers need on this machine, and says what it found.
pub fn preflight() -> Result<String> {
    let mut missing = Vec::new();
    for (program, package) in [
        ("containerd", "containerd"),
        ("runc", "runc"),
        ("nft", "nftables"),
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("sysctl", "procps"),
    ] {
        if find(program).is_none() {
            missing.push(package);
        }
    }
    if !Path::new("/usr/lib/cni/bridge").exists() {
        missing.push("containernetworking-plugins");
    }
    if !missing.is_empty() {
        return Err(exit::with(
            Exit::Usage,
            format!("missing on this machine: {}; run `make setup`, or install these packages", missing.join(", ")),
        ));
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = release.trim().split('-').next().unwrap_or("?").to_owned();
    let cgroups = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1" };
    let nft = network::run("nft", &["--version"])?.split_whitespace().nth(1).unwrap_or("?").to_owned();
    Ok(format!("kernel {kernel}, cgroup {cgroups}, root, nft {nft}"))
}

fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&network::search_path()).map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// Starts a worker unless it runs: containerd in its namespace, the built-in images, the agent.
pub async fn start(
    layout: &Layout,
    state: &ClusterState,
    agent: &AgentState,
    join: &str,
    binary: &Path,
    authority: &Authority,
) -> Result<()> {
    let directory = layout.member(&agent.name);
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let mut config = AgentConfig {
        name: agent.name.clone(),
        data_dir: directory.join("data"),
        servers: state.servers.iter().map(|server| server.api.to_string()).collect(),
        token: join.to_owned(),
        ca_file: Some(authority.certificate_path()),
        node_ip: Some(agent.address),
        runtime: agent.runtime,
        nodes: agent.nodes,
        cluster_cidr: state.cluster_cidr.clone(),
        ..AgentConfig::default()
    };
    if agent.runtime == Runtime::Cri {
        let places = containerd_layout(layout, &agent.name);
        start_containerd(layout, agent, &places).await?;
        images::load_builtin(&places.socket()).await?;
        config.runtime_endpoint = Some(places.socket());
        config.cni_conf_dir = Some(places.cni_conf_dir.clone());
    }
    up::start_agent(layout, agent, &config, binary)
}

/// Whether every node of the worker has its certificate, so that it needs no token.
pub fn has_joined(layout: &Layout, agent: &AgentState) -> bool {
    let data = layout.member(&agent.name).join("data");
    let of = |node: &String| if agent.nodes > 1 { data.join(node) } else { data.clone() };
    agent.node_names().iter().all(|node| matches!(pintle_node::join::Identity::load(&of(node)), Ok(Some(_))))
}

fn containerd_layout(layout: &Layout, worker: &str) -> pintle_node::containerd::Layout {
    pintle_node::containerd::Layout::below(&layout.member(worker), &layout.run.join(worker))
}

/// The containerd socket of a worker.
pub fn containerd_socket(layout: &Layout, worker: &str) -> PathBuf {
    containerd_layout(layout, worker).socket()
}

fn containerd_process(layout: &Layout, worker: &str) -> Process {
    Process::of(layout, &format!("{worker}-containerd"))
}

async fn start_containerd(layout: &Layout, agent: &AgentState, places: &pintle_node::containerd::Layout) -> Result<()> {
    let process = containerd_process(layout, &agent.name);
    if process.pid().is_none() {
        places.prepare().context("prepare containerd's directories")?;
        let path = find("containerd").context("containerd is not installed; run `make setup`")?;
        let program = Program {
            path: &path,
            arguments: vec!["--config".into(), places.config_path().display().to_string()],
            environment: Vec::new(),
            namespace: agent.namespace.as_deref(),
        };
        process.start(&program)?;
    }
    let deadline = clock::now() + CONTAINERD_TIMEOUT;
    while !images::answers(&places.socket()).await {
        if process.pid().is_none() || clock::now() > deadline {
            bail!(
                "containerd of {} does not answer; the last it said, in {}:\n{}",
                agent.name,
                process.log().display(),
                process.last_words()
            );
        }
        clock::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Ends a worker with everything it started. Idempotent.
pub async fn stop(layout: &Layout, agent: &AgentState, grace: Duration) -> Result<()> {
    Process::of(layout, &agent.name).stop(grace).await?;
    if agent.runtime == Runtime::Simulated {
        return Ok(());
    }
    // Containerd first, so that nothing is started while its shims and their containers are ended.
    containerd_process(layout, &agent.name).stop(grace).await?;
    let socket = containerd_socket(layout, &agent.name);
    let ended = end_containers(&socket).await?;
    remove_namespaces(&ended.networks)?;
    for directory in [layout.run.join(&agent.name), layout.member(&agent.name)] {
        unmount_below(&directory)?;
    }
    remove_groups(&ended.groups);
    Ok(())
}

/// What containers leave behind: their cgroups, and the inodes of their network namespaces.
#[derive(Default)]
struct Ended {
    groups: BTreeSet<PathBuf>,
    networks: BTreeSet<u64>,
}

/// Kills every shim of the containerd at `socket` with all its descendants.
async fn end_containers(socket: &Path) -> Result<Ended> {
    let deadline = clock::now() + KILL_TIMEOUT;
    let mut ended = Ended::default();
    loop {
        let victims = shims_and_descendants(socket);
        if victims.is_empty() {
            return Ok(ended);
        }
        if clock::now() > deadline {
            bail!("{} processes of containers at {} do not end", victims.len(), socket.display());
        }
        for pid in victims {
            ended.groups.extend(cgroups_of(pid));
            ended.networks.extend(fs::metadata(format!("/proc/{pid}/ns/net")).map(|meta| meta.ino()).ok());
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => (),
                Err(error) => return Err(error).with_context(|| format!("kill process {pid} of a container")),
            }
        }
        clock::sleep(Duration::from_millis(20)).await;
    }
}

/// Pids of the shims that serve `socket` and of everything below them. Shims adopt the processes of their containers.
fn shims_and_descendants(socket: &Path) -> Vec<i32> {
    let socket = socket.to_string_lossy();
    let pids: Vec<i32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let parent = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        (fields.next()? != "Z").then_some(())?;
        fields.next()?.parse().ok()
    };
    let is_shim = |pid: i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        words.next().is_some_and(|program| program.contains("containerd-shim")) && words.any(|word| word == socket)
    };
    let parents: Vec<(i32, i32)> = pids.iter().filter_map(|pid| Some((*pid, parent(*pid)?))).collect();
    let mut victims: Vec<i32> = parents.iter().map(|(pid, _)| *pid).filter(|pid| is_shim(*pid)).collect();
    let mut next = 0;
    while next < victims.len() {
        let of = victims[next];
        for (pid, parent) in &parents {
            if *parent == of && !victims.contains(pid) {
                victims.push(*pid);
            }
        }
        next += 1;
    }
    victims
}

/// Removes the pods' network namespaces that containerd had made: those of `/run/netns` with one of these inodes.
fn remove_namespaces(networks: &BTreeSet<u64>) -> Result<()> {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with("cni-")
            && fs::metadata(&path).is_ok_and(|meta| networks.contains(&meta.ino()));
        if ours {
            umount2(&path, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", path.display()))?;
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Directories of the pod cgroups a process is in.
fn cgroups_of(pid: i32) -> Vec<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let path = path.strip_prefix('/')?;
            path.starts_with("kubepods").then(|| Path::new("/sys/fs/cgroup").join(controllers).join(path))
        })
        .collect()
}

/// Removes empty pod cgroups, the container's first, then the pod's. Busy ones belong to somebody who still lives.
fn remove_groups(groups: &BTreeSet<PathBuf>) {
    for group in groups.iter().rev() {
        for directory in group.ancestors().take_while(|path| path.to_string_lossy().contains("kubepods/")) {
            if let Err(error) = fs::remove_dir(directory) {
                tracing::debug!(%error, directory = %directory.display(), "cgroup stays");
                break;
            }
        }
    }
}

/// Unmounts everything below `directory`, the deepest first.
fn unmount_below(directory: &Path) -> Result<()> {
    // The kernel tells of mounts without symbolic links; the home may lie behind one.
    let Ok(directory) = directory.canonicalize() else { return Ok(()) };
    let table = fs::read_to_string("/proc/self/mounts").context("read the mount table")?;
    for point in mounts_below(&table, &directory) {
        umount2(&point, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}

fn mounts_below(table: &str, directory: &Path) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(directory))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_deepest_first_and_only_below() {
        let table = "a /run/x/w1 tmpfs rw\nb /run/x/w1/a\\040b/c tmpfs rw\nc /run/x/w11 tmpfs rw\nd /run/x/w1/a\\040b tmpfs rw\n";
        let found = mounts_below(table, Path::new("/run/x/w1"));
        assert_eq!(found, ["/run/x/w1/a b/c", "/run/x/w1/a b", "/run/x/w1"].map(PathBuf::from));
    }
}
