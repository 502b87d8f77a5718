//! What a connection is watched for below its protocol: the first bytes, which say what the client speaks, must come in time, and an
//! HTTP/2 client must not flood.
//!
//! Whoever tells HTTP/1 from HTTP/2 waits for the first bytes as long as it takes; the deadlines of either protocol run only after that.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

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
}

enum Spoken {
    /// So many bytes came, which do not tell yet, and must before this is over.
    NotTold(usize, BoxFuture<'static, ()>),
    Http1,
    Http2(Flood),
}

impl<S> Opening<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, spoken: Spoken::NotTold(0, clock::sleep(limits::HEADERS).boxed()) }
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
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer)? {
            Poll::Ready(()) => Poll::Ready(this.came(&buffer.filled()[before..])),
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
