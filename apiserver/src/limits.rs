//! Bounds of the API server (I11), each with its reason.

use std::time::Duration;

/// Largest request body. Upstream's limit, twice the largest object plus patch overhead.
pub const BODY_BYTES: usize = 3 * 1024 * 1024;
/// A body that is too long is read and dropped up to here, so that the client hears why it was refused.
pub const BODY_DRAIN_BYTES: usize = 16 * 1024 * 1024;
/// Largest stored object. etcd's default request limit, which clients know as the object limit.
pub const OBJECT_BYTES: usize = 1536 * 1024;
/// Longest path and query together; longer ones cannot name anything we serve.
pub const URI_BYTES: usize = 16 * 1024;
/// Most header bytes of one request (HTTP/1 buffer, HTTP/2 header list).
pub const HEADER_BYTES: u32 = 64 * 1024;

/// Time for everything that is not a watch or a stream. Upstream's default.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// Time for a TLS handshake: slow-loris protection; WAN handshakes need well under a second.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Time for the header of a request to arrive, and for an idle HTTP/1 connection.
pub const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// Time for the first request after the handshake. A client connects because it has something to ask.
pub const FIRST_REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// A connection without a request in work is ended after this. Upstream's figure, and what Go clients keep idle ones for.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(90);
/// HTTP/2 keep-alive of idle connections, so that dead clients do not hold watches.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Graceful shutdown: connections that have not ended by then are dropped.
pub const DRAIN: Duration = Duration::from_secs(5);

/// Connections at once; each costs a task and TLS state (about 50 KiB).
pub const CONNECTIONS: usize = 10_000;
/// Connections of one address (of one /64 with IPv6). Generous, for a balancer or a NAT stands for many clients: half, so
/// that there is always room for the others.
pub const CONNECTIONS_PER_ADDRESS: usize = CONNECTIONS / 2;
/// Streams per HTTP/2 connection; kubectl and informers of one client need dozens, agents a hundred.
pub const STREAMS: u32 = 1_000;
/// Mutating requests in work at once; more are told to come back (429). Upstream's fallback is 200 per server.
pub const MUTATING: usize = 400;
/// Reads in work at once. Upstream's fallback is 400.
pub const READING: usize = 800;
/// Watches and streams at once.
pub const LONG_RUNNING: usize = 20_000;

/// Bytes from which an answer is compressed, if the client asks. Upstream's figure.
pub const GZIP_FROM: usize = 128 * 1024;

/// Events kept per kind for watches that resume.
pub const RING_EVENTS: usize = 8192;
/// Bytes of object text kept per kind by those events; large objects shorten the history instead of filling memory.
pub const RING_BYTES: usize = 8 * 1024 * 1024;
/// Revisions of history read at start-up, so that watches from other servers resume here.
pub const HISTORY_REVISIONS: i64 = 4096;
/// Events waiting in one watcher before it is ended. A client that is this far behind should resume from its last revision.
pub const WATCHER_EVENTS: usize = 4096;
/// Bytes of object text waiting in one watcher before it is ended, old and new versions counted: those of several of the
/// largest objects. Watchers share the text, but one that does not read would keep all of it alive.
pub const WATCHER_BYTES: usize = 16 * 1024 * 1024;
/// Largest number of keys of one range while filling the cache or reading a page of an old revision.
pub const PAGE_KEYS: i64 = 500;
/// Largest `limit` a list honours in one page of an old revision.
pub const LIST_PAGE: usize = 10_000;

/// Time the cache may be behind a read before the read fails (upstream waits 3 s).
pub const CACHE_WAIT: Duration = Duration::from_secs(3);
/// Watches without `timeoutSeconds` live this long, up to twice (random), so that clients spread again over servers.
pub const WATCH_MIN: Duration = Duration::from_secs(1800);
/// Longest `timeoutSeconds` honoured.
pub const WATCH_MAX: Duration = Duration::from_secs(24 * 3600);
/// Bookmarks are sent this often, and shortly before a watch ends.
pub const BOOKMARK: Duration = Duration::from_secs(60);
/// Bytes of watch frames gathered before they are handed to the connection.
pub const WATCH_CHUNK: usize = 64 * 1024;

/// Revisions back from now at which a watch that the cache cannot serve is served from the store's history: reading it
/// takes a second or two, which is what a new list of a large kind would take.
pub const PAST_REVISIONS: i64 = 200_000;
/// Watches that read the store's history at once, each with up to a batch of it in memory; others list anew.
pub const PAST_WATCHES: usize = 64;
/// Events a watch looks at before it lets others run: selectors may leave all of them out.
pub const WATCH_TURN: usize = 256;

/// Tries of a patch that named no resourceVersion. Upstream's figure.
pub const PATCH_RETRIES: u32 = 5;
/// Bytes of object and patch together from which a patch is worked out beside the requests: below it takes at most a few
/// milliseconds, which is what handing it over may cost under load.
pub const LARGE_PATCH_BYTES: usize = 16 * 1024;
/// Large patches worked out at once. Each may keep a processor for a second; the others wait.
pub const LARGE_PATCHES: usize = 2;
/// Tries of internal read-modify-write loops and of deletes.
pub const UPDATE_RETRIES: u32 = 16;
/// Tries of `generateName`. Upstream's figure.
pub const NAME_RETRIES: u32 = 8;
/// Tries of a create or update whose claimed key (cluster IP, node port) was taken meanwhile.
pub const CLAIM_RETRIES: u32 = 8;
/// Deletes in flight of one deletecollection. Enough to fill a proposal batch, small beside [`MUTATING`].
pub const DELETE_PARALLEL: usize = 16;

/// Life of Event objects. Upstream's default.
pub const EVENT_TTL: Duration = Duration::from_secs(3600);
/// Events written within this time share one lease.
pub const LEASE_SHARE: Duration = Duration::from_secs(60);
/// Largest number of objects on one shared lease; an expiring lease deletes them in one revision.
pub const LEASE_OBJECTS: u32 = 1000;
