//! Named groups of tasks. A task belongs to a group, stops by the group's token, and a panic in one is reported and
//! stops the group: a half-dead process is worse than a restarted one.
//!
//! Always holds: after [`Group::stop`] returned `Ok`, no task of the group runs.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Cheap to clone; clones are the same group.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    name: &'static str,
    stop: CancellationToken,
    tasks: TaskTracker,
    panicked: Mutex<Option<String>>,
}

/// Tasks that had not ended when the time for stopping was over.
#[derive(Debug, thiserror::Error)]
#[error("{count} tasks of group {group} did not stop within {limit:?}")]
pub struct StopTimeout {
    pub group: &'static str,
    pub count: usize,
    pub limit: Duration,
}

impl Group {
    pub fn new(name: &'static str) -> Self {
        Self::with_token(name, CancellationToken::new())
    }

    /// A group inside this one: stopped with it, or alone.
    pub fn child(&self, name: &'static str) -> Self {
        Self::with_token(name, self.inner.stop.child_token())
    }

    fn with_token(name: &'static str, stop: CancellationToken) -> Self {
        Self { inner: Arc::new(Inner { name, stop, tasks: TaskTracker::new(), panicked: Mutex::new(None) }) }
    }

    /// The token every task of the group watches.
    pub fn token(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// Spawns `future` under `name`. It must end soon after the group's token is cancelled.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        self.inner.tasks.spawn(async move {
            if let Err(panic) = std::panic::AssertUnwindSafe(future).catch_unwind().await {
                let text = panic_text(&*panic);
                tracing::error!(group = inner.name, task = name, panic = %text, "task panicked");
                *inner.panicked.lock() = Some(format!("{}/{name}: {text}", inner.name));
                inner.stop.cancel();
            }
        });
    }

    /// Spawns `future` and drops it at its next await once the group stops. For tasks with nothing to clean up.
    pub fn spawn_until_stopped<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.token();
        self.spawn(name, async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => (),
                () = future => (),
            }
        });
    }

    /// Resolves when the group was told to stop, also by a panic inside it.
    pub async fn stopping(&self) {
        self.inner.stop.cancelled().await;
    }

    /// The first panic seen, as `group/task: text`.
    pub fn panicked(&self) -> Option<String> {
        self.inner.panicked.lock().clone()
    }

    /// Cancels the token and waits for all tasks.
    ///
    /// # Errors
    /// [`StopTimeout`] if some still run after `limit`; they are left running.
    pub async fn stop(&self, limit: Duration) -> Result<(), StopTimeout> {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        tokio::time::timeout(limit, self.inner.tasks.wait()).await.map_err(|_| StopTimeout {
            group: self.inner.name,
            count: self.inner.tasks.len(),
            limit,
        })
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stop_waits_for_tasks_that_watch_the_token() {
        let group = Group::new("test");
        let token = group.token();
        group.spawn("watcher", async move { token.cancelled().await });
        group.stop(Duration::from_secs(1)).await.expect("stops");
    }

    #[tokio::test(start_paused = true)]
    async fn stop_names_the_tasks_that_ignore_it() {
        let group = Group::new("test");
        group.spawn("stubborn", std::future::pending());
        let error = group.stop(Duration::from_secs(1)).await.expect_err("cannot stop");
        assert_eq!(error.count, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_stops_the_group() {
        let group = Group::new("test");
        group.spawn("broken", async { panic!("boom") });
        group.stopping().await;
        assert_eq!(group.panicked().as_deref(), Some("test/broken: boom"));
    }
}
