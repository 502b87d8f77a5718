//! A runtime that only keeps books: sandboxes get addresses, containers run at once and for ever, nothing is executed.
//! The agent above is the real one. `nodeInfo.containerRuntimeVersion` says `simulated`, so nobody mistakes it.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pintle_base::{clock, rng};
use pintle_proto::cri_v1 as api;
use serde_json::json;
use tokio::sync::mpsc;

use super::{CommandOutput, Interactive, Runtime, RuntimeError, Sandbox, Wanted, channel, label};

/// Exit code of a stopped container: 128 + SIGTERM.
const STOPPED: i32 = 143;

#[derive(Default)]
struct Books {
    sandboxes: BTreeMap<String, SimulatedSandbox>,
    containers: BTreeMap<String, SimulatedContainer>,
    /// First and last usable address of the node's pod range.
    range: Option<(u32, u32)>,
    used: BTreeMap<u32, String>,
    next: u32,
}

struct SimulatedSandbox {
    config: api::PodSandboxConfig,
    address: Option<Ipv4Addr>,
    ready: bool,
    created_at: i64,
}

struct SimulatedContainer {
    sandbox_id: String,
    config: api::ContainerConfig,
    state: api::ContainerState,
    created_at: i64,
    started_at: i64,
    finished_at: i64,
}

/// See the module's text.
#[derive(Default)]
pub struct SimulatedRuntime {
    books: Mutex<Books>,
}

