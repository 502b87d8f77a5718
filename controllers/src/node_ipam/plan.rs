//! Which pod network each node gets: the lowest free block of the cluster's range. Pure.
//!
//! Always holds: two nodes never get overlapping blocks, as long as each plan sees the blocks given before.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The pod network of the cluster, cut into blocks of `block` prefix bits for the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: u32,
    prefix: u8,
    block: u8,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RangeError {
    #[error("{0:?} is no IPv4 network such as 10.244.0.0/16")]
    Syntax(String),
    #[error("a node's block of /{block} does not fit into /{prefix}")]
    Block { prefix: u8, block: u8 },
}

impl Range {
    /// # Errors
    /// [`RangeError`] if `cidr` is no IPv4 network or smaller than one block.
    pub fn new(cidr: &str, block: u8) -> Result<Self, RangeError> {
        let (base, prefix) = parse(cidr).ok_or_else(|| RangeError::Syntax(cidr.to_owned()))?;
        if block < prefix || block > 30 || block - prefix > 16 {
            return Err(RangeError::Block { prefix, block });
        }
        Ok(Self { base, prefix, block })
    }

    fn blocks(&self) -> u32 {
        1 << (self.block - self.prefix)
    }

    fn cidr(&self, index: u32) -> String {
        let size = 1u32 << (32 - self.block);
        format!("{}/{}", Ipv4Addr::from(self.base + index * size), self.block)
    }

    /// The blocks that the network `cidr` touches.
    fn touched(&self, cidr: &str) -> std::ops::Range<u32> {
        let Some((base, prefix)) = parse(cidr) else { return 0..0 };
        let size = 1u64 << (32 - self.block);
        let (first, last) = (u64::from(base), u64::from(base) + (1u64 << (32 - prefix)) - 1);
        let (start, end) = (u64::from(self.base), u64::from(self.base) + u64::from(self.blocks()) * size);
        if last < start || first >= end {
            return 0..0;
        }
        let index = |address: u64| u32::try_from((address.clamp(start, end - 1) - start) / size).unwrap_or(0);
        index(first)..index(last) + 1
    }

    /// Blocks for `count` nodes that have none, given the ones in use; fewer if the range is exhausted.
    pub fn assign<'a>(&self, used: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<String> {
        let taken: BTreeSet<u32> = used.into_iter().flat_map(|cidr| self.touched(cidr)).collect();
        (0..self.blocks()).filter(|index| !taken.contains(index)).take(count).map(|index| self.cidr(index)).collect()
    }
}

fn parse(cidr: &str) -> Option<(u32, u8)> {
    let (address, prefix) = cidr.split_once('/')?;
    let (address, prefix) = (u32::from(address.parse::<Ipv4Addr>().ok()?), prefix.parse::<u8>().ok()?);
    let mask = if prefix == 0 { 0 } else { u32::MAX.checked_shl(32 - u32::from(prefix))? };
    (prefix <= 32 && prefix > 0).then_some((address & mask, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(range: &str, used: &[&str], count: usize, want: &[&str]) {
        let range = Range::new(range, 24).expect("range");
        assert_eq!(range.assign(used.iter().copied(), count), want);
    }

    #[test]
    fn the_lowest_free_blocks_are_given() {
        check("10.244.0.0/16", &[], 2, &["10.244.0.0/24", "10.244.1.0/24"]);
        check("10.244.0.0/16", &["10.244.0.0/24", "10.244.2.0/24"], 2, &["10.244.1.0/24", "10.244.3.0/24"]);
    }

    #[test]
    fn larger_and_foreign_blocks_are_respected() {
        check("10.244.0.0/16", &["10.244.0.0/22", "192.168.0.0/24", "nonsense"], 1, &["10.244.4.0/24"]);
    }

    #[test]
    fn an_exhausted_range_gives_nothing() {
        check("10.244.0.0/24", &["10.244.0.0/24"], 3, &[]);
    }

    #[test]
    fn ranges_that_cannot_hold_a_block_are_refused() {
        assert!(matches!(Range::new("10.244.0.0/25", 24), Err(RangeError::Block { .. })));
        assert!(matches!(Range::new("10.244.0.0", 24), Err(RangeError::Syntax(_))));
        assert!(matches!(Range::new("10.244.0.0/40", 24), Err(RangeError::Syntax(_))));
    }
}
