//! The hash of the key space up to a revision, computed as etcd does, so that members, and an etcd fed with the same requests,
//! can be compared.
//!
//! It depends on the replicated compact revision and never on how far the scrub is: what the scrub may remove is left out.

use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;

use super::key::{self, Interval};
use super::record::{Change, corrupt, decode_change};
use super::view::{Source, View};

/// What etcd's hash begins with: its name of where the keys lie.
const BUCKET: &[u8] = b"key";

/// The CRC-32C over every kept change up to `revision`.
///
/// Of the changes up to the compact revision those count that a compaction at `revision` would keep; if nothing lives at
/// `revision`, those that the compaction which there was kept. `pace` hears of every change and may break it off.
pub(crate) fn hash_kv(view: &View<'_>, revision: i64, pace: impl Fn(usize) -> ControlFlow<()>) -> io::Result<u32> {
    if revision < 0 {
        return Ok(crc32c::crc32c(BUCKET)); // before everything
    }
    let compacted = view.compacted();
    let kept_at = if anything_lives(view, revision)? { revision } else { compacted };
    let mut sum = crc32c::crc32c(BUCKET);
    let mut changes = view.changes(0)?;
    while let Some((raw, change)) = changes.item() {
        let (main, sub) = key::parse_revision(raw).ok_or_else(|| corrupt("revision key"))?;
        if main > revision {
            break;
        }
        let Change { deleted, key: changed, .. } = decode_change(change)?;
        let kept = main > compacted || (!deleted && view.is_newest(changed, main, kept_at)?);
        if kept && let Some(version) = view.version(changed, main)? {
            sum = crc32c::crc32c_append(sum, &key::etcd_revision(main, sub, deleted));
            sum = crc32c::crc32c_append(sum, &version.to_stored_kv(changed).encode_to_vec());
        }
        if pace(change.len()).is_break() {
            break;
        }
        changes.next();
    }
    changes.status().map_err(io::Error::other)?;
    Ok(sum)
}

fn anything_lives(view: &View<'_>, at: i64) -> io::Result<bool> {
    let mut found = false;
    view.scan(&Interval::From(Bytes::new()), at, &mut |_| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found)
}
