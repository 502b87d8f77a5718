//! One API server over a single-member store, for a look at it with curl or kubectl:
//! `cargo run --release -p pintle-apiserver --example solo -- DIR`, then `kubectl --kubeconfig DIR/kubeconfig get ns`.
//! Everything it writes is below DIR. It has no controllers, scheduler or agents.

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pintle_apiserver::ApiServer;
use pintle_apiserver::types::{Config, ServiceAccountConfig};
use pintle_base::task::Group;
use pintle_raft::{Options, Peer, Tls};
use pintle_store::{Store, StoreOptions};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;

type Anything = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Anything> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("usage: solo DIR")?);
    std::fs::create_dir_all(&dir)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let pki = Pki::new(&dir, address)?;
    let group = Group::new("solo");
    let store = store(&dir, &pki, &group).await?;
    let server = ApiServer::new(config(address, &pki), store)?;
    server.start(&group);
    println!("{address}");
    let serving = server.serve(listener, Arc::new(pki.server()?));
    tokio::select! {
        served = serving => served?,
        _ = tokio::signal::ctrl_c() => (),
    }
    group.stop(Duration::from_secs(5)).await?;
    Ok(())
}

struct Pki {
    ca: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new(dir: &Path, address: SocketAddr) -> Result<Self, Anything> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let ca = params.self_signed(&key)?;
        let pki = Self { ca, issuer: Issuer::new(params, key) };
        let (cert, key) = pki.leaf("admin", "system:masters")?;
        let encode = |text: String| BASE64_STANDARD.encode(text);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: solo\ncontexts:\n- name: solo\n  context: {{cluster: solo, user: admin}}\n\
             clusters:\n- name: solo\n  cluster:\n    server: https://{address}\n    certificate-authority-data: {}\n\
             users:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            encode(pki.ca.pem()),
            encode(cert.pem()),
            encode(key.serialize_pem()),
        );
        for (file, text) in [
            ("kubeconfig", text),
            ("ca.pem", pki.ca.pem()),
            ("admin.pem", cert.pem()),
            ("admin.key", key.serialize_pem()),
        ] {
            std::fs::write(dir.join(file), text)?;
        }
        Ok(pki)
    }

    fn leaf(&self, name: &str, group: &str) -> Result<(rcgen::Certificate, KeyPair), Anything> {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }

    fn roots(&self) -> Result<rustls::RootCertStore, Anything> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone())?;
        Ok(roots)
    }

    fn server(&self) -> Result<rustls::ServerConfig, Anything> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(self.roots()?);
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let (cert, key) = self.leaf("system:pintle:server:s1", "system:pintle:servers")?;
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
            .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;

        Ok(config)
    }

    fn client(&self) -> Result<rustls::ClientConfig, Anything> {
        let provider = Arc::new(ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(builder.with_root_certificates(self.roots()?).with_no_client_auth())
    }
}

async fn store(dir: &Path, pki: &Pki, group: &Group) -> Result<Store, Anything> {
    let (store, machine) = Store::open(&dir.join("state"), StoreOptions::default())?;
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let at = listen.to_string();
    let peer = Peer { id: 1, name: "s1".into(), peer_addr: at.clone(), client_addr: at.clone(), api_addr: at };
    let tls = Tls { server: Arc::new(pki.server()?), client: Arc::new(pki.client()?) };
    let options = Options::new(1, 1, dir.join("raft"), listen, vec![peer], tls);
    store.attach(pintle_raft::start(options, machine, group).await?, group);
    Ok(store)
}

fn config(address: SocketAddr, pki: &Pki) -> Config {
    let key = KeyPair::generate().map(|key| key.serialize_pem()).unwrap_or_default();
    Config {
        server_id: 1,
        server_name: "s1".into(),
        advertise: address,
        service_cidr: "10.96.0.0/16".into(),
        kubernetes_service_ip: std::net::Ipv4Addr::new(10, 96, 0, 1).into(),
        node_ports: 30000..=32767,
        cluster_domain: "cluster.local".into(),
        ca_pem: pki.ca.pem(),
        service_accounts: ServiceAccountConfig {
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            audiences: Vec::new(),
            signing_key_pem: key,
            public_keys_pem: Vec::new(),
        },
        peer_tls: None,
        peers: Arc::new(Vec::new),
    }
}
