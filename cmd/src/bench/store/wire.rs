//! A client's side of HTTP/2, as far as gRPC without TLS needs it, made for measuring: one task owns a connection with all
//! requests on it, so that an answer and the next request cost no switch of tasks and share their system calls. Whoever
//! measures shares two cores with the measured; what a client costs is missing to both systems.
//!
//! Always holds: the peer's flow control is kept, its settings and pings are acknowledged. Headers of answers are not decoded:
//! an answer is a message and then the end of its stream, an end without a message is a refusal.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use pintle_base::clock;
use tokio::io::Interest;
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest window there is (RFC 9113, 6.9.1): a benchmark's client is never what a server waits for.
const WINDOW: u32 = (1 << 31) - 1;
/// Windows before anybody said anything.
const FIRST_WINDOW: u32 = 65_535;
/// After so many bytes the connection's window is filled up again.
const REFILL: u32 = 1 << 24;
/// What a peer takes in one frame unless it says more.
const FRAME: usize = 16_384;
/// Room for what arrives at once.
const READ: usize = 256 << 10;
/// Of the peer's table of headers no more is used than this; every server keeps 4096 bytes unless it says less.
const HEADER_TABLE: u32 = 1024;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RESET: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GO_AWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const INITIAL_WINDOW_SIZE: u16 = 4;
const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;

/// What arrived on a stream.
pub enum Event {
    Data {
        stream: u32,
        bytes: Bytes,
    },
    /// No more comes; what was sent after the last message tells how it went, and is not looked at.
    Ended {
        stream: u32,
    },
}

/// One connection.
pub struct Wire {
    socket: TcpStream,
    authority: String,
    input: BytesMut,
    output: Vec<u8>,
    /// What the peer's table of headers holds, oldest first.
    table: Vec<String>,
    next_stream: u32,
    /// Bytes that may be sent: on all streams, on a new one, on each of the open ones.
    window: i64,
    first_window: i64,
    windows: HashMap<u32, i64>,
    /// What no window had room for, in the order it was sent.
    held: Vec<Held>,
    /// Bytes received since the connection's window was last filled up.
    received: u32,
}

struct Held {
    stream: u32,
    rest: Bytes,
    last: bool,
}

impl Wire {
    /// Connects to `address`, as `host:port`.
    pub async fn connect(address: &str) -> Result<Self> {
        let socket = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        socket.set_nodelay(true).context("set TCP_NODELAY")?;
        let mut wire = Self {
            socket,
            authority: address.to_owned(),
            input: BytesMut::with_capacity(READ),
            output: PREFACE.to_vec(),
            table: Vec::new(),
            next_stream: 1,
            window: FIRST_WINDOW.into(),
            first_window: FIRST_WINDOW.into(),
            windows: HashMap::new(),
            held: Vec::new(),
            received: 0,
        };
        let mut settings = Vec::new();
        for (name, value) in [(ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, WINDOW)] {
            settings.extend_from_slice(&name.to_be_bytes());
            settings.extend_from_slice(&u32::to_be_bytes(value));
        }
        frame(&mut wire.output, kind::SETTINGS, 0, 0, &settings);
        frame(&mut wire.output, kind::WINDOW_UPDATE, 0, 0, &(WINDOW - FIRST_WINDOW).to_be_bytes());
        Ok(wire)
    }

    /// Opens a stream for a call of `path`.
    pub fn open(&mut self, path: &'static str) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.windows.insert(stream, self.first_window);
        let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
        let authority = std::mem::take(&mut self.authority);
        field(&mut self.table, &mut block, Name::Known(4), path);
        field(&mut self.table, &mut block, Name::Known(1), &authority);
        field(&mut self.table, &mut block, Name::Known(31), "application/grpc");
        field(&mut self.table, &mut block, Name::New("te"), "trailers");
        self.authority = authority;
        frame(&mut self.output, kind::HEADERS, END_HEADERS, stream, &block);
        stream
    }

    /// Sends a message; after the `last` one nothing more is sent on the stream.
    pub fn send(&mut self, stream: u32, message: &[u8], last: bool) {
        let mut prefix = [0; 5];
        prefix[1..].copy_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        let bytes = prefix.len() + message.len();
        let room = self.windows.get(&stream).copied().unwrap_or(0).min(self.window);
        if bytes <= FRAME && i64::try_from(bytes).is_ok_and(|bytes| bytes <= room) && self.held.is_empty() {
            head(&mut self.output, bytes, kind::DATA, if last { END_STREAM } else { 0 }, stream);
            self.output.extend_from_slice(&prefix);
            self.output.extend_from_slice(message);
            self.spend(stream, bytes);
            return;
        }
        let rest = Bytes::from([&prefix, message].concat());
        self.held.push(Held { stream, rest, last });
        self.release();
    }

    fn spend(&mut self, stream: u32, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.window -= bytes;
        if let Some(window) = self.windows.get_mut(&stream) {
            *window -= bytes;
        }
    }

