//! One HTTP/2 connection to one of several servers, which moves to another when it is lost (D11).
//!
//! Flow: request → [`Connection`] (a tower service) → the live connection that [`drive`] keeps → server. The same
//! connection carries REST requests of `kube` and gRPC calls of tonic.
//! Always holds: a request is sent again only if it provably was not sent; one that may have been is reported as lost, with
//! its outcome unknown. A dead server is noticed within 2 s and the next one is in use within 3 s, unless servers were slow
//! just before ([`patience`]).

mod dial;
mod drive;
mod endpoint;
mod heard;
mod patience;
pub mod tls;
pub mod unverified;

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use pintle_base::{clock, task};
use tokio::sync::{mpsc, watch};
use tower::{BoxError, Service};

pub use endpoint::{Endpoint, InvalidEndpoint};

use crate::clients::Fenced;
use crate::limits;

type SendBody = UnsyncBoxBody<Bytes, BoxError>;

/// What a connection is made of.
#[derive(Clone)]
pub struct Options {
    /// The servers; they are tried in random order.
    pub endpoints: Vec<Endpoint>,
    pub tls: Arc<rustls::ClientConfig>,
    /// The name the server's certificate must carry, if not the endpoint's host.
    pub server_name: Option<String>,
    /// Sent as `Authorization: Bearer` with each request. Never logged.
    pub bearer: Option<String>,
}

impl Options {
    pub fn new(endpoints: Vec<Endpoint>, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { endpoints, tls, server_name: None, bearer: None }
    }
}

/// Why a [`Connection`] could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no server endpoint given")]
    NoEndpoint,
    #[error("the bearer token is not a valid header value")]
    Bearer,
    #[error("{0:?} is not a valid server name")]
    ServerName(String),
}

/// Why a request has no response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nothing was sent: the request may be repeated.
    #[error("no server reachable within {waited:?}; last failure: {last}")]
    Unavailable { waited: std::time::Duration, last: String },
    /// The request may have been processed: its outcome is unknown.
    #[error("connection to {endpoint} lost while waiting for the response")]
    Lost {
        endpoint: Endpoint,
        #[source]
        source: hyper::Error,
    },
    #[error("the connection was shut down")]
    Stopped,
    #[error("the request has no valid target")]
    Target(#[source] http::Error),
}

impl RequestError {
    /// True only if nothing can have been written, so that sending it again is safe.
    pub fn is_safe_to_retry(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A connection that is up.
#[derive(Clone)]
struct Live {
    id: u64,
    endpoint: Endpoint,
    sender: SendRequest<SendBody>,
}

/// What the driver tells about itself.
#[derive(Clone, Default)]
struct State {
    live: Option<Live>,
    last_failure: Arc<str>,
}

/// Wishes of requests and owners to the driver.
enum Wish {
    /// Connection `id` does not take requests any more.
    Abandon(u64),
    Endpoints(Vec<Endpoint>),
    Tls(Arc<rustls::ClientConfig>),
}

/// The connection. Cheap to clone; a tower service for any body, always ready: requests wait for a live connection.
#[derive(Clone)]
pub struct Connection {
    state: watch::Receiver<State>,
    current: watch::Receiver<Option<Endpoint>>,
    wishes: mpsc::Sender<Wish>,
    bearer: Option<HeaderValue>,
}

impl Connection {
    /// Starts to connect in the background; it is closed when `group` stops.
    ///
    /// # Errors
    /// [`StartError`] if the options cannot work; servers that are down are not an error.
    pub fn start(options: Options, group: &task::Group) -> Result<Self, StartError> {
        if options.endpoints.is_empty() {
            return Err(StartError::NoEndpoint);
        }
        if let Some(name) = &options.server_name
            && rustls_pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            return Err(StartError::ServerName(name.clone()));
        }
        let bearer = options.bearer.as_deref().map(bearer_header).transpose()?;
        let (state_out, state) = watch::channel(State::default());
        let (current_out, current) = watch::channel(None);
        let (wishes, wished) = mpsc::channel(16);
        let driver = drive::Driver::new(options, state_out, current_out, wished, group.clone());
        group.spawn_until_stopped("connection", driver.run());
        Ok(Self { state, current, wishes, bearer })
    }

    /// The server in use now; `None` while there is none.
    pub fn current(&self) -> watch::Receiver<Option<Endpoint>> {
        self.current.clone()
    }

    /// Replaces the set of servers. The connection stays if its server is still among them; an empty set is ignored.
    pub async fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        if !endpoints.is_empty() {
            let _ = self.wishes.send(Wish::Endpoints(endpoints)).await;
        }
    }

