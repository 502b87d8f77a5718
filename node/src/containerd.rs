//! A containerd of one worker: its directories, its configuration, its process.
//!
//! Several workers of one machine each have their own (root, state, socket, CNI directory), inside their own network
//! namespace. Containers outlive it: shims hold them, so a restart of containerd or of the agent stops no pod (I10).

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pintle_base::clock;

use crate::images::PAUSE_IMAGE;
use crate::runtime::{CriRuntime, Runtime, RuntimeError};

/// Where a worker's containerd lives. All paths are absolute.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Images and snapshots; large, kept over restarts.
    pub root: PathBuf,
    /// Run-time state: mounts, fifos, the socket. Short, because socket paths are bounded at 107 bytes.
    pub state: PathBuf,
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dir: PathBuf,
    /// The process's own log.
    pub log: PathBuf,
}

impl Layout {
    /// The usual places below a worker's data and run directories.
    pub fn below(data: &Path, run: &Path) -> Self {
        Self {
            root: data.join("containerd"),
            state: run.join("containerd"),
            cni_conf_dir: data.join("cni"),
            cni_bin_dir: PathBuf::from("/usr/lib/cni"),
            log: data.join("containerd.log"),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.state.join("containerd.sock")
    }

    pub fn config_path(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The configuration file's text.
    pub fn config(&self) -> String {
        let quote = |path: &Path| format!("{:?}", path.to_string_lossy());
        let restricted = !may_lower_oom_score(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        format!(
            r#"version = 2
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = {socket}

[plugins."io.containerd.internal.v1.opt"]
  path = {opt}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = {restricted}

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = {cni_bin}
  conf_dir = {cni_conf}
  max_conf_num = 1

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"#,
            root = quote(&self.root),
            state = quote(&self.state),
            socket = quote(&self.socket()),
            opt = quote(&self.root.join("opt")),
            cni_bin = quote(&self.cni_bin_dir),
            cni_conf = quote(&self.cni_conf_dir),
        )
    }

    /// Makes the directories and writes the configuration.
    ///
    /// # Errors
    /// The I/O error, with the path in its text.
    pub fn prepare(&self) -> io::Result<()> {
        for dir in [&self.root, &self.state, &self.cni_conf_dir] {
            fs::create_dir_all(dir).map_err(|error| at(dir, &error))?;
        }
        fs::write(self.config_path(), self.config()).map_err(|error| at(&self.config_path(), &error))
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Whether `status` (of /proc/self/status) shows CAP_SYS_RESOURCE, without which runc cannot lower an OOM score.
fn may_lower_oom_score(status: &str) -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & CAP_SYS_RESOURCE != 0)
}

/// Why containerd does not run.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    #[error("prepare containerd's directories")]
    Prepare(#[source] io::Error),
    #[error("start containerd (is it installed?)")]
    Start(#[source] io::Error),
    #[error("containerd ended with {status} while starting; its log is {}", log.display())]
    Ended { status: String, log: PathBuf },
    #[error("containerd did not answer within {limit:?}; its log is {}", log.display())]
    NotReady {
        limit: Duration,
        log: PathBuf,
        #[source]
        source: Option<RuntimeError>,
    },
}

/// Writes the configuration and starts containerd in this thread's network namespace, in a session of its own.
///
/// # Errors
/// [`ContainerdError::Prepare`] or [`ContainerdError::Start`].
pub fn start(layout: &Layout) -> Result<Child, ContainerdError> {
    layout.prepare().map_err(ContainerdError::Prepare)?;
    let log = fs::OpenOptions::new().create(true).append(true).open(&layout.log).map_err(ContainerdError::Prepare)?;
    let again = log.try_clone().map_err(ContainerdError::Prepare)?;
    Command::new("containerd")
        .arg("--config")
        .arg(layout.config_path())
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(again)
        .process_group(0) // a terminal's Ctrl-C is for the command, not for containerd
        .spawn()
        .map_err(ContainerdError::Start)
}

/// Waits until the CRI of a started containerd answers.
///
/// # Errors
/// [`ContainerdError`] if the process ends or `limit` passes.
pub async fn ready(layout: &Layout, child: &mut Child, limit: Duration) -> Result<(), ContainerdError> {
    let deadline = clock::now() + limit;
    let runtime = CriRuntime::new(&layout.socket());
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(ContainerdError::Ended { status: status.to_string(), log: layout.log.clone() });
        }
        let answer = runtime.version().await;
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if clock::now() >= deadline => {
                return Err(ContainerdError::NotReady { limit, log: layout.log.clone(), source: Some(error) });
            }
            Err(_) => clock::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Stops and removes every pod of the containerd at `socket`: what a worker does before it leaves for good.
///
/// # Errors
/// The first [`RuntimeError`]; the remaining pods are still tried.
pub async fn remove_all_pods(socket: &Path) -> Result<usize, RuntimeError> {
    let runtime = CriRuntime::new(socket);
    let sandboxes = runtime.sandboxes(None).await?;
    let count = sandboxes.len();
    let removals = sandboxes.into_iter().map(|sandbox| {
        let runtime = &runtime;
        async move {
            runtime.stop_sandbox(&sandbox.id).await?;
            runtime.remove_sandbox(&sandbox.id).await
        }
    });
    let results: Vec<_> = futures::StreamExt::collect::<Vec<_>>(futures::StreamExt::buffer_unordered(
        futures::stream::iter(removals),
        crate::limits::STARTS_IN_FLIGHT,
    ))
    .await;
    results.into_iter().find_map(Result::err).map_or(Ok(count), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_decides_about_oom_scores() {
        assert!(may_lower_oom_score("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_lower_oom_score("CapEff:\t000001fffeffffff\n"));
        assert!(!may_lower_oom_score("nonsense"));
    }

    #[test]
    fn the_configuration_names_this_workers_places() {
        let layout = Layout::below(Path::new("/data/w1"), Path::new("/run/w1"));
        let text = layout.config();
        for part in
            ["\"/data/w1/containerd\"", "\"/run/w1/containerd/containerd.sock\"", "\"/data/w1/cni\"", PAUSE_IMAGE]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
