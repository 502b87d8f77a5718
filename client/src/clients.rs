//! `kube::Client`s over a service of the same process: the API server's router, no socket in between (D9).
//!
//! Sits between reconcilers and the API server. Always holds: with a fence, every write carries `Pintle-Fence: <term>`,
//! and the store refuses it once another term has begun (I9).

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response};
use kube::client::Body;
use pintle_base::clock;
use tower::{BoxError, Service};

use crate::limits;

/// Request header with the Raft term a write was decided in.
pub static FENCE_HEADER: HeaderName = HeaderName::from_static("pintle-fence");

/// A client over `service`; with `fence`, its writes are refused outside that term.
///
/// Must be called inside a tokio runtime.
pub fn in_process<S, B>(service: S, fence: Option<u64>) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    kube::Client::new(Fenced::new(service, fence), "default")
}

/// Makes the clients of one identity: one without a fence for reads, and one per term for writes. Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    make: Arc<dyn Fn(Option<u64>) -> kube::Client + Send + Sync>,
    reader: kube::Client,
}

impl Clients {
    /// Clients over a service of this process. Must be called inside a tokio runtime.
    pub fn in_process<S, B>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self::new(move |fence| in_process(service.clone(), fence))
    }

    /// Clients that `make` builds from a fence.
    pub fn new(make: impl Fn(Option<u64>) -> kube::Client + Send + Sync + 'static) -> Self {
        Self { reader: make(None), make: Arc::new(make) }
    }

    /// For reads, and for writes that are harmless from anybody (events).
    pub fn unfenced(&self) -> kube::Client {
        self.reader.clone()
    }

    /// For writes decided while leading in `term`.
    pub fn fenced(&self, term: u64) -> kube::Client {
        (self.make)(Some(term))
    }
}

/// Adds the fence to writes and a deadline to everything but watches.
#[derive(Clone)]
pub struct Fenced<S> {
    inner: S,
    term: Option<HeaderValue>,
}

impl<S> Fenced<S> {
    pub fn new(inner: S, fence: Option<u64>) -> Self {
        Self { inner, term: fence.map(HeaderValue::from) }
    }
}

/// The response head did not come in time; what happened to a write is unknown.
#[derive(Debug, thiserror::Error)]
#[error("no response to {method} {path} within {limit:?}")]
pub struct DeadlineExceeded {
    method: http::Method,
    path: String,
    limit: std::time::Duration,
}

impl<S, B, R> Service<Request<B>> for Fenced<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    R: 'static,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<R>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(term) = self.term.as_ref().filter(|_| !request.method().is_safe()) {
            request.headers_mut().insert(FENCE_HEADER.clone(), term.clone());
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let watch = is_watch(request.uri().query());
        let response = self.inner.call(request);
        Box::pin(async move {
            if watch {
                return response.await.map_err(Into::into);
            }
            let limit = limits::REQUEST_DEADLINE;
            match clock::timeout(limit, response).await {
                Ok(result) => result.map_err(Into::into),
                Err(_) => Err(DeadlineExceeded { method, path, limit }.into()),
            }
        })
    }
}

fn is_watch(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;
    use kube::api::PostParams;
    use parking_lot::Mutex;

    /// A service that records method and fence of each request and echoes the body.
    fn recorder(seen: Arc<Mutex<Vec<(String, Option<String>)>>>) -> Clients {
        Clients::new(move |fence| {
            let seen = Arc::clone(&seen);
            let service = tower::service_fn(move |request: Request<Body>| {
                let fence = request.headers().get(&FENCE_HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned);
                seen.lock().push((request.method().to_string(), fence));
                async {
                    Ok::<_, BoxError>(Response::new(Full::new(Bytes::from_static(b"{\"metadata\":{\"name\":\"a\"}}"))))
                }
            });
            in_process(service, fence)
        })
    }

    #[tokio::test]
    async fn only_writes_of_a_term_carry_its_fence() {
        let seen = Arc::default();
        let clients = recorder(Arc::clone(&seen));
        for client in [clients.unfenced(), clients.fenced(7)] {
            let api: Api<ConfigMap> = Api::namespaced(client, "default");
            api.get("a").await.expect("get");
            api.create(&PostParams::default(), &ConfigMap::default()).await.expect("create");
        }
        let expected = [("GET", None), ("POST", None), ("GET", None), ("POST", Some("7"))];
        assert_eq!(*seen.lock(), expected.map(|(method, fence)| (method.to_owned(), fence.map(str::to_owned))));
    }

    #[test]
    fn watches_are_told_from_lists_by_their_query() {
        assert!(is_watch(Some("limit=5&watch=true")) && is_watch(Some("watch=1")));
        assert!(!is_watch(None) && !is_watch(Some("labelSelector=watch%3Dtrue")) && !is_watch(Some("watch=false")));
    }
}
