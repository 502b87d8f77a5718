//! The largest and the busiest prefixes, counted while somebody looks.
//!
//! Nothing is counted until [`Store::top`] is called, and nothing any more a while after the last call: who does not look pays a load of a
//! flag. Reads and writes are counted where they happen. Keys and bytes are counted once, beside everything else and in turns with other
//! reads, and followed from there on: no refresh reads the data again.
//!
//! Always holds: what a prefix shows and what those below it show add up, at every depth; memory is bounded ([`table`]).

mod table;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use pintle_proto::store_v1::{TopRequest, TopResponse, TopRow};

use self::table::{Counts, Table, prefix_of_range};
use crate::apply::Change;
use crate::auth::Grant;
use crate::error::StoreError;
use crate::limits;
use crate::mvcc::key::Interval;
use crate::mvcc::view::Source;
use crate::quota::Size;
use crate::store::{Shared, Store};

/// Shared by those who count and those who look.
#[derive(Default)]
pub(crate) struct Top {
    /// Whether there is a [`Count`], for those who would only have to count.
    counting: AtomicBool,
    count: Mutex<Option<Count>>,
}

struct Count {
    began: Instant,
    /// When somebody looked last.
    looked: Instant,
    table: Table,
    census: Census,
}

/// How far keys and bytes are counted.
enum Census {
    /// Changes of the revisions since, until it is known which of them are in what is counted.
    Begun(Vec<(i64, Bytes, Size)>),
    /// More changes came than are remembered before the count had its turn: whoever looks after it has it begin anew.
    Lost,
    /// What was there at this revision is being counted; the table has what changed after it.
    From(i64),
    /// As above, and the table has everything.
    Over(i64),
}

impl Top {
    /// An entry was written. Called on the apply thread.
    pub fn wrote(&self, changes: &[Change]) {
        if !self.counting.load(Ordering::Relaxed) || changes.is_empty() {
            return;
        }
        let mut count = self.count.lock();
        let Some(Count { table, census, .. }) = count.as_mut() else { return };
        if matches!(census, Census::Begun(waiting) if waiting.len() + changes.len() > limits::TOP_WAITING) {
            *census = Census::Lost;
        }
        for change in changes {
            let after = change.version.live.as_ref().map_or(Size::default(), |live| Size::of(&change.key, &live.value));
            let before = change.previous.as_ref().map_or(Size::default(), |kv| Size::of(&kv.key, &kv.value));
            let size = after - before;
            table.add(&change.key, Counts { writes: 1, ..Counts::default() });
            match census {
                Census::Begun(waiting) => waiting.push((change.version.modified, change.key.clone(), size)),
                Census::From(at) | Census::Over(at) if change.version.modified > *at => {
                    table.add(&change.key, Counts::of(size));
                }
                Census::From(_) | Census::Over(_) => (), // counted with what was there
                Census::Lost => (),
            }
        }
    }

    /// Something was read.
    pub fn read(&self, key: &[u8], range_end: &[u8]) {
        if !self.counting.load(Ordering::Relaxed) {
            return;
        }
        if let Some(Count { table, .. }) = self.count.lock().as_mut() {
            table.add(prefix_of_range(key, range_end), Counts { reads: 1, ..Counts::default() });
        }
    }

    /// Begins to count if nobody does; says whether it did.
    fn begin(&self) -> bool {
        let mut count = self.count.lock();
        let now = clock::now();
        if let Some(count) = count.as_mut() {
            count.looked = now;
            return false;
        }
        let (table, census) = (Table::default(), Census::Begun(Vec::new()));
        *count = Some(Count { began: now, looked: now, table, census });
        self.counting.store(true, Ordering::Relaxed);
        true
    }

    /// Ends if nobody looked for a while; otherwise says when that may be.
    fn end(&self) -> Option<Instant> {
        let mut count = self.count.lock();
        let due = count.as_ref()?.looked + limits::TOP_IDLE;
        if due > clock::now() {
            return Some(due);
        }
        self.counting.store(false, Ordering::Relaxed);
        *count = None;
        None
    }

    /// What is there at revision `at` is counted from here on.
    fn census_from(&self, at: i64) {
        let mut count = self.count.lock();
        let Some(Count { table, census, .. }) = count.as_mut() else { return };
        if let Census::Begun(waiting) = census {
            let waiting = std::mem::take(waiting);
            *census = Census::From(at);
            let later = waiting.into_iter().filter(|(revision, ..)| *revision > at);
            later.for_each(|(_, key, size)| table.add(&key, Counts::of(size)));
        }
    }

    /// It was counted.
    fn census_over(&self, counted: Table) {
        let mut count = self.count.lock();
        let Some(Count { table, census, .. }) = count.as_mut() else { return };
        match *census {
            Census::From(at) => {
                table.merge(counted);
                *census = Census::Over(at);
            }
            Census::Lost => {
                self.counting.store(false, Ordering::Relaxed);
                *count = None;
            }
            Census::Begun(_) | Census::Over(_) => (),
        }
    }

    /// Nothing is counted any more: the state is another.
    pub fn reset(&self) {
        let mut count = self.count.lock();
        self.counting.store(false, Ordering::Relaxed);
        *count = None;
    }

