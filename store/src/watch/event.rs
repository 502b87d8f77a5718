//! Events as the hub holds them: made once per change, shared by everybody who gets them.

use std::sync::{Arc, OnceLock};

use pintle_proto::mvccpb::event::EventType;
use pintle_proto::mvccpb::{Event, KeyValue};
use prost::Message;

use super::{Filters, WatchError, WatchOptions};
use crate::apply::Change;
use crate::mvcc::key::Interval;

/// All events of one revision.
pub(crate) struct Revision {
    pub revision: i64,
    pub events: Vec<Shared>,
    pub bytes: usize,
}

/// One event, with and without the previous value.
pub(crate) struct Shared {
    full: Arc<Event>,
    plain: OnceLock<Arc<Event>>,
}

impl Revision {
    /// Groups the changes of an entry by revision.
    pub fn group(changes: Vec<Change>) -> Vec<Arc<Self>> {
        let mut revisions: Vec<Self> = Vec::new();
        for change in changes {
            let main = change.version.modified;
            let kv = change.version.to_kv(change.key.clone());
            let event = event(main, &change.key, kv, change.previous);
            let bytes = event.encoded_len();
            let shared = Shared { full: Arc::new(event), plain: OnceLock::new() };
            match revisions.last_mut().filter(|last| last.revision == main) {
                Some(last) => {
                    last.events.push(shared);
                    last.bytes += bytes;
                }
                None => revisions.push(Self { revision: main, events: vec![shared], bytes }),
            }
        }
        revisions.into_iter().map(Arc::new).collect()
    }
}

impl Shared {
    pub fn key(&self) -> &[u8] {
        self.full.kv.as_ref().map_or(&[], |kv| &kv.key)
    }

    fn get(&self, prev_kv: bool) -> &Arc<Event> {
        if prev_kv || self.full.prev_kv.is_none() {
            return &self.full;
        }
        self.plain.get_or_init(|| Arc::new(Event { prev_kv: None, ..(*self.full).clone() }))
    }
}

/// A put of `kv`, or a deletion, whose event carries nothing but key and revision.
pub(super) fn event(revision: i64, key: &bytes::Bytes, kv: Option<KeyValue>, prev_kv: Option<KeyValue>) -> Event {
    let kind = if kv.is_some() { EventType::Put } else { EventType::Delete };
    let kv = kv.unwrap_or_else(|| KeyValue { key: key.clone(), mod_revision: revision, ..KeyValue::default() });
    Event { r#type: kind.into(), kv: Some(kv), prev_kv }
}

/// Which events a watch gets.
#[derive(Clone, Debug)]
pub(crate) struct Selector {
    pub interval: Interval,
    pub filters: Filters,
    pub prev_kv: bool,
}

impl Selector {
    pub fn new(options: &WatchOptions) -> Result<Self, WatchError> {
        let interval = options.interval();
        if interval == Interval::Empty {
            return Err(WatchError::EmptyRange);
        }
        Ok(Self { interval, filters: options.filters, prev_kv: options.prev_kv })
    }

    /// The event as this watch gets it, if it does. The key is known to match.
    pub fn pick(&self, shared: &Shared) -> Option<Arc<Event>> {
        let event = shared.get(self.prev_kv);
        self.wants(event.r#type == i32::from(EventType::Delete)).then(|| Arc::clone(event))
    }

    pub fn wants(&self, deleted: bool) -> bool {
        if deleted { !self.filters.no_delete } else { !self.filters.no_put }
    }

    /// Everything of one revision that this watch gets.
    pub fn select(&self, revision: &Revision) -> Vec<Arc<Event>> {
        revision
            .events
            .iter()
            .filter(|event| self.interval.contains(event.key()))
            .filter_map(|e| self.pick(e))
            .collect()
    }
}
