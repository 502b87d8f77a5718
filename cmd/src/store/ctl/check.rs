//! `check perf` and `check datascale`: a fixed load, and a verdict.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pintle_base::{clock, rng};
use pintle_proto::etcdserverpb::{CompactionRequest, DefragmentRequest, DeleteRangeRequest, PutRequest, RangeRequest};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::Client;
use super::dial::Target;
use super::grammar::{CheckCommand, LoadArgs};
use super::{Context, Done, Failure, go, print};

/// One size: its names, writes a second of `perf`, keys of `datascale`, clients.
struct Size {
    names: [&'static str; 2],
    rate: u64,
    keys: u64,
    clients: usize,
}

const SIZES: [Size; 4] = [
    Size { names: ["s", "small"], rate: 150, keys: 10_000, clients: 50 },
    Size { names: ["m", "medium"], rate: 1_000, keys: 100_000, clients: 200 },
    Size { names: ["l", "large"], rate: 8_000, keys: 1_000_000, clients: 500 },
    Size { names: ["xl", "xLarge"], rate: 15_000, keys: 3_000_000, clients: 1_000 },
];

const PERF_TIME: Duration = Duration::from_secs(60);
/// What `perf` asks of a cluster: no write slower, and not more spread.
const SLOWEST: f64 = 0.5;
const SPREAD: f64 = 0.1;
/// How often writes are let go.
const TICK: Duration = Duration::from_millis(2);
/// Writes that wait for a client where no rate is kept.
const STOCK: u64 = 1000;
/// How long cleaning up may take.
const CLEAN_UP: Duration = Duration::from_secs(30);

pub async fn run(context: &Context, command: CheckCommand) -> Done {
    match command {
        CheckCommand::Perf(args) => perf(context, &args).await,
        CheckCommand::Datascale(args) => datascale(context, &args).await,
    }
}

fn size(args: &LoadArgs) -> Result<&'static Size, Failure> {
    let found = SIZES.iter().find(|size| size.names.contains(&args.load.as_str()));
    found.ok_or_else(|| Failure::bad_feature(format!("unknown load option {}", args.load)))
}

async fn perf(context: &Context, args: &LoadArgs) -> Done {
    let size = size(args)?;
    let prefix = args.prefix.clone().unwrap_or_else(|| "/etcdctl-check-perf/".to_owned());
    let clients = clients(context, size.clients).await?;
    refuse_used(&clients[0], &prefix).await?;
    let began = clock::now();
    let load = Load { prefix: prefix.clone(), key: 256, value: 1024, most: u64::MAX, until: Some(began + PERF_TIME) };
    let interrupted = tokio::signal::ctrl_c();
    let results = tokio::select! {
        results = load.run(&clients, Some(size.rate)) => results,
        _ = interrupted => {
            clean_up(&clients[0], &prefix, args).await?;
            return Err(Failure::told(130));
        }
    };
    let took = (clock::now() - began).as_secs_f64();
    clean_up(&clients[0], &prefix, args).await?;
    verdict(&results, took, size.rate)
}

#[allow(clippy::cast_precision_loss)] // counts of a minute
fn verdict(results: &[Result<f64, String>], took: f64, rate: u64) -> Done {
    let good: Vec<f64> = results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
    let mut passed = errors(results)?;
    let per_second = good.len() as f64 / took.max(1e-9);
    let mean = good.iter().sum::<f64>() / good.len().max(1) as f64;
    let spread = (good.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / good.len().max(1) as f64).sqrt();
    let slowest = good.iter().copied().fold(0.0, f64::max);
    let shown = format!("{:.0}", per_second.ceil());
    let lines = [
        (
            per_second / rate as f64 > 0.9,
            format!("PASS: Throughput is {shown} writes/s"),
            format!("FAIL: Throughput too low: {shown} writes/s"),
        ),
        (
            slowest <= SLOWEST,
            format!("PASS: Slowest request took {slowest:.6}s"),
            format!("Slowest request took too long: {slowest:.6}s"),
        ),
        (spread <= SPREAD, format!("PASS: Stddev is {spread:.6}s"), format!("Stddev too high: {spread:.6}s")),
    ];
    for (fine, good, bad) in lines {
        print::out(format!("{}\n", if fine { good } else { bad }))?;
        passed &= fine;
    }
    print::out(if passed { "PASS\n" } else { "FAIL\n" })?;
    if passed { Ok(()) } else { Err(Failure::told(1)) }
}

/// Tells of refused writes; whether there were none.
fn errors(results: &[Result<f64, String>]) -> Result<bool, Failure> {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    results.iter().filter_map(|result| result.as_ref().err()).for_each(|error| *counts.entry(error).or_default() += 1);
    if !counts.is_empty() {
        print::out("FAIL: too many errors\n")?;
    }
    for (error, count) in &counts {
        print::out(format!("FAIL: ERROR({error}) -> {count}\n"))?;
    }
    Ok(counts.is_empty())
}

async fn datascale(context: &Context, args: &LoadArgs) -> Done {
    let size = size(args)?;
    let prefix = args.prefix.clone().unwrap_or_else(|| "/etcdctl-check-datascale/".to_owned());
    let clients = clients(context, size.clients).await?;
    refuse_used(&clients[0], &prefix).await?;
    let server = Target::new(&context.settings.endpoints[0], &context.settings)?;
    let before = memory(&server, "before").await?;
    let (keys, bytes) = (size.keys, 1024);
    print::out(format!(
        "Start data scale check for work load [{keys} key-value pairs, {bytes} bytes per key-value, {} concurrent clients].\n",
        size.clients
    ))?;
    let load = Load { prefix: prefix.clone(), key: bytes / 2, value: bytes / 2, most: keys, until: None };
    let results = load.run(&clients, None).await;
    let after = memory(&server, "after").await?;
    clean_up(&clients[0], &prefix, args).await?;
    if !errors(&results)? {
        return Err(Failure::told(1));
    }
    print::out(format!("PASS: Approximate system memory used : {:.2} MB.\n", (after - before) / f64::from(1 << 20)))
}

