//! Client certificates, judged after the handshake, so that a bad one is answered with 401 and a Status, as Kubernetes
//! does, instead of a TLS alert that no client explains.
//!
//! Always holds: TLS still makes the client prove that it holds the certificate's key; a certificate that the cluster's
//! authority did not sign, or whose time is not now, identifies nobody.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

/// Which client certificates identify somebody.
#[derive(Clone, Debug)]
pub struct ClientCertificates {
    judge: Arc<dyn ClientCertVerifier>,
}

impl ClientCertificates {
    /// `judge` is asked once per connection, after the handshake.
    pub fn judged_by(judge: Arc<dyn ClientCertVerifier>) -> Self {
        Self { judge }
    }

    /// The verifier to build the listener's TLS with: takes any certificate whose key the client holds, or none.
    pub fn for_tls(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::new(AnySigner { judge: Arc::clone(&self.judge) })
    }

    /// Whether the chain, leaf first, leads to the cluster's authority now.
    pub(super) fn trusts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, rest)) = chain.split_first() else { return false };
        match self.judge.verify_client_cert(leaf, rest, UnixTime::now()) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "client certificate is not trusted");
                false
            }
        }
    }
}

#[derive(Debug)]
struct AnySigner {
    judge: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for AnySigner {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.judge.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}
