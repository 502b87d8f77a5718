//! The client port: accepts connections, TLS with deadlines, HTTP/1 and HTTP/2 on one listener.
//!
//! Always holds: over TLS, nothing is served to a client whose certificates [`Tls::admit`] does not admit. An authority
//! signs for many who may not read the store: the nodes of a cluster have certificates of the same one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Extensions, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use pintle_base::current::Current;
use pintle_base::{clock, task};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::answers::Client;
use super::browser::OverTls;
use super::front::Front;
use super::gate::CommonName;
use super::gateway::Unreadable;
use super::opening::{Opening, Pace};
use super::streams::{Served, Streams};
use crate::auth::Peer;
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

/// How the port speaks TLS, and whom it serves.
#[derive(Clone)]
pub struct Tls {
    /// Asked for with each connection, so that certificates can be renewed.
    pub config: Current<rustls::ServerConfig>,
    /// Whether the client with these verified certificates, leaf first, is served.
    pub admit: Admit,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    Refused,
    /// Served; a name stands for a user who logged in.
    As(Option<String>),
}

/// Asked once per connection.
pub type Admit = Arc<dyn Fn(&[CertificateDer<'_>]) -> Admission + Send + Sync>;

/// Numbers connections, of all ports of the process: 0 is none.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// Serves `front` on `listener` until `stop`; open requests then get a moment to end. Without `tls` in plain text.
pub async fn serve(
    front: Front,
    listener: TcpListener,
    tls: Option<Tls>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    serve_within(Arc::new(Semaphore::new(limits::CONNECTIONS)), front, listener, tls, stop).await
}

/// The same for as many connections as there are `slots`.
pub(crate) async fn serve_within(
    slots: Arc<Semaphore>,
    front: Front,
    listener: TcpListener,
    tls: Option<Tls>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let connections = task::Group::new("etcd-clients");
    loop {
        let (stream, address) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_transient(&error) => {
                    tracing::warn!(%error, "client not accepted");
                    clock::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Err(source) => return Err(ServeError::Accept { source }),
            },
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue }; // full: the client is told by the close
        let client = Client::new(slot);
        let (front, tls, stop) = (front.clone(), tls.clone(), stop.clone());
        let peer = Peer { connection: CONNECTIONS.fetch_add(1, Ordering::Relaxed), address };
        connections.spawn("etcd-client", async move {
            connection(front, stream, Known { peer, client, over_tls: tls.is_some(), name: None }, tls, stop).await;
        });
    }
    if let Err(error) = connections.stop(limits::DRAIN * 2).await {
        tracing::debug!(%error, "clients cut off");
    }
    Ok(())
}

async fn connection(front: Front, stream: TcpStream, known: Known, tls: Option<Tls>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let Some(Tls { config, admit }) = tls else {
        return requests(front, stream, known, stop).await;
    };
    let acceptor = TlsAcceptor::from(with_protocols(config.get()));
    match clock::timeout(limits::HANDSHAKE, acceptor.accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => {
            let (front, name) = match admit(stream.get_ref().1.peer_certificates().unwrap_or_default()) {
                Admission::Refused => (refusing().into(), None),
                Admission::As(name) => (front, name.map(|name| CommonName(name.into()))),
            };
            requests(front, stream, Known { name, ..known }, stop).await;
        }
        Ok(Err((error, stream))) => {
            tracing::debug!(%error, "client handshake failed");
            linger(stream).await;
        }
        Err(_) => tracing::debug!("client handshake took too long"),
    }
}

/// Lets the client read the alert that says why. It has sent its first request by now; a connection closed with bytes unread
/// is reset, and what the client had not read yet is lost to it.
async fn linger(mut stream: TcpStream) {
    let drained = async {
        stream.shutdown().await?;
        let mut sink = [0; 1024];
        for _ in 0..limits::LINGER_READS {
            if stream.read(&mut sink).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    let _ = clock::timeout(limits::LINGER, drained).await; // the connection ends, whatever came
}

/// Answers everything with etcd's "permission denied", in the client's language.
fn refusing() -> Router {
    Router::new().fallback(async |headers: HeaderMap| {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if kind.starts_with("application/grpc") {
            return tonic::Status::permission_denied(PERMISSION_DENIED).into_http::<Body>();
        }
        (StatusCode::FORBIDDEN, PERMISSION_DENIED).into_response()
    })
}

const PERMISSION_DENIED: &str = "etcdserver: permission denied";

/// What is known of every request of a connection.
struct Known {
    peer: Peer,
    client: Client,
    over_tls: bool,
    name: Option<CommonName>,
}

impl Known {
    fn tell(&self, request: &mut Extensions) {
        request.insert(self.peer);
        request.insert(self.client.clone());
        if self.over_tls {
            request.insert(OverTls);
        }
        if let Some(name) = &self.name {
            request.insert(name.clone());
        }
    }
}

async fn requests<S>(front: Front, stream: S, known: Known, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stalled = known.client.stalled.clone();
    let known = Arc::new(known);
    let Front { entry, http2 } = front;
    let service = entry.map_request(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        known.tell(request.extensions_mut());
        request
    });
    let pace = Pace::default();
    let judged = pace.clone();
    let service = service.map_response(move |response: Response<Body>| {
        judged.answered(is_readable(&response));
        response
    });
    let streams = Streams::default();
    let mut builder = auto::Builder::new(streams.clone());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits::HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(http2.streams)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .keep_alive_interval(http2.ping_after)
        .keep_alive_timeout(http2.ping_answer);
    let stream = TokioIo::new(Opening::new(stream, pace.clone()));
    let connection = builder.serve_connection_with_upgrades(stream, TowerToHyperService::new(service));
    tokio::pin!(connection);
    let mut served = Served::new(connection, streams, pace);
    tokio::select! {
        ended = &mut served => return log_end(ended),
        () = stalled.cancelled() => return,
        () = stop.cancelled() => served.connection.as_mut().graceful_shutdown(),
    }
    if let Ok(ended) = clock::timeout(limits::DRAIN, served).await {
        log_end(ended);
    }
}

/// Whether a request could be read, by its answer: tonic says "internal" to what is no message, the gateway leaves a note.
fn is_readable(response: &Response<Body>) -> bool {
    let internal = response.headers().get("grpc-status").is_some_and(|code| code == "13");
    !internal && response.extensions().get::<Unreadable>().is_none()
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
