//! How records lie on this member's disk: `[format][crc32c of key and body, little endian][body]` (D5).
//!
//! The checksum covers the key a record is stored under, so that an intact record in the wrong place is found too. Bodies
//! of openraft's small serde types are bincode 1 with a size limit; this is the only file that uses it. The commands of an
//! entry follow its head unchanged, as the prost batch they arrived as.

use bincode::Options;
use bytes::Bytes;
use openraft::EntryPayload;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::core::{Batch, Entry, Membership, RaftLogId};
use crate::limits;

const FORMAT: u8 = 1;
const HEAD: usize = 5;

/// Why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("record is cut off after {0} bytes")]
    Short(usize),
    #[error("record has format {0}, this version reads format {FORMAT}")]
    Format(u8),
    #[error("record does not match its checksum")]
    Checksum,
    #[error("record cannot be decoded: {0}")]
    Body(String),
}

#[derive(Serialize, Deserialize)]
struct EntryHead {
    log_id: RaftLogId,
    kind: Kind,
}

#[derive(Serialize, Deserialize)]
enum Kind {
    Blank,
    Batch,
    Membership(Membership),
}

fn options(limit: u64) -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit)
}

/// A small record stored under `key`.
pub(crate) fn encode<T: Serialize>(key: &[u8], value: &T) -> Result<Vec<u8>, RecordError> {
    let mut record = vec![0; HEAD];
    options(limits::META_BYTES).serialize_into(&mut record, value).map_err(|e| RecordError::Body(e.to_string()))?;
    seal(key, &mut record);
    Ok(record)
}

pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], record: &[u8]) -> Result<T, RecordError> {
    options(limits::META_BYTES).deserialize(open(key, record)?).map_err(|e| RecordError::Body(e.to_string()))
}

/// A record whose body is encoded already.
pub(crate) fn wrap(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut record = vec![0; HEAD];
    record.extend_from_slice(body);
    seal(key, &mut record);
    record
}

/// The body of such a record.
pub(crate) fn unwrap<'a>(key: &[u8], record: &'a [u8]) -> Result<&'a [u8], RecordError> {
    open(key, record)
}

/// An entry stored under `key`.
#[cfg(any(test, debug_assertions))]
pub(crate) fn encode_entry(key: &[u8], entry: &Entry) -> Result<Vec<u8>, RecordError> {
    let mut record = Vec::new();
    append_entry(key, entry, &mut record)?;
    Ok(record)
}

/// An entry stored under `key`, at the end of `record`.
pub(crate) fn append_entry(key: &[u8], entry: &Entry, record: &mut Vec<u8>) -> Result<(), RecordError> {
    let (kind, tail) = match &entry.payload {
        EntryPayload::Blank => (Kind::Blank, None),
        EntryPayload::Normal(batch) => (Kind::Batch, Some(&batch.0)),
        EntryPayload::Membership(membership) => (Kind::Membership(membership.clone()), None),
    };
    let begin = record.len();
    record.reserve(HEAD + 64 + tail.map_or(0, Bytes::len));
    record.resize(begin + HEAD, 0);
    options(limits::META_BYTES)
        .serialize_into(&mut *record, &EntryHead { log_id: entry.log_id, kind })
        .map_err(|e| RecordError::Body(e.to_string()))?;
    if let Some(tail) = tail {
        record.extend_from_slice(tail);
    }
    seal(key, &mut record[begin..]);
    Ok(())
}

pub(crate) fn decode_entry(key: &[u8], record: &[u8]) -> Result<Entry, RecordError> {
    let mut body = open(key, record)?;
    let head: EntryHead = options(limits::RECORD_BYTES)
        .allow_trailing_bytes()
        .deserialize_from(&mut body)
        .map_err(|e| RecordError::Body(e.to_string()))?;
    let payload = match head.kind {
        Kind::Batch => EntryPayload::Normal(Batch(Bytes::copy_from_slice(body))),
        _ if !body.is_empty() => return Err(RecordError::Body(format!("{} bytes too many", body.len()))),
        Kind::Blank => EntryPayload::Blank,
        Kind::Membership(membership) => EntryPayload::Membership(membership),
    };
    Ok(Entry { log_id: head.log_id, payload })
}

/// `record` has room for the head, then the body.
fn seal(key: &[u8], record: &mut [u8]) {
    let crc = checksum(key, &record[HEAD..]);
    record[0] = FORMAT;
    record[1..HEAD].copy_from_slice(&crc.to_le_bytes());
}

fn open<'a>(key: &[u8], record: &'a [u8]) -> Result<&'a [u8], RecordError> {
    let (head, body) = record.split_at_checked(HEAD).ok_or(RecordError::Short(record.len()))?;
    if head[0] != FORMAT {
        return Err(RecordError::Format(head[0]));
    }
    if head[1..] != checksum(key, body).to_le_bytes() {
        return Err(RecordError::Checksum);
    }
    Ok(body)
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Record;
    use crate::core::raft_log_id;
    use crate::machine::LogId;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn entry(payload: EntryPayload<Batch, u64, Record>) -> Entry {
        Entry { log_id: raft_log_id(LogId { term: 3, index: 7 }), payload }
    }

    fn membership() -> Membership {
        let peer = Record { name: "a".into(), ..Record::default() };
        Membership::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, peer)])).expect("valid")
    }

    #[test]
    fn every_kind_of_entry_reads_back_as_written() {
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Batch(Bytes::from_static(b"commands"))),
            EntryPayload::Membership(membership()),
        ] {
            let entry = entry(payload);
            let record = encode_entry(b"k", &entry).expect("encode");
            assert_eq!(decode_entry(b"k", &record).expect("decode"), entry);
        }
    }

    #[test]
    fn a_record_under_another_key_is_refused() {
        let record = encode_entry(b"k", &entry(EntryPayload::Blank)).expect("encode");
        assert_eq!(decode_entry(b"l", &record), Err(RecordError::Checksum));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let record = encode_entry(b"k", &entry(EntryPayload::Normal(Batch(Bytes::from_static(b"x"))))).expect("encode");
        for bit in 0..record.len() * 8 {
            let mut broken = record.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_entry(b"k", &broken).is_err(), "bit {bit}");
        }
        for len in 0..record.len() {
            assert!(decode_entry(b"k", &record[..len]).is_err(), "cut at {len}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut record = vec![0; HEAD];
            record.extend_from_slice(&body);
            seal(b"k", &mut record);
            let _ = decode_entry(b"k", &record);
            let _ = decode::<Membership>(b"k", &record);
        }
    }
}
