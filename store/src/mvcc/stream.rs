//! A range in bounded parts, all at one revision, so that a large list needs little memory and none of its parts waits for the
//! whole.
//!
//! No snapshot is held between two parts: versions never change, so the revision is enough, and a compaction past it ends the
//! stream with an error.

use std::ops::ControlFlow;

use bytes::Bytes;
use futures::Stream;
use futures::stream::try_unfold;
use pintle_proto::etcdserverpb::{RangeRequest, RangeResponse};
use prost::Message;

use super::key::Interval;
use super::view::Source;
use crate::apply::header;
use crate::calls::read::readable;
use crate::error::StoreError;
use crate::limits;
use crate::readers::Reading;
use crate::store::Store;

/// Where a stream stands.
#[derive(Clone)]
struct Cursor {
    request: RangeRequest,
    /// Fixed by the first part.
    at: i64,
    /// The first key not looked at.
    from: Bytes,
    returned: i64,
    count: i64,
    /// Keys of the next part.
    keys: i64,
    done: bool,
}

pub(crate) fn parts(
    store: Store,
    request: RangeRequest,
) -> impl Stream<Item = Result<RangeResponse, StoreError>> + Send + use<> {
    let cursor = Cursor {
        at: request.revision,
        from: request.key.clone(),
        returned: 0,
        count: 0,
        keys: limits::STREAM_FIRST_KEYS,
        done: false,
        request,
    };
    try_unfold((store, cursor), |(store, cursor)| async move {
        if cursor.done {
            return Ok(None);
        }
        let first = cursor.keys == limits::STREAM_FIRST_KEYS;
        let read = move |view: &Reading<'_>| {
            let mut cursor = cursor.clone(); // a read that is broken off begins anew
            let part = cursor.advance(view)?;
            Ok((part, cursor))
        };
        // Later parts are longer than a turn.
        let read = if first { store.read(false, read).await } else { store.read_long(read).await };
        let (mut part, cursor) = read?;
        if cursor.done {
            store.fill(&mut part.header);
        }
        Ok(Some((part, (store, cursor))))
    })
}

impl Cursor {
    /// Reads the next part; the last one also counts what lies beyond the limit.
    fn advance(&mut self, view: &dyn Source) -> Result<RangeResponse, StoreError> {
        self.at = readable(view, self.at)?;
        let limit = if self.request.limit > 0 { self.request.limit } else { i64::MAX };
        let left = if self.request.count_only { 0 } else { limit - self.returned };
        let (mut kvs, mut bytes, mut next) = (Vec::new(), 0usize, None);
        view.scan(&self.rest(), self.at, &mut |row| {
            let taken = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
            if taken < left {
                if taken >= self.keys || bytes >= limits::STREAM_CHUNK_BYTES {
                    next = Some(Bytes::copy_from_slice(row.key));
                    return ControlFlow::Break(());
                }
                let mut kv = row.to_kv();
                if self.request.keys_only {
                    kv.value.clear();
                }
                bytes += kv.encoded_len();
                kvs.push(kv);
            }
            self.count += 1;
            ControlFlow::Continue(())
        })
        .map_err(StoreError::storage)?;
        self.returned += i64::try_from(kvs.len()).unwrap_or(0);
        self.keys = (self.keys * 4).min(limits::STREAM_CHUNK_KEYS);
        match next {
            Some(from) => {
                self.from = from;
                Ok(RangeResponse { kvs, ..RangeResponse::default() })
            }
            None => {
                self.done = true;
                let more = !self.request.count_only && self.count > self.returned;
                Ok(RangeResponse { header: header(view.revision()), kvs, more, count: self.count })
            }
        }
    }

    fn rest(&self) -> Interval {
        let key = &self.request.key;
        if self.from == *key || self.request.range_end.is_empty() {
            return Interval::new(key, &self.request.range_end);
        }
        Interval::new(&self.from, &self.request.range_end)
    }
}
