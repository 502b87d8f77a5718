//! `etcdserverpb.Watch`: many watches on one stream.
//!
//! A session is one state machine polled by the transport: requests in, batches of its feed, answers out. Progress is sent only
//! after everything it speaks of, in the same queue (I8).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use pintle_base::clock::{self, Interval};
use pintle_base::rng;
use pintle_proto::etcdserverpb::watch_create_request::FilterType;
use pintle_proto::etcdserverpb::watch_request::RequestUnion;
use pintle_proto::etcdserverpb::watch_server::Watch as WatchService;
use pintle_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use pintle_proto::mvccpb::Event;
use prost::Message;
use prost::encoding::message;
use tokio::sync::watch::Receiver;
use tonic::{Request, Response, Status, Streaming};

use super::chunks::{Chunks, Messages};
use super::{acting, no_leader, require_leader, require_voter, wants_leader};
use crate::error::{StoreError, WatchError};
use crate::limits;
use crate::store::{Leadership, Store};
use crate::watch::{Feed, Filters, Selector, WatchBatch, WatchOptions};

/// The number of the field of events in `etcdserverpb.WatchResponse`, its last.
const EVENTS: u32 = 11;

/// Stands for the whole stream, or for a watch that was never made.
const NO_WATCH: i64 = -1;

pub(super) struct Watch {
    store: Store,
}

impl Watch {
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl WatchService for Watch {
    /// Always empty: what is sent takes its place, see [`Chunks`].
    type WatchStream = stream::Empty<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        let leader_lost = match wants_leader(request.metadata()) {
            true => leader_lost(self.store.leadership(), self.store.options().leader_patience).boxed(),
            false => futures::future::pending().boxed(),
        };
        // Boxed: it is moved with every answer.
        let session = Box::new(Session::new(acting(&self.store, &request), leader_lost));
        session.store.metrics().watch_streams.fetch_add(1, Ordering::Relaxed);
        let requests = request.into_inner();
        let chunks = stream::unfold((session, Box::new(requests)), |(mut session, mut requests)| async move {
            let chunk = session.next(&mut requests).await?;
            Some((chunk, (session, requests)))
        });
        let mut response = Response::new(stream::empty());
        response.extensions_mut().insert(Chunks::new(chunks.boxed()));
        Ok(response)
    }
}

/// Resolves once there was no leader for `patience`.
async fn leader_lost(mut leadership: Receiver<Leadership>, patience: std::time::Duration) {
    loop {
        if leadership.wait_for(|now| now.leader.is_none()).await.is_err() {
            return;
        }
        if clock::timeout(patience, leadership.wait_for(|now| now.leader.is_some())).await.is_err() {
            return;
        }
    }
}

struct Session {
    store: Store,
    feed: Feed,
    leader_lost: BoxFuture<'static, ()>,
    /// By the client's watch id.
    slots: BTreeMap<i64, Slot>,
    /// From the feed's ids to the client's.
    ids: BTreeMap<u64, i64>,
    next_id: i64,
    progress: Interval,
    answers: Messages,
    /// Of progress, up to which revision and for which watch: each after what it speaks of. Nothing else is done meanwhile.
    reports: VecDeque<(i64, i64)>,
    /// The client asks for nothing more; its watches go on.
    half_closed: bool,
    /// What ends the stream, once the answers before it are sent.
    failure: Option<Status>,
    over: bool,
}

struct Slot {
    feed_id: u64,
    fragment: bool,
    progress_notify: bool,
    /// No event went out since the last periodic progress.
    quiet: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.store.metrics().watch_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    fn new(store: Store, leader_lost: BoxFuture<'static, ()>) -> Self {
        let interval = store.options().progress_interval;
        Self {
            feed: Feed::new(Arc::clone(store.watches())),
            store,
            leader_lost,
            slots: BTreeMap::new(),
            ids: BTreeMap::new(),
            next_id: 0,
            // Streams that were opened together do not report together.
            progress: clock::ticker(rng::jitter(interval, 0.1)),
            answers: Messages::default(),
            reports: VecDeque::new(),
            half_closed: false,
            failure: None,
            over: false,
        }
    }

