//! Bounds of this crate, each with its reason (I11).

use std::time::Duration;

/// Silence after which a connection is pinged, and how long the answer may take: a dead server is known within 2 s.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// A timer that fires so late says that this process did not run: other clocks are not judged by it.
pub const OVERSLEPT: Duration = Duration::from_millis(500);

/// TCP's part of connecting, and that of TLS and HTTP/2. One lost SYN is resent after 1 s and still fits.
pub const DIAL_TIMEOUT: Duration = Duration::from_millis(1500);

/// By what the times for answers are multiplied at most while servers are slow (16 s for a ping), and the life of a
/// connection that halves it.
pub const PATIENCE_MAX: u32 = 16;
pub const PATIENCE_PROVEN: Duration = Duration::from_secs(30);

/// Head start of one server before the next one is tried as well: a black hole costs this much, not a whole timeout.
pub const DIAL_STAGGER: Duration = Duration::from_millis(200);

/// Pause before a server that refused is tried again while others are still waited for.
pub const DIAL_AGAIN: Duration = Duration::from_millis(500);

/// Pause after no server answered, doubling: quick enough to meet a server that restarts within the 3 s of a failover.
pub const REDIAL_FIRST: Duration = Duration::from_millis(100);
pub const REDIAL_MAX: Duration = Duration::from_secs(2);

/// How long a request waits for a connection before it fails as not sent. Covers an election and a failover.
pub const CONNECTION_WAIT: Duration = Duration::from_secs(10);

/// How often one request is moved to another connection after it was provably not sent.
pub const RESENDS: u32 = 4;

/// An abandoned connection may finish its open streams for this long.
pub const DRAIN: Duration = Duration::from_secs(5);

/// Receive windows: one log stream must not stall the others of the connection, and memory per connection stays bounded.
pub const STREAM_WINDOW: u32 = 1 << 20;
pub const CONNECTION_WINDOW: u32 = 4 << 20;

/// Time to the response head for anything but a watch. Above the server's own request timeout (60 s).
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(65);

/// Objects per page when a server cannot stream its lists: about 2 MiB of pods.
pub const LIST_PAGE: u32 = 500;

/// Pause of a reflector after an error. The first is short: most errors are a connection that moved to another server.
pub const RELIST_FIRST: Duration = Duration::from_millis(50);
pub const RELIST_MAX: Duration = Duration::from_secs(2);

/// Backoff per key of a work queue, client-go's figures.
pub const RETRY_FIRST: Duration = Duration::from_millis(5);
pub const RETRY_MAX: Duration = Duration::from_secs(1000);

/// Events waiting to be written; beyond that the newest are dropped: events are advice, never state.
pub const EVENTS_WAITING: usize = 1000;

/// Event series remembered for counting. Each is some 500 bytes.
pub const EVENT_SERIES: usize = 4096;

/// Events one object may cause at once, and the time that earns it one more (client-go's spam filter).
pub const EVENT_BURST: u32 = 25;
pub const EVENT_REFILL: Duration = Duration::from_secs(300);

/// Longest event message the API accepts.
pub const EVENT_MESSAGE_MAX: usize = 1024;

/// Characters of the object's name in an event's name: with dot and 16 digits at most the 253 a name may have.
pub const EVENT_NAME_PREFIX: usize = 236;

/// Certificate and key files are some kilobytes; a larger file is a mistake.
pub const PEM_FILE_MAX: u64 = 1 << 20;

/// How often a leader's Lease is renewed, and how long it says it lasts: upstream's figures, for tools that judge by them.
pub const LEADER_LEASE_PERIOD: Duration = Duration::from_secs(2);
pub const LEADER_LEASE_SECONDS: i32 = 15;
