//! `pintle store migrate`: what an etcd or a snapshot of one holds, written anew into a store over its client's API.
//!
//! Flow: [`source`] (one revision of the source, page by page) → [`target`] (transactions) → counted and compared →
//! [`report`], which says what was kept and what could not be.
//!
//! Always holds: the source is only read. A target that has keys is refused unless that is wanted, and then the same command
//! again ends the same: it is how an interrupted one goes on.

mod auth;
mod file;
mod report;
mod source;
mod target;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pintle_base::clock;
use tokio::sync::mpsc;

use super::ctl::grammar::Globals;
use super::ctl::print::{self, Format};
use super::ctl::settings::{Settings, TlsFiles, user};
use super::ctl::{self, Done, Failure, go};
use report::Report;
use source::Source;
use target::{Mode, Target};

/// Pages that are read ahead of what is written.
const PAGES_AHEAD: usize = 2;
/// How often the progress is told.
const TELL: Duration = Duration::from_secs(1);

pub const HELP: &str = "\
Copies all keys, values and leases as they were at one revision, compares what arrived, and reports what could not be
kept: revisions, versions and history of keys, users and roles (with the commands that make them again), alarms.
The source goes on serving. Stop its writers first: what they write after that revision is not copied.

  From a running etcd, to a store on this machine:
    pintle store migrate --from-etcd https://etcd:2379 --from-cacert etcd-ca.crt --from-cert me.crt --from-key me.key \\
        --to https://store:2379 --cacert ca.crt --cert admin.crt --key admin.key
  From what `etcdctl snapshot save` wrote, or from a copy of a stopped member's member/snap/db:
    pintle store migrate --from-etcd backup.db --to 127.0.0.1:2379
    pintle store migrate --from-etcd db --skip-hash-check --to 127.0.0.1:2379
  Going on after an interruption: the same again with --overwrite; what is there already is written once more.

Global flags are those of the target. Reading a snapshot takes memory for each of its keys, not for their values.
Exit codes: 0 all there, 1 not, 2 no connection, 128 wrong arguments.";

#[derive(clap::Args)]
pub struct MigrateArgs {
    /// Where from: addresses of an etcd, separated by commas, or the file of a snapshot
    #[arg(long, value_name = "URL|SNAPSHOT", required = true)]
    pub from_etcd: String,
    /// Where to: the same as --endpoints
    #[arg(long, value_name = "URLS")]
    pub to: Option<String>,
    /// Writes into a store that has keys; keys that the source has not stay there
    #[arg(long)]
    pub overwrite: bool,
    /// How long leases live there: `remaining`, what is left of them, or `granted`, as if all were renewed now
    #[arg(long, value_name = "TIME", default_value = "remaining")]
    pub lease_ttl: String,
    /// At most so many keys in one transaction
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = go::flag_int)]
    pub max_txn_ops: i64,
    /// Reads a snapshot without looking at its checksum; a copied database has none
    #[arg(long)]
    pub skip_hash_check: bool,
    /// Authorities that the source's certificate is checked against (PEM)
    #[arg(long, value_name = "FILE")]
    pub from_cacert: Option<String>,
    /// Certificate to show to the source (PEM)
    #[arg(long, value_name = "FILE")]
    pub from_cert: Option<String>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE")]
    pub from_key: Option<String>,
    /// Does not check the source's certificate
    #[arg(long)]
    pub from_insecure_skip_tls_verify: bool,
    /// NAME or NAME:PASSWORD at the source; needs to read all keys
    #[arg(long, value_name = "USER")]
    pub from_user: Option<String>,
    /// Password of --from-user
    #[arg(long, value_name = "PASSWORD")]
    pub from_password: Option<String>,
}

