//! Small requests of the command line to a server: one HTTP/1.1 exchange, or one gRPC call, over mutual TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pintle_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pintle_proto::etcdserverpb::{StatusRequest, StatusResponse};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Answers larger than this are refused: the largest asked for is the list of a few thousand nodes.
const ANSWER_BYTES: usize = 32 << 20;

/// Dials servers of one cluster as one identity. Cheap to clone.
#[derive(Clone)]
pub struct Https {
    http1: Arc<rustls::ClientConfig>,
    http2: Arc<rustls::ClientConfig>,
}

impl Https {
    pub fn new(authority: &crate::pki::Authority, leaf: &crate::pki::Leaf) -> Result<Self> {
        Ok(Self {
            http1: authority.client_config(leaf, &["http/1.1"])?,
            http2: authority.client_config(leaf, &["h2"])?,
        })
    }

    /// `GET path`: status and body.
    pub async fn get(&self, server: SocketAddr, path: &str) -> Result<(u16, Bytes)> {
        self.send(server, "GET", path, None).await
    }

    pub async fn send(
        &self,
        server: SocketAddr,
        method: &str,
        path: &str,
        json: Option<Vec<u8>>,
    ) -> Result<(u16, Bytes)> {
        let stream = connect(&self.http1, server).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("start HTTP/1.1")?;
        let mut request = hyper::Request::builder().method(method).uri(path).header("host", server.to_string());
        if json.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::new(Bytes::from(json.unwrap_or_default()))).context("build request")?;
        let exchange = async {
            let response = sender.send_request(request).await.with_context(|| format!("{method} {path}"))?;
            let status = response.status().as_u16();
            let body = match Limited::new(response.into_body(), ANSWER_BYTES).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => bail!("read the answer of {path}: {error}"),
            };
            Ok((status, body))
        };
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = connection => {
                ended.with_context(|| format!("{method} {path}"))?;
                exchange.await
            }
        }
    }

    /// etcd's `Maintenance.Status` of the member at `server`.
    pub async fn member_status(&self, server: SocketAddr) -> Result<StatusResponse> {
        let stream = connect(&self.http2, server).await?;
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .context("start HTTP/2")?;
        let call = async {
            let service = tower::service_fn(move |request| sender.clone().send_request(request));
            let origin = format!("https://{server}").parse().context("build origin")?;
            let mut client = MaintenanceClient::with_origin(service, origin);
            Ok(client.status(StatusRequest {}).await.context("ask for the member's status")?.into_inner())
        };
        tokio::pin!(call);
        tokio::select! {
            answer = &mut call => answer,
            ended = connection => {
                ended.context("connection to the member")?;
                call.await
            }
        }
    }
}

async fn connect(config: &Arc<rustls::ClientConfig>, server: SocketAddr) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server).await.with_context(|| format!("connect to {server}"))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let name = ServerName::IpAddress(server.ip().into());
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await.with_context(|| format!("TLS with {server}"))
}
