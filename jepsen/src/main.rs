//! The command line of fault injection.
//!
//! `failover` kills the leader again and again under writes and reports how long nobody could write, how long the
//! controllers were away, and whether anything that was acknowledged is missing.
#![allow(clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use pintle_jepsen::cluster::Cluster;
use pintle_jepsen::failover;

/// Fault injection for pintle clusters.
#[derive(Parser)]
#[command(name = "pintle-jepsen", version)]
struct Cli {
    /// The pintle program
    #[arg(long, global = true, default_value = "target/release/pintle")]
    pintle: PathBuf,
    /// Name of the local cluster
    #[arg(long, global = true, default_value = "default")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill the leader with SIGKILL under load and measure what clients notice
    Failover(failover::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pintle-jepsen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("the TLS provider was already chosen");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let cluster = Cluster { pintle: cli.pintle, name: cli.name, home: None };
        match cli.command {
            Command::Failover(args) => failover::run(&cluster, &args).await,
        }
    })
}