pub async fn run(mut globals: Globals, args: MigrateArgs) -> Done {
    if let Some(to) = &args.to {
        if globals.endpoints.is_some() {
            return Err(Failure::bad_args("--to and --endpoints are the same: give one of them"));
        }
        globals.endpoints = Some(to.clone());
    }
    let settings = ctl::settings(globals)?;
    if !matches!(settings.format, Format::Simple | Format::Json) {
        return Err(Failure::bad_feature("migrate reports as simple or json"));
    }
    let mode = Mode {
        remaining: match args.lease_ttl.as_str() {
            "remaining" => true,
            "granted" => false,
            other => return Err(Failure::bad_args(format!("--lease-ttl is remaining or granted, not {other:?}"))),
        },
        overwrite: args.overwrite,
        most: usize::try_from(args.max_txn_ops).unwrap_or_default().max(1),
    };
    let source = Source::open(&args, &settings).await?;
    let target = Target::open(settings.clone(), mode).await?;
    let report = migrate(source, target, &settings).await?;
    print::out(match settings.format {
        Format::Json => report.json(),
        _ => report.text(),
    })?;
    if report.verified() { Ok(()) } else { Err(Failure::error("the target does not have what the source had")) }
}

/// Where the source is reached, if it is a running etcd.
fn source_settings(args: &MigrateArgs, target: &Settings) -> Result<Settings, Failure> {
    let endpoints = args.from_etcd.split(',').map(|url| url.trim().to_owned()).filter(|url| !url.is_empty());
    let tls = TlsFiles {
        authorities: args.from_cacert.clone(),
        certificate: args.from_cert.clone(),
        key: args.from_key.clone(),
        insecure_transport: true,
        skip_verify: args.from_insecure_skip_tls_verify,
    };
    let user = user(args.from_user.as_deref(), args.from_password.as_deref(), "Password at the source: ")?;
    Ok(Settings { endpoints: endpoints.collect(), tls, user, ..target.clone() })
}

async fn migrate(source: Source, target: Target, settings: &Settings) -> Result<Report, Failure> {
    let began = clock::now();
    let outline = source.outline().await?;
    let before = target.look(outline.cluster).await?;
    let leases = target.grant(&outline.leases).await?;
    let done = Arc::new(Progress::default());
    let (pages, arriving) = mpsc::channel(PAGES_AHEAD);
    let reading = tokio::spawn(source.read(pages));
    let writing = target.write(arriving, &leases, &done);
    let written = tokio::select! {
        written = writing => written?,
        never = tell(&done, outline.keys) => match never {},
    };
    reading.await.map_err(|error| Failure::error(error.to_string()))?;
    if clock::now() - began > TELL {
        eprintln!("{} keys are written; comparing", written.keys);
    }
    let there = target.sum().await?;
    let to = settings.endpoints.join(",");
    Ok(Report { to, outline, before, leases, written, there, took: clock::now() - began })
}

/// How far it is.
#[derive(Default)]
pub struct Progress {
    keys: AtomicU64,
    bytes: AtomicU64,
}

/// Tells of the progress again and again.
async fn tell(done: &Progress, keys: u64) -> Infallible {
    let began = clock::now();
    loop {
        tokio::time::sleep(TELL).await;
        let (now, bytes) = (done.keys.load(Ordering::Relaxed), done.bytes.load(Ordering::Relaxed));
        eprintln!("{}", progress(now, keys, bytes, clock::now() - began));
    }
}

fn progress(now: u64, keys: u64, bytes: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(0.001);
    let rate = now as f64 / seconds;
    let share = if keys == 0 { 100.0 } else { 100.0 * now as f64 / keys as f64 };
    let left = match now {
        0 => "unknown".to_owned(),
        _ => {
            let left = (keys.saturating_sub(now) as f64 / rate).ceil() as u64;
            format!("{}:{:02}", left / 60, left % 60)
        }
    };
    let speed = go::size((bytes as f64 / seconds) as u64);
    format!("{now} of {keys} keys ({share:.0} %), {rate:.0} keys/s, {speed}/s, time left {left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_with_rate_and_time_left() {
        let told = progress(3000, 10_000, 6_000_000, Duration::from_secs(2));
        assert_eq!(told, "3000 of 10000 keys (30 %), 1500 keys/s, 3.0 MB/s, time left 0:05");
        let nothing = progress(0, 10, 0, Duration::from_secs(1));
        assert_eq!(nothing, "0 of 10 keys (0 %), 0 keys/s, 0 B/s, time left unknown");
        assert!(progress(0, 0, 0, Duration::ZERO).starts_with("0 of 0 keys (100 %)"));
    }
}
