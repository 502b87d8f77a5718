//! `pintle store`: the store alone, as an etcd: the server, and the commands of its client.

mod config;
pub mod ctl;
mod flags;
mod join;
pub mod migrate;
mod restore;
mod serve;
mod tls;
pub mod verify;

use anyhow::Result;

/// The etcd whose surface is served, in the line that wrappers of etcd look for.
const VERSION_LINE: &str = "etcd Version: ";

#[derive(clap::Args)]
#[command(after_help = ctl::grammar::EXAMPLES)]
pub struct StoreArgs {
    #[command(flatten)]
    pub globals: ctl::grammar::Globals,
    #[command(subcommand)]
    pub command: StoreCommand,
}

#[derive(clap::Subcommand)]
pub enum StoreCommand {
    /// Run one member of a store of its own; takes etcd's flags: pintle store serve --help
    #[command(disable_help_flag = true)]
    Serve {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
        flags: Vec<String>,
    },
    /// Copy keys, values and leases of an etcd, or of its snapshot, into a store
    #[command(after_help = migrate::HELP)]
    Migrate(Box<migrate::MigrateArgs>),
    /// Check all data of a stopped member: checksums, history, invariants; prints its hash
    #[command(after_help = verify::HELP)]
    Verify(verify::VerifyArgs),
    #[command(flatten)]
    Client(Box<ctl::grammar::Command>),
}

/// What a program called with the flags of an etcd is to do.
pub enum Etcd {
    /// Print this and end.
    Print(String),
    Serve {
        config: Box<config::Config>,
        log_level: String,
        moot: Vec<(&'static str, &'static str)>,
    },
}

/// Reads flags, environment and file. `program` is what the user called.
pub fn read(program: &str, args: &[String]) -> Result<Etcd> {
    let given = flags::Given::read(
        args,
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    )?;
    if given.switch("help")? {
        return Ok(Etcd::Print(flags::help(program)));
    }
    if given.switch("version")? {
        let (pintle, etcd) = (env!("CARGO_PKG_VERSION"), pintle_store::etcd::VERSION);
        return Ok(Etcd::Print(format!("{VERSION_LINE}{etcd}\npintle Version: {pintle}\n")));
    }
    let config = Box::new(config::Config::from_flags(&given)?);
    Ok(Etcd::Serve { config, log_level: given.text("log-level").to_owned(), moot: given.moot().collect() })
}

pub async fn serve(config: config::Config, moot: Vec<(&'static str, &'static str)>) -> Result<()> {
    for (flag, why) in moot {
        tracing::warn!(flag, why, "this flag changes nothing");
    }
    serve::run(config).await
}
