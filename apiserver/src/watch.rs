//! Watches: from a resourceVersion to a stream of framed events.
//!
//! The start decides what comes first (nothing, the present objects, or what happened since); then the watcher's events
//! follow, seen through the selectors: an object that starts or stops matching is ADDED or DELETED. Bookmarks only name
//! revisions whose events have been sent (I8). The stream ends by its own time, a slow client, or the server's shutdown.

mod past;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use pintle_api::kinds::Kind;
use pintle_api::status::{FieldError, Path, Status};
use pintle_base::clock::{self, Instant};
use pintle_base::rng;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Change, Event, Next, Object, Snapshot, TooOld, Watcher, layout};
use crate::encode::Form;
use crate::limits;
use crate::registry::{ListOptions, Registry, VersionMatch};
use crate::request::Query;
use past::{Lost, Past};

/// What a watch asks for beside its selectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    pub send_initial: Option<bool>,
    pub bookmarks: bool,
    pub timeout: Duration,
}

impl WatchOptions {
    /// # Errors
    /// 422 for combinations that upstream forbids, 400 for a bad timeout.
    pub fn of_query(query: &Query, list: &ListOptions) -> Result<Self, Status> {
        let send_initial =
            query.get("sendInitialEvents").filter(|v| !v.is_empty()).map(|_| query.flag("sendInitialEvents"));
        let forbidden = |field: &str, why: &str| {
            let error = FieldError::forbidden(&Path::new(field), why);
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]))
        };
        match (send_initial, list.version_match) {
            (Some(_), VersionMatch::NotOlderThan) | (None, VersionMatch::Unset) => (),
            (Some(_), _) => {
                return forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                );
            }
            (None, _) => {
                return forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                );
            }
        }
        let timeout = match query.number("timeoutSeconds")? {
            Some(seconds) if seconds > 0 => {
                Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(limits::WATCH_MAX)
            }
            _ => rng::jitter(limits::WATCH_MIN, 1.0),
        };
        Ok(Self { send_initial, bookmarks: query.flag("allowWatchBookmarks"), timeout })
    }
}

/// What a stream begins with.
enum Start {
    /// The objects of a snapshot, then (if asked) the bookmark that ends them.
    Objects {
        objects: std::vec::IntoIter<Arc<Object>>,
        revision: i64,
        mark_end: bool,
    },
    /// An error, then nothing.
    Failed(Box<Status>),
    Done,
}

struct Session {
    form: Form,
    list: ListOptions,
    start: Start,
    /// Events before the watcher's, if the cache does not keep them all.
    past: Option<Past>,
    watcher: Option<Watcher>,
    bookmarks: bool,
    next_bookmark: Instant,
    ends: Instant,
    stop: CancellationToken,
    /// Revision last told to the client.
    told: i64,
    /// Columns go with the first table only.
    first: bool,
    over: bool,
}

/// Opens a watch. Errors that upstream sends inside the stream come inside the stream.
///
/// # Errors
/// 504 if this server is behind the asked revision, 405 if the kind cannot be watched.
pub async fn open(
    registry: &Registry,
    cache: &Arc<Cache>,
    kind: &'static Kind,
    list: ListOptions,
    options: WatchOptions,
    form: Form,
    stop: CancellationToken,
) -> Result<impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static, Status> {
    let slot = layout::slot(kind).ok_or_else(|| Status::method_not_supported(kind.group, kind.resource, "watch"))?;
    let version = list.version()?;
    registry.reach(&list).await?;
    let interest = list.interest(kind);
    let from_now = version == 0 || options.send_initial == Some(true);
    let mut told = version;
    let mut past = None;
    let (start, watcher) = if from_now {
        let (Snapshot { revision, objects }, watcher) = cache.watch_from_now(slot, interest);
        let wanted = options.send_initial != Some(false);
        let objects = if wanted { objects } else { Vec::new() };
        let mark_end = options.send_initial == Some(true) && options.bookmarks;
        told = 0;
        (Start::Objects { objects: objects.into_iter(), revision, mark_end }, Some(watcher))
    } else {
        match cache.watch_after(slot, interest.clone(), version) {
            Ok(watcher) => (Start::Done, Some(watcher)),
            Err(TooOld { oldest }) => {
                past = Past::after(version, kind, interest, registry.store(), cache);
                let start = if past.is_some() { Start::Done } else { Start::Failed(too_old(version, oldest)) };
                (start, None)
            }
        }
    };
    let now = clock::now();
    let session = Session {
        form,
        list,
        start,
        past,
        watcher,
        bookmarks: options.bookmarks,
        next_bookmark: now + rng::jitter(limits::BOOKMARK, 0.25),
        ends: now + options.timeout,
        stop,
        told,
        first: true,
        over: false,
    };
    Ok(futures::stream::unfold(session, |mut session| async move {
        let chunk = session.next_chunk().await?;
        Some((Ok(chunk), session))
    }))
}