/// Bytes of memory that the server says it uses.
async fn memory(server: &Target, when: &str) -> Result<f64, Failure> {
    let read = server.get("/metrics").await.map_err(|error| format!("{error:#}"));
    let found = read.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        line.and_then(|value| value.trim().parse::<f64>().ok()).ok_or_else(|| "it is not among its metrics".to_owned())
    });
    found.map_err(|error| {
        let told = format!("FAIL: Could not read process_resident_memory_bytes {when} the put operations.\n");
        print::out(told).err().unwrap_or_else(|| Failure::error(error))
    })
}

async fn clients(context: &Context, count: usize) -> Result<Vec<Arc<Client>>, Failure> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        clients.push(Arc::new(context.client().await?));
    }
    Ok(clients)
}

async fn refuse_used(client: &Client, prefix: &str) -> Done {
    let (key, range_end) = (Bytes::from(prefix.to_owned()), go::prefix_end(prefix.as_bytes()).into());
    let found = client.ask(RangeRequest { key, range_end, limit: 1, ..RangeRequest::default() }).await?;
    if found.kvs.is_empty() {
        return Ok(());
    }
    let quoted = go::quote(prefix.as_bytes());
    Err(Failure::invalid_input(format!("prefix {quoted} has keys. Delete with 'etcdctl del --prefix {prefix}' first")))
}

async fn clean_up(client: &Client, prefix: &str, args: &LoadArgs) -> Done {
    let deadline = Some(clock::now() + CLEAN_UP);
    let range_end = go::prefix_end(prefix.as_bytes()).into();
    let request = DeleteRangeRequest { key: prefix.to_owned().into(), range_end, prev_kv: false };
    let deleted = match client.ask_until(request, deadline).await {
        Ok(deleted) => deleted,
        Err(error) => return print::out(format!("FAIL: Cleanup failed during key deletion: ERROR({error})\n")),
    };
    let revision = deleted.header.unwrap_or_default().revision;
    if args.auto_compact {
        print::out(format!("Compacting with revision {revision}\n"))?;
        client.ask_until(CompactionRequest { revision, physical: true }, deadline).await?;
        print::out(format!("Compacted with revision {revision}\n"))?;
    }
    for endpoint in client.settings.endpoints.iter().filter(|_| args.auto_defrag) {
        let shown = go::quote(endpoint.as_bytes());
        print::out(format!("Defragmenting {shown}\n"))?;
        Client::of(endpoint, &client.settings).await?.ask_until(DefragmentRequest {}, deadline).await?;
        print::out(format!("Defragmented {shown}\n"))?;
    }
    Ok(())
}

/// Writes of random keys.
struct Load {
    prefix: String,
    key: usize,
    value: usize,
    most: u64,
    until: Option<Instant>,
}

impl Load {
    /// Seconds of each write, or why it was refused.
    async fn run(&self, clients: &[Arc<Client>], rate: Option<u64>) -> Vec<Result<f64, String>> {
        let permits = Arc::new(Semaphore::new(0));
        let mut tasks = JoinSet::new();
        for client in clients {
            let (client, permits) = (Arc::clone(client), Arc::clone(&permits));
            let (prefix, key, value) = (self.prefix.clone(), self.key, Bytes::from(vec![0; self.value]));
            tasks.spawn(async move {
                let mut results = Vec::new();
                while let Ok(permit) = permits.acquire().await {
                    permit.forget();
                    let mut random = vec![0; key];
                    rng::fill(&mut random[..10]);
                    let key = [prefix.as_bytes(), &random].concat().into();
                    let began = clock::now();
                    let request = PutRequest { key, value: value.clone(), ..PutRequest::default() };
                    let done = client.ask_until(request, Some(began + CLEAN_UP)).await;
                    results.push(done.map(|_| (clock::now() - began).as_secs_f64()).map_err(|error| error.to_string()));
                }
                results
            });
        }
        self.release(&permits, rate).await;
        permits.close();
        let mut all = Vec::new();
        while let Some(results) = tasks.join_next().await {
            all.extend(results.unwrap_or_else(|error| vec![Err(error.to_string())]));
        }
        all
    }

    /// Lets as many writes go as there are to be, `rate` in a second, or as fast as they are done.
    async fn release(&self, permits: &Semaphore, rate: Option<u64>) {
        let began = clock::now();
        let mut ticker = clock::ticker(TICK);
        let mut released = 0;
        while released < self.most && self.until.is_none_or(|until| clock::now() < until) {
            ticker.tick().await;
            let waiting = permits.available_permits() as u64;
            let due = match rate {
                // By the time that passed: a late tick does not lower the rate.
                Some(rate) => u64::try_from((clock::now() - began).as_millis()).unwrap_or(u64::MAX) * rate / 1000,
                None => released + STOCK.saturating_sub(waiting),
            };
            let batch = due.min(self.most).saturating_sub(released);
            permits.add_permits(usize::try_from(batch).unwrap_or_default());
            released += batch;
        }
        while permits.available_permits() > 0 && rate.is_none() {
            ticker.tick().await;
        }
    }
}
