//! The address and port ranges of Services, and random picks from what is free in them.
//!
//! The low end of each range is kept for people who choose by hand and used for picks only when the rest is full.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use pintle_base::rng;

/// Why a range cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    #[error("service range {0:?} is not an IPv4 network such as 10.96.0.0/16")]
    Cidr(String),
    #[error("service range {0:?} is smaller than a /30 or larger than a /12")]
    Size(String),
    #[error("the node port range is empty or starts at 0")]
    Ports,
}

#[derive(Clone, Debug)]
pub struct Ranges {
    cidr: String,
    base: u32,
    /// Addresses in the network, its own and the broadcast one included.
    size: u32,
    ports: RangeInclusive<u16>,
}

impl Ranges {
    /// # Errors
    /// [`RangeError`] if `cidr` is not a network of 4 to 1,048,576 addresses or `ports` is empty.
    pub fn new(cidr: &str, ports: RangeInclusive<u16>) -> Result<Self, RangeError> {
        let wrong = || RangeError::Cidr(cidr.to_owned());
        let (address, bits) = cidr.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let bits: u32 = bits.parse().map_err(|_| wrong())?;
        if !(12..=30).contains(&bits) {
            return Err(RangeError::Size(cidr.to_owned()));
        }
        if ports.is_empty() || *ports.start() == 0 {
            return Err(RangeError::Ports);
        }
        let size = 1_u32 << (32 - bits);
        let base = u32::from(address) & !(size - 1);
        Ok(Self { cidr: format!("{}/{bits}", Ipv4Addr::from(base)), base, size, ports })
    }

    pub fn cidr(&self) -> &str {
        &self.cidr
    }

    /// True for addresses that can be given out: neither the network's own nor the broadcast address.
    pub fn holds_address(&self, ip: Ipv4Addr) -> bool {
        let at = u32::from(ip).wrapping_sub(self.base);
        at > 0 && at < self.size - 1
    }

    pub fn holds_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// `30000-32767`
    pub fn ports_text(&self) -> String {
        format!("{}-{}", self.ports.start(), self.ports.end())
    }

    /// A free address. `None` if all are taken.
    pub fn pick_address(&self, taken: &BTreeSet<String>) -> Option<Ipv4Addr> {
        let kept = (self.size / 16).clamp(16, 256).min(self.size - 2);
        let last = self.size - 2;
        let name = |at: u32| Ipv4Addr::from(self.base + at);
        let free = |at: u32| !taken.contains(&name(at).to_string());
        pick(kept + 1..=last, free).or_else(|| pick(1..=kept.min(last), free)).map(name)
    }

    /// A free port. `None` if all are taken.
    pub fn pick_port(&self, taken: &BTreeSet<String>) -> Option<u16> {
        let (first, last) = (u32::from(*self.ports.start()), u32::from(*self.ports.end()));
        let size = last - first + 1;
        let kept = if size <= 16 { 0 } else { (size / 32).clamp(16, 128).min(size) };
        let free = |port: u32| !taken.contains(&port.to_string());
        let port = pick(first + kept..=last, free).or_else(|| pick(first..=(first + kept).saturating_sub(1), free))?;
        u16::try_from(port).ok()
    }
}

/// Random tries before every number is looked at, from a random start.
const RANDOM_TRIES: u32 = 16;

fn pick(range: RangeInclusive<u32>, free: impl Fn(u32) -> bool) -> Option<u32> {
    if range.is_empty() {
        return None;
    }
    let size = range.end() - range.start() + 1;
    let random = || range.start() + u32::try_from(rng::below(u64::from(size))).unwrap_or(0);
    (0..RANDOM_TRIES).map(|_| random()).find(|n| free(*n)).or_else(|| {
        let start = random();
        (start..=*range.end()).chain(*range.start()..start).find(|n| free(*n))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_fill_the_range_and_stop() {
        let ranges = Ranges::new("10.0.0.77/28", 30000..=30003).expect("ranges");
        assert_eq!(ranges.cidr(), "10.0.0.64/28");
        let mut taken = BTreeSet::new();
        while let Some(ip) = ranges.pick_address(&taken) {
            assert!(ranges.holds_address(ip) && taken.insert(ip.to_string()));
        }
        assert_eq!(taken.len(), 14);
        let mut taken = BTreeSet::new();
        while let Some(port) = ranges.pick_port(&taken) {
            assert!(ranges.holds_port(port) && taken.insert(port.to_string()));
        }
        assert_eq!(taken.len(), 4);
    }

    #[test]
    fn the_low_end_is_left_to_people() {
        let ranges = Ranges::new("10.96.0.0/16", 30000..=32767).expect("ranges");
        for _ in 0..200 {
            let ip = ranges.pick_address(&BTreeSet::new()).expect("free");
            assert!(u32::from(ip) > u32::from(Ipv4Addr::new(10, 96, 1, 0)), "{ip}");
            assert!(ranges.pick_port(&BTreeSet::new()).expect("free") >= 30086);
        }
    }

    #[test]
    fn bad_ranges_are_refused() {
        for cidr in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/31", "10.0.0.0/8", "fd00::/108", "x/16"] {
            assert!(Ranges::new(cidr, 1..=2).is_err(), "{cidr}");
        }
        #[allow(clippy::reversed_empty_ranges)]
        let empty = 2..=1;
        assert!(Ranges::new("10.0.0.0/24", empty).is_err());
        let ranges = Ranges::new("10.0.0.0/24", 1..=2).expect("ranges");
        for (ip, want) in [("10.0.0.0", false), ("10.0.0.1", true), ("10.0.0.255", false), ("10.0.1.1", false)] {
            assert_eq!(ranges.holds_address(ip.parse().expect("ip")), want, "{ip}");
        }
    }
}
