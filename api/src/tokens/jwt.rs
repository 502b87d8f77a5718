//! Compact JWS with ES256 and nothing else: sign, verify, and the public half as a JWK.
//!
//! Bytes in, bytes out: what a token claims, and when it ends, is the caller's. Signatures take their randomness from the
//! system's generator. Always holds: the algorithm is fixed before the signature is looked at, so a token cannot choose how
//! it is checked; only keys given in the configuration verify.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longest token that is looked at. A bound token is about 1 KiB; long names and many audiences stay below 8 KiB.
pub const TOKEN_MAX: usize = 16 * 1024;

/// Bytes of an uncompressed P-256 point: 0x04, x, y.
const POINT_BYTES: usize = 65;

/// Why a signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the service account key is not a PEM block of type PRIVATE KEY (PKCS #8)")]
    Pem,
    #[error("the service account key is not a P-256 key in PKCS #8: {0}")]
    Rejected(String),
    #[error("a service account public key is not a PEM block of type PUBLIC KEY with a P-256 point")]
    Public,
    #[error("signing failed")]
    Sign,
}

/// Why a token was not accepted. Never carries any part of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("not a compact JWS")]
    Malformed,
    #[error("signed with an algorithm other than ES256")]
    Algorithm,
    #[error("signed by an unknown key or altered")]
    Signature,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// One public key that verifies tokens. The id is the hash of the public key, so that every server computes the same.
#[derive(Clone)]
pub struct VerifyKey {
    pub kid: String,
    point: Vec<u8>,
}

impl VerifyKey {
    fn new(point: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, &spki(point));
        Self { kid: URL_SAFE_NO_PAD.encode(digest.as_ref()), point: point.to_vec() }
    }

    /// The key in the form of RFC 7517, for `/openid/v1/jwks`.
    pub fn jwk(&self) -> Value {
        let (x, y) = self.point.get(1..POINT_BYTES).unwrap_or(&[0; POINT_BYTES - 1]).split_at(32);
        json!({
            "use": "sig", "kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }
}

/// What stands before the point in a SubjectPublicKeyInfo of P-256 (RFC 5480).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

fn spki(point: &[u8]) -> Vec<u8> {
    [SPKI_PREFIX.as_slice(), point].concat()
}

/// The private key tokens are signed with, and all public keys that are accepted.
pub struct Keys {
    signer: EcdsaKeyPair,
    signer_kid: String,
    verifiers: BTreeMap<String, VerifyKey>,
    random: SystemRandom,
}

impl Keys {
    /// Takes the signing key (PKCS #8 PEM) and further public keys (SPKI PEM) that are still accepted.
    ///
    /// The signing key's own public half is always accepted.
    pub fn from_pem(signing: &str, public: &[String]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let der = PrivatePkcs8KeyDer::from_pem_slice(signing.as_bytes()).map_err(|_| KeyError::Pem)?;
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
            .map_err(|rejected| KeyError::Rejected(rejected.to_string()))?;
        let own = VerifyKey::new(signer.public_key().as_ref());
        let signer_kid = own.kid.clone();
        let mut verifiers = BTreeMap::from([(own.kid.clone(), own)]);
        for pem in public {
            let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::Public)?;
            let point = der.as_ref().strip_prefix(&SPKI_PREFIX).filter(|point| point.len() == POINT_BYTES);
            let key = VerifyKey::new(point.ok_or(KeyError::Public)?);
            verifiers.insert(key.kid.clone(), key);
        }
        Ok(Self { signer, signer_kid, verifiers, random })
    }

    /// Signs `claims` and returns the compact form.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, KeyError> {
        let header = Header { alg: "ES256".into(), kid: self.signer_kid.clone() };
        let header = serde_json::to_vec(&header).map_err(|_| KeyError::Sign)?;
        let claims = serde_json::to_vec(claims).map_err(|_| KeyError::Sign)?;
        let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.signer.sign(&self.random, token.as_bytes()).map_err(|_| KeyError::Sign)?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature.as_ref()));
        Ok(token)
    }

    /// Checks the signature and returns the claims. Says nothing about time, issuer or audience.
    pub fn verify<C: for<'de> Deserialize<'de>>(&self, token: &str) -> Result<C, JwtError> {
        if token.len() > TOKEN_MAX {
            return Err(JwtError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(JwtError::Malformed)?;
        let header: Header = part(header)?;
        if header.alg != "ES256" {
            return Err(JwtError::Algorithm);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtError::Malformed)?;
        let key = self.verifiers.get(&header.kid).ok_or(JwtError::Signature)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point)
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| JwtError::Signature)?;
        part(claims)
    }

    /// All public keys as a JSON Web Key Set.
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.verifiers.values().map(VerifyKey::jwk).collect::<Vec<_>>() })
    }
}

