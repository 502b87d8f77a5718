//! Records as they lie in RocksDB. Each begins with a format byte; blocks on disk carry RocksDB's checksums, and the records
//! that name the state as a whole carry a CRC32C of their own.

use std::io;

use bytes::{Buf, BufMut, Bytes};
use pintle_proto::mvccpb::KeyValue;
use prost::Message;
use prost::encoding::{WireType, decode_varint, encode_key, encode_varint, encoded_len_varint};

const LIVE: u8 = 1;
const TOMBSTONE: u8 = 2;
const PUT: u8 = 1;
const DELETE: u8 = 2;
/// A put with the size of the row it makes in a snapshot.
const SIZED_PUT: u8 = 3;
const CHECKED: u8 = 1;

/// One version of a key: what it held from `modified` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub modified: i64,
    /// Position among the changes of its revision.
    pub sub: i64,
    /// `None` if the key was deleted at `modified`.
    pub live: Option<Live>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub created: i64,
    pub version: i64,
    pub lease: i64,
    pub value: Bytes,
}

impl Version {
    pub fn to_kv(&self, key: Bytes) -> Option<KeyValue> {
        self.live.as_ref().map(|live| KeyValue {
            key,
            create_revision: live.created,
            mod_revision: self.modified,
            version: live.version,
            value: live.value.clone(),
            lease: live.lease,
        })
    }

    /// As etcd stores it: of a deletion only the key.
    pub fn to_stored_kv(&self, key: &[u8]) -> KeyValue {
        let key = Bytes::copy_from_slice(key);
        self.to_kv(key.clone()).unwrap_or(KeyValue { key, ..KeyValue::default() })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.live.as_ref().map_or(0, |live| live.value.len()));
        match &self.live {
            Some(live) => {
                out.put_u8(LIVE);
                for number in [self.sub, live.created, live.version, live.lease] {
                    encode_varint(number.cast_unsigned(), &mut out);
                }
                out.put_slice(&live.value);
            }
            None => {
                out.put_u8(TOMBSTONE);
                encode_varint(self.sub.cast_unsigned(), &mut out);
            }
        }
        out
    }

    pub fn decode(modified: i64, raw: &[u8]) -> io::Result<Self> {
        let row = Row::parse(&[], modified, raw)?;
        Ok(Self { modified, sub: row.sub, live: row.live.then(|| row.to_live()) })
    }
}

/// A stored version before anything is copied out of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub key: &'a [u8],
    pub modified: i64,
    pub sub: i64,
    pub live: bool,
    pub created: i64,
    pub version: i64,
    pub lease: i64,
    pub value: &'a [u8],
}

impl<'a> Row<'a> {
    pub fn parse(key: &'a [u8], modified: i64, raw: &'a [u8]) -> io::Result<Self> {
        let damaged = || corrupt("version record");
        let (&format, mut rest) = raw.split_first().ok_or_else(damaged)?;
        let mut number = || decode_varint(&mut rest).map(u64::cast_signed).map_err(|_| damaged());
        match format {
            LIVE => {
                let (sub, created, version, lease) = (number()?, number()?, number()?, number()?);
                Ok(Self { key, modified, sub, live: true, created, version, lease, value: rest })
            }
            TOMBSTONE => {
                let sub = number()?;
                Ok(Self { key, modified, sub, live: false, created: 0, version: 0, lease: 0, value: &[] })
            }
            _ => Err(corrupt("version record of an unknown format")),
        }
    }

    pub fn of(key: &'a [u8], version: &'a Version) -> Self {
        let blank = Self {
            key,
            modified: version.modified,
            sub: version.sub,
            live: false,
            created: 0,
            version: 0,
            lease: 0,
            value: &[],
        };
        match &version.live {
            Some(live) => Self {
                live: true,
                created: live.created,
                version: live.version,
                lease: live.lease,
                value: &live.value,
                ..blank
            },
            None => blank,
        }
    }

    pub fn to_kv(self) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(self.key),
            create_revision: self.created,
            mod_revision: self.modified,
            version: self.version,
            value: Bytes::copy_from_slice(self.value),
            lease: self.lease,
        }
    }

    pub fn of_kv(kv: &'a KeyValue) -> Self {
        Self {
            key: &kv.key,
            modified: kv.mod_revision,
            sub: 0,
            live: true,
            created: kv.create_revision,
            version: kv.version,
            lease: kv.lease,
            value: &kv.value,
        }
    }

    /// Bytes it has as an encoded `mvccpb.KeyValue`.
    pub fn encoded_len(&self) -> usize {
        let bytes =
            |field: &[u8]| if field.is_empty() { 0 } else { 1 + encoded_len_varint(field.len() as u64) + field.len() };
        let number = |number: i64| if number == 0 { 0 } else { 1 + encoded_len_varint(number.cast_unsigned()) };
        let numbers = [self.created, self.modified, self.version, self.lease];
        bytes(self.key) + bytes(self.value) + numbers.into_iter().map(number).sum::<usize>()
    }

    /// Writes it as `mvccpb.KeyValue`, in the order of the fields: nothing is copied twice.
    pub fn encode(&self, out: &mut impl BufMut) {
        encode_bytes(1, self.key, out);
        for (tag, number) in [(2, self.created), (3, self.modified), (4, self.version)] {
            encode_number(tag, number, out);
        }
        encode_bytes(5, self.value, out);
        encode_number(6, self.lease, out);
    }

    fn to_live(self) -> Live {
        Live {
            created: self.created,
            version: self.version,
            lease: self.lease,
            value: Bytes::copy_from_slice(self.value),
        }
    }
}

