//! Changes of the cluster that may make a pod schedulable.

use std::ops::BitOr;

/// A set of kinds of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterEvent(u16);

impl ClusterEvent {
    pub const NODE_ADDED: Self = Self(1);
    pub const NODE_LABELS: Self = Self(1 << 1);
    /// Taints, or the mark that keeps new pods away.
    pub const NODE_TAINTS: Self = Self(1 << 2);
    pub const NODE_ALLOCATABLE: Self = Self(1 << 3);
    /// A pod was bound.
    pub const POD_ADDED: Self = Self(1 << 4);
    /// A bound pod has changed its labels.
    pub const POD_LABELS: Self = Self(1 << 5);
    /// A bound pod is gone or has ended.
    pub const POD_GONE: Self = Self(1 << 6);
    pub const NODE_GONE: Self = Self(1 << 7);

    pub const fn empty() -> Self {
        Self(0)
    }

    pub const fn all() -> Self {
        Self(u16::MAX)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for ClusterEvent {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
