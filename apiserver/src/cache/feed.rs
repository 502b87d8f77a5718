//! Keeps the cache at the store's revision: fills it once, then follows one watch over the whole key space.
//!
//! The fill starts [`limits::HISTORY_REVISIONS`] in the past and replays from there, so that watches which another
//! server began resume here after a restart or a failover. An object that does not decode is logged and left out.

use std::sync::Arc;

use bytes::Bytes;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_proto::etcdserverpb::RangeRequest;
use pintle_proto::mvccpb::{self, event::EventType};
use pintle_store::{Store, StoreError, WatchError, WatchOptions};
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

/// Runs until `stop`. A broken feed makes the cache unready and starts anew.
pub async fn run(cache: Arc<Cache>, store: Store, stop: CancellationToken) {
    let mut backoff =
        pintle_base::backoff::Backoff::new(std::time::Duration::from_millis(20), std::time::Duration::from_secs(2));
    loop {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            result = follow(&cache, &store) => result,
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

async fn follow(cache: &Cache, store: &Store) -> Result<(), FeedError> {
    let newest = store.read_barrier().await.map_err(FeedError::Read)?;
    let past = (newest - limits::HISTORY_REVISIONS).max(store.compact_revision()).max(1);
    let (start, objects) = match fill(store, past).await {
        Ok(objects) => (past, objects),
        Err(_) if past < newest => (newest, fill(store, newest).await?),
        Err(error) => return Err(error),
    };
    tracing::info!(revision = start, objects = objects.len(), "watch cache filled");
    cache.replace(State::filled(start, objects));

    let options = WatchOptions {
        // Everything, also keys that are no objects: else the cache could not tell that it has reached a revision
        // which changed none of its own.
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: start + 1,
        progress_notify: true,
        ..WatchOptions::default()
    };
    let mut watcher = store.watch(options).map_err(FeedError::Watch)?;
    if start >= newest {
        cache.publish(start);
    }
    loop {
        let batch = watcher.next().await.map_err(FeedError::Watch)?;
        let inputs = batch.events.iter().filter_map(|event| input(event)).collect();
        cache.apply(batch.revision, inputs);
        if batch.revision >= newest {
            cache.publish(batch.revision);
        }
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

fn input(event: &mvccpb::Event) -> Option<Input> {
    let kv = event.kv.as_ref()?;
    let (slot, local) = layout::split(&kv.key)?;
    let object = if event.r#type == EventType::Delete as i32 { None } else { object(kv) };
    Some(Input { slot, key: local.into(), revision: kv.mod_revision, object })
}
