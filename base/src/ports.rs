//! Ports of the loopback interface for a program that is started later, or again: it must find its own port free each time.
//!
//! Always holds: they lie below those that the kernel gives to outgoing connections (`net.ipv4.ip_local_port_range`, from 32768), so that
//! none of these sits on one while its program is down; and below the node ports of Kubernetes (from 30000).

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 15_000;
const COUNT: u32 = 15_000;

/// A port that nobody listens on and that no other caller in this process gets. Processes that run beside each other begin in different
/// places. `None` if all are taken.
pub fn free() -> Option<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    let next = || FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
    let mut found = std::iter::repeat_with(next).take(COUNT as usize).filter_map(|port| u16::try_from(port).ok());
    found.find(|port| is_free(*port))
}

/// As many of them.
pub fn several(count: usize) -> Option<Vec<u16>> {
    std::iter::repeat_with(free).take(count).collect()
}

/// Whether one can listen on the port of the loopback interface.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_given_once_and_none_that_is_taken() {
        let first = free().expect("a port");
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, first + 1));
        let others = several(3).expect("ports");
        assert_eq!(others.len(), 3);
        assert!(!others.contains(&first) && (held.is_err() || !others.contains(&(first + 1))), "{first} {others:?}");
        assert!(others.iter().all(|port| (15_000..30_000).contains(port)));
    }
}
