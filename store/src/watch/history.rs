//! Reads past events from disk, for watches that are behind.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::event::event;
use super::{Selector, WatchBatch, WatchError};
use crate::engine::Engine;
use crate::limits;
use crate::mvcc::key;
use crate::mvcc::record::{Change, corrupt, decode_change};
use crate::mvcc::view::{Source, View};

/// Changes looked at in one read, so that a watch of a quiet key in a busy store gives its thread back now and then.
const CHANGES_PER_READ: usize = 20_000;

/// What one read found: the events of whole revisions, and the first revision not looked at.
pub(crate) struct Read {
    pub batch: WatchBatch,
    pub next: i64,
}

/// Reads the matching events from `from` on, up to a bound, at a whole revision.
pub(super) fn read(engine: &Engine, selector: &Selector, from: i64) -> Result<Read, WatchError> {
    let failed = |error: io::Error| {
        engine.report(&error);
        WatchError::Storage(error.to_string())
    };
    let generation = engine.current();
    let view = generation.view().map_err(failed)?;
    let compacted = view.compacted();
    if from < compacted {
        return Err(WatchError::Compacted { compact_revision: compacted });
    }
    walk(&view, selector, from).map_err(failed)
}

fn walk(view: &View<'_>, selector: &Selector, from: i64) -> io::Result<Read> {
    let mut batch = WatchBatch { revision: from - 1, events: Vec::new() };
    let (mut bytes, mut looked_at, mut matched) = (0, 0, 0);
    let mut changes = view.changes(from)?;
    while let Some((raw, change)) = changes.item() {
        let (main, _) = key::parse_revision(raw).ok_or_else(|| corrupt("revision key"))?;
        if main != batch.revision {
            let full = matched >= limits::WATCH_BATCH_REVISIONS || bytes >= limits::WATCH_BATCH_BYTES;
            if full || looked_at >= CHANGES_PER_READ {
                return Ok(Read { next: main, batch });
            }
            batch.revision = main;
        }
        looked_at += 1;
        let Change { deleted, key: changed, .. } = decode_change(change)?;
        if selector.interval.contains(changed) && selector.wants(deleted) {
            let event = load(view, selector, main, deleted, changed)?;
            bytes += event.encoded_len();
            matched += 1;
            batch.events.push(Arc::new(event));
        }
        changes.next();
    }
    changes.status().map_err(io::Error::other)?;
    batch.revision = view.revision().max(from - 1);
    Ok(Read { next: batch.revision + 1, batch })
}

fn load(
    view: &View<'_>,
    selector: &Selector,
    main: i64,
    deleted: bool,
    changed: &[u8],
) -> io::Result<pintle_proto::mvccpb::Event> {
    let key = Bytes::copy_from_slice(changed);
    let kv = if deleted {
        None
    } else {
        let version = view.version(changed, main)?.ok_or_else(|| corrupt("history: a version is missing"))?;
        version.to_kv(key.clone())
    };
    // What was compacted is absent, without error.
    let previous = if selector.prev_kv && main > view.compacted() {
        view.version_at(changed, main - 1)?.and_then(|version| version.to_kv(key.clone()))
    } else {
        None
    };
    Ok(event(main, &key, kv, previous))
}
