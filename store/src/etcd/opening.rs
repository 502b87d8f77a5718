//! The first bytes of a connection, which say what the client speaks: they must come in time.
//!
//! Whoever tells HTTP/1 from HTTP/2 waits for them as long as it takes; the deadlines of either protocol run only after that.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use pintle_base::clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits;

/// Bytes that an HTTP/2 client begins with. No method of HTTP/1 that is served begins with them, but some with the first.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// A stream whose reads fail once the protocol was not told in time.
pub(super) struct Opening<S> {
    stream: S,
    read: usize,
    /// Gone once it is told.
    deadline: Option<BoxFuture<'static, ()>>,
}

impl<S> Opening<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, read: 0, deadline: Some(clock::sleep(limits::HEADERS).boxed()) }
    }

    fn came(&mut self, bytes: &[u8]) {
        let told = self.read == 0 && bytes.first().is_some_and(|first| *first != b'P');
        self.read += bytes.len();
        if told || self.read >= PREFACE {
            self.deadline = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        let Some(deadline) = &mut this.deadline else { return polled };
        match polled {
            Poll::Pending => deadline.poll_unpin(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
            Poll::Ready(result) => {
                this.came(&buffer.filled()[before..]);
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
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
