//! Types that every part of the API server shares: who asks, what is asked, and the hooks between the two halves of the crate.
//!
//! Sits between the edge, which builds [`UserInfo`] and [`RequestInfo`], and the registry, which acts on them.
//! The registry calls authentication, authorization, admission, virtual kinds and node streams only through [`Hooks`],
//! so that each side can be tested alone. Without hooks nobody but `system:masters` is let in (I13).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use pintle_api::kinds::Kind;
use pintle_api::status::Status;
use pintle_store::Store;
use serde_json::Value;

use crate::cache::Cache;
use crate::registry::Registry;

/// The body of every request and answer on the server side.
pub type Body = axum::body::Body;
pub type Request = http::Request<Body>;
pub type Response = http::Response<Body>;

pub const MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";

/// An identity that has been proven, or `system:anonymous`. In a request's extensions after authentication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub fn anonymous() -> Self {
        Self { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    /// The identity this server uses for its own writes (allocators, reconcilers).
    pub fn internal() -> Self {
        Self { name: "system:apiserver".into(), groups: vec![MASTERS.into(), AUTHENTICATED.into()], ..Self::default() }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Client certificates of the connection. In a request's extensions.
#[derive(Clone, Debug)]
pub struct PeerCerts {
    /// DER, leaf first; the client holds the leaf's key.
    pub chain: Arc<[rustls_pki_types::CertificateDer<'static>]>,
    /// Whether the chain leads to the cluster's authority. Otherwise it identifies nobody.
    pub trusted: bool,
}

/// Address of the connection's other end. In a request's extensions; absent for in-process calls.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddr(pub SocketAddr);

/// What a request asks for, as authorization and admission see it. In a request's extensions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Kubernetes verb (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`); for
    /// non-resource paths the lower-case HTTP method.
    pub verb: String,
    pub is_resource: bool,
    /// Decoded, normalised path.
    pub path: String,
    /// `api` or `apis` for resource requests.
    pub api_prefix: String,
    pub api_group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Path segments after the subresource (proxy paths).
    pub parts: Vec<String>,
    pub field_selector: String,
    pub label_selector: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// Not allowed; `reason` is appended to the Forbidden message.
    Deny {
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// A key besides the object's own that is written in the same store transaction, so that both happen or neither.
#[derive(Clone, Debug)]
pub enum Extra {
    /// The key must not exist; it is created with the object. If somebody else holds it admission is asked again.
    Claim { key: Bytes, value: Bytes },
    /// The key is deleted with the write.
    Release { key: Bytes },
    /// The key must still be as admission saw it, at this revision; if it is not, admission is asked again.
    Unchanged { key: Bytes, revision: i64 },
}

/// One write under admission. `mutate` may change `object` and add `extra`; `validate` may only refuse.
pub struct Review<'a> {
    pub operation: Operation,
    pub kind: &'static Kind,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a UserInfo,
    /// The new object; `Value::Null` for deletes.
    pub object: Value,
    /// The stored object for updates and deletes.
    pub old: Option<Arc<Value>>,
    pub dry_run: bool,
    pub extra: Vec<Extra>,
    /// Lines for `Warning: 299` headers.
    pub warnings: Vec<String>,
    /// How often a claim of this write has failed before.
    pub attempt: u32,
}

pub trait Authenticate: Send + Sync {
    /// `None`: no credential was shown (the edge makes it anonymous). `Err`: a credential was shown and is bad (401).
    fn authenticate<'a>(
        &'a self,
        parts: &'a http::request::Parts,
        peer: Option<&'a PeerCerts>,
    ) -> BoxFuture<'a, Result<Option<UserInfo>, Status>>;
}

pub trait Authorize: Send + Sync {
    fn authorize(&self, user: &UserInfo, info: &RequestInfo) -> Decision;
}

pub trait Admit: Send + Sync {
    fn mutate<'a>(&'a self, review: &'a mut Review<'_>) -> BoxFuture<'a, Result<(), Status>>;
    fn validate<'a>(&'a self, review: &'a Review<'_>) -> BoxFuture<'a, Result<(), Status>>;
    /// Keys to delete together with an object that goes away for good (its claims).
    fn released(&self, _kind: &'static Kind, _object: &Value) -> Vec<Extra> {
        Vec::new()
    }
}

