//! TLS settings from files. Errors name the flag, the file and what to do, because users see them at start.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use pintle_base::clock;
use pintle_client::remote::unverified::AnyServer;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Files;
use super::check::{Checked, Revoked, Rules};
use super::files::Protocol;
use crate::pki;

/// No file of certificates is larger; lists of revoked ones of a large authority come near.
const FILE_BYTES: u64 = 16 << 20;

/// Settings for a listener. Who is given authorities asks every client for a certificate, as etcd does.
pub fn server(files: &Files) -> Result<ServerConfig> {
    let provider = provider(&files.protocol);
    let (chain, key) = own(files)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&files.protocol.versions)
        .context("--cipher-suites, --tls-min-version and --tls-max-version leave nothing to speak")?;
    let builder = match roots(files)? {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.with_context(|| files.flag("trusted-ca-file"))?;
            builder.with_client_cert_verifier(Arc::new(Checked { inner: verifier, rules: rules(files)? }))
        }
        None => builder.with_no_client_auth(),
    };
    builder.with_single_cert(chain, key).with_context(|| unusable(files))
}

/// Settings for dialling the other members.
pub fn client(files: &Files) -> Result<ClientConfig> {
    let provider = provider(&files.protocol);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&files.protocol.versions)
        .context("--cipher-suites, --tls-min-version and --tls-max-version leave nothing to speak")?
        .dangerous();
    let builder = match roots(files)? {
        Some(roots) => {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.with_context(|| files.flag("trusted-ca-file"))?;
            builder.with_custom_certificate_verifier(Arc::new(Checked { inner: verifier, rules: rules(files)? }))
        }
        None => builder.with_custom_certificate_verifier(AnyServer::verifier(&provider)),
    };
    let (chain, key) = own(files)?;
    builder.with_client_auth_cert(chain, key).with_context(|| unusable(files))
}

fn provider(protocol: &Protocol) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: protocol.suites.clone(), ..provider::default_provider() })
}

fn unusable(files: &Files) -> String {
    let shown = |path: &Option<std::path::PathBuf>| path.as_deref().unwrap_or(Path::new("")).display().to_string();
    format!(
        "{} {} and {} {}: they cannot be used together; give a certificate and the key it was made for (P-256, P-384, Ed25519 or RSA)",
        files.flag("cert-file"),
        shown(&files.certificate),
        files.flag("key-file"),
        shown(&files.key)
    )
}

type Own = (Vec<CertificateDer<'static>>, rustls_pki_types::PrivateKeyDer<'static>);

fn own(files: &Files) -> Result<Own> {
    let (Some(certificate), Some(key)) = (&files.certificate, &files.key) else {
        bail!("an https URL needs {} and {}", files.flag("cert-file"), files.flag("key-file"));
    };
    let chain = pki::certificates(&text(certificate, &files.flag("cert-file"))?)
        .with_context(|| broken(&files.flag("cert-file"), certificate, "a certificate in PEM"))?;
    let private = pki::private_key(&text(key, &files.flag("key-file"))?)
        .with_context(|| broken(&files.flag("key-file"), key, "a private key in PEM"))?;
    if chain.first().is_some_and(|leaf| !is_valid_now(leaf)) {
        tracing::warn!(file = %certificate.display(), "this certificate is not valid today: who checks it will refuse it; renew it");
    }
    Ok((chain, private))
}

/// The chain of a pair of files, if they belong together.
pub fn pair(certificate: &Path, key: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let chain = pki::certificates(&text(certificate, "certificate")?)?;
    let private = pki::private_key(&text(key, "key")?)?;
    CertifiedKey::from_der(chain.clone(), private, &provider::default_provider()).context("use the key")?;
    Ok(chain)
}

fn roots(files: &Files) -> Result<Option<RootCertStore>> {
    let Some(path) = &files.authorities else { return Ok(None) };
    let flag = files.flag("trusted-ca-file");
    let text = text(path, &flag)?;
    let certificates =
        pki::certificates(&text).with_context(|| broken(&flag, path, "certificates of authorities in PEM"))?;
    if !certificates.iter().any(is_valid_now) {
        bail!("{flag} {}: no certificate in it is valid today; renew the authority's", path.display());
    }
    let roots = pki::roots(&text).with_context(|| broken(&flag, path, "certificates of authorities in PEM"))?;
    Ok(Some(roots))
}

fn rules(files: &Files) -> Result<Rules> {
    let revoked = match &files.revoked {
        None => Revoked::default(),
        Some(path) => {
            let flag = files.revoked_flag();
            let bytes = bytes(path, flag)?;
            Revoked::read(&bytes).with_context(|| broken(flag, path, "a revocation list, in PEM or DER"))?
        }
    };
    Ok(Rules { allowed: files.allowed.clone(), revoked })
}

pub fn is_valid_now(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let seconds = clock::wall().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let now = seconds.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default();
    let validity = parsed.validity();
    (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now)
}

fn broken(flag: &str, path: &Path, wanted: &str) -> String {
    format!("{flag} {}: it is to hold {wanted}; look at it with `openssl`", path.display())
}

fn text(path: &Path, flag: &str) -> Result<String> {
    String::from_utf8(bytes(path, flag)?).map_err(|_| anyhow::anyhow!("{flag} {}: it is not PEM", path.display()))
}

fn bytes(path: &Path, flag: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(FILE_BYTES + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("{flag} {}: read it; is it there, and may this user read it?", path.display()))?;
    if bytes.len() as u64 > FILE_BYTES {
        bail!("{flag} {}: it is larger than {FILE_BYTES} bytes", path.display());
    }
    Ok(bytes)
}
