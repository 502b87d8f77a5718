//! The cluster's certificate authority and the leaves it signs. Used by `cluster up`, `server` and `kubeconfig`.
//!
//! Keys are ECDSA P-256. Private keys are written with mode 0600 before anything refers to them. The directory holds
//! `ca.crt`, `ca.key` and `sa.key` (the key that signs service account tokens); servers mint their own leaves from it at
//! every start, so no leaf outlives its process by more than its lifetime.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pintle_apiserver::edge::{ClientCertificates, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Leaf certificates live a year; the authority ten.
const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Tolerates clocks that run behind the issuer's.
const BACKDATE: Duration = Duration::from_secs(3600);

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

/// Who a leaf names and where it may be used.
pub struct Subject<'a> {
    pub common_name: &'a str,
    pub organizations: &'a [&'a str],
    /// DNS names and addresses; empty for client certificates.
    pub names: &'a [String],
}

/// The certificate authority of one cluster.
pub struct Authority {
    directory: PathBuf,
    pub certificate: String,
    pub key: String,
    /// PKCS#8 PEM of the key that signs service account tokens.
    pub service_account_key: String,
}

impl Authority {
    /// Loads the authority of `directory`, creating it there on first use.
    pub fn load_or_create(directory: &Path, cluster: &str) -> Result<Self> {
        if !directory.join("ca.crt").exists() {
            Self::create(directory, cluster)?;
        }
        Self::load(directory)
    }

    pub fn load(directory: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        Ok(Self {
            directory: directory.to_owned(),
            certificate: read("ca.crt")?,
            key: read("ca.key")?,
            service_account_key: read("sa.key")?,
        })
    }

    fn create(directory: &Path, cluster: &str) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let key = KeyPair::generate().context("generate the authority's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("pintle-ca-{cluster}"), &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, AUTHORITY_LIFETIME);
        let certificate = params.self_signed(&key).context("sign the authority's certificate")?;
        write_private(&directory.join("ca.key"), &key.serialize_pem())?;
        write_private(&directory.join("sa.key"), &KeyPair::generate()?.serialize_pem())?;
        // Last, so that a directory with a certificate is complete.
        fs::write(directory.join("ca.crt"), certificate.pem())?;
        Ok(())
    }

    pub fn certificate_path(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// Signs a leaf. Server names make it usable as server certificate too.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Leaf> {
        self.issue_for(subject, LEAF_LIFETIME)
    }

    pub fn issue_for(&self, subject: &Subject<'_>, lifetime: Duration) -> Result<Leaf> {
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key).context("read ca.key")?)
            .context("read ca.crt")?;
        if subject.organizations.len() > 1 {
            // The library keeps one value per attribute: a second group would replace the first without a word.
            bail!("a certificate names one group, not {}", subject.organizations.len());
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(subject.common_name, subject.organizations);
        params.subject_alt_names = subject.names.iter().map(|name| san(name)).collect::<Result<_>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.names.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, lifetime);
        let certificate = params.signed_by(&key, &issuer).context("sign a certificate")?;
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Identifies the cluster: the first eight bytes of the authority's SHA-256, never zero.
    pub fn cluster_id(&self) -> Result<u64> {
        let digest = Sha256::digest(self.der()?.as_ref());
        let bytes: [u8; 8] = digest[..8].try_into().context("digest is short")?;
        Ok(u64::from_be_bytes(bytes).max(1))
    }

    /// SHA-256 of the authority's certificate in hex: what a join token pins.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(hex::encode(Sha256::digest(self.der()?.as_ref())))
    }

    pub fn der(&self) -> Result<CertificateDer<'static>> {
        Ok(certificates(&self.certificate)?.remove(0))
    }

    pub fn roots(&self) -> Result<rustls::RootCertStore> {
        roots(&self.certificate)
    }

    /// TLS for listeners between programs of the cluster: presents `leaf`, and wants a client certificate of this
    /// authority.
    pub fn server_config(&self, leaf: &Leaf, alpn: &[&str]) -> Result<Arc<rustls::ServerConfig>> {
        self.listening(self.clients()?, leaf, alpn)
    }

    /// TLS for the API: presents `leaf`; who has a client certificate is judged after the handshake.
    pub fn api_config(&self, leaf: &Leaf, alpn: &[&str]) -> Result<Tls> {
        let clients = ClientCertificates::judged_by(self.clients()?);
        let server = self.listening(clients.for_tls(), leaf, alpn)?;
        Ok(Tls { server, clients: Some(clients) })
    }

    fn clients(&self) -> Result<Arc<dyn ClientCertVerifier>> {
        let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(self.roots()?)).build();
        verifier.context("build the client certificate verifier")
    }

    fn listening(
        &self,
        clients: Arc<dyn ClientCertVerifier>,
        leaf: &Leaf,
        alpn: &[&str],
    ) -> Result<Arc<rustls::ServerConfig>> {
        // The authority goes along, so that a joining worker can compare it with the hash in its token.
        let mut chain = certificates(&leaf.certificate)?;
        chain.push(self.der()?);
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, private_key(&leaf.key)?)
            .context("use the server certificate")?;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// TLS for dialling servers of this cluster as `leaf`.
    pub fn client_config(&self, leaf: &Leaf, alpn: &[&str]) -> Result<Arc<rustls::ClientConfig>> {
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(certificates(&leaf.certificate)?, private_key(&leaf.key)?)
            .context("use the client certificate")?;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }
}