/// A call for a kind or subresource that is not a stored object of its own.
#[derive(Clone)]
pub struct VirtualCall {
    pub kind: &'static Kind,
    pub user: UserInfo,
    pub info: RequestInfo,
    pub dry_run: bool,
    /// Decoded body; `Value::Null` if there was none.
    pub body: Value,
    pub fence: Option<u64>,
}

/// SubjectAccessReview and its kin, TokenReview, TokenRequest, Binding, Eviction: a POST answered with an object.
pub trait Virtual: Send + Sync {
    fn create(&self, call: VirtualCall) -> BoxFuture<'_, Result<(http::StatusCode, Value), Status>>;
}

/// Streams to nodes (log, exec, attach, portforward, proxy) and the agents' gRPC service.
pub trait Streams: Send + Sync {
    /// `request` extensions hold [`UserInfo`] and [`RequestInfo`]; the pod exists is not yet checked.
    fn connect(&self, kind: &'static Kind, request: Request) -> BoxFuture<'_, Response>;
    /// Paths that no resource answers and that are not the edge's own: `/pintle.node.v1.Node/*`, `/openid/v1/jwks`, ...
    /// `None` gives 404.
    fn other(&self, request: Request) -> BoxFuture<'_, Option<Response>>;
    /// Starts what runs beside requests.
    fn start(&self, _group: &pintle_base::task::Group) {}
}

#[derive(Clone)]
pub struct Hooks {
    pub authn: Arc<dyn Authenticate>,
    pub authz: Arc<dyn Authorize>,
    pub admission: Arc<dyn Admit>,
    pub virtuals: Arc<dyn Virtual>,
    pub streams: Arc<dyn Streams>,
}

/// Another server of the cluster, for requests that must go to the server that holds a node's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerServer {
    pub id: u64,
    pub name: String,
    /// host:port of its API port.
    pub api_addr: String,
}

/// Everything fixed at start. Built by `cmd`.
#[derive(Clone)]
pub struct Config {
    pub server_id: u64,
    pub server_name: String,
    /// Address written into the endpoints of the `kubernetes` service.
    pub advertise: SocketAddr,
    /// e.g. "10.96.0.0/16".
    pub service_cidr: String,
    /// First address of the service range, of the `kubernetes` service.
    pub kubernetes_service_ip: IpAddr,
    pub node_ports: std::ops::RangeInclusive<u16>,
    pub cluster_domain: String,
    /// Cluster CA certificate(s), PEM: published to pods, and the trust anchor of client certificates.
    pub ca_pem: String,
    pub service_accounts: ServiceAccountConfig,
    /// Client side of mutual TLS towards other servers (CN=system:pintle:server:NAME).
    pub peer_tls: Option<Arc<rustls::ClientConfig>>,
    /// The servers known to Raft now, this one included.
    pub peers: Arc<dyn Fn() -> Vec<PeerServer> + Send + Sync>,
}

/// Keys of service-account tokens. Never logged.
#[derive(Clone)]
pub struct ServiceAccountConfig {
    pub issuer: String,
    pub audiences: Vec<String>,
    /// PKCS#8 PEM, ECDSA P-256 (ES256).
    pub signing_key_pem: String,
    /// SubjectPublicKeyInfo PEMs that are accepted, current first.
    pub public_keys_pem: Vec<String>,
}

/// The state of one API server. Shared by all requests.
pub struct Ctx {
    pub config: Config,
    pub store: Store,
    pub cache: Arc<Cache>,
    pub registry: Registry,
}

impl Ctx {
    pub fn hooks(&self) -> &Hooks {
        self.registry.hooks()
    }
}
