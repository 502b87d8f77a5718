//! Passing a stream request on to the server that holds the node's session, upgrades included.
//!
//! The connection is ours (mutual TLS as `system:pintle:server:NAME`), the user is named in headers. A request is passed
//! on once: a server that has lost the session meanwhile says so instead of looking further.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use http::{StatusCode, Version};
use hyper_util::rt::TokioIo;
use pintle_api::status::Status;
use pintle_base::clock;
use pintle_base::error::Chain;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authn::proxied;
use crate::types::{Body, Config, PeerServer, Request, Response, UserInfo};

/// Marks a request that has been passed on.
const FORWARDED: HeaderName = HeaderName::from_static("pintle-forwarded");
/// Time to connect: servers are near each other, and the client waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn is_forwarded(request: &Request) -> bool {
    request.headers().contains_key(FORWARDED)
}

#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("this server has no certificate for other servers")]
    NoCertificate,
    #[error("{0:?} is not an address of a server")]
    Address(String),
    #[error("connect")]
    Connect(#[source] std::io::Error),
    #[error("no connection in time")]
    Timeout,
    #[error("talk to the server")]
    Http(#[source] hyper::Error),
}

/// Sends the request to `peer` and returns its answer; after a 101 the two connections become one.
pub(super) async fn pass(
    config: &Config,
    peer: &PeerServer,
    user: &UserInfo,
    request: Request,
) -> Result<Response, Status> {
    passed(config, peer, user, request).await.map_err(|error| {
        tracing::warn!(peer = %peer.name, error = %Chain(&error), "request not passed on");
        Status::service_unavailable(format!(
            "the server {:?} that holds the node's session cannot be reached",
            peer.name
        ))
    })
}

async fn passed(
    config: &Config,
    peer: &PeerServer,
    user: &UserInfo,
    request: Request,
) -> Result<Response, ForwardError> {
    let mut connection = connect(config, peer).await?;
    let mut request = prepare(request, peer, user, &config.server_name)?;
    let downstream = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let mut response = connection.send_request(request).await.map_err(ForwardError::Http)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(downstream) = downstream
    {
        let upstream = hyper::upgrade::on(&mut response);
        tokio::spawn(join(upstream, downstream));
    }
    Ok(response.map(Body::new))
}

async fn connect(
    config: &Config,
    peer: &PeerServer,
) -> Result<hyper::client::conn::http1::SendRequest<Body>, ForwardError> {
    let mut tls = rustls::ClientConfig::clone(config.peer_tls.as_ref().ok_or(ForwardError::NoCertificate)?);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()]; // upgrades are of HTTP/1
    let connecting = async {
        let stream = TcpStream::connect(&peer.api_addr).await.map_err(ForwardError::Connect)?;
        let _ = stream.set_nodelay(true);
        let connector = TlsConnector::from(Arc::new(tls));
        connector.connect(server_name(&peer.api_addr)?, stream).await.map_err(ForwardError::Connect)
    };
    let stream = clock::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| ForwardError::Timeout)??;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ForwardError::Http)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = %Chain(&error), "connection to another server broke");
        }
    });
    Ok(sender)
}

/// The host of `host:port`, brackets of IPv6 addresses removed.
fn server_name(address: &str) -> Result<ServerName<'static>, ForwardError> {
    let wrong = || ForwardError::Address(address.to_owned());
    let (host, _) = address.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(|_| wrong())
}

/// The same request in HTTP/1.1, in the name of `user`, marked as passed on.
fn prepare(mut request: Request, peer: &PeerServer, user: &UserInfo, own_name: &str) -> Result<Request, ForwardError> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    *request.uri_mut() = target.parse().map_err(|_| ForwardError::Address(target))?;
    *request.version_mut() = Version::HTTP_11;
    let is_upgrade = request.headers().contains_key(http::header::UPGRADE);
    let headers = request.headers_mut();
    proxied::name_user(headers, user);
    let value = |text: &str| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("server"));
    headers.insert(HOST, value(&peer.api_addr));
    headers.insert(FORWARDED, value(own_name));
    if !is_upgrade {
        headers.remove(CONNECTION);
    }
    Ok(request)
}

async fn join(upstream: hyper::upgrade::OnUpgrade, downstream: hyper::upgrade::OnUpgrade) {
    let Ok((upstream, downstream)) = tokio::try_join!(upstream, downstream) else { return };
    let (mut upstream, mut downstream) = (TokioIo::new(upstream), TokioIo::new(downstream));
    if let Err(error) = tokio::io::copy_bidirectional(&mut upstream, &mut downstream).await {
        tracing::debug!(%error, "forwarded stream broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_names_come_from_addresses() {
        for (address, want) in [("10.0.0.1:6443", "10.0.0.1"), ("[::1]:6443", "::1"), ("s1.example:6443", "s1.example")]
        {
            assert_eq!(server_name(address).expect("name").to_str(), want);
        }
        for bad in ["", "s1", ":6443", "a b:1"] {
            assert!(server_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_passed_request_names_its_user_and_is_marked() {
        let peer = PeerServer { id: 2, name: "s2".into(), api_addr: "10.0.0.2:6443".into() };
        let user = UserInfo { name: "ann".into(), ..UserInfo::default() };
        let request = http::Request::builder()
            .uri("https://api/api/v1/namespaces/a/pods/p/log?follow=true")
            .header("authorization", "Bearer secret")
            .body(Body::empty())
            .expect("request");
        assert!(!is_forwarded(&request));
        let request = prepare(request, &peer, &user, "s1").expect("prepared");
        assert!(is_forwarded(&request));
        assert_eq!(request.uri(), "/api/v1/namespaces/a/pods/p/log?follow=true");
        assert_eq!(request.headers()["x-remote-user"], "ann");
        assert!(!request.headers().contains_key("authorization"));
    }
}
