//! What runs containers, behind one trait (D12): [`CriRuntime`] speaks CRI v1 to containerd or CRI-O,
//! [`SimulatedRuntime`] keeps the same books without running anything, for scale and for machines without root.
//!
//! The vocabulary is CRI's own; nothing above this module knows which of the two it talks to.

mod cri;
mod simulated;
mod spdy;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pintle_proto::cri_v1 as cri_api;
use tokio::sync::mpsc;

pub use cri::CriRuntime;
pub use simulated::SimulatedRuntime;
pub use spdy::failure;

/// Why the runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("{call}: not found: {message}")]
    NotFound { call: &'static str, message: String },
    #[error("{call}: container runtime is not reachable: {message}")]
    Unavailable { call: &'static str, message: String },
    #[error("{call}: no answer within {limit:?}")]
    Deadline { call: &'static str, limit: Duration },
    /// The text is the runtime's own: users search for it.
    #[error("{message}")]
    Refused { call: &'static str, message: String },
    #[error("{call}: answer without {field}")]
    Incomplete { call: &'static str, field: &'static str },
    #[error("open stream to the container")]
    Stream(#[source] std::io::Error),
}

impl RuntimeError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// A sandbox as the agent needs to know it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub status: cri_api::PodSandboxStatus,
    /// Path of the pod's network namespace; none with host network or without real containers.
    pub network_namespace: Option<PathBuf>,
}

/// What a finished command left behind.
#[derive(Clone, Debug)]
pub struct CommandOutput {
    pub stdout: Bytes,
    pub stderr: Bytes,
    pub exit_code: i32,
}

/// Channels of the remote command protocol.
pub mod channel {
    pub const STDIN: u32 = 0;
    pub const STDOUT: u32 = 1;
    pub const STDERR: u32 = 2;
    pub const ERROR: u32 = 3;
    pub const RESIZE: u32 = 4;
    /// The payload's first byte names the channel whose sender is done.
    pub const CLOSE: u32 = 255;
}

/// A running exec or attach: frames in both directions, each with its channel.
/// `output` ends after the frame on [`channel::ERROR`]; dropping both ends the stream.
pub struct Interactive {
    pub input: mpsc::Sender<(u32, Bytes)>,
    pub output: mpsc::Receiver<(u32, Bytes)>,
}

/// Which of the streams an exec or attach wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// One node's container runtime.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// `name://version`, as in `nodeInfo.containerRuntimeVersion`.
    async fn version(&self) -> Result<String, RuntimeError>;
    /// Whether there are real containers, networks and files behind the answers.
    fn is_real(&self) -> bool;
    /// Where it is, for people who look for it.
    fn endpoint(&self) -> String;
    async fn conditions(&self) -> Result<Vec<cri_api::RuntimeCondition>, RuntimeError>;

    async fn run_sandbox(&self, config: cri_api::PodSandboxConfig) -> Result<String, RuntimeError>;
    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError>;
    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError>;
    /// All sandboxes, or those of the pod with this uid.
    async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<cri_api::PodSandbox>, RuntimeError>;
    async fn sandbox(&self, id: &str) -> Result<Sandbox, RuntimeError>;

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: cri_api::ContainerConfig,
        sandbox: cri_api::PodSandboxConfig,
    ) -> Result<String, RuntimeError>;
    async fn start_container(&self, id: &str) -> Result<(), RuntimeError>;
    /// Sends the stop signal, and SIGKILL after `grace`. Returns when the container has ended.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError>;
    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError>;
    async fn containers(&self, pod_uid: Option<&str>) -> Result<Vec<cri_api::Container>, RuntimeError>;
    async fn container(&self, id: &str) -> Result<cri_api::ContainerStatus, RuntimeError>;
    async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError>;

    async fn run_command(&self, id: &str, command: &[String], limit: Duration) -> Result<CommandOutput, RuntimeError>;
    async fn exec(&self, id: &str, command: &[String], wanted: Wanted) -> Result<Interactive, RuntimeError>;
    async fn attach(&self, id: &str, wanted: Wanted) -> Result<Interactive, RuntimeError>;

    /// The image with this name if it is here.
    async fn image(&self, name: &str) -> Result<Option<cri_api::Image>, RuntimeError>;
    /// Fetches an image and returns its reference.
    async fn pull(&self, name: &str, auth: Option<cri_api::AuthConfig>) -> Result<String, RuntimeError>;
    async fn images(&self) -> Result<Vec<cri_api::Image>, RuntimeError>;
}

/// Labels and annotations under which the agent finds its own pods again; the names that crictl shows.
pub mod label {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Hash of the parts of the container's spec that demand a new container when they change.
    pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const TERMINATION_FILE: &str = "pintle.io/termination-file";
    pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
}
