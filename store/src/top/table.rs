//! Counts by prefix, cut at slashes, for a bounded number of prefixes: when there are too many, the least of them are counted as part of
//! the prefix above from then on. So sums are exact at every depth, and of the small prefixes only the beginning is lost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::limits;
use crate::mvcc::key::prefix_end;
use crate::quota::Size;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Less than nothing if what went was counted as part of the prefix above.
    pub keys: i64,
    pub bytes: i64,
    pub writes: u64,
    pub reads: u64,
}

impl Counts {
    pub fn of(size: Size) -> Self {
        Self { keys: size.keys, bytes: size.bytes, ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.keys += other.keys;
        self.bytes += other.bytes;
        self.writes += other.writes;
        self.reads += other.reads;
    }

    /// What share of `total` it has in what it has most of.
    #[allow(clippy::cast_precision_loss)]
    fn share(self, total: Self) -> f64 {
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let sizes = [(self.keys, total.keys), (self.bytes, total.bytes)];
        let sizes = sizes.map(|(part, whole)| share(part.unsigned_abs(), whole.unsigned_abs()));
        [sizes[0], sizes[1], share(self.writes, total.writes), share(self.reads, total.reads)]
            .into_iter()
            .fold(0.0, f64::max)
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// By prefix; what is not under any is under the empty one.
    counts: HashMap<Box<[u8]>, Counts>,
}

impl Table {
    pub fn add(&mut self, key: &[u8], counts: Counts) {
        let prefix = cut(key, limits::TOP_DEPTH as usize);
        if let Some(known) = self.counts.get_mut(prefix) {
            known.add(counts);
            return;
        }
        if self.counts.len() >= limits::TOP_PREFIXES {
            self.fold();
        }
        self.counts.insert(prefix.into(), counts);
    }

    pub fn merge(&mut self, other: Self) {
        for (prefix, counts) in other.counts {
            self.add(&prefix, counts);
        }
    }

    fn total(&self) -> Counts {
        self.counts.values().fold(Counts::default(), |mut total, counts| {
            total.add(*counts);
            total
        })
    }

    /// Makes room for a quarter of all.
    fn fold(&mut self) {
        // What is above may be new itself: every pass brings some of it one part further up.
        while self.counts.len() > limits::TOP_PREFIXES / 4 * 3 {
            self.fold_least();
        }
    }

    /// Counts the least half as part of what is above, deepest first.
    fn fold_least(&mut self) {
        let total = self.total();
        let mut order: Vec<(f64, Box<[u8]>)> =
            self.counts.iter().map(|(prefix, counts)| (counts.share(total), prefix.clone())).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        order.truncate(limits::TOP_PREFIXES / 2);
        order.sort_by_key(|(_, prefix)| Reverse(depth(prefix)));
        for (_, prefix) in order.iter().filter(|(_, prefix)| !prefix.is_empty()) {
            if let Some(counts) = self.counts.remove(prefix) {
                self.counts.entry(above(prefix).into()).or_default().add(counts);
            }
        }
    }

    /// The sums at a depth: of everything, and of up to `limit` prefixes, those first that have most of anything.
    pub fn rows(&self, depth: usize, limit: usize) -> (Counts, Vec<(Bytes, Counts)>) {
        let mut sums: BTreeMap<&[u8], Counts> = BTreeMap::new();
        for (prefix, counts) in &self.counts {
            sums.entry(cut(prefix, depth)).or_default().add(*counts);
        }
        let total = self.total();
        let mut rows: Vec<(&[u8], Counts)> = sums.into_iter().collect();
        rows.sort_by(|a, b| b.1.share(total).total_cmp(&a.1.share(total)).then_with(|| a.0.cmp(b.0)));
        rows.truncate(limit);
        (total, rows.into_iter().map(|(prefix, counts)| (Bytes::copy_from_slice(prefix), counts)).collect())
    }
}

/// The first parts of a key, each ended by a slash; a slash at its beginning ends none. Long ones are cut earlier.
fn cut(key: &[u8], parts: usize) -> &[u8] {
    let key = &key[..key.len().min(limits::TOP_PREFIX_BYTES)];
    let slashes = key.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/');
    slashes.take(parts).last().map_or(&[], |(at, _)| &key[..=at])
}

fn depth(prefix: &[u8]) -> usize {
    prefix.iter().skip(1).filter(|byte| **byte == b'/').count()
}

/// A prefix without its last part.
fn above(prefix: &[u8]) -> &[u8] {
    cut(prefix, depth(prefix).saturating_sub(1))
}

/// What a range is counted under: the prefix it reads, all or a page of it, else what its ends have in common.
pub(super) fn prefix_of_range<'a>(key: &'a [u8], range_end: &[u8]) -> &'a [u8] {
    let Some((last, head)) = range_end.split_last().filter(|(last, _)| **last > 0) else {
        return if range_end.is_empty() { key } else { &[] }; // one key, or everything from it on
    };
    // The prefix whose end this is.
    let length = range_end.len();
    let is_page = key.len() >= length && key.starts_with(head) && key[length - 1] == last - 1;
    if is_page && prefix_end(&key[..length]) == range_end {
        return &key[..length];
    }
    let common = key.iter().zip(range_end).take_while(|(a, b)| a == b).count();
    &key[..common]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEEPEST: usize = limits::TOP_DEPTH as usize;

