//! Connections: one member's address, over TCP or a Unix socket, in plain text or TLS.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use pintle_client::remote::unverified::AnyServer;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::Failure;
use super::settings::{Settings, TlsFiles};
use crate::pki;

/// Pings more often than this are taken for an attack by servers.
const KEEPALIVE_LEAST: std::time::Duration = std::time::Duration::from_secs(10);

/// Where distributions keep the authorities that a machine trusts.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// No server has more metrics.
const METRICS_BYTES: usize = 16 << 20;

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// One member, as the user named it.
#[derive(Clone)]
pub struct Target {
    pub name: String,
    address: Address,
    /// The host's name in its certificate.
    host: String,
    tls: Option<Arc<ClientConfig>>,
}

#[derive(Clone)]
enum Address {
    /// `host:port`
    Tcp(String),
    Unix(String),
}

impl Target {
    /// Reads an endpoint: `host:port`, with a scheme or without one.
    ///
    /// # Errors
    /// Files that cannot be read or used.
    pub fn new(endpoint: &str, settings: &Settings) -> Result<Self, Failure> {
        let files = &settings.tls;
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
        let secure = match scheme {
            "https" | "unixs" => true,
            "" => files.any() || !files.insecure_transport,
            _ => false,
        };
        let tls =
            if secure { Some(config(files).map_err(|error| Failure::bad_args(format!("{error:#}")))?) } else { None };
        let (address, host) = if scheme.starts_with("unix") {
            (Address::Unix(rest.to_owned()), "localhost".to_owned())
        } else {
            let authority = rest.split('/').next().unwrap_or_default();
            let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
            (Address::Tcp(authority.to_owned()), host.trim_matches(['[', ']']).to_owned())
        };
        Ok(Self { name: endpoint.to_owned(), address, host, tls })
    }

    /// # Errors
    /// Whatever kept it from connecting within the settings' time, with its cause.
    pub async fn connect(&self, settings: &Settings) -> Result<Channel> {
        let target = self.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let target = target.clone();
            async move { target.stream().await.map(TokioIo::new).map_err(std::io::Error::other) }
        });
        let authority = match &self.address {
            Address::Tcp(authority) => authority.as_str(),
            Address::Unix(_) => "localhost",
        };
        // The connector does TLS; for the rest of the stack it is a plain connection.
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))
            .with_context(|| format!("{:?} is not host:port", self.name))?
            .connect_timeout(settings.dial_timeout)
            .http2_keep_alive_interval(settings.keepalive_time.max(KEEPALIVE_LEAST))
            .keep_alive_timeout(settings.keepalive_timeout)
            .user_agent(concat!("pintle/", env!("CARGO_PKG_VERSION")))?;
        let connecting = endpoint.connect_with_connector(connector);
        let late = || format!("no connection to {} within {:?}", self.name, settings.dial_timeout);
        tokio::time::timeout(settings.dial_timeout, connecting).await.with_context(late)?.map_err(innermost)
    }

    /// `GET path` over HTTP/1.1: the text of a good answer.
    pub async fn get(&self, path: &str) -> Result<String> {
        let mut target = self.clone();
        target.tls = self.tls.as_ref().map(|tls| {
            let mut tls = ClientConfig::clone(tls);
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(tls)
        });
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(target.stream().await?)).await?;
        let request = http::Request::get(path).header("host", &self.host).body(Empty::<Bytes>::new())?;
        let exchange = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), METRICS_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{path}: {error}"))?.to_bytes();
            anyhow::ensure!(status.is_success(), "{path}: {status}");
            Ok(String::from_utf8_lossy(&body).into_owned())
        };
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = connection => {
                ended?;
                exchange.await
            }
        }
    }

    async fn stream(&self) -> Result<Pin<Box<dyn Stream>>> {
        let plain: Pin<Box<dyn Stream>> = match &self.address {
            Address::Unix(path) => Box::pin(UnixStream::connect(path).await?),
            Address::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                Box::pin(stream)
            }
        };
        let Some(tls) = &self.tls else { return Ok(plain) };
        let name =
            ServerName::try_from(self.host.clone()).with_context(|| format!("{:?} is no host name", self.host))?;
        Ok(Box::pin(TlsConnector::from(Arc::clone(tls)).connect(name, plain).await?))
    }
}

/// The layers between say only that it went wrong; the last cause says what.
fn innermost(error: tonic::transport::Error) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    let cause = error.root_cause().to_string();
    if cause.is_empty() { error } else { anyhow::anyhow!(cause) }
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {path}"))
}

fn config(files: &TlsFiles) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder();
    let builder = if files.skip_verify {
        let anybody = AnyServer::verifier(builder.crypto_provider());
        builder.dangerous().with_custom_certificate_verifier(anybody)
    } else {
        let roots = match &files.authorities {
            Some(path) => pki::roots(&read(path)?).with_context(|| format!("authorities of {path}"))?,
            None => system_roots()?,
        };
        builder.with_root_certificates(roots)
    };
    let mut config = match (&files.certificate, &files.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(pki::certificates(&read(certificate)?)?, pki::private_key(&read(key)?)?)
            .with_context(|| format!("use the certificate {certificate}"))?,
        (certificate, key) => {
            let shown = |path: &Option<String>| path.clone().unwrap_or_default();
            bail!("KeyFile and CertFile must both be present[key: {}, cert: {}]", shown(key), shown(certificate));
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn system_roots() -> Result<rustls::RootCertStore> {
    let chosen = std::env::var("SSL_CERT_FILE").ok();
    let paths = chosen.as_deref().into_iter().chain(SYSTEM_AUTHORITIES);
    let found = paths.into_iter().find_map(|path| std::fs::read_to_string(path).ok());
    let text = found.context("this machine names no authorities it trusts; give them with --cacert")?;
    let mut roots = rustls::RootCertStore::empty();
    // A machine's list may hold some that cannot be used.
    roots.add_parsable_certificates(pki::certificates(&text)?);
    Ok(roots)
}
