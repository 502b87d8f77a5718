//! The whole state in one file: what `Maintenance.Snapshot` sends, and what a cluster is restored from. The file is a bbolt database in
//! etcd's schema, so that etcd's tools read what is saved here and what an etcd saved can be restored here.
//!
//! [`schema`] has the buckets and their rows, [`save`] writes a view of the state, [`send`] does so to a client, [`restore`] makes a member's directory of a file.

pub(crate) mod restore;
pub(crate) mod save;
pub(crate) mod schema;
pub(crate) mod send;

pub use restore::{RAFT_DIR, RestoreError, RestoreOptions, Restored, STATE_DIR, restore};
