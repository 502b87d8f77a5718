//! Attacks on a port, each until it is dropped: on one thread of its own, so that its work is not mistaken for the client's it shall not
//! disturb.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pintle_proto::etcdserverpb::watch_request::RequestUnion;
use pintle_proto::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, WINDOW_UPDATE, call_head, connect, frame,
    header, message, settings,
};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// What a peer that does not read is given before the attacker takes another connection.
const STUCK: Duration = Duration::from_millis(200);

type Counter = Arc<AtomicU64>;

/// Something that goes on until it is dropped.
pub struct Attack {
    /// Attempts, whatever became of them.
    pub done: Counter,
    /// So many make it one.
    enough: u64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Attack {
    /// `attacker` is run so many times at once, each with its number, again and again.
    fn start<F>(count: usize, enough: u64, attacker: impl Fn(usize, Counter) -> F + Send + 'static) -> Self
    where
        F: Future<Output = std::io::Result<()>> + 'static,
    {
        let (done, stop) = (Counter::default(), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (Arc::clone(&done), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            let attacker = std::rc::Rc::new(attacker);
            let tasks = tokio::task::LocalSet::new();
            for number in 0..count {
                let (attacker, counter) = (std::rc::Rc::clone(&attacker), Arc::clone(&counter));
                tasks.spawn_local(async move {
                    loop {
                        // The member is free to end the connection: the attacker takes another one.
                        let _ = attacker(number, Arc::clone(&counter)).await;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
            }
            runtime.block_on(tasks.run_until(async {
                while !stopped.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }));
        });
        Self { done, enough, stop, thread: Some(thread) }
    }

    pub fn until_it_does_something(&self) {
        let began = Instant::now();
        while self.done.load(Ordering::Relaxed) < self.enough {
            assert!(began.elapsed() < Duration::from_secs(60), "the attack does not come about");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the attacker panicked");
        }
    }
}

fn stuck() -> std::io::Error {
    std::io::ErrorKind::TimedOut.into()
}

/// Sends `bytes` again and again, and reads whatever comes meanwhile if `reads`. Ends with the connection.
async fn flood(
    stream: TcpStream,
    bytes: impl FnMut() -> Vec<u8>,
    each: u64,
    reads: bool,
    done: Counter,
) -> std::io::Result<()> {
    let (from, to) = stream.into_split();
    tokio::select! {
        ended = send(to, bytes, each, done) => ended,
        ended = take(from), if reads => ended,
    }
}

async fn send(
    mut to: OwnedWriteHalf,
    mut bytes: impl FnMut() -> Vec<u8>,
    each: u64,
    done: Counter,
) -> std::io::Result<()> {
    loop {
        tokio::time::timeout(STUCK, to.write_all(&bytes())).await.map_err(|_| stuck())??;
        done.fetch_add(each, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
}

/// Reads until the peer closes.
async fn take(mut from: OwnedReadHalf) -> std::io::Result<()> {
    let mut sink = vec![0; 64 << 10];
    while from.read(&mut sink).await? > 0 {}
    Ok(())
}

/// Streams that are opened and reset before they can be answered.
pub fn rapid_resets(port: u16) -> Attack {
    Attack::start(4, 1000, move |_, done| async move {
        let stream = connect(port, None).await?;
        let (head, mut next) = (call_head(PUT), 1);
        let batch = move || {
            let mut bytes = Vec::new();
            for _ in 0..50 {
                bytes.extend(frame(HEADERS, END_HEADERS, next, &head));
                bytes.extend(frame(RST_STREAM, 0, next, &8u32.to_be_bytes()));
                next += 2;
            }
            bytes
        };
        flood(stream, batch, 50, true, done).await
    })
}

/// Pings and settings that all want an answer; half of the attackers do not read them.
pub fn control_frames(port: u16) -> Attack {
    Attack::start(4, 1000, move |number, done| async move {
        let stream = connect(port, None).await?;
        let pair = [frame(PING, 0, 0, &[7; 8]), settings(Some(65_535))].concat();
        let batch = move || pair.repeat(100);
        flood(stream, batch, 200, number % 2 == 0, done).await
    })
}

/// Headers that go on and on in frames that continue them.
pub fn endless_headers(port: u16) -> Attack {
    Attack::start(4, 100, move |_, done| async move {
        let mut stream = connect(port, None).await?;
        stream.write_all(&frame(HEADERS, END_STREAM, 1, &call_head(PUT))).await?;
        let mut more = Vec::new();
        header("x-more", &[b'x'; 8000], &mut more);
        let batch = move || frame(CONTINUATION, 0, 1, &more).repeat(4);
        flood(stream, batch, 4, true, done).await
    })
}

/// A megabyte of headers: over HTTP/2, and over HTTP/1.
pub fn large_headers(port: u16) -> Attack {
    Attack::start(4, 20, move |number, done| async move {
        let mut large = Vec::new();
        header("x-large", &[b'x'; 12_000], &mut large);
        if number % 2 == 0 {
            let stream = connect(port, None).await?;
            let mut next = 1;
            let batch = move || {
                let mut bytes = frame(HEADERS, END_STREAM, next, &call_head(PUT));
                bytes.extend(frame(CONTINUATION, 0, next, &large).repeat(80));
                bytes.extend(frame(CONTINUATION, END_HEADERS, next, &large));
                next += 2;
                bytes
            };
            return flood(stream, batch, 1, true, done).await;
        }
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\n").await?;
        let line = format!("X-Large: {}\r\n", "x".repeat(12_000)).into_bytes();
        flood(stream, move || line.clone(), 1, true, done).await
    })
}

/// Requests that nobody can read, over gRPC and the gateway.
pub fn garbage(port: u16) -> Attack {
    Attack::start(4, 100, move |number, done| async move {
        if number % 2 == 0 {
            let (stream, head) = (connect(port, None).await?, call_head(PUT));
            let mut next = 1;
            let batch = move || {
                let mut bytes = Vec::new();
                for _ in 0..10 {
                    bytes.extend(frame(HEADERS, END_HEADERS, next, &head));
                    bytes.extend(frame(DATA, END_STREAM, next, &message(&[0xff; 200])));
                    next += 2;
                }
                bytes.extend(frame(WINDOW_UPDATE, 0, 0, &100_000u32.to_be_bytes()));
                bytes
            };
            return flood(stream, batch, 10, true, done).await;
        }
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let body = "[".repeat(5000);
        let request = format!("POST /v3/kv/txn HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        flood(stream, move || request.clone().into_bytes(), 1, true, done).await
    })
}

/// Bodies that come a byte at a time: of large requests that are never whole.
pub fn slow_writers(port: u16) -> Attack {
    const WRITERS: usize = 500;
    Attack::start(WRITERS, WRITERS as u64, move |number, done| async move {
        let mut stream = if number % 2 == 0 {
            let mut stream = connect(port, None).await?;
            stream.write_all(&frame(HEADERS, END_HEADERS, 1, &call_head(PUT))).await?;
            stream.write_all(&frame(DATA, 0, 1, &[0, 0, 0x10, 0, 0])).await?; // a message of a mebibyte begins
            stream
        } else {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.write_all(b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n{").await?;
            stream
        };
        loop {
            let byte = if number % 2 == 0 { frame(DATA, 0, 1, b"x") } else { b" ".to_vec() };
            stream.write_all(&byte).await?;
            done.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
}

/// Connections that are opened and then do nothing: most of them as HTTP/2 clients that answer pings, as idle ones do.
pub fn idle(port: u16, count: usize) -> Attack {
    Attack::start(count, count as u64, move |number, done| async move {
        let mut stream = match number % 10 {
            0 => TcpStream::connect(("127.0.0.1", port)).await?,
            _ => connect(port, None).await?,
        };
        done.fetch_add(1, Ordering::Relaxed);
        let mut said = [0; 1024];
        while stream.read(&mut said).await? > 0 {}
        Ok(())
    })
}

/// Every attacker asks for everything under `prefix` so many times at once, and takes nothing of the answers.
pub fn slow_readers(port: u16, readers: usize, each: u32, prefix: &'static str) -> Attack {
    let enough = readers as u64 * u64::from(each);
    Attack::start(readers, enough, move |_, done| async move {
        let mut stream = connect(port, Some(0)).await?;
        let (key, range_end) = (Bytes::from(prefix), pintle_store::prefix_end(prefix.as_bytes()));
        let range = RangeRequest { key, range_end, serializable: true, ..RangeRequest::default() }.encode_to_vec();
        for number in 0..each {
            let id = 2 * number + 1;
            stream.write_all(&frame(HEADERS, END_HEADERS, id, &call_head(RANGE))).await?;
            stream.write_all(&frame(DATA, END_STREAM, id, &message(&range))).await?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        let mut heads = [0; 4096]; // and what else is not an answer's body
        while stream.read(&mut heads).await? > 0 {}
        Ok(())
    })
}

/// Connections with streams of watches of everything, whose events nobody takes.
pub fn deaf_watchers(port: u16, connections: usize, each: u32) -> Attack {
    let enough = connections as u64 * u64::from(each);
    Attack::start(connections, enough, move |_, done| async move {
        let mut stream = connect(port, Some(0)).await?;
        let everything = WatchCreateRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(everything)) }.encode_to_vec();
        for number in 0..each {
            let id = 2 * number + 1;
            stream.write_all(&frame(HEADERS, END_HEADERS, id, &call_head(WATCH))).await?;
            stream.write_all(&frame(DATA, 0, id, &message(&create))).await?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        let mut heads = [0; 4096];
        while stream.read(&mut heads).await? > 0 {}
        Ok(())
    })
}

/// One stream of watches of one key, whose client takes little, and asks how far they are once there were events.
pub fn late_progress(port: u16, watches: u32) -> Attack {
    Attack::start(1, u64::from(watches), move |_, done| async move {
        let mut stream = connect(port, Some(65_535)).await?;
        let one = WatchCreateRequest { key: Bytes::from_static(b"watched/0"), ..WatchCreateRequest::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(one)) }.encode_to_vec();
        let progress = RequestUnion::ProgressRequest(WatchProgressRequest::default());
        let progress = WatchRequest { request_union: Some(progress) }.encode_to_vec();
        stream.write_all(&frame(HEADERS, END_HEADERS, 1, &call_head(WATCH))).await?;
        for _ in 0..watches {
            stream.write_all(&frame(DATA, 0, 1, &message(&create))).await?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        stream.write_all(&frame(DATA, 0, 1, &message(&progress))).await?;
        let mut events = vec![0; 64 << 10];
        loop {
            for of in [0, 1] {
                stream.write_all(&frame(WINDOW_UPDATE, 0, of, &65_536u32.to_be_bytes())).await?;
            }
            let read = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut events));
            if let Ok(read) = read.await
                && read? == 0
            {
                return Ok(());
            }
        }
    })
}
