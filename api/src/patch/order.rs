//! The order of a merged list: the patch's wish first, the server's order for what the patch does not mention.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// What tells the elements of a list apart: the text of the merge key, or of the scalar itself.
pub(super) fn identity(item: &Value, merge_key: &str) -> Option<String> {
    let value = if merge_key.is_empty() { item } else { item.get(merge_key)? };
    Some(value.to_string())
}

/// Positions of elements by identity; the first of equal ones counts.
pub(super) fn positions(items: &[Value], merge_key: &str) -> HashMap<String, usize> {
    let mut positions = HashMap::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        if let Some(identity) = identity(item, merge_key) {
            positions.entry(identity).or_insert(index);
        }
    }
    positions
}

/// Orders `merged`: elements that `wish` names stand in its order, the others keep the order of `server`, and the two
/// rows are woven together by their places in `server`.
pub(super) fn normalize(merged: Vec<Value>, wish: &[Value], server: &[Value], merge_key: &str) -> Vec<Value> {
    let wished = positions(wish, merge_key);
    let placed = positions(server, merge_key);
    let place = |item: &Value, places: &HashMap<String, usize>| {
        identity(item, merge_key).and_then(|identity| places.get(&identity).copied())
    };
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(item, &wished).is_some());
    named.sort_by_cached_key(|item| place(item, &wished));
    // Elements unknown to the server's order (there are none unless the patch added them) stay behind.
    others.sort_by_cached_key(|item| place(item, &placed).unwrap_or(usize::MAX));
    let with_place = |items: Vec<Value>| items.into_iter().map(|item| (place(&item, &placed), item)).collect();
    weave(with_place(others), with_place(named))
}

/// Merges two rows of elements with their places. An element of `left` comes first only where both heads have a place
/// and its place is smaller.
fn weave(left: Vec<(Option<usize>, Value)>, right: Vec<(Option<usize>, Value)>) -> Vec<Value> {
    let mut woven = Vec::with_capacity(left.len() + right.len());
    let mut left = left.into_iter().peekable();
    let mut right = right.into_iter().peekable();
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return woven,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((l, _)), Some((r, _))) => matches!((l, r), (Some(l), Some(r)) if l < r),
        };
        woven.extend(if take_left { left.next() } else { right.next() }.map(|(_, item)| item));
    }
}

/// Whether the elements of `patch` that are not directives appear in `wish` in the same relative order.
pub(super) fn agrees(patch: &[Value], wish: &[Value], merge_key: &str) -> bool {
    let mut wish = wish.iter().map(|item| identity(item, merge_key));
    patch.iter().map(|item| identity(item, merge_key)).all(|wanted| wish.any(|item| item == wanted))
}

/// Each scalar once, the first occurrence kept.
pub(super) fn deduplicate(items: Vec<Value>) -> Vec<Value> {
    let mut seen = HashSet::new();
    items.into_iter().filter(|item| seen.insert(item.to_string())).collect()
}
