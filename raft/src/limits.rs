//! Every bound of this crate, with its reason (I11).

use std::time::Duration;

/// Largest single command. Above what etcd (1.5 MiB) and Kubernetes (about 3 MiB) accept, so that the store's own limit
/// answers first.
pub const COMMAND_BYTES: usize = 4 << 20;

/// Commands that become one batch, and one log entry: one write batch of the state machine, some milliseconds of apply time.
pub const BATCH_COMMANDS: usize = 1024;

/// Bytes of commands in one batch or log entry, unless its only command is larger: an entry must fit one message with room to spare.
pub const BATCH_BYTES: usize = 1 << 20;

/// Batches a member has proposed and not yet heard of. More does not raise throughput, it only makes batches smaller.
pub const BATCHES_IN_FLIGHT: usize = 4;

/// How long a batch for another member waits for three quarters as many commands as the last one had, while others are on their way.
pub const PROPOSAL_LINGER: Duration = Duration::from_millis(1);

/// Entries the leader has proposed and that are not yet applied. While one is under way, all that arrives becomes the next: a second one
/// beside it makes entries smaller, costs a tenth more CPU per command and a quarter more synced writes, and does not raise throughput.
pub const ENTRIES_UNDER_WAY: usize = 1;

/// Batches waiting at the leader to become entries. Those who hand them in wait for room; each member has few.
pub const BATCHES_WAITING: usize = 64;

/// Batches of followers the leader works on at once: the bounds of each, with room for their retries.
pub const FORWARDED_IN_FLIGHT: usize = 64;

/// Questions of one peer that are worked on at once: its batches, a read index, heartbeats. Further ones wait in its stream.
pub const ASKS_UNDER_WAY: usize = 16;

/// How long the first message of a peer's stream of questions may take.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// Commands waiting or in flight. Beyond it callers hear `Overloaded`.
pub const PROPOSALS_WAITING: usize = 16 * 1024;

/// Of these, commands of one flow: one who floods leaves room for others.
pub const PROPOSALS_OF_FLOW: usize = 8 * 1024;

/// Urgent commands beyond all others that wait: a member has about as many leases renewed in a second at most.
pub const URGENT_WAITING: usize = 16 * 1024;

/// What a command costs its flow beside its bytes: replicating and applying the smallest costs about as much as so many bytes.
pub const PROPOSAL_COST: usize = 512;

/// Bytes of commands waiting or in flight. Beyond it callers hear `Overloaded`.
pub const PROPOSAL_BYTES: usize = 128 << 20;

/// Committed entries not yet applied, beyond which nothing new is proposed: openraft's core waits on a full apply queue,
/// and must never get there.
pub const APPLY_LAG: u64 = 5000;

/// How long a proposal or a read waits for a leader before it fails. A failover takes one to two seconds.
pub const LEADER_WAIT: Duration = Duration::from_secs(5);

/// Pause before a proposal or a read is tried again after "not the leader", if nothing tells that the leader changed.
pub const LEADER_RETRY: Duration = Duration::from_millis(20);

/// How long a proposed entry may take to be applied before its outcome is called unknown: the leader may have lost its
/// quorum after it took the entry.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(7);

/// How long a follower waits for the answer to a forwarded batch or read index. Longer than what the leader allows itself.
pub const FORWARD_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a round of read index waits for more reads at most, if the one before it served many.
pub const READ_LINGER: Duration = Duration::from_millis(1);

/// Reads waiting for one round of read index.
pub const READS_WAITING: usize = 64 * 1024;

/// Bytes of entries in one append message, unless its only entry is larger.
pub const APPEND_BYTES: usize = 2 << 20;

/// Entries in one append message.
pub const APPEND_ENTRIES: u64 = 1024;

/// Largest message accepted from a peer: an append with one full batch, its largest command and protocol overhead.
pub const MESSAGE_BYTES: usize = 16 << 20;

/// Bytes of replies in one message to the follower that passed the commands on; what is more follows in further messages.
/// With room for the framing of a full batch below [`MESSAGE_BYTES`].
pub const REPLY_BYTES: usize = 12 << 20;

/// How long a follower that has nothing else to be told is not told that more is committed: with the next entry it costs nothing, alone a
/// message, its answer, and two wakes. Whoever waits for a read index at a follower ends the wait for all.
pub const COMMIT_LINGER: Duration = Duration::from_millis(1);

/// Append requests after which the leader ends the stream. An open stream keeps openraft from purging the log.
pub const STREAM_REQUESTS: usize = 4096;

/// Age at which the leader ends an append stream, for the same reason.
pub const STREAM_AGE: Duration = Duration::from_secs(2);

/// Bytes of recent entries kept in memory for replication and apply; entries not yet on disk are kept beyond it.
pub const TAIL_BYTES: usize = 32 << 20;

/// Operations waiting for the log writer. openraft's own windows are smaller; reaching it holds Raft's core back.
pub const WRITER_QUEUE: usize = 4096;

/// Bytes of a file of the log, unless its only write is larger. Purged entries are given back by such files; the next one is made while
/// those who write wait, which takes some milliseconds.
pub const SEGMENT_BYTES: u64 = 32 << 20;

/// Memory that is kept from one write to the next.
pub const WRITE_MEMORY: usize = 2 << 20;

/// Bytes of entries in one synced write.
pub const WRITE_BYTES: usize = 8 << 20;

/// Largest record read from the log: an entry at its largest, with its head.
pub const RECORD_BYTES: u64 = 32 << 20;

/// Largest small record: vote, log id, membership of a thousand members, identity.
pub const META_BYTES: u64 = 1 << 20;

