//! One event to many watchers: a key is put, again and again, and the time is taken until the last of its watchers has heard of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use pintle_base::{clock, rng};
use pintle_proto::etcdserverpb::watch_request::RequestUnion;
use pintle_proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest};
use prost::Message;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::figures::Sample;
use super::load::Seen;
use super::wire::{Event, Field, Fields, Messages, Wire};

/// Watchers that share one stream, as those of a kube-apiserver do.
const PER_STREAM: usize = 100;
/// Connections that watchers share at most.
const CONNECTIONS: usize = 64;
/// A watcher that hears nothing for so long never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many watchers have heard of the newest event, and how many there are to hear of it.
#[derive(Default)]
struct Heard {
    count: AtomicUsize,
    wanted: AtomicUsize,
    all: Notify,
}

impl Heard {
    fn expect(&self, count: usize) {
        self.count.store(0, Ordering::SeqCst);
        self.wanted.store(count, Ordering::SeqCst);
    }

    fn one(&self) {
        if self.count.fetch_add(1, Ordering::SeqCst) + 1 == self.wanted.load(Ordering::SeqCst) {
            self.all.notify_one();
        }
    }

    async fn wait(&self) -> Result<()> {
        if clock::timeout(PATIENCE, self.all.notified()).await.is_err() {
            let (count, wanted) = (self.count.load(Ordering::SeqCst), self.wanted.load(Ordering::SeqCst));
            bail!("{count} of {wanted} watchers were heard of within {} s", PATIENCE.as_secs());
        }
        Ok(())
    }
}

fn key(number: usize) -> Bytes {
    Bytes::from(format!("/bench-watched/{number:06}"))
}

/// Watchers of `keys` keys, spread evenly, all created; gone with the last stream when dropped.
pub struct Watchers {
    heard: Arc<Heard>,
    streams: JoinSet<Result<()>>,
    count: usize,
    keys: usize,
    writer: Wire,
}

impl Watchers {
    pub async fn create(addresses: &[String], count: usize, keys: usize) -> Result<Self> {
        let heard = Arc::new(Heard::default());
        heard.expect(count);
        let mut streams = JoinSet::new();
        let groups: Vec<Vec<usize>> =
            (0..count).collect::<Vec<_>>().chunks(PER_STREAM).map(|watchers| watchers.to_vec()).collect();
        let connections = groups.len().min(CONNECTIONS);
        for (at, address) in addresses.iter().cycle().take(connections).enumerate() {
            let wire = Wire::connect(address).await?;
            let groups = groups.iter().skip(at).step_by(connections).cloned().collect();
            streams.spawn(listen(wire, groups, keys, Arc::clone(&heard)));
        }
        let writer = Wire::connect(addresses.first().context("an address is needed")?).await?;
        let mut watchers = Self { heard, streams, count, keys, writer };
        watchers.all_heard().await.context("create watchers")?;
        Ok(watchers)
    }

    /// Until everybody that is waited for was heard of; sooner if a stream is lost.
    async fn all_heard(&mut self) -> Result<()> {
        tokio::select! {
            all = self.heard.wait() => all,
            Some(ended) = self.streams.join_next() => {
                ended.context("a listener panicked")??;
                bail!("a stream ended");
            }
        }
    }

    /// Events for `time`. What is seen is the time from the beginning of a put to the last of its watchers.
    pub async fn events(&mut self, time: Duration) -> Result<Seen> {
        let (started, mut samples) = (clock::now(), Vec::new());
        while started.elapsed() < time {
            let watched = self.keys.min(self.count);
            let number = usize::try_from(rng::below(watched as u64))?;
            self.heard.expect(self.count / self.keys + usize::from(number < self.count % self.keys));
            let began = clock::now();
            self.put(number)?;
            let (heard, writer, streams) = (&self.heard, &mut self.writer, &mut self.streams);
            let written = clock::timeout(PATIENCE, answered(writer));
            let all = async {
                tokio::select! {
                    all = heard.wait() => all.map(|()| began.elapsed()),
                    Some(_) = streams.join_next() => bail!("a stream ended"),
                }
            };
            let (written, took) = tokio::join!(written, all);
            written.context("a put was not answered")??;
            samples.push(Sample::new(started.elapsed(), took?));
        }
        Ok(Seen { samples, elapsed: started.elapsed() })
    }

