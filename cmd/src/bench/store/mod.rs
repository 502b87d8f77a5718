//! `bench store`: this store and an etcd, on the same machine, with the same client, in turns.
//!
//! Always holds: a figure of one system never stands without the other's; a figure of requests is the median of its runs; every
//! run of a system begins with a cluster and data of its own, and the order of the systems changes from run to run.

mod chart;
mod figures;
mod life;
mod load;
mod plan;
mod progress;
mod report;
mod requests;
mod systems;
mod watch;
mod wire;

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use pintle_base::clock;
use pintle_proto::etcdserverpb::lease_client::LeaseClient;
use pintle_proto::etcdserverpb::{LeaseLeasesRequest, LeaseRevokeRequest};
use tokio::signal::unix::{SignalKind, signal};

use self::figures::Figures;
use self::life::Directory;
use self::plan::{Row, Sizes};
use self::report::Report;
use self::requests::Data;
use self::systems::{Cluster, System};
use self::watch::Watchers;
use super::usage;

pub use self::plan::Args;

/// Everything of a run lies below this directory of the system's temporary one.
const PREFIX: &str = "pintle-bench-store-";
/// What one measurement left behind is not the next one's.
const BREATH: Duration = Duration::from_millis(200);

/// One measurement of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub members: usize,
    pub row: Row,
    /// Or watchers.
    pub clients: usize,
}

/// Whoever interrupts it finds no process and no data of it: they go with the future that owns them.
pub async fn run(args: Args) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let code = tokio::select! {
        ended = compare(args) => return ended,
        _ = terminate.recv() => 143,
        _ = interrupt.recv() => 130,
    };
    std::process::exit(code)
}

async fn compare(args: Args) -> Result<()> {
    let sizes = Sizes::of(&args)?;
    let systems = [System::pintle()?, System::etcd(&args.against)];
    let version = systems[1].version()?;
    if sizes.has(Row::Database) {
        for system in &systems {
            system.check_tools().await?;
        }
    }
    let root = Directory::new(std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id())))?;
    if statfs(&root.0).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC) {
        eprintln!("warning: {} is memory, nothing is brought to a disk there; set TMPDIR", root.0.display());
    }
    println!("pintle {} against {version}", env!("CARGO_PKG_VERSION"));
    let mut report = Report::new(&version, sizes.clone());
    if sizes.rows.iter().any(|row| row.is_of_requests()) {
        requests(&systems, &sizes, &root, &mut report).await?;
    }
    lives(&systems, &sizes, &root, &mut report).await?;
    print!("{}", report.text());
    if let Some(path) = &args.svg {
        std::fs::write(path, report.svg()).with_context(|| format!("draw to {}", path.display()))?;
    }
    if let Some(path) = &args.markdown {
        // A link from one file to the other, where they lie beside each other.
        let picture = args.svg.as_ref().filter(|svg| svg.parent() == path.parent()).and_then(|svg| svg.file_name());
        let picture = picture.map(|name| name.to_string_lossy());
        std::fs::write(path, report.markdown(picture.as_deref()))
            .with_context(|| format!("write to {}", path.display()))?;
    }
    super::write_json(args.json.as_deref(), &report.json())
}

/// All measurements of requests, as often as asked, the systems in turns.
async fn requests(systems: &[System; 2], sizes: &Sizes, root: &Directory, report: &mut Report) -> Result<()> {
    for run in 0..sizes.runs {
        for &members in &sizes.members {
            for turn in 0..2 {
                let which = (run + turn) % 2;
                let system = &systems[which];
                eprintln!("run {} of {}: requests to {members} members of {}", run + 1, sizes.runs, system.name);
                let dir = root.0.join(system.name);
                let mut cluster = system.place(members, &dir)?;
                cluster.start().await?;
                one_cluster(&mut cluster, members, sizes, |case, figures| report.add(case, which, figures)).await?;
            }
        }
    }
    Ok(())
}

