//! Bytes of a user who may have only so many in a second: counted as they come and go.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::quota::rates::Account;

/// A request whose bytes `account` pays for.
pub(super) fn paid(request: Request<Body>, account: &Arc<Account>) -> Request<Body> {
    request.map(|body| Body::new(Paid { body, account: Arc::clone(account) }))
}

pin_project! {
    /// An answer whose bytes are paid for.
    pub(super) struct Paying<F> {
        #[pin]
        inner: F,
        account: Arc<Account>,
    }
}

impl<F> Paying<F> {
    pub fn new(inner: F, account: Arc<Account>) -> Self {
        Self { inner, account }
    }
}

impl<F> Future for Paying<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(context));
        let account = Arc::clone(this.account);
        Poll::Ready(Ok(response.map(|body| Body::new(Paid { body, account }))))
    }
}

pin_project! {
    struct Paid {
        #[pin]
        body: Body,
        account: Arc<Account>,
    }
}

impl http_body::Body for Paid {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            this.account.take(frame.data_ref().map_or(0, Bytes::len));
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