fn too_old(asked: i64, oldest: i64) -> Box<Status> {
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    Box::new(Status::resource_version_too_old(number(asked), number(oldest)))
}

impl Session {
    /// The next bytes; `None` ends the stream. Waits only while there is nothing to send.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let mut out = Vec::new();
        if self.is_due() {
            self.finish(&mut out);
        }
        self.send_start(&mut out);
        let mut turn = 0;
        while out.len() < limits::WATCH_CHUNK && !self.over {
            if matches!(self.start, Start::Objects { .. }) {
                break;
            }
            // Looked at before every event: a watch that always has another waiting never comes to wait.
            if self.is_due() {
                self.finish(&mut out);
                break;
            }
            if self.past.is_some() {
                self.send_past(&mut out).await;
                continue;
            }
            let Some(watcher) = &self.watcher else { break };
            match watcher.take() {
                Next::Event(event) => {
                    self.send_event(&event, &mut out);
                    turn += 1;
                    if turn % limits::WATCH_TURN == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                Next::Ended => self.over = true,
                Next::Idle { revision } if clock::now() >= self.next_bookmark => {
                    self.next_bookmark = clock::now() + limits::BOOKMARK;
                    self.send_bookmark(revision, &mut out);
                }
                Next::Idle { .. } if !out.is_empty() => break,
                Next::Idle { .. } => self.wait().await,
            }
        }
        (!out.is_empty()).then(|| Bytes::from(out))
    }

    /// Sends a batch of what the store remembers, and goes over to the cache where that is possible.
    async fn send_past(&mut self, out: &mut Vec<u8>) {
        let Some(past) = &mut self.past else { return };
        let next = tokio::select! {
            biased;
            () = self.stop.cancelled() => return,
            next = past.next() => next,
            () = clock::sleep_until(self.ends) => return,
        };
        let goes_on = match next {
            Ok(events) => {
                let goes_on = past.go_on().await;
                events.iter().for_each(|event| self.send_event(event, out));
                goes_on
            }
            Err(lost) => Err(lost),
        };
        match goes_on {
            Ok(None) => (),
            Ok(watcher) => (self.watcher, self.past) = (watcher, None),
            Err(lost) => {
                self.over = true;
                if matches!(lost, Lost::TooOld) {
                    self.form.error(&too_old(self.told, self.told), out);
                }
            }
        }
    }

    /// True if the watch is to end, whatever waits.
    fn is_due(&self) -> bool {
        self.stop.is_cancelled() || clock::now() >= self.ends
    }

    /// The end: what came meanwhile, as far as it fits, and a bookmark at the revision reached by then, from where the
    /// client goes on. Objects of the start that were not sent are not: the client knows that it has not seen their end.
    fn finish(&mut self, out: &mut Vec<u8>) {
        self.over = true;
        if matches!(self.start, Start::Objects { .. }) {
            self.start = Start::Done;
            return;
        }
        for _ in 0..limits::WATCHER_EVENTS {
            match self.watcher.as_ref().map(Watcher::take) {
                Some(Next::Event(event)) if out.len() < limits::WATCH_CHUNK => self.send_event(&event, out),
                Some(Next::Idle { revision }) => return self.send_bookmark(revision, out),
                Some(Next::Event(_) | Next::Ended) | None => return,
            }
        }
    }

