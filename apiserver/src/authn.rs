//! Authentication: whose request this is.
//!
//! Order: the verified client certificate of the connection ([`x509`]), or a bearer token: service account
//! ([`service_account`], or out of a Secret: [`legacy_token`]) or bootstrap ([`bootstrap_token`]). A fellow server may then name the user it speaks for
//! ([`proxied`]), and anybody may ask to be somebody else ([`impersonation`]), if authorised. A credential that is shown
//! and bad is 401; no credential is anonymous. Why a credential was refused is logged, without the credential, and told
//! to nobody.

pub(crate) mod bootstrap_token;
pub(crate) mod impersonation;
pub(crate) mod legacy_token;
pub(crate) mod proxied;
pub(crate) mod service_account;
pub(crate) mod x509;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use pintle_api::status::Status;
use pintle_base::clock;
use serde_json::Value;

use crate::authz::live::Live;
use crate::authz::{Authorizer, SERVERS};
use crate::tokens::{Form, Issuer};
use crate::types::{AUTHENTICATED, Authenticate, PeerCerts, UserInfo};

/// Sub-protocol in which browsers carry a bearer token, as they cannot set headers on a WebSocket.
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// Why a bearer token was not accepted; for the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefusedToken {
    #[error("not a token of any known kind")]
    Unknown,
    #[error(transparent)]
    Token(#[from] crate::tokens::TokenError),
    #[error("{what} {name:?} is gone, was replaced or is being deleted")]
    Gone { what: &'static str, name: String },
    #[error("token of secret {secret:?}: {why}")]
    Legacy { secret: String, why: &'static str },
    #[error("bootstrap token {id:?}: {why}")]
    Bootstrap { id: String, why: &'static str },
}

/// A user proven by a token, and for which of the asked audiences.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TokenUser {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

pub struct Authenticator {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) live: Arc<dyn Live>,
    pub(crate) authorizer: Arc<Authorizer>,
}

impl Authenticator {
    async fn identify(
        &self,
        parts: &http::request::Parts,
        peer: Option<&PeerCerts>,
    ) -> Result<Option<UserInfo>, Status> {
        let shown = match peer.and_then(|certs| x509::identity(certs, clock::unix_seconds())) {
            Some(Ok(user)) if user.in_group(SERVERS) => Some(proxied::speaker(user, &parts.headers)?),
            Some(Ok(user)) => Some(user),
            // A good token beside a bad certificate is enough; without one the certificate is what was refused.
            Some(Err(why)) => {
                tracing::info!(error = %why, "client certificate refused");
                Some(self.bearer(&parts.headers).await?.ok_or_else(Status::unauthorized)?)
            }
            None => self.bearer(&parts.headers).await?,
        };
        if !impersonation::asked(&parts.headers) {
            return Ok(shown);
        }
        let asker = shown.unwrap_or_else(UserInfo::anonymous);
        impersonation::become_other(&self.authorizer, &asker, &parts.headers).map(Some)
    }

    async fn bearer(&self, headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
        let Some(token) = bearer_token(headers) else { return Ok(None) };
        match self.token(&token, &self.issuer.audiences).await {
            Ok(found) => Ok(Some(found.user)),
            Err(why) => {
                tracing::info!(error = %why, "bearer token refused");
                Err(Status::unauthorized())
            }
        }
    }

    /// Whose token this is, for the given audiences. Used by the edge and by TokenReview.
    pub(crate) async fn token(&self, token: &str, audiences: &[String]) -> Result<TokenUser, RefusedToken> {
        let now = clock::unix_seconds();
        match self.issuer.form(token) {
            Some(Form::Bound) => {
                return service_account::identify(&self.issuer, &*self.live, token, audiences, now).await;
            }
            Some(Form::Legacy) => return legacy_token::identify(&self.issuer, &*self.live, token, audiences).await,
            None => (),
        }
        let Some((id, secret)) = bootstrap_token::split(token) else { return Err(RefusedToken::Unknown) };
        let user = bootstrap_token::identify(&*self.live, id, secret, now)?;
        Ok(TokenUser { user, audiences: audiences.to_vec() })
    }
}

impl Authenticate for Authenticator {
    fn authenticate<'a>(
        &'a self,
        parts: &'a http::request::Parts,
        peer: Option<&'a PeerCerts>,
    ) -> BoxFuture<'a, Result<Option<UserInfo>, Status>> {
        Box::pin(self.identify(parts, peer))
    }
}

/// The bearer token of the Authorization header or of a WebSocket sub-protocol.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let encoded = offered.flat_map(|line| line.split(',')).find_map(|one| one.trim().strip_prefix(WEBSOCKET_BEARER))?;
    let token = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?;
    String::from_utf8(token).ok().filter(|token| !token.is_empty())
}

/// Adds the group of everybody who has proven an identity.
pub(crate) fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

/// An entry of a Secret's data; empty if it is absent or no base64.
fn secret_data(secret: &Value, key: &str) -> Vec<u8> {
    let encoded = secret.get("data").and_then(|data| data.get(key)).and_then(Value::as_str).unwrap_or("");
    STANDARD.decode(encoded).unwrap_or_default()
}

/// Compares without telling by its duration where the difference is. Lengths are not secret.
pub(crate) fn constant_time_eq(left: &[u8], right: &[u8]) -> bool {
    let differing = left.iter().zip(right).fold(0_u8, |acc, (l, r)| std::hint::black_box(acc | (l ^ r)));
    left.len() == right.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().expect("header"))])
    }

    #[test]
    fn tokens_are_found_in_headers_and_subprotocols() {
        let table = [
            (headers(AUTHORIZATION, "Bearer abc"), Some("abc")),
            (headers(AUTHORIZATION, "bearer  abc "), Some("abc")),
            (headers(AUTHORIZATION, "Basic abc"), None),
            (headers(AUTHORIZATION, "Bearer"), None),
            (
                headers(SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj"),
                Some("abc"),
            ),
            (headers(SEC_WEBSOCKET_PROTOCOL, "base64url.bearer.authorization.k8s.io.***"), None),
        ];
        for (headers, want) in table {
            assert_eq!(bearer_token(&headers).as_deref(), want, "{headers:?}");
        }
    }

    #[test]
    fn comparison_is_exact() {
        assert!(constant_time_eq(b"abc", b"abc"));
        for (left, right) in [("abc", "abd"), ("abc", "ab"), ("", "a")] {
            assert!(!constant_time_eq(left.as_bytes(), right.as_bytes()));
        }
    }
}
