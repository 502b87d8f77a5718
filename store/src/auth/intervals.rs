//! A set of keys as intervals: what a user may read or write.

use bytes::Bytes;

use crate::mvcc::key::Interval;

/// Union of intervals. Always holds: sorted, without overlap, and no two touch, so that one search answers any question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IntervalSet {
    spans: Vec<Span>,
}

/// From `start` on, without `end`; no end is open.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    start: Bytes,
    end: Option<Bytes>,
}

impl Span {
    fn of(interval: &Interval) -> Option<Self> {
        match interval {
            Interval::Key(key) => Some(Self { start: key.clone(), end: Some([key, &[0][..]].concat().into()) }),
            Interval::Range(start, end) => Some(Self { start: start.clone(), end: Some(end.clone()) }),
            // One zero byte is the least key there is.
            Interval::From(start) if start.as_ref() == [0] => Some(Self { start: Bytes::new(), end: None }),
            Interval::From(start) => Some(Self { start: start.clone(), end: None }),
            Interval::Empty => None,
        }
    }

    /// Whether this one reaches as far as `start`, or to just before it.
    fn reaches(&self, start: &Bytes) -> bool {
        self.end.as_ref().is_none_or(|end| end >= start)
    }

    fn ends_within(&self, outer: &Self) -> bool {
        match (&self.end, &outer.end) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(end), Some(outer)) => end <= outer,
        }
    }
}

impl FromIterator<Interval> for IntervalSet {
    fn from_iter<I: IntoIterator<Item = Interval>>(intervals: I) -> Self {
        let mut sorted: Vec<Span> = intervals.into_iter().filter_map(|interval| Span::of(&interval)).collect();
        sorted.sort_by(|a, b| a.start.cmp(&b.start));
        let mut spans: Vec<Span> = Vec::with_capacity(sorted.len());
        for span in sorted {
            match spans.last_mut() {
                Some(last) if last.reaches(&span.start) => {
                    if !span.ends_within(last) {
                        last.end = span.end;
                    }
                }
                _ => spans.push(span),
            }
        }
        Self { spans }
    }
}

impl IntervalSet {
    /// True if every key that can lie in `interval` is in the set. An empty interval names no key, and is never covered.
    pub fn covers(&self, interval: &Interval) -> bool {
        let Some(asked) = Span::of(interval) else { return false };
        let after = self.spans.partition_point(|span| span.start <= asked.start);
        let Some(span) = after.checked_sub(1).and_then(|at| self.spans.get(at)) else { return false };
        asked.ends_within(span)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(raw: &[u8]) -> Bytes {
        Bytes::copy_from_slice(raw)
    }

    fn interval() -> impl Strategy<Value = Interval> {
        let short = || proptest::collection::vec(0_u8..3, 1..3);
        prop_oneof![
            short().prop_map(|at| Interval::Key(at.into())),
            (short(), short()).prop_map(|(start, end)| Interval::new(&start.into(), &end.into())),
            short().prop_map(|start| Interval::From(start.into())),
        ]
    }

    /// Every key of up to three bytes: enough to tell any two of the generated sets apart.
    fn keys() -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = vec![Vec::new()];
        for length in 0..3 {
            let longer: Vec<Vec<u8>> = all
                .iter()
                .filter(|key| key.len() == length)
                .flat_map(|key| (0..4).map(|byte| [key.as_slice(), &[byte]].concat()))
                .collect();
            all.extend(longer);
        }
        all.remove(0); // no key is empty
        all
    }

    proptest! {
        #[test]
        fn covered_is_exactly_what_lies_in_some_interval(
            granted in proptest::collection::vec(interval(), 0..6),
            asked in interval(),
        ) {
            let set: IntervalSet = granted.iter().cloned().collect();
            let within = keys().iter().filter(|key| asked.contains(key)).all(|key| granted.iter().any(|one| one.contains(key)));
            let covered = set.covers(&asked);
            prop_assert!(!covered || within, "{granted:?} does not hold all of {asked:?}");
            // An interval without a key in it is refused, and so may be one that ends between keys the sample knows.
            if let Interval::Key(_) = asked {
                prop_assert_eq!(covered, within);
            }
        }

        #[test]
        fn the_order_of_grants_does_not_matter(granted in proptest::collection::vec(interval(), 0..6)) {
            let forwards: IntervalSet = granted.iter().cloned().collect();
            let backwards: IntervalSet = granted.into_iter().rev().collect();
            prop_assert_eq!(forwards, backwards);
        }
    }

    #[test]
    fn neighbours_are_one_and_an_open_end_needs_an_open_end() {
        let set: IntervalSet = [
            Interval::Range(key(b"a"), key(b"c")),
            Interval::Key(key(b"c")),
            Interval::Range(key(b"c\0"), key(b"d")),
            Interval::From(key(b"x")),
        ]
        .into_iter()
        .collect();
        assert_eq!(set.spans.len(), 2);
        assert!(set.covers(&Interval::Range(key(b"a"), key(b"d"))));
        assert!(!set.covers(&Interval::Range(key(b"a"), key(b"d\0"))));
        assert!(!set.covers(&Interval::From(key(b"a"))));
        assert!(set.covers(&Interval::From(key(b"y"))));
        assert!(!set.covers(&Interval::Empty));
        let all: IntervalSet = [Interval::From(key(b"\0"))].into_iter().collect();
        assert!(all.covers(&Interval::From(key(b"\0"))) && all.covers(&Interval::Key(key(b"\0"))));
    }
}
