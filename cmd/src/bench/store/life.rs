//! What a database goes through besides requests: it is filled, restarted, compacted under load, saved, restored, overwritten.
//!
//! Always holds: both systems get the same data in the same transactions, the commands their users have, and no care beyond
//! that: nobody defragments. What was read back was counted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use pintle_base::clock;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::{CompactionRequest, RangeRequest};

use super::chart::Goal;
use super::figures::{Figures, Sample, median};
use super::load::{Running, fill};
use super::plan::{Row, Sizes};
use super::progress::during;
use super::requests::{Data, END, FIRST, Workload};
use super::systems::{Cluster, System, size};

/// Values of the large databases: about what a pod takes.
const LARGE_VALUE: usize = 4096;
/// Clients of the steady load under a compaction, of reads and of writes.
const STEADY_CLIENTS: usize = 32;
/// A member that has not removed what was compacted after this time never will.
const COMPACTED: Duration = Duration::from_secs(900);
/// Nobody waits longer for a directory that goes on changing.
const SETTLED: Duration = Duration::from_secs(90);

/// A single figure of one system.
#[derive(Clone, Debug)]
pub struct Point {
    pub row: Row,
    /// What, of what, and in which unit: the same words for both systems.
    pub label: String,
    pub value: f64,
    pub goal: Option<Goal>,
}

/// What is found of one row.
struct Found<'a> {
    points: &'a mut Vec<Point>,
    row: Row,
}

impl Found<'_> {
    fn point(&mut self, label: String, value: f64, goal: Option<Goal>) {
        eprintln!("    {label}: {value:.2}");
        self.points.push(Point { row: self.row, label, value, goal });
    }
}

fn mb(bytes: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let bytes = bytes as f64;
    bytes / 1e6
}

/// Many keys: memory, restarts, compaction; of these what `rows` asks for.
pub async fn many_keys(system: &System, sizes: &Sizes, rows: &[Row], dir: &Path) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    let members = sizes.members.iter().copied().max().unwrap_or(1);
    let data = Data { keys: sizes.keys, value_bytes: sizes.value_bytes };
    let what = format!("{} keys of {} B", data.keys, data.value_bytes);
    let mut cluster = system.place(members, dir)?;
    cluster.start().await?;
    fill(&cluster.addresses().await?, data, 1, &format!("fill {} with {what}", system.name)).await?;
    during("let it settle", clock::sleep(sizes.settle)).await;
    let each = |bytes: u64| mb(bytes) / members as f64;
    if rows.contains(&Row::Memory) {
        let usage = cluster.usage();
        let mut found = Found { points: &mut points, row: Row::Memory };
        let half = Some(Goal::AtMost(0.5)).filter(|_| members == 3);
        found.point(format!("{what}: memory of a member, MB"), each(usage.memory_bytes), half);
        found.point(format!("{what}: of it in no file, MB"), each(usage.anonymous_bytes), None);
        found.point(format!("{what}: disk of a member, MB"), each(usage.disk_bytes), None);
    }
    if rows.contains(&Row::Restart) {
        let mut found = Found { points: &mut points, row: Row::Restart };
        let mut took = Vec::new();
        for _ in 0..sizes.runs {
            cluster.stop(Signal::SIGTERM).await?;
            took.push(during("restart", cluster.restart()).await?.as_secs_f64());
        }
        let half = Some(Goal::AtMost(0.5)).filter(|_| members == 3);
        let took = median(took.into_iter()).unwrap_or_default();
        found.point(format!("{what}: restart to first read, s"), took, half);
        cluster.stop(Signal::SIGKILL).await?;
        let took = during("restart", cluster.restart()).await?.as_secs_f64();
        found.point(format!("{what}: after SIGKILL, s"), took, None);
        count(&cluster, data.keys).await?;
        found.point(format!("{what}: memory after it, MB"), each(cluster.usage().memory_bytes), None);
    }
    if rows.contains(&Row::Compaction) {
        let mut found = Found { points: &mut points, row: Row::Compaction };
        compaction(&mut cluster, data, sizes, &mut found).await?;
        let label = format!("compacting {} changes: disk of a member after, MB", data.keys);
        found.point(label, each(cluster.usage().disk_bytes), None);
    }
    Ok(points)
}