/// How far the low-water mark trails the log in time; up to twice as far while little is written.
pub const MARK_AGE: Duration = Duration::from_secs(1);

/// Chunks of entries waiting for the apply thread.
pub const APPLY_QUEUE: usize = 64;

/// Entries in one such chunk.
pub const APPLY_CHUNK: usize = 64;

/// Commands from openraft to its apply task. Filling it would stop Raft's core; entries are not held in it.
pub const APPLY_COMMANDS: u64 = 64 * 1024;

/// Bytes applied since the last snapshot that ask for the next one. Bounds the log to replay and to keep on disk.
pub const SNAPSHOT_LOG_BYTES: u64 = 64 << 20;

/// Entries applied since the last snapshot that ask for the next one.
pub const SNAPSHOT_LOG_ENTRIES: u64 = 100_000;

/// Entries kept in the log although a snapshot holds them, so that a member that was away shortly catches up by log. Also
/// keeps purges far away from entries openraft is about to apply (its issue 2116).
pub const ENTRIES_KEPT: u64 = 4096;

/// Bytes of entries kept in the log at most for the same reason: seconds of writing at full speed. Fewer entries are kept if they are large.
pub const BYTES_KEPT: u64 = 64 << 20;

/// Entries kept, however large.
pub const ENTRIES_KEPT_ALWAYS: u64 = 64;

/// Bytes of entries kept at most for a member that is there and lacks them, while it receives a snapshot or catches up.
pub const BYTES_HELD: u64 = 1 << 30;

/// A member that has answered within this time is there.
pub const ANSWERED: Duration = Duration::from_secs(3);

/// Pause between two looks at whether the log can be cut: those it was kept for may have caught up, or be gone.
pub const CUT_TICK: Duration = Duration::from_secs(1);

/// How long to wait for a snapshot that was asked for before the log is cut to what there is.
pub const SNAPSHOT_MADE: Duration = Duration::from_secs(60);

/// Bytes of one snapshot chunk: small enough not to delay other traffic of the connection.
pub const SNAPSHOT_CHUNK: usize = 256 << 10;

/// Largest chunk accepted.
pub const SNAPSHOT_CHUNK_ACCEPTED: usize = 4 << 20;

/// Files in one snapshot.
pub const SNAPSHOT_FILES: usize = 100_000;

/// Length of a path in a manifest.
pub const SNAPSHOT_PATH: usize = 512;

/// Silence of the sender after which a snapshot transfer is given up.
pub const SNAPSHOT_SILENCE: Duration = Duration::from_secs(10);

/// How long the receiver may take to install a snapshot it has received.
pub const SNAPSHOT_INSTALL: Duration = Duration::from_secs(300);

/// A learner may be promoted when at most so many entries are missing.
pub const PROMOTE_LAG: u64 = 1000;

/// How long a change of members waits until those it needs are seen to be alive and to have what they must: several heartbeats.
pub const READY_WAIT: Duration = Duration::from_millis(700);

/// Pause between two looks meanwhile, if nothing is told.
pub const READY_TICK: Duration = Duration::from_millis(50);

/// Connecting to a peer, with TLS.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(900);

/// Pause after the first failed attempt to open an append stream.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(10);

/// Longest such pause: how late a peer that is back is found.
pub const RECONNECT_MAX: Duration = Duration::from_millis(200);

/// A peer's part of the TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Handshakes going on at once. Members are few; the rest is somebody knocking.
pub const HANDSHAKES: usize = 64;

/// HTTP/2 pings: with the timeout below, a dead connection is found within two seconds.
pub const PING_INTERVAL: Duration = Duration::from_millis(600);

/// Silence after a ping that closes the connection.
pub const PING_TIMEOUT: Duration = Duration::from_millis(1200);

/// HTTP/2 flow-control windows, of streams and connections: several full append messages in flight.
pub const WINDOW_BYTES: u32 = 16 << 20;

/// Asking peers whether they already form a cluster.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(700);

/// Pause between two rounds of asking.
pub const PROBE_RETRY: Duration = Duration::from_millis(100);

/// Elections that may still be under way when a member joins, in longest election timeouts: a candidate's own, the answers
/// on their way, and one for a clock that runs differently.
pub const ELECTION_LIFE: u32 = 3;

/// A change of members, waiting for the one before it and being committed, each. Longer than a failover.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handing leadership over before stopping.
pub const HANDOVER: Duration = Duration::from_secs(3);

/// Stopping Raft's core; what it waits for is a disk or a state machine that hangs.
pub const CORE_STOP: Duration = Duration::from_secs(5);

/// Flushing the state machine before stopping. Without it the log is replayed at the next start.
pub const FLUSH_STOP: Duration = Duration::from_secs(15);

/// Waiting for a thread that was told to stop; one that still runs then is abandoned, the process ends all the same.
pub const THREAD_STOP: Duration = Duration::from_secs(5);

/// Stopping the runtime of Raft; what still runs then is abandoned.
pub const RUNTIME_STOP: Duration = Duration::from_secs(5);

/// Niceness of Raft's threads and of the log's writer, where the system permits it: they should not wait behind requests (D2).
pub const NICENESS: i32 = -10;

/// Threads of Raft's own runtime, for its core, transport and timers. Its tasks wake each other all the time: with a second thread each
/// wake is one of a thread. One thread, together with one stream between two members, saved a sixth of all CPU of a put.
pub const RUNTIME_THREADS: usize = 1;

/// Threads for blocking reads of old entries and snapshot files.
pub const BLOCKING_THREADS: usize = 8;
