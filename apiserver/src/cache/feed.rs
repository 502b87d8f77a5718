//! Keeps the cache at the store's revision: fills it once, then follows one watch over the whole key space.
//!
//! The fill starts [`limits::HISTORY_REVISIONS`] in the past and replays from there, so that watches which another
//! server began resume here after a restart or a failover. Always holds: that past is nobody's to see; the state becomes
//! the cache's when it has caught up with the store. An object that does not decode is logged and left out.

use std::sync::Arc;

use bytes::Bytes;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_proto::etcdserverpb::RangeRequest;
use pintle_proto::mvccpb::{self, event::EventType};
use pintle_store::{Store, StoreError, WatchBatch, WatchError, WatchOptions, Watcher};
use tokio_util::sync::CancellationToken;

use super::state::{Input, State};
use super::{Cache, Object, layout};
use crate::limits;

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("read the store")]
    Read(#[source] StoreError),
    #[error("watch the store")]
    Watch(#[source] WatchError),
}

/// Runs until `stop`. A broken feed makes the cache unready and starts anew, each time with events of up to `history`
/// revisions.
pub async fn run(cache: Arc<Cache>, store: Store, history: i64, stop: CancellationToken) {
    let mut backoff =
        pintle_base::backoff::Backoff::new(std::time::Duration::from_millis(20), std::time::Duration::from_secs(2));
    loop {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            result = follow(&cache, &store, history) => result,
        };
        if let Err(error) = result {
            tracing::warn!(error = %Chain(&error), "watch cache starts anew");
        }
        cache.invalidate();
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = clock::sleep(backoff.next_delay()) => (),
        }
    }
    cache.invalidate();
}

async fn follow(cache: &Cache, store: &Store, history: i64) -> Result<(), FeedError> {
    let newest = store.read_barrier().await.map_err(FeedError::Read)?;
    let past = (newest - history).max(store.compact_revision()).max(1);
    let (start, objects) = match fill(store, past).await {
        Ok(objects) => (past, objects),
        Err(_) if past < newest => (newest, fill(store, newest).await?),
        Err(error) => return Err(error),
    };
    let options = WatchOptions {
        // Everything, also keys that are no objects: else the cache could not tell that it has reached a revision
        // which changed none of its own.
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: start + 1,
        progress_notify: true,
        ..WatchOptions::default()
    };
    let watcher = store.watch(options).map_err(FeedError::Watch)?;
    replay(cache, State::filled(start, objects), newest, watcher).await
}

/// What a watch of the store gives.
trait Batches {
    fn next(&mut self) -> impl Future<Output = Result<WatchBatch, WatchError>> + Send;
}

impl Batches for Watcher {
    fn next(&mut self) -> impl Future<Output = Result<WatchBatch, WatchError>> + Send {
        Self::next(self)
    }
}

/// Brings `state` to `newest`, makes it the cache's, and keeps it current.
async fn replay(cache: &Cache, mut state: State, newest: i64, mut batches: impl Batches) -> Result<(), FeedError> {
    let from = state.revision;
    while state.revision < newest {
        let batch = batches.next().await.map_err(FeedError::Watch)?;
        state.apply(batch.revision, inputs(&batch.events));
    }
    let revision = state.revision;
    tracing::info!(from, revision, objects = state.objects(), "watch cache filled");
    cache.replace(state);
    cache.publish(revision);
    loop {
        let batch = batches.next().await.map_err(FeedError::Watch)?;
        cache.apply(batch.revision, inputs(&batch.events));
        cache.publish(batch.revision);
    }
}

/// All objects at `revision`, page by page.
async fn fill(store: &Store, revision: i64) -> Result<Vec<Arc<Object>>, FeedError> {
    let mut objects = Vec::new();
    let mut key = Bytes::from_static(layout::ROOT.as_bytes());
    loop {
        let request = RangeRequest {
            key: key.clone(),
            range_end: Bytes::from_static(layout::ROOT_END.as_bytes()),
            limit: limits::PAGE_KEYS,
            revision,
            serializable: true,
            ..RangeRequest::default()
        };
        let response = store.range(request).await.map_err(FeedError::Read)?;
        objects.extend(response.kvs.iter().filter_map(object));
        match response.kvs.last() {
            Some(last) if response.more => key = after(&last.key),
            _ => return Ok(objects),
        }
    }
}

/// The first key after `key`.
pub fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The object of a stored key; `None` if it is none of ours or does not decode.
pub fn object(kv: &mvccpb::KeyValue) -> Option<Arc<Object>> {
    let (slot, local) = layout::split(&kv.key)?;
    match Object::decode(slot, local, kv.mod_revision, &kv.value) {
        Ok(object) => Some(Arc::new(object)),
        Err(error) => {
            tracing::warn!(key = %String::from_utf8_lossy(&kv.key), error = %Chain(&error), "stored object is unreadable");
            None
        }
    }
}

fn inputs(events: &[Arc<mvccpb::Event>]) -> Vec<Input> {
    events.iter().filter_map(|event| input(event)).collect()
}

fn input(event: &mvccpb::Event) -> Option<Input> {
    let kv = event.kv.as_ref()?;
    let (slot, local) = layout::split(&kv.key)?;
    let object = if event.r#type == EventType::Delete as i32 { None } else { object(kv) };
    Some(Input { slot, key: local.into(), revision: kv.mod_revision, object })
}

#[cfg(test)]
mod tests {
    use pintle_api::kinds::{self, Kind};
    use tokio::sync::mpsc;

    use super::*;

    impl Batches for mpsc::Receiver<WatchBatch> {
        async fn next(&mut self) -> Result<WatchBatch, WatchError> {
            self.recv().await.ok_or(WatchError::Stopped)
        }
    }

    fn maps() -> &'static Kind {
        kinds::by_gvk("", "v1", "ConfigMap").expect("served")
    }

    fn kv(name: &str, revision: i64) -> mvccpb::KeyValue {
        let value =
            format!(r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"namespace":"a","name":"{name}"}}}}"#);
        let key = layout::store_key(maps(), "a", name).into();
        mvccpb::KeyValue { key, value: value.into(), mod_revision: revision, ..mvccpb::KeyValue::default() }
    }

    fn batch(name: &str, revision: i64, r#type: EventType) -> WatchBatch {
        let event = mvccpb::Event { r#type: r#type as i32, kv: Some(kv(name, revision)), ..mvccpb::Event::default() };
        WatchBatch { revision, events: vec![Arc::new(event)] }
    }

    #[tokio::test]
    async fn the_past_is_nobodys_to_see() {
        let cache = Arc::new(Cache::default());
        let (send, receive) = mpsc::channel(1);
        let old = object(&kv("revoked", 5)).expect("an object");
        let filling = Arc::clone(&cache);
        tokio::spawn(async move { replay(&filling, State::filled(5, vec![old]), 7, receive).await });
        send.send(batch("granted", 6, EventType::Put)).await.expect("taken");
        // The second is taken from the channel once the first was applied.
        send.send(batch("revoked", 7, EventType::Delete)).await.expect("taken");
        assert!(!cache.is_ready() && cache.list(maps(), "").is_empty());
        assert_eq!(cache.wait(7, limits::CACHE_WAIT).await, Ok(7));
        assert!(cache.get(maps(), "a", "revoked").is_none() && cache.get(maps(), "a", "granted").is_some());
        send.send(batch("granted", 8, EventType::Delete)).await.expect("taken");
        assert_eq!(cache.wait(8, limits::CACHE_WAIT).await, Ok(8));
        assert!(cache.list(maps(), "").is_empty());
    }
}
