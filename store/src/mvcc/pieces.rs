//! The answer of a large range, encoded in pieces where it was read: whoever sends it never holds a thread for long, and no key is
//! copied once more.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pintle_proto::etcdserverpb::{RangeResponse, ResponseHeader};
use prost::encoding::{WireType, bool, encode_key, encode_varint, int64, message};

use super::record::Row;
use crate::limits;

/// Room for a short answer; more is made as it grows.
const FIRST_BYTES: usize = 4 << 10;

/// Bytes before a key's message at most: its tag and its length.
const HEAD_BYTES: usize = 8;

/// The numbers of the fields of `etcdserverpb.RangeResponse`.
const HEADER: u32 = 1;
const KVS: u32 = 2;
const MORE: u32 = 3;
const COUNT: u32 = 4;

/// An encoded message. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pieces {
    pieces: Arc<Vec<Bytes>>,
    bytes: usize,
}

/// What a range is answered with.
pub(crate) enum RangeAnswer {
    Whole(RangeResponse),
    Pieces(Pieces),
}

impl RangeAnswer {
    /// Length of the message.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Whole(answer) => prost::Message::encoded_len(answer),
            Self::Pieces(pieces) => pieces.bytes(),
        }
    }
}

impl Pieces {
    /// Encodes an answer; `pace` hears of every key and may break it off, then what there is is of no use.
    pub fn of(answer: RangeResponse, mut pace: impl FnMut(usize) -> ControlFlow<()>) -> Self {
        let mut draft = Draft::new(answer.header.as_ref());
        for kv in &answer.kvs {
            draft.push(&Row::of_kv(kv));
            if pace(kv.key.len() + kv.value.len()).is_break() {
                break;
            }
        }
        draft.finish(answer.more, answer.count)
    }

    /// Length of the message.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn get(&self, at: usize) -> Option<Bytes> {
        self.pieces.get(at).cloned()
    }
}

/// An answer in the making: header, then keys as they are read, then what is known only at the end. That is the order of the fields.
pub(crate) struct Draft {
    pieces: Vec<Bytes>,
    bytes: usize,
    piece: BytesMut,
}

impl Draft {
    pub fn new(header: Option<&ResponseHeader>) -> Self {
        let mut piece = BytesMut::with_capacity(FIRST_BYTES);
        if let Some(header) = header {
            message::encode(HEADER, header, &mut piece);
        }
        Self { pieces: Vec::new(), bytes: 0, piece }
    }

    /// Adds what is at a key.
    pub fn push(&mut self, row: &Row<'_>) {
        let len = row.encoded_len();
        if !self.piece.is_empty() && self.piece.len() + len + HEAD_BYTES > limits::PIECE_BYTES {
            let next = BytesMut::with_capacity(limits::PIECE_BYTES.max(len + HEAD_BYTES));
            self.complete(next);
        }
        encode_key(KVS, WireType::LengthDelimited, &mut self.piece);
        encode_varint(len as u64, &mut self.piece);
        row.encode(&mut self.piece);
    }

    pub fn finish(mut self, more: bool, count: i64) -> Pieces {
        if more {
            bool::encode(MORE, &more, &mut self.piece);
        }
        if count != 0 {
            int64::encode(COUNT, &count, &mut self.piece);
        }
        self.complete(BytesMut::new());
        Pieces { pieces: Arc::new(self.pieces), bytes: self.bytes }
    }

    fn complete(&mut self, next: BytesMut) {
        self.bytes += self.piece.len();
        self.pieces.push(std::mem::replace(&mut self.piece, next).freeze());
    }
}

/// Whether an answer is large, without looking at more of it than it takes to tell.
pub(crate) fn is_large(answer: &RangeResponse) -> bool {
    let mut bytes = 0;
    answer.kvs.iter().any(|kv| {
        bytes += kv.key.len() + kv.value.len() + limits::KV_OVERHEAD;
        bytes >= limits::PIECES_FROM
    })
}

#[cfg(test)]
mod tests {
    use pintle_proto::mvccpb::KeyValue;
    use prost::Message;

    use super::*;

    #[track_caller]
    fn check(values: &[usize], pieces: usize) {
        let kv = |(at, len): (usize, &usize)| KeyValue {
            key: Bytes::from(format!("key-{at}")),
            value: Bytes::from(vec![b'v'; *len]),
            mod_revision: 7,
            create_revision: i64::from(at % 3 == 0) * (1 << 40),
            version: 3,
            lease: -i64::from(at % 2 == 0),
        };
        let header = Some(ResponseHeader { revision: 9, ..ResponseHeader::default() });
        let kvs = values.iter().enumerate().map(kv).collect();
        let answer = RangeResponse { header, kvs, more: true, count: 1 << 40 };
        let mut told = 0;
        let encoded = Pieces::of(answer.clone(), |_| {
            told += 1;
            ControlFlow::Continue(())
        });
        let all: Vec<u8> = (0..).map_while(|at| encoded.get(at)).flat_map(|piece| piece.to_vec()).collect();
        assert_eq!((all.len(), told), (encoded.bytes(), values.len()));
        assert_eq!(encoded.pieces.len(), pieces);
        assert_eq!(all, answer.encode_to_vec());
    }

    #[test]
    fn pieces_are_the_encoded_answer_and_none_is_larger_than_it_must_be() {
        check(&[], 1);
        check(&[1, 2, 3], 1);
        check(&[limits::PIECE_BYTES * 3], 2);
        check(&[limits::PIECE_BYTES / 2; 5], 5);
        check(&[100; 2000], 4);
        let empty = RangeResponse::default();
        assert_eq!(Pieces::of(empty, |_| ControlFlow::Continue(())).bytes(), 0);
    }
}