/// A certificate signed by its own key, for a server that nobody vouches for.
pub fn self_signed(organization: &str, names: &[String], lifetime: Duration) -> Result<Leaf> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.subject_alt_names = names.iter().map(|name| san(name)).collect::<Result<_>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    set_validity(&mut params, lifetime);
    let certificate = params.self_signed(&key).context("sign a certificate with its own key")?;
    Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem() })
}

pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let list: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().context("parse certificate PEM")?;
    if list.is_empty() {
        bail!("no certificate in PEM");
    }
    Ok(list)
}

/// The organisations in the subject of a certificate: groups, for Kubernetes.
pub fn organizations(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    parsed.subject().iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect()
}

/// The common name of the subject, if it has one.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).context("parse private key PEM")
}

pub fn roots(pem: &str) -> Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).context("use the authority's certificate")?;
    }
    Ok(roots)
}

fn name(common_name: &str, organizations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn san(name: &str) -> Result<SanType> {
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into().with_context(|| format!("{name:?} is no DNS name"))?),
    })
}

fn set_validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = pintle_base::clock::wall();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    let mut serial = [0u8; 16];
    pintle_base::rng::fill(&mut serial);
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

/// Makes a directory that only its owner may enter, or closes one that exists: what is in it are keys and Secrets.
pub fn private_directory(path: &Path) -> Result<()> {
    let make = || -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let mut permissions = fs::metadata(path)?.permissions();
        if permissions.mode() & 0o077 != 0 {
            permissions.set_mode(0o700);
            fs::set_permissions(path, permissions)?;
        }
        Ok(())
    };
    make().with_context(|| format!("make {} a directory of its owner alone", path.display()))
}

/// Writes `content` with mode 0600 from the start and makes it durable.
pub fn write_private(path: &Path, content: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_directory_is_closed_to_others_also_if_it_was_open() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("a/b");
        fs::create_dir_all(&path).expect("create");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("open");
        for path in [path, directory.path().join("c")] {
            private_directory(&path).expect("private");
            assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn organizations_are_read_from_the_subject() {
        let directory = tempfile::tempdir().expect("tempdir");
        let authority = Authority::load_or_create(directory.path(), "test").expect("create");
        let leaf = authority
            .issue(&Subject { common_name: "x", organizations: &["system:nodes"], names: &[] })
            .expect("issue");
        let certificate = certificates(&leaf.certificate).expect("PEM").remove(0);
        assert_eq!(organizations(&certificate), ["system:nodes"]);
        let two = Subject { common_name: "x", organizations: &["a", "b"], names: &[] };
        assert!(authority.issue(&two).is_err(), "a group is never dropped in silence");
        assert!(organizations(&CertificateDer::from(vec![0x30, 3, 2])).is_empty());
    }

    #[test]
    fn an_authority_survives_reloading_and_signs_leaves_rustls_accepts() {
        let directory = tempfile::tempdir().expect("tempdir");
        let first = Authority::load_or_create(directory.path(), "test").expect("create");
        let again = Authority::load_or_create(directory.path(), "other").expect("load");
        assert_eq!(first.fingerprint().expect("hash"), again.fingerprint().expect("hash"));
        assert_eq!(first.cluster_id().expect("id"), again.cluster_id().expect("id"));

        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let leaf = again.issue(&Subject { common_name: "s1", organizations: &["o"], names: &names }).expect("issue");
        let _ = rustls::crypto::ring::default_provider().install_default();
        again.server_config(&leaf, &["h2"]).expect("server config");
        again.client_config(&leaf, &["h2"]).expect("client config");
    }

    #[test]
    fn keys_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("tempdir");
        Authority::load_or_create(directory.path(), "test").expect("create");
        for name in ["ca.key", "sa.key"] {
            let mode = fs::metadata(directory.path().join(name)).expect("exists").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
}
