//! The two documents by which others verify our service account tokens: OIDC discovery and the key set.

use serde_json::{Value, json};

use super::Issuer;

pub(crate) const CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";
pub(crate) const KEYS_PATH: &str = "/openid/v1/jwks";

/// Media type of the key set (RFC 7517 §8.5.2).
const KEYS_TYPE: &str = "application/jwk-set+json";

/// The document at `path` with its media type; `None` if the path is not one of the two.
pub(crate) fn document(issuer: &Issuer, path: &str) -> Option<(&'static str, Value)> {
    match path {
        CONFIGURATION_PATH => Some(("application/json", configuration(issuer))),
        KEYS_PATH => Some((KEYS_TYPE, issuer.keys.jwks())),
        _ => None,
    }
}

fn configuration(issuer: &Issuer) -> Value {
    json!({
        "issuer": issuer.issuer,
        "jwks_uri": format!("{}{KEYS_PATH}", issuer.issuer.trim_end_matches('/')),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::issuer;
    use super::*;

    #[test]
    fn the_configuration_points_at_the_keys() {
        let issuer = issuer();
        let (_, configuration) = document(&issuer, CONFIGURATION_PATH).expect("configuration");
        assert_eq!(configuration["jwks_uri"], "https://kubernetes.default.svc.cluster.local/openid/v1/jwks");
        let (media_type, keys) = document(&issuer, KEYS_PATH).expect("keys");
        assert_eq!(media_type, KEYS_TYPE);
        assert_eq!(keys["keys"][0]["crv"], "P-256");
        assert!(document(&issuer, "/openid/v1/jwks/").is_none());
    }
}
