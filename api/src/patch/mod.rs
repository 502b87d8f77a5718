//! The three ways to change an object without sending it whole: JSON patch (RFC 6902), merge patch (RFC 7386) and
//! strategic merge patch. Beside them what server-side apply sets ([`applied`]).
//!
//! All are pure: document and patch in, document out. On an error the document is to be thrown away.

mod applied;
mod json;
mod merge;
mod order;
mod strategic;

pub use applied::applied;
pub use json::json;
pub use merge::merge;
pub use strategic::strategic;

use serde_json::Value;

use crate::status::Status;
use crate::tree::Object;

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is not in the form its type demands.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well formed but does not fit the object.
    #[error("{0}")]
    Unprocessable(String),
    #[error("The allowed maximum operations in a JSON patch is {limit}, got {got}")]
    TooManyOperations { limit: usize, got: usize },
    /// The operations would move more elements of lists than anybody waits for.
    #[error("The operations of a JSON patch may shift {limit} list elements")]
    TooMuchWork { limit: usize },
}

impl PatchError {
    pub fn to_status(&self) -> Status {
        match self {
            Self::Malformed(why) => Status::bad_request(why.clone()),
            Self::Unprocessable(_) => Status::unprocessable(self.to_string()),
            Self::TooManyOperations { .. } | Self::TooMuchWork { .. } => Status::too_large_because(self.to_string()),
        }
    }
}

fn malformed(text: impl Into<String>) -> PatchError {
    PatchError::Malformed(text.into())
}

/// What a value is called in messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "map",
    }
}

/// `map[a:1 b:x]`, the form in which messages about merge keys show an element.
fn go_map(object: &Object) -> String {
    let mut keys: Vec<&String> = object.keys().collect();
    keys.sort_unstable();
    let pairs: Vec<String> = keys.iter().map(|key| format!("{key}:{}", go_value(&object[key.as_str()]))).collect();
    format!("map[{}]", pairs.join(" "))
}

fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Object(object) => go_map(object),
        Value::Array(items) => format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" ")),
        other => other.to_string(),
    }
}
