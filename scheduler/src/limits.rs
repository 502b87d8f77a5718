//! Bounds of this crate, each with its reason (I11).

use std::time::Duration;

/// Backoff of a pod that could not be placed, as upstream: soon again, but not at every change of the cluster.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A pod nothing has moved for this long is tried again, as upstream: no event list is complete.
pub const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// How often the unschedulable pods are looked through for that.
pub const UNSCHEDULABLE_CHECK: Duration = Duration::from_secs(30);

/// Bindings under way at once: enough to fill one proposal batch of the store, bounded in what a lost leader leaves behind.
pub const BINDINGS: usize = 128;

/// An assumed pod whose binding was acknowledged must appear in the cache within this time, or its node is freed again.
pub const ASSUMED_MAX: Duration = Duration::from_secs(60);

/// Nodes that are always looked for, however small the percentage: too few choices give bad placements.
pub const MIN_FEASIBLE_NODES: usize = 100;

/// The smallest percentage the adaptive sampling comes to, as upstream.
pub const MIN_PERCENTAGE: usize = 5;

/// What a container without requests counts as when nodes are compared, as upstream.
pub const DEFAULT_MILLI_CPU: i64 = 100;
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// The range in which an image's size matters, as upstream: below, pulling is cheap; above, all the same.
pub const IMAGE_MIN: i64 = 23 * 1024 * 1024;
pub const IMAGE_MAX_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

/// The best score of a plugin.
pub const MAX_SCORE: i64 = 100;

/// How often a waiting permit plugin is asked again.
pub const PERMIT_PAUSE: Duration = Duration::from_millis(100);

/// Of how many nodes, in percent and at least, candidates are looked for when room must be made, as upstream: each is a dry run
/// with all filters.
pub const PREEMPTION_PERCENTAGE: usize = 10;
pub const MIN_PREEMPTION_NODES: usize = 100;
