//! The servers under test, made once per process, and the ways to ask them.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::to_bytes;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper_util::rt::TokioIo;
use pintle_base::clock;
use pintle_base::task::Group;
use pintle_proto::etcdserverpb::RangeRequest;
use pintle_proto::node_v1::node_client::NodeClient;
use pintle_proto::node_v1::{
    AgentMessage, Frame, Hello, Open, Refused, ServerMessage, agent_message, open, server_message,
};
use pintle_raft::{Options, Peer};
use pintle_store::{Store, StoreOptions};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tower::ServiceExt;

use crate::edge::{ClientCertificates, Tls};
use crate::types::{Body, Config, MASTERS, PeerServer, ServiceAccountConfig, UserInfo};
use crate::{ApiServer, tokens};

const DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Cluster {
    servers: Vec<ApiServer>,
    addresses: Vec<SocketAddr>,
    store: Store,
    pki: Pki,
    _dir: tempfile::TempDir,
    group: Group,
}

/// Runs one test on the shared cluster, with a deadline.
pub(super) fn with_deadline(test: impl AsyncFnOnce(&'static Cluster)) {
    let (runtime, cluster) = cluster();
    runtime.block_on(async { clock::timeout(DEADLINE * 3, test(cluster)).await.expect("test ends in time") });
}

fn cluster() -> (&'static tokio::runtime::Runtime, &'static Cluster) {
    static CLUSTER: OnceLock<(tokio::runtime::Runtime, Cluster)> = OnceLock::new();
    let (runtime, cluster) = CLUSTER.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().expect("runtime");
        let cluster = runtime.block_on(Cluster::start());
        (runtime, cluster)
    });
    (runtime, cluster)
}

/// A certificate authority and what it signs.
struct Pki {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: CertificateDer<'static>,
}

impl Pki {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("key");
        let root = params.self_signed(&key).expect("root").der().clone();
        Self { issuer: rcgen::Issuer::new(params, key), root }
    }

    fn leaf(&self, name: &str, group: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("leaf").der().clone();
        (certificate, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).expect("root");
        Arc::new(roots)
    }

    fn server(&self, name: &str) -> Tls {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(self.roots(), Arc::clone(&provider));
        let clients = ClientCertificates::judged_by(verifier.build().expect("verifier"));
        let (certificate, key) = self.leaf(&format!("system:pintle:server:{name}"), "system:pintle:servers");
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients.for_tls())
            .with_single_cert(vec![certificate], key)
            .expect("server side");
        Tls { server: Arc::new(server), clients: Some(clients) }
    }

    /// A client; without a name it shows no certificate.
    fn client(&self, subject: Option<(&str, &str)>) -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots());
        match subject {
            None => builder.with_no_client_auth(),
            Some((name, group)) => {
                let (certificate, key) = self.leaf(name, group);
                builder.with_client_auth_cert(vec![certificate], key).expect("client side")
            }
        }
    }
}

