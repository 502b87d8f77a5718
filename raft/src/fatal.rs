//! Why consensus stopped. The first reason wins and stays.

use std::sync::Arc;

use tokio::sync::watch;

/// Why this member's Raft has stopped. Except after [`Fatal::Shutdown`] the process must end: what is in memory cannot be
/// trusted, a restart reads what is on disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// Asked for by [`crate::Handle::shutdown`].
    #[error("raft was shut down")]
    Shutdown,
    #[error("write the raft log: {0}")]
    Log(String),
    #[error("apply to the state machine: {0}")]
    Machine(String),
    #[error("raft core: {0}")]
    Core(String),
}

/// Where reasons are reported and waited for. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct FatalCell(Arc<watch::Sender<Option<Fatal>>>);

impl FatalCell {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Records `reason` unless there is one.
    pub fn report(&self, reason: Fatal) {
        self.0.send_if_modified(|current| {
            if current.is_some() {
                return false;
            }
            if reason != Fatal::Shutdown {
                tracing::error!(error = %reason, "raft failed, the process must end");
            }
            *current = Some(reason);
            true
        });
    }

    /// The reason, if there is one by now.
    pub fn get(&self) -> Option<Fatal> {
        self.0.borrow().clone()
    }

    /// Waits for the reason.
    pub async fn wait(&self) -> Fatal {
        let mut receiver = self.0.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(Fatal::Shutdown),
            Err(_) => Fatal::Shutdown,
        }
    }
}
