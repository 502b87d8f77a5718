//! Certificates that a member makes for itself: `--auto-tls`, `--peer-auto-tls`. They keep nobody out who reaches the port;
//! they keep what is said from those who only listen.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::load;
use crate::pki;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The certificate and key in `directory`, where etcd keeps them; made if there are none that can be used today.
pub fn load_or_create(directory: &Path, hosts: &[String], years: u32) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    if certificate.exists() && key.exists() {
        match load::pair(&certificate, &key) {
            Ok(chain) if chain.first().is_some_and(load::is_valid_now) => return Ok((certificate, key)),
            Ok(_) => tracing::warn!(file = %certificate.display(), "the certificate made before has expired"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the certificate made before cannot be used"),
        }
    }
    pki::private_directory(directory)?;
    let leaf = pki::self_signed("etcd", hosts, YEAR * years).context("make a certificate")?;
    pki::write_private(&key, &leaf.key)?;
    pki::write_private(&certificate, &leaf.certificate)?;
    tracing::warn!(file = %certificate.display(), years, "made a certificate: clients cannot know that it is this member's");
    Ok((certificate, key))
}
