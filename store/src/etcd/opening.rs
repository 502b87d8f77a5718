//! What a connection is watched for below its protocol: the first bytes, which say what the client speaks, must come in time, and an
//! HTTP/2 client must not flood. Nor does a client that always has more to say keep the thread for itself.
//!
//! Whoever tells HTTP/1 from HTTP/2 waits for the first bytes as long as it takes; the deadlines of either protocol run only after that.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use futures::future::BoxFuture;
use pintle_base::clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::flood::Flood;
use crate::limits;

/// What an HTTP/2 client begins with. Methods of HTTP/1 begin with its first byte, but not with all.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream whose reads fail once the protocol was not told in time, or too much is asked of it.
pub(super) struct Opening<S> {
    stream: S,
    spoken: Spoken,
    pace: Pace,
    /// Nothing is read before.
    pause: Option<BoxFuture<'static, ()>>,
}

/// How much of a connection is read before others have their turn, and whether it has deserved one.
#[derive(Clone, Default)]
pub(super) struct Pace(Arc<Reading>);

#[derive(Default)]
struct Reading {
    /// Bytes that may still be read in this turn.
    left: AtomicUsize,
    /// Requests that could not be read, less those that could.
    unreadable: AtomicU32,
}

impl Pace {
    /// The connection's task runs.
    pub fn begin(&self) {
        self.0.left.store(limits::READ_IN_A_TURN, Ordering::Relaxed);
    }

    /// Nobody says any more when a turn begins: the stream is used for something else, and is read as it comes.
    pub fn end(&self) {
        self.0.left.store(usize::MAX, Ordering::Relaxed);
    }

    /// A request was answered. Whoever sends nothing but what cannot be read is read slowly; as many others make up for it.
    pub fn answered(&self, readable: bool) {
        let unreadable = &self.0.unreadable;
        let count = unreadable.load(Ordering::Relaxed);
        let after = if readable { count.saturating_sub(1) } else { (count + 1).min(2 * limits::UNREADABLE) };
        if after != count {
            unreadable.store(after, Ordering::Relaxed);
        }
    }

    fn has_deserved_none(&self) -> bool {
        self.0.unreadable.load(Ordering::Relaxed) > limits::UNREADABLE
    }
}

enum Spoken {
    /// So many bytes came, which do not tell yet, and must before this is over.
    NotTold(usize, BoxFuture<'static, ()>),
    Http1,
    Http2(Flood),
}

impl<S> Opening<S> {
    /// Whoever polls the connection tells `pace` when a turn begins.
    pub fn new(stream: S, pace: Pace) -> Self {
        let spoken = Spoken::NotTold(0, clock::sleep(limits::HEADERS).boxed());
        Self { stream, spoken, pace, pause: None }
    }

    fn came(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Spoken::NotTold(read, _) = &mut self.spoken {
            let rest = &PREFACE[*read..];
            let (begun, after) = bytes.split_at(rest.len().min(bytes.len()));
            *read += begun.len();
            if !rest.starts_with(begun) {
                self.spoken = Spoken::Http1;
            } else if *read == PREFACE.len() {
                bytes = after;
                self.spoken = Spoken::Http2(Flood::new());
            }
        }
        if let Spoken::Http2(flood) = &mut self.spoken
            && !flood.received(bytes)
        {
            tracing::debug!("a client that floods its connection is cut off");
            return Err(io::Error::other("too many pings"));
        }
        Ok(())
    }

    fn went(&mut self, bytes: &[u8]) {
        if let Spoken::Http2(flood) = &mut self.spoken {
            flood.sent(bytes);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.poll_unpin(context));
            this.pause = None;
        }
        let left = this.pace.0.left.load(Ordering::Relaxed);
        if left == 0 {
            // HTTP/2 takes in all that is there before it lets go, which may be thousands of requests, and looks again with each of them.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer)? {
            Poll::Ready(()) => {
                let came = &buffer.filled()[before..];
                this.pace.0.left.store(left.saturating_sub(came.len()), Ordering::Relaxed);
                if this.pace.has_deserved_none() {
                    this.pause = Some(clock::sleep(limits::UNREADABLE_PAUSE).boxed());
                }
                Poll::Ready(this.came(came))
            }
            Poll::Pending => match &mut this.spoken {
                Spoken::NotTold(_, deadline) => {
                    deadline.poll_unpin(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
                }
                Spoken::Http1 | Spoken::Http2(_) => Poll::Pending,
            },
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = written {
            this.went(&bytes[..written]);
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(mut left)) = written {
            for slice in slices {
                let of_it = left.min(slice.len());
                this.went(&slice[..of_it]);
                left -= of_it;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn opening() -> (Opening<DuplexStream>, DuplexStream, Pace) {
        let (ours, theirs) = duplex(1 << 20);
        let pace = Pace::default();
        pace.begin();
        (Opening::new(ours, pace.clone()), theirs, pace)
    }

    /// What can be read now.
    async fn read_now(opening: &mut Opening<DuplexStream>) -> usize {
        let mut bytes = [0; 1024];
        let mut all = 0;
        poll_fn(|context| {
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                match Pin::new(&mut *opening).poll_read(context, &mut buffer) {
                    Poll::Ready(Ok(())) => all += buffer.filled().len(),
                    Poll::Ready(Err(error)) => panic!("{error}"),
                    Poll::Pending => return Poll::Ready(()),
                }
            }
        })
        .await;
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_read_in_turns_until_nobody_says_when_they_begin() {
        let (mut opening, mut client, pace) = opening();
        client.write_all(&vec![b'x'; 10 * limits::READ_IN_A_TURN]).await.unwrap();
        assert_eq!(read_now(&mut opening).await, limits::READ_IN_A_TURN);
        assert_eq!(read_now(&mut opening).await, 0);
        pace.begin();
        assert_eq!(read_now(&mut opening).await, limits::READ_IN_A_TURN);
        pace.end();
        assert_eq!(read_now(&mut opening).await, 8 * limits::READ_IN_A_TURN);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_what_nobody_can_read_is_read_slowly_until_it_sends_something_else() {
        let (mut opening, mut client, pace) = opening();
        (0..=limits::UNREADABLE).for_each(|_| pace.answered(false));
        client.write_all(&[b'x'; 3000]).await.unwrap();
        assert_eq!(read_now(&mut opening).await, 1024, "one read");
        clock::sleep(limits::UNREADABLE_PAUSE).await;
        assert_eq!(read_now(&mut opening).await, 1024);
        (0..1_000_000).for_each(|_| pace.answered(false));
        (0..2 * limits::UNREADABLE).for_each(|_| pace.answered(true));
        clock::sleep(limits::UNREADABLE_PAUSE).await;
        pace.begin();
        client.write_all(&[b'x'; 3000 - 952]).await.unwrap();
        assert_eq!(read_now(&mut opening).await, 3000, "in one go");
    }

    #[tokio::test(start_paused = true)]
    async fn only_http_2_is_looked_at_for_floods() {
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let flood = ping.repeat(2 * limits::CONTROL_FRAMES as usize);
        for (first, taken) in [(PREFACE, false), (&b"POST / HTTP/1.1\r\n"[..], true), (b"PRI * HTTP/1.1\r\n", true)] {
            let (mut opening, mut client, pace) = opening();
            pace.end();
            client.write_all(first).await.unwrap();
            client.write_all(&flood).await.unwrap();
            drop(client);
            let read = opening.read_to_end(&mut Vec::new()).await;
            assert_eq!(read.is_ok(), taken, "{:?}", String::from_utf8_lossy(first));
        }
    }
}
