//! The one local address of a cluster: a TCP balancer over its API servers, run as a process of its own by `cluster up`.
//!
//! TLS passes through untouched. A server counts as healthy while it answers `/readyz`; when it stops answering, its
//! connections are closed at once, so that clients reconnect to another instead of waiting for a dead peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use pintle_base::clock;
use pintle_base::task::Group;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::https::Https;

/// How often each server is asked, and how long it may take: a dead one is left within a second.
const PROBE_PERIOD: Duration = Duration::from_millis(250);
const PROBE_TIMEOUT: Duration = Duration::from_millis(700);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Open connections at once; more wait in the kernel's accept queue.
const CONNECTIONS: usize = 4096;

struct Backend {
    address: SocketAddr,
    healthy: watch::Sender<bool>,
}

/// Serves `listen` until the group stops.
pub async fn run(listen: SocketAddr, servers: &[SocketAddr], https: Https, group: &Group) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    let backends: Arc<[Arc<Backend>]> = servers
        .iter()
        .map(|address| Arc::new(Backend { address: *address, healthy: watch::Sender::new(false) }))
        .collect();
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
        let healthy = matches!(answer, Ok(Ok((status, _))) if status == 200);
        backend.healthy.send_if_modified(|value| std::mem::replace(value, healthy) != healthy);
    }
}

/// Connects the client to the next healthy server, any server if none is, and copies until either side or the server's
/// health ends.
async fn forward(mut client: TcpStream, backends: &[Arc<Backend>], turn: usize) {
    let rotated = (0..backends.len()).map(|offset| &backends[(turn + offset) % backends.len()]);
    let (healthy, ailing): (Vec<_>, Vec<_>) = rotated.partition(|backend| *backend.healthy.borrow());
    for backend in healthy.into_iter().chain(ailing) {
        let Ok(Ok(mut server)) = clock::timeout(CONNECT_TIMEOUT, TcpStream::connect(backend.address)).await else {
            continue;
        };
        if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
            return;
        }
        let mut health = backend.healthy.subscribe();
        tokio::select! {
            ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, server = %backend.address, "connection ended");
                }
            }
            () = lost(&mut health) => tracing::debug!(server = %backend.address, "server lost, closing its connection"),
        }
        return;
    }
}

/// Resolves when a server that was healthy stops being so.
async fn lost(health: &mut watch::Receiver<bool>) {
    let went = async {
        health.wait_for(|healthy| *healthy).await?;
        health.wait_for(|healthy| !*healthy).await.map(|_| ())
    };
    if went.await.is_err() {
        std::future::pending::<()>().await;
    }
}
