//! The one local address of a cluster: a TCP balancer over its API servers, run as a process of its own by `cluster up`.
//!
//! TLS passes through untouched. New connections go to servers that answer `/readyz`. A server that dies takes its
//! connections along by itself; those of one that hangs are closed after [`STRIKES`] failed probes, so that clients
//! reconnect to another instead of waiting for a dead peer.
//! Always holds: connections are closed only while another server is healthy, and only of a server that has been silent on
//! all of them. One that is slow still sends something; moving its clients would make it, and the others, slower.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use anyhow::{Context, Result};
use pintle_base::clock;
use pintle_base::task::Group;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::https::Https;

/// How often each server is asked, and how long it may take.
const PROBE_PERIOD: Duration = Duration::from_millis(250);
const PROBE_TIMEOUT: Duration = Duration::from_millis(700);
/// Failed probes in a row after which a server counts as lost: two seconds, the bound for every dead connection.
const STRIKES: u32 = 3;
/// A server that sent something on any connection within this time does not hang.
const SILENCE: Duration = Duration::from_millis(1500);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Open connections at once; more wait in the kernel's accept queue.
const CONNECTIONS: usize = 4096;

struct Backend {
    address: SocketAddr,
    health: watch::Sender<Health>,
    began: clock::Instant,
    /// When it last sent anything, in milliseconds since `began`.
    heard: AtomicU64,
}

/// What the probes of one server say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Health {
    /// The last probe was answered in time.
    answers: bool,
    /// Failed probes since the last answer; only counted once there was an answer.
    strikes: u32,
}

impl Health {
    const UNKNOWN: Self = Self { answers: false, strikes: 0 };

    fn after(self, answered: bool) -> Self {
        let seen = self.answers || self.strikes > 0;
        Self { answers: answered, strikes: if answered || !seen { 0 } else { self.strikes.saturating_add(1) } }
    }

    fn is_lost(self) -> bool {
        self.strikes >= STRIKES
    }
}

impl Backend {
    fn new(address: SocketAddr) -> Self {
        let (health, began) = (watch::Sender::new(Health::UNKNOWN), clock::now());
        Self { address, health, began, heard: AtomicU64::new(0) }
    }

    fn answers(&self) -> bool {
        self.health.borrow().answers
    }

    fn age(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn hear(&self) {
        self.heard.store(self.age(), Ordering::Relaxed);
    }

    fn is_silent(&self) -> bool {
        u128::from(self.age().saturating_sub(self.heard.load(Ordering::Relaxed))) >= SILENCE.as_millis()
    }
}

/// A connection to a server that notes when something comes from it.
struct Heard<'a> {
    stream: TcpStream,
    backend: &'a Backend,
}

impl AsyncRead for Heard<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Poller<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.backend.hear();
        }
        polled
    }
}

impl AsyncWrite for Heard<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Poller<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves `listen` until the group stops.
pub async fn run(listen: SocketAddr, servers: &[SocketAddr], https: Https, group: &Group) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    let backends: Arc<[Arc<Backend>]> = servers.iter().map(|address| Arc::new(Backend::new(*address))).collect();
    for backend in backends.iter() {
        group.spawn_until_stopped("probe", probe(Arc::clone(backend), https.clone()));
    }
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut turn = 0usize;
    let token = group.token();
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.context("semaphore is never closed")?;
        let client = tokio::select! {
            () = token.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    clock::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        turn = turn.wrapping_add(1);
        let backends = Arc::clone(&backends);
        group.spawn_until_stopped("connection", async move {
            let _permit = permit;
            forward(client, &backends, turn).await;
        });
    }
}

async fn probe(backend: Arc<Backend>, https: Https) {
    let mut ticker = clock::ticker(PROBE_PERIOD);
    loop {
        ticker.tick().await;
        let answer = clock::timeout(PROBE_TIMEOUT, https.get(backend.address, "/readyz")).await;
        let answered = matches!(answer, Ok(Ok((200, _))));
        backend.health.send_if_modified(|health| {
            let next = health.after(answered);
            std::mem::replace(health, next) != next
        });
    }
}

/// Connects the client to the next healthy server, any server if none is, and copies until either side
/// ends or the server is lost.
async fn forward(mut client: TcpStream, backends: &[Arc<Backend>], turn: usize) {
    let rotated = (0..backends.len()).map(|offset| &backends[(turn + offset) % backends.len()]);
    let (healthy, ailing): (Vec<_>, Vec<_>) = rotated.partition(|backend| backend.answers());
    for backend in healthy.into_iter().chain(ailing) {
        let Ok(Ok(stream)) = clock::timeout(CONNECT_TIMEOUT, TcpStream::connect(backend.address)).await else {
            continue;
        };
        if client.set_nodelay(true).and_then(|()| stream.set_nodelay(true)).is_err() {
            return;
        }
        let mut server = Heard { stream, backend };
        tokio::select! {
            ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, server = %backend.address, "connection ended");
                }
            }
            () = lost(backend, backends) => tracing::debug!(server = %backend.address, "server lost, closing its connection"),
        }
        return;
    }
}

/// Resolves when `backend` is lost and silent while another server answers.
async fn lost(backend: &Backend, all: &[Arc<Backend>]) {
    let mut health = backend.health.subscribe();
    loop {
        // Changes with each further strike, so that another server's recovery is noticed too.
        if health.wait_for(|health| health.is_lost()).await.is_err() {
            return std::future::pending().await;
        }
        if backend.is_silent() && all.iter().any(|other| other.answers()) {
            return;
        }
        if health.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(number: u16) -> Arc<Backend> {
        Arc::new(Backend::new(SocketAddr::from(([127, 0, 0, 1], number))))
    }

    fn probed(backend: &Backend, answers: &[bool]) {
        for answered in answers {
            backend.health.send_modify(|health| *health = health.after(*answered));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_lost_after_some_strikes_and_only_if_another_answers() {
        let all = [backend(1), backend(2)];
        let gone = || clock::timeout(Duration::from_secs(1), lost(&all[0], &all));
        clock::sleep(SILENCE).await;
        probed(&all[0], &[true, false, false]);
        probed(&all[1], &[true]);
        assert!(gone().await.is_err(), "two strikes are not enough");
        probed(&all[1], &[false]);
        probed(&all[0], &[false]);
        assert!(gone().await.is_err(), "nobody else answers");
        probed(&all[1], &[true]);
        all[0].hear();
        assert!(gone().await.is_err(), "it is slow, not silent");
        clock::sleep(SILENCE).await;
        assert!(gone().await.is_ok(), "now another answers, and it says nothing");
        probed(&all[0], &[true]);
        assert!(gone().await.is_err(), "it is back");
    }

    #[test]
    fn a_server_that_never_answered_has_nothing_to_lose() {
        assert!(!(0..10).fold(Health::UNKNOWN, |health, _| health.after(false)).is_lost());
    }
}