    /// The next answers; `None` once the client closed the stream.
    async fn next(&mut self, requests: &mut Streaming<WatchRequest>) -> Option<Result<Bytes, Status>> {
        loop {
            if !self.answers.is_empty() {
                return Some(Ok(self.answers.take()));
            }
            if self.over {
                return None;
            }
            if let Some(status) = self.failure.take() {
                self.over = true;
                return Some(Err(status));
            }
            if let Some(&(revision, watch_id)) = self.reports.front() {
                self.report(revision, watch_id);
                continue;
            }
            tokio::select! {
                request = requests.message(), if !self.half_closed => match request {
                    Ok(Some(request)) => self.on_request(request),
                    Ok(None) => self.half_closed = true,
                    Err(_) => return None,
                },
                (feed_id, batch) = self.feed.next() => self.on_batches(feed_id, batch),
                _ = self.progress.tick() => self.on_tick(),
                () = &mut self.leader_lost => {
                    self.over = true;
                    return Some(Err(no_leader()));
                }
            }
        }
    }

    fn on_request(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => {
                if let Some(revision) = self.feed.progress_of_all() {
                    self.reports.push_back((revision, NO_WATCH));
                }
            }
            None => (),
        }
    }

    fn create(&mut self, request: WatchCreateRequest) {
        let options = WatchOptions {
            filters: filters(&request.filters),
            start_revision: request.start_revision,
            prev_kv: request.prev_kv,
            key: request.key,
            range_end: request.range_end,
            progress_notify: false,
        };
        let duplicate = request.watch_id != 0 && self.slots.contains_key(&request.watch_id);
        // In etcd's order: what cannot be is said to anybody, also to who may watch nothing.
        let made = if request.start_revision < 0 {
            Err(WatchError::Compacted { compact_revision: 0 }.to_string())
        } else if let Err(reason) = self.permitted(&options) {
            Err(reason)
        } else if self.slots.len() >= limits::WATCHERS_PER_STREAM {
            Err(StoreError::Overloaded.to_string())
        } else if let Err(error) = Selector::new(&options) {
            Err(error.to_string())
        } else if duplicate {
            Err("mvcc: duplicate watch ID provided on the WatchStream".to_owned())
        } else {
            self.feed.add(&options).map_err(|error| error.to_string())
        };
        let (feed_id, created) = match made {
            Ok(made) => made,
            Err(reason) => return self.refuse(reason),
        };
        let watch_id = if request.watch_id == 0 { self.free_id() } else { request.watch_id };
        let slot = Slot { feed_id, fragment: request.fragment, progress_notify: request.progress_notify, quiet: true };
        self.slots.insert(watch_id, slot);
        self.ids.insert(feed_id, watch_id);
        let header = self.store.header(created);
        self.answer(&WatchResponse { header, watch_id, created: true, ..WatchResponse::default() });
    }

    /// What may be read may be watched. A refusal is told in the words in which etcd prints a status.
    fn permitted(&self, options: &WatchOptions) -> Result<(), String> {
        let permitted = self.store.permitted(|grant| grant.read(&options.interval()));
        permitted.map_err(|error| format!("rpc error: code = {:?} desc = {error}", error.code()))
    }

    fn refuse(&mut self, cancel_reason: String) {
        self.answer(&WatchResponse {
            header: self.store.header(self.store.revision()),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason,
            ..WatchResponse::default()
        });
    }

    /// The smallest id from the last given one on that no watch has.
    fn free_id(&mut self) -> i64 {
        while self.slots.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// An unknown id gets no answer at all, as in etcd.
    fn cancel(&mut self, watch_id: i64) {
        if let Some(slot) = self.slots.remove(&watch_id) {
            self.ids.remove(&slot.feed_id);
            self.feed.remove(slot.feed_id);
            let header = self.store.header(self.store.revision());
            self.answer(&WatchResponse { header, watch_id, canceled: true, ..WatchResponse::default() });
        }
    }

    /// A batch and those that wait behind it, up to a bound: an event that thousands watch is told without asking for requests, time and
    /// leader in between.
    fn on_batches(&mut self, feed_id: u64, batch: Result<WatchBatch, WatchError>) {
        let mut next = Some((feed_id, batch));
        let mut bytes = 0;
        while let Some((feed_id, batch)) = next {
            bytes += batch.as_ref().map_or(0, size);
            if let Err(status) = self.on_batch(feed_id, batch) {
                self.failure = Some(status);
                return;
            }
            next = if bytes < limits::WATCH_ANSWERS_BYTES { self.feed.next_now() } else { None };
        }
    }

    fn on_batch(&mut self, feed_id: u64, batch: Result<WatchBatch, WatchError>) -> Result<(), Status> {
        let Some(&watch_id) = self.ids.get(&feed_id) else { return Ok(()) };
        match batch {
            Ok(batch) => {
                self.send(watch_id, &batch);
                Ok(())
            }
            // The slot stays until the client cancels it: until then the stream reports no progress.
            Err(WatchError::Compacted { compact_revision }) => {
                let header = self.store.header(0);
                let answer =
                    WatchResponse { header, watch_id, canceled: true, compact_revision, ..WatchResponse::default() };
                self.answer(&answer);
                Ok(())
            }
            Err(WatchError::Stopped) => Err(StoreError::Stopped.into()),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    fn send(&mut self, watch_id: i64, batch: &WatchBatch) {
        let Some(slot) = self.slots.get_mut(&watch_id) else { return };
        slot.quiet = false;
        let header = self.store.header(batch.revision);
        let mut events = batch.events.as_slice();
        if slot.fragment {
            while let Some(at) = split(events, self.store.options().request_bytes) {
                let head = WatchResponse { header, watch_id, fragment: true, ..WatchResponse::default() };
                self.answers.push(&head, |out| encode(&events[..at], out));
                events = &events[at..];
            }
        }
        let head = WatchResponse { header, watch_id, ..WatchResponse::default() };
        self.answers.push(&head, |out| encode(events, out));
    }

    fn answer(&mut self, answer: &WatchResponse) {
        self.answers.push(answer, |_| ());
    }

    /// Goes on with the first report: that everything up to its revision was sent comes after that.
    fn report(&mut self, revision: i64, watch_id: i64) {
        let mut bytes = 0;
        while bytes < limits::WATCH_ANSWERS_BYTES {
            let Some((feed_id, batch)) = self.feed.next_within(revision) else {
                self.reports.pop_front();
                if watch_id == NO_WATCH || self.slots.contains_key(&watch_id) {
                    let header = self.store.header(revision);
                    self.answer(&WatchResponse { header, watch_id, ..WatchResponse::default() });
                }
                return;
            };
            bytes += batch.as_ref().map_or(0, size);
            if let Err(status) = self.on_batch(feed_id, batch) {
                self.failure = Some(status);
                return;
            }
        }
    }

    fn on_tick(&mut self) {
        let mut due = Vec::new();
        for (watch_id, slot) in &mut self.slots {
            if slot.progress_notify && slot.quiet {
                due.push((*watch_id, slot.feed_id));
            }
            slot.quiet = true;
        }
        for (watch_id, feed_id) in due {
            if let Some(revision) = self.feed.progress(&[feed_id]) {
                self.reports.push_back((revision, watch_id));
            }
        }
    }
}

/// Bytes of a batch in an answer, about.
fn size(batch: &WatchBatch) -> usize {
    let values = |event: &Event| -> usize {
        [&event.kv, &event.prev_kv].into_iter().flatten().map(|kv| kv.key.len() + kv.value.len()).sum()
    };
    batch.events.iter().map(|event| limits::KV_OVERHEAD + values(event)).sum()
}

fn filters(filters: &[i32]) -> Filters {
    Filters {
        no_put: filters.contains(&i32::from(FilterType::Noput)),
        no_delete: filters.contains(&i32::from(FilterType::Nodelete)),
    }
}

/// Writes the events of an answer, its last field.
fn encode(events: &[Arc<Event>], out: &mut BytesMut) {
    events.iter().for_each(|event| message::encode(EVENTS, &**event, out));
}

/// How many of `events` fit a message of `limit` bytes, if not all do.
fn split(events: &[Arc<Event>], limit: usize) -> Option<usize> {
    let mut bytes = 0;
    for (at, event) in events.iter().enumerate() {
        bytes += event.encoded_len() + 8;
        if bytes > limit && at > 0 {
            return Some(at);
        }
    }
    None
}
