//! What a port serves: the calls of KV straight from its service, everything else by way of a router.
//!
//! The router finds a service by its path and keeps it behind several layers without types, each an allocation and a copy of what is behind
//! it; for a get that was a tenth of the work of the thread that serves it.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use axum::routing::future::RouteFuture;
use futures::future::Either;
use pintle_proto::etcdserverpb::kv_server::{KvServer, SERVICE_NAME};
use tower::util::{MapResponse, MapResponseLayer};
use tower::{Layer, Service};

use super::gate::{Gate, GateLayer};
use super::kv::Kv;
use super::meter::{Meter, MeterLayer};
use super::pieces::unpacked;
use crate::limits;
use crate::store::Store;

type AxumBody = fn(Response<tonic::body::Body>) -> Response<Body>;
type Direct = Meter<Gate<MapResponse<KvServer<Kv>, AxumBody>>>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Front {
    pub(super) entry: Entry,
    pub(super) http2: Http2,
}

/// How HTTP/2 is spoken with clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// Open at once on one connection.
    pub streams: u32,
    /// A client that has said nothing for so long is asked for a sign of life.
    pub ping_after: Duration,
    /// One that gives none for so long after that has gone.
    pub ping_answer: Duration,
}

impl Default for Http2 {
    fn default() -> Self {
        Self::new(limits::STREAMS_PER_CONNECTION, limits::KEEP_ALIVE, limits::KEEP_ALIVE_ANSWER)
    }
}

impl Http2 {
    /// As asked for, as far as that goes. 0 is in etcd what gRPC does by itself: no bound for streams, a ping after two hours. Here a client
    /// is never left alone for so long, nor is one asked all the time.
    pub fn new(streams: u32, ping_after: Duration, ping_answer: Duration) -> Self {
        let or = |time: Duration, otherwise| if time.is_zero() { otherwise } else { time };
        Self {
            streams: if streams == 0 { u32::MAX } else { streams },
            ping_after: or(ping_after, limits::KEEP_ALIVE_MOST)
                .clamp(limits::KEEP_ALIVE_LEAST, limits::KEEP_ALIVE_MOST),
            ping_answer: or(ping_answer, limits::KEEP_ALIVE_ANSWER),
        }
    }
}

/// The service itself.
#[derive(Clone)]
pub(super) struct Entry {
    kv: Option<Direct>,
    others: Router,
}

impl Front {
    /// `others` serves KV, too, to whoever does not come this way.
    pub(super) fn with_kv(store: &Store, kv: KvServer<Kv>, others: Router) -> Self {
        // Encoded answers take their places here: who has to pay for bytes comes after it.
        let body: AxumBody = |response| unpacked(response.map(Body::new));
        let kv = MapResponseLayer::new(body).layer(kv);
        let kv = GateLayer { store: store.clone() }.layer(kv);
        Entry { kv: Some(MeterLayer { store: store.clone() }.layer(kv)), others }.into()
    }

    /// The same, with other ways.
    #[must_use]
    pub fn with_http2(self, http2: Http2) -> Self {
        Self { http2, ..self }
    }
}

impl From<Router> for Front {
    fn from(others: Router) -> Self {
        Entry { kv: None, others }.into()
    }
}

impl From<Entry> for Front {
    fn from(entry: Entry) -> Self {
        Self { entry, http2: Http2::default() }
    }
}

impl Service<Request<Body>> for Entry {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<<Direct as Service<Request<Body>>>::Future, RouteFuture<Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(())) // whatever is behind it is always ready
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match &mut self.kv {
            Some(kv) if is_of_kv(request.uri().path()) => Either::Left(kv.call(request)),
            _ => Either::Right(self.others.call(request)),
        }
    }
}

fn is_of_kv(path: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME)).is_some_and(|rest| rest.starts_with('/'))
}
