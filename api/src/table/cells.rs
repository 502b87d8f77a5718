//! Cells that many kinds share.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration;
use crate::meta::Meta;
use crate::selector::Labels;
use crate::tree::{self, Object};

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";

pub(super) fn name(object: &Value) -> Value {
    json!(Meta::of(object).name())
}

pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    json!(duration::since(object, "/metadata/creationTimestamp", now))
}

/// The text at `pointer`, or `default` if it is missing or empty.
pub(super) fn text_or(object: &Value, pointer: &str, default: &str) -> Value {
    json!(tree::some_text(object, pointer).unwrap_or(default))
}

pub(super) fn count(object: &Value, pointer: &str) -> Value {
    json!(tree::int(object, pointer).unwrap_or_default())
}

pub(super) fn length(object: &Value, pointer: &str) -> Value {
    json!(tree::list(object, pointer).len())
}

/// Names and images of the containers at `pointer`, comma separated.
pub(super) fn containers(object: &Value, pointer: &str) -> [Value; 2] {
    let join = |key: &str| {
        let texts: Vec<&str> = tree::list(object, pointer).iter().map(|container| tree::text(container, key)).collect();
        json!(texts.join(","))
    };
    [join("/name"), join("/image")]
}

/// `a=b,c=d`, sorted; `<none>` for none.
pub(super) fn labels(map: Option<&Object>) -> Value {
    let mut pairs: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    pairs.sort_unstable();
    if pairs.is_empty() { json!(NONE) } else { json!(pairs.join(",")) }
}

/// A label selector object as text; `<none>` if it selects everything or is not there.
pub(super) fn selector(object: &Value, pointer: &str) -> Value {
    match Labels::from_selector(tree::at(object, pointer)) {
        Err(_) => json!("<error>"),
        Ok(labels) if labels.requirements().is_empty() => json!(NONE),
        Ok(labels) => json!(labels.to_string()),
    }
}

/// The first `max` texts, and how many more there are.
pub(super) fn some_of(texts: &[String], max: usize) -> String {
    let shown = texts.iter().take(max).cloned().collect::<Vec<_>>().join(",");
    if texts.len() > max { format!("{shown} + {} more...", texts.len() - max) } else { shown }
}

/// A scalar as text; `None` if it is missing.
pub(super) fn scalar(object: &Value, pointer: &str) -> Option<String> {
    match tree::at(object, pointer)? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Whether a condition of this type is true.
pub(super) fn is_true(object: &Value, condition: &str) -> bool {
    tree::list(object, "/status/conditions")
        .iter()
        .any(|found| tree::text(found, "/type") == condition && tree::text(found, "/status") == "True")
}