    #[test]
    fn keys_are_cut_at_slashes() {
        for (key, parts, want) in [
            ("/registry/pods/default/a", 1, "/registry/"),
            ("/registry/pods/default/a", 2, "/registry/pods/"),
            ("/registry/pods/default/a", 9, "/registry/pods/default/"),
            ("a/b", 1, "a/"),
            ("/a", 3, ""),
            ("", 1, ""),
            ("//x", 1, "//"),
        ] {
            assert_eq!(cut(key.as_bytes(), parts), want.as_bytes(), "{key} {parts}");
        }
        assert_eq!((above(b"/a/b/"), above(b"/a/"), above(b"")), (&b"/a/"[..], &b""[..], &b""[..]));
        assert!(cut(&[b"/a/".to_vec(), vec![b'x'; 9999], b"/b".to_vec()].concat(), 2) == b"/a/");
    }

    #[test]
    fn ranges_are_counted_under_the_prefix_they_read() {
        for (key, end, want) in [
            ("/r/pods/a", "", "/r/pods/a"),
            ("/r/pods/", "/r/pods0", "/r/pods/"),
            ("/r/pods/default/x\0", "/r/pods0", "/r/pods/"),
            ("/r/pods/a", "/r/pods/c", "/r/pods/"),
            ("/r/pods/a", "\0", ""),
            ("/a", "/b", "/a"),
            ("/a", "/c", "/"),
        ] {
            assert_eq!(prefix_of_range(key.as_bytes(), end.as_bytes()), want.as_bytes(), "{key} {end}");
        }
    }

    #[test]
    fn prefixes_that_have_nothing_above_in_common_are_bounded_too() {
        let mut table = Table::default();
        for number in 0..limits::TOP_PREFIXES * 3 {
            table.add(format!("/{number}/{number}/{number}/x").as_bytes(), Counts { writes: 1, ..Counts::default() });
            assert!(table.counts.len() <= limits::TOP_PREFIXES);
        }
        assert_eq!(table.total().writes, limits::TOP_PREFIXES as u64 * 3);
    }

    #[test]
    fn sums_stay_exact_however_many_prefixes_there_are_and_what_is_large_or_busy_keeps_its_own() {
        let mut table = Table::default();
        let one = Counts { keys: 1, bytes: 10, writes: 1, reads: 0 };
        let many = limits::TOP_PREFIXES * 5;
        for number in 0..many {
            table.add(format!("/apps/{}/{number}/x", number % 7).as_bytes(), one);
            table.add(b"/apps/busy/here/x", Counts { writes: 1, ..Counts::default() });
            table.add(b"/other/read/there/x", Counts { reads: 1, ..Counts::default() });
            assert!(table.counts.len() <= limits::TOP_PREFIXES);
        }
        let (total, rows) = table.rows(DEEPEST, 3);
        assert_eq!(
            total,
            Counts { keys: many as i64, bytes: many as i64 * 10, writes: 2 * many as u64, reads: many as u64 }
        );
        let of = |rows: &[(Bytes, Counts)], prefix: &str| rows.iter().find(|(name, _)| name == prefix).map(|row| row.1);
        assert_eq!(of(&rows, "/apps/busy/here/").expect("busy").writes, many as u64);
        assert_eq!(of(&rows, "/other/read/there/").expect("read").reads, many as u64);
        let (_, rows) = table.rows(2, 100);
        for number in 0..7u64 {
            let expected = (0..many as u64).filter(|at| at % 7 == number).count() as i64;
            assert_eq!(of(&rows, &format!("/apps/{number}/")).expect("a row").keys, expected);
        }
    }
}
