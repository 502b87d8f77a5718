//! How many keys live in an interval, without looking at each: what lists with a limit, and requests for a count alone, must say.
//!
//! The key space is divided into buckets of a few hundred living keys. A bucket that lies wholly within an interval is added up; only what
//! the interval has of the two at its ends is read. Nothing is counted before somebody asks, then once; from there on the apply thread
//! tells of every birth and death of a key. The last of these are kept, to answer for revisions that are not the newest.
//!
//! Always holds: a counted bucket's number is that of the newest revision told; an answer is what a scan at that revision would find, or
//! there is none. Nothing here decides anything in apply (I4).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::apply::Change;
use crate::limits;
use crate::mvcc::key::Interval;
use crate::mvcc::view::Source;

pub(crate) struct Census {
    inner: Mutex<Inner>,
    sizes: Sizes,
}

#[derive(Clone, Copy)]
struct Sizes {
    /// Keys of a bucket when it is made.
    bucket: i64,
    /// Keys beyond which one is divided, when a part of it is asked for.
    largest: i64,
    buckets: usize,
    recent: usize,
}

struct Inner {
    /// By their first key; each reaches to the next, the last one has no end. `None` was never counted.
    buckets: BTreeMap<Bytes, Option<i64>>,
    /// All births and deaths after `since`, in order.
    recent: VecDeque<Happened>,
    since: i64,
    /// Another one whenever everything was forgotten.
    epoch: u64,
}

struct Happened {
    revision: i64,
    key: Bytes,
    /// 1 for a birth, -1 for a death.
    by: i64,
}

/// From a key to before another, or without end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    from: Bytes,
    to: Option<Bytes>,
}

impl Span {
    fn of(interval: &Interval) -> Option<Self> {
        match interval {
            Interval::Range(from, to) => Some(Self { from: from.clone(), to: Some(to.clone()) }),
            Interval::From(from) => Some(Self { from: from.clone(), to: None }),
            Interval::Key(_) | Interval::Empty => None,
        }
    }

    fn interval(&self) -> Interval {
        match &self.to {
            Some(to) => Interval::Range(self.from.clone(), to.clone()),
            None => Interval::From(self.from.clone()),
        }
    }

    fn has(&self, key: &[u8]) -> bool {
        key >= &self.from[..] && self.to.as_ref().is_none_or(|to| key < &to[..])
    }

    fn contains(&self, other: &Self) -> bool {
        let ends = match (&self.to, &other.to) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(to), Some(other)) => other <= to,
        };
        self.from <= other.from && ends
    }

    fn intersection(&self, other: &Self) -> Self {
        let to = match (&self.to, &other.to) {
            (Some(one), Some(other)) => Some(one.min(other).clone()),
            (one, other) => one.clone().or_else(|| other.clone()),
        };
        Self { from: (&self.from).max(&other.from).clone(), to }
    }
}

/// What is known of an interval, and what has to be read.
struct Survey {
    known: i64,
    /// Read and counted.
    parts: Vec<Span>,
    /// Buckets that are read as a whole, to be known or divided from then on.
    buckets: Vec<Span>,
    epoch: u64,
}

impl Census {
    pub fn new() -> Self {
        Self::with(Sizes {
            bucket: limits::CENSUS_BUCKET,
            largest: limits::CENSUS_BUCKET * 4,
            buckets: limits::CENSUS_BUCKETS,
            recent: limits::CENSUS_RECENT,
        })
    }

    fn with(sizes: Sizes) -> Self {
        let inner = Inner { buckets: BTreeMap::new(), recent: VecDeque::new(), since: i64::MAX, epoch: 0 };
        Self { inner: Mutex::new(inner), sizes }
    }

    /// Forgets everything: another state, which is at `revision`. It has no answers for earlier ones.
    pub fn reset(&self, revision: i64) {
        let mut inner = self.inner.lock();
        inner.buckets = BTreeMap::from([(Bytes::new(), None)]);
        inner.recent.clear();
        inner.since = revision;
        inner.epoch += 1;
    }

    /// Changes that are about to be made, before anybody can see them.
    pub fn tell(&self, changes: &[Change]) {
        let mut inner = self.inner.lock();
        for change in changes {
            let by = match (&change.version.live, &change.previous) {
                (Some(_), None) => 1,
                (None, Some(_)) => -1,
                _ => continue,
            };
            inner.happened(Happened { revision: change.version.modified, key: change.key.clone(), by });
        }
        while inner.recent.len() > self.sizes.recent {
            if let Some(first) = inner.recent.pop_front() {
                inner.since = first.revision;
            }
        }
    }

