//! Places for connections: so many in all, and so many for one address.
//!
//! Always holds: a place is given back when its stream is dropped, also one that was upgraded and left HTTP.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) struct Places {
    all: Arc<Semaphore>,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_address: usize,
}

/// A place that nobody has yet.
pub(super) struct Vacancy(OwnedSemaphorePermit);

/// A place that is taken.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Places {
    pub fn new(all: usize, per_address: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), by_address: Arc::default(), per_address }
    }

    /// Waits for a place.
    pub async fn vacancy(&self) -> io::Result<Vacancy> {
        Arc::clone(&self.all).acquire_owned().await.map(Vacancy).map_err(io::Error::other)
    }

    /// `None` if the address has its share already.
    pub fn take(&self, vacancy: Vacancy, address: IpAddr) -> Option<Place> {
        let address = client(address);
        let mut by_address = self.by_address.lock();
        let held = by_address.entry(address).or_default();
        if *held >= self.per_address {
            return None;
        }
        *held += 1;
        Some(Place { _permit: vacancy.0, by_address: Arc::clone(&self.by_address), address })
    }
}

/// The address that counts as one client: of IPv6 the network, whose every address is one machine's to choose.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock();
        if let Some(held) = by_address.get_mut(&self.address) {
            *held -= 1;
            if *held == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

impl Place {
    /// Ties the place to `stream`.
    pub fn held_by<S>(self, stream: S) -> Held<S> {
        Held { stream, _place: self }
    }
}

/// A stream with its place.
pub(super) struct Held<S> {
    stream: S,
    _place: Place,
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
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
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[tokio::test]
    async fn no_address_takes_all_places() {
        let places = Places::new(4, 2);
        let take = async |text: &str| places.take(places.vacancy().await.expect("open"), address(text));
        let first = take("10.0.0.1").await.expect("a place");
        let second = take("::ffff:10.0.0.1").await.expect("a place");
        assert!(take("10.0.0.1").await.is_none());
        let other = take("10.0.0.2").await.expect("others still get one");
        drop(first);
        let third = take("10.0.0.1").await.expect("a place was given back");
        drop((second, third, other));
        assert!(places.by_address.lock().is_empty(), "nothing is kept of who has gone");
        assert_eq!(places.all.available_permits(), 4);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        assert_eq!(client(address("2001:db8:1:2:3::4")), client(address("2001:db8:1:2:ffff::1")));
        assert_ne!(client(address("2001:db8:1:2::1")), client(address("2001:db8:1:3::1")));
    }
}
