//! What clients do in a benchmark of the store: closed loops of one kind of request each, for a fixed time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use pintle_base::{clock, rng};
use pintle_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::lease_client::LeaseClient;
use pintle_proto::etcdserverpb::request_op::Request as Op;
use pintle_proto::etcdserverpb::response_op::Response as Answer;
use pintle_proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::watch;

/// Answers may be large lists.
const ANSWER_BYTES: usize = 1 << 30;
/// Clients that share one connection at most.
const PER_CONNECTION: usize = 16;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Puts on random keys
    Put,
    /// Compare-and-put as a kube-apiserver updates
    Txn,
    /// Linearizable reads of one key
    Get,
    /// Serializable reads of one key
    StaleGet,
    /// Lists of 100 keys
    #[value(name = "list-100")]
    List100,
    /// Lists of 10,000 keys
    #[value(name = "list-10000")]
    List10000,
    /// Renewals of a lease of one's own
    KeepAlive,
    /// What a busy kube-apiserver does: updates, reads, lists, new keys
    Mixed,
    /// One event to so many watchers of its key: the time to the last of them
    FanOut,
}

impl Workload {
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Txn => "txn",
            Self::Get => "get",
            Self::StaleGet => "stale-get",
            Self::List100 => "list-100",
            Self::List10000 => "list-10000",
            Self::KeepAlive => "keep-alive",
            Self::Mixed => "mixed",
            Self::FanOut => "fan-out",
        }
    }
}

/// Keys and values of a benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    pub keys: u64,
    pub value_bytes: usize,
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("/bench/{number:010}"))
}

fn value(bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    rng::fill(&mut value);
    Bytes::from(value)
}

fn put(number: u64, data: Data) -> PutRequest {
    PutRequest { key: key(number), value: value(data.value_bytes), ..PutRequest::default() }
}

/// Writes every key once.
pub async fn fill(channels: &[Channel], data: Data) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for channel in channels.iter().cycle().take(64) {
        let (mut client, next) = (KvClient::new(channel.clone()), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= data.keys {
                    return anyhow::Ok(());
                }
                client.put(put(number, data)).await.context("fill the store")?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a client panicked")??;
    }
    Ok(())
}

/// What the clients of one run saw.
pub struct Seen {
    pub latencies: Vec<Duration>,
    pub elapsed: Duration,
}

/// How many connections `clients` clients use.
pub fn connections(clients: usize) -> usize {
    clients.div_ceil(PER_CONNECTION).clamp(clients.min(6), 64)
}

/// `clients` clients send one request after the other for `time`.
pub async fn run(workload: Workload, channels: &[Channel], clients: usize, time: Duration, data: Data) -> Result<Seen> {
    if workload == Workload::FanOut {
        return watch::fan_out(channels, clients, time).await;
    }
    let started = clock::now();
    let end = started + time;
    let mut tasks = tokio::task::JoinSet::new();
    for channel in channels.iter().cycle().take(clients) {
        let channel = channel.clone();
        tasks.spawn(async move {
            if workload == Workload::KeepAlive {
                return keep_alive(channel, end).await;
            }
            let mut client = KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
            let mut latencies = Vec::new();
            let mut revisions = std::collections::HashMap::new();
            while clock::now() < end {
                let began = clock::now();
                one(workload, &mut client, data, &mut revisions).await?;
                latencies.push(began.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        latencies.extend(ended.context("a client panicked")??);
    }
    if latencies.is_empty() {
        bail!("no request ended in time");
    }
    Ok(Seen { latencies, elapsed: started.elapsed() })
}

async fn one(
    workload: Workload,
    client: &mut KvClient<Channel>,
    data: Data,
    revisions: &mut std::collections::HashMap<u64, i64>,
) -> Result<()> {
    let number = rng::u64() % data.keys;
    match workload {
        Workload::Put => drop(client.put(put(number, data)).await?),
        Workload::Txn => update(client, number, data, revisions).await?,
        Workload::Get | Workload::StaleGet => {
            let serializable = workload == Workload::StaleGet;
            let request = RangeRequest { key: key(number), serializable, ..RangeRequest::default() };
            if client.range(request).await?.into_inner().kvs.len() != 1 {
                bail!("a key is missing");
            }
        }
        Workload::List100 => list(client, 100, data).await?,
        Workload::List10000 => list(client, 10_000, data).await?,
        Workload::Mixed => {
            let kind = match rng::u64() % 100 {
                0..60 => Workload::Txn,
                60..85 => Workload::Get,
                85..95 => Workload::List100,
                _ => Workload::Put,
            };
            return Box::pin(one(kind, client, data, revisions)).await;
        }
        Workload::KeepAlive | Workload::FanOut => bail!("{} has loops of its own", workload.name()),
    }
    Ok(())
}

/// Renews one lease again and again.
async fn keep_alive(channel: Channel, end: clock::Instant) -> Result<Vec<Duration>> {
    let mut client = LeaseClient::new(channel);
    let id = client.lease_grant(LeaseGrantRequest { id: 0, ttl: 60 }).await?.into_inner().id;
    let (asks, requests) = mpsc::channel(1);
    let first = LeaseKeepAliveRequest { id };
    asks.send(first).await?;
    let mut answers = client.lease_keep_alive(ReceiverStream::new(requests)).await?.into_inner();
    let mut latencies = Vec::new();
    let mut began = clock::now();
    loop {
        let answer = answers.message().await?.context("the stream of renewals ended")?;
        if answer.ttl != 60 {
            bail!("a lease was renewed to {} s", answer.ttl);
        }
        latencies.push(began.elapsed());
        if clock::now() >= end {
            return Ok(latencies);
        }
        began = clock::now();
        asks.send(LeaseKeepAliveRequest { id }).await?;
    }
}

/// If the key is still at the revision this client knows: put; else learn it.
async fn update(
    client: &mut KvClient<Channel>,
    number: u64,
    data: Data,
    revisions: &mut std::collections::HashMap<u64, i64>,
) -> Result<()> {
    let known = revisions.get(&number).copied().unwrap_or(0);
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key(number),
        target_union: Some(TargetUnion::ModRevision(known)),
        ..Compare::default()
    };
    let op = |request| RequestOp { request: Some(request) };
    let request = TxnRequest {
        compare: vec![compare],
        success: vec![op(Op::RequestPut(put(number, data)))],
        failure: vec![op(Op::RequestRange(RangeRequest { key: key(number), ..RangeRequest::default() }))],
    };
    let answer = client.txn(request).await?.into_inner();
    let revision = match answer.responses.into_iter().next().and_then(|response| response.response) {
        Some(Answer::ResponseRange(range)) => range.kvs.first().map_or(0, |kv| kv.mod_revision),
        _ => answer.header.map_or(0, |header| header.revision),
    };
    revisions.insert(number, revision);
    Ok(())
}

async fn list(client: &mut KvClient<Channel>, limit: i64, data: Data) -> Result<()> {
    let request =
        RangeRequest { key: key(0), range_end: Bytes::from_static(b"/bench0"), limit, ..RangeRequest::default() };
    let found = client.range(request).await?.into_inner().kvs.len();
    if found as u64 != data.keys.min(limit.unsigned_abs()) {
        bail!("a list has {found} keys");
    }
    Ok(())
}
