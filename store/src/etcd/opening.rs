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
    turn: Turn,
    /// Nothing is read before.
    pause: Option<BoxFuture<'static, ()>>,
}

/// How much of a connection is read before others have their turn, and whether it has deserved one.
#[derive(Clone, Default)]
pub(super) struct Turn(Arc<Account>);

#[derive(Default)]
struct Account {
    /// Bytes that may still be read in this turn.
    left: AtomicUsize,
    /// Requests that could not be read, less those that could.
    unreadable: AtomicU32,
}

impl Turn {
    /// The connection's task runs.
    pub fn begin(&self) {
        self.0.left.store(limits::READ_IN_A_TURN, Ordering::Relaxed);
    }

    /// A request was answered. Whoever sends nothing but what cannot be read is read slowly.
    pub fn answered(&self, readable: bool) {
        let unreadable = &self.0.unreadable;
        let count = unreadable.load(Ordering::Relaxed);
        let after = if readable { count.saturating_sub(1) } else { count.saturating_add(1) };
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
    /// Whoever polls the connection says when a `turn` begins.
    pub fn new(stream: S, turn: Turn) -> Self {
        let spoken = Spoken::NotTold(0, clock::sleep(limits::HEADERS).boxed());
        Self { stream, spoken, turn, pause: None }
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
        let left = this.turn.0.left.load(Ordering::Relaxed);
        if left == 0 {
            // HTTP/2 takes in all that is there before it lets go, which may be thousands of requests, and looks again with each of them.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer)? {
            Poll::Ready(()) => {
                let came = &buffer.filled()[before..];
                this.turn.0.left.store(left.saturating_sub(came.len()), Ordering::Relaxed);
                if this.turn.has_deserved_none() {
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
