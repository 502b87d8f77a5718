//! `pintle server`: one master. Reads as the wiring in data-flow order (D1): listeners, store, raft, API server,
//! controllers and scheduler, wait for the end, then the reverse.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pintle_api::tokens::jwt::Keys;
use pintle_apiserver::authz::SERVERS;
use pintle_apiserver::types::{MASTERS, PeerServer, ServiceAccountConfig};
use pintle_apiserver::{ApiServer, UserInfo};
use pintle_base::task::Group;
use pintle_client::{Clients, LeaderGate, Leadership, Reflectors};
use pintle_controllers::csr;
use pintle_controllers::node_ipam::plan::Range;
use pintle_raft as raft;
use pintle_store::{AutoCompaction, Store, StoreOptions, etcd};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::member;
use crate::pki::{self, Authority, Leaf, Subject};

/// Prefix length of each node's block of the pod network.
const NODE_BLOCK: u8 = 24;

#[derive(clap::Args)]
pub struct ServerArgs {
    /// Configuration file (YAML); `pintle cluster up` writes examples
    #[arg(long, env = "PINTLE_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Where data is kept; overrides the file
    #[arg(long, env = "PINTLE_DATA_DIR", value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// Address the API is served on; overrides the file
    #[arg(long, env = "PINTLE_LISTEN_API", value_name = "ADDRESS")]
    listen_api: Option<SocketAddr>,
    /// Address etcd clients connect to; overrides the file
    #[arg(long, env = "PINTLE_LISTEN_CLIENT", value_name = "ADDRESS")]
    listen_client: Option<SocketAddr>,
    /// Address the other servers connect to; overrides the file
    #[arg(long, env = "PINTLE_LISTEN_PEER", value_name = "ADDRESS")]
    listen_peer: Option<SocketAddr>,
    /// Milliseconds between heartbeats; overrides the file
    #[arg(long, env = "PINTLE_HEARTBEAT_MS")]
    heartbeat_ms: Option<u64>,
    /// Shortest election timeout in milliseconds; overrides the file
    #[arg(long, env = "PINTLE_ELECTION_MIN_MS")]
    election_min_ms: Option<u64>,
    /// Longest election timeout in milliseconds; overrides the file
    #[arg(long, env = "PINTLE_ELECTION_MAX_MS")]
    election_max_ms: Option<u64>,
}

/// A server's configuration file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerConfig {
    /// This server; must be one of `members`.
    pub name: String,
    pub data_dir: PathBuf,
    /// Holds `ca.crt`, `ca.key` and `sa.key`, the same on all servers.
    pub pki_dir: PathBuf,
    pub listen_api: SocketAddr,
    pub listen_client: SocketAddr,
    pub listen_peer: SocketAddr,
    /// More names and addresses the API is reached by, for its certificate.
    pub tls_names: Vec<String>,
    /// The founding servers, the same list on all of them.
    pub members: Vec<MemberConfig>,
    pub service_cidr: String,
    pub cluster_cidr: String,
    pub cluster_domain: String,
    /// Seconds without a sign of life after which a node is lost.
    pub node_grace_seconds: u64,
    /// Milliseconds between heartbeats, and the range of the election timeout. See docs/operating.md.
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    pub election_max_ms: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MemberConfig {
    pub name: String,
    /// Never reused for another member.
    pub id: u64,
    /// `host:port` each, as the others reach it.
    pub api: String,
    pub client: String,
    pub peer: String,
}

impl Default for ServerConfig {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            name: String::new(),
            data_dir: "/var/lib/pintle".into(),
            pki_dir: "/etc/pintle/pki".into(),
            listen_api: any(6443),
            listen_client: any(2379),
            listen_peer: any(2380),
            tls_names: Vec::new(),
            members: Vec::new(),
            service_cidr: "10.96.0.0/16".into(),
            cluster_cidr: "10.244.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
            node_grace_seconds: 8,
            heartbeat_ms: 50,
            election_min_ms: 160,
            election_max_ms: 320,
        }
    }
}

impl ServerConfig {
    fn load(args: &ServerArgs) -> Result<Self> {
        let text = std::fs::read_to_string(&args.config)
            .with_context(|| format!("read configuration {}", args.config.display()))?;
        let mut config: Self =
            serde_saphyr::from_str(&text).with_context(|| format!("parse configuration {}", args.config.display()))?;
        config.data_dir = args.data_dir.clone().unwrap_or(config.data_dir);
        config.listen_api = args.listen_api.unwrap_or(config.listen_api);
        config.listen_client = args.listen_client.unwrap_or(config.listen_client);
        config.listen_peer = args.listen_peer.unwrap_or(config.listen_peer);
        config.heartbeat_ms = args.heartbeat_ms.unwrap_or(config.heartbeat_ms);
        config.election_min_ms = args.election_min_ms.unwrap_or(config.election_min_ms);
        config.election_max_ms = args.election_max_ms.unwrap_or(config.election_max_ms);
        Ok(config)
    }

