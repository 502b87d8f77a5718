//! This machine as the cluster sees it: the Node object, its heartbeat and its Lease.

pub mod heartbeat;
pub mod lease;
pub mod node;
mod probe;

pub use probe::Machine;