/// Every key is overwritten, and the old ones are compacted away under a steady load of reads and writes.
async fn compaction(cluster: &mut Cluster, data: Data, sizes: &Sizes, found: &mut Found<'_>) -> Result<()> {
    let addresses = cluster.addresses().await?;
    fill(&addresses, data, 1, &format!("overwrite {} keys of {}", data.keys, cluster.system.name)).await?;
    during("let it settle", clock::sleep(sizes.settle)).await;
    let rate = (sizes.rate > 0).then_some(f64::from(sizes.rate) / 2.0);
    let mut puts = Running::start(&Workload::Put, &addresses, STEADY_CLIENTS, data, rate).await?;
    let mut gets = Running::start(&Workload::Get, &addresses, STEADY_CLIENTS, data, rate).await?;
    during("load before compaction", puts.work(sizes.steady)).await?;
    let began = puts.started.elapsed();
    let took = during("compact under load", compact(cluster)).await?;
    // What compaction leaves to be done afterwards belongs to it.
    puts.work(sizes.steady.saturating_sub(took)).await?;
    gets.work(Duration::ZERO).await?;
    let ended = puts.started.elapsed();
    let (puts, gets) = (puts.end().await?, gets.end().await?);
    let change = |samples: &[Sample]| -> [Figures; 2] {
        let part = |from: Duration, to: Duration| {
            let within = |sample: &&Sample| (from..to).contains(&Duration::from_millis(sample.at_ms.into()));
            Figures::of(&samples.iter().filter(within).copied().collect::<Vec<_>>(), to.saturating_sub(from))
        };
        // The first second is connections and caches.
        [part((began / 2).min(Duration::from_secs(1)), began), part(began, ended)]
    };
    let what = format!("compacting {} changes", data.keys);
    found.point(format!("{what}: time, s"), took.as_secs_f64(), None);
    let all: Vec<Sample> = puts.samples.iter().chain(&gets.samples).copied().collect();
    let [before, within] = change(&all);
    let kept = within.per_second / before.per_second.max(1e-9);
    found.point(format!("{what}: requests answered, of those before"), kept, Some(Goal::OwnAtLeast(0.9)));
    for (kind, samples) in [("put", &puts.samples), ("get", &gets.samples)] {
        let [before, within] = change(samples);
        found.point(format!("{what}: {kind} p99 before, ms"), before.p99_ms, None);
        found.point(format!("{what}: {kind} p99 meanwhile, ms"), within.p99_ms, None);
        let rise = within.p99_ms / before.p99_ms.max(1e-9);
        found.point(format!("{what}: {kind} p99, times that before"), rise, Some(Goal::OwnAtMost(1.1)));
    }
    Ok(())
}

/// Compacts everything up to now; how long it took until the history was removed from disk, as far as the system tells.
async fn compact(cluster: &Cluster) -> Result<Duration> {
    let mut client = KvClient::new(cluster.channel().await?);
    let read = RangeRequest { key: Bytes::from_static(FIRST), ..RangeRequest::default() };
    let header = client.range(read).await.context("ask for the revision")?.into_inner().header;
    let revision = header.context("an answer has a header")?.revision;
    let began = clock::now();
    client.compact(CompactionRequest { revision, physical: true }).await.context("compact")?;
    // An etcd has removed it when it answers. This store may answer before, and tells how far each member is.
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    while cluster.system.name == "pintle"
        && cluster.each("pintle_store_scrubbed_revision").await?.iter().any(|done| *done < revision as f64)
    {
        if began.elapsed() > COMPACTED {
            bail!("history is not removed within {} s", COMPACTED.as_secs());
        }
        clock::sleep(Duration::from_millis(100)).await;
    }
    Ok(began.elapsed())
}

