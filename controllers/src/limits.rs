//! Bounds of this crate, each with its reason (I11).

use std::time::Duration;

/// Keys one controller works on at the same time, as upstream: enough to hide the latency of a write, few enough not to
/// crowd out people's requests.
pub const WORKERS: usize = 5;

/// Pods one reconcile creates or deletes at most, as upstream: a huge replica set must not starve the others.
pub const POD_BURST: usize = 500;

/// Pods created at first by a reconcile; each batch without an error doubles it. One refusal must not become 500.
pub const SLOW_START: usize = 1;

/// After this long a change that was expected and not seen is given up, as upstream: a lost watch event must not stop a
/// replica set for ever.
pub const EXPECTATION: Duration = Duration::from_secs(300);

/// Longest `deployment.kubernetes.io/revision-history` annotation, as upstream.
pub const REVISION_HISTORY: usize = 2000;

/// Addresses in one Endpoints object, as upstream: larger ones are cut and marked.
pub const ENDPOINTS_ADDRESSES: usize = 1000;

/// Endpoints in one EndpointSlice, as upstream: a change of one endpoint sends at most this many again.
pub const SLICE_ENDPOINTS: usize = 100;

/// How often one collection follows an object that changes under it, in nothing that matters, before others get their turn.
pub const COLLECT_RETRIES: usize = 5;

/// How often pods are looked through for those nobody else takes away, and how long a node must be missed before its pods
/// are: upstream's figures.
pub const POD_GC_PERIOD: Duration = Duration::from_secs(20);
pub const NODE_QUARANTINE: Duration = Duration::from_secs(40);

/// Ended pods kept for people to look at, as upstream; beyond it the oldest go.
pub const ENDED_PODS: usize = 12_500;

/// How long changes of pods are collected per pod that an object already has, and at most: one look at all pods of a Service
/// or replica set costs about a tenth of it, so even the largest leaves the processor to others.
pub const ENDPOINTS_PAUSE: Duration = Duration::from_micros(100);
pub const ENDPOINTS_PAUSE_MAX: Duration = Duration::from_millis(500);
pub const REPLICAS_PAUSE: Duration = Duration::from_micros(20);
pub const REPLICAS_PAUSE_MAX: Duration = Duration::from_millis(200);

/// Objects of a namespace that ends, listed in one piece, and deletes of them in flight: a proposal batch's worth, and pieces
/// that are read in a few milliseconds.
pub const NAMESPACE_PAGE: u32 = 500;
pub const NAMESPACE_DELETES: usize = 16;

/// Longest wait until a bootstrap token is looked at again: its end is wall-clock time, and clocks are set.
pub const TOKEN_LOOK: Duration = Duration::from_secs(3600);

/// Time between two lost nodes of a zone whose pods are sent away, upstream's 0.1 nodes a second: the others have to take
/// these pods, and a fault on this side does little harm until somebody sees it.
pub const EVICTION_PERIOD: Duration = Duration::from_secs(10);
/// The same in a large zone that is lost in large part, upstream's 0.01 nodes a second.
pub const EVICTION_PERIOD_REDUCED: Duration = Duration::from_secs(100);
/// A zone with more nodes than this is large: in one that is not, nobody is sent away once it is lost in large part, for
/// there is nowhere to go. Upstream's figure.
pub const LARGE_ZONE: usize = 50;
/// A zone is lost in large part from this share on, and only with more losses than these. Upstream's figures.
pub const ZONE_LOST_PERCENT: usize = 55;
pub const ZONE_LOSSES: usize = 2;
