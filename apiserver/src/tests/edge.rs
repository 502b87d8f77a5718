//! The network edge: silence, streams, and bodies that are too long, over real TLS connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pintle_api::status::Status;
use pintle_base::clock;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{DEADLINE, admin, harness, server_with, tls};
use crate::edge::Deadlines;
use crate::hooks;
use crate::types::{Authenticate, Body, Hooks, PeerCerts, UserInfo};

/// Whoever connects is the administrator.
struct Everybody;

impl Authenticate for Everybody {
    fn authenticate<'a>(
        &'a self,
        _: &'a http::request::Parts,
        _: Option<&'a PeerCerts>,
    ) -> BoxFuture<'a, Result<Option<UserInfo>, Status>> {
        Box::pin(async { Ok(Some(admin())) })
    }
}

/// A server that listens, and how to reach it.
struct Edge {
    address: SocketAddr,
    tls: pintle_raft::Tls,
}

fn serve(deadlines: Deadlines) -> Edge {
    let (server, tls) = (server_with(Hooks { authn: Arc::new(Everybody), ..hooks::closed() }), tls());
    let harness = harness();
    let listener = harness.runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("port");
    let address = listener.local_addr().expect("address");
    let listening = crate::edge::Tls { server: tls.server.get(), clients: None };
    let _entered = harness.runtime.enter();
    harness.group.spawn("edge", async move {
        let _ = server.serve_within(deadlines, listener, listening).await;
    });
    Edge { address, tls }
}

impl Edge {
    async fn connect(&self, protocol: &[u8]) -> TlsStream<TcpStream> {
        let mut client = rustls::ClientConfig::clone(&self.tls.client.get());
        client.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let name = rustls_pki_types::ServerName::try_from("127.0.0.1").expect("name");
        TlsConnector::from(Arc::new(client)).connect(name, stream).await.expect("handshake")
    }

    /// A connection with HTTP/2, and the task that ends with it.
    async fn http2(&self) -> (SendRequest<Body>, tokio::task::JoinHandle<Result<(), hyper::Error>>) {
        let stream = TokioIo::new(self.connect(b"h2").await);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("handshake");
        (sender, tokio::spawn(connection))
    }

    fn request(&self, method: &str, path: &str, body: impl Into<Body>) -> http::Request<Body> {
        let uri = format!("https://{}{path}", self.address);
        let builder = http::Request::builder().method(method).uri(uri).header("content-type", "application/json");
        builder.body(body.into()).expect("request")
    }
}

/// Runs a test with a deadline.
fn run(test: impl Future<Output = ()>) {
    harness().runtime.block_on(async { clock::timeout(DEADLINE, test).await.expect("ends in time") });
}

const SHORT: Duration = Duration::from_millis(50);

#[test]
fn a_connection_that_says_nothing_is_ended() {
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let edge = serve(Deadlines { first_request: SHORT, farewell: SHORT, ..Deadlines::default() });
        run(async {
            let mut silent = edge.connect(protocol).await;
            let mut heard = Vec::new();
            // Its end is what counts, however it comes.
            let _ = silent.read_to_end(&mut heard).await;
        });
    }
}

#[test]
fn a_connection_without_a_handshake_is_ended() {
    let edge = serve(Deadlines { handshake: SHORT, ..Deadlines::default() });
    run(async {
        let mut silent = TcpStream::connect(edge.address).await.expect("connects");
        let _ = silent.read_to_end(&mut Vec::new()).await;
    });
}

#[test]
fn an_idle_connection_is_ended_and_a_quiet_watch_is_not() {
    let edge = serve(Deadlines { idle: SHORT, farewell: SHORT, ..Deadlines::default() });
    let path = "/api/v1/namespaces/edge-watch/configmaps";
    run(async {
        let (mut watching, _held) = edge.http2().await;
        let watch = edge.request("GET", &format!("{path}?watch=1&timeoutSeconds=60"), Body::empty());
        let response = watching.send_request(watch).await.expect("answer");
        assert_eq!(response.status(), 200);
        let mut events = Body::new(response.into_body()).into_data_stream();

        let (mut idle, ended) = edge.http2().await;
        let answer = idle.send_request(edge.request("GET", "/livez", Body::empty())).await.expect("answer");
        assert_eq!(answer.status(), 200);
        to_bytes(Body::new(answer.into_body()), 1024).await.expect("body");
        let _ = ended.await.expect("no panic");

        // The watch was silent for longer than that.
        let (mut other, _) = edge.http2().await;
        let made = edge.request("POST", path, r#"{"metadata":{"name":"one"}}"#);
        assert_eq!(other.send_request(made).await.expect("answer").status(), 201);
        let event: Bytes = events.next().await.expect("an event").expect("a chunk");
        assert!(event.starts_with(b"{\"type\":\"ADDED\""), "{event:?}");
    });
}

#[test]
fn a_body_that_is_too_long_is_refused_in_words_over_http2() {
    let edge = serve(Deadlines::default());
    // Just above the limit, and above what is read before the answer.
    for bytes in [crate::limits::BODY_BYTES + 1, crate::limits::BODY_DRAIN_BYTES + 4 * 1024 * 1024] {
        run(async {
            let (mut sender, _held) = edge.http2().await;
            let head = r#"{"metadata":{"name":"big"},"data":{"a":""#;
            let body = format!("{head}{}\"}}}}", "x".repeat(bytes));
            let request = edge.request("POST", "/api/v1/namespaces/edge-big/configmaps", body);
            let response = sender.send_request(request).await.expect("answer");
            assert_eq!(response.status(), 413, "{bytes}");
            let body = to_bytes(Body::new(response.into_body()), 4096).await.expect("body");
            let status: Value = serde_json::from_slice(&body).expect("a status");
            let field = |name: &str| status[name].as_str().unwrap_or("-").to_owned();
            assert_eq!(
                (status["code"].as_u64(), field("kind"), field("reason"), field("message")),
                (
                    Some(413),
                    "Status".into(),
                    "RequestEntityTooLarge".into(),
                    "Request entity too large: limit is 3145728".into()
                )
            );
        });
    }
}
