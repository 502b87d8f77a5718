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

use std::ffi::OsString;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use pintle_base::telemetry;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Polls of tasks between two looks at the sockets.
const EVENT_INTERVAL: u32 = 8;

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
    /// The store alone, as an etcd: serve one, and use one with etcdctl's commands
    Store(Box<store::StoreArgs>),
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
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().and_then(|program| Path::new(program).file_name()).unwrap_or_default();
    let result = match name.to_str() {
        Some("etcd") => etcd("etcd", &args[1..]),
        Some("etcdctl") => return etcdctl(args),
        _ => match parse(args) {
            Ok(Cli { command: Command::Store(args), log_level, .. }) => return store(*args, log_level),
            Ok(cli) => run(cli),
            Err(code) => return code,
        },
    };
    exit_code(result)
}

fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last word: threads that are still at work when a server gives up, and log that, wait for this lock until the process is gone.
            let mut stderr = ManuallyDrop::new(std::io::stderr().lock());
            let _ = writeln!(stderr, "pintle: {error:#}"); // there is nobody else to tell
            ExitCode::from(u8::try_from(exit::code(&error)).unwrap_or(1))
        }
    }
}

/// Reads the command line. Lines of the store's client are refused as etcdctl refuses them.
fn parse(args: Vec<OsString>) -> Result<Cli, ExitCode> {
    let command = Cli::command().mut_subcommand("store", store::ctl::tuned);
    let mut words = args.iter().skip(1).filter(|arg| !arg.to_string_lossy().starts_with('-'));
    let of_store = words.next().is_some_and(|word| word == "store");
    let of_client = of_store && words.next().is_none_or(|word| word != "serve");
    let args = match command.find_subcommand("store").filter(|_| of_client) {
        Some(store) => store::ctl::plain_switches(store, args),
        None => args,
    };
    let parsed = command.try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| match of_client {
        true => refuse(&error, "pintle store"),
        false => error.exit(),
    })
}

/// A program called `etcdctl` is the client of a store.
fn etcdctl(args: Vec<OsString>) -> ExitCode {
    let command = store::ctl::tuned(store::ctl::grammar::Etcdctl::command());
    let args = store::ctl::plain_switches(&command, args);
    let parsed = command.try_get_matches_from(args);
    match parsed.and_then(|matches| store::ctl::grammar::Etcdctl::from_arg_matches(&matches)) {
        Ok(cli) => client(cli.globals, cli.command, None),
        Err(error) => refuse(&error, "etcdctl"),
    }
}

/// Help that was asked for goes to standard output; what is wrong is told in one line.
fn refuse(error: &clap::Error, program: &str) -> ExitCode {
    match store::ctl::refused(error, program) {
        Some(failure) => {
            eprintln!("Error: {}\nRun '{program} --help' for usage.", failure.text);
            ExitCode::from(failure.code)
        }
        None => {
            signals::end_with_the_reader();
            print!("{}", error.render());
            ExitCode::SUCCESS
        }
    }
}

fn store(args: store::StoreArgs, log_level: Option<String>) -> ExitCode {
    match args.command {
        store::StoreCommand::Serve { flags } => {
            let flags: Vec<OsString> = flags.into_iter().map(OsString::from).collect();
            exit_code(etcd("pintle store serve", &flags))
        }
        store::StoreCommand::Client(command) => client(args.globals, *command, log_level),
        store::StoreCommand::Migrate(migrate) => told(store::migrate::run(args.globals, *migrate), log_level),
        store::StoreCommand::Verify(verify) => told(store::verify::run(args.globals, verify), log_level),
    }
}

/// One command of the store's client.
fn client(
    globals: store::ctl::grammar::Globals,
    command: store::ctl::grammar::Command,
    log_level: Option<String>,
) -> ExitCode {
    told(store::ctl::run(globals, command), log_level)
}

/// Runs a client of the store to its end; etcdctl's exit codes.
fn told(run: impl Future<Output = store::ctl::Done>, log_level: Option<String>) -> ExitCode {
    // SIGPIPE stays ignored: a member that closes its connection must not end this program.
    if let Err(error) = prepare(log_level.as_deref().unwrap_or("warn"), telemetry::Format::Text) {
        eprintln!("Error: {error:#}");
        return ExitCode::FAILURE;
    }
    let mut outcome = Ok(());
    let ran = block_on(async {
        outcome = run.await;
        Ok(())
    });
    let failure = match (ran, outcome) {
        (Ok(()), Ok(())) => return ExitCode::SUCCESS,
        (Ok(()), Err(failure)) => failure,
        (Err(error), _) => store::ctl::Failure::error(format!("{error:#}")),
    };
    if !failure.text.is_empty() {
        eprintln!("Error: {}", failure.text);
    }
    ExitCode::from(failure.code)
}

fn run(cli: Cli) -> Result<()> {
    let daemon = matches!(cli.command, Command::Server(_) | Command::Agent(_));
    let balancer = matches!(cli.command, Command::Cluster(cluster::ClusterCommand::Balance(_)));
    // A benchmark has processes to end and data to remove, whoever stops reading what it tells.
    let bench = matches!(cli.command, Command::Bench(_));
    if !daemon && !balancer && !bench {
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
fn etcd(program: &str, flags: &[OsString]) -> Result<()> {
    let flags: Vec<String> = flags.iter().map(|flag| flag.to_string_lossy().into_owned()).collect();
    match store::read(program, &flags).map_err(|error| exit::with(exit::Exit::Usage, format!("{error:#}")))? {
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
    // Sockets are looked at after so few polls of tasks: with the usual 61, connections that always have more to say, whose polls are
    // long, made everybody else wait for a tenth of a second each time.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.event_interval(EVENT_INTERVAL).enable_all().build().context("start the runtime")?;
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
        Command::Store(_) | Command::Completion { .. } | Command::Version { .. } | Command::HelpExitCodes => Ok(()),
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
