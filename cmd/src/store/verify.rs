//! `pintle store verify`: looks at all of a stopped member's data and says whether it is whole.
//!
//! Always holds: nothing is changed, and no member runs on the directory meanwhile.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use pintle_store::verify::{Verified, verify};
use serde_json::json;

use super::ctl::grammar::Globals;
use super::ctl::print::{self, Format};
use super::ctl::{self, Done, Failure, go};
use crate::member::LOCK;

/// How often is told how far it is; what takes less is told nothing of.
const TELL: Duration = Duration::from_secs(1);

pub const HELP: &str = "\
Reads everything in the directory of a member that does not run, and changes nothing: the checksum of every log entry and
of every block with a row; whether identity, low-water mark, log, snapshots and state are pieces of one history; whether
each change has its version, versions of a key count up, revisions only grow, keys are attached to the leases they name.

  pintle store verify --data-dir /var/lib/etcd
  pintle store verify --data-dir /var/lib/etcd -w json

What is damaged is told in one sentence each, with the file and the next step. A `note` is what a crash leaves: nothing
is lost by it, and the next start puts it right. The hash is that of `endpoint hashkv` at the revision shown: stopped
members of one cluster with the same revision have the same.

Exit codes: 0 nothing is damaged, 1 something is, or it could not be looked at, 4 format not supported.";

#[derive(clap::Args)]
pub struct VerifyArgs {
    /// The data directory of the member
    #[arg(long, value_name = "DIR", required = true)]
    pub data_dir: PathBuf,
}

pub async fn run(globals: Globals, args: VerifyArgs) -> Done {
    let settings = ctl::settings(globals)?;
    let show: fn(&Path, &Verified) -> String = match settings.format {
        Format::Simple => simple,
        Format::Json => as_json,
        Format::Table => table,
        _ => return Err(Failure::bad_feature("verify reports as simple, json or table")),
    };
    let dir = args.data_dir;
    // Minutes of disk work.
    let looking = tokio::task::spawn_blocking(move || look(&dir).map(|found| (dir, found)));
    let (dir, found) = looking.await.map_err(|error| Failure::error(error.to_string()))??;
    print::out(show(&dir, &found))?;
    match found.findings.iter().filter(|finding| !finding.harmless).count() {
        0 => Ok(()),
        count => Err(Failure::error(format!("{} is damaged, findings: {count}", dir.display()))),
    }
}

fn look(dir: &Path) -> Result<Verified, Failure> {
    let _alone = claim(dir)?;
    let began = Instant::now();
    let mut told = 0;
    let mut tell = |what: &'static str, count: u64| {
        let seconds = began.elapsed().as_secs() / TELL.as_secs();
        if seconds > told {
            told = seconds;
            eprintln!(
                "verifying, {seconds} s: {}",
                if count == 0 { what.to_owned() } else { format!("{count} {what}") }
            );
        }
    };
    verify(dir, &mut tell).map_err(|error| Failure::error(format!("{:#}", anyhow::Error::from(error))))
}

/// Keeps members from running on the directory until dropped. One that no member ever ran on has no lock, and is not given one.
fn claim(dir: &Path) -> Result<Option<Flock<File>>, Failure> {
    let path = dir.join(LOCK);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && dir.is_dir() => return Ok(None),
        Err(error) => return Err(Failure::error(format!("open {}: {}", path.display(), go::system_error(&error)))),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(Some(held)),
        Err((_, Errno::EWOULDBLOCK)) => Err(Failure::error(format!(
            "a member runs on {}: stop it first, or ask it with `pintle store endpoint hashkv`; `fuser {}` shows which process it is",
            dir.display(),
            path.display()
        ))),
        Err((_, error)) => Err(Failure::error(format!("lock {}: {}", path.display(), error.desc()))),
    }
}

/// What to do about damage.
fn next(dir: &Path, found: &Verified) -> String {
    let (id, dir) = (found.member_id, dir.display());
    match found.members.len() {
        0 | 1 => {
            format!("restore a snapshot into an empty directory: pintle store snapshot restore FILE --data-dir {dir}")
        }
        _ => format!(
            "have the others remove this member (member remove {id:x}), empty {dir}, and add it again (member add)"
        ),
    }
}

fn simple(dir: &Path, found: &Verified) -> String {
    let mut text = String::new();
    let next = next(dir, found);
    for finding in &found.findings {
        text += &match finding.harmless {
            true => format!("note: {}\n", finding.what),
            false => format!("damaged: {}; next: {next}\n", finding.what),
        };
    }
    let Verified { cluster_id, member_id, members, term, last_index, applied_index, log_entries, .. } = found;
    let Verified { revision, compact_revision, keys, changes, leases, snapshots, .. } = found;
    text += &format!("member {member_id:x} of cluster {cluster_id:x}, which has {} members\n", members.len());
    text += &format!("log: {log_entries} entries up to {last_index}, term {term}; applied up to {applied_index}\n");
    text += &format!(
        "state: revision {revision}, compacted at {compact_revision}, {keys} keys in {changes} changes, {leases} leases\n"
    );
    text += &format!("looked at: {}, with {snapshots} snapshots\n", go::size(found.bytes));
    text += &match found.hash {
        Some(hash) => format!("hash: {hash}\n"),
        None => "hash: none, the state cannot be read\n".to_owned(),
    };
    if found.is_sound() {
        text += "sound\n";
    }
    text
}

fn as_json(dir: &Path, found: &Verified) -> String {
    let next = next(dir, found);
    let findings = found.findings.iter().map(|finding| match finding.harmless {
        true => json!({ "harmless": true, "what": finding.what }),
        false => json!({ "harmless": false, "what": finding.what, "next": next }),
    });
    let report = json!({
        "dataDir": dir.display().to_string(),
        "sound": found.is_sound(),
        "clusterId": found.cluster_id,
        "memberId": found.member_id,
        "members": found.members,
        "raftTerm": found.term,
        "raftIndex": found.last_index,
        "raftAppliedIndex": found.applied_index,
        "logEntries": found.log_entries,
        "revision": found.revision,
        "compactRevision": found.compact_revision,
        "hash": found.hash,
        "keys": found.keys,
        "changes": found.changes,
        "leases": found.leases,
        "snapshots": found.snapshots,
        "bytes": found.bytes,
        "findings": findings.collect::<Vec<_>>(),
    });
    format!("{report}\n")
}

fn table(dir: &Path, found: &Verified) -> String {
    let headings = ["HASH", "REVISION", "COMPACTED", "KEYS", "CHANGES", "LEASES", "LOG ENTRIES", "SIZE", "SOUND"];
    let hash = found.hash.map_or_else(|| "-".to_owned(), |hash| hash.to_string());
    let numbers = [found.revision.to_string(), found.compact_revision.to_string()].into_iter();
    let counts = [found.keys, found.changes, found.leases, found.log_entries].map(|count| count.to_string());
    let row = [hash].into_iter().chain(numbers).chain(counts);
    let row = row.chain([go::size(found.bytes), found.is_sound().to_string()]).collect();
    let mut text = print::table(&headings, &[row]);
    if !found.findings.is_empty() {
        let next = next(dir, found);
        let row = |finding: &pintle_raft::inspect::Finding| match finding.harmless {
            true => vec!["note".to_owned(), finding.what.clone(), "none".to_owned()],
            false => vec!["damaged".to_owned(), finding.what.clone(), next.clone()],
        };
        text += &print::table(&["KIND", "WHAT", "NEXT"], &found.findings.iter().map(row).collect::<Vec<_>>());
    }
    text
}
