//! What happens next to a certificate request. Pure.
//!
//! Rule: kubernetes.io/kube-apiserver-client-kubelet signs client certificates with organisation `system:nodes` and common
//! name `system:node:<name>`, without alternative names, for client authentication only.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::prelude::FromDer;

pub const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const BOOTSTRAPPERS: &str = "system:bootstrappers";
const KEEP_ANSWERED: Duration = Duration::from_secs(3600);
const KEEP_PENDING: Duration = Duration::from_secs(24 * 3600);
/// Larger requests are left for a person; real ones have some hundred bytes.
const REQUEST_BYTES: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSubject {
    pub common_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not ours, done, denied, failed, or for a person to decide.
    Wait,
    Approve,
    Sign(NodeSubject),
}

/// How long a request is kept, counted from when it came to be what it is: as upstream, an hour once it was answered, a day
/// while nobody answers it. Whoever may ask could otherwise fill the store.
pub fn lifetime(request: &CertificateSigningRequest) -> (Duration, Option<Timestamp>) {
    let created = request.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let issued = request.status.as_ref().is_some_and(|status| status.certificate.is_some());
    // Approval alone is no answer: whoever signs may still be at it.
    let answers = request
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .filter(|condition| issued || condition.type_ != "Approved");
    let at = answers.clone().filter_map(|condition| Some(condition.last_update_time.as_ref()?.0)).max();
    match (issued || answers.count() > 0, at) {
        (true, Some(at)) => (KEEP_ANSWERED, Some(at)),
        // Nobody wrote down when: a day from the beginning is late enough for whoever fetches the answer.
        (true, None) | (false, _) => (KEEP_PENDING, created),
    }
}

pub fn next(request: &CertificateSigningRequest) -> Next {
    if request.spec.signer_name != SIGNER {
        return Next::Wait;
    }
    let status = request.status.as_ref();
    let has = |kind: &str| {
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == kind)
    };
    if has("Denied") || has("Failed") {
        return Next::Wait;
    }
    if status.and_then(|status| status.certificate.as_ref()).is_some_and(|certificate| !certificate.0.is_empty()) {
        return Next::Wait;
    }
    match subject(request) {
        Some(subject) if has("Approved") => Next::Sign(subject),
        Some(subject) if may_ask(request, &subject) => Next::Approve,
        _ => Next::Wait,
    }
}

/// A joining worker by its token, or a node for itself.
fn may_ask(request: &CertificateSigningRequest, subject: &NodeSubject) -> bool {
    let in_group = |group: &str| request.spec.groups.iter().flatten().any(|name| name == group);
    in_group(BOOTSTRAPPERS)
        || (in_group(NODES) && request.spec.username.as_deref() == Some(subject.common_name.as_str()))
}

/// The node the request is for, if it asks for a node's client certificate and nothing else.
fn subject(request: &CertificateSigningRequest) -> Option<NodeSubject> {
    let allowed = ["digital signature", "key encipherment", "client auth"];
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    let asks_client = usages.iter().any(|usage| usage == "client auth");
    if !asks_client || !usages.iter().all(|usage| allowed.contains(&usage.as_str())) {
        return None;
    }
    let bytes = &request.spec.request.0;
    if bytes.len() > REQUEST_BYTES {
        return None;
    }
    let (_, pem) = x509_parser::pem::parse_x509_pem(bytes).ok()?;
    let (_, parsed) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents).ok()?;
    let name = &parsed.certification_request_info.subject;
    let organizations: Vec<&str> = name.iter_organization().filter_map(|value| value.as_str().ok()).collect();
    let common_names: Vec<&str> = name.iter_common_name().filter_map(|value| value.as_str().ok()).collect();
    let ([NODES], [common_name]) = (&organizations[..], &common_names[..]) else { return None };
    let node = common_name.strip_prefix(NODE_PREFIX)?;
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    (!node.is_empty() && node.len() <= 253 && node.chars().all(valid))
        .then(|| NodeSubject { common_name: (*common_name).to_owned() })
}

#[cfg(test)]
pub mod testing {
    use super::SIGNER;
    use k8s_openapi::ByteString;
    use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    pub fn request(common_name: &str, organization: &str, names: &[&str]) -> CertificateSigningRequest {
        let mut params =
            CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).expect("params");
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, organization);
        name.push(DnType::CommonName, common_name);
        params.distinguished_name = name;
        let pem = params.serialize_request(&KeyPair::generate().expect("key")).expect("csr").pem().expect("pem");
        let mut request = CertificateSigningRequest::default();
        request.spec.request = ByteString(pem.into_bytes());
        request.spec.signer_name = SIGNER.to_owned();
        request.spec.usages = Some(vec!["digital signature".to_owned(), "client auth".to_owned()]);
        request.spec.groups = Some(vec!["system:bootstrappers".to_owned()]);
        request
    }
}

#[cfg(test)]
mod tests {
    use super::testing::request;
    use super::*;

    #[test]
    fn a_joining_node_is_approved_and_then_signed() {
        let mut request = request("system:node:w1", NODES, &[]);
        assert_eq!(next(&request), Next::Approve);
        request.status.get_or_insert_default().conditions.get_or_insert_default().push(super::super::condition());
        assert_eq!(next(&request), Next::Sign(NodeSubject { common_name: "system:node:w1".to_owned() }));
    }

    #[test]
    fn what_nobody_answers_is_kept_a_day_and_what_was_answered_an_hour() {
        let mut request = request("admin", "system:masters", &[]);
        let created: Timestamp = "2026-01-01T00:00:00Z".parse().expect("time");
        request.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        assert_eq!(lifetime(&request), (KEEP_PENDING, Some(created)));
        let mut denied = super::super::condition();
        denied.type_ = "Denied".to_owned();
        let at = denied.last_update_time.as_ref().map(|time| time.0);
        request.status.get_or_insert_default().conditions = Some(vec![denied]);
        assert_eq!(lifetime(&request), (KEEP_ANSWERED, at));
        assert_eq!(next(&request), Next::Wait);
    }

    #[test]
    fn a_node_may_ask_for_itself_only() {
        let mut request = request("system:node:w1", NODES, &[]);
        request.spec.groups = Some(vec![NODES.to_owned()]);
        request.spec.username = Some("system:node:w1".to_owned());
        assert_eq!(next(&request), Next::Approve);
        request.spec.username = Some("system:node:w2".to_owned());
        assert_eq!(next(&request), Next::Wait);
    }

    #[test]
    fn other_subjects_signers_and_usages_wait_for_a_person() {
        assert_eq!(next(&request("admin", "system:masters", &[])), Next::Wait);
        assert_eq!(next(&request("system:node:", NODES, &[])), Next::Wait);
        assert_eq!(next(&request("system:node:../x", NODES, &[])), Next::Wait);
        let mut other = request("system:node:w1", NODES, &[]);
        other.spec.signer_name = "example.com/x".to_owned();
        assert_eq!(next(&other), Next::Wait);
        let mut server = request("system:node:w1", NODES, &[]);
        server.spec.usages = Some(vec!["server auth".to_owned(), "client auth".to_owned()]);
        assert_eq!(next(&server), Next::Wait);
        let mut broken = request("system:node:w1", NODES, &[]);
        broken.spec.request.0 =
            b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".to_vec();
        assert_eq!(next(&broken), Next::Wait);
    }
}
