//! The client half of the store's command line: etcdctl's grammar, outputs and exit codes (v3 API, as of etcdctl 3.5).
//!
//! Flow: [`grammar`] → [`settings`] → a command's file → [`client`] → [`print`]. Answers go to standard output, everything
//! else to standard error; a command that fails prints one line `Error: …` there and ends with etcdctl's exit code.

mod auth;
mod check;
pub mod client;
mod cluster;
mod concurrency;
mod dial;
pub mod go;
pub mod grammar;
mod kv;
mod lease;
mod mirror;
mod parse;
mod password;
pub mod print;
mod quota;
mod replace;
pub mod rpc;
pub mod settings;
mod snapshot;
mod top;
mod txn;
mod watch;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use client::{CallError, Client};
use grammar::{Command, Globals};
pub use parse::{plain_switches, refused, tuned};
use print::Printer;

/// Why a command failed, with etcdctl's exit code. An empty text has been told already.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub text: String,
}

pub type Done = Result<(), Failure>;

impl Failure {
    pub fn error(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    pub fn bad_connection(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }

    pub fn invalid_input(text: impl Into<String>) -> Self {
        Self { code: 3, text: text.into() }
    }

    pub fn bad_feature(text: impl Into<String>) -> Self {
        Self { code: 4, text: text.into() }
    }

    pub fn interrupted(text: impl Into<String>) -> Self {
        Self { code: 5, text: text.into() }
    }

    pub fn bad_args(text: impl Into<String>) -> Self {
        Self { code: 128, text: text.into() }
    }

    pub fn told(code: u8) -> Self {
        Self { code, text: String::new() }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::error(error.to_string())
    }
}

/// Runs one command.
pub async fn run(globals: Globals, command: Command) -> Done {
    if let Command::Version = command {
        return version();
    }
    let settings = settings(globals)?;
    let printer = Printer { format: settings.format, hex: settings.hex, value_only: false };
    let context = Context { settings, printer };
    match command {
        Command::Get(args) => kv::get(&context, args).await,
        Command::Put(args) => kv::put(&context, args).await,
        Command::Del(args) => kv::del(&context, args).await,
        Command::Compaction(args) => kv::compaction(&context, args).await,
        Command::Txn(args) => txn::run(&context, args).await,
        Command::Watch(args) => watch::run(&context, args).await,
        Command::Lease(command) => lease::run(&context, command).await,
        Command::Lock(args) => concurrency::lock(&context, args).await,
        Command::Elect(args) => concurrency::elect(&context, args).await,
        Command::Member(command) => cluster::member(&context, command).await,
        Command::Endpoint(args) => cluster::endpoint(&context, args).await,
        Command::Hashkv(args) => cluster::hashkv(&context, args).await,
        Command::MoveLeader(args) => cluster::move_leader(&context, args).await,
        Command::Alarm(command) => cluster::alarm(&context, command).await,
        Command::Defrag(args) => cluster::defrag(&context, args).await,
        Command::Snapshot(command) => snapshot::run(&context, command).await,
        Command::MakeMirror(args) => mirror::run(&context, args).await,
        Command::Auth(command) => auth::auth(&context, command).await,
        Command::User(command) => auth::user(&context, command).await,
        Command::Role(command) => auth::role(&context, command).await,
        Command::Check(command) => check::run(&context, command).await,
        Command::Quota(command) => quota::run(&context, command).await,
        Command::Top(args) => top::run(&context, args).await,
        Command::Version => version(),
    }
}

/// What the global flags and variables come to.
///
/// # Errors
/// The first that is wrong.
pub fn settings(globals: Globals) -> Result<settings::Settings, Failure> {
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let settings = globals.with_variables(variables)?.settings()?;
    settings.tell()?;
    Ok(settings)
}

fn version() -> Done {
    let version = pintle_store::etcd::VERSION;
    let api: Vec<&str> = version.split('.').take(2).collect();
    print::out(format!("etcdctl version: {version}\nAPI version: {}\n", api.join(".")))
}

/// What every command has.
struct Context {
    settings: settings::Settings,
    printer: Printer,
}

impl Context {
    async fn client(&self) -> Result<Client, Failure> {
        Client::new(self.settings.clone()).await
    }
}

/// An argument as the bytes it is.
fn bytes(word: &OsString) -> Bytes {
    Bytes::copy_from_slice(word.as_bytes())
}

fn text(word: &OsString) -> String {
    word.to_string_lossy().into_owned()
}

/// Exactly `N` arguments as text.
fn exactly<const N: usize>(words: &[OsString], otherwise: &str) -> Result<[String; N], Failure> {
    <[String; N]>::try_from(words.iter().map(text).collect::<Vec<_>>()).map_err(|_| Failure::bad_args(otherwise))
}
