//! The multi-version key space as it lies on disk: keys, records, consistent views, range reads, hashes, and the removal of
//! history. Nothing here changes the state except the scrub, which only removes what no reader may ask for any more.

pub(crate) mod hash;
pub(crate) mod head;
pub mod key;
pub(crate) mod pieces;
pub(crate) mod range;
pub(crate) mod record;
pub(crate) mod scrub;
pub(crate) mod stream;
pub(crate) mod view;