/// One member with `gb` GB: its size, a restart, a backup and what becomes of it.
pub async fn large(system: &System, gb: f64, sizes: &Sizes, dir: &Path) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    let mut found = Found { points: &mut points, row: Row::Database };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a number of keys
    let keys = (gb * 1e9 / LARGE_VALUE as f64) as u64;
    let data = Data { keys: keys.max(1), value_bytes: LARGE_VALUE };
    let what = format!("database of {gb} GB");
    let mut cluster = system.place(1, &dir.join("first"))?;
    enough_space(dir, gb)?;
    cluster.start().await?;
    fill(&cluster.addresses().await?, data, 1, &format!("fill {} with {gb} GB", system.name)).await?;
    let bytes = settled(&cluster, sizes.settle).await;
    found.point(format!("{what}: disk, MB"), mb(bytes), None);
    cluster.stop(Signal::SIGTERM).await?;
    let took = during("restart", cluster.restart()).await?;
    found.point(format!("{what}: restart to first read, s"), took.as_secs_f64(), None);
    count(&cluster, data.keys).await?;

    let file = dir.join("backup.db");
    let began = clock::now();
    during("save a snapshot", cluster.save(&file)).await?;
    found.point(format!("{what}: snapshot save, s"), began.elapsed().as_secs_f64(), None);
    let bytes = std::fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?.len();
    found.point(format!("{what}: snapshot, MB"), mb(bytes), None);
    drop(cluster);

    let mut restored = system.place(1, &dir.join("second"))?;
    let began = clock::now();
    during("restore it", restored.restore(&file)).await?;
    found.point(format!("{what}: snapshot restore, s"), began.elapsed().as_secs_f64(), None);
    let took = during("start what was restored", restored.restart()).await?;
    found.point(format!("{what}: restored to first read, s"), took.as_secs_f64(), None);
    count(&restored, data.keys).await?;
    Ok(points)
}

/// A database, its snapshot, and the logs and garbage on the way.
fn enough_space(dir: &Path, gb: f64) -> Result<()> {
    let found = statvfs(dir).with_context(|| format!("look at {}", dir.display()))?;
    #[allow(clippy::cast_precision_loss)] // bytes of a disk
    let free = (found.blocks_available() * found.fragment_size()) as f64 / 1e9;
    if free < gb * 3.5 {
        bail!(
            "a database of {gb} GB needs {:.0} GB in {}, {free:.0} are free: --size-gb, TMPDIR",
            gb * 3.5,
            dir.display()
        );
    }
    Ok(())
}

/// One member whose keys are overwritten again and again, then compacted: what is left on disk.
pub async fn overwritten(system: &System, sizes: &Sizes, dir: &Path) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    let mut found = Found { points: &mut points, row: Row::Overwrite };
    let data = Data { keys: sizes.overwrite_keys, value_bytes: sizes.value_bytes };
    let what = format!("{} keys overwritten {} times", data.keys, sizes.overwrite_times);
    let mut cluster = system.place(1, dir)?;
    cluster.start().await?;
    let began = clock::now();
    let passes = sizes.overwrite_times + 1;
    fill(&cluster.addresses().await?, data, passes, &format!("overwrite keys of {}", system.name)).await?;
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let puts = (data.keys * passes) as f64;
    found.point(format!("{what}: puts in transactions of 128, per s"), puts / began.elapsed().as_secs_f64(), None);
    found.point(format!("{what}: disk before compaction, MB"), mb(cluster.usage().disk_bytes), None);
    let took = during("compact", compact(&cluster)).await?;
    found.point(format!("{what}: compaction, s"), took.as_secs_f64(), None);
    let bytes = settled(&cluster, sizes.settle).await;
    found.point(format!("{what}, compacted: disk, MB"), mb(bytes), Some(Goal::AtMost(1.0 / 3.0)));
    count(&cluster, data.keys).await?;
    Ok(points)
}

/// The bytes on disk once they have been the same for `calm`.
async fn settled(cluster: &Cluster, calm: Duration) -> u64 {
    let wait = async {
        let (started, mut last, mut since) = (clock::now(), cluster.usage().disk_bytes, clock::now());
        while since.elapsed() < calm && started.elapsed() < SETTLED {
            clock::sleep(Duration::from_millis(500)).await;
            let now = cluster.usage().disk_bytes;
            if now.abs_diff(last) > last / 100 {
                since = clock::now();
            }
            last = now;
        }
        last
    };
    during("wait until its size settles", wait).await
}

/// Holds what is there against what was written.
async fn count(cluster: &Cluster, keys: u64) -> Result<()> {
    let mut client = KvClient::new(cluster.channel().await?);
    let all = RangeRequest {
        key: Bytes::from_static(FIRST),
        range_end: Bytes::from_static(END),
        count_only: true,
        ..RangeRequest::default()
    };
    let found = client.range(all).await.context("count the keys")?.into_inner().count;
    if u64::try_from(found) != Ok(keys) {
        bail!("{} has {found} of {keys} keys", cluster.system.name);
    }
    Ok(())
}

/// Removes what it names, whatever happens.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), bytes = size(&self.0), "data of a benchmark stays");
        }
    }
}
