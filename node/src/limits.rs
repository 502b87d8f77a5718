//! Every bound of the agent, with its reason (I11).

use std::time::Duration;

/// Pods one agent runs at once unless told otherwise; upstream's default, and a /24 holds 254 addresses.
pub const MAX_PODS: usize = 110;
/// Containers of one pod the agent looks at. Larger specs are refused by the API server long before.
pub const CONTAINERS_PER_POD: usize = 256;
/// Statuses waiting to be sent. One per pod (latest wins), so this only bounds a flood of pods.
pub const STATUS_WAITING: usize = 4096;
/// Status patches under way at once: enough to hide latency, few enough not to flood a server after an outage.
pub const STATUS_IN_FLIGHT: usize = 8;
/// Sandboxes and containers being created at once. runc is CPU-bound; more in parallel only delays all.
pub const STARTS_IN_FLIGHT: usize = 8;
/// Events waiting to be written; beyond it the newest is dropped: events are hints, never state.
pub const EVENTS_WAITING: usize = 256;
/// Distinct events remembered to count repeats instead of writing new objects.
pub const EVENTS_REMEMBERED: usize = 1024;
/// Largest gRPC answer taken from the container runtime. A full list of 500 pods is below 2 MiB.
pub const RUNTIME_MESSAGE: usize = 16 << 20;
/// Deadline of an ordinary runtime call.
pub const RUNTIME_CALL: Duration = Duration::from_secs(30);
/// Deadline of sandbox creation and removal, which run CNI plugins.
pub const RUNTIME_SANDBOX_CALL: Duration = Duration::from_secs(120);
/// Deadline of an image pull.
pub const IMAGE_PULL: Duration = Duration::from_secs(600);
/// How often all containers are listed to notice what happened without us. Upstream's period.
pub const RELIST: Duration = Duration::from_secs(1);
/// How often a container runtime that stays silent is told of: often enough to be the last thing in a log somebody looks
/// at, rare enough to leave the rest of it there.
pub const SILENCE_TOLD: Duration = Duration::from_secs(60);
/// A pod worker looks at its pod at least this often, whatever happens.
pub const RESYNC: Duration = Duration::from_secs(60);
/// Crash-loop and image-pull backoff.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Ceiling of the crash-loop and image-pull backoff.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long starts again without backoff.
pub const BACKOFF_FORGET: Duration = Duration::from_secs(600);
/// Bytes of a termination message file that are read (upstream's bound).
pub const TERMINATION_MESSAGE: u64 = 4096;
/// Bytes and lines of log used as the termination message on error.
pub const TERMINATION_LOG_BYTES: u64 = 2048;
/// See [`TERMINATION_LOG_BYTES`].
pub const TERMINATION_LOG_LINES: i64 = 80;
/// Body bytes an HTTP probe reads before it stops reading.
pub const PROBE_BODY: usize = 10 << 10;
/// Output of an exec probe that ends up in an event.
pub const PROBE_OUTPUT: usize = 1024;
/// Redirects an HTTP probe follows.
pub const PROBE_REDIRECTS: usize = 10;
/// ConfigMaps and Secrets remembered per agent, so that restarts do not need a server (I10).
pub const REFERENCES_REMEMBERED: usize = 2048;
/// Age at which a remembered ConfigMap or Secret is read again: volumes follow within 60-90 s, as upstream.
pub const REFERENCE_AGE: Duration = Duration::from_secs(45);
/// Time a server has to answer when an earlier answer could be used instead (I10).
pub const REFERENCE_WAIT: Duration = Duration::from_secs(2);
/// After a wait in vain, earlier answers are used without asking for this long.
pub const REFERENCE_SILENCE: Duration = Duration::from_secs(10);
/// Bytes of one projected volume; ConfigMap and Secret are bounded at 1 MiB each by the API server.
pub const PROJECTED_BYTES: usize = 16 << 20;
/// Size of the file system in memory that holds a volume with secrets: while files are swapped two generations of
/// [`PROJECTED_BYTES`] are there, each file rounded up to pages. Only what is written is used.
pub const SECRET_VOLUME_BYTES: usize = 4 * PROJECTED_BYTES;
/// Log, exec and port-forward streams one agent serves at once.
pub const STREAMS: usize = 256;
/// Frames in flight per direction of such a stream.
pub const STREAM_FRAMES: usize = 32;
/// Largest payload of one frame; keeps one stream from filling the shared connection.
pub const FRAME_BYTES: usize = 32 << 10;
/// Longest log line that is kept whole; longer ones are passed on in pieces.
pub const LOG_LINE: usize = 1 << 20;
/// A container log is rotated past this size (upstream's default) ...
pub const LOG_ROTATE_BYTES: u64 = 10 << 20;
/// ... and this many rotated files are kept beside it.
pub const LOG_FILES: usize = 4;
/// Largest SPDY frame taken from the runtime's streaming server.
pub const SPDY_FRAME: usize = 1 << 20;
/// DNS queries being answered at once over UDP; beyond it queries are dropped and resolvers ask again.
pub const DNS_IN_FLIGHT: usize = 512;
/// DNS connections over TCP at once.
pub const DNS_CONNECTIONS: usize = 128;
/// Idle time of a DNS connection.
pub const DNS_IDLE: Duration = Duration::from_secs(10);
/// Time an upstream resolver has for one try.
pub const DNS_UPSTREAM: Duration = Duration::from_secs(2);
/// Seconds a cluster name may be cached. Upstream's CoreDNS default is 30; endpoints move faster than that here.
pub const DNS_TTL: u32 = 5;
/// Bytes of an answer over UDP without EDNS.
pub const DNS_UDP_PLAIN: usize = 512;
/// Bytes of an answer over UDP that a client may ask for with EDNS; below the usual fragmentation point.
pub const DNS_UDP_EDNS: usize = 1232;
/// Ready endpoints of one service port that the proxy spreads over; a verdict map of this size is still cheap.
pub const ENDPOINTS_PER_PORT: usize = 4096;
/// Changes are collected this long before a rule transaction, so that a rollout is tens of transactions, not thousands.
pub const PROXY_SETTLE: Duration = Duration::from_millis(50);
/// How often the kernel's table is compared with what was loaded: the longest time service traffic stands still after
/// somebody flushed it, and cheap enough to do always (two short runs of nft) ...
pub const PROXY_VERIFY: Duration = Duration::from_secs(3);
/// ... as one part in this many of the time, where the table is so large that listing it takes long ...
pub const PROXY_VERIFY_SHARE: u32 = 20;
/// ... but never less often than this.
pub const PROXY_VERIFY_MAX: Duration = Duration::from_secs(60);
/// Bytes of a listing that are compared: some 50,000 chains. A larger table is only known to be there.
pub const PROXY_LISTING: u64 = 16 << 20;
/// How long what only a checkpoint says is held back from decisions that cannot be taken back (starting a pod, denying a
/// name, writing rules): a server that can be reached has answered by then, also after one failover.
pub const CONFIRM_WAIT: Duration = Duration::from_secs(3);
/// Largest file of a checkpoint: 10,000 endpoint slices have some 20 MiB. More is not kept.
pub const CHECKPOINT_FILE: usize = 64 << 20;
/// Changes are collected this long before a file of the checkpoint is written: what is lost with the agent is this much.
pub const CHECKPOINT_PAUSE: Duration = Duration::from_secs(2);
/// Bytes per second one file may cost the disk on average; large files are written less often.
pub const CHECKPOINT_RATE: u64 = 1 << 20;
/// Longest pause after a file could not be written (a full disk).
pub const CHECKPOINT_RETRY_MAX: Duration = Duration::from_secs(60);
/// Deadline of one helper program (nft, ip, conntrack, ctr).
pub const PROGRAM: Duration = Duration::from_secs(60);
/// Largest JSON body taken while joining.
pub const JOIN_BODY: usize = 1 << 20;
/// Longest wait for a certificate to be signed.
pub const JOIN_CERTIFICATE: Duration = Duration::from_secs(120);
/// Images reported in the Node object (upstream's bound).
pub const IMAGES_REPORTED: usize = 50;
/// Entries and bytes of an image that we build.
pub const IMAGE_ENTRIES: usize = 100_000;
