//! The pods of this node: one worker per pod, from assignment to confirmed deletion.
//!
//! Flow: watch of `spec.nodeName` → [`dispatch`] → [`worker`] (looks, [`plan`]s, acts) → runtime; and back: [`seen`] →
//! [`status`] → [`statuses`] → API. I10: workers go on without a server; a restarted agent adopts what it finds running,
//! also when it knows its pods from a checkpoint only.

mod cgroups;
pub mod config;
mod dispatch;
pub mod downward;
pub mod env;
mod hooks;
mod images;
mod plan;
mod probers;
mod probes;
pub mod references;
pub mod resources;
pub mod seen;
mod start;
mod status;
mod statuses;
mod stop;
pub mod tokens;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use parking_lot::RwLock;
use pintle_client::{Recorder, SharedReflector};
use tokio::sync::Semaphore;

pub use dispatch::Dispatch;
pub use statuses::{PodId, Statuses};

use crate::runtime::{Runtime, RuntimeError};
use config::NodeFacts;
use references::References;
use resources::Amounts;
use seen::{SandboxSeen, Seen};
use tokens::Tokens;

/// What all workers share.
pub struct Context {
    pub node_name: String,
    pub data_dir: PathBuf,
    pub host_ips: Vec<String>,
    pub facts: NodeFacts,
    pub allocatable: Amounts,
    pub runtime: Arc<dyn Runtime>,
    /// `containerd`, once the runtime has said its name.
    pub runtime_name: RwLock<String>,
    pub services: SharedReflector<Service>,
    pub recorder: Recorder,
    pub references: References,
    pub tokens: Tokens,
    pub statuses: Statuses,
    pub starts: Semaphore,
}

impl Context {
    pub fn new(
        client: kube::Client,
        statuses: Statuses,
        recorder: Recorder,
        services: SharedReflector<Service>,
        runtime: Arc<dyn Runtime>,
        node: NodePlace,
    ) -> Self {
        Self {
            node_name: node.name,
            data_dir: node.data_dir,
            host_ips: node.host_ips,
            facts: node.facts,
            allocatable: node.allocatable,
            runtime,
            runtime_name: RwLock::new("containerd".to_owned()),
            services,
            recorder,
            references: References::new(client.clone()),
            tokens: Tokens::new(client),
            statuses,
            starts: Semaphore::new(crate::limits::STARTS_IN_FLIGHT),
        }
    }

    /// Everything the runtime has of the pod with this uid, newest first.
    pub async fn look(&self, uid: &str) -> Result<Seen, RuntimeError> {
        let mut seen = Seen::default();
        for sandbox in self.runtime.sandboxes(Some(uid)).await? {
            match self.runtime.sandbox(&sandbox.id).await {
                Ok(found) => seen.sandboxes.push(sandbox_seen(found)),
                Err(error) if error.is_not_found() => (),
                Err(error) => return Err(error),
            }
        }
        for container in self.runtime.containers(Some(uid)).await? {
            match self.runtime.container(&container.id).await {
                Ok(status) => seen.containers.push(seen::container(status, &container.pod_sandbox_id)),
                Err(error) if error.is_not_found() => (),
                Err(error) => return Err(error),
            }
        }
        seen.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.ready, sandbox.created_at)));
        seen.containers.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created_at)));
        Ok(seen)
    }
}

/// What this node is and where it keeps things.
pub struct NodePlace {
    pub name: String,
    pub data_dir: PathBuf,
    pub host_ips: Vec<String>,
    pub facts: NodeFacts,
    pub allocatable: Amounts,
}

fn sandbox_seen(found: crate::runtime::Sandbox) -> SandboxSeen {
    let status = found.status;
    let network = status.network.unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    SandboxSeen {
        id: status.id,
        ready: status.state == pintle_proto::cri_v1::PodSandboxState::SandboxReady as i32,
        attempt: status.metadata.map_or(0, |metadata| metadata.attempt),
        created_at: status.created_at,
        ips: ips.filter(|ip| !ip.is_empty()).collect(),
        network_namespace: found.network_namespace,
    }
}

/// What a worker is to bring about.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub pod: Arc<Pod>,
    /// The API has no such pod any more: end it without asking further.
    pub gone: bool,
}
