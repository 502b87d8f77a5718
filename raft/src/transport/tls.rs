//! TLS of the peer transport, and the names in certificates.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pintle_base::current::Current;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::CERTIFICATE_NAME_PREFIX;
use crate::limits;
use crate::start::{Peering, Tls};

/// A connection could not be made: nothing was sent on it.
#[derive(Debug, thiserror::Error)]
#[error("connect to {addr}: {reason}")]
pub(crate) struct ConnectError {
    pub addr: String,
    pub reason: String,
}

/// How a member calls others.
#[derive(Clone)]
pub(crate) struct Calling {
    tls: Option<Current<rustls::ClientConfig>>,
    named: bool,
}

impl Calling {
    pub fn new(peering: &Peering) -> Self {
        let config = |tls: &Tls| Some(tls.client.clone());
        match peering {
            Peering::Named(tls) => Self { tls: config(tls), named: true },
            Peering::Trusting(tls) => Self { tls: config(tls), named: false },
            Peering::Plain => Self { tls: None, named: false },
        }
    }
}

/// How a member answers others.
#[derive(Clone)]
pub(super) struct Answering {
    tls: Option<Current<rustls::ServerConfig>>,
    named: bool,
}

impl Answering {
    pub fn new(peering: &Peering) -> Self {
        let config = |tls: &Tls| Some(tls.server.clone());
        match peering {
            Peering::Named(tls) => Self { tls: config(tls), named: true },
            Peering::Trusting(tls) => Self { tls: config(tls), named: false },
            Peering::Plain => Self { tls: None, named: false },
        }
    }
}

/// Connects to `addr` and, if members are named by their certificates, makes sure that the one called `name` answers.
pub(super) async fn connect(
    addr: String,
    name: String,
    calling: Calling,
) -> Result<Either<tokio_rustls::client::TlsStream<TcpStream>, TcpStream>, ConnectError> {
    let attempt = async {
        let tcp = TcpStream::connect(&addr).await?;
        tcp.set_nodelay(true)?;
        let Some(config) = calling.tls else { return Ok(Either::Right(tcp)) };
        let host = addr.rsplit_once(':').map_or(addr.as_str(), |(host, _)| host).trim_matches(['[', ']']);
        let server = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let mut config = (*config.get()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TlsConnector::from(Arc::new(config)).connect(server, tcp).await?;
        let found = common_name(stream.get_ref().1.peer_certificates());
        let expected = found.as_deref().and_then(|cn| cn.strip_prefix(CERTIFICATE_NAME_PREFIX)) == Some(name.as_str());
        if calling.named && !expected {
            let found = found.unwrap_or_default();
            return Err(io::Error::other(format!("member {name} was expected, the certificate names {found:?}")));
        }
        Ok(Either::Left(stream))
    };
    let failed = |reason: String| ConnectError { addr: addr.clone(), reason };
    match pintle_base::clock::timeout(limits::CONNECT_TIMEOUT, attempt).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {:?}", limits::CONNECT_TIMEOUT))),
    }
}

/// Does the server's part of the handshake; a certificate that is to name a member must be a server's.
pub(super) async fn accept(answering: Answering, tcp: TcpStream) -> io::Result<PeerStream> {
    tcp.set_nodelay(true)?;
    let Some(config) = answering.tls else {
        return Ok(PeerStream { name: PeerName(None), stream: Either::Right(tcp) });
    };
    let mut config = (*config.get()).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let handshake = TlsAcceptor::from(Arc::new(config)).accept(tcp);
    let stream =
        pintle_base::clock::timeout(limits::HANDSHAKE_TIMEOUT, handshake).await.map_err(io::Error::other)??;
    if !answering.named {
        return Ok(PeerStream { name: PeerName(None), stream: Either::Left(stream) });
    }
    let common_name = common_name(stream.get_ref().1.peer_certificates());
    let name = common_name.as_deref().and_then(|cn| cn.strip_prefix(CERTIFICATE_NAME_PREFIX));
    let Some(name) = name else {
        let found = common_name.unwrap_or_default();
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("certificate of {found:?} is no server's"),
        ));
    };
    Ok(PeerStream { name: PeerName(Some(name.into())), stream: Either::Left(stream) })
}

/// The common name of the first certificate, if it can be read.
fn common_name(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificates?.first()?).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    // With two names nobody knows which one was meant.
    names.next().is_none().then_some(name)
}

/// Name of the member at the other end, from its certificate; nothing where certificates name no members.
#[derive(Clone, Debug)]
pub(crate) struct PeerName(pub Option<Arc<str>>);

/// An accepted connection.
pub(super) struct PeerStream {
    name: PeerName,
    stream: Either<tokio_rustls::server::TlsStream<TcpStream>, TcpStream>,
}

impl Connected for PeerStream {
    type ConnectInfo = PeerName;

    fn connect_info(&self) -> PeerName {
        self.name.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
