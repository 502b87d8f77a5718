//! A node's certificate, key and CA, in memory and on disk. Files are readable by their owner only and are replaced as
//! one, by the rename of a directory entry each, key first: a certificate without its key is never seen.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use pintle_client::remote::tls;
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;

use super::JoinError;

const CA: &str = "ca.crt";
/// Certificate and key together: one rename replaces both.
const PAIR: &str = "client.pem";

/// See the module's text.
#[derive(Clone)]
pub struct Identity {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive() // the key stays unprinted
    }
}

fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("pki")
}

/// Writes DER as a PEM certificate.
pub fn to_pem(der: &[u8]) -> Vec<u8> {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem.into_bytes()
}

fn first_der(pem: &[u8]) -> Result<Vec<u8>, JoinError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|error| JoinError::Certificate(error.to_string()))?;
    Ok(pem.contents)
}

/// Lower-case hexadecimal SHA-256 of the first certificate in `pem`.
pub fn hash_of_pem(pem: &[u8]) -> Result<String, JoinError> {
    Ok(hex::encode(Sha256::digest(first_der(pem)?)))
}

impl Identity {
    pub fn new(ca: Vec<u8>, certificate: Vec<u8>, key: String) -> Self {
        Self { ca, certificate, key }
    }

    pub fn ca(&self) -> &[u8] {
        &self.ca
    }

    pub fn ca_hash(&self) -> Result<String, JoinError> {
        hash_of_pem(&self.ca)
    }

    /// Reads what [`Identity::store`] wrote; `None` if the node never joined.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, JoinError> {
        let read = |name: &str| match fs::read(dir(data_dir).join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(JoinError::Files { what: "read certificate files", source }),
            Ok(bytes) => Ok(Some(bytes)),
        };
        let (Some(ca), Some(pair)) = (read(CA)?, read(PAIR)?) else { return Ok(None) };
        let text = String::from_utf8_lossy(&pair);
        let broken = || JoinError::Certificate(format!("{PAIR} does not hold a certificate and a key"));
        let at = text.find("-----BEGIN PRIVATE KEY-----").ok_or_else(broken)?;
        let (certificate, key) = text.split_at(at);
        first_der(certificate.as_bytes())?;
        Ok(Some(Self::new(ca, certificate.as_bytes().to_vec(), key.to_owned())))
    }

    /// Writes the files, owner-readable only.
    pub fn store(&self, data_dir: &Path) -> Result<(), JoinError> {
        let write = || {
            let dir = dir(data_dir);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            replace(&dir.join(CA), &self.ca)?;
            let mut pair = self.certificate.clone();
            if !pair.ends_with(b"\n") {
                pair.push(b'\n');
            }
            pair.extend_from_slice(self.key.as_bytes());
            replace(&dir.join(PAIR), &pair)?;
            fs::File::open(&dir)?.sync_all()
        };
        write().map_err(|source| JoinError::Files { what: "write certificate files", source })
    }

    /// TLS settings that show this identity.
    pub fn client_config(&self) -> Result<Arc<rustls::ClientConfig>, JoinError> {
        tls::client_config(&self.ca, Some((&self.certificate, self.key.as_bytes()))).map_err(JoinError::Tls)
    }

    /// (subject's common name, not before, not after)
    fn read(&self) -> Result<(String, SystemTime, SystemTime), JoinError> {
        let der = first_der(&self.certificate)?;
        let broken = |text: String| JoinError::Certificate(text);
        let (_, certificate) =
            x509_parser::certificate::X509Certificate::from_der(&der).map_err(|error| broken(error.to_string()))?;
        let name =
            certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok().map(str::to_owned));
        let time = |time: x509_parser::time::ASN1Time| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        let validity = certificate.validity();
        Ok((
            name.ok_or_else(|| broken("no common name".to_owned()))?,
            time(validity.not_before),
            time(validity.not_after),
        ))
    }

    pub fn user(&self) -> Result<String, JoinError> {
        self.read().map(|(name, ..)| name)
    }

    pub fn expires(&self) -> Result<SystemTime, JoinError> {
        self.read().map(|(_, _, end)| end)
    }

    /// Two thirds of the certificate's life.
    pub fn renew_at(&self) -> Result<SystemTime, JoinError> {
        let (_, begin, end) = self.read()?;
        let life = end.duration_since(begin).unwrap_or_default();
        Ok(begin + life.mul_f64(2.0 / 3.0))
    }
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(partial, path)
}

