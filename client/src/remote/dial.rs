//! Makes one connection: TCP, TLS with ALPN `h2`, HTTP/2 handshake. Several servers are tried with a stagger, so that one
//! that swallows packets does not hold up the others.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pintle_base::clock;
use pintle_base::error::Chain;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

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
    #[error("{0} did not answer within {limit:?}", limit = limits::DIAL_TIMEOUT)]
    Timeout(Endpoint),
    #[error("{0} is not a valid server name")]
    Name(Endpoint),
}

/// Connects to the first of `endpoints` that answers, preferring earlier ones.
///
/// # Errors
/// The failures of all of them, as one text.
pub(super) async fn dial_any(
    endpoints: &[Endpoint],
    tls: &Arc<rustls::ClientConfig>,
    server_name: Option<&str>,
) -> Result<Dialed, String> {
    let mut waiting = endpoints.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failures = Vec::new();
    loop {
        let next = waiting.next();
        if let Some(endpoint) = next {
            attempts.push(dial(endpoint.clone(), Arc::clone(tls), server_name));
        }
        if attempts.is_empty() {
            return Err(failures.join("; "));
        }
        let outcome = if next.is_some() {
            clock::timeout(limits::DIAL_STAGGER, attempts.next()).await.unwrap_or_default()
        } else {
            attempts.next().await
        };
        match outcome {
            Some(Ok(dialed)) => return Ok(dialed),
            Some(Err(error)) => failures.push(Chain(&error).to_string()),
            None => (), // the stagger is over: start the next one
        }
    }
}

async fn dial(
    endpoint: Endpoint,
    tls: Arc<rustls::ClientConfig>,
    server_name: Option<&str>,
) -> Result<Dialed, DialError> {
    match clock::timeout(limits::DIAL_TIMEOUT, connect(endpoint.clone(), tls, server_name)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout(endpoint)),
    }
}

async fn connect(
    endpoint: Endpoint,
    tls: Arc<rustls::ClientConfig>,
    server_name: Option<&str>,
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
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| DialError::Handshake(endpoint.clone(), source))?;
    Ok(Dialed { endpoint, sender, protocol: Box::pin(protocol) })
}
