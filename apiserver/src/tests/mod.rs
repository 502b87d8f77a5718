//! Requests and answers of a whole server over a real single-member store, in-process.
//!
//! One server serves all tests of the process; each test uses names of its own. [`ask`] sends one request written as
//! a line, [`check`] holds code and chosen fields of the answer against what is expected.

mod crud;
mod discovery;
mod edge;
mod lists;
mod watches;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::to_bytes;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use pintle_base::task::Group;
use pintle_raft::{Options, Peer, Tls};
use pintle_store::{Store, StoreOptions};
use serde_json::Value;
use tower::ServiceExt;

use crate::types::{Body, Config, Hooks, ServiceAccountConfig, UserInfo};
use crate::{ApiServer, hooks};

/// Every wait of a test ends after this.
const DEADLINE: Duration = Duration::from_secs(20);

struct Harness {
    runtime: tokio::runtime::Runtime,
    server: ApiServer,
    store: Store,
    _dir: tempfile::TempDir,
    group: Group,
}

fn harness() -> &'static Harness {
    static HARNESS: OnceLock<Harness> = OnceLock::new();
    HARNESS.get_or_init(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let dir = tempfile::tempdir().expect("directory");
        let group = Group::new("test");
        let (server, store) = runtime.block_on(start(dir.path(), &group));
        Harness { runtime, server, store, _dir: dir, group }
    })
}

async fn start(dir: &std::path::Path, group: &Group) -> (ApiServer, Store) {
    let (store, machine) = Store::open(&dir.join("state"), StoreOptions::default()).expect("store opens");
    let address = free_address();
    let peer = Peer {
        id: 1,
        name: "s1".into(),
        peer_addr: address.to_string(),
        client_addr: address.to_string(),
        api_addr: address.to_string(),
    };
    let mut options = Options::new(1, 1, dir.join("raft"), address, vec![peer], tls());
    options.heartbeat = Duration::from_millis(20);
    options.election_min = Duration::from_millis(60);
    options.election_max = Duration::from_millis(120);
    let raft = pintle_raft::start(options, machine, group).await.expect("raft starts");
    store.attach(raft, group);
    let server = ApiServer::with_hooks(config(address), store.clone(), hooks::closed());
    server.start_cache(group);
    server.ctx().cache.wait(1, DEADLINE).await.expect("cache fills");
    (server, store)
}

/// Another server over the same store, with other hooks, once its cache is filled.
fn server_with(hooks: Hooks) -> ApiServer {
    let harness = harness();
    harness.runtime.block_on(async {
        let server = ApiServer::with_hooks(config(free_address()), harness.store.clone(), hooks);
        server.start_cache(&harness.group);
        server.ctx().cache.wait(1, DEADLINE).await.expect("cache fills");
        server
    })
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    listener.local_addr().expect("address")
}

fn tls() -> Tls {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let name = vec!["127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(name).expect("certificate");
    let (cert, key) = (made.cert.der().clone(), made.signing_key.serialize_der());
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.into());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.clone()).expect("root");
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("server side");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Tls { server: Arc::new(server).into(), client: Arc::new(client).into() }
}

fn config(address: SocketAddr) -> Config {
    Config {
        server_id: 1,
        server_name: "s1".into(),
        advertise: address,
        service_cidr: "10.96.0.0/16".into(),
        kubernetes_service_ip: "10.96.0.1".parse().expect("address"),
        node_ports: 30000..=32767,
        cluster_domain: "cluster.local".into(),
        ca_pem: String::new(),
        service_accounts: ServiceAccountConfig {
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            audiences: Vec::new(),
            signing_key_pem: String::new(),
            public_keys_pem: Vec::new(),
        },
        peer_tls: None,
        peers: Arc::new(Vec::new),
    }
}

fn admin() -> UserInfo {
    UserInfo { name: "admin".into(), groups: vec![crate::types::MASTERS.into()], ..UserInfo::default() }
}

/// An answer: code, headers, body.
struct Answer {
    code: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Text at a JSON pointer; numbers and the like in their JSON form.
    fn at(&self, pointer: &str) -> String {
        match self.json().pointer(pointer) {
            None => "-".into(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }
}

fn request(line: &str, body: impl Into<Body>) -> http::Request<Body> {
    let mut words = line.split_whitespace();
    let (method, uri) = (words.next().expect("method"), words.next().expect("uri"));
    let mut builder = http::Request::builder().method(method).uri(uri);
    for word in words {
        let (name, value) = word.split_once('=').expect("header=value");
        let name = match name {
            "accept" => ACCEPT.as_str(),
            "type" => CONTENT_TYPE.as_str(),
            other => other,
        };
        builder = builder.header(name, value);
    }
    builder.body(body.into()).expect("request")
}

async fn send_as(user: UserInfo, request: http::Request<Body>) -> Answer {
    send_to(&harness().server, user, request).await
}

async fn send_to(server: &ApiServer, user: UserInfo, request: http::Request<Body>) -> Answer {
    let response = server.local(user).oneshot(request).await.expect("infallible");
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(DEADLINE, to_bytes(body, usize::MAX)).await.expect("in time").expect("body");
    Answer { code: parts.status.as_u16(), headers: parts.headers, body }
}

/// Sends `METHOD /uri [header=value]...` with a JSON body (or none).
fn ask(line: &str, body: &str) -> Answer {
    harness().runtime.block_on(send_as(admin(), request(line, body.to_owned())))
}

/// Sends a request and holds `code` and the fields at `pointers` against `want`: `"201 web 1"`.
#[track_caller]
fn check(line: &str, body: &str, pointers: &[&str], want: &str) -> Answer {
    let answer = ask(line, body);
    let mut got = answer.code.to_string();
    for pointer in pointers {
        got.push(' ');
        got.push_str(&answer.at(pointer));
    }
    assert_eq!(got, want, "{line}\n{}", String::from_utf8_lossy(&answer.body));
    answer
}

/// Waits for a condition, with the deadline.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "{what} did not happen in time");
        std::thread::yield_now();
    }
}
