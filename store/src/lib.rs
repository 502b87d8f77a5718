//! The replicated multi-version key space, compatible with etcd v3 (L2). The only crate that proposes to Raft (I2).
//!
//! A write's way: [`Store::txn`] → [`check`] (the door) → `raft::Handle::propose` → log → [`machine`] → [`apply`] (pure: state and
//! entry in, plan out) → one write (I5) → [`watch`] → answer. A read's way: read index → [`mvcc::view`] → [`mvcc::range`].
//! The etcd front ([`etcd`]) is one user of [`Store`]; the API server is the other, in the same process (D7).
//!
//! - I4: apply uses no clock, no randomness, no hash order.
//! - I7: the revision in an answer's header is the one the answer was read at.
//! - I8: see [`watch`].

mod about;
mod apply;
mod audit;
pub mod auth;
mod background;
pub mod bolt;
mod calls;
mod census;
mod check;
mod compaction;
mod consensus;
mod engine;
mod error;
pub mod etcd;
#[cfg(any(test, debug_assertions))]
pub mod fuzzing;
mod lease;
pub mod limits;
mod machine;
mod metrics;
pub mod mvcc;
mod quota;
mod readers;
mod recipe;
pub mod snapshot;
mod store;
mod tasks;
mod top;
pub mod verify;
pub mod watch;

pub use audit::AuditOptions;
pub use compaction::AutoCompaction;
pub use consensus::{Member, Standing};
pub use engine::EngineOptions;
pub use error::{OpenError, StoreError, WatchError};
pub use machine::StoreMachine;
pub use mvcc::key::{Interval, prefix_end};
pub use store::{Leadership, Store, StoreOptions, StoreStatus};
pub use watch::{Filters, WatchBatch, WatchOptions, Watcher};

#[cfg(test)]
mod tests;