    /// Waits for an event, the next bookmark or the end.
    async fn wait(&mut self) {
        let Some(watcher) = &self.watcher else { return };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => (),
            () = watcher.ready() => (),
            () = clock::sleep_until(self.next_bookmark.min(self.ends)) => (),
        }
    }

    fn send_start(&mut self, out: &mut Vec<u8>) {
        match std::mem::replace(&mut self.start, Start::Done) {
            Start::Done => (),
            Start::Failed(status) => {
                self.form.error(&status, out);
                self.over = true;
            }
            Start::Objects { mut objects, revision, mark_end } => {
                for object in objects.by_ref() {
                    if self.list.matches(&object) {
                        self.form.event("ADDED", &object, self.first, out);
                        self.first = false;
                    }
                    if out.len() >= limits::WATCH_CHUNK {
                        self.start = Start::Objects { objects, revision, mark_end };
                        return;
                    }
                }
                self.told = revision;
                if mark_end {
                    self.form.bookmark(revision, true, out);
                }
            }
        }
    }

    fn send_event(&mut self, event: &Event, out: &mut Vec<u8>) {
        let now = event.change != Change::Deleted && self.list.matches(&event.object);
        let before = event.previous.as_ref().is_some_and(|previous| self.list.matches(previous));
        let (change, object) = match (event.change, before, now) {
            (_, false, false) => return,
            (_, false, true) => ("ADDED", Arc::clone(&event.object)),
            (_, true, true) => ("MODIFIED", Arc::clone(&event.object)),
            (Change::Deleted, true, false) => ("DELETED", Arc::clone(&event.object)),
            // No longer selected: the client sees what it knew go away, at the event's revision.
            (_, true, false) => match &event.previous {
                Some(previous) => ("DELETED", Arc::new(previous.deleted_at(event.revision))),
                None => return,
            },
        };
        self.form.now = crate::registry::now();
        self.form.event(change, &object, self.first, out);
        self.first = false;
        self.told = event.revision;
    }

    fn send_bookmark(&mut self, revision: i64, out: &mut Vec<u8>) {
        if self.bookmarks && revision > self.told {
            self.told = revision;
            self.form.bookmark(revision, false, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use pintle_api::kinds;
    use pintle_api::table::Include;
    use serde_json::json;

    use super::*;
    use crate::cache::Interest;
    use crate::negotiate::Accepted;

    /// A watch of all config maps that ends in a second, and its cache.
    fn session(stop: &CancellationToken) -> (Session, Arc<Cache>) {
        let kind = kinds::by_gvk("", "v1", "ConfigMap").expect("served");
        let cache = Cache::stuck(1, Vec::new());
        let (_, watcher) = cache.watch_from_now(layout::slot(kind).expect("stored"), Interest::All);
        let accepted = Accepted::of(&http::HeaderMap::new(), false).expect("anything");
        let now = clock::now();
        let session = Session {
            form: Form { kind, accepted, include: Include::default(), now: crate::registry::now() },
            list: ListOptions::default(),
            start: Start::Done,
            past: None,
            watcher: Some(watcher),
            bookmarks: true,
            next_bookmark: now + limits::BOOKMARK,
            ends: now + Duration::from_secs(1),
            stop: stop.clone(),
            told: 1,
            first: true,
            over: false,
        };
        (session, cache)
    }

    /// More events than fit in a dozen chunks.
    fn flood(cache: &Cache) {
        let kind = kinds::by_gvk("", "v1", "ConfigMap").expect("served");
        for revision in 2..1002 {
            let tree = json!({"metadata": {"namespace": "a", "name": "m"}, "data": {"text": "x".repeat(1024)}});
            cache.hear(kind, "a/m", revision, tree);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_with_events_always_waiting_ends_at_its_time() {
        let (mut session, cache) = session(&CancellationToken::new());
        flood(&cache);
        assert!(session.next_chunk().await.is_some_and(|chunk| chunk.len() >= limits::WATCH_CHUNK));
        clock::sleep(Duration::from_secs(2)).await;
        assert!(session.next_chunk().await.is_some(), "what fits at the end");
        assert!(session.next_chunk().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_with_events_always_waiting_ends_with_the_server() {
        let stop = CancellationToken::new();
        let (mut session, cache) = session(&stop);
        flood(&cache);
        assert!(session.next_chunk().await.is_some());
        stop.cancel();
        assert!(session.next_chunk().await.is_some(), "what fits at the end");
        assert!(session.next_chunk().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_bookmark_is_of_a_revision_that_was_told() {
        let (mut session, cache) = session(&CancellationToken::new());
        let kind = kinds::by_gvk("", "v1", "ConfigMap").expect("served");
        cache.hear(kind, "a/m", 2, json!({"metadata": {"namespace": "a", "name": "m"}}));
        clock::sleep(Duration::from_secs(2)).await;
        let last = session.next_chunk().await.expect("an event");
        assert_eq!(last.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count(), 1, "{last:?}");
        assert!(session.next_chunk().await.is_none());
    }
}