    /// Sends of what was held as much as there is room for now.
    fn release(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        held.retain_mut(|Held { stream, rest, last }| {
            // An ended stream has no window, and nobody waits for what was still to be sent on it.
            while let Some(window) = self.windows.get(stream).copied() {
                let room = usize::try_from(window.min(self.window)).unwrap_or(0).min(FRAME).min(rest.len());
                if room == 0 {
                    return true;
                }
                let piece = rest.split_to(room);
                let end = *last && rest.is_empty();
                frame(&mut self.output, kind::DATA, if end { END_STREAM } else { 0 }, *stream, &piece);
                self.spend(*stream, room);
                if rest.is_empty() {
                    return false;
                }
            }
            false
        });
        self.held = held;
    }

    /// Sends what is to be sent, and waits until something arrives or `due` has come.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn turn(&mut self, due: Option<clock::Instant>) -> Result<()> {
        tokio::task::consume_budget().await;
        loop {
            self.flush()?;
            self.input.reserve(READ / 2);
            match self.socket.try_read_buf(&mut self.input) {
                Ok(0) => bail!("{} closed the connection", self.authority),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).with_context(|| format!("read from {}", self.authority)),
            }
            let interest =
                if self.output.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            match due {
                None => drop(self.socket.ready(interest).await?),
                Some(due) => tokio::select! {
                    biased;
                    ready = self.socket.ready(interest) => drop(ready?),
                    () = clock::sleep_until(due) => return Ok(()),
                },
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        while !self.output.is_empty() {
            match self.socket.try_write(&self.output) {
                Ok(count) if count == self.output.len() => self.output.clear(),
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).with_context(|| format!("write to {}", self.authority)),
            }
        }
        Ok(())
    }

    /// The next of what has arrived.
    ///
    /// # Errors
    /// The peer gave up a stream or the connection, or does what this client does not do.
    pub fn event(&mut self) -> Result<Option<Event>> {
        while self.input.len() >= 9 {
            let length =
                usize::from(self.input[0]) << 16 | usize::from(self.input[1]) << 8 | usize::from(self.input[2]);
            if self.input.len() < 9 + length {
                break;
            }
            let mut head = self.input.split_to(9);
            head.advance(3);
            let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32() & WINDOW);
            drop(head);
            let payload = self.input.split_to(length).freeze();
            if let Some(event) = self.arrived(kind, flags, stream, payload)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn arrived(&mut self, kind: u8, flags: u8, stream: u32, mut payload: Bytes) -> Result<Option<Event>> {
        match kind {
            kind::DATA if flags & PADDED == 0 && flags & END_STREAM == 0 => {
                self.received += u32::try_from(payload.len()).unwrap_or(u32::MAX);
                if self.received >= REFILL {
                    let refill = std::mem::take(&mut self.received);
                    frame(&mut self.output, kind::WINDOW_UPDATE, 0, 0, &refill.to_be_bytes());
                }
                return Ok(Some(Event::Data { stream, bytes: payload }));
            }
            kind::DATA => bail!("{} sends padding, or ends a stream without a status", self.authority),
            kind::HEADERS if flags & END_STREAM != 0 => {
                self.windows.remove(&stream);
                return Ok(Some(Event::Ended { stream }));
            }
            kind::RESET if payload.len() == 4 => bail!("{} reset a request: {}", self.authority, payload.get_u32()),
            kind::SETTINGS if flags & ACK == 0 => self.settings(payload)?,
            kind::PING if flags & ACK == 0 => frame(&mut self.output, kind::PING, ACK, 0, &payload),
            kind::GO_AWAY => bail!("{} ends the connection: {}", self.authority, String::from_utf8_lossy(&payload)),
            kind::WINDOW_UPDATE if payload.len() == 4 => {
                let more = i64::from(payload.get_u32() & WINDOW);
                match stream {
                    0 => self.window += more,
                    stream => {
                        if let Some(window) = self.windows.get_mut(&stream) {
                            *window += more;
                        }
                    }
                }
                self.release();
            }
            _ => {} // headers of an answer, acknowledgements, and what the future may bring
        }
        Ok(None)
    }

    fn settings(&mut self, mut payload: Bytes) -> Result<()> {
        while payload.len() >= 6 {
            let (name, value) = (payload.get_u16(), payload.get_u32());
            match name {
                INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - self.first_window;
                    self.first_window += change;
                    self.windows.values_mut().for_each(|window| *window += change);
                }
                HEADER_TABLE_SIZE if value < HEADER_TABLE => {
                    bail!("{} keeps no table of headers", self.authority);
                }
                _ => {}
            }
        }
        frame(&mut self.output, kind::SETTINGS, ACK, 0, &[]);
        self.release();
        Ok(())
    }
}

