//! Keys as they lie in RocksDB, and the interval convention of etcd's requests.
//!
//! `kv`: the user's key escaped (00 becomes 00 FF), the terminator 00 01, and the modification revision inverted, so that
//! keys keep their order, no key is a prefix of another, and the newest version comes first.
//! `rev`: main revision, sub revision, both big-endian.

use std::ops::Bound;

use bytes::Bytes;

const TERMINATOR: [u8; 2] = [0, 1];
pub(crate) const ETCD_TOMBSTONE: u8 = b't';
const ESCAPED_ZERO: [u8; 2] = [0, 0xff];

/// The prefix that all versions of `key`, and no others, have.
pub(crate) fn prefix(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 12);
    for &byte in key {
        if byte == 0 {
            out.extend_from_slice(&ESCAPED_ZERO);
        } else {
            out.push(byte);
        }
    }
    out.extend_from_slice(&TERMINATOR);
    out
}

/// Where the version of `key` written at `modified` lies; also where the newest one not after it is found by a seek.
pub(crate) fn version(key: &[u8], modified: i64) -> Vec<u8> {
    let mut out = prefix(key);
    push_revision(&mut out, modified);
    out
}

/// Appends the inverted revision to a [`prefix`].
pub(crate) fn push_revision(prefix: &mut Vec<u8>, modified: i64) {
    prefix.extend_from_slice(&(!modified.cast_unsigned()).to_be_bytes());
}

/// Takes a stored key apart: writes the user's key into `key` and returns the revision; `None` if it is no such key.
pub(crate) fn parse_version(raw: &[u8], key: &mut Vec<u8>) -> Option<i64> {
    let (head, revision) = raw.split_last_chunk::<8>()?;
    let escaped = head.strip_suffix(&TERMINATOR)?;
    key.clear();
    let plain = escaped.iter().position(|&byte| byte == 0).unwrap_or(escaped.len());
    key.extend_from_slice(&escaped[..plain]);
    let mut rest = &escaped[plain..];
    while let Some((&byte, tail)) = rest.split_first() {
        key.push(byte);
        rest = if byte == 0 { tail.strip_prefix(&[0xff])? } else { tail };
    }
    Some((!u64::from_be_bytes(*revision)).cast_signed())
}

/// The prefix of a stored key, without its revision.
pub(crate) fn prefix_of(raw: &[u8]) -> &[u8] {
    &raw[..raw.len().saturating_sub(8)]
}

/// The key in `rev` of one change.
pub(crate) fn revision(main: i64, sub: i64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&main.cast_unsigned().to_be_bytes());
    out[8..].copy_from_slice(&sub.cast_unsigned().to_be_bytes());
    out
}

/// Where etcd keeps a change: what its hash counts, and its snapshots hold. Marked with a `t` if the change is a deletion.
pub(crate) fn etcd_revision(main: i64, sub: i64, deleted: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(18);
    out.extend_from_slice(&main.to_be_bytes());
    out.push(b'_');
    out.extend_from_slice(&sub.to_be_bytes());
    if deleted {
        out.push(ETCD_TOMBSTONE);
    }
    out
}

pub(crate) fn parse_revision(raw: &[u8]) -> Option<(i64, i64)> {
    let raw: &[u8; 16] = raw.try_into().ok()?;
    let (main, sub) = raw.split_at(8);
    let number = |part: &[u8]| part.try_into().ok().map(|b| u64::from_be_bytes(b).cast_signed());
    Some((number(main)?, number(sub)?))
}

/// What a request addresses. An open end is a case of its own, never an empty string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Interval {
    Key(Bytes),
    /// From the first, without the second; the first is less.
    Range(Bytes, Bytes),
    From(Bytes),
    Empty,
}