    fn put(&mut self, number: usize) -> Result<()> {
        let value = Bytes::from_static(&[b'x'; 64]);
        let put = PutRequest { key: key(number), value, ..PutRequest::default() };
        let stream = self.writer.open("/etcdserverpb.KV/Put");
        self.writer.send(stream, &put.encode_to_vec(), true);
        Ok(())
    }
}

/// Until the request on its way is answered.
async fn answered(wire: &mut Wire) -> Result<()> {
    let mut answers = 0;
    loop {
        while let Some(event) = wire.event()? {
            match event {
                Event::Data { .. } => answers += 1,
                Event::Ended { .. } if answers == 0 => bail!("a put was refused"),
                Event::Ended { .. } => return Ok(()),
            }
        }
        wire.turn(None).await?;
    }
}

/// Opens a stream for each group of watchers, one after the other, and counts: each watcher once it is created, then each of its
/// events. Servers cut off who sends them many small frames at once.
async fn listen(mut wire: Wire, groups: Vec<Vec<usize>>, keys: usize, heard: Arc<Heard>) -> Result<()> {
    let mut streams: HashMap<u32, Messages> = HashMap::new();
    let mut groups = groups.into_iter();
    let mut creating = 0;
    loop {
        if creating == 0
            && let Some(watchers) = groups.next()
        {
            creating = watchers.len();
            let stream = wire.open("/etcdserverpb.Watch/Watch");
            streams.insert(stream, Messages::default());
            for watcher in watchers {
                let create = WatchCreateRequest { key: key(watcher % keys), ..WatchCreateRequest::default() };
                let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
                wire.send(stream, &request.encode_to_vec(), false);
            }
        }
        wire.turn(None).await?;
        while let Some(event) = wire.event()? {
            let (stream, bytes) = match event {
                Event::Data { stream, bytes } => (stream, bytes),
                Event::Ended { .. } => bail!("a stream of watchers ended"),
            };
            let messages = streams.get_mut(&stream).context("an answer to nobody")?;
            messages.take(&bytes, |answer| {
                match said(answer)? {
                    Said::Created => creating -= 1,
                    Said::Events => {}
                    Said::Nothing => return Ok(()),
                }
                heard.one();
                Ok(())
            })?;
        }
    }
}

/// What an answer on a stream of watchers tells.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Created,
    Events,
    Nothing,
}

fn said(answer: &[u8]) -> Result<Said> {
    for field in Fields(answer) {
        match field? {
            Field::Number(3, 1) => return Ok(Said::Created),
            Field::Bytes(11, _) => return Ok(Said::Events),
            Field::Number(4, 1) => bail!("a watcher was canceled"),
            _ => {}
        }
    }
    Ok(Said::Nothing)
}

#[cfg(test)]
mod tests {
    use pintle_proto::etcdserverpb::WatchResponse;
    use pintle_proto::mvccpb;

    use super::*;

    #[test]
    fn creation_and_events_count_and_progress_does_not() {
        let says = |answer: &WatchResponse| said(&answer.encode_to_vec()).ok();
        let event = mvccpb::Event::default();
        assert_eq!(says(&WatchResponse { created: true, ..WatchResponse::default() }), Some(Said::Created));
        assert_eq!(says(&WatchResponse { events: vec![event; 2], ..WatchResponse::default() }), Some(Said::Events));
        assert_eq!(says(&WatchResponse { watch_id: 4, ..WatchResponse::default() }), Some(Said::Nothing));
        assert_eq!(says(&WatchResponse { canceled: true, ..WatchResponse::default() }), None);
    }
}
