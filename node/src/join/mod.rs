//! How a node gets, keeps and renews its client certificate.
//!
//! Flow: bootstrap token and trusted CA → CertificateSigningRequest → signed certificate → files of [`identity`] →
//! renewal at two thirds of its life with the certificate itself, or by the token again once it has expired. The private
//! key never leaves this machine. I10: a node that has joined needs no server to start, whatever its certificate's age.

pub(crate) mod identity;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use pintle_base::backoff::Backoff;
use pintle_base::error::Chain;
use pintle_base::task::Group;
use pintle_base::{clock, rng};
use pintle_client::Connection;
use pintle_client::remote::tls::{self, CaPin, TlsError};
use pintle_client::remote::{self, Endpoint};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

pub use identity::Identity;

use crate::limits;
use crate::options::{AgentOptions, Trust};

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("this node has no certificate yet: a bootstrap token is needed to join")]
    NoToken,
    #[error("neither a CA file nor a CA hash was given: the servers cannot be told from impostors")]
    NoTrust,
    #[error("read CA file {}", path.display())]
    CaFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "this data directory belongs to a node of another cluster (its CA is {found}, asked for {asked}); use an empty one"
    )]
    ForeignCluster { found: String, asked: String },
    #[error("this data directory belongs to node {found:?}, not to {asked:?}")]
    OtherNode { found: String, asked: String },
    #[error("server address {0:?} is not host:port")]
    Endpoint(String),
    #[error("use the cluster's CA")]
    Tls(#[source] TlsError),
    #[error("start connection to the servers")]
    Connection(#[source] remote::StartError),
    #[error("the cluster at {0} is not the one that the token is for: its certificate authority is another")]
    ForeignServers(String),
    #[error("make key and certificate request")]
    Key(#[source] rcgen::Error),
    #[error("ask a server for a certificate (a foreign cluster's CA or token is refused here)")]
    Request(#[source] kube::Error),
    #[error("the certificate request was denied: {0}")]
    Denied(String),
    #[error("no certificate was signed within {0:?}; is the cluster's controller running?")]
    NotSigned(Duration),
    #[error("the servers did not send the CA certificate along; join with a CA file")]
    CaNotShown,
    #[error("{what} of this node")]
    Files {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the certificate of this node cannot be read: {0}")]
    Certificate(String),
}

impl JoinError {
    /// True if trying again can help: a server may come up, a controller may sign, a cluster that is a second old may not have
    /// written yet, or not shown to every server, that joining tokens may ask for certificates. A token that is none gets 401.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Request(kube::Error::Api(status)) => status.code >= 500 || matches!(status.code, 403 | 429),
            Self::Request(_) | Self::NotSigned(_) => true,
            _ => false,
        }
    }
}

/// The servers' addresses.
///
/// # Errors
/// [`JoinError::Endpoint`] with the first that is none.
pub fn endpoints(servers: &[String]) -> Result<Vec<Endpoint>, JoinError> {
    let parse = |server: &String| {
        let plain = server.strip_prefix("https://").unwrap_or(server).trim_end_matches('/');
        plain.parse().map_err(|_| JoinError::Endpoint(server.clone()))
    };
    servers.iter().map(parse).collect()
}

/// The node's identity: what the data directory holds, or a new one by the bootstrap token.
///
/// # Errors
/// [`JoinError`]; nothing was written then.
pub async fn identity(options: &AgentOptions, group: &Group) -> Result<Identity, JoinError> {
    let asked = user(&options.node_name);
    if let Some(found) = Identity::load(&options.data_dir)? {
        check_cluster(options, &found)?;
        if found.user()? != asked {
            return Err(JoinError::OtherNode { found: found.user()?, asked });
        }
        if found.expires()? <= clock::wall() {
            tracing::warn!("the node's certificate has expired: pods are looked after, and it is to join anew");
        }
        return Ok(found);
    }
    bootstrap(options, group).await
}

fn user(node_name: &str) -> String {
    format!("system:node:{node_name}")
}

fn check_cluster(options: &AgentOptions, found: &Identity) -> Result<(), JoinError> {
    let held = found.ca_hash()?;
    let asked = match &options.trust {
        None => return Ok(()),
        Some(Trust::CaHash(hash)) => hash.strip_prefix("sha256:").unwrap_or(hash).to_lowercase(),
        Some(Trust::CaFile(path)) => {
            let pem = std::fs::read(path).map_err(|source| JoinError::CaFile { path: path.clone(), source })?;
            identity::hash_of_pem(&pem)?
        }
    };
    if asked == held { Ok(()) } else { Err(JoinError::ForeignCluster { found: held, asked }) }
}

async fn bootstrap(options: &AgentOptions, group: &Group) -> Result<Identity, JoinError> {
    let token = options.token.clone().ok_or(JoinError::NoToken)?;
    let trust = options.trust.clone().ok_or(JoinError::NoTrust)?;
    let (config, given) = match trust {
        Trust::CaFile(path) => {
            let pem = std::fs::read(&path).map_err(|source| JoinError::CaFile { path, source })?;
            (tls::client_config(&pem, None).map_err(JoinError::Tls)?, Given::Pem(pem))
        }
        Trust::CaHash(hash) => {
            let pin = CaPin::parse(&hash).map_err(JoinError::Tls)?;
            (tls::pinned(&pin).map_err(JoinError::Tls)?, Given::Pin(pin))
        }
    };
    let mut settings = remote::Options::new(endpoints(&options.servers)?, config);
    settings.server_name.clone_from(&options.server_name);
    settings.bearer = Some(token);
    // The connection with the token ends here: what follows uses the certificate.
    let joining = group.child("join");
    let connection = Connection::start(settings, &joining).map_err(JoinError::Connection)?;
    let signed = certificate(&connection.kube_client(), &options.node_name).await;
    let stopped = joining.stop(Duration::from_secs(5)).await;
    if let Err(error) = stopped {
        tracing::debug!(%error, "joining connection ends late");
    }
    let (certificate, key) = signed.map_err(|error| match &given {
        Given::Pin(pin) if pin.only_foreign() => JoinError::ForeignServers(options.servers.join(", ")),
        _ => error,
    })?;
    let ca = match given {
        Given::Pem(pem) => pem,
        Given::Pin(pin) => identity::to_pem(pin.found().ok_or(JoinError::CaNotShown)?),
    };
    let made = Identity::new(ca, certificate, key);
    made.store(&options.data_dir)?;
    tracing::info!(node = %options.node_name, "joined the cluster");
    Ok(made)
}

enum Given {
    Pem(Vec<u8>),
    Pin(CaPin),
}

/// Has a new key certified: (certificate, key), both PEM.
async fn certificate(client: &kube::Client, node_name: &str) -> Result<(Vec<u8>, String), JoinError> {
    let key = KeyPair::generate().map_err(JoinError::Key)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(JoinError::Key)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(DnType::CommonName, user(node_name));
    params.distinguished_name = name;
    let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(JoinError::Key)?;
    let request = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(format!("node-csr-{}", rng::uuid())), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: SIGNER.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), "client auth".to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let made = api.create(&PostParams::default(), &request).await.map_err(JoinError::Request)?;
    let certificate = wait_signed(&api, made.metadata.name.as_deref().unwrap_or_default()).await?;
    Ok((certificate, key.serialize_pem()))
}

async fn wait_signed(api: &Api<CertificateSigningRequest>, name: &str) -> Result<Vec<u8>, JoinError> {
    let deadline = clock::now() + limits::JOIN_CERTIFICATE;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    while clock::now() < deadline {
        match api.get(name).await {
            Ok(found) => {
                let status = found.status.unwrap_or_default();
                let denied =
                    status.conditions.iter().flatten().find(|one| one.type_ == "Denied" || one.type_ == "Failed");
                if let Some(denied) = denied {
                    return Err(JoinError::Denied(denied.message.clone().unwrap_or_default()));
                }
                if let Some(certificate) = status.certificate.filter(|certificate| !certificate.0.is_empty()) {
                    return Ok(certificate.0);
                }
            }
            // A lost server: the next one has the same request.
            Err(error) => tracing::debug!(error = %Chain(&error), "certificate request not read, will retry"),
        }
        clock::sleep(backoff.next_delay()).await;
    }
    Err(JoinError::NotSigned(limits::JOIN_CERTIFICATE))
}

/// Renews the certificate at two thirds of its life, for ever. Runs until dropped.
pub async fn renew(
    options: Arc<AgentOptions>,
    mut held: Identity,
    connection: Connection,
    client: kube::Client,
    group: Group,
) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
    loop {
        match held.renew_at() {
            Ok(at) => wait_until(at).await,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "certificate cannot be renewed");
                return;
            }
        }
        match renew_once(&options, &held, &client, &group).await {
            Ok((fresh, config)) => {
                connection.set_tls(config).await;
                held = fresh;
                backoff.reset();
                tracing::info!("certificate renewed");
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "certificate not renewed, will retry");
                clock::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// In steps, because the system's clock may be set meanwhile.
async fn wait_until(at: SystemTime) {
    while let Ok(left) = at.duration_since(clock::wall()) {
        clock::sleep(left.min(Duration::from_secs(600)).max(Duration::from_millis(10))).await;
    }
}

async fn renew_once(
    options: &AgentOptions,
    held: &Identity,
    client: &kube::Client,
    group: &Group,
) -> Result<(Identity, Arc<rustls::ClientConfig>), JoinError> {
    if held.expires()? <= clock::wall() {
        let fresh = bootstrap(options, group).await?;
        let config = fresh.client_config()?;
        return Ok((fresh, config));
    }
    let (certificate, key) = certificate(client, &options.node_name).await?;
    let fresh = Identity::new(held.ca().to_vec(), certificate, key);
    let config = fresh.client_config()?;
    fresh.store(&options.data_dir)?;
    Ok((fresh, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_refused_is_final_and_one_without_rights_yet_is_not() {
        let refused = |code: u16| {
            let mut status = kube::core::response::Status::failure("refused", "Because");
            status.code = code;
            JoinError::Request(kube::Error::Api(status.boxed())).is_transient()
        };
        assert_eq!([401, 403, 422, 429, 500, 503].map(refused), [false, true, false, true, true, true]);
    }
}
