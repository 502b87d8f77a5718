//! Who may approve and sign certificate requests, and for whom: the verbs `approve` and `sign` on the signer.
//!
//! Always holds: nobody becomes a server of the cluster by a certificate that was asked for here, whoever approves it.

use pintle_api::status::{FieldError, Path, Status};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::{Chain, forbidden};
use crate::authz::SERVERS;
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
            permit(chain, review, "approve", signer)?;
            check_subject(review, signer)
        }
        (Operation::Update, "status") if changed(review, "/status/certificate") => {
            permit(chain, review, "sign", signer)?;
            check_subject(review, signer)
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

/// A client certificate for `system:masters` cannot be asked for: it could never be taken back. Servers speak for
/// everybody, so nobody signs for them but who sets up the cluster.
fn check_subject(review: &Review<'_>, signer: &str) -> Result<(), Status> {
    let Some(groups) = organizations(text(&review.object, "/spec/request")) else {
        let path = Path::new("spec").child("request");
        let why = "must be one PEM block of type CERTIFICATE REQUEST that can be read";
        let error = FieldError::invalid(&path, "", why);
        return Err(Status::invalid(review.kind.group, review.kind.kind, review.name, &[error]));
    };
    let asks_for = |group: &str| groups.iter().any(|one| one == group);
    let group = match () {
        () if asks_for(SERVERS) => SERVERS,
        () if signer == CLIENT_SIGNER && asks_for(MASTERS) => MASTERS,
        () => return Ok(()),
    };
    Err(forbidden(review, &format!("use of {signer} signer with {group} group is not allowed")))
}

/// The organisations in the subject of a request. `None` if it cannot be read, or could be read in two ways.
fn organizations(request: &str) -> Option<Vec<String>> {
    use base64::Engine as _;
    let pem = base64::engine::general_purpose::STANDARD.decode(request).ok()?;
    let blocks = String::from_utf8_lossy(&pem).matches("-----BEGIN").count();
    let der = CertificateSigningRequestDer::from_pem_slice(&pem).ok().filter(|_| blocks == 1)?;
    let (rest, request) = X509CertificationRequest::from_der(der.as_ref()).ok()?;
    let subject = &request.certification_request_info.subject;
    let groups = subject.iter_organization().map(|group| group.as_str().map(str::to_owned).ok()).collect();
    if rest.is_empty() { groups } else { None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base64::Engine as _;
    use serde_json::{Value, json};

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
    fn nobody_asks_for_masters_or_servers() {
        let (user, kind) = (UserInfo::internal(), kind(GROUP, "certificatesigningrequests"));
        let own = "example.com/own";
        for (signer, organization, want) in [
            (CLIENT_SIGNER, MASTERS, false),
            (CLIENT_SIGNER, SERVERS, false),
            (CLIENT_SIGNER, "dev", true),
            (own, MASTERS, true),
            (own, SERVERS, false),
        ] {
            let mut object = csr(organization, Value::Null);
            object["spec"]["signerName"] = signer.into();
            let result = check(&chain(Fixed::default()), &creation(kind, &object, &user));
            let why = format!("use of {signer} signer with {organization} group is not allowed");
            let text = format!("certificatesigningrequests.certificates.k8s.io \"c\" is forbidden: {why}");
            assert_eq!(result.err().map(|status| status.message.clone()), (!want).then_some(text));
        }
    }

    #[test]
    fn nobody_approves_or_signs_for_servers() {
        let (user, kind) = (UserInfo::internal(), kind(GROUP, "certificatesigningrequests"));
        let old = csr(SERVERS, json!({}));
        let mut written = old.clone();
        written["status"] = json!({"conditions": [{"type": "Approved"}], "certificate": "eA=="});
        for (subresource, want) in [("approval", false), ("status", false), ("", true)] {
            let mut review = creation(kind, &written, &user);
            review.operation = Operation::Update;
            review.subresource = subresource;
            review.old = Some(Arc::new(old.clone()));
            assert_eq!(check(&chain(Fixed::default()), &review).is_ok(), want, "{subresource}");
        }
    }

    #[test]
    fn what_cannot_be_read_in_one_way_is_refused() {
        let (user, kind) = (UserInfo::internal(), kind(GROUP, "certificatesigningrequests"));
        let base64 = base64::engine::general_purpose::STANDARD;
        let pem = |csr: Value| base64.decode(text(&csr, "/spec/request")).expect("base64");
        let two = [pem(csr("dev", Value::Null)), pem(csr(SERVERS, Value::Null))].concat();
        for request in [base64.encode(two), base64.encode("nonsense"), "***".to_owned(), String::new()] {
            let mut object = csr("dev", Value::Null);
            object["spec"]["request"] = request.into();
            let refused = check(&chain(Fixed::default()), &creation(kind, &object, &user)).expect_err("refused");
            assert_eq!(refused.code, 422);
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
