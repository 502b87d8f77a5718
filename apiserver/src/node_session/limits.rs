//! Bounds of node sessions (I11), each with its reason.

use std::time::Duration;

/// Sessions on one server: the largest cluster upstream supports, should one server carry it alone.
pub const SESSIONS: usize = 5_000;
/// Opens waiting in one session's queue. More wait in line with their client.
pub const OPENS: usize = 64;
/// Opens of one node that wait for the agent's answer. An agent that answers none must not gather clients.
pub const OPENING_PER_NODE: usize = 256;
/// Frames between a client and an agent in each direction. With 32 KiB each, half a MiB per stream at worst.
pub const FRAMES: usize = 16;
/// Largest frame an agent may send. Agents cut at 32 KiB; the rest is slack for Status objects.
pub const FRAME_BYTES: usize = 1024 * 1024;
/// Time for an agent to say who it is.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an agent to answer an open: it has to reach its container runtime.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Life of this server's entries in the directory after its death, in seconds.
pub const LEASE_SECONDS: i64 = 10;
/// Renewal of that life; three tries fit into it.
pub const LEASE_RENEW: Duration = Duration::from_secs(3);
