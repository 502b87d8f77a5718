//! JSON web tokens: signed by the operator's key, so that others can make them too. Claims are etcd's: `username`, `revision`, `exp`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use pintle_base::clock;
use pintle_proto::store_v1::Caller;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::limits;

/// Keys and lifetime of signed tokens.
#[derive(Clone)]
pub struct JwtOptions {
    algorithm: Algorithm,
    /// Without it tokens are only checked; others make them.
    signing: Option<EncodingKey>,
    verifying: DecodingKey,
    ttl: Duration,
}

/// Why the options of signed tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    #[error("sign-method {0} is not known; RS256 to RS512, PS256 to PS512, ES256, ES384, HS256 to HS512 and EdDSA are")]
    Method(String),
    #[error("sign-method {method} needs {key}")]
    Missing { method: String, key: &'static str },
    #[error("read {path}")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} holds no key of {method}")]
    Key {
        path: String,
        method: String,
        #[source]
        source: jsonwebtoken::errors::Error,
    },
}

impl fmt::Debug for JwtOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtOptions").field("algorithm", &self.algorithm).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

impl JwtOptions {
    /// Reads the keys. HS methods have one secret, in the file of the private key; the others a pair, of which one half is enough
    /// to check tokens.
    pub fn read(
        method: &str,
        public_key: Option<&Path>,
        private_key: Option<&Path>,
        ttl: Option<Duration>,
    ) -> Result<Self, JwtError> {
        let algorithm = Algorithm::from_str(method).map_err(|_| JwtError::Method(method.to_owned()))?;
        let missing = |key| JwtError::Missing { method: method.to_owned(), key };
        let ttl = ttl.unwrap_or(limits::TOKEN_TTL);
        if is_symmetric(algorithm) {
            let secret = file(private_key.ok_or_else(|| missing("priv-key"))?)?;
            let (signing, verifying) = (EncodingKey::from_secret(&secret), DecodingKey::from_secret(&secret));
            return Ok(Self { algorithm, signing: Some(signing), verifying, ttl });
        }
        let of =
            |path: &Path, source| JwtError::Key { path: path.display().to_string(), method: method.to_owned(), source };
        let public = public_key.ok_or_else(|| missing("pub-key"))?;
        let verifying = decoding(algorithm, &file(public)?).map_err(|source| of(public, source))?;
        let signing = match private_key {
            Some(path) => Some(encoding(algorithm, &file(path)?).map_err(|source| of(path, source))?),
            None => None,
        };
        Ok(Self { algorithm, signing, verifying, ttl })
    }
}

fn is_symmetric(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

fn file(path: &Path) -> Result<Vec<u8>, JwtError> {
    std::fs::read(path).map_err(|source| JwtError::Read { path: path.display().to_string(), source })
}

fn encoding(algorithm: Algorithm, pem: &[u8]) -> jsonwebtoken::errors::Result<EncodingKey> {
    match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(pem),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(pem),
        _ => EncodingKey::from_rsa_pem(pem),
    }
}

fn decoding(algorithm: Algorithm, pem: &[u8]) -> jsonwebtoken::errors::Result<DecodingKey> {
    match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem(pem),
        Algorithm::EdDSA => DecodingKey::from_ed_pem(pem),
        _ => DecodingKey::from_rsa_pem(pem),
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: u64,
    exp: u64,
}

pub(crate) struct Jwt {
    options: JwtOptions,
    validation: Validation,
}

impl Jwt {
    pub fn new(options: &JwtOptions) -> Self {
        let mut validation = Validation::new(options.algorithm);
        validation.leeway = 0;
        Self { options: options.clone(), validation }
    }

    pub fn mint(&self, name: &str, revision: u64) -> Result<String, StoreError> {
        let failed = |error| StoreError::storage(std::io::Error::other(error));
        let Some(key) = &self.options.signing else {
            return Err(failed("auth: token signing attempted with verify-only key".into()));
        };
        let exp = clock::unix_millis() / 1000 + self.options.ttl.as_secs();
        let claims = Claims { username: name.to_owned(), revision, exp };
        jsonwebtoken::encode(&Header::new(self.options.algorithm), &claims, key)
            .map_err(|error| failed(Box::<dyn std::error::Error + Send + Sync>::from(error)))
    }

    pub fn caller(&self, token: &str) -> Option<Caller> {
        if token.len() > limits::TOKEN_BYTES {
            return None;
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.options.verifying, &self.validation).ok()?.claims;
        Some(Caller { name: claims.username, auth_revision: claims.revision, credential_revision: 0 })
    }
}