fn nanos() -> i64 {
    let since = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn matches(labels: &HashMap<String, String>, pod_uid: Option<&str>) -> bool {
    pod_uid.is_none_or(|uid| labels.get(label::POD_UID).is_some_and(|other| other == uid))
}

impl Books {
    /// The next free address, round the range like host-local does, so that addresses are not reused at once.
    fn allocate(&mut self, owner: &str) -> Option<Ipv4Addr> {
        let (first, last) = self.range?;
        let count = last.checked_sub(first)?.checked_add(1)?;
        for step in 0..count {
            let address = first + (self.next.wrapping_add(step)) % count;
            if !self.used.contains_key(&address) {
                self.next = (address - first + 1) % count;
                self.used.insert(address, owner.to_owned());
                return Some(Ipv4Addr::from(address));
            }
        }
        None
    }

    fn container(&mut self, call: &'static str, id: &str) -> Result<&mut SimulatedContainer, RuntimeError> {
        self.containers.get_mut(id).ok_or_else(|| RuntimeError::NotFound { call, message: id.to_owned() })
    }
}

impl SimulatedRuntime {
    /// Addresses for sandboxes come from `cidr` (`10.244.3.0/24`) from now on; anything else is ignored.
    pub fn set_pod_cidr(&self, cidr: &str) {
        let parse = || {
            let (base, bits) = cidr.split_once('/')?;
            let base = u32::from(base.parse::<Ipv4Addr>().ok()?);
            let bits: u32 = bits.parse().ok().filter(|bits| (8..=30).contains(bits))?;
            let size = 1u32 << (32 - bits);
            let first = base & !(size - 1);
            Some((first + 2, first + size - 2)) // .0 is the network, .1 the gateway, the last one broadcast
        };
        if let Some(range) = parse() {
            self.books.lock().range = Some(range);
        }
    }

    /// One line of text and a success status: there is nothing to execute.
    fn explain(wanted: Wanted) -> Interactive {
        let (input, mut ignored) = mpsc::channel::<(u32, Bytes)>(1);
        let (sender, output) = mpsc::channel(2);
        if wanted.stdout {
            let text = Bytes::from_static(b"this node is simulated: nothing runs in its containers\n");
            sender.try_send((channel::STDOUT, text)).unwrap_or_default();
        }
        let status = json!({ "metadata": {}, "status": "Success" }).to_string();
        sender.try_send((channel::ERROR, Bytes::from(status))).unwrap_or_default();
        tokio::spawn(async move { while ignored.recv().await.is_some() {} });
        Interactive { input, output }
    }
}

#[async_trait]
impl Runtime for SimulatedRuntime {
    async fn version(&self) -> Result<String, RuntimeError> {
        Ok(format!("simulated://{}", env!("CARGO_PKG_VERSION")))
    }

    fn is_real(&self) -> bool {
        false
    }

    fn endpoint(&self) -> String {
        "this process".to_owned()
    }

    async fn conditions(&self) -> Result<Vec<api::RuntimeCondition>, RuntimeError> {
        let condition =
            |kind: &str| api::RuntimeCondition { r#type: kind.to_owned(), status: true, ..Default::default() };
        Ok(vec![condition("RuntimeReady"), condition("NetworkReady")])
    }

    async fn run_sandbox(&self, config: api::PodSandboxConfig) -> Result<String, RuntimeError> {
        let id = rng::uuid().replace('-', "");
        let mut books = self.books.lock();
        let network = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let network = network.and_then(|context| context.namespace_options.as_ref()).map(|options| options.network);
        let address = if network == Some(api::NamespaceMode::Node as i32) {
            None
        } else {
            let refused = || RuntimeError::Refused {
                call: "RunPodSandbox",
                message: "no IP addresses available in range".to_owned(),
            };
            Some(books.allocate(&id).ok_or_else(refused)?)
        };
        books.sandboxes.insert(id.clone(), SimulatedSandbox { config, address, ready: true, created_at: nanos() });
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let mut books = self.books.lock();
        let Some(sandbox) = books.sandboxes.get_mut(id) else { return Ok(()) };
        sandbox.ready = false;
        if let Some(address) = sandbox.address.take() {
            books.used.remove(&u32::from(address));
        }
        let now = nanos();
        for container in books.containers.values_mut().filter(|container| container.sandbox_id == id) {
            container.stop(now);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.stop_sandbox(id).await?;
        let mut books = self.books.lock();
        books.sandboxes.remove(id);
        books.containers.retain(|_, container| container.sandbox_id != id);
        Ok(())
    }

    async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<api::PodSandbox>, RuntimeError> {
        let books = self.books.lock();
        let ours = books.sandboxes.iter().filter(|(_, sandbox)| matches(&sandbox.config.labels, pod_uid));
        Ok(ours
            .map(|(id, sandbox)| api::PodSandbox {
                id: id.clone(),
                metadata: sandbox.config.metadata.clone(),
                state: i32::from(!sandbox.ready),
                created_at: sandbox.created_at,
                labels: sandbox.config.labels.clone(),
                annotations: sandbox.config.annotations.clone(),
                runtime_handler: String::new(),
            })
            .collect())
    }

    async fn sandbox(&self, id: &str) -> Result<Sandbox, RuntimeError> {
        let books = self.books.lock();
        let missing = || RuntimeError::NotFound { call: "PodSandboxStatus", message: id.to_owned() };
        let sandbox = books.sandboxes.get(id).ok_or_else(missing)?;
        let ip = sandbox.address.map(|address| address.to_string()).unwrap_or_default();
        let status = api::PodSandboxStatus {
            id: id.to_owned(),
            metadata: sandbox.config.metadata.clone(),
            state: i32::from(!sandbox.ready),
            created_at: sandbox.created_at,
            network: Some(api::PodSandboxNetworkStatus { ip, additional_ips: Vec::new() }),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            ..Default::default()
        };
        Ok(Sandbox { status, network_namespace: None })
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: api::ContainerConfig,
        _sandbox: api::PodSandboxConfig,
    ) -> Result<String, RuntimeError> {
        let mut books = self.books.lock();
        if !books.sandboxes.get(sandbox_id).is_some_and(|sandbox| sandbox.ready) {
            return Err(RuntimeError::NotFound { call: "CreateContainer", message: sandbox_id.to_owned() });
        }
        let id = rng::uuid().replace('-', "");
        let container = SimulatedContainer {
            sandbox_id: sandbox_id.to_owned(),
            config,
            state: api::ContainerState::ContainerCreated,
            created_at: nanos(),
            started_at: 0,
            finished_at: 0,
        };
        books.containers.insert(id.clone(), container);
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let mut books = self.books.lock();
        let container = books.container("StartContainer", id)?;
        container.state = api::ContainerState::ContainerRunning;
        container.started_at = nanos();
        Ok(())
    }

    async fn stop_container(&self, id: &str, _grace: Duration) -> Result<(), RuntimeError> {
        if let Some(container) = self.books.lock().containers.get_mut(id) {
            container.stop(nanos());
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.books.lock().containers.remove(id);
        Ok(())
    }

    async fn containers(&self, pod_uid: Option<&str>) -> Result<Vec<api::Container>, RuntimeError> {
        let books = self.books.lock();
        let ours = books.containers.iter().filter(|(_, container)| matches(&container.config.labels, pod_uid));
        Ok(ours
            .map(|(id, container)| api::Container {
                id: id.clone(),
                pod_sandbox_id: container.sandbox_id.clone(),
                metadata: container.config.metadata.clone(),
                image: container.config.image.clone(),
                image_ref: container.image_name(),
                state: container.state as i32,
                created_at: container.created_at,
                labels: container.config.labels.clone(),
                annotations: container.config.annotations.clone(),
                image_id: container.image_name(),
            })
            .collect())
    }

    async fn container(&self, id: &str) -> Result<api::ContainerStatus, RuntimeError> {
        let mut books = self.books.lock();
        let container = books.container("ContainerStatus", id)?;
        let exited = container.state == api::ContainerState::ContainerExited;
        Ok(api::ContainerStatus {
            id: id.to_owned(),
            metadata: container.config.metadata.clone(),
            state: container.state as i32,
            created_at: container.created_at,
            started_at: container.started_at,
            finished_at: container.finished_at,
            exit_code: if exited { STOPPED } else { 0 },
            image: container.config.image.clone(),
            image_ref: container.image_name(),
            image_id: container.image_name(),
            reason: if exited { "Error".to_owned() } else { String::new() },
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            ..Default::default()
        })
    }

    async fn reopen_log(&self, _id: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn run_command(
        &self,
        _id: &str,
        _command: &[String],
        _limit: Duration,
    ) -> Result<CommandOutput, RuntimeError> {
        Ok(CommandOutput { stdout: Bytes::new(), stderr: Bytes::new(), exit_code: 0 })
    }

    async fn exec(&self, _id: &str, _command: &[String], wanted: Wanted) -> Result<Interactive, RuntimeError> {
        Ok(Self::explain(wanted))
    }

    async fn attach(&self, _id: &str, wanted: Wanted) -> Result<Interactive, RuntimeError> {
        Ok(Self::explain(wanted))
    }

    async fn image(&self, name: &str) -> Result<Option<api::Image>, RuntimeError> {
        Ok(Some(api::Image { id: name.to_owned(), ..Default::default() }))
    }

    async fn pull(&self, name: &str, _auth: Option<api::AuthConfig>) -> Result<String, RuntimeError> {
        Ok(name.to_owned())
    }

    async fn images(&self) -> Result<Vec<api::Image>, RuntimeError> {
        Ok(Vec::new())
    }
}

impl SimulatedContainer {
    fn stop(&mut self, now: i64) {
        if self.state != api::ContainerState::ContainerExited {
            self.state = api::ContainerState::ContainerExited;
            self.finished_at = now;
        }
    }

    fn image_name(&self) -> String {
        self.config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_unique_and_run_out() {
        let runtime = SimulatedRuntime::default();
        assert!(runtime.run_sandbox(api::PodSandboxConfig::default()).await.is_err(), "no range yet");
        runtime.set_pod_cidr("10.244.1.0/29");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..5 {
            let id = runtime.run_sandbox(api::PodSandboxConfig::default()).await.expect("sandbox");
            let sandbox = runtime.sandbox(&id).await.expect("status");
            assert!(seen.insert(sandbox.status.network.expect("network").ip));
        }
        assert!(runtime.run_sandbox(api::PodSandboxConfig::default()).await.is_err(), "range is used up");
        let first = runtime.sandboxes(None).await.expect("list")[0].id.clone();
        runtime.remove_sandbox(&first).await.expect("remove");
        assert!(runtime.run_sandbox(api::PodSandboxConfig::default()).await.is_ok(), "an address came back");
    }
}
