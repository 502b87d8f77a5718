//! One etcd of one member, real or pintle called so, with the real etcdctl as its client; ended when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Ran, free_ports, pintle, ran, tools};

const DEADLINE: Duration = Duration::from_secs(30);
/// No command of a test takes longer.
const COMMAND_SECONDS: &str = "90";

/// The directory of the real etcd and its tools, or why there is none.
pub fn real() -> Result<PathBuf, String> {
    let path = tools().join("sid/usr/bin");
    let missing = ["etcd", "etcdctl", "etcdutl"].into_iter().find(|name| !path.join(name).exists());
    missing
        .map_or(Ok(path.clone()), |name| Err(format!("{name} is not in {}: `make setup` fetches it", path.display())))
}

/// A program without the variables of whoever runs the tests, and with a deadline.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD")) {
        command.env_remove(name);
    }
    command.args(["--kill-after=5", COMMAND_SECONDS]).arg(program).stdin(Stdio::null());
    command
}

pub struct Etcd {
    child: Child,
    directory: PathBuf,
    pub address: String,
    pub peer: String,
}

/// Ports chosen before the start, for data that names them.
pub struct Place {
    pub directory: PathBuf,
    pub address: String,
    pub peer: String,
}

impl Place {
    pub fn new(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("make a directory");
        let ports = free_ports(2);
        let (address, peer) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1]));
        Self { directory: directory.to_owned(), address, peer }
    }

    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Starts `program`, which behaves as etcd because it is one or is called so, and waits until it serves.
    pub fn start(self, program: &Path) -> Etcd {
        let log = std::fs::File::create(self.directory.join("log")).expect("create a log");
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD")) {
            command.env_remove(name);
        }
        let child = command
            .arg("--name=m")
            .arg(format!("--data-dir={}", self.data().display()))
            .args([format!("--listen-peer-urls=http://{}", self.peer)])
            .args([format!("--initial-advertise-peer-urls=http://{}", self.peer)])
            .args([format!("--listen-client-urls=http://{}", self.address)])
            .args([format!("--advertise-client-urls=http://{}", self.address)])
            .args([format!("--initial-cluster=m=http://{}", self.peer)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .expect("start a server");
        let etcd = Etcd { child, directory: self.directory, address: self.address, peer: self.peer };
        let began = Instant::now();
        while !etcd.log().contains("ready to serve client requests") {
            assert!(began.elapsed() < DEADLINE, "it does not serve: {}", etcd.log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
        etcd
    }
}

impl Etcd {
    /// A real one.
    pub fn real(directory: &Path, programs: &Path) -> Self {
        Place::new(directory).start(&programs.join("etcd"))
    }

    /// pintle as one.
    pub fn pintle(directory: &Path) -> Self {
        let place = Place::new(directory);
        let program = directory.join("etcd");
        std::os::unix::fs::symlink(pintle(), &program).expect("link");
        place.start(&program)
    }

    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Runs the real etcdctl.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> Ran {
        let mut command = command(&tools().join("sid/usr/bin/etcdctl"));
        ran(command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.address)).args(arguments))
    }

    /// A client of its own to use the protocol with.
    pub async fn channel(&self) -> tonic::transport::Channel {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.expect("connect")
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