    /// How many keys live in `interval` at revision `at`. `None` if only a scan can tell, or if the read was broken off.
    pub fn count(
        &self,
        source: &dyn Source,
        is_broken_off: &dyn Fn() -> bool,
        interval: &Interval,
        at: i64,
    ) -> io::Result<Option<i64>> {
        let Some(asked) = Span::of(interval) else { return Ok(None) };
        let Some(survey) = self.inner.lock().survey(&asked, at, self.sizes) else { return Ok(None) };
        let mut count = survey.known;
        for part in &survey.parts {
            source.scan(&part.interval(), at, &mut |_| {
                count += 1;
                ControlFlow::Continue(())
            })?;
        }
        for bucket in survey.buckets {
            let mut pieces = vec![(bucket.from.clone(), 0)];
            source.scan(&bucket.interval(), at, &mut |row| {
                count += i64::from(asked.has(row.key));
                if pieces.last().is_some_and(|(_, keys)| *keys >= self.sizes.bucket) {
                    pieces.push((Bytes::copy_from_slice(row.key), 0));
                }
                if let Some((_, keys)) = pieces.last_mut() {
                    *keys += 1;
                }
                ControlFlow::Continue(())
            })?;
            if is_broken_off() {
                return Ok(None);
            }
            self.inner.lock().learn(&bucket, at, survey.epoch, pieces, self.sizes);
        }
        Ok(if is_broken_off() { None } else { Some(count) })
    }
}

impl Inner {
    fn happened(&mut self, happened: Happened) {
        if let Some((first, Some(count))) = self.buckets.range_mut::<[u8], _>(up_to(&happened.key)).next_back() {
            *count += happened.by;
            if *count == 0 && !first.is_empty() {
                // Its keys' place falls to the one before.
                let first = first.clone();
                self.buckets.remove(&first);
            }
        }
        self.recent.push_back(happened);
    }

    fn survey(&self, asked: &Span, at: i64, sizes: Sizes) -> Option<Survey> {
        if at < self.since {
            return None;
        }
        let mut survey = Survey { known: 0, parts: Vec::new(), buckets: Vec::new(), epoch: self.epoch };
        // Counted buckets that lie within, as few spans.
        let mut within: Vec<Span> = Vec::new();
        let first = self.buckets.range::<[u8], _>(up_to(&asked.from)).next_back().map(|(first, _)| first.clone())?;
        let mut buckets = self.buckets.range(first..).peekable();
        while let Some((from, count)) = buckets.next() {
            if asked.to.as_ref().is_some_and(|to| from >= to) {
                break;
            }
            let bucket = Span { from: from.clone(), to: buckets.peek().map(|(next, _)| (*next).clone()) };
            match count {
                Some(count) if asked.contains(&bucket) => {
                    survey.known += count;
                    match within.last_mut().filter(|before| before.to.as_ref() == Some(from)) {
                        Some(before) => before.to = bucket.to,
                        None => within.push(bucket),
                    }
                }
                Some(count) if *count <= sizes.largest => survey.parts.push(asked.intersection(&bucket)),
                _ => survey.buckets.push(bucket),
            }
        }
        let later = self.later(at).filter(|happened| within.iter().any(|span| span.has(&happened.key)));
        survey.known -= later.map(|happened| happened.by).sum::<i64>();
        Some(survey)
    }

    /// A bucket was read at revision `at`: these are its pieces, by their first key. Void if it is not the same bucket any more.
    fn learn(&mut self, bucket: &Span, at: i64, epoch: u64, pieces: Vec<(Bytes, i64)>, sizes: Sizes) {
        let next =
            self.buckets.range::<[u8], _>((std::ops::Bound::Excluded(&bucket.from[..]), std::ops::Bound::Unbounded));
        let same = self.buckets.contains_key(&bucket.from) && next.map(|(next, _)| next).next() == bucket.to.as_ref();
        if epoch != self.epoch || at < self.since || !same {
            return;
        }
        let mut pieces: BTreeMap<Bytes, i64> = match self.buckets.len() + pieces.len() <= sizes.buckets {
            true => pieces.into_iter().collect(),
            false => BTreeMap::from([(bucket.from.clone(), pieces.iter().map(|(_, keys)| keys).sum())]),
        };
        for happened in self.later(at).filter(|happened| bucket.has(&happened.key)) {
            if let Some((_, keys)) = pieces.range_mut::<[u8], _>(up_to(&happened.key)).next_back() {
                *keys += happened.by;
            }
        }
        self.buckets.extend(pieces.into_iter().map(|(first, keys)| (first, Some(keys))));
    }

    /// What happened after `at`, which is not before `since`.
    fn later(&self, at: i64) -> impl Iterator<Item = &Happened> {
        self.recent.range(self.recent.partition_point(|happened| happened.revision <= at)..)
    }
}

fn up_to(key: &[u8]) -> (std::ops::Bound<&[u8]>, std::ops::Bound<&[u8]>) {
    (std::ops::Bound::Unbounded, std::ops::Bound::Included(key))
}

#[cfg(test)]
mod tests;
