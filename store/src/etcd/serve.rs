//! The client port: accepts connections, TLS with deadlines, HTTP/1 and HTTP/2 on one listener.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use pintle_base::{clock, task};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::limits;

/// Why the port was given up.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("accept a client")]
    Accept {
        #[source]
        source: io::Error,
    },
}

/// The verified certificates of the client, in every request's extensions; empty without TLS.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificates(pub Arc<[CertificateDer<'static>]>);

/// Serves `router` on `listener` until `stop`; open requests then get a moment to end. Without `tls` in plain text.
pub async fn serve(
    router: Router,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let acceptor = tls.map(|config| TlsAcceptor::from(with_protocols(config)));
    let connections = task::Group::new("etcd-clients");
    let slots = Arc::new(Semaphore::new(limits::CONNECTIONS));
    loop {
        let stream = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) if is_transient(&error) => {
                    tracing::warn!(%error, "client not accepted");
                    clock::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Err(source) => return Err(ServeError::Accept { source }),
            },
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue }; // full: the client is told by the close
        let (router, acceptor, stop) = (router.clone(), acceptor.clone(), stop.clone());
        connections.spawn("etcd-client", async move {
            connection(router, stream, acceptor, stop).await;
            drop(slot);
        });
    }
    if let Err(error) = connections.stop(limits::DRAIN * 2).await {
        tracing::debug!(%error, "clients cut off");
    }
    Ok(())
}

async fn connection(router: Router, stream: TcpStream, acceptor: Option<TlsAcceptor>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return requests(router, stream, PeerCertificates::default(), stop).await;
    };
    match clock::timeout(limits::HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificates: Vec<_> = stream
                .get_ref()
                .1
                .peer_certificates()
                .unwrap_or_default()
                .iter()
                .map(|c| c.clone().into_owned())
                .collect();
            requests(router, stream, PeerCertificates(certificates.into()), stop).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "client handshake failed"),
        Err(_) => tracing::debug!("client handshake took too long"),
    }
}

async fn requests<S>(router: Router, stream: S, peer: PeerCertificates, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request.map(Body::new)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits::HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .adaptive_window(true)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return log_end(ended),
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    if let Ok(ended) = clock::timeout(limits::DRAIN, connection).await {
        log_end(ended);
    }
}

fn log_end(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "client connection ended");
    }
}

/// gRPC clients insist on the negotiated protocol.
fn with_protocols(config: Arc<rustls::ServerConfig>) -> Arc<rustls::ServerConfig> {
    if !config.alpn_protocols.is_empty() {
        return config;
    }
    let mut config = (*config).clone();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// The connection's own end, or too many open files: the listener goes on.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    const TOO_MANY_FILES: [i32; 2] = [23, 24];
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
        || error.raw_os_error().is_some_and(|code| TOO_MANY_FILES.contains(&code))
}
