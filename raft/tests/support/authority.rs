//! Certificates for the members of a test's cluster. The store's tests include this file too.
#![allow(dead_code)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use pintle_raft::Tls;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// Signs certificates for the members of one cluster.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test");
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("certificate").der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// TLS for a member of that name.
    pub fn tls(&self, name: &str) -> Tls {
        let mut params = CertificateParams::default();
        let common_name = format!("{}{name}", pintle_raft::CERTIFICATE_NAME_PREFIX);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("key");
        let chain = vec![params.signed_by(&key, &self.issuer).expect("certificate").der().clone()];
        let key = || PrivateKeyDer::try_from(key.serialize_der()).expect("key");
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("root");
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.build().expect("verifier"))
            .with_single_cert(chain.clone(), key())
            .expect("server");
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key())
            .expect("client");
        Tls { server: Arc::new(server).into(), client: Arc::new(client).into() }
    }
}
