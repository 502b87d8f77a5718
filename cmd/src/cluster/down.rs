//! `cluster down`: ends every process of a cluster, takes away what `up` made outside its directory, and the directory.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;

use super::network;
use super::process::Process;
use super::progress::{Output, Progress};
use super::state::Layout;
use super::up::BALANCER;
use super::workers;
use crate::kubeconfig;

/// A server hands its leadership over and an agent says goodbye within this time; then they are killed.
const GRACE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct DownArgs {
    /// Name of the cluster
    #[arg(long, default_value = "default")]
    pub name: String,
    /// Keep the data: the next `cluster up` resumes the same cluster
    #[arg(long)]
    pub keep: bool,
    /// Progress as lines of text or as JSON objects
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

pub async fn run(args: DownArgs) -> Result<()> {
    let layout = Layout::of(&args.name)?;
    let progress = Progress::new(args.output);
    let Some(state) = layout.load()? else {
        progress.note(&format!("there is no cluster {:?}", args.name));
        return Ok(());
    };
    let step = progress.begin("workers");
    let stops = state.agents.iter().map(|agent| workers::stop(&layout, agent, GRACE));
    join_all(stops).await.into_iter().collect::<Result<Vec<()>>>()?;
    progress.done(step, &format!("{} ended, their containers and mounts removed", state.agents.len()));

    let step = progress.begin("servers");
    let processes: Vec<Process> = state.servers.iter().map(|server| Process::of(&layout, &server.name)).collect();
    join_all(processes.iter().map(|process| process.stop(GRACE))).await.into_iter().collect::<Result<Vec<()>>>()?;
    Process::of(&layout, BALANCER).stop(GRACE).await?;
    progress.done(step, &format!("{} ended", state.servers.len()));

    let step = progress.begin("network");
    network::remove(&state)?;
    if layout.run.exists() {
        fs::remove_dir_all(&layout.run).with_context(|| format!("remove {}", layout.run.display()))?;
    }
    // The last cluster of a home takes the home's directory with it; others keep it.
    if let Some(Err(error)) = layout.run.parent().map(fs::remove_dir) {
        tracing::debug!(%error, "run directory of the home stays");
    }
    progress.done(step, "bridge and namespaces removed");

    if let Some(path) = &state.kubeconfig {
        kubeconfig::remove(path, &state.context(), state.previous_context.as_deref())?;
    }
    if args.keep {
        progress.note(&format!(
            "Data kept in {}; resume with: pintle cluster up --name {}",
            layout.root.display(),
            args.name
        ));
    } else {
        for agent in &state.agents {
            pintle_node::forget_secrets(&layout.member(&agent.name).join("data"))
                .context("forget a worker's secrets")?;
        }
        fs::remove_dir_all(&layout.root).with_context(|| format!("remove {}", layout.root.display()))?;
        network::release(&layout, &state)?;
    }
    Ok(())
}