    /// Uses `tls` (a renewed certificate) from now on, on a new connection.
    pub async fn set_tls(&self, tls: Arc<rustls::ClientConfig>) {
        let _ = self.wishes.send(Wish::Tls(tls)).await;
    }

    /// A `kube::Client` on this connection. Must be called inside a tokio runtime.
    pub fn kube_client(&self) -> kube::Client {
        kube::Client::new(Fenced::new(self.clone(), None), "default")
    }

    async fn send(mut self, mut request: Request<SendBody>) -> Result<Response<Incoming>, RequestError> {
        if let Some(bearer) = &self.bearer {
            request.headers_mut().entry(AUTHORIZATION).or_insert_with(|| bearer.clone());
        }
        let (started, mut refused) = (clock::now(), 0u64);
        for _ in 0..limits::RESENDS {
            let mut live = self.live_after(refused, started).await?;
            aim(&mut request, &live.endpoint)?;
            match live.sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut error) => {
                    let unsent = error.take_message();
                    let (endpoint, source) = (live.endpoint, error.into_error());
                    let Some(unsent) = unsent else {
                        return Err(RequestError::Lost { endpoint, source });
                    };
                    tracing::debug!(%endpoint, error = %source, "request not sent, moving it");
                    request = unsent;
                    refused = live.id;
                    let _ = self.wishes.try_send(Wish::Abandon(live.id));
                }
            }
        }
        Err(self.unavailable(started))
    }

    /// The live connection, as soon as there is one that is younger than `refused`.
    async fn live_after(&mut self, refused: u64, started: clock::Instant) -> Result<Live, RequestError> {
        let usable = |state: &State| state.live.as_ref().is_some_and(|live| live.id > refused);
        let left = limits::CONNECTION_WAIT.saturating_sub(started.elapsed());
        let found = match clock::timeout(left, self.state.wait_for(usable)).await {
            Ok(Ok(state)) => Some(state.live.clone()),
            Ok(Err(_)) => Some(None),
            Err(_) => None,
        };
        found.ok_or_else(|| self.unavailable(started))?.ok_or(RequestError::Stopped)
    }

    fn unavailable(&self, started: clock::Instant) -> RequestError {
        RequestError::Unavailable { waited: started.elapsed(), last: self.state.borrow().last_failure.to_string() }
    }
}

/// Makes a kube client over a connection of its own. Must be called inside a tokio runtime.
///
/// # Errors
/// As [`Connection::start`].
pub fn remote(
    endpoints: Vec<Endpoint>,
    tls: Arc<rustls::ClientConfig>,
    group: &task::Group,
) -> Result<kube::Client, StartError> {
    Ok(Connection::start(Options::new(endpoints, tls), group)?.kube_client())
}

fn bearer_header(token: &str) -> Result<HeaderValue, StartError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| StartError::Bearer)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Points the request at `endpoint`, keeping path and query.
fn aim<B>(request: &mut Request<B>, endpoint: &Endpoint) -> Result<(), RequestError> {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let authority = Authority::try_from(endpoint.to_string()).map_err(|error| RequestError::Target(error.into()))?;
    let uri = Uri::builder().scheme(Scheme::HTTPS).authority(authority).path_and_query(path).build();
    *request.uri_mut() = uri.map_err(RequestError::Target)?;
    *request.version_mut() = http::Version::HTTP_2;
    Ok(())
}

impl<B> Service<Request<B>> for Connection
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Incoming>;
    type Error = RequestError;
    type Future = BoxFuture<'static, Result<Response<Incoming>, RequestError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        Box::pin(self.clone().send(request))
    }
}

#[cfg(test)]
mod tests;
