//! The network edge: accepts connections, speaks TLS and HTTP/1.1 or HTTP/2, and hands requests to the handler.
//!
//! HTTP only inside TLS (D14). Always holds: a handshake, a header and an idle HTTP/1 connection have deadlines; a client
//! that does not read holds nothing but its own stream; a panic ends one connection, not the process.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use pintle_base::clock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::handlers::Handler;
use crate::limits;
use crate::types::{Body, PeerAddr, PeerCerts, Request};

/// Serves until `stop`, then drains: HTTP/2 clients get GOAWAY, watches end, and after [`limits::DRAIN`] the rest is dropped.
///
/// # Errors
/// Only if the listener itself breaks; errors of single connections are theirs.
pub async fn serve(
    handler: Arc<Handler>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    stop: CancellationToken,
) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(with_protocols(tls));
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let permit = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            permit = Arc::clone(&places).acquire_owned() => permit.map_err(io::Error::other)?,
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let connection = Connection { handler: Arc::clone(&handler), address, _permit: permit };
                let (acceptor, watcher) = (acceptor.clone(), graceful.watcher());
                let work = AssertUnwindSafe(connection.run(stream, acceptor, watcher)).catch_unwind();
                tokio::spawn(async move {
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
    if clock::timeout(limits::DRAIN, graceful.shutdown()).await.is_err() {
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
    address: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream, acceptor: TlsAcceptor, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let stream = match clock::timeout(limits::HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(peer = %self.address, %error, "tls handshake failed");
                return;
            }
            Err(_) => return,
        };
        let certs = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|certs| PeerCerts(Arc::new(certs.iter().map(|cert| cert.clone().into_owned()).collect())));
        let handler = Arc::clone(&self.handler);
        let address = self.address;
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (handler, certs) = (Arc::clone(&handler), certs.clone());
            async move {
                let mut request: Request = request.map(Body::new);
                request.extensions_mut().insert(PeerAddr(address));
                if let Some(certs) = certs {
                    request.extensions_mut().insert(certs);
                }
                Ok::<_, std::convert::Infallible>(handler.handle(request).await)
            }
        });
        let builder = builder();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection.into_owned()).await {
            tracing::debug!(peer = %self.address, %error, "connection ended");
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
