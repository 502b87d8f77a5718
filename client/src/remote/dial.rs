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

use super::heard::{Heard, Listening};
use super::patience::Patience;
use super::{Endpoint, SendBody};
use crate::limits;

/// Drives the connection's protocol until it ends.
pub(super) type Protocol = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

pub(super) struct Dialed {
    pub endpoint: Endpoint,
    pub sender: http2::SendRequest<SendBody>,
    pub protocol: Protocol,
    pub heard: Heard,
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
    #[error("{0} was not reached within {1:?}")]
    Unreached(Endpoint, Duration),
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

/// Connects to the first of `endpoints` that answers, preferring earlier ones. One that refuses is tried again while another
/// is silent: a server that restarts is met although a slow one is waited for.
///
/// # Errors
/// The failures of all of them, once each has had its time.
pub(super) async fn dial_any(
    endpoints: &[Endpoint],
    tls: &Arc<rustls::ClientConfig>,
    server_name: Option<&str>,
    patience: Patience,
) -> Result<Dialed, Failures> {
    let mut waiting = endpoints.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failures = Failures::default();
    let mut untold = endpoints.len();
    while untold > 0 {
        let next = waiting.next();
        if let Some(endpoint) = next {
            attempts.push(attempt(endpoint, tls, server_name, patience, true, Duration::ZERO));
        }
        let outcome = match next {
            Some(_) => clock::timeout(limits::DIAL_STAGGER, attempts.next()).await.unwrap_or_default(),
            None => attempts.next().await,
        };
        match outcome {
            Some((_, _, Ok(dialed))) => return Ok(dialed),
            Some((endpoint, is_first, Err(error))) => {
                if is_first {
                    failures.add(&error);
                    untold -= 1;
                }
                attempts.push(attempt(endpoint, tls, server_name, patience, false, limits::DIAL_AGAIN));
            }
            None => (), // the stagger is over: start the next one
        }
    }
    Err(failures)
}

/// One try, after a pause; says which it was.
async fn attempt<'a>(
    endpoint: &'a Endpoint,
    tls: &Arc<rustls::ClientConfig>,
    server_name: Option<&str>,
    patience: Patience,
    is_first: bool,
    pause: Duration,
) -> (&'a Endpoint, bool, Result<Dialed, DialError>) {
    if !pause.is_zero() {
        clock::sleep(pause).await;
    }
    (endpoint, is_first, connect(endpoint.clone(), Arc::clone(tls), server_name, patience).await)
}

async fn connect(
    endpoint: Endpoint,
    tls: Arc<rustls::ClientConfig>,
    server_name: Option<&str>,
    patience: Patience,
) -> Result<Dialed, DialError> {
    let name = server_name.unwrap_or(endpoint.host()).to_owned();
    let name = ServerName::try_from(name).map_err(|_| DialError::Name(endpoint.clone()))?;
    // Patience is for servers that are slow; one that TCP does not reach is not there.
    let stream = clock::timeout(limits::DIAL_TIMEOUT, TcpStream::connect((endpoint.host(), endpoint.port()))).await;
    let stream = stream.map_err(|_| DialError::Unreached(endpoint.clone(), limits::DIAL_TIMEOUT))?;
    let stream = stream.map_err(|source| DialError::Tcp(endpoint.clone(), source))?;
    stream.set_nodelay(true).map_err(|source| DialError::Tcp(endpoint.clone(), source))?;
    clock::timeout(patience.dial(), shake_hands(&endpoint, tls, name, stream))
        .await
        .unwrap_or_else(|_| Err(DialError::Timeout(endpoint, patience.dial())))
}

async fn shake_hands(
    endpoint: &Endpoint,
    tls: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
    stream: TcpStream,
) -> Result<Dialed, DialError> {
    let heard = Heard::now();
    let stream = Listening { stream, heard: heard.clone() };
    let stream = TlsConnector::from(tls).connect(name, stream).await;
    let stream = stream.map_err(|source| DialError::Tls(endpoint.clone(), source))?;
    if stream.get_ref().1.alpn_protocol() != Some(super::tls::ALPN_H2) {
        return Err(DialError::Protocol(endpoint.clone()));
    }
    let (sender, protocol) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
        // How long is waited for the answer is the driver's business; this is for a driver that is stuck.
        .keep_alive_timeout(Patience::LONGEST.ping())
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| DialError::Handshake(endpoint.clone(), source))?;
    Ok(Dialed { endpoint: endpoint.clone(), sender, protocol: Box::pin(protocol), heard })
}
