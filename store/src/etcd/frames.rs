//! A body whose frames somebody hears of as they pass: for counting what comes and goes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

/// `body`, with `tell` called with each of its frames. What `tell` holds is dropped with the body: once all is sent, or nobody wants it
/// any more.
pub(super) fn told<F>(body: Body, tell: F) -> Body
where
    F: FnMut(&Frame<Bytes>) + Send + 'static,
{
    Body::new(Told { body, tell })
}

/// Bytes of a frame that are of the message.
pub(super) fn bytes_of(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}

pin_project! {
    struct Told<F> {
        #[pin]
        body: Body,
        tell: F,
    }
}

impl<F: FnMut(&Frame<Bytes>)> http_body::Body for Told<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            (this.tell)(frame);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
