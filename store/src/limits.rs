//! Every bound of the store, with its reason (I11).

use std::time::Duration;

/// Largest request a client may send, in encoded bytes: etcd's default, which clients size their batches by.
pub const REQUEST_BYTES: usize = 1_572_864;
/// Room above [`REQUEST_BYTES`] before the transport itself refuses: lets the refusal carry etcd's own text.
pub const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;
/// Body of a request of the JSON gateway, or what of a stream of them waits for its end, where requests may have `request_bytes`:
/// base64 makes a third more of bytes.
pub const fn gateway_bytes(request_bytes: usize) -> usize {
    request_bytes.saturating_add(REQUEST_OVERHEAD_BYTES).saturating_mul(2)
}
/// Operations in one branch of a transaction: etcd's default.
pub const TXN_OPERATIONS: usize = 128;
/// Members of a cluster that receive the log and do not vote, all together: each costs the leader a copy of all it writes.
pub const LEARNERS: usize = 8;
/// Automatic compaction by time comes at least so often.
pub const COMPACTION_PERIOD: Duration = Duration::from_secs(3600);
/// How often automatic compaction by number of revisions looks.
pub const COMPACTION_TICK: Duration = Duration::from_secs(300);
/// Automatic compaction looks no more often, whatever time is asked for.
pub const COMPACTION_PAUSE_MIN: Duration = Duration::from_millis(100);
/// A read index that takes longer is counted as slow.
pub const SLOW_READ: Duration = Duration::from_secs(1);
/// Between two attempts of a member to make its name and URLs known.
pub const PUBLISH_PAUSE: Duration = Duration::from_millis(500);
/// How often the leader looks whether a member that is to vote has caught up.
pub const PROMOTE_TICK: Duration = Duration::from_millis(500);
/// Password hashes worked out at the same time: each takes a core for tens of milliseconds.
pub const PASSWORD_HASHES: usize = 2;
/// Longest password: bcrypt looks at no more.
pub const PASSWORD_BYTES: usize = 72;
/// How long a login lives without being used: etcd's default.
pub const TOKEN_TTL: Duration = Duration::from_secs(300);
/// Longest token that is looked at: a signed one of the longest user name and key.
pub const TOKEN_BYTES: usize = 8 << 10;
/// Logins whose last use a member remembers; beyond it they end with their own time.
pub const TOKENS: usize = 100_000;
/// Longest lease in seconds: etcd's ceiling.
pub const LEASE_TTL_MAX: i64 = 9_000_000_000;
/// Expiries proposed per round; with [`LEASE_TICK`] this is at most 1,000 a second, so that mass expiry cannot starve writes.
pub const LEASE_EXPIRIES_PER_TICK: usize = 500;
/// How often the leader looks for leases whose time is over.
pub const LEASE_TICK: Duration = Duration::from_millis(500);
/// An expiry that was proposed and not seen applied is proposed again after this.
pub const LEASE_EXPIRY_RETRY: Duration = Duration::from_secs(3);
/// How often the size of the data is compared with the quota. What comes in between can go beyond it.
pub const SPACE_TICK: Duration = Duration::from_millis(500);
/// Time of a lease granted for a lock or an election whose caller brought none: the default of etcd's sessions.
pub const SESSION_TTL: Duration = Duration::from_secs(60);
/// Memory of the head index: about 300,000 keys with small values, or 10,000 pods; a miss costs one seek.
pub const HEAD_INDEX_BYTES: usize = 48 << 20;
/// Values above this stay out of the head index: they would push out hundreds of small ones. Pods are below it.
pub const HEAD_VALUE_BYTES: usize = 16 << 10;
/// Revisions the watch hub remembers, so that a watcher that is a little late never reads the disk.
pub const RING_REVISIONS: usize = 8192;
/// Bytes of events the ring may hold.
pub const RING_BYTES: usize = 16 << 20;
/// Revisions queued for one watcher before it has to read history instead.
pub const WATCHER_QUEUE_REVISIONS: usize = 1024;
/// Bytes of events queued for one watcher; they are shared with the ring, so this bounds what a stuck one pins.
pub const WATCHER_QUEUE_BYTES: usize = 4 << 20;
/// Revisions in one catch-up read or one answer, as etcd batches them.
pub const WATCH_BATCH_REVISIONS: usize = 1000;
/// Bytes after which a catch-up read or an answer ends, at a whole revision.
pub const WATCH_BATCH_BYTES: usize = 1 << 20;
/// Bytes of events that a stream makes ready to be sent at once.
pub const WATCH_ANSWERS_BYTES: usize = 64 << 10;
/// Watchers of one etcd stream: a kube-apiserver opens hundreds.
pub const WATCHERS_PER_STREAM: usize = 10_000;
/// Watchers of one member; each costs about 1 KiB.
pub const WATCHERS: usize = 200_000;
/// Catch-up reads that run at the same time: they hold a blocking thread and a disk each.
pub const HISTORY_READERS: usize = 4;
/// Answers waiting to be sent on one stream.
pub const STREAM_ANSWERS: usize = 16;
/// Large range reads under way, each with a view of the state and a part of its answer in memory; they take turns to run.
pub const RANGE_READERS: usize = 8;
/// Of these, reads of one flow (a user, or a connection): one who lists much leaves room for others.
pub const RANGE_READERS_OF_FLOW: usize = 4;
/// Range reads waiting for their turn, or for one of these places. Beyond it clients are told that there are too many requests.
pub const RANGES_WAITING: usize = 10_000;
/// Of these, reads of one flow.
pub const RANGES_WAITING_OF_FLOW: usize = 2_500;
/// What a range read does in one turn, in bytes of keys and values: what a small read waits for each list in front of it. Less than a
/// millisecond where they lie in memory.
pub const SLICE_BYTES: usize = 1 << 20;
/// A turn ends after so long although less was done: the disk is slow. Long enough that a thread which was kept waiting for its core does
/// not hand on what it has only just been given.
pub const SLICE: Duration = Duration::from_millis(5);
/// What a row costs beside its bytes: finding it takes as long as copying so many.
pub const ROW_COST: u64 = 256;
/// Answers of ranges from this size on are encoded where they were read, and sent piece by piece.
pub const PIECES_FROM: usize = 64 << 10;
/// What a key takes in an answer beside its key and value, about.
pub const KV_OVERHEAD: usize = 24;
/// Bytes of such a piece: one write to a connection.
pub const PIECE_BYTES: usize = 64 << 10;
/// Niceness of the threads that read ranges: in the way of others they get about a quarter of what these get.
pub const READER_NICENESS: i32 = 6;
/// Niceness of the thread that removes history: in the way of requests it gets a tenth of what these get.
pub const SCRUB_NICENESS: i32 = 10;
/// Entries of `rev` looked at per scrub batch, with a pause in between: history goes away in the background.
pub const SCRUB_ENTRIES: usize = 1000;
/// Rows of `kv` that are walked through in the time of one seek, in which one change is looked at.
pub const SCRUB_SEEK_ROWS: u64 = 5;
/// Rows of `kv` looked at per scrub batch, where all are walked through; their bytes; and those of them that are removed.
pub const SCRUB_ROWS: u64 = 4000;
pub const SCRUB_BYTES: usize = 8 << 20;
pub const SCRUB_REMOVED: u64 = 2000;
/// Rows deleted per scrub write, two for each version: applying waits for it, and its thread is slow where others have much to do.
pub const SCRUB_DELETES: usize = 200;
/// Versions removed before their room is given back: below, what is to be gained is not worth rewriting tables for.
pub const RECLAIM_ROWS: u64 = 100_000;
/// Bytes of tables that are rewritten in one step, which nothing interrupts; the first step takes what was not yet sorted into levels, too.
pub const RECLAIM_STEP_BYTES: usize = 64 << 20;
/// After a scrub batch the thread rests, so many times as long as that took: where others have much to do a batch takes longer, and so does
/// the rest. At least, and at most:
pub const SCRUB_REST: u32 = 3;
pub const SCRUB_PAUSE: Duration = Duration::from_millis(5);
pub const SCRUB_PAUSE_MOST: Duration = Duration::from_millis(500);
/// Bytes of answers that wait for their clients to take them. A few hundred lists of 500 pods, or 8 answers of the largest lists.
pub const ANSWERS_BYTES: usize = 256 << 20;
/// Of these, what the answers of one connection may be; a kube-apiserver has several connections.
pub const ANSWERS_BYTES_OF_ONE: usize = 64 << 20;
/// Smaller answers are not counted: clients and connections are bounded by themselves.
pub const ANSWER_SMALL: usize = 64 << 10;
/// Time a client has to take an answer, and as much again for each MiB: 64 KiB a second.
pub const ANSWER_STALL: Duration = Duration::from_secs(60);
pub const ANSWER_MEBIBYTE: Duration = Duration::from_secs(16);
/// So long may a client take nothing of its answer while others wait for the room.
pub const ANSWER_IDLE: Duration = Duration::from_secs(2);
/// How often that is looked at.
pub const ANSWER_LOOK: Duration = Duration::from_millis(500);
/// Keys in the first message of a range stream; later ones grow towards [`STREAM_CHUNK_BYTES`].
pub const STREAM_FIRST_KEYS: i64 = 10;
/// Keys in any message of a range stream.
pub const STREAM_CHUNK_KEYS: i64 = 2000;
/// Bytes a message of a range stream aims at.
pub const STREAM_CHUNK_BYTES: usize = REQUEST_BYTES;
/// Snapshots being sent at once: each holds a view, which keeps what was deleted since on disk.
pub const SNAPSHOTS: usize = 2;
/// Bytes of a snapshot in one message, as etcd sends them.
pub const SNAPSHOT_PIECE: usize = 32 << 10;
/// Messages of a snapshot that wait for their receiver.
pub const SNAPSHOT_MESSAGES: usize = 16;
/// A receiver that takes nothing of a snapshot for so long is given up.
pub const SNAPSHOT_STALL: Duration = Duration::from_secs(60);
/// Largest revision that is restored: nobody ever comes near it, and revisions must have room to grow.
pub const RESTORE_REVISION: i64 = i64::MAX / 2;
/// Bytes written at once while a state is restored.
pub const RESTORE_BATCH: usize = 4 << 20;
/// Quotas of prefixes and users, all together: each that a key falls under costs its write a row of its own.
pub const QUOTAS: usize = 1000;
/// Longest prefix, or name of a user, that has a quota.
pub const QUOTA_PREFIX_BYTES: usize = 1024;
/// How often the leader looks for prefixes that are to be counted.
pub const QUOTA_TICK: Duration = Duration::from_millis(200);
/// Prefixes that are counted for `top`, about 200 bytes each; beyond it the least are counted with what is above them.
pub const TOP_PREFIXES: usize = 8192;
/// Parts of a prefix that is counted.
pub const TOP_DEPTH: u32 = 4;
/// Longest prefix that is counted.
pub const TOP_PREFIX_BYTES: usize = 256;
/// Changes remembered until the count of what is there has begun.
pub const TOP_WAITING: usize = 100_000;
/// Prefixes in one answer.
pub const TOP_ROWS: u32 = 1000;
/// Nothing is counted any more once nobody has looked for so long.
pub const TOP_IDLE: Duration = Duration::from_secs(60);
/// Lines of the audit log that wait to be written: half a second of writes at full speed. Beyond it they are dropped, and counted.
pub const AUDIT_LINES: usize = 8192;
/// Bytes of these lines.
pub const AUDIT_BYTES: usize = 16 << 20;
/// Between two lines about what was dropped.
pub const AUDIT_TELL: Duration = Duration::from_secs(1);
/// Writes of one transaction in its line; more are only counted. The default most in one branch is half of it.
pub const AUDIT_WRITES: usize = 256;
/// Of a longer key a line has the beginning.
pub const AUDIT_KEY_BYTES: usize = 1024;
/// Client connections of one member.
pub const CONNECTIONS: usize = 10_000;
/// Streams of one HTTP/2 connection; etcd leaves it open, clients multiplex hundreds.
pub const STREAMS_PER_CONNECTION: u32 = 4096;
/// A TLS handshake that takes longer is dropped.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long, and for how many KiB, a client whose handshake failed is heard out, so that it can read why.
pub const LINGER: Duration = Duration::from_secs(1);
pub const LINGER_READS: usize = 64;
/// A client that has not said by then which protocol it speaks is dropped, and one whose HTTP/1 headers take longer.
pub const HEADERS: Duration = Duration::from_secs(10);
/// An HTTP/2 client is asked for a sign of life so often, and dropped if it gives none in the time after that.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
pub const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(20);
/// However often or seldom that was asked for: pings are not to be a load, and a connection whose client has vanished keeps its place no
/// longer.
pub const KEEP_ALIVE_LEAST: Duration = Duration::from_secs(1);
pub const KEEP_ALIVE_MOST: Duration = Duration::from_secs(300);
/// Bytes that are read from a connection before others have their turn, as far as that can be cut.
pub const READ_IN_A_TURN: usize = 4 << 10;
/// Requests that cannot be read, in excess of others on the same connection, before the connection is read slowly.
pub const UNREADABLE: u32 = 100;
/// Pause between two reads of such a connection, each of some kilobytes.
pub const UNREADABLE_PAUSE: Duration = Duration::from_millis(10);
/// Pings and settings that an HTTP/2 client may send beyond one for each frame it was sent.
pub const CONTROL_FRAMES: u32 = 1000;
/// One more of them may come each time this has passed.
pub const CONTROL_FRAME_TIME: Duration = Duration::from_millis(10);
/// Interval of progress notifications of an idle watcher.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// Time an open stream gets to end once the member stops.
pub const DRAIN: Duration = Duration::from_secs(2);
/// Branches above each other in a bbolt file that is read: each has at least two children, and trees of etcd's are below ten.
pub const BOLT_DEPTH: usize = 32;
/// A branch page that is read: bbolt puts two keys, of 32 KiB at most, into what is larger than a page of at most 64 KiB.
pub const BOLT_BRANCH_BYTES: usize = 1 << 20;
/// A leaf that is read: a few values of the largest requests that anybody lets etcd take.
pub const BOLT_LEAF_BYTES: usize = 256 << 20;
/// Buckets of a bbolt file that is read; etcd has eleven.
pub const BOLT_BUCKETS: usize = 1000;
/// A bbolt file's checksum is computed over so many bytes at a time.
pub const BOLT_CHECK_BYTES: usize = 1 << 20;

