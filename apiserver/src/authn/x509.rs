//! The identity in a client certificate: common name = user, organisations = groups.
//!
//! The chain was judged when the connection was made; connections live long, so the validity period is looked at again
//! for every request.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::authenticated;
use crate::types::{PeerCerts, UserInfo};

const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("not an X.509 certificate")]
    Malformed,
    #[error("certificate is not of this cluster's authority, or not valid now")]
    Untrusted,
    #[error("certificate of {0:?} is outside its validity period")]
    Validity(String),
}

/// `None` if the certificate names no user.
pub(crate) fn identity(certs: &PeerCerts, now: i64) -> Option<Result<UserInfo, CertificateError>> {
    let der = certs.chain.first()?;
    if !certs.trusted {
        return Some(Err(CertificateError::Untrusted));
    }
    let Ok((_, certificate)) = X509Certificate::from_der(der.as_ref()) else {
        return Some(Err(CertificateError::Malformed));
    };
    let subject = certificate.subject();
    let name =
        subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).filter(|cn| !cn.is_empty())?.to_owned();
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
        return Some(Err(CertificateError::Validity(name)));
    }
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    let digest = ring::digest::digest(&ring::digest::SHA256, der.as_ref());
    let id = format!("X509SHA256={}", hex::encode(digest.as_ref()));
    let extra = [(CREDENTIAL_ID.to_owned(), vec![id])].into();
    Some(Ok(authenticated(UserInfo { name, uid: String::new(), groups, extra })))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Self-signed; chain checks are TLS's. CN=system:node:n1, O=system:nodes, O=extra, valid 2024-01-01 to 2034-01-01.
    fn certificate(cn: &str) -> PeerCerts {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, cn);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        params.not_after = rcgen::date_time_ymd(2034, 1, 1);
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("certificate");
        PeerCerts { chain: [certificate.der().clone()].into(), trusted: true }
    }

    #[test]
    fn name_and_groups_come_from_the_subject() {
        let user = identity(&certificate("system:node:n1"), 1_750_000_000).expect("named").expect("valid");
        assert_eq!(user.name, "system:node:n1");
        assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
    }

    #[test]
    fn an_expired_certificate_stops_working_on_an_open_connection() {
        let gone = identity(&certificate("ann"), 2_100_000_000).expect("named");
        assert_eq!(gone, Err(CertificateError::Validity("ann".into())));
    }

    #[test]
    fn a_foreign_certificate_is_refused_whatever_it_says() {
        let foreign = PeerCerts { trusted: false, ..certificate("ann") };
        assert_eq!(identity(&foreign, 1_750_000_000), Some(Err(CertificateError::Untrusted)));
    }

    #[test]
    fn nameless_and_broken_certificates_are_nobody() {
        assert!(identity(&certificate(""), 1_750_000_000).is_none());
        assert!(identity(&PeerCerts { chain: [].into(), trusted: true }, 0).is_none());
        let broken = PeerCerts { chain: [vec![0x30, 0x03, 0x02].into()].into(), trusted: true };
        assert_eq!(identity(&broken, 0), Some(Err(CertificateError::Malformed)));
    }
}
