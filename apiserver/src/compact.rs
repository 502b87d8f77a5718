//! Keeps the store's history to [`limits::COMPACT_EVERY`]: every interval the leader compacts to where it was one interval ago.
//!
//! Only the member that leads does it; a member that comes to lead starts with a full interval of history.

use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_proto::etcdserverpb::CompactionRequest;
use pintle_store::Store;
use tokio_util::sync::CancellationToken;

use crate::limits;

pub async fn run(store: Store, stop: CancellationToken) {
    let leadership = store.leadership();
    let mut before: Option<(u64, i64)> = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = clock::sleep(limits::COMPACT_EVERY) => (),
        }
        let now = leadership.borrow().clone();
        if !now.leading {
            before = None;
            continue;
        }
        if let Some((term, revision)) = before
            && term == now.term
            && revision > store.compact_revision()
        {
            match store.compact(CompactionRequest { revision, physical: false }).await {
                Ok(_) => tracing::info!(revision, "history compacted"),
                Err(error) => tracing::warn!(error = %Chain(&error), revision, "compaction failed"),
            }
        }
        before = Some((now.term, store.revision()));
    }
}
