//! Sends a stream of messages that were encoded where they were made: puts it in the place of the empty one that its call was answered with.
//!
//! An event that thousands watch is thousands of small messages. Each by way of tonic's stream costs more than the message itself.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use http_body::Frame;
use parking_lot::Mutex;
use prost::Message;
use tonic::{Code, Status};

/// Bytes before a message.
pub(super) const HEAD: usize = 5;

/// What gRPC has before a message of `length` bytes: a flag, which says that it is not compressed, and the length.
pub(super) fn head(length: usize) -> [u8; HEAD] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

/// One or several whole messages, with what stands before each.
type Chunk = Result<Bytes, Status>;

/// Messages that wait to be sent.
#[derive(Default)]
pub(super) struct Messages(BytesMut);

impl Messages {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything there is.
    pub fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.0).freeze() // a stream that is quiet holds no memory
    }

    /// Adds `message`, and to its end what `more` writes.
    pub fn push(&mut self, message: &impl Message, more: impl FnOnce(&mut BytesMut)) {
        let begin = self.0.len();
        self.0.put_slice(&head(0));
        message.encode_raw(&mut self.0); // there is always room
        more(&mut self.0);
        let head = head(self.0.len() - begin - HEAD);
        self.0[begin..begin + HEAD].copy_from_slice(&head);
    }
}

/// What a call is answered with, for whoever sends it: there is one.
#[derive(Clone)]
pub(super) struct Chunks(Arc<Mutex<Option<BoxStream<'static, Chunk>>>>);

impl Chunks {
    pub fn new(chunks: BoxStream<'static, Chunk>) -> Self {
        Self(Arc::new(Mutex::new(Some(chunks))))
    }

    pub fn into_body(self) -> Body {
        let chunks = self.0.lock().take();
        Body::new(Sending { chunks })
    }
}

/// A gRPC body.
struct Sending {
    /// `None` once its end was told.
    chunks: Option<BoxStream<'static, Chunk>>,
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(chunks) = &mut self.chunks else { return Poll::Ready(None) };
        let frame = match ready!(chunks.poll_next_unpin(context)) {
            Some(Ok(chunk)) => Frame::data(chunk),
            Some(Err(status)) => self.end(&status),
            None => self.end(&Status::new(Code::Ok, "")),
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Sending {
    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.chunks = None;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            tracing::error!(code = ?status.code(), "a status that no trailer can tell");
            trailers.clear();
        }
        Frame::trailers(trailers)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::BodyExt;
    use pintle_proto::etcdserverpb::ResponseHeader;
    use prost::encoding::int64;

    use super::*;

    #[test]
    fn messages_stand_one_after_the_other_with_their_lengths() {
        let mut messages = Messages::default();
        assert!(messages.is_empty());
        let header = ResponseHeader { cluster_id: 300, ..ResponseHeader::default() };
        messages.push(&header, |_| ());
        messages.push(&header, |out| int64::encode(3, &7, out));
        assert_eq!(messages.take(), &b"\0\0\0\0\x03\x08\xac\x02\0\0\0\0\x05\x08\xac\x02\x18\x07"[..]);
        assert!(messages.is_empty());
    }

    async fn sent(chunks: Vec<Chunk>) -> (Vec<Bytes>, HeaderMap) {
        let mut body = Chunks::new(stream::iter(chunks).boxed()).into_body();
        let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(bytes) => data.push(bytes),
                Err(frame) => trailers = frame.into_trailers().unwrap(),
            }
        }
        (data, trailers)
    }

    #[tokio::test]
    async fn the_status_follows_what_was_said_before_it() {
        let (data, trailers) = sent(vec![Ok(Bytes::from_static(b"a")), Ok(Bytes::from_static(b"b"))]).await;
        assert_eq!((data.len(), trailers["grpc-status"].as_bytes()), (2, &b"0"[..]));
        let (data, trailers) = sent(vec![Ok(Bytes::from_static(b"a")), Err(Status::unavailable("no leader"))]).await;
        assert_eq!((data.len(), trailers["grpc-status"].as_bytes()), (1, &b"14"[..]));
        assert_eq!(trailers["grpc-message"], "no%20leader");
    }
}
