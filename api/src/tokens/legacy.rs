//! Tokens of service accounts that are kept in Secrets: the form of the Secret, and what its token claims.
//!
//! They have no audience and do not expire: such a token lives as long as the Secret that holds it and the service account
//! it names. Rule: upstream's `LegacyClaims` and `legacyValidator`.

use serde::{Deserialize, Serialize};

use super::account_user;

pub const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
/// Annotations that name the service account: which one by name, and which of that name.
pub const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
pub const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Label of a Secret whose token is withdrawn though it is kept.
pub const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Entries of the Secret's data.
pub const TOKEN: &str = "token";
pub const CERTIFICATE: &str = "ca.crt";
pub const NAMESPACE: &str = "namespace";

/// The `iss` claim that tells these tokens from others.
pub const ISSUER: &str = "kubernetes/serviceaccount";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub account_uid: String,
    pub sub: String,
}

impl Claims {
    /// What a token in `secret` claims for the service account `account` of the same namespace.
    pub fn new(namespace: &str, secret: &str, account: &str, account_uid: &str) -> Self {
        Self {
            iss: ISSUER.to_owned(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.to_owned(),
            account_uid: account_uid.to_owned(),
            sub: account_user(namespace, account),
        }
    }

    /// True if the subject is the service account that the other claims name.
    pub fn names_its_subject(&self) -> bool {
        let named = [&self.namespace, &self.account].iter().all(|part| !part.is_empty());
        named && self.sub == account_user(&self.namespace, &self.account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_have_the_names_that_clients_of_kubernetes_know() {
        let claims = Claims::new("a", "bot-token", "bot", "u1");
        let want = json!({
            "iss": "kubernetes/serviceaccount",
            "kubernetes.io/serviceaccount/namespace": "a",
            "kubernetes.io/serviceaccount/secret.name": "bot-token",
            "kubernetes.io/serviceaccount/service-account.name": "bot",
            "kubernetes.io/serviceaccount/service-account.uid": "u1",
            "sub": "system:serviceaccount:a:bot",
        });
        assert_eq!(serde_json::to_value(&claims).expect("json"), want);
        assert!(claims.names_its_subject());
        let other = Claims { sub: "system:serviceaccount:a:root".into(), ..claims };
        assert!(!other.names_its_subject());
    }
}
