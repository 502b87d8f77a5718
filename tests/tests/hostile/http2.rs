//! HTTP/2 by hand: frames as an attacker writes them.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Settings of a client; with a window of nothing, no answer's body is ever sent to it.
pub fn settings(window: Option<u32>) -> Vec<u8> {
    let payload = window.map_or_else(Vec::new, |window| [&[0, 4][..], &window.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &payload)
}

/// Opens a connection as a client does.
pub async fn connect(port: u16, window: Option<u32>) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[PREFACE, &settings(window), &frame(SETTINGS, ACK, 0, &[])].concat()).await?;
    Ok(stream)
}

/// A text of a header, not compressed.
fn string(text: &[u8], out: &mut Vec<u8>) {
    match text.len() {
        length @ 0..127 => out.push(u8::try_from(length).expect("short")),
        mut length => {
            out.push(127);
            length -= 127;
            while length >= 128 {
                out.push(u8::try_from(length % 128).expect("seven bits") | 128);
                length /= 128;
            }
            out.push(u8::try_from(length).expect("seven bits"));
        }
    }
    out.extend_from_slice(text);
}

/// A header that is not put into the table.
pub fn header(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.push(0);
    string(name.as_bytes(), out);
    string(value, out);
}

/// The headers of a gRPC call.
pub fn call_head(path: &str) -> Vec<u8> {
    let mut out = vec![0x83, 0x86, 0x04]; // POST, http, and a path
    string(path.as_bytes(), &mut out);
    out.push(0x01); // an authority
    string(b"localhost", &mut out);
    header("content-type", b"application/grpc", &mut out);
    header("te", b"trailers", &mut out);
    out
}

/// A message of gRPC: not compressed, its length, its bytes.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("a message's length");
    [&[0][..], &length.to_be_bytes(), bytes].concat()
}

/// What is no message, or none of the kind that `good` is.
pub fn broken_messages(good: &[u8]) -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        vec![0, 0, 0],
        message(&[0xff; 40]),
        message(&[0x0a, 0x7f, 1]),
        message(&[good, &[0x0a]].concat()),
        [&[1][..], &message(good)[1..]].concat(), // compressed, it says
        [&[9][..], &message(good)[1..]].concat(), // a flag that is none
        [&[0][..], &u32::MAX.to_be_bytes(), good].concat(), // longer than anything
        message(good)[..good.len() + 3].to_vec(), // cut off
        message(&[&[0x18; 1][..], &[0xff; 11]].concat()), // a number without an end
    ]
}
