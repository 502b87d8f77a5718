//! `pintle store snapshot restore`: a member's data directory from a file. The flags are those the member is started with afterwards, and
//! are read by the same code, so that both mean the same cluster.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use pintle_raft::LogId;
use pintle_raft::offline::Founding;
use pintle_store::snapshot::{RestoreOptions, Restored, restore};

use super::config::Config;
use super::flags::Given;
use super::join;

/// How often a terminal is told how far it is.
const PROGRESS: Duration = Duration::from_millis(200);

/// The entry the state counts as the outcome of: the first of the new cluster's log.
const BEGINNING: LogId = LogId { term: 1, index: 1 };

#[derive(clap::Args, Clone, Debug)]
#[command(
    override_usage = "snapshot restore FILE --data-dir DIR [FLAGS]",
    after_help = "A file of `snapshot save`, of this store or of an etcd 3.x. Revisions, leases, users and roles are kept; everybody has to log in again.\n\n\
        Example, three members:\n  \
        for n in 1 2 3; do pintle store snapshot restore backup.db --name s$n --data-dir /var/lib/s$n \\\n    \
        --initial-cluster s1=http://10.0.0.1:2380,s2=http://10.0.0.2:2380,s3=http://10.0.0.3:2380 \\\n    \
        --initial-advertise-peer-urls http://10.0.0.$n:2380; done\n\
        Then start each with the same flags: pintle store serve --name s1 …"
)]
pub struct RestoreArgs {
    #[arg(value_name = "FILE")]
    pub words: Vec<OsString>,
    /// Where the member's data go; must be empty or absent  [default: NAME.etcd]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// What this member is called
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub name: String,
    /// All members of the new cluster: NAME=URL,NAME=URL
    #[arg(long, value_name = "MEMBERS", default_value = "default=http://localhost:2380")]
    pub initial_cluster: String,
    /// Tells this cluster from others with the same URLs
    #[arg(long, value_name = "TOKEN", default_value = "etcd-cluster")]
    pub initial_cluster_token: String,
    /// Where the others reach this member
    #[arg(long, value_name = "URLS", default_value = "http://localhost:2380")]
    pub initial_advertise_peer_urls: String,
    /// Take a file without a checksum, or with a wrong one
    #[arg(long)]
    pub skip_hash_check: bool,
    /// Go on so many revisions later, so that clients which saw more than the file has do not see revisions twice
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub bump_revision: u64,
    /// Tell watches from before the new revision that it is compacted; needs --bump-revision
    #[arg(long)]
    pub mark_compacted: bool,
    /// Changes nothing: the log lies in the data directory
    #[arg(long, value_name = "DIR", hide = true)]
    pub wal_dir: Option<String>,
}

/// Answers what to tell the user.
pub fn run(file: &Path, args: &RestoreArgs) -> Result<String> {
    if (args.bump_revision > 0) != args.mark_compacted {
        bail!("--mark-compacted required if --bump-revision, and the other way round");
    }
    let config = config(args)?;
    let me = config.myself()?;
    let founding = Founding {
        cluster_id: config.cluster_id,
        group_id: 0,
        node_id: me.id,
        peers: join::founders(&config),
        at: BEGINNING,
    };
    let options = RestoreOptions {
        skip_hash_check: args.skip_hash_check,
        bump_revision: i64::try_from(args.bump_revision)?,
        mark_compacted: args.mark_compacted,
        ..RestoreOptions::default()
    };
    let terminal = std::io::stderr().is_terminal();
    let mut told = Instant::now();
    let mut tell = |changes: u64| {
        if terminal && told.elapsed() >= PROGRESS {
            told = Instant::now();
            let _ = write!(std::io::stderr(), "\rrestoring: {changes} changes");
        }
    };
    let restored = restore(file, &config.data_dir, &founding, &options, &mut tell)?;
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    Ok(summary(&config, &restored))
}

fn config(args: &RestoreArgs) -> Result<Config> {
    let mut flags = vec![
        format!("--name={}", args.name),
        format!("--initial-cluster={}", args.initial_cluster),
        format!("--initial-cluster-token={}", args.initial_cluster_token),
        format!("--initial-advertise-peer-urls={}", args.initial_advertise_peer_urls),
    ];
    if let Some(dir) = &args.data_dir {
        flags.push(format!("--data-dir={dir}"));
    }
    Config::from_flags(&Given::read(&flags, std::iter::empty())?)
}

fn summary(config: &Config, restored: &Restored) -> String {
    let Restored { revision, compact_revision, changes, keys, leases, users, roles, quotas, hash, .. } = restored;
    let mut text = format!(
        "Restored into {}: revision {revision}, compacted at {compact_revision}, {keys} keys in {changes} changes, {leases} leases, \
         {users} users, {roles} roles, {quotas} quotas, hash {hash}\n",
        config.data_dir.display()
    );
    if restored.without_lease > 0 {
        let count = restored.without_lease;
        text.push_str(&format!("{count} keys name a lease that is not in the file: nothing will delete them\n"));
    }
    if restored.auth_enabled {
        text.push_str("Authentication is enabled: everybody has to log in again\n");
    }
    text
}
