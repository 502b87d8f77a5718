//! Connects to a port inside a pod's network namespace. A thread of its own enters the namespace, connects and ends; the
//! connected socket keeps working from anywhere.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// A listener on the pod's own loopback answers at once or not at all.
const CONNECT: Duration = Duration::from_secs(5);

/// Connects to `port` on the loopback of the namespace at `path`, or of the agent's own for pods on the host network.
///
/// # Errors
/// What the namespace or the connection said.
pub async fn connect(path: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("port-forward".to_owned()).spawn(move || {
        // The asker may have gone away: then there is nobody to tell.
        let _ = sender.send(connect_inside(path, port));
    })?;
    let stream = receiver.await.map_err(|_| io::Error::other("connecting thread ended"))??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

fn connect_inside(path: Option<PathBuf>, port: u16) -> io::Result<StdStream> {
    if let Some(path) = path {
        setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    StdStream::connect_timeout(&v4, CONNECT).or_else(|error| {
        StdStream::connect_timeout(&SocketAddr::from((Ipv6Addr::LOCALHOST, port)), CONNECT).map_err(|_| error)
    })
}
