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

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
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
    make_data_dir(&options.data_dir)
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

/// Makes the data directory, for its owner only: pods' files are below it with modes that suit the users of containers.
/// The runtime binds them as root; inside a container nobody passes through here.
fn make_data_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?; // not ours: its mode is not, either
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = fs::metadata(path)?;
    if found.mode() & 0o077 == 0 {
        return Ok(());
    }
    // A sticky directory (/tmp) is shared on purpose: closing it would break the machine.
    if found.uid() != nix::unistd::Uid::effective().as_raw() || found.mode() & 0o1000 != 0 {
        tracing::warn!(path = %path.display(), "others may look into the data directory, which is not only this agent's");
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_is_its_owners_alone() {
        let dir = tempfile::tempdir().expect("directory");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
        let path = dir.path().join("parent/data");
        make_data_dir(&path).expect("made");
        assert_eq!(mode(&path), 0o700);
        fs::create_dir(dir.path().join("other")).expect("mkdir");
        let (parent, other) = (dir.path().join("parent"), dir.path().join("other"));
        assert_eq!(mode(&parent), mode(&other), "the parent is not ours");
        fs::create_dir(path.join("pods")).expect("mkdir");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("as an earlier agent made it");
        make_data_dir(&path).expect("tightened");
        assert_eq!(mode(&path), 0o700);
        assert!(path.join("pods").is_dir(), "what is below stays");
    }

    #[test]
    fn a_directory_shared_on_purpose_stays_open() {
        let dir = tempfile::tempdir().expect("directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).expect("as /tmp");
        make_data_dir(dir.path()).expect("used");
        assert_eq!(fs::metadata(dir.path()).expect("there").mode() & 0o7777, 0o1777);
    }
}
