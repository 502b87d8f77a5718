//! Local clusters: three servers and two workers on one machine, for trying pintle out, for tests and for fault injection.

mod balance;
pub mod control;
mod down;
mod env;
mod network;
pub mod process;
mod progress;
mod reservation;
pub mod state;
mod up;
mod workers;

use anyhow::Result;
use pintle_base::task::Group;

use control::{KillArgs, StartArgs, StatusArgs};
use down::DownArgs;
use env::EnvArgs;
use state::Layout;
use up::UpArgs;

pub use network::run as run_program;
pub use workers::containerd_socket as worker_socket;

#[derive(clap::Subcommand)]
pub enum ClusterCommand {
    /// Start a cluster, or resume one that was stopped with `down --keep` or by a reboot
    Up(UpArgs),
    /// Stop a cluster and remove it
    Down(DownArgs),
    /// Show servers and workers; exit code 5 if the cluster is not healthy
    Status(StatusArgs),
    /// List the clusters of this machine
    List,
    /// Send a signal to a server or worker, to see what the cluster makes of it
    Kill(KillArgs),
    /// Start a server or worker that was killed
    Start(StartArgs),
    /// Print settings for etcdctl and kubectl:  eval "$(pintle cluster env)"
    Env(EnvArgs),
    /// Serve the one local address of a cluster (run by `up`)
    #[command(hide = true)]
    Balance(BalanceArgs),
}

#[derive(clap::Args)]
pub struct BalanceArgs {
    #[arg(long)]
    name: String,
}

pub async fn run(command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Up(args) => up::run(args).await,
        ClusterCommand::Down(args) => down::run(args).await,
        ClusterCommand::Status(args) => control::status(args).await,
        ClusterCommand::List => control::list(),
        ClusterCommand::Kill(args) => control::kill(args).await,
        ClusterCommand::Start(args) => control::start(args).await,
        ClusterCommand::Env(args) => env::run(args),
        ClusterCommand::Balance(args) => balance(&args.name).await,
    }
}

async fn balance(name: &str) -> Result<()> {
    let layout = Layout::of(name)?;
    let state = layout.existing()?;
    let https = control::admin(&layout)?;
    let servers: Vec<_> = state.servers.iter().map(|server| server.api).collect();
    let group = Group::new("balancer");
    crate::signals::stop_on_signal(&group)?;
    balance::run(state.balancer, &servers, https, &group).await
}
