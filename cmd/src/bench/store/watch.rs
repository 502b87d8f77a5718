//! One event to many watchers: a key is put, again and again, and the time is taken until the last watcher has heard of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use pintle_base::clock;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::watch_client::WatchClient;
use pintle_proto::etcdserverpb::watch_request::RequestUnion;
use pintle_proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::load::Seen;

/// Watchers that share one stream, as those of a kube-apiserver do.
const PER_STREAM: usize = 100;
/// A watcher that hears nothing for so long never will.
const PATIENCE: Duration = Duration::from_secs(30);
const KEY: &[u8] = b"/bench-watched";

/// How many watchers have heard of the newest event.
#[derive(Default)]
struct Heard {
    count: AtomicUsize,
    all: Notify,
}

/// `watchers` watchers of one key, for `time`. What is seen is the time from the beginning of a put to the last of them.
pub async fn fan_out(channels: &[Channel], watchers: usize, time: Duration) -> Result<Seen> {
    let heard = Arc::new(Heard::default());
    let mut streams = JoinSet::new();
    let mut left = watchers;
    for channel in channels.iter().cycle() {
        if left == 0 {
            break;
        }
        let here = left.min(PER_STREAM);
        left -= here;
        let (asks, answers) = open(channel, here).await?;
        streams.spawn(listen(asks, answers, Arc::clone(&heard), watchers));
    }
    let channel = channels.first().context("a connection is needed")?;
    let mut writer = KvClient::new(channel.clone());
    let (started, mut latencies) = (clock::now(), Vec::new());
    while started.elapsed() < time {
        heard.count.store(0, Ordering::SeqCst);
        let began = clock::now();
        let put = PutRequest {
            key: Bytes::from_static(KEY),
            value: Bytes::from_static(&[b'x'; 64]),
            ..PutRequest::default()
        };
        let (written, all) = tokio::join!(writer.put(put), clock::timeout(PATIENCE, heard.all.notified()));
        written.context("put")?;
        if all.is_err() {
            bail!("{} of {watchers} watchers heard of an event", heard.count.load(Ordering::SeqCst));
        }
        latencies.push(began.elapsed());
    }
    let elapsed = started.elapsed();
    streams.shutdown().await;
    Ok(Seen { latencies, elapsed })
}

type Asks = mpsc::Sender<WatchRequest>;

/// One stream with `count` watchers that have all been created.
async fn open(channel: &Channel, count: usize) -> Result<(Asks, Streaming<WatchResponse>)> {
    let (asks, requests) = mpsc::channel(count);
    for _ in 0..count {
        let create = WatchCreateRequest { key: Bytes::from_static(KEY), ..WatchCreateRequest::default() };
        asks.try_send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })?;
    }
    let mut client = WatchClient::new(channel.clone());
    let mut answers = client.watch(ReceiverStream::new(requests)).await.context("watch")?.into_inner();
    for _ in 0..count {
        let answer = clock::timeout(PATIENCE, answers.message()).await.context("a watcher is not created")??;
        if !answer.is_some_and(|answer| answer.created) {
            bail!("a watcher was not created");
        }
    }
    Ok((asks, answers))
}

async fn listen(asks: Asks, mut answers: Streaming<WatchResponse>, heard: Arc<Heard>, watchers: usize) {
    while let Ok(Some(answer)) = answers.message().await {
        if !answer.events.is_empty() && heard.count.fetch_add(1, Ordering::SeqCst) + 1 == watchers {
            heard.all.notify_one();
        }
    }
    drop(asks); // the stream lasts as long as somebody could ask
}
