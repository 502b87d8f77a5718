//! Bytes of a user who may have only so many in a second: counted as they come and go.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::{Request, Response};
use pin_project_lite::pin_project;

use super::frames::{bytes_of, told};
use crate::quota::rates::Account;

/// A request whose bytes `account` pays for.
pub(super) fn paid(request: Request<Body>, account: &Arc<Account>) -> Request<Body> {
    request.map(|body| counted(body, Arc::clone(account)))
}

fn counted(body: Body, account: Arc<Account>) -> Body {
    told(body, move |frame| account.take(bytes_of(frame)))
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
        Poll::Ready(Ok(response.map(|body| counted(body, account))))
    }
}
