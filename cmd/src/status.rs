//! `pintle status`: one screen for people. Who leads, which workers are Ready, and the next command to type.

use anyhow::Result;

use crate::cluster::control;
use crate::cluster::state::Layout;
use crate::exit::{self, Exit};

#[derive(clap::Args)]
pub struct StatusArgs {
    /// Name of the local cluster
    #[arg(long, default_value = "default")]
    pub name: String,
}

pub async fn run(args: StatusArgs) -> Result<()> {
    let layout = Layout::of(&args.name)?;
    let Some(state) = layout.load()? else {
        println!("There is no cluster {:?} on this machine.\n\n  pintle cluster up      start one", args.name);
        return Err(exit::with(Exit::NotFound, "nothing to show".to_owned()));
    };
    let status = control::read(&layout, &state).await?;
    let up: Vec<_> = status.servers.iter().filter(|server| server.role != "down").collect();
    let leader = up.iter().find(|server| server.role == "leader");
    let ready = status.agents.iter().filter(|agent| agent.ready).count();
    println!(
        "{}/{} servers up, {}, {}/{} workers Ready. API at https://{}.",
        up.len(),
        status.servers.len(),
        leader.map_or("no leader".to_owned(), |server| format!("{} leads since term {}", server.name, server.term)),
        ready,
        status.agents.len(),
        status.api
    );
    let down = status.servers.iter().filter(|server| server.role == "down").map(|server| &server.name);
    let gone = status.agents.iter().filter(|agent| agent.pid.is_none()).map(|agent| &agent.name);
    let mut healthy = leader.is_some() && ready == status.agents.len() && status.balancer_runs;
    if !status.balancer_runs {
        println!("  the balancer at {} does not run: pintle cluster start balancer", status.api);
    }
    for member in down.chain(gone) {
        println!("  {member} does not run or does not answer: pintle cluster start {member}");
        healthy = false;
    }
    if healthy {
        println!("\n  kubectl get pods -A       what runs\n  pintle cluster status     members in detail");
        return Ok(());
    }
    for agent in status.agents.iter().filter(|agent| agent.pid.is_some() && !agent.ready) {
        println!("  {} is not Ready; its log: {}", agent.name, layout.log(&agent.name).display());
    }
    Err(exit::with(Exit::Unhealthy, "the cluster is not healthy".to_owned()))
}
