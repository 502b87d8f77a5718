//! `pintle store snapshot restore`: a member's data directory from a file. The flags are those the member is started with afterwards, and
//! are read by the same code, so that both mean the same cluster.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use pintle_raft::LogId;
use pintle_raft::offline::Founding;
use pintle_store::snapshot::{RestoreOptions, Restored, restore};

use super::config::Config;
use super::ctl::grammar::RestoreArgs;
use super::flags::Given;
use super::join;

/// How often a terminal is told how far it is.
const PROGRESS: Duration = Duration::from_millis(200);

/// The entry the state counts as the outcome of: the first of the new cluster's log.
const BEGINNING: LogId = LogId { term: 1, index: 1 };

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
    let Restored { revision, compact_revision, changes, keys, leases, users, roles, hash, .. } = restored;
    let mut text = format!(
        "Restored into {}: revision {revision}, compacted at {compact_revision}, {keys} keys in {changes} changes, {leases} leases, \
         {users} users, {roles} roles, hash {hash}\n",
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
