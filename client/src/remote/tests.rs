//! A connection against real TLS servers of this process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::patience::Patience;
use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("ca") }
    }

    fn server_config(&self) -> Arc<rustls::ServerConfig> {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("params");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        let chain = vec![certificate.der().clone(), CertificateDer::from(self.issuer.der().to_vec())];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.expect("versions").with_no_client_auth().with_single_cert(chain, key).expect("config");
        config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
        Arc::new(config)
    }

    fn client_config(&self) -> Arc<rustls::ClientConfig> {
        tls::client_config(self.issuer.pem().as_bytes(), None).expect("client config")
    }
}

/// A server that answers with its name; its connections die with it.
struct Server {
    address: SocketAddr,
    group: task::Group,
}

impl Server {
    async fn start(name: &'static str, authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let (address, group) = (listener.local_addr().expect("address"), task::Group::new("server"));
        let (acceptor, connections) = (TlsAcceptor::from(authority.server_config()), group.clone());
        group.spawn_until_stopped("accept", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn_until_stopped("serve", async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(move |request: Request<Incoming>| async move {
                        let bearer = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
                        let text = format!("{name} {} {}", request.uri().path(), bearer.unwrap_or("-"));
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                    });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { address, group }
    }

    async fn kill(self) {
        self.group.stop(DEADLINE).await.expect("server stops");
    }
}

async fn ask(connection: &Connection) -> Result<String, RequestError> {
    let request = Request::get("/where").body(Full::new(Bytes::new())).expect("request");
    let response = clock::timeout(DEADLINE, connection.clone().oneshot(request)).await.expect("in time")?;
    let body = response.into_body().collect().await.expect("body").to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Asks until it is answered: a request under way when a server dies is reported as lost, never repeated by itself.
async fn ask_again(connection: &Connection) -> String {
    for _ in 0..100 {
        if let Ok(answer) = ask(connection).await {
            return answer;
        }
    }
    panic!("no answer");
}

#[tokio::test]
async fn requests_move_to_the_other_server_when_one_dies() {
    let authority = Authority::new();
    let (a, b) = (Server::start("a", &authority).await, Server::start("b", &authority).await);
    let group = task::Group::new("client");
    let mut options = Options::new(vec![a.address.into(), b.address.into()], authority.client_config());
    options.bearer = Some("secret".to_owned());
    let connection = Connection::start(options, &group).expect("starts");
    let first = ask(&connection).await.expect("an answer");
    let (dead, left) = if first.starts_with('a') { (a, "b") } else { (b, "a") };
    dead.kill().await;
    let killed = clock::now();
    assert_eq!(ask_again(&connection).await, format!("{left} /where Bearer secret"));
    assert!(killed.elapsed() < Duration::from_secs(3));
    assert!(connection.current().borrow().is_some());
    group.stop(DEADLINE).await.expect("client stops");
}

/// Passes everything on to `target` until it is frozen; then keeps the connections, and is silent.
async fn freezable(target: SocketAddr, group: &task::Group) -> (SocketAddr, tokio::sync::watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (freeze, frozen) = tokio::sync::watch::channel(false);
    let connections = group.clone();
    group.spawn_until_stopped("proxy", async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut frozen = frozen.clone();
            connections.spawn_until_stopped("proxied", async move {
                let mut server = TcpStream::connect(target).await.expect("connect");
                let passing = async { tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop) };
                let freezing = async { frozen.wait_for(|frozen| *frozen).await.map(drop) };
                tokio::select! {
                    _ = freezing => (),
                    _ = passing => return,
                }
                std::future::pending::<()>().await; // the connections stay open
            });
        }
    });
    (address, freeze)
}

/// The first server falls silent with its connections open, as a machine that is cut off does.
#[tokio::test]
async fn requests_move_to_the_other_server_when_one_falls_silent() {
    let authority = Authority::new();
    let (a, b) = (Server::start("a", &authority).await, Server::start("b", &authority).await);
    let group = task::Group::new("client");
    let ((first, freeze_a), (second, freeze_b)) =
        (freezable(a.address, &group).await, freezable(b.address, &group).await);
    let options = Options::new(vec![first.into(), second.into()], authority.client_config());
    let connection = Connection::start(options, &group).expect("starts");
    let (freeze, left) =
        if ask(&connection).await.expect("an answer").starts_with('a') { (freeze_a, "b") } else { (freeze_b, "a") };
    let frozen = clock::now();
    freeze.send_replace(true);
    let lost = ask(&connection).await;
    assert!(lost.is_err(), "who waits for a silent server is told that it is lost: {lost:?}");
    assert_eq!(ask_again(&connection).await, format!("{left} /where -"));
    assert!(frozen.elapsed() < Duration::from_secs(5), "{:?}", frozen.elapsed());
    group.stop(DEADLINE).await.expect("client stops");
}