/// All measurements of requests with one cluster.
async fn one_cluster(
    cluster: &mut Cluster,
    members: usize,
    sizes: &Sizes,
    mut add: impl FnMut(Case, Figures),
) -> Result<()> {
    let data = Data { keys: sizes.load_keys, value_bytes: sizes.value_bytes };
    load::fill(&cluster.addresses().await?, data, 1, &format!("fill {}", cluster.system.name)).await?;
    let cases = sizes.cases(members);
    for (at, &case) in cases.iter().enumerate() {
        let Case { row, clients, .. } = case;
        let figures = measure(cluster, case, data, sizes.time).await;
        let figures = figures.with_context(|| format!("{} of {}", row.name(), cluster.system.name))?;
        let (name, what) = (row.name(), row.clients());
        let Figures { per_second, p99_ms, .. } = figures;
        let left = cases.len() - at - 1;
        eprintln!("    {name:<12} {clients:>6} {what:<8} {per_second:>9.0}/s  p99 {p99_ms:>8.2} ms   {left} more");
        add(case, figures);
    }
    Ok(())
}

async fn measure(cluster: &mut Cluster, case: Case, data: Data, time: Duration) -> Result<Figures> {
    let addresses = cluster.addresses().await?;
    let me = i32::try_from(std::process::id())?;
    let mut watchers = match case.row.watched_keys() {
        Some(keys) => Some(Watchers::create(&addresses, case.clients, keys).await?),
        None => None,
    };
    let (before, synced, own) = (cluster.usage(), cluster.syncs().await?, usage::seconds(me));
    let seen = match (&mut watchers, case.row.workload()) {
        (Some(watchers), _) => watchers.events(time).await?,
        (None, Some(workload)) => load::run(&workload, &addresses, case.clients, time, data).await?,
        (None, None) => anyhow::bail!("{} is no load", case.row.name()),
    };
    let (after, synced_after, own_after) = (cluster.usage(), cluster.syncs().await?, usage::seconds(me));
    drop(watchers);
    if case.row == Row::KeepAlive {
        revoke_all(cluster).await.context("end the leases of a benchmark")?;
    }
    clock::sleep(BREATH).await;
    let mut figures = Figures::of(&seen.samples, seen.elapsed);
    let count = seen.samples.len().max(1) as f64;
    figures.cpu_us = (after.cpu_seconds - before.cpu_seconds).max(0.0) * 1e6 / count;
    figures.client_cpu_us = (own_after - own).max(0.0) * 1e6 / count;
    figures.memory_mb = after.memory_bytes as f64 / 1e6;
    figures.disk_mb = after.disk_bytes as f64 / 1e6;
    figures.syncs_per_second = (synced_after - synced) / seen.elapsed.as_secs_f64();
    Ok(figures)
}

/// Leases that nobody renews any more would end in the middle of another measurement.
async fn revoke_all(cluster: &Cluster) -> Result<()> {
    let mut client = LeaseClient::new(cluster.channel().await?);
    let leases = client.lease_leases(LeaseLeasesRequest {}).await?.into_inner().leases;
    for lease in leases {
        client.lease_revoke(LeaseRevokeRequest { id: lease.id }).await?;
    }
    Ok(())
}

/// What databases go through, each once, one system after the other.
async fn lives(systems: &[System; 2], sizes: &Sizes, root: &Directory, report: &mut Report) -> Result<()> {
    let many: Vec<Row> =
        [Row::Memory, Row::Restart, Row::Compaction].into_iter().filter(|row| sizes.has(*row)).collect();
    if !many.is_empty() {
        let mut both = Vec::new();
        for system in systems {
            eprintln!("{} keys in {}", sizes.keys, system.name);
            let points = life::many_keys(system, sizes, &many, &root.0.join(system.name)).await;
            both.push(points.with_context(|| format!("many keys in {}", system.name))?);
        }
        report.pair(both);
    }
    for &gb in sizes.gb.iter().filter(|_| sizes.has(Row::Database)) {
        let mut both = Vec::new();
        for system in systems {
            eprintln!("{gb} GB in {}", system.name);
            let place = Directory::new(root.0.join(system.name))?;
            let points = life::large(system, gb, sizes, &place.0).await;
            both.push(points.with_context(|| format!("{gb} GB in {}", system.name))?);
        }
        report.pair(both);
    }
    if sizes.has(Row::Overwrite) {
        let mut both = Vec::new();
        for system in systems {
            eprintln!("{} keys of {}, overwritten {} times", sizes.overwrite_keys, system.name, sizes.overwrite_times);
            let points = life::overwritten(system, sizes, &root.0.join(system.name)).await;
            both.push(points.with_context(|| format!("overwrite keys of {}", system.name))?);
        }
        report.pair(both);
    }
    Ok(())
}