/// A record of `rev`: what was done to which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change<'a> {
    pub deleted: bool,
    pub key: &'a [u8],
    /// Bytes of the key and what it held as an encoded `mvccpb.KeyValue`: a snapshot is laid out without reading a value. Absent in
    /// records of before it was kept.
    pub size: Option<usize>,
}

pub(crate) fn encode_change(key: &[u8], version: &Version) -> Vec<u8> {
    let mut out = Vec::with_capacity(6 + key.len());
    match encoded_size(key, version) {
        Some(size) => {
            out.put_u8(SIZED_PUT);
            encode_varint(size as u64, &mut out);
        }
        None => out.put_u8(DELETE),
    }
    out.put_slice(key);
    out
}

pub(crate) fn decode_change(raw: &[u8]) -> io::Result<Change<'_>> {
    match raw.split_first() {
        Some((&SIZED_PUT, mut rest)) => {
            let size = decode_varint(&mut rest).ok().and_then(|size| usize::try_from(size).ok());
            let size = size.ok_or_else(|| corrupt("change record"))?;
            Ok(Change { deleted: false, key: rest, size: Some(size) })
        }
        Some((&PUT, key)) => Ok(Change { deleted: false, key, size: None }),
        Some((&DELETE, key)) => Ok(Change { deleted: true, key, size: None }),
        _ => Err(corrupt("change record")),
    }
}

/// Bytes of `version` as an encoded `mvccpb.KeyValue`; `None` if it is a tombstone.
pub(crate) fn encoded_size(key: &[u8], version: &Version) -> Option<usize> {
    version.live.is_some().then(|| Row::of(key, version).encoded_len())
}

fn encode_bytes(tag: u32, field: &[u8], out: &mut impl BufMut) {
    if !field.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(field.len() as u64, out);
        out.put_slice(field);
    }
}

fn encode_number(tag: u32, number: i64, out: &mut impl BufMut) {
    if number != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(number.cast_unsigned(), out);
    }
}

/// Wraps a message that must not be misread: format byte, CRC32C of the rest, the message.
pub(crate) fn encode_checked(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut out = Vec::with_capacity(5 + body.len());
    out.put_u8(CHECKED);
    out.put_u32(crc32c::crc32c(&body));
    out.put_slice(&body);
    out
}

pub(crate) fn decode_checked<M: Message + Default>(mut raw: &[u8], what: &'static str) -> io::Result<M> {
    if raw.len() < 5 || raw.get_u8() != CHECKED {
        return Err(corrupt(what));
    }
    let sum = raw.get_u32();
    if crc32c::crc32c(raw) != sum {
        return Err(corrupt(what));
    }
    M::decode(raw).map_err(|_| corrupt(what))
}

pub(crate) fn corrupt(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_back_as_written_and_damage_is_an_error() {
        let live = Live { created: 3, version: 2, lease: -7, value: Bytes::from_static(b"\0v") };
        for live in [Some(live), None] {
            let version = Version { modified: 9, sub: 300, live };
            let raw = version.encode();
            assert_eq!(Version::decode(9, &raw).unwrap(), version);
            assert!(Version::decode(9, &raw[..2]).is_err());
        }
        assert!(Version::decode(1, &[]).is_err());
        assert!(Version::decode(1, &[77, 0]).is_err());
        assert!(decode_change(&[]).is_err());
    }

    #[test]
    fn a_change_knows_how_large_its_row_in_a_snapshot_is() {
        for (key, value, lease, modified) in
            [(&b"k"[..], &b""[..], 0, 2), (b"key", &[7; 200], -1, 1 << 40), (&[0; 130], b"v", 9, 300)]
        {
            let live = Live { created: 2, version: 1, lease, value: Bytes::copy_from_slice(value) };
            let version = Version { modified, sub: 3, live: Some(live) };
            let size = version.to_kv(Bytes::copy_from_slice(key)).map(|kv| kv.encoded_len());
            assert_eq!(decode_change(&encode_change(key, &version)).unwrap(), Change { deleted: false, key, size });
        }
        let tombstone = Version { modified: 4, sub: 0, live: None };
        let change = Change { deleted: true, key: b"k", size: None };
        assert_eq!(decode_change(&encode_change(b"k", &tombstone)).unwrap(), change);
        assert_eq!(decode_change(b"\x01old").unwrap(), Change { deleted: false, key: b"old", size: None });
        assert!(decode_change(b"\x03\xff").is_err());
    }
}
