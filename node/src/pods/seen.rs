//! What the runtime shows of one pod, in the agent's own terms.

use std::path::PathBuf;

use pintle_proto::cri_v1 as api;

use crate::runtime::label;

/// A pod sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxSeen {
    pub id: String,
    pub ready: bool,
    pub attempt: u32,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub ips: Vec<String>,
    pub network_namespace: Option<PathBuf>,
}

/// The life of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Made but never started: an agent died in between, or a start failed.
    #[default]
    Created,
    Running,
    Exited,
    /// The runtime lost track of it.
    Unknown,
}

/// One container, running or ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSeen {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    pub attempt: u32,
    pub state: State,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_id: String,
    /// Hash of the spec it was made from.
    pub hash: String,
    /// File on this machine that the container writes its last words to.
    pub termination_file: Option<PathBuf>,
    pub log_path: PathBuf,
}

impl ContainerSeen {
    pub fn running(&self) -> bool {
        self.state == State::Running
    }

    pub fn exited(&self) -> bool {
        self.state == State::Exited
    }
}

/// Everything the runtime has of one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub sandboxes: Vec<SandboxSeen>,
    pub containers: Vec<ContainerSeen>,
}

impl Seen {
    /// The sandbox new containers go into.
    pub fn sandbox(&self) -> Option<&SandboxSeen> {
        self.sandboxes.iter().find(|sandbox| sandbox.ready)
    }

    /// The newest container of this name.
    pub fn latest(&self, name: &str) -> Option<&ContainerSeen> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The newest container of this name inside the current sandbox.
    pub fn current(&self, name: &str) -> Option<&ContainerSeen> {
        let sandbox = self.sandbox()?;
        self.latest(name).filter(|container| container.sandbox_id == sandbox.id)
    }

    /// The container of this name that ended before `than`.
    pub fn before(&self, than: &ContainerSeen) -> Option<&ContainerSeen> {
        self.containers.iter().find(|other| other.name == than.name && other.id != than.id && other.exited())
    }

    pub fn anything_runs(&self) -> bool {
        self.sandbox().is_some() || self.containers.iter().any(ContainerSeen::running)
    }
}

/// Reads a container's state from the runtime's status.
pub fn container(status: api::ContainerStatus, sandbox_id: &str) -> ContainerSeen {
    let label = |name: &str| status.labels.get(name).cloned().unwrap_or_default();
    let note = |name: &str| status.annotations.get(name).cloned();
    let metadata = status.metadata.clone().unwrap_or_default();
    let state = match api::ContainerState::try_from(status.state) {
        Ok(api::ContainerState::ContainerCreated) => State::Created,
        Ok(api::ContainerState::ContainerRunning) => State::Running,
        Ok(api::ContainerState::ContainerExited) => State::Exited,
        Ok(api::ContainerState::ContainerUnknown) | Err(_) => State::Unknown,
    };
    let attempt = note(label::RESTART_COUNT).and_then(|text| text.parse().ok()).unwrap_or(metadata.attempt);
    ContainerSeen {
        name: label(label::CONTAINER_NAME),
        sandbox_id: sandbox_id.to_owned(),
        attempt,
        state,
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_id: if status.image_ref.is_empty() { status.image_id } else { status.image_ref },
        hash: note(label::CONTAINER_HASH).unwrap_or_default(),
        termination_file: note(label::TERMINATION_FILE).filter(|path| !path.is_empty()).map(PathBuf::from),
        log_path: PathBuf::from(status.log_path),
        id: status.id,
        reason: status.reason,
        message: status.message,
    }
}
