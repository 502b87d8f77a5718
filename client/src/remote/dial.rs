//! Makes one connection: TCP, TLS with ALPN `h2`, HTTP/2 handshake. Several servers are tried with a stagger, so that one
//! that swallows packets does not hold up the others.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pintle_base::clock;
use pintle_base::error::Chain;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::patience::Patience;
use super::{Endpoint, SendBody};
use crate::limits;

/// Drives the connection's protocol until it ends.
pub(super) type Protocol = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

pub(super) struct Dialed {
    pub endpoint: Endpoint,
    pub sender: http2::SendRequest<SendBody>,
    pub protocol: Protocol,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("connect to {0}")]
    Tcp(Endpoint, #[source] std::io::Error),
    #[error("TLS with {0}")]
    Tls(Endpoint, #[source] std::io::Error),
    #[error("{0} does not speak HTTP/2")]
    Protocol(Endpoint),
    #[error("HTTP/2 handshake with {0}")]
    Handshake(Endpoint, #[source] hyper::Error),
    #[error("{0} did not answer within {1:?}")]
    Timeout(Endpoint, Duration),
    #[error("{0} is not a valid server name")]
    Name(Endpoint),
}

/// Nobody could be connected to.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Those of all servers, as people read them.
    pub texts: Vec<String>,
    /// Somebody let the time pass, instead of refusing.
    pub silence: bool,
}

impl Failures {
    fn add(&mut self, error: &DialError) {
        self.texts.push(Chain(error).to_string());
        self.silence |= matches!(error, DialError::Timeout(..));
    }
}

/// Connects to the first of `endpoints` that answers, preferring earlier ones.
///
/// # Errors
/// The failures of all of them.
pub(super) async fn dial_any(
    endpoints: &[Endpoint],
    tls: &Arc<rustls::ClientConfig>,
    server_name: Option<&str>,
    patience: Patience,
) -> Result<Dialed, Failures> {
    let mut waiting = endpoints.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failures = Failures::default();
    loop {
        let next = waiting.next();
        if let Some(endpoint) = next {
            attempts.push(dial(endpoint.clone(), Arc::clone(tls), server_name, patience));
        }
        if attempts.is_empty() {
            return Err(failures);
        }
        let outcome = if next.is_some() {
            clock::timeout(limits::DIAL_STAGGER, attempts.next()).await.unwrap_or_default()
        } else {
            attempts.next().await
        };
        match outcome {
            Some(Ok(dialed)) => return Ok(dialed),
            Some(Err(error)) => failures.add(&error),
            None => (), // the stagger is over: start the next one
        }
    }
}

async fn dial(
    endpoint: Endpoint,
    tls: Arc<rustls::ClientConfig>,
    server_name: Option<&str>,
    patience: Patience,
) -> Result<Dialed, DialError> {
    let connecting = connect(endpoint.clone(), tls, server_name, patience);
    clock::timeout(patience.dial(), connecting)
        .await
        .unwrap_or_else(|_| Err(DialError::Timeout(endpoint, patience.dial())))
}

async fn connect(
    endpoint: Endpoint,
    tls: Arc<rustls::ClientConfig>,
    server_name: Option<&str>,
    patience: Patience,
) -> Result<Dialed, DialError> {
    let name = server_name.unwrap_or(endpoint.host()).to_owned();
    let name = ServerName::try_from(name).map_err(|_| DialError::Name(endpoint.clone()))?;
    let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await;
    let stream = stream.map_err(|source| DialError::Tcp(endpoint.clone(), source))?;
    stream.set_nodelay(true).map_err(|source| DialError::Tcp(endpoint.clone(), source))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await;
    let stream = stream.map_err(|source| DialError::Tls(endpoint.clone(), source))?;
    if stream.get_ref().1.alpn_protocol() != Some(super::tls::ALPN_H2) {
        return Err(DialError::Protocol(endpoint));
    }
    let (sender, protocol) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(patience.ping())
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| DialError::Handshake(endpoint.clone(), source))?;
    Ok(Dialed { endpoint, sender, protocol: Box::pin(protocol) })
}
