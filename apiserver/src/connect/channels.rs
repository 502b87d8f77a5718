//! The channel protocols of Kubernetes over WebSocket: each message is a channel number and data.
//!
//! Pure. Binary protocols put the number in the first byte; base64 ones write it as a digit before the encoded data.
//! From v4 on the error channel carries a Status object, before that a line of text. From v5 on a channel can be closed
//! by itself.

use axum::extract::ws::Message;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
pub(super) const CLOSE: u8 = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protocol {
    pub name: &'static str,
    pub version: u8,
    base64: bool,
}

/// In the order of preference.
pub(super) const PROTOCOLS: [Protocol; 5] = [
    Protocol { name: "v5.channel.k8s.io", version: 5, base64: false },
    Protocol { name: "v4.channel.k8s.io", version: 4, base64: false },
    Protocol { name: "v4.base64.channel.k8s.io", version: 4, base64: true },
    Protocol { name: "channel.k8s.io", version: 1, base64: false },
    Protocol { name: "base64.channel.k8s.io", version: 1, base64: true },
];

/// Clients that name no protocol mean the first one.
const UNNAMED: Protocol = PROTOCOLS[3];

impl Protocol {
    pub fn of(selected: Option<&str>) -> Self {
        selected.and_then(|name| PROTOCOLS.into_iter().find(|one| one.name == name)).unwrap_or(UNNAMED)
    }

    pub fn message(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let digit = char::from(b'0'.saturating_add(channel.min(9)));
            return Message::Text(format!("{digit}{}", STANDARD.encode(data)).into());
        }
        let mut out = BytesMut::with_capacity(data.len() + 1);
        out.extend_from_slice(&[channel]);
        out.extend_from_slice(data);
        Message::Binary(out.freeze())
    }

    /// `None` for messages without a channel: pings, and what is malformed.
    pub fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        let (&channel, _) = data.split_first()?;
        let rest = data.slice(1..);
        if self.base64 {
            let decoded = STANDARD.decode(&rest).ok()?;
            return channel.is_ascii_digit().then(|| (channel - b'0', decoded.into()));
        }
        Some((channel, rest))
    }

    /// The error channel's content for a Status the agent sent. `None`: nothing is said.
    pub fn error(self, status: &[u8]) -> Option<Vec<u8>> {
        if self.version >= 4 {
            return Some(status.to_vec());
        }
        let status: pintle_api::status::Status = serde_json::from_slice(status).ok()?;
        (status.status == "Failure").then(|| status.message.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_each_protocol() {
        for protocol in PROTOCOLS {
            let message = protocol.message(STDERR, b"hi\0");
            assert_eq!(protocol.read(message), Some((STDERR, Bytes::from_static(b"hi\0"))), "{}", protocol.name);
        }
    }

    #[test]
    fn broken_messages_are_nothing() {
        let binary = Protocol::of(None);
        let base64 = Protocol::of(Some("base64.channel.k8s.io"));
        assert_eq!(binary.read(Message::Binary(Bytes::new())), None);
        assert_eq!(base64.read(Message::Text("0***".into())), None);
        assert_eq!(base64.read(Message::Text("x".into())), None);
        assert_eq!(binary.read(Message::Ping(Bytes::new())), None);
    }

    #[test]
    fn old_protocols_get_a_line_of_text() {
        let failure = br#"{"status":"Failure","message":"exit status 1"}"#;
        assert_eq!(Protocol::of(None).error(failure).as_deref(), Some(b"exit status 1".as_slice()));
        assert_eq!(Protocol::of(None).error(br#"{"status":"Success"}"#), None);
        assert_eq!(Protocol::of(Some("v5.channel.k8s.io")).error(failure).as_deref(), Some(failure.as_slice()));
    }
}
