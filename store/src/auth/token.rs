//! What a client shows after it logged in: who it is, until when.
//!
//! `simple` tokens are signed with a key that is replicated with the users, so that every member knows them at once and none is
//! lost when a member restarts. They end when they were not used for their time, when the user's password changed, and when
//! authentication is switched off. `jwt` tokens are signed with a key pair of the operator's, and end as they say.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf, BufMut};
use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use pintle_proto::store_v1::{AuthFailure, Caller};
use ring::hmac;
use ring::rand::SecureRandom;

use super::failure::AuthError;
use super::jwt::{Jwt, JwtOptions};
use super::state::AuthState;
use crate::error::StoreError;
use crate::limits;

/// How logins are kept.
#[derive(Clone, Debug)]
pub enum TokenOptions {
    /// `unused` is how long a token lives without being used.
    Simple {
        unused: Duration,
    },
    Jwt(JwtOptions),
}

impl Default for TokenOptions {
    fn default() -> Self {
        Self::Simple { unused: limits::TOKEN_TTL }
    }
}

pub(crate) enum Tokens {
    Simple(Simple),
    Jwt(Box<Jwt>),
}

impl Tokens {
    pub fn new(options: &TokenOptions) -> Self {
        match options {
            TokenOptions::Simple { unused } => Self::Simple(Simple { unused: *unused, used: Mutex::default() }),
            TokenOptions::Jwt(options) => Self::Jwt(Box::new(Jwt::new(options))),
        }
    }

    /// A token for a user who just logged in.
    pub fn mint(&self, state: &AuthState, name: &str, credential_revision: u64) -> Result<String, StoreError> {
        match self {
            Self::Simple(_) if state.token_key.is_empty() => Err(StoreError::NoLeader), // the first one makes the key
            Self::Simple(simple) => Ok(simple.mint(state, name, credential_revision)),
            Self::Jwt(jwt) => jwt.mint(name, state.revision),
        }
    }

    /// Whose token it is.
    pub fn caller(&self, state: &AuthState, token: &str) -> Result<Caller, AuthError> {
        let caller = match self {
            Self::Simple(simple) => simple.caller(state, token),
            Self::Jwt(jwt) => jwt.caller(token),
        };
        caller.ok_or(AuthError(AuthFailure::InvalidToken))
    }
}

/// A key for a cluster's tokens.
pub(crate) fn new_key() -> Result<Vec<u8>, StoreError> {
    let mut key = vec![0; 32];
    let filled = ring::rand::SystemRandom::new().fill(&mut key);
    filled.map_err(|_| StoreError::storage(std::io::Error::other("the system gives no random numbers")))?;
    Ok(key)
}

pub(crate) struct Simple {
    unused: Duration,
    /// When tokens were last used at this member, by their signatures.
    used: Mutex<HashMap<[u8; SIGNATURE], Instant>>,
}

const SIGNATURE: usize = 32;
/// Issued at, and the credential revision.
const FIXED: usize = 16;

impl Simple {
    fn mint(&self, state: &AuthState, name: &str, credential_revision: u64) -> String {
        let mut body = Vec::with_capacity(FIXED + name.len());
        body.put_u64(clock::unix_millis());
        body.put_u64(credential_revision);
        body.put_slice(name.as_bytes());
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &state.token_key), &body);
        format!("{}.{}", URL_SAFE_NO_PAD.encode(signature), URL_SAFE_NO_PAD.encode(body))
    }

    fn caller(&self, state: &AuthState, token: &str) -> Option<Caller> {
        if token.len() > limits::TOKEN_BYTES || state.token_key.is_empty() {
            return None;
        }
        let (signature, body) = token.split_once('.')?;
        let signature: [u8; SIGNATURE] = URL_SAFE_NO_PAD.decode(signature).ok()?.try_into().ok()?;
        let body = URL_SAFE_NO_PAD.decode(body).ok()?;
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &state.token_key), &body, &signature).ok()?;
        let mut rest = body.get(..FIXED)?;
        let (issued, credential_revision) = (rest.get_u64(), rest.get_u64());
        let name = String::from_utf8(body[FIXED..].to_vec()).ok()?;
        let current = state.user(&name).is_some_and(|user| user.credential_revision == credential_revision);
        if !current || !self.is_in_use(signature, issued) {
            return None;
        }
        Some(Caller { name, auth_revision: 0, credential_revision })
    }

    /// Marks the token as used now, if it was within its time: since it was made, or since its last use here.
    fn is_in_use(&self, signature: [u8; SIGNATURE], issued: u64) -> bool {
        let now = clock::now();
        let age = Duration::from_millis(clock::unix_millis().saturating_sub(issued));
        let mut used = self.used.lock();
        let fresh = age <= self.unused;
        let recent = used.get(&signature).is_some_and(|last| now.duration_since(*last) <= self.unused);
        if !fresh && !recent {
            used.remove(&signature);
            return false;
        }
        if used.len() >= limits::TOKENS && !used.contains_key(&signature) {
            used.retain(|_, last| now.duration_since(*last) <= self.unused);
        }
        // Beyond the bound a token lives as long as it says itself, and no longer.
        if used.len() < limits::TOKENS || used.contains_key(&signature) {
            used.insert(signature, now);
        }
        true
    }
}
