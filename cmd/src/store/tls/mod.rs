//! TLS of a member: what its flags ask for, made from files that are looked at again with each connection.
//!
//! Flow: flags → [`Files`] → [`load`] → [`renew`], asked for by each listener and each dial. Always holds: every listener of
//! one side has its settings from the same place, so that none forgets a check; a member that started keeps working
//! settings whatever becomes of its files.

mod check;
mod files;
mod load;
mod own;
mod renew;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use pintle_base::current::Current;
use pintle_raft as raft;
use pintle_store::etcd;
use rustls_pki_types::CertificateDer;

pub use self::files::Files;
use super::config::{Config, Url};
use crate::pki;

/// TLS for clients, for all listeners whose URL asks for it; none if no URL does.
pub fn clients(config: &Config) -> Result<Option<etcd::Tls>> {
    let urls = || config.listen_clients.iter().chain(&config.listen_http).chain(&config.listen_metrics);
    let hosts: Vec<&Url> = config.listen_clients.iter().chain(&config.listen_http).collect();
    let files = with_own(&config.client_tls, &config.data_dir, &hosts)?;
    if files.certificate.is_some() {
        for url in urls().filter(|url| !url.tls) {
            tracing::warn!(%url, "the scheme of this URL is http while there are certificate files: it is served in plain text");
        }
    }
    let Some(url) = urls().find(|url| url.tls) else { return Ok(None) };
    if files.certificate.is_none() {
        bail!(
            "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme, or --auto-tls"
        );
    }
    let logs_in = files.need_client;
    let admit = move |certificates: &[CertificateDer<'_>]| {
        etcd::Admission::As(certificates.first().filter(|_| logs_in).and_then(pki::common_name))
    };
    Ok(Some(etcd::Tls { config: renew::current(files, load::server)?, admit: Arc::new(admit) }))
}

/// How this member talks with others: as the scheme of its peer URL says.
pub fn peering(config: &Config) -> Result<raft::Peering> {
    if !config.listen_peer.tls {
        return Ok(raft::Peering::Plain);
    }
    let files = with_own(&config.peer_tls, &config.data_dir, &[&config.listen_peer])?;
    if files.certificate.is_none() {
        bail!("--peer-cert-file and --peer-key-file must be given for {}, or --peer-auto-tls", config.listen_peer);
    }
    if files.own {
        tracing::warn!(
            "--peer-auto-tls: members do not check each other's certificates, whoever reaches the port is believed"
        );
    } else if files.authorities.is_none() {
        bail!("--peer-trusted-ca-file is needed: members check each other's certificates");
    }
    let server: Current<rustls::ServerConfig> = renew::current(files.clone(), load::server)?;
    let client: Current<rustls::ClientConfig> = renew::current(files, load::client)?;
    Ok(raft::Peering::Trusting(raft::Tls { server, client }))
}

/// The files, of a certificate this member made for itself if it was to and has no other.
fn with_own(files: &Files, data_dir: &Path, urls: &[&Url]) -> Result<Files> {
    let flag = files.flag("auto-tls");
    if !files.auto {
        return Ok(files.clone());
    }
    if files.certificate.is_some() {
        tracing::warn!("{flag} changes nothing: certificate files are given");
        return Ok(files.clone());
    }
    if files.is_peer && files.authorities.is_some() {
        bail!(
            "{flag} and --peer-trusted-ca-file exclude each other: members that make their own certificates cannot check \
             others'; give --peer-cert-file and --peer-key-file instead"
        );
    }
    let directory = data_dir.join("fixtures").join(if files.is_peer { "peer" } else { "client" });
    let hosts: Vec<String> = urls.iter().map(|url| url.host().to_owned()).collect();
    let (certificate, key) =
        own::load_or_create(&directory, &hosts, files.validity_years).with_context(|| flag.clone())?;
    Ok(Files { certificate: Some(certificate), key: Some(key), own: true, ..files.clone() })
}
