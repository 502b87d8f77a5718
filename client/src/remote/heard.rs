//! A stream that notes when something was last read from it: any byte is a sign of life. It can be cut off, which ends whatever
//! is waiting for more: the HTTP/2 library drives the stream from a task of its own that ends for nothing else.
//!
//! HTTP/2 pings see to it that a living server sends something; how long to wait for it is decided while the connection lasts
//! (see [`super::patience`]), which the protocol's own timeout, fixed at its start, could not.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use pintle_base::clock::{self, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// When something was last heard. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(super) struct Heard {
    began: Instant,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Since the beginning.
    millis: AtomicU64,
    cut: AtomicBool,
    reader: AtomicWaker,
}

impl Heard {
    pub fn now() -> Self {
        Self { began: clock::now(), inner: Arc::default() }
    }

    pub fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.inner.millis.load(Ordering::Relaxed))
    }

    /// Nothing is read from the stream or written to it any more; who waits for it hears of a timeout.
    pub fn cut(&self) {
        self.inner.cut.store(true, Ordering::Release);
        self.inner.reader.wake();
    }

    fn check(&self) -> io::Result<()> {
        match self.inner.cut.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }

    fn note(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.inner.millis.store(millis, Ordering::Relaxed);
    }
}

pub(super) struct Listening<S> {
    pub stream: S,
    pub heard: Heard,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.heard.inner.reader.register(cx.waker());
        self.heard.check()?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard.note();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.heard.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.heard.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.heard.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