/// Identities for tests.
#[cfg(test)]
pub mod testing {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    /// An identity of this user, self-signed, that holds from 2000 until the given year.
    pub fn made(user: &str, until: i32) -> Identity {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.distinguished_name.push(DnType::CommonName, user);
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let certificate = params.self_signed(&key).expect("certificate");
        Identity::new(certificate.pem().into_bytes(), certificate.pem().into_bytes(), key.serialize_pem())
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;
    use crate::options::RuntimeChoice;
    use std::os::unix::fs::PermissionsExt;

    fn made(name: &str) -> Identity {
        testing::made(name, 4096)
    }

    #[tokio::test]
    async fn an_expired_certificate_does_not_keep_the_agent_from_starting() {
        let dir = tempfile::tempdir().expect("directory");
        testing::made("system:node:w1", 2001).store(dir.path()).expect("stored");
        let address = "10.0.0.1".parse().expect("address");
        let options = AgentOptions::new("w1", dir.path().to_path_buf(), address, RuntimeChoice::Simulated);
        let group = Group::new("join-test");
        let found = super::super::identity(&options, &group).await.expect("no server and no token is needed");
        assert!(found.expires().expect("time") < clock::wall() && found.client_config().is_ok());
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<String>, _>(io::Error::other("no server"))
        });
        let renewed = renew_once(&options, &found, &kube::Client::new(service, "default"), &group).await;
        assert!(matches!(renewed, Err(JoinError::NoToken)), "it joins by its token again");
    }

    #[test]
    fn what_is_stored_is_loaded_and_closed_to_others() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(Identity::load(dir.path()).expect("readable").is_none());
        made("system:node:w1").store(dir.path()).expect("stored");
        let found = Identity::load(dir.path()).expect("readable").expect("there");
        assert_eq!(found.user().expect("user"), "system:node:w1");
        assert!(found.client_config().is_ok());
        assert!(found.renew_at().expect("time") < found.expires().expect("time"));
        for name in [CA, PAIR] {
            let mode = fs::metadata(dir.path().join("pki").join(name)).expect("meta").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(format!("{found:?}"), "Identity { .. }");
    }

    #[tokio::test]
    async fn directories_of_others_are_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let held = made("system:node:w1");
        held.store(dir.path()).expect("stored");
        let group = Group::new("join-test");
        let mut options = AgentOptions::new(
            "w1",
            dir.path().to_path_buf(),
            "10.0.0.1".parse().expect("address"),
            RuntimeChoice::Simulated,
        );
        options.trust = Some(Trust::CaHash(format!("sha256:{}", held.ca_hash().expect("hash"))));
        assert!(super::super::identity(&options, &group).await.is_ok());
        options.node_name = "w2".into();
        assert!(matches!(super::super::identity(&options, &group).await, Err(JoinError::OtherNode { .. })));
        options.node_name = "w1".into();
        options.trust = Some(Trust::CaHash("00".repeat(32)));
        assert!(matches!(super::super::identity(&options, &group).await, Err(JoinError::ForeignCluster { .. })));
        fs::write(dir.path().join("pki").join(PAIR), "garbage").expect("write");
        assert!(matches!(super::super::identity(&options, &group).await, Err(JoinError::Certificate(_))));
        fs::remove_dir_all(dir.path().join("pki")).expect("remove");
        options.token = None;
        assert!(matches!(super::super::identity(&options, &group).await, Err(JoinError::NoToken)));
    }
}
