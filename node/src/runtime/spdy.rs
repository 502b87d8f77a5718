//! The client side of SPDY/3.1 as runtimes' streaming servers speak it: exec and attach with separate streams for
//! stdin, stdout, stderr, terminal size and the final status. It is used instead of their WebSocket form because only
//! here the end of stdin can be said.
//!
//! Header blocks must be zlib streams. Ours are stored blocks closed by an empty one (a sync flush), which needs no
//! compressor; those of the server carry nothing we need and are skipped unread.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::{Interactive, Wanted, channel};
use crate::limits;

const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GO_AWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
/// Longest answer head to the upgrade request.
const HEAD: usize = 16 << 10;

/// Opens the streams that `wanted` names at a streaming URL and starts moving frames.
///
/// # Errors
/// The connection's error, or `InvalidData` if the server does not switch to SPDY.
pub async fn open(url: &str, wanted: Wanted) -> io::Result<Interactive> {
    let uri: http::Uri = url.parse().map_err(|_| invalid("streaming address is not a URL"))?;
    let host = uri.host().ok_or_else(|| invalid("streaming address has no host"))?;
    let port = uri.port_u16().unwrap_or(80);
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut connection = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    connection.set_nodelay(true)?;
    upgrade(&mut connection, &format!("{host}:{port}"), path).await?;

    let streams = Streams::of(wanted);
    let (reader, mut writer) = connection.into_split();
    writer.write_all(&streams.opening()).await?;
    let (input, input_frames) = mpsc::channel(limits::STREAM_FRAMES);
    let (output_frames, output) = mpsc::channel(limits::STREAM_FRAMES);
    let (pong, pongs) = mpsc::channel(1);
    tokio::spawn(send(writer, streams.clone(), input_frames, pongs));
    tokio::spawn(receive(tokio::io::BufReader::new(reader), streams, output_frames, pong));
    Ok(Interactive { input, output })
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

async fn upgrade(connection: &mut TcpStream, host: &str, path: &str) -> io::Result<()> {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD {
            return Err(invalid("answer of the streaming server is too long"));
        }
        head.push(connection.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    match head.split_whitespace().nth(1) {
        Some("101") => Ok(()),
        _ => Err(invalid(head.lines().next().unwrap_or("empty answer"))),
    }
}

/// Which stream carries which channel. Clients use odd ids, counted up from 1.
#[derive(Clone)]
struct Streams {
    /// (stream id, channel, name in the `streamtype` header)
    open: Vec<(u32, u32, &'static str)>,
}

impl Streams {
    fn of(wanted: Wanted) -> Self {
        let table = [
            (true, channel::ERROR, "error"),
            (wanted.stdin, channel::STDIN, "stdin"),
            (wanted.stdout, channel::STDOUT, "stdout"),
            (wanted.stderr && !wanted.tty, channel::STDERR, "stderr"),
            (wanted.tty, channel::RESIZE, "resize"),
        ];
        let open = table.into_iter().filter(|(open, ..)| *open).zip((1..).step_by(2));
        Self { open: open.map(|((_, channel, name), id)| (id, channel, name)).collect() }
    }

    fn opening(&self) -> Bytes {
        let mut out = BytesMut::new();
        for (place, (id, _, name)) in self.open.iter().enumerate() {
            let block = header_block(place == 0, &[("streamtype", name)]);
            put_control(&mut out, SYN_STREAM, 0, 10 + block.len());
            out.put_u32(*id);
            out.put_u32(0); // not associated
            out.put_u16(0); // priority, slot
            out.put_slice(&block);
        }
        out.freeze()
    }

    fn stream(&self, channel: u32) -> Option<u32> {
        self.open.iter().find(|(_, other, _)| *other == channel).map(|(id, ..)| *id)
    }

    fn channel(&self, stream: u32) -> Option<u32> {
        self.open.iter().find(|(id, ..)| *id == stream).map(|(_, channel, _)| *channel)
    }
}

/// The names and values, uncompressed inside the zlib stream that all header blocks of a connection share.
fn header_block(first: bool, headers: &[(&str, &str)]) -> Bytes {
    let mut plain = BytesMut::new();
    plain.put_u32(headers.len() as u32);
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.put_u32(text.len() as u32);
        plain.put_slice(text.as_bytes());
    }
    let mut block = BytesMut::new();
    if first {
        block.put_slice(&[0x78, 0x01]); // zlib, no dictionary
    }
    for part in [&plain[..], &[]] {
        block.put_u8(0); // stored, not final
        block.put_u16_le(part.len() as u16);
        block.put_u16_le(!(part.len() as u16));
        block.put_slice(part);
    }
    block.freeze()
}

fn put_control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32((u32::from(flags) << 24) | (length as u32 & 0x00ff_ffff));
}

fn put_data(out: &mut BytesMut, stream: u32, flags: u8, data: &[u8]) {
    out.put_u32(stream);
    out.put_u32((u32::from(flags) << 24) | (data.len() as u32 & 0x00ff_ffff));
    out.put_slice(data);
}

/// Moves frames towards the container until the sender is dropped or the connection ends.
async fn send(
    mut writer: impl AsyncWrite + Unpin,
    streams: Streams,
    mut input: mpsc::Receiver<(u32, Bytes)>,
    mut pongs: mpsc::Receiver<u32>,
) {
    loop {
        let mut out = BytesMut::new();
        tokio::select! {
            pong = pongs.recv() => match pong {
                Some(id) => {
                    put_control(&mut out, PING, 0, 4);
                    out.put_u32(id);
                }
                None => return, // the other direction has ended
            },
            frame = input.recv() => match frame {
                Some((channel::CLOSE, data)) => {
                    let closed = data.first().and_then(|byte| streams.stream(u32::from(*byte)));
                    let Some(stream) = closed else { continue };
                    put_data(&mut out, stream, FLAG_FIN, &[]);
                }
                Some((to @ (channel::STDIN | channel::RESIZE), data)) => {
                    let Some(stream) = streams.stream(to) else { continue };
                    for piece in data.chunks(limits::FRAME_BYTES) {
                        put_data(&mut out, stream, 0, piece);
                    }
                }
                Some(_) => continue,
                None => break,
            },
        }
        if writer.write_all(&out).await.is_err() {
            return;
        }
    }
    // The user is gone: ending the connection ends the command's streams as well.
    writer.shutdown().await.unwrap_or_default();
}

/// Moves frames from the container; the last one is always a status, made here if the server sent none.
async fn receive(
    mut reader: impl AsyncRead + Unpin,
    streams: Streams,
    output: mpsc::Sender<(u32, Bytes)>,
    pong: mpsc::Sender<u32>,
) {
    let mut status = BytesMut::new();
    let result = tokio::select! {
        result = read_frames(&mut reader, &streams, &output, &pong, &mut status) => result,
        () = output.closed() => return,
    };
    let last = if status.is_empty() {
        let reason = result.err().map_or_else(|| "stream ended early".to_owned(), |error| error.to_string());
        Bytes::from(failure(&reason))
    } else {
        status.freeze()
    };
    output.send((channel::ERROR, last)).await.unwrap_or_default();
}

/// A Status object for the error channel.
pub fn failure(message: &str) -> String {
    json!({
        "metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500,
    })
    .to_string()
}

async fn read_frames(
    reader: &mut (impl AsyncRead + Unpin),
    streams: &Streams,
    output: &mpsc::Sender<(u32, Bytes)>,
    pong: &mpsc::Sender<u32>,
    status: &mut BytesMut,
) -> io::Result<()> {
    let mut status_done = false;
    let mut open_outputs: Vec<u32> =
        streams.open.iter().filter(|(_, of, _)| [channel::STDOUT, channel::STDERR].contains(of)).map(|o| o.0).collect();
    loop {
        // Everything has been said once the status and the end of every output are here.
        if status_done && open_outputs.is_empty() {
            return Ok(());
        }
        let head = match reader.read_u32().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let second = reader.read_u32().await?;
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if length > limits::SPDY_FRAME {
            return Err(invalid("frame of the streaming server is too long"));
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await?;
        let ended = if head & 0x8000_0000 == 0 {
            let (stream, of) = (head, streams.channel(head));
            if of == Some(channel::ERROR) {
                if status.len() + body.len() > limits::SPDY_FRAME {
                    return Err(invalid("status of the streaming server is too long"));
                }
                status.extend_from_slice(&body);
            } else if let Some(of @ (channel::STDOUT | channel::STDERR)) = of {
                let mut body = Bytes::from(body);
                while !body.is_empty() {
                    let piece = body.split_to(body.len().min(limits::FRAME_BYTES));
                    if output.send((of, piece)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            (flags & FLAG_FIN != 0).then_some(stream)
        } else {
            let word = body.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes));
            match (head as u16, word) {
                (PING, Some(id)) => {
                    pong.try_send(id).unwrap_or_default();
                    None
                }
                (GO_AWAY, _) => return Ok(()),
                (RST_STREAM, Some(stream)) => Some(stream),
                (_, Some(stream)) if flags & FLAG_FIN != 0 => Some(stream),
                _ => None,
            }
        };
        if let Some(stream) = ended {
            open_outputs.retain(|open| *open != stream);
            status_done |= streams.channel(stream) == Some(channel::ERROR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_block_is_a_flushed_zlib_stream() {
        let block = header_block(true, &[("streamtype", "error")]);
        assert_eq!(&block[..7], [0x78, 0x01, 0, 27, 0, 0xe4, 0xff]);
        assert_eq!(&block[block.len() - 5..], [0, 0, 0, 0xff, 0xff]);
        assert_eq!(header_block(false, &[])[..5], [0, 4, 0, 0xfb, 0xff]);
    }

    #[test]
    fn a_terminal_has_no_stderr_and_a_size() {
        let names =
            |wanted| Streams::of(wanted).open.iter().map(|(id, _, name)| format!("{id}{name}")).collect::<Vec<_>>();
        let all = Wanted { stdin: true, stdout: true, stderr: true, tty: true };
        assert_eq!(names(all), ["1error", "3stdin", "5stdout", "7resize"]);
        assert_eq!(names(Wanted { tty: false, ..all }), ["1error", "3stdin", "5stdout", "7stderr"]);
    }

    async fn received(bytes: Vec<u8>) -> Vec<(u32, Bytes)> {
        let streams = Streams::of(Wanted { stdout: true, stderr: true, ..Wanted::default() });
        let (sender, mut output) = mpsc::channel(8);
        let (pong, _pongs) = mpsc::channel(1);
        receive(&bytes[..], streams, sender, pong).await;
        let mut frames = Vec::new();
        while let Some(frame) = output.recv().await {
            frames.push(frame);
        }
        frames
    }

    #[tokio::test]
    async fn output_comes_before_the_status() {
        let mut bytes = BytesMut::new();
        put_data(&mut bytes, 1, FLAG_FIN, b"{}");
        put_data(&mut bytes, 3, 0, b"late");
        let want = vec![(channel::STDOUT, Bytes::from("late")), (channel::ERROR, Bytes::from("{}"))];
        assert_eq!(received(bytes.to_vec()).await, want);
    }

    #[tokio::test]
    async fn hostile_bytes_end_in_a_failure_status() {
        for bytes in [vec![], vec![1, 2, 3], vec![0xff; 64], [&[0, 0, 0, 3, 0, 0xff, 0xff, 0xff][..], &[0; 8]].concat()]
        {
            let frames = received(bytes.clone()).await;
            let (of, last) = frames.last().expect("a status");
            assert_eq!(*of, channel::ERROR);
            assert!(String::from_utf8_lossy(last).contains("Failure"), "{bytes:?}");
        }
    }
}
