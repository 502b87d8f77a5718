//! The network edge: accepts connections, speaks TLS and HTTP/1.1 or HTTP/2, and hands requests to the handler.
//!
//! HTTP only inside TLS (D14). Always holds: a handshake, the first request, a header and a connection without requests
//! have deadlines, so that silence holds no place; no address takes all places; a client that does not read holds nothing
//! but its own stream; a panic ends one connection, not the process. Streams are never cut for being quiet.

mod activity;
mod certificates;
mod places;

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use pintle_base::clock;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::handlers::Handler;
use crate::limits;
use crate::types::{Body, PeerAddr, PeerCerts, Request};
use activity::Activity;
pub use certificates::ClientCertificates;
use places::{Place, Places};

/// Serves until `stop`, then drains: HTTP/2 clients get GOAWAY, watches end, and after [`limits::DRAIN`] the rest is dropped.
///
/// # Errors
/// Only if the listener itself breaks; errors of single connections are theirs.
pub async fn serve(handler: Arc<Handler>, listener: TcpListener, tls: Tls, stop: CancellationToken) -> io::Result<()> {
    serve_within(Deadlines::default(), handler, listener, tls, stop).await
}

/// How the listener speaks TLS. Without `clients` no certificate identifies anybody.
#[derive(Clone)]
pub struct Tls {
    pub server: Arc<rustls::ServerConfig>,
    pub clients: Option<ClientCertificates>,
}

/// How long a connection may be silent. Fixed; tests have shorter ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    pub handshake: Duration,
    pub first_request: Duration,
    pub idle: Duration,
    pub farewell: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            handshake: limits::HANDSHAKE_DEADLINE,
            first_request: limits::FIRST_REQUEST_DEADLINE,
            idle: limits::IDLE_DEADLINE,
            farewell: limits::DRAIN,
        }
    }
}

pub(crate) async fn serve_within(
    deadlines: Deadlines,
    handler: Arc<Handler>,
    listener: TcpListener,
    tls: Tls,
    stop: CancellationToken,
) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(with_protocols(tls.server));
    let places = Places::new(limits::CONNECTIONS, limits::CONNECTIONS_PER_ADDRESS);
    let connections = TaskTracker::new();
    loop {
        let vacancy = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            vacancy = places.vacancy() => vacancy?,
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let Some(place) = places.take(vacancy, address.ip()) else {
                    tracing::debug!(peer = %address, "connection refused: its address has too many");
                    continue;
                };
                let (handler, clients, stop) = (Arc::clone(&handler), tls.clients.clone(), stop.clone());
                let connection = Connection { handler, clients, address, deadlines, stop };
                let work = AssertUnwindSafe(connection.run(stream, acceptor.clone(), place)).catch_unwind();
                connections.spawn(async move {
                    if work.await.is_err() {
                        tracing::error!(peer = %address, "connection panicked");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to be closed.
                tracing::warn!(%error, "accept failed");
                clock::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if clock::timeout(limits::DRAIN, connections.wait()).await.is_err() {
        tracing::info!("connections still open after draining");
    }
    Ok(())
}

/// Offers HTTP/2 and HTTP/1.1 unless the configuration says otherwise.
fn with_protocols(tls: Arc<rustls::ServerConfig>) -> Arc<rustls::ServerConfig> {
    if !tls.alpn_protocols.is_empty() {
        return tls;
    }
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(tls)
}

struct Connection {
    handler: Arc<Handler>,
    clients: Option<ClientCertificates>,
    address: SocketAddr,
    deadlines: Deadlines,
    stop: CancellationToken,
}

impl Connection {
    async fn run(self, stream: TcpStream, acceptor: TlsAcceptor, place: Place) {
        let _ = stream.set_nodelay(true);
        let handshake = clock::timeout(self.deadlines.handshake, acceptor.accept(stream));
        let shaken = tokio::select! {
            biased;
            () = self.stop.cancelled() => return,
            shaken = handshake => shaken,
        };
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(peer = %self.address, %error, "tls handshake failed");
                return;
            }
            Err(_) => return,
        };
        let certs = stream.get_ref().1.peer_certificates().map(|chain| PeerCerts {
            trusted: self.clients.as_ref().is_some_and(|clients| clients.trusts(chain)),
            chain: chain.iter().map(|cert| cert.clone().into_owned()).collect(),
        });
        let activity = Arc::new(Activity::new());
        let (handler, address, counted) = (Arc::clone(&self.handler), self.address, Arc::clone(&activity));
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (handler, certs, in_work) = (Arc::clone(&handler), certs.clone(), counted.begin());
            async move {
                let mut request: Request = request.map(Body::new);
                request.extensions_mut().insert(PeerAddr(address));
                if let Some(certs) = certs {
                    request.extensions_mut().insert(certs);
                }
                Ok::<_, std::convert::Infallible>(in_work.until_end_of(handler.handle(request).await))
            }
        });
        // The place goes with the stream: an upgraded one outlives its HTTP connection.
        let stream = TokioIo::new(place.held_by(stream));
        let builder = builder();
        let mut connection = pin!(builder.serve_connection_with_upgrades(stream, service));
        let mut ending = false;
        loop {
            let Deadlines { first_request, idle, farewell, .. } = self.deadlines;
            let (first, idle) = if ending { (farewell, farewell) } else { (first_request, idle) };
            tokio::select! {
                biased;
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(peer = %self.address, %error, "connection ended");
                    }
                    return;
                }
                () = self.stop.cancelled(), if !ending => (),
                () = activity.silent_for(first, idle) => if ending { return },
            }
            // GOAWAY, or no further request after the one in work. Who does not go then is left.
            connection.as_mut().graceful_shutdown();
            activity.rest();
            ending = true;
        }
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_DEADLINE)
        .max_buf_size(limits::HEADER_BYTES as usize)
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::KEEP_ALIVE)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(limits::STREAMS)
        .max_header_list_size(limits::HEADER_BYTES)
        .max_send_buf_size(limits::WATCH_CHUNK * 4)
        .enable_connect_protocol();
    builder
}
