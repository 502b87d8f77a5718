//! What is asked of the other side's certificate beside an authority's signature: it is not revoked, and it names somebody
//! who is allowed. Judged in the handshake, so that nothing is served before.
//!
//! As etcd: serial numbers on the list count whoever signed the certificate, the chain shown along is looked at too, and a
//! list past its date still counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::files::Allowed;
use crate::pki;

/// Serial numbers without leading zeros.
#[derive(Debug, Default)]
pub struct Revoked(BTreeSet<Vec<u8>>);

impl Revoked {
    /// Reads lists in PEM, or one in DER.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut lists: Vec<Vec<u8>> = Vec::new();
        if bytes.first() == Some(&0x30) {
            lists.push(bytes.to_vec());
        } else {
            for list in CertificateRevocationListDer::pem_slice_iter(bytes) {
                lists.push(list.context("parse PEM")?.as_ref().to_vec());
            }
        }
        if lists.is_empty() {
            bail!("no revocation list in it");
        }
        let mut serials = BTreeSet::new();
        for list in &lists {
            let (_, list) = CertificateRevocationList::from_der(list).context("parse a revocation list")?;
            serials.extend(list.iter_revoked_certificates().map(|one| bare(one.raw_serial())));
        }
        Ok(Self(serials))
    }
}

fn bare(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|byte| *byte == 0).collect()
}

#[derive(Debug)]
pub struct Rules {
    pub allowed: Allowed,
    pub revoked: Revoked,
}

impl Rules {
    fn check(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !self.revoked.0.is_empty() {
            for certificate in std::iter::once(leaf).chain(others) {
                let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
                    return Err(CertificateError::BadEncoding.into());
                };
                if self.revoked.0.contains(&bare(parsed.raw_serial())) {
                    tracing::warn!(serial = parsed.raw_serial_as_string(), "refused a certificate that is revoked");
                    return Err(CertificateError::Revoked.into());
                }
            }
        }
        let allowed = match &self.allowed {
            Allowed::All => true,
            Allowed::CommonNames(names) => pki::common_name(leaf).is_some_and(|name| names.contains(&name)),
            Allowed::Hosts(hosts) => {
                let parsed = ParsedCertificate::try_from(leaf)?;
                let names = |host: &String| {
                    ServerName::try_from(host.as_str())
                        .is_ok_and(|host| rustls::client::verify_server_name(&parsed, &host).is_ok())
                };
                hosts.iter().any(names)
            }
        };
        if !allowed {
            tracing::warn!(
                name = pki::common_name(leaf),
                "client certificate authentication failed: it is not allowed"
            );
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(())
    }
}

/// A verifier, and rules beside it.
#[derive(Debug)]
pub struct Checked<V: ?Sized> {
    pub inner: Arc<V>,
    pub rules: Rules,
}

impl ClientCertVerifier for Checked<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(leaf, others, now)?;
        self.rules.check(leaf, others)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Checked<rustls::client::WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(leaf, others, name, ocsp, now)?;
        self.rules.check(leaf, others)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
