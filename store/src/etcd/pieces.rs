//! Sends answers that were encoded where they were made, in pieces or in chunks: puts them in the place of the empty ones that their
//! calls were answered with.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response};
use bytes::Bytes;
use http_body::Frame;
use tonic::Status;

use super::chunks::{Chunks, head};
use crate::mvcc::pieces::Pieces;

/// As etcd: a message may have so many bytes.
const MESSAGE_BYTES: usize = i32::MAX as usize;

/// The answer itself where a call brought one that is encoded; every other as it is.
pub(super) fn unpacked(mut response: Response<Body>) -> Response<Body> {
    if let Some(chunks) = response.extensions_mut().remove::<Chunks>() {
        return response.map(|_| chunks.into_body());
    }
    let Some(pieces) = response.extensions_mut().remove::<Pieces>() else { return response };
    if pieces.bytes() > MESSAGE_BYTES {
        let text = format!("grpc: trying to send message larger than max ({} vs. {MESSAGE_BYTES})", pieces.bytes());
        return Status::resource_exhausted(text).into_http();
    }
    response.map(|_| Body::new(Message { pieces, next: Next::Head }))
}

/// A gRPC body with one message.
struct Message {
    pieces: Pieces,
    next: Next,
}

enum Next {
    Head,
    Piece(usize),
    Over,
}

impl http_body::Body for Message {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.next {
            Next::Head => {
                self.next = Next::Piece(0);
                Frame::data(Bytes::copy_from_slice(&head(self.pieces.bytes())))
            }
            Next::Piece(at) => match self.pieces.get(at) {
                Some(piece) => {
                    self.next = Next::Piece(at + 1);
                    Frame::data(piece)
                }
                None => {
                    self.next = Next::Over;
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    Frame::trailers(trailers)
                }
            },
            Next::Over => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.next, Next::Over)
    }
}