    fn myself(&self) -> Result<&MemberConfig> {
        let mut ids: Vec<u64> = self.members.iter().map(|member| member.id).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() != self.members.len() || ids.first() == Some(&0) {
            bail!("configuration: members need ids that are not zero and differ");
        }
        let found = self.members.iter().find(|member| member.name == self.name);
        found.with_context(|| format!("configuration: name {:?} is not one of the members", self.name))
    }
}

/// What the server shows and dials with.
struct Identity {
    authority: Authority,
    leaf: Leaf,
}

pub async fn run(args: ServerArgs) -> Result<()> {
    let config = ServerConfig::load(&args)?;
    let me = config.myself()?.clone();
    let _in_use = member::claim(&config.data_dir)?;
    member::allow_files()?;
    let identity = identify(&config, &me)?;
    let (api_listener, client_listener) =
        (member::listen(config.listen_api).await?, member::listen(config.listen_client).await?);

    let server = Group::new("server");
    crate::signals::stop_on_signal(&server)?;
    let consensus = Group::new("consensus");
    let (store, handle) = start_store(&config, &me, &identity, &consensus).await?;
    let front = start_etcd_front(&store, &identity, client_listener, &server)?;
    let api = start_api(&config, &me, &identity, &store, &handle, api_listener, &server)?;
    start_actors(&config, &identity, &api, &store, &server)?;
    tracing::info!(
        name = me.name,
        api = %config.listen_api,
        client = %config.listen_client,
        peer = %config.listen_peer,
        version = env!("CARGO_PKG_VERSION"),
        "server runs"
    );

    member::run_to_end(&store, &handle, &server, &consensus, vec![front]).await
}

fn identify(config: &ServerConfig, me: &MemberConfig) -> Result<Identity> {
    let authority = Authority::load(&config.pki_dir).context("load the cluster's authority (pki-dir)")?;
    let mut names: Vec<String> =
        ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_owned)
            .into();
    names.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    names.push(service_address(config, 1)?.to_string());
    for address in [&me.api, &me.client, &me.peer] {
        let host = address.rsplit_once(':').with_context(|| format!("{address:?} is not host:port"))?.0;
        names.push(host.trim_start_matches('[').trim_end_matches(']').to_owned());
    }
    names.extend(config.tls_names.iter().cloned());
    names.sort();
    names.dedup();
    let common_name = format!("{}{}", raft::CERTIFICATE_NAME_PREFIX, me.name);
    let leaf = authority.issue(&Subject { common_name: &common_name, organizations: &[SERVERS], names: &names })?;
    Ok(Identity { authority, leaf })
}

/// Address number `offset` of the service network: 1 is the API's, 10 cluster DNS.
fn service_address(config: &ServerConfig, offset: u32) -> Result<IpAddr> {
    let parse = || Some(u32::from(config.service_cidr.split_once('/')?.0.parse::<Ipv4Addr>().ok()?));
    let base = parse().with_context(|| format!("service-cidr {:?} is no IPv4 network", config.service_cidr))?;
    Ok(IpAddr::V4(Ipv4Addr::from(base.saturating_add(offset))))
}

async fn start_store(
    config: &ServerConfig,
    me: &MemberConfig,
    identity: &Identity,
    group: &Group,
) -> Result<(Store, raft::Handle)> {
    let cluster_id = identity.authority.cluster_id()?;
    let options = StoreOptions {
        cluster_id,
        member_id: me.id,
        auto_compaction: Some(AutoCompaction::Periodic(Duration::from_secs(300))),
        ..StoreOptions::default()
    };
    let (store, machine) = member::open(&config.data_dir.join("state"), options)?;
    let peers = config
        .members
        .iter()
        .map(|member| raft::Peer {
            id: member.id,
            name: member.name.clone(),
            peer_addr: member.peer.clone(),
            client_addr: member.client.clone(),
            api_addr: member.api.clone(),
        })
        .collect();
    let tls = raft::Tls {
        server: identity.authority.server_config(&identity.leaf, &["h2"])?.into(),
        client: identity.authority.client_config(&identity.leaf, &["h2"])?.into(),
    };
    let mut options =
        raft::Options::new(me.id, cluster_id, config.data_dir.join("raft"), config.listen_peer, peers, tls);
    options.heartbeat = Duration::from_millis(config.heartbeat_ms);
    options.election_min = Duration::from_millis(config.election_min_ms);
    options.election_max = Duration::from_millis(config.election_max_ms);
    let handle = member::start(&store, machine, options, group).await?;
    Ok((store, handle))
}

