//! A watch stream: a task takes in what comes, this end sends requests and waits for what must have come.
//!
//! What no watch may ever do is held while it is taken in: events in the order of revisions, none twice, no revision in two
//! messages unless they are marked as fragments, and no header behind the events it comes with.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pintle_proto::etcdserverpb::watch_client::WatchClient;
use pintle_proto::etcdserverpb::watch_request::RequestUnion;
use pintle_proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use pintle_proto::mvccpb::Event;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::DEADLINE;

/// Progress is asked for again after this, as a server says nothing while a watch lags.
const PROGRESS_RETRY: Duration = Duration::from_millis(30);

pub struct WatchStream {
    requests: mpsc::Sender<WatchRequest>,
    inbox: Arc<Inbox>,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<Received>,
    changed: Notify,
}

/// What came and was not taken yet.
#[derive(Default)]
pub struct Received {
    /// Answers that make or end watches.
    control: VecDeque<WatchResponse>,
    watches: BTreeMap<i64, Events>,
    /// The revisions that the whole stream was said to have delivered.
    progress: Vec<i64>,
    /// A rule that was broken, or how the stream ended.
    pub broken: Option<String>,
}

#[derive(Default)]
struct Events {
    waiting: Vec<Event>,
    last_revision: i64,
    within_fragments: bool,
}

impl WatchStream {
    pub async fn open(channel: &Channel) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let inbox = Arc::new(Inbox::default());
        // The server answers the call only with its first message.
        let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let into = Arc::clone(&inbox);
        tokio::spawn(async move {
            let end = match client.watch(ReceiverStream::new(receiver)).await {
                Ok(stream) => take_in(stream.into_inner(), &into).await,
                Err(status) => status,
            };
            into.received().broken.get_or_insert(format!("the stream ended: {end}"));
            into.changed.notify_waiters();
        });
        Self { requests, inbox }
    }

    pub async fn watch_everything(&self) {
        let all = WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: 1,
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        self.create(&all).await.expect("a watch on everything");
    }

    /// The answer to the request for a watch.
    pub async fn create(&self, request: &WatchCreateRequest) -> Result<WatchResponse, String> {
        self.send(RequestUnion::CreateRequest(request.clone())).await;
        self.control().await
    }

    /// The answer to the request to end a watch that there is.
    pub async fn cancel(&self, watch_id: i64) -> Result<WatchResponse, String> {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
        let answer = self.control().await;
        self.inbox.received().watches.remove(&watch_id);
        answer
    }

    /// The next answer that makes or ends a watch.
    pub async fn control(&self) -> Result<WatchResponse, String> {
        self.until("an answer about a watch", |received| received.control.pop_front()).await
    }

    /// Asks until the stream says that all up to `revision` was delivered, and returns what it said.
    pub async fn progress(&self, revision: i64) -> Result<i64, String> {
        let asked = async {
            loop {
                self.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
                let said = |received: &mut Received| received.progress.iter().copied().find(|said| *said >= revision);
                let said = tokio::time::timeout(PROGRESS_RETRY, self.until("progress", said)).await;
                if let Ok(said) = said {
                    return said;
                }
            }
        };
        let late = || Err(format!("no progress to revision {revision} in time"));
        let said = tokio::time::timeout(DEADLINE, asked).await.unwrap_or_else(|_| late());
        self.inbox.received().progress.clear();
        said
    }

    /// Takes the events of one watch once there are `count`; fewer if there are no more in time.
    pub async fn events(&self, watch_id: i64, count: usize) -> Result<Vec<Event>, String> {
        let enough = |received: &mut Received| {
            let events = received.watches.entry(watch_id).or_default();
            (events.waiting.len() >= count && !events.within_fragments).then_some(())
        };
        let waited = self.until("events", enough).await;
        let mut received = self.inbox.received();
        let events = std::mem::take(&mut received.watches.entry(watch_id).or_default().waiting);
        match (waited, received.broken.clone()) {
            (_, Some(broken)) => Err(broken),
            (Err(_), None) | (Ok(()), None) => Ok(events),
        }
    }

    /// Takes the events of the first watch up to `revision`, which must have one.
    pub async fn events_to(&self, revision: i64) -> Result<Vec<Event>, String> {
        self.until("the last write", |received| {
            let events = received.watches.entry(0).or_default();
            (events.last_revision >= revision).then(|| std::mem::take(&mut events.waiting))
        })
        .await
    }

    async fn send(&self, request: RequestUnion) {
        // A stream that ended says so when it is waited for.
        let _ = self.requests.send(WatchRequest { request_union: Some(request) }).await;
    }

    async fn until<T>(&self, what: &str, mut test: impl FnMut(&mut Received) -> Option<T>) -> Result<T, String> {
        let waited = tokio::time::timeout(DEADLINE, async {
            loop {
                let changed = self.inbox.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                {
                    let mut received = self.inbox.received();
                    if let Some(found) = test(&mut received) {
                        return Ok(found);
                    }
                    if let Some(broken) = &received.broken {
                        return Err(broken.clone());
                    }
                }
                changed.await;
            }
        });
        waited.await.unwrap_or_else(|_| Err(format!("{what}: nothing came in time")))
    }
}

impl Inbox {
    fn received(&self) -> MutexGuard<'_, Received> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn take_in(mut stream: Streaming<WatchResponse>, inbox: &Inbox) -> Status {
    loop {
        match stream.message().await {
            Ok(Some(response)) => inbox.received().take_in(response),
            Ok(None) => return Status::ok("by the server"),
            Err(status) => return status,
        }
        inbox.changed.notify_waiters();
    }
}

impl Received {
    fn take_in(&mut self, response: WatchResponse) {
        let revision = response.header.map_or(0, |header| header.revision);
        if response.created || response.canceled {
            self.control.push_back(response);
        } else if response.watch_id == -1 && response.events.is_empty() {
            self.progress.push(revision);
        } else if let Err(broken) = self.watches.entry(response.watch_id).or_default().take_in(response, revision) {
            self.broken.get_or_insert(broken);
        }
    }
}

impl Events {
    fn take_in(&mut self, response: WatchResponse, revision: i64) -> Result<(), String> {
        let mut of = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let revisions: Vec<i64> = response.events.iter().map(&mut of).collect();
        let (Some(first), Some(last)) = (revisions.first(), revisions.last()) else {
            return Ok(()); // periodic progress of this watch
        };
        let goes_on = if self.within_fragments { *first >= self.last_revision } else { *first > self.last_revision };
        if !goes_on || !revisions.is_sorted() || revision < *last {
            return Err(format!(
                "watch {}: events of revisions {first}..={last} with header {revision} after revision {}",
                response.watch_id, self.last_revision
            ));
        }
        self.last_revision = *last;
        self.within_fragments = response.fragment;
        self.waiting.extend(response.events);
        Ok(())
    }
}