/// Reads the issuer without checking anything, to decide whose token this is. `None` if it is no JWT.
pub fn unverified_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        #[serde(default)]
        iss: String,
    }
    if token.len() > TOKEN_MAX {
        return None;
    }
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    part::<Issuer>(claims).ok().map(|issuer| issuer.iss)
}

fn part<T: for<'de> Deserialize<'de>>(encoded: &str) -> Result<T, JwtError> {
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwtError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fresh P-256 key as PEM.
    fn fresh_pem() -> String {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("key");
        pem("PRIVATE KEY", der.as_ref())
    }

    /// The public half of `keys` as PEM.
    fn public_pem(keys: &Keys) -> String {
        pem("PUBLIC KEY", &spki(keys.signer.public_key().as_ref()))
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).expect("ascii")).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    fn keys() -> Keys {
        Keys::from_pem(&fresh_pem(), &[]).expect("keys")
    }

    fn forged(header: Value, token: &str) -> String {
        let rest = token.split_once('.').expect("token").1;
        format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
    }

    #[test]
    fn a_signed_token_verifies_and_shows_its_issuer() {
        let keys = keys();
        let token = keys.sign(&json!({"iss": "me", "sub": "you"})).expect("sign");
        assert_eq!(keys.verify::<Value>(&token).expect("verify")["sub"], "you");
        assert_eq!(unverified_issuer(&token).as_deref(), Some("me"));
    }

    #[test]
    fn another_key_does_not_verify() {
        let token = keys().sign(&json!({"iss": "me"})).expect("sign");
        assert_eq!(keys().verify::<Value>(&token), Err(JwtError::Signature));
    }

    #[test]
    fn an_old_key_still_verifies_while_keys_rotate() {
        let old = keys();
        let token = old.sign(&json!({"a": 1})).expect("sign");
        let rotated = Keys::from_pem(&fresh_pem(), &[public_pem(&old)]).expect("keys");
        assert!(rotated.verify::<Value>(&token).is_ok());
        assert_eq!(rotated.jwks()["keys"].as_array().map(Vec::len), Some(2));
        assert!(matches!(Keys::from_pem(&fresh_pem(), &["x".into()]), Err(KeyError::Public)));
        assert!(matches!(Keys::from_pem(&public_pem(&old), &[]), Err(KeyError::Pem)));
    }

    #[test]
    fn the_algorithm_cannot_be_chosen_by_the_token() {
        let keys = keys();
        let token = keys.sign(&json!({"iss": "me"})).expect("sign");
        for alg in ["none", "HS256", "ES384", ""] {
            let header = json!({"alg": alg, "kid": keys.signer_kid});
            assert_eq!(keys.verify::<Value>(&forged(header, &token)), Err(JwtError::Algorithm));
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let keys = keys();
        let token = keys.sign(&json!({"iss": "me", "n": 7})).expect("sign");
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(bytes).expect("ascii");
            assert!(keys.verify::<Value>(&altered).is_err(), "byte {at}");
        }
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        let keys = keys();
        for token in ["", ".", "..", "...", "a.b.c", "é.é.é", "\0.\0.\0", &"A".repeat(TOKEN_MAX + 1)] {
            assert!(keys.verify::<Value>(token).is_err());
        }
    }
}