/// Whoever reads the store reads every Secret, and whoever writes to it rules: only the cluster's administrators and its
/// servers do. Nodes have certificates of the same authority, and may not.
fn may_use_the_store(certificates: &[CertificateDer<'_>]) -> etcd::Admission {
    let groups = certificates.first().map(pki::organizations).unwrap_or_default();
    match groups.iter().any(|group| group == MASTERS || group == SERVERS) {
        true => etcd::Admission::As(None),
        false => etcd::Admission::Refused,
    }
}

fn start_etcd_front(
    store: &Store,
    identity: &Identity,
    listener: TcpListener,
    group: &Group,
) -> Result<tokio::task::JoinHandle<()>> {
    let tls = etcd::Tls {
        config: identity.authority.server_config(&identity.leaf, &["h2", "http/1.1"])?.into(),
        admit: Arc::new(may_use_the_store),
    };
    Ok(member::serve_clients(store, listener, Some(tls), group))
}

fn start_api(
    config: &ServerConfig,
    me: &MemberConfig,
    identity: &Identity,
    store: &Store,
    handle: &raft::Handle,
    listener: TcpListener,
    group: &Group,
) -> Result<ApiServer> {
    let key = rcgen::KeyPair::from_pem(&identity.authority.service_account_key).context("read sa.key")?;
    let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
    let status = handle.clone();
    let peers = move || {
        let status = status.status();
        let peer = |peer: &raft::PeerStatus| PeerServer {
            id: peer.peer.id,
            name: peer.peer.name.clone(),
            api_addr: peer.peer.api_addr.clone(),
        };
        status.peers.iter().map(peer).collect()
    };
    let settings = pintle_apiserver::Config {
        server_id: me.id,
        server_name: me.name.clone(),
        advertise: me.api.parse().with_context(|| format!("api address {:?} is not address:port", me.api))?,
        service_cidr: config.service_cidr.clone(),
        kubernetes_service_ip: service_address(config, 1)?,
        node_ports: 30000..=32767,
        cluster_domain: config.cluster_domain.clone(),
        ca_pem: identity.authority.certificate.clone(),
        service_accounts: ServiceAccountConfig {
            audiences: vec![issuer.clone()],
            issuer,
            signing_key_pem: identity.authority.service_account_key.clone(),
            public_keys_pem: vec![key.public_key_pem()],
        },
        peer_tls: Some(identity.authority.client_config(&identity.leaf, &["http/1.1"])?),
        peers: Arc::new(peers),
    };
    let api = ApiServer::new(settings, store.clone()).context("set up the API server")?;
    api.start(group);
    let tls = identity.authority.api_config(&identity.leaf, &["h2", "http/1.1"])?;
    let (serving, stopper) = (api.clone(), group.clone());
    group.spawn("api", async move {
        if let Err(error) = serving.serve(listener, tls).await {
            tracing::error!(%error, "the API port is lost");
            stopper.token().cancel();
        }
    });
    Ok(api)
}

/// Controllers and scheduler: warm on every server, acting where Raft leads (D10).
fn start_actors(
    config: &ServerConfig,
    identity: &Identity,
    api: &ApiServer,
    store: &Store,
    group: &Group,
) -> Result<()> {
    let gate = LeaderGate::new(leadership(store, group));
    let user = |name: &str| UserInfo {
        name: name.to_owned(),
        groups: vec!["system:masters".to_owned(), "system:authenticated".to_owned()],
        ..UserInfo::default()
    };
    let controllers = Clients::in_process(api.local(user("system:kube-controller-manager")));
    let scheduler = Clients::in_process(api.local(user("system:kube-scheduler")));
    let reflectors = Reflectors::new(controllers.unfenced(), group);
    let options = pintle_controllers::Options {
        server: config.name.clone(),
        authority: csr::Authority {
            certificate: identity.authority.certificate.clone(),
            key: identity.authority.key.clone(),
        },
        token_keys: Keys::from_pem(&identity.authority.service_account_key, &[]).context("read sa.key")?,
        pod_network: Range::new(&config.cluster_cidr, NODE_BLOCK).context("cluster-cidr")?,
        node_grace: Duration::from_secs(config.node_grace_seconds),
        cluster_dns: service_address(config, 10)?,
    };
    pintle_controllers::run(controllers, reflectors.clone(), gate.clone(), options, group);
    let options = pintle_scheduler::Options { server: config.name.clone(), ..pintle_scheduler::Options::default() };
    pintle_scheduler::run(scheduler, reflectors, gate, &options, group);
    Ok(())
}

/// The store's leadership in the client's terms.
fn leadership(store: &Store, group: &Group) -> watch::Receiver<Leadership> {
    let mut source = store.leadership();
    let convert = |state: &pintle_store::Leadership| Leadership { leading: state.leading, term: state.term };
    let sender = watch::Sender::new(convert(&source.borrow()));
    let receiver = sender.subscribe();
    group.spawn_until_stopped("leadership", async move {
        while source.changed().await.is_ok() {
            let state = convert(&source.borrow_and_update());
            sender.send_if_modified(|old| std::mem::replace(old, state) != state);
        }
    });
    receiver
}
