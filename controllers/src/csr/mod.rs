//! Approves and signs the certificate requests of agents: a joining worker's first, and its renewals.
//!
//! Always holds: what is signed is exactly what the rule allows (a node's client certificate, for the node that asks or,
//! with a join token, for any node name, as upstream); anything else waits for a person.

pub mod plan;

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use pintle_base::clock;
use pintle_client::object::time_now;
use pintle_client::{Key, SharedReflector};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber,
};

use crate::runtime::{
    Context, Controller, Intake, Lead, Outcome, ReconcileError, api, delete_same, is_conflict, is_not_found,
};

/// A certificate without a wished lifetime lives a year.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
const LIFETIME_MIN: Duration = Duration::from_secs(600);
/// Tolerates clocks that run behind ours.
const BACKDATE: Duration = Duration::from_secs(300);

/// The authority that signs. Its key never leaves this value.
pub struct Authority {
    pub certificate: String,
    pub key: String,
}

pub struct CertificateRequests {
    requests: SharedReflector<CertificateSigningRequest>,
    authority: Authority,
}

impl CertificateRequests {
    pub fn new(context: &Context, authority: Authority) -> Self {
        Self { requests: context.reflectors.of(), authority }
    }
}

impl Controller for CertificateRequests {
    const NAME: &'static str = "certificate-signing";

    fn watch(&self, intake: &Intake) {
        intake.every(&self.requests);
    }

    fn all(&self) -> Vec<Key> {
        self.requests.keys()
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let Some(request) = self.requests.get(key) else { return Ok(Outcome::Done) };
        let stored: Api<CertificateSigningRequest> = Api::all(lead.client.clone());
        let (lifetime, since) = plan::lifetime(&request);
        let age = since.map_or(Duration::ZERO, |since| {
            let now = jiff::Timestamp::try_from(clock::wall()).unwrap_or(since);
            Duration::try_from(now.duration_since(since)).unwrap_or_default()
        });
        if age >= lifetime {
            let deleted = delete_same(&stored, &request.metadata, DeleteParams::default()).await;
            return deleted.map(|_| Outcome::Done).map_err(api("delete an old certificate request"));
        }
        let result = match plan::next(&request) {
            plan::Next::Wait => return Ok(Outcome::After(lifetime - age)),
            plan::Next::Approve => {
                let mut approved = (*request).clone();
                approved.status.get_or_insert_default().conditions.get_or_insert_default().push(condition());
                stored.replace_subresource("approval", &key.name, &PostParams::default(), &approved).await.map(drop)
            }
            plan::Next::Sign(subject) => {
                let certificate = self.sign(&request, &subject)?;
                let mut signed = (*request).clone();
                signed.status.get_or_insert_default().certificate = Some(ByteString(certificate.into_bytes()));
                stored.replace_status(&key.name, &PostParams::default(), &signed).await.map(drop)
            }
        };
        match result {
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(Outcome::Done),
            Err(error) => Err(api("answer a certificate request")(error)),
            Ok(()) => Ok(Outcome::Done),
        }
    }
}

fn condition() -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: "Approved".to_owned(),
        status: "True".to_owned(),
        reason: Some("AutoApproved".to_owned()),
        message: Some("Approved by the rule for node client certificates.".to_owned()),
        last_update_time: Some(time_now()),
        last_transition_time: Some(time_now()),
    }
}

impl CertificateRequests {
    /// Signs the request's public key for `subject`; nothing else of the request is taken over.
    fn sign(&self, request: &CertificateSigningRequest, subject: &plan::NodeSubject) -> Result<String, ReconcileError> {
        let invalid = |error: rcgen::Error| ReconcileError::Invalid(format!("certificate request: {error}"));
        let pem = String::from_utf8_lossy(&request.spec.request.0);
        let mut parsed = CertificateSigningRequestParams::from_pem(&pem).map_err(invalid)?;
        let key = KeyPair::from_pem(&self.authority.key).map_err(invalid)?;
        let issuer = Issuer::from_ca_cert_pem(&self.authority.certificate, key).map_err(invalid)?;
        let wished = request.spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lifetime = wished.map_or(LIFETIME, Duration::from_secs).clamp(LIFETIME_MIN, LIFETIME);
        parsed.params = params(subject, lifetime);
        Ok(parsed.signed_by(&issuer).map_err(invalid)?.pem())
    }
}

fn params(subject: &plan::NodeSubject, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, plan::NODES);
    name.push(DnType::CommonName, subject.common_name.as_str());
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let now = clock::wall();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    let mut serial = [0u8; 16];
    pintle_base::rng::fill(&mut serial);
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use pintle_client::SharedReflector;

    #[test]
    fn a_signed_certificate_carries_the_node_and_no_more() {
        let ca_key = KeyPair::generate().expect("key");
        let mut ca = CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = ca.self_signed(&ca_key).expect("ca");
        let controller = CertificateRequests {
            requests: SharedReflector::detached(),
            authority: Authority { certificate: ca.pem(), key: ca_key.serialize_pem() },
        };
        let request = plan::testing::request("system:node:w1", "system:nodes", &["evil.example"]);
        let subject = plan::NodeSubject { common_name: "system:node:w1".to_owned() };
        let pem = controller.sign(&request, &subject).expect("signed");
        let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("pem");
        let certificate = der.parse_x509().expect("x509");
        assert_eq!(certificate.subject().to_string(), "O=system:nodes, CN=system:node:w1");
        assert!(certificate.subject_alternative_name().expect("valid").is_none(), "names are not taken over");
        assert!(!certificate.is_ca());
    }
}