impl Interval {
    /// Reads etcd's pair: no end is one key, an end of one zero byte is everything from `key` on.
    pub fn new(key: &Bytes, range_end: &Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::Key(key.clone()),
            [0] => Self::From(key.clone()),
            end if end <= key.as_ref() => Self::Empty,
            _ => Self::Range(key.clone(), range_end.clone()),
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(one) => one.as_ref() == key,
            Self::Range(start, end) => start.as_ref() <= key && key < end.as_ref(),
            Self::From(start) => start.as_ref() <= key,
            Self::Empty => false,
        }
    }

    /// True if some key can lie in both.
    pub fn intersects(&self, other: &Self) -> bool {
        let (Some(first), Some(second)) = (self.start(), other.start()) else { return false };
        let before = |start: &Bytes, interval: &Self| match interval {
            Self::Key(key) => start <= key,
            Self::Range(_, end) => start < end,
            Self::From(_) => true,
            Self::Empty => false,
        };
        before(first, other) && before(second, self)
    }

    pub(crate) fn start(&self) -> Option<&Bytes> {
        match self {
            Self::Key(key) | Self::Range(key, _) | Self::From(key) => Some(key),
            Self::Empty => None,
        }
    }

    /// The same interval over an ordered map of keys; empty for [`Interval::Empty`].
    pub(crate) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        match self {
            Self::Key(key) => (Bound::Included(key), Bound::Included(key)),
            Self::Range(start, end) => (Bound::Included(start), Bound::Excluded(end)),
            Self::From(start) => (Bound::Included(start), Bound::Unbounded),
            Self::Empty => (Bound::Included(&[]), Bound::Excluded(&[])),
        }
    }
}

/// The end of the range that holds exactly the keys beginning with `prefix`; one zero byte if there is no such end.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|&byte| byte < 0xff);
    match kept {
        Some(at) => {
            let mut end = prefix[..=at].to_vec();
            end[at] += 1;
            Bytes::from(end)
        }
        None => Bytes::from_static(&[0]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_keys_keep_the_order_of_keys_and_put_newer_versions_first() {
        let keys: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"\0\xff", b"a", b"a\0b", b"ab"];
        let mut sorted: Vec<Vec<u8>> =
            keys.iter().flat_map(|key| [9, 7, i64::MAX, 0].map(|rev| version(key, rev))).collect();
        sorted.sort();
        let mut key = Vec::new();
        let read: Vec<(Vec<u8>, i64)> = sorted
            .iter()
            .map(|raw| {
                let rev = parse_version(raw, &mut key).unwrap();
                (key.clone(), rev)
            })
            .collect();
        let want: Vec<(Vec<u8>, i64)> =
            keys.iter().flat_map(|key| [i64::MAX, 9, 7, 0].map(|rev| (key.to_vec(), rev))).collect();
        assert_eq!(read, want);
    }

    #[test]
    fn damaged_keys_are_refused() {
        let mut key = Vec::new();
        for raw in [&b""[..], b"1234567", b"a\0\x02........", b"a\0b\0\x01........"] {
            assert_eq!(parse_version(raw, &mut key), None, "{raw:?}");
        }
    }

    #[test]
    fn intervals_follow_the_convention() {
        let of =
            |key: &'static [u8], end: &'static [u8]| Interval::new(&Bytes::from_static(key), &Bytes::from_static(end));
        assert!(of(b"a", b"").contains(b"a") && !of(b"a", b"").contains(b"ab"));
        assert!(of(b"a", b"c").contains(b"b") && !of(b"a", b"c").contains(b"c"));
        assert!(of(b"\0", b"\0").contains(b"\xff\xff"));
        assert_eq!(of(b"b", b"a"), Interval::Empty);
        assert!(of(b"a", b"c").intersects(&of(b"b", b"")));
        assert!(!of(b"a", b"c").intersects(&of(b"c", b"\0")));
        assert!(of(b"x", b"\0").intersects(&of(b"a", b"\0")));
        assert_eq!(prefix_end(b"a\xff").as_ref(), b"b");
        assert_eq!(prefix_end(b"\xff").as_ref(), b"\0");
    }
}
