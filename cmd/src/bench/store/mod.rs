//! `bench store`: this store and an etcd, on the same machine, with the same client, in turns.
//!
//! Always holds: a figure of one system never stands without the other's; a figure is the median of its runs; every run of a
//! system begins with a cluster and data of its own, and the order of the systems changes from run to run.

mod chart;
mod load;
mod systems;
mod watch;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use pintle_base::clock;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use self::chart::{Goal, Line};
use self::load::{Data, Workload};
use self::systems::{Cluster, System};
use super::write_json;
use crate::exit::{self, Exit};

#[derive(clap::Args)]
pub struct Args {
    /// The etcd to compare with: a path, or a name to look for
    #[arg(long, default_value = "etcd", value_name = "PROGRAM")]
    against: PathBuf,
    /// Members of each cluster
    #[arg(long, value_delimiter = ',', default_value = "1,3")]
    members: Vec<usize>,
    /// Clients that send requests at the same time
    #[arg(long, value_delimiter = ',', default_value = "1,64,256,1000")]
    clients: Vec<usize>,
    /// What clients do
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "put,txn,get,stale-get,list-100,list-10000,keep-alive,mixed,fan-out"
    )]
    workloads: Vec<Workload>,
    /// How often everything is done; figures are medians
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Length of each measurement
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    seconds: u64,
    /// Keys in the store
    #[arg(long, default_value_t = 20_000)]
    keys: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the measures that have a goal, and the goals, to this file as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Lists are asked for by so many clients at most: a thousand lists at once are another question.
const LISTERS: usize = 64;
/// Clusters of a run lie below this directory of the system's temporary one.
const PREFIX: &str = "pintle-bench-store-";

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    members: usize,
    workload: Workload,
    clients: usize,
}

/// What came out of it, once per run.
#[derive(Clone, Copy, Debug)]
struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    p999: Duration,
    /// Of all members, per request.
    cpu: Duration,
    memory_bytes: u64,
    disk_bytes: u64,
    /// Writes of the log to stable storage, of all members, per second: nobody is fast by leaving them out.
    syncs: f64,
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
    let counts = args.members.iter().chain(&args.clients).chain([&args.runs]);
    if args.keys == 0 || counts.copied().min() == Some(0) {
        return Err(exit::with(Exit::Usage, "members, clients, runs and keys are at least one each".to_owned()));
    }
    let systems = [System::pintle()?, System::etcd(&args.against)];
    let versions = [systems[0].version()?, systems[1].version()?];
    println!("{}  against  {}", env!("CARGO_PKG_VERSION"), versions[1]);
    let mut measured: Vec<(Row, [Vec<Figures>; 2])> = Vec::new();
    for run in 0..args.runs {
        for &members in &args.members {
            for turn in 0..2 {
                let which = (run + turn) % 2;
                eprintln!("run {} of {}: {} members of {}", run + 1, args.runs, members, systems[which].name);
                for (row, figures) in one_cluster(&systems[which], members, &args).await? {
                    match measured.iter_mut().find(|(other, _)| *other == row) {
                        Some((_, found)) => found[which].push(figures),
                        None => {
                            let mut found = [Vec::new(), Vec::new()];
                            found[which].push(figures);
                            measured.push((row, found));
                        }
                    }
                }
            }
        }
    }
    let table: Vec<(Row, [Figures; 2])> =
        measured.iter().filter_map(|(row, [ours, theirs])| Some((*row, [median(ours)?, median(theirs)?]))).collect();
    print!("{}", text(&table));
    let lines: Vec<Line> = table.iter().flat_map(goals).collect();
    if !lines.is_empty() {
        print!("\n{}", chart::table(&lines));
    }
    if let Some(path) = &args.svg {
        let title = format!("pintle {} against {}", env!("CARGO_PKG_VERSION"), versions[1]);
        std::fs::write(path, chart::svg(&title, &lines)).with_context(|| format!("draw to {}", path.display()))?;
    }
    write_json(args.json.as_deref(), &figures(&table, &versions))
}

/// All measurements with one cluster.
async fn one_cluster(system: &System, members: usize, args: &Args) -> Result<Vec<(Row, Figures)>> {
    let dir = std::env::temp_dir().join(format!("{PREFIX}{}-{}", std::process::id(), system.name));
    let cluster = system.start(members, &dir).await?;
    let data = Data { keys: args.keys, value_bytes: args.value_bytes };
    load::fill(&cluster.connect(6).await?, data).await.with_context(|| format!("fill {}", system.name))?;
    let mut rows = Vec::new();
    for &workload in &args.workloads {
        let lists = matches!(workload, Workload::List100 | Workload::List10000);
        for &clients in args.clients.iter().filter(|clients| !lists || **clients <= LISTERS) {
            let row = Row { members, workload, clients };
            let figures = measure(&cluster, row, data, Duration::from_secs(args.seconds)).await;
            let figures = figures.with_context(|| format!("{} of {}", workload.name(), system.name))?;
            eprintln!("  {:<11} {clients:>5} clients {:>9.0}/s", workload.name(), figures.per_second);
            rows.push((row, figures));
        }
    }
    Ok(rows)
}

