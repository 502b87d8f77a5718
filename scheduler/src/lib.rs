//! Finds nodes for pods: the only thing that binds.
//!
//! Flow: watch → [`queue`] → [`state`] snapshot → [`cycle`] (pure: filter, score) → assume → bind through the API, in a task
//! of its own → the watch confirms. The extension points and their plugins are in [`framework`] and [`plugins`].
//! Always holds: the queue and cache are warm on every server, pods are scheduled on the leader only, and every binding
//! carries its term (I9). A pod is assumed on a node before the next one is looked at, so nodes are not filled twice.

pub mod cycle;
mod driver;
pub mod framework;
mod intake;
pub mod limits;
pub mod plugins;
pub mod queue;
pub mod state;

use pintle_base::task;
use pintle_client::{Clients, LeaderGate, Recorder, Reflectors};

/// What can be set about the scheduler.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// Name of this server, as the published Lease shows it.
    #[serde(skip)]
    pub server: String,
    /// Pods with this `spec.schedulerName` are scheduled.
    pub scheduler_name: String,
    /// Of how many nodes, in percent, fitting ones are looked for; 0 adapts it to the size of the cluster.
    pub percentage_of_nodes_to_score: u8,
}

impl Default for Options {
    fn default() -> Self {
        let (server, scheduler_name) = (String::new(), "default-scheduler".to_owned());
        Self { server, scheduler_name, percentage_of_nodes_to_score: 0 }
    }
}

/// Starts the scheduler in `group`; it schedules while `gate` is open.
///
/// `clients` reaches the API as the scheduler's identity; `reflectors` are shared with the controllers.
pub fn run(clients: Clients, reflectors: Reflectors, gate: LeaderGate, options: &Options, group: &task::Group) {
    let group = group.child("scheduler");
    let recorder = Recorder::start(clients.unfenced(), &options.scheduler_name, "", &group);
    let profile = intake::profile(&reflectors, options);
    let shared = intake::Shared::new(profile);
    intake::connect(&reflectors, &shared);
    let driver = driver::Driver::new(clients, reflectors, recorder, shared, options);
    group.spawn("scheduler", driver.run(gate, group.token()));
}
