//! Registers the node and keeps its status true: at once when readiness changes, every ten seconds when something else
//! did, every five minutes otherwise.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_client::object::time_now;
use pintle_client::{Key, SharedReflector};
use serde_json::json;
use tokio::sync::watch;

use super::Machine;
use super::node::{self, Situation};
use crate::options::AgentOptions;
use crate::runtime::Runtime;

const LOOK: Duration = Duration::from_secs(2);
const REPORT_CHANGED: Duration = Duration::from_secs(10);
const REPORT_ANYWAY: Duration = Duration::from_secs(300);

/// Everything the heartbeat looks at.
pub struct Heartbeat {
    pub options: Arc<AgentOptions>,
    pub machine: Machine,
    pub client: kube::Client,
    pub runtime: Arc<dyn Runtime>,
    pub nodes: SharedReflector<Node>,
    /// Whether the pod network of this node is set up.
    pub network: watch::Receiver<bool>,
}

/// Creates the Node object, or brings an existing one up to date. Tries until it succeeds.
async fn register(options: &AgentOptions, machine: &Machine, client: &kube::Client, runtime: &dyn Runtime) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let situation = Situation {
            runtime_version: runtime.version().await.unwrap_or_default(),
            problems: vec!["container runtime network not ready: waiting for the node's pod range".to_owned()],
            images: Vec::new(),
        };
        match try_register(options, machine, client, &situation).await {
            Ok(_) => return,
            Err(error) => tracing::warn!(error = %Chain(&error), "node not registered, will retry"),
        }
        clock::sleep(backoff.next_delay()).await;
    }
}

async fn try_register(
    options: &AgentOptions,
    machine: &Machine,
    client: &kube::Client,
    situation: &Situation,
) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let wanted = node::registration(options, machine, situation, &time_now());
    match api.create(&PostParams::default(), &wanted).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let body = json!({ "metadata": { "labels": wanted.metadata.labels } });
            api.patch(&options.node_name, &PatchParams::default(), &Patch::Merge(body)).await
        }
        other => other,
    }
}

/// What was last told, to the API and to the log.
#[derive(Default)]
struct Told {
    at: Option<clock::Instant>,
    gone: bool,
}

impl Heartbeat {
    /// Registers the node, then keeps its status true. Runs until dropped.
    pub async fn run(mut self) {
        register(&self.options, &self.machine, &self.client, self.runtime.as_ref()).await;
        let mut changes = self.nodes.changes();
        let mut told = Told::default();
        let mut images = Vec::new();
        let mut images_read = None::<clock::Instant>;
        loop {
            let mut situation = self.situation().await;
            if images_read.is_none_or(|at| at.elapsed() >= REPORT_CHANGED) {
                images_read = Some(clock::now());
                images = node::images(self.runtime.images().await.unwrap_or_default());
            }
            situation.images.clone_from(&images);
            let known = self.nodes.get(&Key::cluster(self.options.node_name.clone()));
            let old = known.as_ref().and_then(|node| node.status.clone()).unwrap_or_default();
            let status = node::status(
                &self.options,
                &self.machine,
                &situation,
                old.conditions.as_deref().unwrap_or_default(),
                &time_now(),
            );
            let age = told.at.map(|at| at.elapsed());
            let due = match age {
                None => true,
                Some(age) if ready(&old) != ready(&status) => age >= LOOK / 4,
                Some(age) => age >= REPORT_ANYWAY || (age >= REPORT_CHANGED && node::differs(&old, &status)),
            };
            if due {
                self.report(status.clone(), &mut told).await;
            }
            tokio::select! {
                () = clock::sleep(if ready(&status) == Some("True") { LOOK } else { LOOK / 10 }) => (),
                () = changes.changed() => clock::sleep(LOOK / 10).await,
                changed = self.network.changed() => {
                    if changed.is_err() {
                        return; // the agent is stopping
                    }
                }
            }
        }
    }

    async fn report(&self, status: NodeStatus, told: &mut Told) {
        let api: Api<Node> = Api::all(self.client.clone());
        let body = json!({ "status": status });
        match api.patch_status(&self.options.node_name, &PatchParams::default(), &Patch::Merge(body)).await {
            Ok(_) => *told = Told { at: Some(clock::now()), gone: false },
            Err(kube::Error::Api(status)) if status.code == 404 => {
                // Somebody took the node out of the cluster. Coming back by itself it would be schedulable again.
                if !std::mem::replace(&mut told.gone, true) {
                    tracing::warn!("the node object was deleted; restart this agent to register the node again");
                }
            }
            Err(error) => tracing::debug!(error = %Chain(&error), "node status not reported, will retry"),
        }
    }

    async fn situation(&self) -> Situation {
        let mut problems = Vec::new();
        let runtime_version = match self.runtime.version().await {
            Ok(version) => version,
            Err(error) => {
                problems.push(format!("container runtime is down: {}", Chain(&error)));
                String::new()
            }
        };
        if problems.is_empty() {
            match self.runtime.conditions().await {
                Ok(conditions) => {
                    let bad = conditions.into_iter().filter(|condition| !condition.status);
                    problems.extend(bad.map(|condition| {
                        format!(
                            "container runtime: {} is false: {} {}",
                            condition.r#type, condition.reason, condition.message
                        )
                    }));
                }
                Err(error) => problems.push(format!("container runtime is down: {}", Chain(&error))),
            }
        }
        if !*self.network.borrow() {
            problems.push("container runtime network not ready: waiting for the node's pod range".to_owned());
        }
        Situation { runtime_version, problems, images: Vec::new() }
    }
}

fn ready(status: &NodeStatus) -> Option<&str> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready")
        .map(|condition| condition.status.as_str())
}
