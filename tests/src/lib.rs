//! Everything that needs more than one crate: the layer test, clusters of real processes, real clients.
//!
//! The library holds what these tests share: [`Cluster`], a local cluster of the built `pintle` with a home, kubeconfig
//! and name of its own, which is taken down with everything it started when the test ends, however it ends.

pub mod etcd;
pub mod store;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pintle_base::ports;
use pintle_base::task::Group;
use pintle_jepsen::writers::{self, Log};
use serde_json::Value;
use tempfile::TempDir;

/// No command of a test takes longer; what does is killed and fails the test.
const COMMAND_SECONDS: u64 = 90;

/// The program under test: built by `make build`, the same that users run.
pub fn pintle() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("release/pintle");
    assert!(path.exists(), "{} is not built; run `make build` first", path.display());
    path
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// An empty directory that is removed at the end. By its name `scripts/run-test` finds what a killed test left.
pub fn home() -> TempDir {
    let prefix = format!("pintle-test-{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("make a home")
}

/// Ports that nobody listens on and that no other caller gets.
pub fn free_ports(count: usize) -> Vec<u16> {
    ports::several(count).expect("free ports")
}

/// Where `make setup` unpacks packages, one directory for each Debian suite.
pub fn tools() -> PathBuf {
    std::env::var_os("PINTLE_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        let home = PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
        home.join(".cache/pintle/tools")
    })
}

/// A program that `make setup` unpacked from a newer Debian suite.
pub fn tool(suite: &str, program: &str) -> PathBuf {
    let path = tools().join(suite).join("usr/bin").join(program);
    assert!(path.exists(), "{} is missing; run `make setup` first", path.display());
    path
}

/// Whether real containers can be run here; if not, says why.
pub fn can_run_containers() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    if !Path::new("/usr/bin/containerd").exists() {
        return Err("containerd is not installed".to_owned());
    }
    Ok(())
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "failed\nstdout: {}\nstderr: {}", shorten(&self.stdout), self.stderr);
        self.stdout
    }

    /// Standard error of a command that must fail.
    #[track_caller]
    pub fn fails(self) -> String {
        assert_ne!(self.code, 0, "succeeded\nstdout: {}\nstderr: {}", shorten(&self.stdout), self.stderr);
        self.stderr
    }
}

/// As much of an output as helps in a report.
fn shorten(text: &str) -> String {
    text.chars().take(2000).collect()
}

/// A local cluster of real processes.
pub struct Cluster {
    name: String,
    home: TempDir,
}

impl Cluster {
    /// Brings up `name` with the arguments of `cluster up`, and waits until it is Ready.
    pub fn up(name: &str, arguments: &[&str]) -> Self {
        let cluster = Self::named(name);
        cluster.bring_up(arguments);
        cluster
    }

    /// A name and a home, nothing that runs.
    pub fn named(name: &str) -> Self {
        let home = home();
        // Names are part of interface names and sockets: one per process, so that tests run beside each other.
        Self { name: format!("{name}-{}", std::process::id() % 100_000), home }
    }

    /// `cluster up`, the first time or again.
    #[track_caller]
    pub fn bring_up(&self, arguments: &[&str]) {
        let up = self.pintle(&[&["cluster", "up", "--wait", "80"], arguments].concat());
        assert_eq!(up.code, 0, "cluster up: {}\n{}", up.stderr, self.logs());
    }

