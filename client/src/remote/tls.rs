//! TLS settings of outgoing connections: rustls with ring, TLS 1.2 and 1.3, certificates from PEM.
//!
//! Always holds: a server is always authenticated, by a CA that was given, or, while joining, by one whose SHA-256 was. Who
//! wants none of that says so with [`super::unverified`].

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::limits;

/// The only protocol of these connections.
pub const ALPN_H2: &[u8] = b"h2";

/// Where certificates are read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// CA certificates that servers are checked against.
    pub ca: PathBuf,
    /// Client certificate chain and key; both or none.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("{0} is larger than a certificate file can be")]
    TooLarge(PathBuf),
    #[error("{what} holds no valid PEM")]
    Pem { what: &'static str },
    #[error("{what} is not usable")]
    Unusable {
        what: &'static str,
        #[source]
        source: rustls::Error,
    },
    #[error("{0:?} is not a SHA-256 in hexadecimal, with or without the prefix sha256:")]
    Pin(String),
}

/// Reads `files` and makes the settings from them.
///
/// # Errors
/// [`TlsError`] with the file that cannot be read or used.
pub fn load(files: &Files) -> Result<Arc<ClientConfig>, TlsError> {
    let ca = read(&files.ca)?;
    let identity = match &files.identity {
        Some((chain, key)) => Some((read(chain)?, read(key)?)),
        None => None,
    };
    client_config(&ca, identity.as_ref().map(|(chain, key)| (chain.as_slice(), key.as_slice())))
}

/// Settings that trust the CAs in `ca_pem` and show the certificate and key of `identity_pem`.
///
/// # Errors
/// [`TlsError`] if something is not PEM, or key and certificate do not belong together.
pub fn client_config(ca_pem: &[u8], identity_pem: Option<(&[u8], &[u8])>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem, "the CA file")? {
        roots.add(certificate).map_err(|source| TlsError::Unusable { what: "the CA certificate", source })?;
    }
    let builder = builder()?.with_root_certificates(roots);
    let config = match identity_pem {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = certificates(chain, "the client certificate file")?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Pem { what: "the client key file" })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|source| TlsError::Unusable { what: "the client certificate", source })?
        }
    };
    Ok(finished(config))
}

/// Settings for joining: no client certificate, and servers are trusted if their chain holds the CA of `pin`.
///
/// The server must send its CA along. [`CaPin::found`] tells it afterwards.
pub fn pinned(pin: &CaPin) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier =
        PinVerifier { pin: pin.clone(), algorithms: provider::default_provider().signature_verification_algorithms };
    let config = builder()?.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    Ok(finished(config))
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Unusable { what: "the TLS provider", source })
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

fn finished(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Arc::new(config)
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| TlsError::Pem { what })?;
    if found.is_empty() { Err(TlsError::Pem { what }) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read(path.to_owned(), source);
    let mut content = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(limits::PEM_FILE_MAX + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > limits::PEM_FILE_MAX { Err(TlsError::TooLarge(path.to_owned())) } else { Ok(content) }
}

/// The SHA-256 of a CA certificate (its DER form), and that certificate once a server has shown it.
#[derive(Clone, Debug)]
pub struct CaPin {
    sha256: [u8; 32],
    found: Arc<OnceLock<CertificateDer<'static>>>,
    foreign: Arc<AtomicBool>,
}

impl CaPin {
    /// Reads `sha256:<hex>` or the digits alone.
    ///
    /// # Errors
    /// [`TlsError::Pin`] if it is anything else.
    pub fn parse(text: &str) -> Result<Self, TlsError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let mut sha256 = [0; 32];
        hex::decode_to_slice(digits, &mut sha256).map_err(|_| TlsError::Pin(text.to_owned()))?;
        Ok(Self { sha256, found: Arc::default(), foreign: Arc::default() })
    }

    /// The pin of a CA certificate in DER form, as [`parse`](Self::parse) reads it.
    pub fn text(certificate: &[u8]) -> String {
        format!("sha256:{}", hex::encode(ring::digest::digest(&ring::digest::SHA256, certificate)))
    }

    /// The CA certificate in DER form, once a handshake succeeded.
    pub fn found(&self) -> Option<&[u8]> {
        self.found.get().map(|certificate| certificate.as_ref())
    }

    /// True once a server showed a chain without this CA, and none has shown one with it.
    pub fn only_foreign(&self) -> bool {
        self.foreign.load(Ordering::Relaxed) && self.found.get().is_none()
    }

    fn fits(&self, certificate: &CertificateDer<'_>) -> bool {
        ring::digest::digest(&ring::digest::SHA256, certificate).as_ref() == self.sha256
    }
}

/// Checks a server as webpki does, with the pinned CA from the server's own chain as the only root.
#[derive(Debug)]
struct PinVerifier {
    pin: CaPin,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || {
            self.pin.foreign.store(true, Ordering::Relaxed);
            rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)
        };
        let ca = intermediates.iter().find(|certificate| self.pin.fits(certificate)).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.pin.found.get_or_init(|| ca.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