#[tokio::test]
async fn a_server_that_restarts_is_met_although_a_slow_one_is_waited_for() {
    let authority = Authority::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let server = Server::start("a", &authority).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let restarting = listener.local_addr().expect("address");
    let group = task::Group::new("restart");
    let target = server.address;
    group.spawn_until_stopped("restart", async move {
        drop(listener.accept().await.expect("a first try")); // it is not up yet
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(target).await.expect("connect");
            drop(tokio::io::copy_bidirectional(&mut client, &mut server).await); // it ends with the test
        }
    });
    let mut patience = Patience::FIRST;
    (0..3).for_each(|_| patience.silence());
    let endpoints = [silent.local_addr().expect("address").into(), restarting.into()];
    let began = clock::now();
    let dialed = dial::dial_any(&endpoints, &authority.client_config(), None, patience).await;
    assert_eq!(dialed.ok().map(|dialed| dialed.endpoint), Some(restarting.into()));
    assert!(began.elapsed() < patience.dial() / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_joining_client_trusts_the_pinned_ca_and_no_other() {
    let authority = Authority::new();
    let server = Server::start("a", &authority).await;
    let right = tls::CaPin::parse(&tls::CaPin::text(authority.issuer.der())).expect("pin");
    let wrong = tls::CaPin::parse(&"ab".repeat(32)).expect("pin");
    for (pin, trusted) in [(right, true), (wrong, false)] {
        let endpoint = vec![Endpoint::from(server.address)];
        let result = dial::dial_any(&endpoint, &tls::pinned(&pin).expect("config"), None, Patience::FIRST).await;
        assert_eq!(result.is_ok(), trusted);
        assert_eq!(pin.found().is_some(), trusted);
    }
}

#[tokio::test]
async fn a_server_of_another_cluster_is_refused_and_named() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = Server::start("a", &theirs).await;
    let failure = dial::dial_any(&[server.address.into()], &ours.client_config(), None, Patience::FIRST).await;
    let text = failure.err().expect("refused").texts.join("; ");
    assert!(text.contains(&server.address.to_string()) && text.contains("certificate"), "{text}");
}

/// A listener that takes connections and lets nobody in, then one that is the server.
#[tokio::test]
async fn a_server_that_is_slow_is_waited_for_longer_the_next_time() {
    let authority = Authority::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let endpoint = [silent.local_addr().expect("address").into()];
    let mut patience = Patience::FIRST;
    let began = clock::now();
    let failures = dial::dial_any(&endpoint, &authority.client_config(), None, patience).await.err().expect("nobody");
    assert!(failures.silence && began.elapsed() >= limits::DIAL_TIMEOUT, "{failures:?}");
    patience.silence();
    let began = clock::now();
    let again = dial::dial_any(&endpoint, &authority.client_config(), None, patience).await;
    assert!(again.is_err_and(|failures| failures.silence) && began.elapsed() >= limits::DIAL_TIMEOUT * 2);
    drop(silent);
    let refused = dial::dial_any(&endpoint, &authority.client_config(), None, patience).await.err().expect("nobody");
    assert!(!refused.silence, "who refuses is not slow: {refused:?}");
}

#[test]
fn options_that_cannot_work_are_refused() {
    let config = Authority::new().client_config();
    let group = task::Group::new("client");
    let none = Connection::start(Options::new(Vec::new(), Arc::clone(&config)), &group);
    assert!(matches!(none, Err(StartError::NoEndpoint)));
    let endpoint = "127.0.0.1:1".parse().expect("endpoint");
    let mut options = Options::new(vec![endpoint], config);
    options.bearer = Some("a\nb".to_owned());
    assert!(matches!(Connection::start(options, &group), Err(StartError::Bearer)));
}

/// The connection is what tonic's generated clients take.
#[allow(dead_code)]
fn is_a_grpc_service(connection: Connection) -> impl tonic::client::GrpcService<tonic::body::Body> {
    connection
}
