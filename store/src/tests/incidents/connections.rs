//! Connections that are opened and left alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pintle_base::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::etcd::{self, Admission, Tls};
use crate::limits;
use crate::tests::local::Local;
use crate::tests::replicated::authority::Authority;

/// A client port, with or without TLS.
async fn port(local: &Local, tls: Option<Tls>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    serve(local, listener, tls, etcd::Http2::default());
    address
}

fn serve(local: &Local, listener: TcpListener, tls: Option<Tls>, http2: etcd::Http2) {
    let (router, stop) = (etcd::router(&local.store).with_http2(http2), local.group.token());
    local.group.spawn("serve", async move { etcd::serve(router, listener, tls, stop).await.expect("serve") });
}

/// After how long a connection is closed that said `said` and then nothing.
async fn closed_after(address: SocketAddr, said: &[u8]) -> Duration {
    let began = clock::now();
    let mut stream = TcpStream::connect(address).await.expect("connect");
    stream.write_all(said).await.expect("write");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await; // a reset is an end too
    clock::now().duration_since(began)
}

/// etcd waited for ever for the TLS handshake of a connection: whoever opened enough of them and said nothing kept all others out. Here a
/// connection has a moment to finish its handshake, another one to say which protocol it speaks and what it wants, and one that speaks
/// HTTP/2 must answer pings. The clock is simulated.
#[tokio::test(start_paused = true)]
async fn ghsa_6vch_q96h_7gc3_connections_that_say_nothing_are_closed() {
    let local = Local::open().attached();
    let plain = port(&local, None).await;
    let config = Authority::new().tls("one").server;
    let admit = Arc::new(|_: &[rustls::pki_types::CertificateDer<'_>]| Admission::As(None));
    let tls = port(&local, Some(Tls { config, admit })).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let tls_hello = [0x16, 3, 1, 2, 0, 1]; // that a message of 512 bytes follows
    for (what, address, said, limit) in [
        ("nothing, with TLS", tls, &b""[..], limits::HANDSHAKE),
        ("half a hello", tls, &tls_hello[..], limits::HANDSHAKE),
        ("nothing", plain, &b""[..], limits::HEADERS),
        ("a letter", plain, &b"P"[..], limits::HEADERS),
        ("half a preface", plain, &preface[..20], limits::HEADERS),
        ("half a head", plain, &b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\n"[..], limits::HEADERS),
        ("a preface", plain, &preface[..], limits::KEEP_ALIVE + limits::KEEP_ALIVE_ANSWER),
    ] {
        let took = closed_after(address, said).await;
        let most = limit + limits::LINGER + Duration::from_secs(5);
        assert!(took <= most, "{what}: closed after {took:?}");
        assert!(took + Duration::from_secs(1) >= limit, "{what}: closed after {took:?}, before its time");
    }
}

/// What an operator asks for is what clients are told and get: the most streams at once, and when they are asked for a sign of life.
#[tokio::test(start_paused = true)]
async fn streams_and_pings_of_clients_are_as_asked_for() {
    let local = Local::open().attached();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    let (after, answer) = (Duration::from_secs(3), Duration::from_secs(4));
    serve(&local, listener, None, etcd::Http2::new(7, after, answer));
    let client = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"; // with settings, which say nothing
    let began = clock::now();
    let mut stream = TcpStream::connect(address).await.expect("connect");
    stream.write_all(client).await.expect("write");
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.expect("a frame");
    assert_eq!((head[3], head[4]), (4, 0), "settings come first");
    let mut settings = vec![0; usize::from(head[2])];
    stream.read_exact(&mut settings).await.expect("settings");
    const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];
    let told = settings.chunks(6).find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS).expect("a bound of streams");
    assert_eq!(told[2..], [0, 0, 0, 7]);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await; // a reset is an end too
    let took = clock::now().duration_since(began);
    assert!((after + answer..after + answer + Duration::from_secs(3)).contains(&took), "closed after {took:?}");
}