    fn answer(&self, depth: usize, limit: usize) -> TopResponse {
        let count = self.count.lock();
        let Some(Count { began, table, census, .. }) = count.as_ref() else { return TopResponse::default() };
        let (total, rows) = table.rows(depth, limit);
        let row = |(prefix, counts): (Bytes, Counts)| {
            let positive = |number: i64| u64::try_from(number).unwrap_or(0);
            let Counts { keys, bytes, writes, reads } = counts;
            TopRow { prefix, keys: positive(keys), bytes: positive(bytes), writes, reads }
        };
        TopResponse {
            millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            counting: !matches!(census, Census::Over(_)),
            total: Some(row((Bytes::new(), total))),
            rows: rows.into_iter().map(row).collect(),
            ..TopResponse::default()
        }
    }
}

impl Store {
    /// The largest and the busiest prefixes of this member. The first call begins to count.
    pub async fn top(&self, request: TopRequest) -> Result<TopResponse, StoreError> {
        self.permitted(Grant::administer)?;
        if self.shared().top.begin() {
            self.count_for_top();
        }
        let depth = if request.depth == 0 { 2 } else { request.depth.min(limits::TOP_DEPTH) };
        let limit = if request.limit == 0 { limits::TOP_ROWS } else { request.limit.min(limits::TOP_ROWS) };
        let answer = self.shared().top.answer(depth as usize, limit as usize);
        Ok(TopResponse { revision: self.revision(), member_id: self.options().member_id, ..answer })
    }

    /// Counts keys and bytes, and stays until nobody looks any more.
    fn count_for_top(&self) {
        // As the member itself: it must not take the caller's share.
        let store = Store::own(Arc::clone(self.shared()));
        let stop = self.group().token();
        self.group().spawn("store-top", async move {
            let count = async {
                if let Err(error) = store.census().await {
                    tracing::debug!(%error, "keys and bytes were not counted");
                    store.shared().top.reset();
                }
                while let Some(due) = store.shared().top.end() {
                    clock::sleep_until(due).await;
                }
            };
            tokio::select! {
                () = count => (),
                () = stop.cancelled() => (),
            }
        });
    }

    async fn census(&self) -> Result<(), StoreError> {
        let shared: Arc<Shared> = Arc::clone(self.shared());
        let table = self.read_long(move |view| {
            let (mut table, at) = (Table::default(), view.revision());
            shared.top.census_from(at);
            let scanned = view.scan(&Interval::From(Bytes::new()), at, &mut |row| {
                table.add(row.key, Counts::of(Size::of(row.key, row.value)));
                ControlFlow::Continue(())
            });
            scanned.map(|()| table).map_err(StoreError::storage)
        });
        self.shared().top.census_over(table.await?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::record::{Live, Version};

    fn change(key: &str, modified: i64, value: Option<&str>, before: Option<&str>) -> Change {
        let value_of = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let live = value.map(|value| Live { created: 1, version: 1, lease: 0, value: value_of(value) });
        let previous = before.map(|value| pintle_proto::mvccpb::KeyValue {
            key: value_of(key),
            value: value_of(value),
            ..Default::default()
        });
        Change { key: value_of(key), version: Version { modified, sub: 0, live }, previous }
    }

    #[test]
    fn what_changes_while_keys_are_counted_counts_once() {
        let top = Top::default();
        top.wrote(&[change("/a/x", 2, Some("1"), None)]);
        assert!(top.begin() && !top.begin());
        top.wrote(&[change("/a/y", 3, Some("12"), None), change("/a/z", 4, Some("1"), None)]);
        top.census_from(3); // 3 is in it, 4 is not
        top.wrote(&[change("/a/y", 5, None, Some("12"))]);
        let mut counted = Table::default();
        for (key, value) in [("/a/x", "1"), ("/a/y", "12")] {
            counted.add(key.as_bytes(), Counts::of(Size::of(key.as_bytes(), value.as_bytes())));
        }
        assert!(top.answer(1, 10).counting);
        top.census_over(counted);
        top.wrote(&[change("/b/x", 3, Some("late"), None)]); // told after it could be read
        let answer = top.answer(1, 10);
        let total = answer.total.expect("a total");
        assert_eq!((total.keys, total.bytes, total.writes), (2, 10, 4));
        assert_eq!((answer.counting, answer.rows.len()), (false, 2));
        assert_eq!(answer.rows[0].prefix, "/a/");
    }

    #[test]
    fn a_count_that_does_not_get_its_turn_remembers_so_many_changes_and_begins_anew() {
        let top = Top::default();
        assert!(top.begin());
        for modified in 0..i64::try_from(limits::TOP_WAITING).unwrap() + 1 {
            top.wrote(&[change("/a", modified, Some("1"), None)]);
        }
        assert!(matches!(top.count.lock().as_ref().unwrap().census, Census::Lost));
        top.census_from(7);
        assert!(top.answer(1, 10).counting, "what is known is not all");
        top.census_over(Table::default());
        assert!(top.begin(), "whoever looks next begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn counting_ends_when_nobody_looks_any_more() {
        let top = Top::default();
        top.begin();
        clock::sleep(limits::TOP_IDLE / 2).await;
        top.begin();
        clock::sleep(limits::TOP_IDLE / 2).await;
        assert!(top.end().is_some());
        clock::sleep(limits::TOP_IDLE).await;
        assert!(top.end().is_none() && !top.counting.load(Ordering::Relaxed));
        assert!(top.begin(), "it begins anew");
    }
}