fn head(output: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    output.extend_from_slice(&length[1..]);
    output.extend_from_slice(&[kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
}

fn frame(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    head(output, payload.len(), kind, flags, stream);
    output.extend_from_slice(payload);
}

enum Name {
    /// By its number in the table that every peer has (RFC 7541, appendix A).
    Known(u8),
    New(&'static str),
}

/// Adds a header to `block`: in full and for the peer's table the first time, by its number in that table afterwards.
fn field(table: &mut Vec<String>, block: &mut Vec<u8>, name: Name, value: &str) {
    let short = |text: &str| u8::try_from(text.len()).unwrap_or(u8::MAX) & 0x7f; // all of them are
    if let Some(at) = table.iter().position(|known| known == value) {
        let number = 62 + (table.len() - 1 - at); // the newest has the first number after the fixed table
        block.push(0x80 | u8::try_from(number).unwrap_or(0));
        return;
    }
    match name {
        Name::Known(number) => block.push(0x40 | number),
        Name::New(name) => {
            block.extend_from_slice(&[0x40, short(name)]);
            block.extend_from_slice(name.as_bytes());
        }
    }
    block.push(short(value));
    block.extend_from_slice(value.as_bytes());
    table.push(value.to_owned());
}

/// The messages of one stream, put together of what arrives.
#[derive(Default)]
pub struct Messages {
    /// The beginning of one that has not arrived in whole.
    begun: Vec<u8>,
}

impl Messages {
    /// Hands each message that is complete now to `each`.
    pub fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.begun.is_empty() {
            let rest = whole(bytes, &mut each)?;
            self.begun.extend_from_slice(rest);
            return Ok(());
        }
        self.begun.extend_from_slice(bytes);
        let left = whole(&self.begun, &mut each)?.len();
        self.begun.drain(..self.begun.len() - left);
        Ok(())
    }
}

/// Hands each complete message at the beginning of `bytes` to `each`; the rest.
fn whole<'a>(mut bytes: &'a [u8], each: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<&'a [u8]> {
    while let [compressed, a, b, c, d, rest @ ..] = bytes {
        if *compressed != 0 {
            bail!("a message is compressed, and nobody asked for that");
        }
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let Some((message, after)) = rest.split_at_checked(length) else { break };
        each(message)?;
        bytes = after;
    }
    Ok(bytes)
}

/// A field of an encoded message: its number, and what it holds.
pub enum Field<'a> {
    Number(u32, u64),
    Bytes(u32, &'a [u8]),
}

/// Walks over the fields of an encoded message without decoding it: what is counted need not be built.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() { None } else { Some(self.field().context("a broken message")) }
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<Field<'a>> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok()?;
        match tag & 7 {
            0 => Some(Field::Number(number, self.varint()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Some(Field::Bytes(number, bytes))
            }
            _ => None, // etcd's messages have no fields of fixed size
        }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_header_is_sent_in_full_once() {
        let (mut table, mut block) = (Vec::new(), Vec::new());
        field(&mut table, &mut block, Name::Known(4), "/a");
        field(&mut table, &mut block, Name::New("te"), "trailers");
        assert_eq!(block, b"\x44\x02/a\x40\x02te\x08trailers");
        block.clear();
        field(&mut table, &mut block, Name::Known(4), "/a");
        field(&mut table, &mut block, Name::New("te"), "trailers");
        assert_eq!(block, [0x80 | 63, 0x80 | 62]);
    }

    #[test]
    fn messages_are_put_together_however_they_are_cut() {
        let sent = [&[0, 0, 0, 0, 2][..], b"ab", &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 3], b"cde"].concat();
        for cut in 0..=sent.len() {
            let (mut messages, mut seen) = (Messages::default(), Vec::new());
            for part in [&sent[..cut], &sent[cut..]] {
                let each = |message: &[u8]| {
                    seen.push(message.to_vec());
                    Ok(())
                };
                messages.take(part, each).expect("messages");
            }
            assert_eq!(seen, [b"ab".to_vec(), Vec::new(), b"cde".to_vec()], "cut at {cut}");
        }
        assert!(Messages::default().take(&[1, 0, 0, 0, 0], |_| Ok(())).is_err());
    }

    #[test]
    fn fields_are_walked_over_and_a_broken_message_is_told() {
        use pintle_proto::etcdserverpb::RangeResponse;
        use pintle_proto::mvccpb::KeyValue;
        let kv = KeyValue { key: "k".into(), value: vec![7; 300].into(), ..KeyValue::default() };
        let encoded =
            RangeResponse { kvs: vec![kv; 3], more: true, count: 300, ..RangeResponse::default() }.encode_to_vec();
        let (mut kvs, mut numbers) = (0, Vec::new());
        for field in Fields(&encoded) {
            match field.expect("a field") {
                Field::Bytes(2, _) => kvs += 1,
                Field::Number(number, value) => numbers.push((number, value)),
                Field::Bytes(..) => {}
            }
        }
        assert_eq!((kvs, numbers), (3, vec![(3, 1), (4, 300)]));
        assert!(Fields(&encoded[..encoded.len() - 1]).any(|field| field.is_err()));
    }
}
