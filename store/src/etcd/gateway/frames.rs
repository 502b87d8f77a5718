//! gRPC messages in an HTTP body, in both directions: a flag byte, the length, the message.

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use tonic::Status;

use super::super::chunks::{HEAD, head};

pub(super) fn frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD + message.len());
    out.put_slice(&head(message.len()));
    out.put_slice(message);
    out.freeze()
}

/// The messages of an answer, and how it ended.
pub(super) struct Answers {
    body: Body,
    buffer: BytesMut,
    end: Option<HeaderMap>,
}

impl Answers {
    /// # Errors
    /// The status of a call that was refused before its first message.
    pub fn of(response: Response) -> Result<Self, Status> {
        let (head, body) = response.into_parts();
        match Status::from_header_map(&head.headers) {
            Some(status) if status.code() != tonic::Code::Ok => Err(status),
            _ => Ok(Self { body, buffer: BytesMut::new(), end: None }),
        }
    }

    /// The next message; `None` at the end of a call that went well.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.take() {
                return Ok(Some(message));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => self.end = frame.into_trailers().ok(),
                },
                Some(Err(error)) => return Err(Status::internal(error.to_string())),
                None => return self.ended().map(|()| None),
            }
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let mut head = self.buffer.get(1..HEAD)?; // behind the flag
        let length = usize::try_from(head.get_u32()).unwrap_or(usize::MAX);
        if self.buffer.len() - HEAD < length {
            return None;
        }
        self.buffer.advance(HEAD);
        Some(self.buffer.split_to(length).freeze())
    }

    fn ended(&self) -> Result<(), Status> {
        match self.end.as_ref().and_then(Status::from_header_map) {
            Some(status) if status.code() != tonic::Code::Ok => Err(status),
            _ => Ok(()),
        }
    }
}