/// Keys of a bucket of the census: what a count reads at each end of its interval, about a tenth of a millisecond.
pub const CENSUS_BUCKET: i64 = 256;

/// Buckets of the census: some megabytes, and sixteen million keys before they become larger ones.
pub const CENSUS_BUCKETS: usize = 1 << 16;

/// Births and deaths of keys that are kept to count at earlier revisions. All of them are looked at then, for at most a tenth of a
/// millisecond.
pub const CENSUS_RECENT: usize = 8192;

/// Bytes a client may send on one stream before they are taken: the largest request fits.
pub const STREAM_WINDOW: u32 = 2 << 20;

/// Bytes a client may send on all streams of a connection. Small messages are bounded by it, too: with less, a client that opened a few
/// hundred watches at once was taken for a flood and cut off.
pub const CONNECTION_WINDOW: u32 = 8 << 20;

/// Read ahead while a database is verified, which goes through it from end to end.
pub const VERIFY_READ_AHEAD: usize = 1 << 20;
/// Rows between two tellings of how far verifying is.
pub const VERIFY_TELL: u64 = 10_000;
/// Findings of one kind that are told: more say nothing new.
pub const VERIFY_FINDINGS: usize = 10;
/// Bytes of a key that a finding shows.
pub const VERIFY_KEY_BYTES: usize = 64;

/// Threads on which RocksDB compacts.
pub const COMPACTION_THREADS: i32 = 2;
/// How far they step back behind those that serve: a quarter of a core's time is theirs where two want it.
pub const COMPACTION_NICENESS: i32 = 5;
