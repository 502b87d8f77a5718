//! Files of bbolt, the format of etcd's database and of its snapshots: one is written in a stream, and any is read.
//!
//! Flow: [`Layout`] (lengths only) → [`Emitter`] (the same items with their bytes) → a sink; a file → [`Bolt`] → [`Items`].
//! Knows nothing of what the buckets mean.
//!
//! - Writing holds one page for each level of one tree, reading one page for each level of the bucket that is read: memory does
//!   not follow the size of the data.
//! - What is written depends on the items alone, so that the length is known before the first byte.
//! - A file that is read is hostile: whatever its pages say, the answer is its data or an error that names the page.
// Rule: go.etcd.io/bbolt, format version 2: internal/common/{page,meta,inode,bucket}.go.

mod format;
mod items;
mod layout;
mod meta;
mod page;
mod read;
mod tree;
mod write;

pub use items::Items;
pub use layout::{Layout, LayoutBuilder};
pub use meta::MetaError;
pub use read::{Bolt, BoltError};
pub use write::Emitter;

#[cfg(any(test, debug_assertions))]
pub(crate) use meta::mend as mend_metas;

#[cfg(test)]
mod tests;