impl Cluster {
    async fn start() -> Self {
        let (dir, group, pki) = (tempfile::tempdir().expect("directory"), Group::new("test"), Pki::new());
        let store = start_store(dir.path(), &group, &pki).await;
        let mut listeners = Vec::new();
        for _ in 0..2 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.expect("port"));
        }
        let addresses: Vec<SocketAddr> = listeners.iter().map(|one| one.local_addr().expect("address")).collect();
        let key = tokens::tests::fresh_pem();
        let mut servers = Vec::new();
        for (n, listener) in listeners.into_iter().enumerate() {
            let server = ApiServer::new(config(n, &addresses, &pki, &key), store.clone()).expect("configuration");
            server.start(&group);
            let (serving, tls) = (server.clone(), pki.server(&format!("s{n}")));
            group.spawn("serve", async move {
                let _ = serving.serve(listener, tls).await;
            });
            server.ctx().cache.wait(1, DEADLINE).await.expect("cache fills");
            servers.push(server);
        }
        Self { servers, addresses, store, pki, _dir: dir, group }
    }

    pub fn name(&self) -> &str {
        &self.servers[0].ctx().config.server_name
    }

    /// Waits until the last thing of a bootstrap round is there.
    pub async fn bootstrapped(&self) {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
        let cache = &self.servers[0].ctx().cache;
        loop {
            // What is not there at this revision comes with a later one.
            let seen = cache.revision();
            if self.admin("GET", path, Value::Null).await.0 == 200 {
                return;
            }
            cache.wait(seen + 1, DEADLINE).await.expect("bootstrap goes on");
        }
    }

    pub async fn admin(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.ask("admin", &[MASTERS], method, path, body).await
    }

    /// Asks the first server in-process.
    pub async fn ask(&self, user: &str, groups: &[&str], method: &str, path: &str, body: Value) -> (u16, Value) {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let local = self.servers[0].local(UserInfo { name: user.into(), groups, ..UserInfo::default() });
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = http::Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        let response = local.oneshot(request.body(body).expect("request")).await.expect("answer");
        let code = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("body");
        (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn connect(&self, server: usize, subject: Option<(&str, &str)>) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.addresses[server]).await.expect("connects");
        let name = ServerName::try_from("127.0.0.1").expect("name");
        TlsConnector::from(Arc::new(self.pki.client(subject))).connect(name, stream).await.expect("handshake")
    }

    async fn send(&self, server: usize, subject: Option<(&str, &str)>, request: http::Request<Body>) -> (u16, Bytes) {
        let stream = self.connect(server, subject).await;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
        tokio::spawn(connection);
        let response = sender.send_request(request).await.expect("answer");
        let code = response.status().as_u16();
        (code, to_bytes(Body::new(response.into_body()), usize::MAX).await.expect("body"))
    }

    pub async fn over_tls(&self, server: usize, method: &str, path: &str, token: Option<&str>) -> (u16, Value) {
        let mut request = http::Request::builder().method(method).uri(path).header("host", "api");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let (code, body) = self.send(server, None, request.body(Body::empty()).expect("request")).await;
        (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// Asks with an administrator's certificate; the answer as text.
    pub async fn admin_over_tls(&self, server: usize, path: &str) -> (u16, String) {
        let request = http::Request::builder().uri(path).header("host", "api").body(Body::empty()).expect("request");
        let (code, body) = self.send(server, Some(("admin", MASTERS)), request).await;
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    pub async fn websocket(&self, server: usize, path: &str, protocol: &str) -> WebSocketStream<TlsStream<TcpStream>> {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let stream = self.connect(server, Some(("admin", MASTERS))).await;
        let url = format!("wss://{}{path}", self.addresses[server]);
        let mut request = url.into_client_request().expect("request");
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().expect("protocol"));
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.expect("upgrade");
        assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
        socket
    }

    /// True if the store holds this key now.
    pub async fn stored(&self, key: &str) -> bool {
        let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
        !self.store.range(request).await.expect("range").kvs.is_empty()
    }

    /// Creates a pod in the default namespace, with the account it needs.
    pub async fn pod(&self, name: &str, node: Option<&str>) {
        self.bootstrapped().await;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let (code, answer) = self.admin("POST", "/api/v1/namespaces/default/serviceaccounts", account).await;
        assert!(matches!(code, 201 | 409), "{answer}");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": node}});
        let (code, answer) = self.admin("POST", "/api/v1/namespaces/default/pods", pod).await;
        assert_eq!(code, 201, "{answer}");
    }

    /// Opens a session with the first server as the agent of `node` that claims to be `claimed`.
    pub async fn session_as(
        &self,
        node: &str,
        claimed: &str,
    ) -> Result<tonic::Streaming<ServerMessage>, tonic::Status> {
        let (out, messages) = mpsc::channel(4);
        let hello = Hello { node_name: claimed.into(), agent_version: "test".into() };
        out.send(AgentMessage { message: Some(agent_message::Message::Hello(hello)) }).await.expect("room");
        let wishes = NodeClient::new(self.as_node(node)).session(ReceiverStream::new(messages)).await?;
        Ok(wishes.into_inner())
    }

    fn as_node(&self, node: &str) -> crate::Local {
        let groups = vec!["system:nodes".to_owned()];
        self.servers[0].local(UserInfo { name: format!("system:node:{node}"), groups, ..UserInfo::default() })
    }

    /// An agent that tells each log its pod's name and echoes the first input of each command.
    pub async fn agent(&'static self, node: &'static str) {
        let (out, messages) = mpsc::channel(4);
        let hello = Hello { node_name: node.into(), agent_version: "test".into() };
        out.send(AgentMessage { message: Some(agent_message::Message::Hello(hello)) }).await.expect("room");
        let mut wishes = NodeClient::new(self.as_node(node))
            .session(ReceiverStream::new(messages))
            .await
            .expect("session")
            .into_inner();
        wishes.message().await.expect("stream").expect("welcome");
        self.group.spawn_until_stopped("agent", async move {
            while let Ok(Some(ServerMessage { message })) = wishes.message().await {
                let Some(server_message::Message::Open(open)) = message else { continue };
                match &open.kind {
                    Some(open::Kind::Logs(logs)) if logs.previous => {
                        let refused = Refused {
                            stream_id: open.stream_id,
                            http_code: 400,
                            reason: "BadRequest".into(),
                            message: "no previous container".into(),
                        };
                        let message = Some(agent_message::Message::Refused(refused));
                        out.send(AgentMessage { message }).await.expect("session");
                    }
                    _ => self.serve(node, open).await,
                }
            }
        });
        while !self.stored(&format!("/pintle/sessions/{node}")).await {
            tokio::task::yield_now().await;
        }
    }

    async fn serve(&self, node: &str, open: Open) {
        let (out, frames) = mpsc::channel(4);
        let frame = |channel: u32, data: Vec<u8>| Frame { stream_id: open.stream_id, channel, data: data.into() };
        out.send(frame(0, Vec::new())).await.expect("room");
        let stream = NodeClient::new(self.as_node(node)).stream(ReceiverStream::new(frames)).await;
        let mut inbound = stream.expect("stream").into_inner();
        match open.kind {
            Some(open::Kind::Exec(_)) => {
                let input = inbound.message().await.expect("stream").expect("input");
                assert_eq!(input.channel, 0);
                out.send(frame(1, input.data.to_vec())).await.expect("client");
            }
            _ => {
                let text = format!("hello from {}\n", open.pod);
                out.send(frame(1, text.into_bytes())).await.expect("client");
            }
        }
        let _ = out.send(frame(3, json!({"status": "Success"}).to_string().into_bytes())).await;
    }
}

async fn start_store(dir: &std::path::Path, group: &Group, pki: &Pki) -> Store {
    let (store, machine) = Store::open(&dir.join("state"), StoreOptions::default()).expect("store opens");
    let free = TcpListener::bind("127.0.0.1:0").await.expect("port").local_addr().expect("address");
    let text = free.to_string();
    let peer = Peer { id: 1, name: "s0".into(), peer_addr: text.clone(), client_addr: text.clone(), api_addr: text };
    let client = pki.client(Some(("system:pintle:server:s0", "system:pintle:servers")));
    let tls = pintle_raft::Tls { server: pki.server("s0").server.into(), client: Arc::new(client).into() };
    let mut options = Options::new(1, 1, dir.join("raft"), free, vec![peer], tls);
    options.heartbeat = Duration::from_millis(20);
    options.election_min = Duration::from_millis(60);
    options.election_max = Duration::from_millis(120);
    let raft = pintle_raft::start(options, machine, group).await.expect("raft starts");
    store.attach(raft, group);
    store
}

fn config(n: usize, addresses: &[SocketAddr], pki: &Pki, key: &str) -> Config {
    let id = |n: usize| u64::try_from(n + 1).expect("small");
    let peer = |(n, address): (usize, &SocketAddr)| PeerServer {
        id: id(n),
        name: format!("s{n}"),
        api_addr: address.to_string(),
    };
    let peers: Vec<PeerServer> = addresses.iter().enumerate().map(peer).collect();
    let client = pki.client(Some((&format!("system:pintle:server:s{n}"), "system:pintle:servers")));
    Config {
        server_id: id(n),
        server_name: format!("s{n}"),
        // Endpoints may not be loopback addresses; nothing connects to these.
        advertise: SocketAddr::from(([10, 0, 0, u8::try_from(n + 1).expect("small")], 6443)),
        service_cidr: "10.96.0.0/16".into(),
        kubernetes_service_ip: "10.96.0.1".parse().expect("address"),
        node_ports: 30000..=32767,
        cluster_domain: "cluster.local".into(),
        ca_pem: "test".into(),
        service_accounts: ServiceAccountConfig {
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            audiences: Vec::new(),
            signing_key_pem: key.into(),
            public_keys_pem: Vec::new(),
        },
        peer_tls: Some(Arc::new(client)),
        peers: Arc::new(move || peers.clone()),
    }
}
