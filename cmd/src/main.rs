//! `pintle`: the one binary. The composition root, where everything is wired (D1), and the command line.
//!
//! Data goes to standard output, progress and prose to standard error. Exit codes: `pintle help-exit-codes`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod agent;
mod bench;
mod cluster;
mod exit;
mod https;
mod images;
mod kubeconfig;
mod member;
mod pki;
mod server;
mod signals;
mod status;
mod store;
mod token;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use pintle_base::telemetry;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Kubernetes-compatible control plane in one binary, with its own replicated store.
///
/// Start a local cluster of three servers and two workers:  pintle cluster up
/// Look at it:                                              pintle status
#[derive(Parser)]
#[command(name = "pintle", version, after_help = "Exit codes: pintle help-exit-codes", max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How much is logged to standard error: a level, or directives such as info,pintle_raft=debug
    #[arg(long, global = true, env = "PINTLE_LOG_LEVEL", value_name = "FILTER")]
    log_level: Option<String>,
    /// How log lines look; `auto` is text on a terminal and JSON elsewhere
    #[arg(long, global = true, env = "PINTLE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Run a server (master): store, API, scheduler and controllers
    Server(server::ServerArgs),
    /// Run a worker: joins a cluster and runs its pods
    Agent(agent::AgentArgs),
    /// The store alone, as an etcd: serve it
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Local clusters on this machine
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// One screen about a cluster and what to do next; exit code 5 if it is not healthy
    Status(status::StatusArgs),
    /// Print or merge the kubeconfig of a local cluster
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Tokens that workers join with
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Images of the workers of a local cluster
    #[command(subcommand)]
    Images(images::ImagesCommand),
    /// Measure: pods at scale, start of a pod, cost when idle, and the store against an etcd
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Print a completion script for a shell
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version {
        /// `json` for programs
        #[arg(short, long, value_enum, default_value_t = cluster::control::Format::Table)]
        output: cluster::control::Format,
    },
    /// Print what the exit codes mean
    HelpExitCodes,
}

fn main() -> ExitCode {
    let result = match called_as_etcd() {
        Some((program, flags)) => etcd(&program, &flags),
        None => run(Cli::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pintle: {error:#}");
            ExitCode::from(u8::try_from(exit::code(&error)).unwrap_or(1))
        }
    }
}

/// A program called `etcd` is a member of a store, with etcd's flags.
fn called_as_etcd() -> Option<(String, Vec<String>)> {
    let mut args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let program = args.next()?;
    let name = std::path::Path::new(&program).file_name()?.to_str()?;
    (name == "etcd").then(|| (name.to_owned(), args.collect()))
}

fn run(cli: Cli) -> Result<()> {
    if let Command::Store(store::StoreCommand::Serve { flags }) = &cli.command {
        return etcd("pintle store serve", flags);
    }
    let daemon = matches!(cli.command, Command::Server(_) | Command::Agent(_));
    let balancer = matches!(cli.command, Command::Cluster(cluster::ClusterCommand::Balance(_)));
    if !daemon && !balancer {
        signals::end_with_the_reader();
    }
    let filter = cli.log_level.unwrap_or_else(|| if daemon { "info".to_owned() } else { "warn".to_owned() });
    let format = match cli.log_format {
        LogFormat::Auto => telemetry::Format::Auto,
        LogFormat::Text => telemetry::Format::Text,
        LogFormat::Json => telemetry::Format::Json,
    };
    prepare(&filter, format)?;
    match cli.command {
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "pintle", &mut std::io::stdout());
            Ok(())
        }
        Command::Version { output } => version(output),
        Command::HelpExitCodes => {
            println!("{}", exit::TABLE);
            Ok(())
        }
        command => block_on(dispatch(command)),
    }
}

/// One member of a store of its own.
fn etcd(program: &str, flags: &[String]) -> Result<()> {
    match store::read(program, flags).map_err(|error| exit::with(exit::Exit::Usage, format!("{error:#}")))? {
        store::Etcd::Print(text) => {
            signals::end_with_the_reader();
            print!("{text}");
            Ok(())
        }
        store::Etcd::Serve { config, log_level, moot } => {
            prepare(&log_level, telemetry::Format::Json)?;
            block_on(store::serve(*config, moot))
        }
    }
}

fn prepare(filter: &str, format: telemetry::Format) -> Result<()> {
    telemetry::init(filter, format)?;
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("the TLS provider was already chosen");
    }
    Ok(())
}

fn block_on(command: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(command);
    // What still blocks a thread (a lookup, a read) must not hold up the end of the command.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    result
}

async fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Server(args) => server::run(args).await,
        Command::Agent(args) => agent::run(args).await,
        Command::Cluster(command) => cluster::run(command).await,
        Command::Status(args) => status::run(args).await,
        Command::Kubeconfig(args) => kubeconfig::run(args),
        Command::Token(command) => token::run(command).await,
        Command::Images(command) => images::run(command).await,
        Command::Bench(command) => bench::run(command).await,
        Command::Store(store::StoreCommand::Serve { .. })
        | Command::Completion { .. }
        | Command::Version { .. }
        | Command::HelpExitCodes => Ok(()),
    }
}

fn version(output: cluster::control::Format) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    match output {
        cluster::control::Format::Table => println!("pintle {version} (kubernetes v1.36, etcd api 3.5)"),
        cluster::control::Format::Json => {
            println!("{}", serde_json::json!({"version": version, "kubernetes": "v1.36.0", "etcdApi": "3.5"}));
        }
    }
    Ok(())
}
