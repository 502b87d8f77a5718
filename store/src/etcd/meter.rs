//! Counts gRPC calls, how they ended, and their bytes, around everything that answers them; what the transport refuses by itself is
//! put into etcd's words on the way.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, Response};
use http_body::Frame;
use pin_project_lite::pin_project;
use tonic::Code;
use tower::{Layer, Service};

use super::answers::Held;
use super::frames::{bytes_of, told};
use super::oversized;
use crate::metrics::Call;
use crate::store::Store;

#[derive(Clone)]
pub(super) struct MeterLayer {
    pub store: Store,
}

#[derive(Clone)]
pub(super) struct Meter<S> {
    store: Store,
    inner: S,
}

impl<S> Layer<S> for MeterLayer {
    type Service = Meter<S>;

    fn layer(&self, inner: S) -> Meter<S> {
        Meter { store: self.store.clone(), inner }
    }
}

impl<S> Service<Request<Body>> for Meter<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(call) = Call::of(request.uri().path()) else {
            return Answering { inner: self.inner.call(request), ending: None };
        };
        self.store.metrics().started(call);
        let store = self.store.clone();
        let received = move |frame: &Frame<Bytes>| store.metrics().counters.received.inc_by(bytes_of(frame) as u64);
        let request = request.map(|body| told(body, received));
        let ending = Some(Ending { store: self.store.clone(), call, told: false });
        Answering { inner: self.inner.call(request), ending }
    }
}

/// Counts how a call ended, once: by its status, or as cancelled if nobody waited for that.
struct Ending {
    store: Store,
    call: Call,
    told: bool,
}

impl Ending {
    fn tell(&mut self, headers: &HeaderMap) {
        let Some(status) = headers.get("grpc-status").filter(|_| !self.told) else { return };
        self.told = true;
        self.store.metrics().handled(self.call, Code::from_bytes(status.as_bytes()));
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.told {
            self.store.metrics().handled(self.call, Code::Cancelled);
        }
    }
}

pin_project! {
    pub(super) struct Answering<F> {
        #[pin]
        inner: F,
        ending: Option<Ending>,
    }
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(context));
        let mut response = oversized::reworded(response);
        let Some(mut ending) = this.ending.take() else { return Poll::Ready(Ok(response)) };
        ending.tell(response.headers()); // refused without a body
        let held = response.extensions_mut().remove::<Held>();
        let sent = move |frame: &Frame<Bytes>| {
            held.iter().for_each(Held::went_on); // and it is held until everything is sent
            ending.store.metrics().counters.sent.inc_by(bytes_of(frame) as u64);
            if let Some(trailers) = frame.trailers_ref() {
                ending.tell(trailers);
            }
        };
        Poll::Ready(Ok(response.map(|body| told(body, sent))))
    }
}
