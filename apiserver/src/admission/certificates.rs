//! Who may approve and sign certificate requests, and for whom: the verbs `approve` and `sign` on the signer.

use pintle_api::status::Status;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::{Chain, forbidden};
use crate::authz::live::text;
use crate::authz::rules::Action;
use crate::types::{MASTERS, Operation, Review};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) fn check(chain: &Chain, review: &Review<'_>) -> Result<(), Status> {
    let signer = text(&review.object, "/spec/signerName");
    match (review.operation, review.subresource) {
        (Operation::Create, "") => check_subject(review, signer),
        (Operation::Update, "approval") if changed(review, "/status/conditions") => {
            permit(chain, review, "approve", signer)
        }
        (Operation::Update, "status") if changed(review, "/status/certificate") => {
            permit(chain, review, "sign", signer)
        }
        _ => Ok(()),
    }
}

fn changed(review: &Review<'_>, pointer: &str) -> bool {
    review.old.as_deref().and_then(|old| old.pointer(pointer)) != review.object.pointer(pointer)
}

/// The verb on this signer, or on all signers of its domain.
fn permit(chain: &Chain, review: &Review<'_>, verb: &'static str, signer: &str) -> Result<(), Status> {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or(""));
    let allowed = [signer, domain.as_str()].into_iter().any(|name| {
        let action = Action { verb, group: GROUP, resource: "signers", name, ..Action::default() };
        chain.authorizer.decide(review.user, &action).allowed
    });
    if allowed {
        return Ok(());
    }
    Err(forbidden(review, &format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

/// A client certificate for `system:masters` cannot be asked for: it could never be taken back.
fn check_subject(review: &Review<'_>, signer: &str) -> Result<(), Status> {
    if signer == CLIENT_SIGNER && organizations(&review.object).iter().any(|group| group == MASTERS) {
        let why = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
        return Err(forbidden(review, &why));
    }
    Ok(())
}

fn organizations(csr: &Value) -> Vec<String> {
    use base64::Engine as _;
    let pem = base64::engine::general_purpose::STANDARD.decode(text(csr, "/spec/request")).unwrap_or_default();
    let Ok(der) = CertificateSigningRequestDer::from_pem_slice(&pem) else { return Vec::new() };
    let Ok((_, request)) = X509CertificationRequest::from_der(der.as_ref()) else { return Vec::new() };
    let subject = &request.certification_request_info.subject;
    subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base64::Engine as _;
    use serde_json::json;

    use super::super::tests::{chain, creation, kind};
    use super::*;
    use crate::authz::live::tests::Fixed;
    use crate::authz::live::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES};
    use crate::types::UserInfo;

    fn request(organization: &str) -> Value {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        let key = rcgen::KeyPair::generate().expect("key");
        let pem = params.serialize_request(&key).expect("request").pem().expect("pem");
        base64::engine::general_purpose::STANDARD.encode(pem).into()
    }

    fn csr(organization: &str, status: Value) -> Value {
        json!({"metadata": {"name": "c"}, "spec": {"signerName": CLIENT_SIGNER, "request": request(organization)}, "status": status})
    }

    #[test]
    fn nobody_asks_for_masters() {
        let (user, kind) = (UserInfo::internal(), kind(GROUP, "certificatesigningrequests"));
        for (organization, want) in [(MASTERS, false), ("dev", true)] {
            let object = csr(organization, Value::Null);
            assert_eq!(check(&chain(Fixed::default()), &creation(kind, &object, &user)).is_ok(), want);
        }
    }

    #[test]
    fn approval_needs_the_signers_verb() {
        let live = || {
            let rules = json!([{"verbs": ["approve"], "apiGroups": [GROUP], "resources": ["signers"], "resourceNames": ["kubernetes.io/*"]}]);
            Fixed::default().with(CLUSTER_ROLES, json!({"metadata": {"name": "r"}, "rules": rules})).with(
                CLUSTER_ROLE_BINDINGS,
                json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
                       "subjects": [{"kind": "User", "name": "ann"}]}),
            )
        };
        let approved = csr("dev", json!({"conditions": [{"type": "Approved"}]}));
        for (name, subresource, want) in [("ann", "approval", true), ("eve", "approval", false), ("eve", "", true)] {
            let user = UserInfo { name: name.into(), ..UserInfo::default() };
            let mut review = creation(kind(GROUP, "certificatesigningrequests"), &approved, &user);
            review.operation = Operation::Update;
            review.subresource = subresource;
            review.old = Some(Arc::new(csr("dev", json!({}))));
            assert_eq!(check(&chain(live()), &review).is_ok(), want, "{name} {subresource}");
        }
    }
}
