//! SIGTERM and SIGINT stop a process's task group; a second one ends the process at once.

use anyhow::{Context, Result};
use nix::sys::signal::{SigHandler, Signal};
use pintle_base::task::Group;
use tokio::signal::unix::{SignalKind, signal};

/// A command whose reader went away (`pintle status | head -1`) ends silently, as every program of a pipeline does.
///
/// Not for servers and agents: a broken pipe of their log must not end them.
pub fn end_with_the_reader() {
    // SAFETY: called before any thread is started; the default action needs no handler.
    #[allow(unsafe_code)]
    let restored = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    if let Err(error) = restored {
        tracing::debug!(%error, "SIGPIPE stays ignored");
    }
}

pub fn stop_on_signal(group: &Group) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let token = group.token();
    tokio::spawn(async move {
        let mut code = 143;
        for _ in 0..2 {
            code = tokio::select! {
                _ = terminate.recv() => 143,
                _ = interrupt.recv() => 130,
            };
            if token.is_cancelled() {
                break;
            }
            tracing::info!("stopping");
            token.cancel();
        }
        std::process::exit(code);
    });
    Ok(())
}
