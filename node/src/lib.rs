//! The node agent: the pods of this machine, their runtime, volumes, probes, service traffic and cluster DNS.
//!
//! Flow: [`join`] (certificate) → [`agent`] → one connection to a server → watches (pods, services, nodes) → [`pods`] (one
//! worker each) → [`runtime`] → statuses back; beside it [`streams`] (logs, exec), [`network`], [`proxy`] and [`dns`], and
//! the [`checkpoint`] of what is known.
//! Always holds: the agent connects outwards only (D11); running pods and service traffic need no server, also when the
//! agent starts without one (I10); stopping or losing the agent stops no container: the next one adopts what it finds.

mod agent;
mod checkpoint;
pub mod containerd;
pub mod dns;
pub mod images;
pub mod join;
pub mod limits;
mod machine;
pub mod network;
pub mod options;
pub mod pods;
pub mod program;
pub mod proxy;
pub mod runtime;
pub mod streams;
pub mod volumes;

use std::sync::Arc;
use std::time::Duration;

use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_base::task::Group;
use pintle_client::{Connection, remote as client_remote};

pub use checkpoint::forget_secrets;
pub use join::JoinError;
pub use options::{AgentOptions, NetworkOptions, RuntimeChoice, Trust};

use agent::{Agent, Chosen};
use join::Identity;

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("join the cluster")]
    Join(#[source] JoinError),
    #[error("start connection to the servers")]
    Connection(#[source] client_remote::StartError),
    #[error("make data directory {}", path.display())]
    DataDir {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Runs an agent until `group` is told to stop. Containers stay.
///
/// # Errors
/// [`AgentError`] if it cannot begin; once it runs, nothing ends it but `group`.
pub async fn run(options: AgentOptions, group: &Group) -> Result<(), AgentError> {
    let chosen = Chosen::of(&options.runtime);
    run_on(options, chosen, group).await
}

async fn run_on(options: AgentOptions, chosen: Chosen, group: &Group) -> Result<(), AgentError> {
    let options = Arc::new(options);
    std::fs::create_dir_all(&options.data_dir)
        .map_err(|source| AgentError::DataDir { path: options.data_dir.clone(), source })?;
    let token = group.token();
    let identity = tokio::select! {
        identity = join_patiently(&options, group) => identity?,
        () = token.cancelled() => return Ok(()),
    };
    let connection = connect(&options, &identity, group)?;
    let agent = Agent::new(options, identity, connection, chosen, group);
    tokio::select! {
        () = agent.run() => (),
        () = token.cancelled() => (),
    }
    token.cancelled().await;
    Ok(())
}

/// Servers may come up after the agent: what can pass by itself is tried again.
async fn join_patiently(options: &AgentOptions, group: &Group) -> Result<Identity, AgentError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match join::identity(options, group).await {
            Ok(identity) => return Ok(identity),
            Err(error) if error.is_transient() => tracing::warn!(error = %Chain(&error), "not joined yet, will retry"),
            Err(error) => return Err(AgentError::Join(error)),
        }
        clock::sleep(backoff.next_delay()).await;
    }
}

fn connect(options: &AgentOptions, identity: &Identity, group: &Group) -> Result<Connection, AgentError> {
    let endpoints = join::endpoints(&options.servers).map_err(AgentError::Join)?;
    let mut settings = client_remote::Options::new(endpoints, identity.client_config().map_err(AgentError::Join)?);
    settings.server_name.clone_from(&options.server_name);
    Connection::start(settings, group).map_err(AgentError::Connection)
}
