//! Counts gRPC calls, how they ended, and their bytes, around everything that answers them; what the transport refuses by itself is
//! put into etcd's words on the way.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Code;
use tower::{Layer, Service};

use super::answers::Held;
use super::{oversized, pieces};
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
        let request = request.map(|body| Body::new(Received { body, store }));
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
        let mut response = pieces::unpacked(oversized::reworded(response));
        let Some(mut ending) = this.ending.take() else { return Poll::Ready(Ok(response)) };
        ending.tell(response.headers()); // refused without a body
        let held = response.extensions_mut().remove();
        Poll::Ready(Ok(response.map(|body| Body::new(Sent { body, ending, _held: held }))))
    }
}

pin_project! {
    struct Received {
        #[pin]
        body: Body,
        store: Store,
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            this.store.metrics().counters.received.inc_by(bytes as u64);
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

pin_project! {
    struct Sent {
        #[pin]
        body: Body,
        ending: Ending,
        // Until everything is sent, or nobody wants it any more.
        _held: Option<Held>,
    }
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            this.ending.store.metrics().counters.sent.inc_by(bytes as u64);
            if let Some(trailers) = frame.trailers_ref() {
                this.ending.tell(trailers);
            }
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
