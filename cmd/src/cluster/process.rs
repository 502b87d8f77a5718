//! The processes of a local cluster: started detached with a pid file, found again, signalled, ended.
//!
//! Always holds: a signal goes only to a process that is the one we started: the pid file carries the kernel's start
//! time of the process, so a reused pid is never mistaken for ours.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_base::clock;

use super::state::Layout;

/// How often a waiting command looks again.
const POLL: Duration = Duration::from_millis(20);

/// One process that a cluster owns, running or not.
#[derive(Clone, Debug)]
pub struct Process {
    pub name: String,
    pid_file: PathBuf,
    log: PathBuf,
}

/// What to run.
pub struct Program<'a> {
    pub path: &'a Path,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Network namespace to enter first.
    pub namespace: Option<&'a str>,
}

impl Process {
    pub fn of(layout: &Layout, name: &str) -> Self {
        Self { name: name.to_owned(), pid_file: layout.member(name).join("pid"), log: layout.log(name) }
    }

    /// The pid, if the process we started still runs.
    pub fn pid(&self) -> Option<i32> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid)? == started.parse::<u64>().ok()?).then_some(pid)
    }

    /// Starts the program detached from this process and its terminal; output is appended to the log.
    pub fn start(&self, program: &Program<'_>) -> Result<i32> {
        if let Some(pid) = self.pid() {
            return Ok(pid);
        }
        let directory = self.pid_file.parent().context("pid file has a directory")?;
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let mut command = match program.namespace {
            // Only the network namespace is entered: `ip netns exec` would hide the cgroup mounts that runc needs.
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program.path);
                command
            }
            None => Command::new(program.path),
        };
        let child = command
            .args(&program.arguments)
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.path.display()))?;
        let pid = i32::try_from(child.id()).context("pid fits")?;
        let started =
            start_time(pid).with_context(|| format!("{} ended at once; see {}", self.name, self.log.display()))?;
        fs::write(&self.pid_file, format!("{pid} {started}\n"))
            .with_context(|| format!("write {}", self.pid_file.display()))?;
        Ok(pid)
    }

    /// Sends `signal` if the process runs; true if it did.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        let Some(pid) = self.pid() else { return Ok(false) };
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) => Ok(true),
            Err(nix::errno::Errno::ESRCH) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("signal {} (pid {pid})", self.name)),
        }
    }

    /// Ends the process: SIGTERM, then SIGKILL after `grace`. Resolves once it is gone.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        if self.signal(Signal::SIGTERM)? {
            // A stopped process acts on SIGTERM only once it continues.
            self.signal(Signal::SIGCONT)?;
            if !self.gone_within(grace).await {
                tracing::warn!(process = %self.name, "did not end within its grace period, killing it");
                self.signal(Signal::SIGKILL)?;
                if !self.gone_within(Duration::from_secs(5)).await {
                    bail!("{} does not end", self.name);
                }
            }
        }
        match fs::remove_file(&self.pid_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.pid_file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Waits until the process is gone; false if it still runs after `limit`.
    pub async fn gone_within(&self, limit: Duration) -> bool {
        let deadline = clock::now() + limit;
        while self.pid().is_some() {
            if clock::now() >= deadline {
                return false;
            }
            clock::sleep(POLL).await;
        }
        true
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> Option<u64> {
        memory(self.pid()?)
    }

    /// The last lines of the log, for an error message.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
        let lines: Vec<&str> = tail.lines().collect();
        lines[lines.len().saturating_sub(3)..].join("\n")
    }

    pub fn log(&self) -> &Path {
        &self.log
    }
}

/// Resident memory of a process in bytes.
pub fn memory(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Start time of a live process in clock ticks since boot; none if there is no such process or only its zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may contain anything, so count from its closing parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_started_process_is_found_and_ended() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = Layout { name: "t".into(), root: directory.path().into(), run: directory.path().into() };
        let process = Process::of(&layout, "sleeper");
        let program = Program {
            path: Path::new("/bin/sleep"),
            arguments: vec!["60".into()],
            environment: Vec::new(),
            namespace: None,
        };
        let pid = process.start(&program).expect("start");
        assert_eq!(process.pid(), Some(pid));
        assert_eq!(process.start(&program).expect("again"), pid, "a running process is not started twice");
        process.stop(Duration::from_secs(5)).await.expect("stop");
        assert_eq!(process.pid(), None);
    }

    #[test]
    fn a_pid_file_of_another_life_is_not_trusted() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = Layout { name: "t".into(), root: directory.path().into(), run: directory.path().into() };
        let process = Process::of(&layout, "old");
        fs::create_dir_all(layout.member("old")).expect("create");
        fs::write(layout.member("old").join("pid"), format!("{} 1\n", std::process::id())).expect("write");
        assert_eq!(process.pid(), None);
    }
}
