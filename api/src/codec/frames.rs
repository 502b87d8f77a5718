//! Frames of watch streams.
//!
//! JSON: one event per line. Protobuf: a `WatchEvent` without envelope after its length in four bytes, big-endian; the
//! object inside has its own envelope.

use bytes::{BufMut, Bytes, BytesMut};

use super::wire::Writer;

/// `{"type":"ADDED","object":...}` and a line end, around an object that is JSON already.
pub fn watch_frame_json(event: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + event.len() + 24);
    out.put_slice(br#"{"type":""#);
    out.put_slice(event.as_bytes());
    out.put_slice(br#"","object":"#);
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

/// The same around an object that is protobuf with its envelope.
pub fn watch_frame_protobuf(event: &str, object: &[u8]) -> Bytes {
    let mut message = Writer::default();
    let end = message.len();
    message.bytes_field(1, object);
    message.close(2, end);
    message.bytes_field(1, event.as_bytes());
    let message = message.finish();
    let mut out = BytesMut::with_capacity(message.len() + 4);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(&message);
    out.freeze()
}
