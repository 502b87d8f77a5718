//! The answer of a large range, encoded in pieces where it was read: whoever sends it never holds a thread for long, and no key is
//! copied once more.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pintle_proto::etcdserverpb::RangeResponse;
use prost::Message;
use prost::encoding::{bool, int64, message};

use crate::limits;

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
            Self::Whole(answer) => answer.encoded_len(),
            Self::Pieces(pieces) => pieces.bytes(),
        }
    }
}

impl Pieces {
    /// Encodes an answer; `pace` hears of every key and may break it off, then what there is is of no use.
    pub fn of(answer: RangeResponse, mut pace: impl FnMut(usize) -> ControlFlow<()>) -> Self {
        let RangeResponse { header, kvs, more, count } = answer;
        let (mut pieces, mut bytes, mut piece) = (Vec::new(), 0, BytesMut::with_capacity(limits::PIECE_BYTES));
        if let Some(header) = header {
            message::encode(HEADER, &header, &mut piece);
        }
        for kv in kvs {
            let len = kv.encoded_len();
            if !piece.is_empty() && piece.len() + len + 8 > limits::PIECE_BYTES {
                bytes += piece.len();
                pieces.push(
                    std::mem::replace(&mut piece, BytesMut::with_capacity(limits::PIECE_BYTES.max(len + 8))).freeze(),
                );
            }
            message::encode(KVS, &kv, &mut piece);
            if pace(len).is_break() {
                break;
            }
        }
        if more {
            bool::encode(MORE, &more, &mut piece);
        }
        if count != 0 {
            int64::encode(COUNT, &count, &mut piece);
        }
        bytes += piece.len();
        pieces.push(piece.freeze());
        Self { pieces: Arc::new(pieces), bytes }
    }

    /// Length of the message.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn get(&self, at: usize) -> Option<Bytes> {
        self.pieces.get(at).cloned()
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
    use pintle_proto::etcdserverpb::ResponseHeader;
    use pintle_proto::mvccpb::KeyValue;

    use super::*;

    #[track_caller]
    fn check(values: &[usize], pieces: usize) {
        let kv = |(at, len): (usize, &usize)| KeyValue {
            key: Bytes::from(format!("key-{at}")),
            value: Bytes::from(vec![b'v'; *len]),
            mod_revision: 7,
            ..KeyValue::default()
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