async fn measure(cluster: &Cluster, row: Row, data: Data, time: Duration) -> Result<Figures> {
    let channels = cluster.connect(load::connections(row.clients)).await?;
    let (before, synced) = (cluster.usage(), cluster.syncs().await?);
    let seen = load::run(row.workload, &channels, row.clients, time, data).await?;
    let (after, synced_after) = (cluster.usage(), cluster.syncs().await?);
    clock::sleep(Duration::from_millis(200)).await; // what one measurement left behind is not the next one's
    let mut latencies = seen.latencies;
    latencies.sort_unstable();
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let count = latencies.len() as f64;
    let rank = |permille: usize| latencies[(latencies.len() * permille / 1000).min(latencies.len() - 1)];
    Ok(Figures {
        per_second: count / seen.elapsed.as_secs_f64(),
        p50: rank(500),
        p99: rank(990),
        p999: rank(999),
        cpu: Duration::from_secs_f64((after.cpu_seconds - before.cpu_seconds).max(0.0) / count),
        memory_bytes: after.memory_bytes,
        disk_bytes: after.disk_bytes,
        syncs: (synced_after - synced) / seen.elapsed.as_secs_f64(),
    })
}

fn median(runs: &[Figures]) -> Option<Figures> {
    let middle = |value: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let time = |value: fn(&Figures) -> f64| middle(value).map(Duration::from_secs_f64);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bytes of memory
    Some(Figures {
        per_second: middle(|figures| figures.per_second)?,
        p50: time(|figures| figures.p50.as_secs_f64())?,
        p99: time(|figures| figures.p99.as_secs_f64())?,
        p999: time(|figures| figures.p999.as_secs_f64())?,
        cpu: time(|figures| figures.cpu.as_secs_f64())?,
        memory_bytes: middle(|figures| figures.memory_bytes as f64)? as u64,
        disk_bytes: middle(|figures| figures.disk_bytes as f64)? as u64,
        syncs: middle(|figures| figures.syncs)?,
    })
}

fn text(table: &[(Row, [Figures; 2])]) -> String {
    let mut text = String::from(
        "members workload   clients  system    req/s     p50 ms   p99 ms  p99.9 ms  CPU us/req  memory MB  disk MB  fsyncs/s\n",
    );
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    for (Row { members, workload, clients }, both) in table {
        for (name, figures) in ["pintle", "etcd"].iter().zip(both) {
            let _ = writeln!(
                text,
                "{members:>7} {:<11} {clients:>6}  {name:<7} {:>8.0} {:>10.2} {:>8.2} {:>9.2} {:>11.1} {:>10.0} {:>8.0} {:>9.0}",
                workload.name(),
                figures.per_second,
                ms(figures.p50),
                ms(figures.p99),
                ms(figures.p999),
                figures.cpu.as_secs_f64() * 1e6,
                figures.memory_bytes as f64 / 1e6,
                figures.disk_bytes as f64 / 1e6,
                figures.syncs,
            );
        }
        let [ours, theirs] = both;
        let _ = writeln!(
            text,
            "{:<28}ratio   {:>8.2} {:>10.2} {:>8.2} {:>9.2} {:>11.2} {:>10.2} {:>8.2}",
            "",
            ours.per_second / theirs.per_second,
            ratio(ours.p50, theirs.p50),
            ratio(ours.p99, theirs.p99),
            ratio(ours.p999, theirs.p999),
            ratio(ours.cpu, theirs.cpu),
            ours.memory_bytes as f64 / theirs.memory_bytes.max(1) as f64,
            ours.disk_bytes as f64 / theirs.disk_bytes.max(1) as f64,
        );
    }
    text
}

/// The measures of a row that have a goal; goals are of three members.
fn goals((row, [ours, theirs]): &(Row, [Figures; 2])) -> Vec<Line> {
    let mut lines = Vec::new();
    if row.members != 3 {
        return lines;
    }
    let mut line = |what: &str, goal: Goal, value: fn(&Figures) -> f64| {
        let label = format!("{} {what}, {} clients", row.workload.name(), row.clients);
        lines.push(Line { label, ours: value(ours), theirs: value(theirs), goal });
    };
    let per_second: fn(&Figures) -> f64 = |figures| figures.per_second;
    match (row.workload, row.clients) {
        (Workload::Put | Workload::Txn, 256 | 1000) => line("per second", Goal::AtLeast(2.0), per_second),
        (Workload::Get | Workload::StaleGet, 64..=256) => line("per second", Goal::AtLeast(1.5), per_second),
        (Workload::List10000, _) => line("per second", Goal::AtLeast(2.5), per_second),
        _ => {}
    }
    if row.workload == Workload::Put {
        match row.clients {
            1 => line("p50 ms", Goal::AtMost(0.7), |figures| figures.p50.as_secs_f64() * 1e3),
            64 | 1000 => line("p99 ms", Goal::AtMost(1.0 / 3.0), |figures| figures.p99.as_secs_f64() * 1e3),
            _ => {}
        }
        line("CPU us", Goal::AtMost(0.5), |figures| figures.cpu.as_secs_f64() * 1e6);
    }
    lines
}

fn ratio(ours: Duration, theirs: Duration) -> f64 {
    ours.as_secs_f64() / theirs.as_secs_f64().max(1e-9)
}

fn figures(table: &[(Row, [Figures; 2])], versions: &[String; 2]) -> Value {
    let one = |figures: &Figures| {
        json!({
            "per_second": figures.per_second,
            "p50_ms": figures.p50.as_secs_f64() * 1000.0,
            "p99_ms": figures.p99.as_secs_f64() * 1000.0,
            "p999_ms": figures.p999.as_secs_f64() * 1000.0,
            "cpu_us_per_request": figures.cpu.as_secs_f64() * 1e6,
            "memory_bytes": figures.memory_bytes,
            "disk_bytes": figures.disk_bytes,
            "fsyncs_per_second": figures.syncs,
        })
    };
    let rows: Vec<Value> = table
        .iter()
        .map(|(row, [ours, theirs])| {
            json!({
                "members": row.members, "workload": row.workload.name(), "clients": row.clients,
                "pintle": one(ours), "etcd": one(theirs),
            })
        })
        .collect();
    json!({ "versions": versions, "rows": rows })
}