    /// A command with a deadline, in the cluster's home.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", &COMMAND_SECONDS.to_string()])
            .arg(program)
            .env("PINTLE_HOME", self.home.path())
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.home.path())
            .stdin(Stdio::null());
        command
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home.path().join("kubeconfig")
    }

    /// Runs `pintle ARGUMENTS --name NAME`.
    pub fn pintle(&self, arguments: &[&str]) -> Ran {
        ran(self.command(&pintle()).args(arguments).args(["--name", &self.name]))
    }

    /// Runs the newest kubectl.
    pub fn kubectl(&self, arguments: &[&str]) -> Ran {
        ran(self.command(&tool("sid", "kubectl")).args(arguments))
    }

    /// Runs an older kubectl.
    pub fn old_kubectl(&self, arguments: &[&str]) -> Ran {
        ran(self.command(&tool("trixie", "kubectl")).args(arguments))
    }

    /// Runs kubectl with `input` on standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Ran {
        use std::io::Write;
        let mut command = self.command(&tool("sid", "kubectl"));
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start kubectl");
        child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("write to kubectl");
        result(child.wait_with_output().expect("wait for kubectl"))
    }

    /// Starts kubectl in the background; the caller ends it.
    pub fn kubectl_background(&self, arguments: &[&str]) -> std::process::Child {
        let mut command = self.command(&tool("sid", "kubectl"));
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start kubectl")
    }

    /// Starts kubectl in the background; what it says can be waited for.
    pub fn kubectl_follow(&self, arguments: &[&str]) -> Following<'_> {
        let mut command = self.command(&tool("sid", "kubectl"));
        Following::start(self, command.args(arguments))
    }

    /// Runs etcdctl against all servers, as the cluster's administrator.
    pub fn etcdctl(&self, arguments: &[&str]) -> Ran {
        let (certificate, key) = self.admin_files();
        self.etcdctl_as(Some((&certificate, &key)), arguments)
    }

    /// Runs etcdctl with the certificate and key of somebody, or with none.
    pub fn etcdctl_as(&self, identity: Option<(&Path, &Path)>, arguments: &[&str]) -> Ran {
        ran(self.etcdctl_command(identity).args(arguments))
    }

    /// Starts etcdctl in the background as administrator.
    pub fn etcdctl_follow(&self, arguments: &[&str]) -> Following<'_> {
        let (certificate, key) = self.admin_files();
        Following::start(self, self.etcdctl_command(Some((&certificate, &key))).args(arguments))
    }

    fn etcdctl_command(&self, identity: Option<(&Path, &Path)>) -> Command {
        let status = self.status();
        let clients = status["servers"].as_array().expect("servers").iter();
        let endpoints: Vec<String> =
            clients.map(|s| format!("https://{}", s["client"].as_str().expect("address"))).collect();
        let mut command = self.command(&tool("sid", "etcdctl"));
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", endpoints.join(",")));
        command.arg(format!("--cacert={}", self.path("pki/ca.crt").display()));
        if let Some((certificate, key)) = identity {
            command.arg(format!("--cert={}", certificate.display())).arg(format!("--key={}", key.display()));
        }
        command
    }

    /// A file with `content` in the cluster's home.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, content).expect("write a file");
        path
    }

    /// Asks the API with curl as administrator, the path sent as it is: the status code, and the body.
    pub fn curl(&self, path: &str, arguments: &[&str]) -> (u16, String) {
        let (certificate, key) = self.admin_files();
        let identity = ["--cert", certificate.to_str().expect("path"), "--key", key.to_str().expect("path")];
        self.curl_as_stranger(path, &[&identity[..], arguments].concat())
    }

    /// Asks the API with curl, without a certificate.
    pub fn curl_as_stranger(&self, path: &str, arguments: &[&str]) -> (u16, String) {
        let api = self.status()["api"].as_str().expect("api").to_owned();
        let ran = ran(self
            .command(Path::new("curl"))
            .args(["-s", "--path-as-is", "-w", "\n%{http_code}", "--cacert"])
            .arg(self.home.path().join(&self.name).join("pki/ca.crt"))
            .args(arguments)
            .arg(format!("https://{api}{path}")));
        let (body, code) = ran.stdout.rsplit_once('\n').unwrap_or_else(|| panic!("curl: {ran:?}"));
        (code.parse().unwrap_or(0), body.to_owned())
    }

    /// The administrator's certificate and key as files.
    fn admin_files(&self) -> (PathBuf, PathBuf) {
        let (certificate, key) = (self.home.path().join("admin.crt"), self.home.path().join("admin.key"));
        if !key.exists() {
            let view = |field: &str| {
                let path = format!("jsonpath={{.users[0].user.{field}}}");
                let text = self.kubectl(&["config", "view", "--raw", "-o", &path]).ok();
                ran_with(Command::new("base64").arg("-d"), &text)
            };
            std::fs::write(&certificate, view("client-certificate-data")).expect("write certificate");
            std::fs::write(&key, view("client-key-data")).expect("write key");
        }
        (certificate, key)
    }

    /// `pintle cluster status -o json`, whatever the cluster's health.
    pub fn status(&self) -> Value {
        let ran = self.pintle(&["cluster", "status", "-o", "json"]);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("status: {error}: {ran:?}"))
    }

    /// The leader's name; waits for one.
    pub fn leader(&self) -> String {
        self.until("a leader", 20, || {
            let status = self.status();
            let servers = status["servers"].as_array()?.clone();
            let leader = servers.iter().find(|server| server["role"] == "leader")?;
            Some(leader["name"].as_str()?.to_owned())
        })
    }

    /// Asks `check` again and again until it has an answer.
    #[track_caller]
    pub fn until<T>(&self, what: &str, seconds: u64, mut check: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(value) = check() {
                return value;
            }
            assert!(Instant::now() < deadline, "{what}: not within {seconds} s\n{}", self.logs());
            std::thread::yield_now();
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// Runs a program in the network of a worker.
    pub fn on_worker(&self, worker: &str, program: &[&str]) -> Ran {
        let state = self.state();
        let agent = state["agents"].as_array().expect("agents").iter().find(|agent| agent["name"] == worker);
        let namespace = agent.expect("a worker")["namespace"].as_str().expect("a namespace").to_owned();
        let entered = format!("--net=/run/netns/{namespace}");
        ran(self.command(Path::new("nsenter")).arg(entered).arg("--").args(program))
    }

    /// Everything a member has logged.
    pub fn log(&self, member: &str) -> String {
        let path = self.home.path().join(&self.name).join(member).join("log");
        String::from_utf8_lossy(&std::fs::read(&path).expect("read a log")).into_owned()
    }

    /// What `up` remembered of the cluster.
    pub fn state(&self) -> Value {
        let text = std::fs::read(self.path("cluster.json")).expect("read the state");
        serde_json::from_slice(&text).expect("the state is JSON")
    }

    /// A file of the cluster.
    pub fn path(&self, file: &str) -> PathBuf {
        self.home.path().join(&self.name).join(file)
    }

    /// The cluster for the parts of fault injection.
    pub fn as_user(&self) -> pintle_jepsen::cluster::Cluster {
        // Several tests of one process may be first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        pintle_jepsen::cluster::Cluster {
            pintle: pintle(),
            name: self.name.clone(),
            home: Some(self.home.path().to_owned()),
        }
    }

    /// A client of the cluster, its connection kept by `group`.
    pub async fn client(&self, group: &Group) -> kube::Client {
        self.as_user().client(group).await.expect("a client of the cluster")
    }

    /// Clients that create objects in `default`, `per_second` all together, each repeated until it is acknowledged.
    ///
    /// To be called inside a tokio runtime, not by one of its tasks.
    pub fn write(&self, clients: u32, per_second: u32, group: &Group) -> Log {
        let (log, handle) = (Log::default(), tokio::runtime::Handle::current());
        for number in 0..clients {
            let client = handle.block_on(self.client(group));
            let period = Duration::from_secs(1) * clients / per_second;
            writers::start(client, "default", &format!("write-{number}"), period, log.clone(), group);
        }
        log
    }

    /// Every process of the cluster with its pid, by name.
    pub fn pids(&self) -> Vec<(String, i64)> {
        let status = self.status();
        let members = ["servers", "agents"].into_iter().flat_map(|kind| status[kind].as_array().cloned());
        let pid = |member: &Value| Some((member["name"].as_str()?.to_owned(), member["pid"].as_i64()?));
        members.flatten().filter_map(|member| pid(&member)).collect()
    }

    /// The end of every process's log, for a failed test's report.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let members = std::fs::read_dir(self.home.path().join(&self.name)).into_iter().flatten().filter_map(Result::ok);
        for member in members {
            let Ok(log) = std::fs::read(member.path().join("log")) else { continue };
            let log = String::from_utf8_lossy(&log[log.len().saturating_sub(3000)..]).into_owned();
            text += &format!("--- {}\n{log}\n", member.file_name().to_string_lossy());
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = self.pintle(&["cluster", "down"]);
        if down.code != 0 && !std::thread::panicking() {
            panic!("cluster down: {}", down.stderr);
        }
    }
}

