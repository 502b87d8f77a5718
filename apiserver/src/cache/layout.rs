//! Which stored keys belong to which kind: upstream's key layout, as a table built once from the kinds table.
//!
//! Several served kinds can share one storage (events of two groups, autoscalers of two versions): they share a
//! [`Slot`]. Always holds: slots are dense and stable for the life of the process.

use std::collections::HashMap;
use std::sync::LazyLock;

use pintle_api::codec;
use pintle_api::kinds::{KINDS, Kind};

/// Root of all objects in the store.
pub const ROOT: &str = "/registry/";
/// First key after all objects.
pub const ROOT_END: &str = "/registry0";

/// Index of one stored collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub(crate) u16);

struct Layout {
    /// The kind that gives the stored form.
    slots: Vec<&'static Kind>,
    by_prefix: HashMap<&'static str, Slot>,
}

static LAYOUT: LazyLock<Layout> = LazyLock::new(|| {
    let mut layout = Layout { slots: Vec::new(), by_prefix: HashMap::new() };
    for kind in KINDS.iter().filter(|kind| kind.is_stored()) {
        let index = u16::try_from(layout.slots.len()).unwrap_or(u16::MAX);
        match layout.by_prefix.get(kind.storage_prefix) {
            Some(_) => (),
            None => {
                layout.by_prefix.insert(kind.storage_prefix, Slot(index));
                layout.slots.push(codec::storage_kind(kind));
            }
        }
    }
    layout
});

pub fn slot(kind: &Kind) -> Option<Slot> {
    LAYOUT.by_prefix.get(kind.storage_prefix).copied()
}

pub fn slots() -> usize {
    LAYOUT.slots.len()
}

/// The kind whose form is stored in `slot`.
pub fn stored_kind(slot: Slot) -> &'static Kind {
    LAYOUT.slots[usize::from(slot.0)]
}

/// Key of one object inside its slot: `namespace/name`, or `name`.
pub fn local_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

pub fn store_key(kind: &Kind, namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        format!("{}/{name}", kind.storage_prefix)
    } else {
        format!("{}/{namespace}/{name}", kind.storage_prefix)
    }
}

/// Splits a stored key into its slot and local key. `None` for keys that are no object of ours.
pub fn split(key: &[u8]) -> Option<(Slot, &str)> {
    let key = std::str::from_utf8(key).ok()?;
    // A prefix is two or three segments deep: /registry/pods, /registry/services/specs, /registry/apps.example/things.
    let mut ends = key.match_indices('/').map(|(at, _)| at).skip(2);
    for end in [ends.next()?].into_iter().chain(ends.take(2)) {
        if let Some(&slot) = LAYOUT.by_prefix.get(&key[..end]) {
            let local = &key[end + 1..];
            return (!local.is_empty()).then_some((slot, local));
        }
    }
    None
}
