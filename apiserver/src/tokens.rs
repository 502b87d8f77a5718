//! Service account tokens: issued by `serviceaccounts/token`, checked at the edge, verifiable by others through OIDC discovery.
//!
//! Tokens issued here are bound (KEP-1205): audience, expiry, and the objects they live and die with. Those in Secrets
//! ([`legacy`]) are made by a controller with the same key and only checked here. [`jwt`] knows signatures, [`Issuer`] the
//! claims, [`request`] the subresource; whether the named objects still live is asked in `authn`.

pub(crate) mod discovery;
pub(crate) mod request;

use pintle_api::tokens::jwt::{self, JwtError, Keys};
use pintle_api::tokens::legacy;
use serde::{Deserialize, Serialize};

pub use pintle_api::tokens::jwt::KeyError;
pub(crate) use pintle_api::tokens::{account_of, account_user};

use crate::types::ServiceAccountConfig;

/// Difference between the clocks of two servers that tokens tolerate at their start.
const CLOCK_SKEW_SECONDS: i64 = 60;

/// A named object with its uid, as tokens carry it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectRef {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The private claims of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KubernetesClaims {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ObjectRef>,
    pub serviceaccount: ObjectRef,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    pub exp: i64,
    #[serde(default)]
    pub iat: i64,
    pub iss: String,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    #[serde(default)]
    pub nbf: i64,
    pub sub: String,
}

/// RFC 7519 lets a single audience stand alone.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

/// Why a token of our issuer was refused. Shown to nobody but the log: the client reads 401.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("token rejected: {0}")]
    Jwt(#[from] JwtError),
    #[error("token is of another issuer")]
    Issuer,
    #[error("token has expired")]
    Expired,
    #[error("token is not valid yet")]
    NotYet,
    #[error("token audiences {have:?} are not among {want:?}")]
    Audience { have: Vec<String>, want: Vec<String> },
    #[error("token subject does not name its service account")]
    Subject,
}

/// The kinds of tokens of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Bound,
    Legacy,
}

/// Signs and checks the tokens of one cluster.
pub(crate) struct Issuer {
    keys: Keys,
    /// The `iss` claim and the base of the discovery documents.
    pub issuer: String,
    /// Audiences this API server answers to.
    pub audiences: Vec<String>,
}

impl Issuer {
    pub fn new(config: &ServiceAccountConfig) -> Result<Self, KeyError> {
        let keys = Keys::from_pem(&config.signing_key_pem, &config.public_keys_pem)?;
        let given = config.audiences.clone();
        let audiences = if given.is_empty() { vec![config.issuer.clone()] } else { given };
        Ok(Self { keys, issuer: config.issuer.clone(), audiences })
    }

    pub fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        self.keys.sign(claims)
    }

    /// Which of our kinds the token says it is, `None` if it is not ours; proves nothing.
    pub fn form(&self, token: &str) -> Option<Form> {
        match jwt::unverified_issuer(token)? {
            issuer if issuer == self.issuer => Some(Form::Bound),
            issuer if issuer == legacy::ISSUER => Some(Form::Legacy),
            _ => None,
        }
    }

    /// Checks everything that needs no look at the cluster, and returns the claims with the audiences that matched.
    pub fn check(&self, token: &str, audiences: &[String], now: i64) -> Result<(Claims, Vec<String>), TokenError> {
        let claims: Claims = self.keys.verify(token)?;
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        if claims.exp <= now {
            return Err(TokenError::Expired);
        }
        if claims.nbf > now.saturating_add(CLOCK_SKEW_SECONDS) {
            return Err(TokenError::NotYet);
        }
        let matched: Vec<String> = claims.aud.iter().filter(|aud| audiences.contains(aud)).cloned().collect();
        if matched.is_empty() {
            return Err(TokenError::Audience { have: claims.aud, want: audiences.to_vec() });
        }
        if claims.sub != account_user(&claims.kubernetes.namespace, &claims.kubernetes.serviceaccount.name) {
            return Err(TokenError::Subject);
        }
        Ok((claims, matched))
    }

    /// As [`check`](Self::check), for a token out of a Secret. It names no audience: it is meant for this API and no other.
    pub fn check_legacy(&self, token: &str, audiences: &[String]) -> Result<(legacy::Claims, Vec<String>), TokenError> {
        let claims: legacy::Claims = self.keys.verify(token)?;
        if claims.iss != legacy::ISSUER {
            return Err(TokenError::Issuer);
        }
        let matched: Vec<String> = self.audiences.iter().filter(|aud| audiences.contains(aud)).cloned().collect();
        if matched.is_empty() {
            return Err(TokenError::Audience { have: self.audiences.clone(), want: audiences.to_vec() });
        }
        if !claims.names_its_subject() {
            return Err(TokenError::Subject);
        }
        Ok((claims, matched))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const NOW: i64 = 1_800_000_000;

    /// A fresh P-256 key as PEM.
    pub(crate) fn fresh_pem() -> String {
        rcgen::KeyPair::generate().expect("key").serialize_pem()
    }

    pub(crate) fn issuer() -> Issuer {
        issuer_with(fresh_pem())
    }

    pub(crate) fn issuer_with(signing_key_pem: String) -> Issuer {
        Issuer::new(&ServiceAccountConfig {
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            audiences: vec!["api".into()],
            signing_key_pem,
            public_keys_pem: Vec::new(),
        })
        .expect("issuer")
    }

    pub(crate) fn claims(issuer: &Issuer) -> Claims {
        Claims {
            aud: vec!["api".into(), "vault".into()],
            exp: NOW + 600,
            iat: NOW,
            iss: issuer.issuer.clone(),
            jti: "id-1".into(),
            kubernetes: KubernetesClaims {
                namespace: "a".into(),
                serviceaccount: ObjectRef { name: "bot".into(), uid: "sa-uid".into() },
                ..KubernetesClaims::default()
            },
            nbf: NOW,
            sub: "system:serviceaccount:a:bot".into(),
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Claims), at: i64, want: Result<(), TokenError>) {
        let issuer = issuer();
        let mut claims = claims(&issuer);
        change(&mut claims);
        let token = issuer.sign(&claims).expect("sign");
        assert_eq!(issuer.check(&token, &issuer.audiences, at).map(|_| ()), want);
    }

    #[test]
    fn time_audience_issuer_and_subject_are_checked() {
        check(|_| (), NOW, Ok(()));
        check(|_| (), NOW + 599, Ok(()));
        check(|_| (), NOW + 600, Err(TokenError::Expired));
        check(|_| (), NOW - 59, Ok(()));
        check(|_| (), NOW - 61, Err(TokenError::NotYet));
        check(|claims| claims.iss = "https://other".into(), NOW, Err(TokenError::Issuer));
        check(|claims| claims.sub = "system:serviceaccount:a:root".into(), NOW, Err(TokenError::Subject));
        let want = TokenError::Audience { have: vec!["vault".into()], want: vec!["api".into()] };
        check(|claims| claims.aud = vec!["vault".into()], NOW, Err(want));
    }

    #[test]
    fn a_single_audience_may_stand_alone() {
        let claims: Claims = serde_json::from_value(serde_json::json!({
            "aud": "api", "exp": 1, "iss": "i", "sub": "s",
            "kubernetes.io": {"namespace": "a", "serviceaccount": {"name": "b"}}
        }))
        .expect("claims");
        assert_eq!(claims.aud, ["api"]);
    }
}