/// A command in the background. It ends with this value.
pub struct Following<'a> {
    cluster: &'a Cluster,
    child: std::process::Child,
    output: tempfile::NamedTempFile,
}

impl<'a> Following<'a> {
    /// Starts a command that [`Cluster::command`] made; both its outputs are kept.
    pub fn start(cluster: &'a Cluster, command: &mut Command) -> Self {
        let output = tempfile::NamedTempFile::new_in(cluster.home.path()).expect("make a file");
        // Both handles append, so that neither stream writes over the other.
        let append = std::fs::OpenOptions::new().append(true).open(output.path()).expect("open the output");
        let child = command
            .stdout(append.try_clone().expect("share the output"))
            .stderr(append)
            .spawn()
            .expect("start in the background");
        Self { cluster, child, output }
    }

    /// Everything it has said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.output.path()).expect("read the output")).into_owned()
    }

    /// Waits until it has said `what`.
    #[track_caller]
    pub fn until_says(&self, what: &str, seconds: u64) {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !self.said().contains(what) {
            let late = Instant::now() > deadline;
            assert!(!late, "not said within {seconds} s: {what:?}\n{}\n{}", self.said(), self.cluster.logs());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        // `timeout` hands this signal on to the command; killed itself, it would leave it behind.
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
pub fn ran(command: &mut Command) -> Ran {
    result(command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}")))
}

fn ran_with(command: &mut Command, input: &str) -> Vec<u8> {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("write");
    child.wait_with_output().expect("wait").stdout
}

fn result(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
