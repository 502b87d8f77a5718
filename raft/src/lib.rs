//! Consensus: one replicated log of opaque commands, applied in the same order by every member (L2, below `store`).
//!
//! A write's way: [`Handle::propose`] → [`propose`] (everything waiting becomes one entry) → openraft's core → [`log`]
//! (one synced write) in parallel with [`transport`] (append streams to the followers) → quorum → [`apply`] (one thread,
//! [`StateMachine::apply`]) → the caller. A read's way: [`Handle::read_index`] → [`read`] → leader → wait until applied.
//!
//! Always holds:
//! - I1: commands are bytes. Nothing here knows what they mean.
//! - I4, I6: an error of the log, of its disk or of the state machine is final: [`Handle::stopped`] tells, the process ends.
//! - I14: a data directory that contradicts itself is refused at start ([`StartError`]).
//! - openraft is seen by this crate alone (D2); none of its types is public.

mod apply;
mod arrivals;
mod bootstrap;
mod codec;
mod confirm;
mod core;
mod describe;
mod entries;
mod fatal;
mod fence;
#[cfg(any(test, debug_assertions))]
pub mod fuzzing;
mod identity;
pub mod inspect;
pub mod limits;
mod log;
mod machine;
mod mark;
mod members;
mod meters;
mod node;
pub mod offline;
mod propose;
mod read;
mod readiness;
mod recent;
mod runtime;
mod snapshot;
mod start;
mod status;
mod storage;
mod thread;
mod transport;
mod waiting;
mod wire;

pub use describe::{DescribeError, Description, claimed, describe};
pub use fatal::Fatal;
pub use machine::{Applied, Committed, Flusher, LogId, Payload, Peer, StateMachine};
pub use members::ChangeError;
pub use node::Handle;
pub use propose::{Lane, ProposeError};
pub use read::ReadError;
pub use start::{Options, Peering, StartError, Tls, start};
pub use status::{PeerStatus, Role, Status};

#[cfg(test)]
extern crate self as pintle_raft;
#[cfg(test)]
#[path = "../tests/support/ledger.rs"]
mod ledger;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod suite;

/// What precedes a server's name in the common name of its certificate.
pub const CERTIFICATE_NAME_PREFIX: &str = "system:pintle:server:";
