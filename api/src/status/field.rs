//! Where in an object something is wrong, and what: the causes inside an `Invalid` status.
//!
//! [`Path`] is written as clients print it (`spec.containers[0].env[1].name`, `metadata.labels[key]`). The texts of
//! [`FieldError`] are those of Kubernetes, because tools and people match on them.

use std::collections::HashSet;
use std::fmt;

use serde_json::Value;

use super::Cause;

/// A place in an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn new(root: impl Into<String>) -> Self {
        Self(root.into())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TooShort,
    TooFew,
    TypeInvalid,
    Internal,
}

impl ErrorKind {
    /// The cause type in `details.causes[].reason`.
    pub fn cause(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TooShort => "FieldValueTooShort",
            Self::TooFew => "FieldValueTooFew",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::TooShort => "Too short",
            Self::TooFew => "Too few",
            Self::Internal => "Internal error",
        }
    }
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: ErrorKind,
    pub field: String,
    /// The value that was refused; `None` where the text does not repeat it. Boxed, for this is an error's type.
    pub bad: Option<Box<Value>>,
    pub detail: String,
}

impl FieldError {
    fn new(kind: ErrorKind, path: &Path, bad: Option<Value>, detail: impl Into<String>) -> Self {
        Self { kind, field: path.0.clone(), bad: bad.map(Box::new), detail: detail.into() }
    }

    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Required, path, None, detail)
    }

    pub fn invalid(path: &Path, bad: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, path, Some(bad.into()), detail)
    }

    pub fn type_invalid(path: &Path, bad: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::TypeInvalid, path, Some(bad.into()), detail)
    }

    pub fn not_found(path: &Path, bad: impl Into<Value>) -> Self {
        Self::new(ErrorKind::NotFound, path, Some(bad.into()), "")
    }

    pub fn duplicate(path: &Path, bad: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, path, Some(bad.into()), "")
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, path, None, detail)
    }

    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, path, None, detail)
    }

    pub fn not_supported(path: &Path, bad: impl Into<Value>, supported: &[&str]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(ErrorKind::NotSupported, path, Some(bad.into()), detail)
    }

    pub fn too_long(path: &Path, max: usize) -> Self {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Self::new(ErrorKind::TooLong, path, None, format!("may not be more than {max} {unit}"))
    }

    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Self::new(ErrorKind::TooMany, path, Some(actual.into()), format!("must have at most {max} {unit}"))
    }

    /// The field may not change.
    pub fn immutable(path: &Path, bad: impl Into<Value>) -> Self {
        Self::invalid(path, bad, "field is immutable")
    }

    /// The text without the field: `Invalid value: "x": why`.
    pub fn body(&self) -> String {
        let mut body = self.kind.title().to_owned();
        match self.bad.as_deref() {
            None => {}
            Some(Value::String(text)) => body.push_str(&format!(": {}", quote(text))),
            Some(value) => body.push_str(&format!(": {value}")),
        }
        if !self.detail.is_empty() {
            body.push_str(": ");
            body.push_str(&self.detail);
        }
        body
    }

    pub fn to_cause(&self) -> Cause {
        Cause { reason: self.kind.cause().to_owned(), message: self.body(), field: self.field.clone() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// Quotes as Go's `%q` does for what occurs in names and values.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// All errors in one text: one as it is, several as `[a, b]`, each text once.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut seen = HashSet::new();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).filter(|text| seen.insert(text.clone())).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        _ => format!("[{}]", texts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(error: FieldError, want: &str) {
        assert_eq!(error.to_string(), want);
    }

    #[test]
    fn texts_are_the_known_ones() {
        let path = Path::new("spec").child("ports").index(2).child("name");
        check(FieldError::required(&path, ""), "spec.ports[2].name: Required value");
        check(FieldError::invalid(&path, "a\"b", "bad"), "spec.ports[2].name: Invalid value: \"a\\\"b\": bad");
        check(FieldError::invalid(&path, 7, "bad"), "spec.ports[2].name: Invalid value: 7: bad");
        check(FieldError::invalid(&path, json!({"a": 1}), "bad"), "spec.ports[2].name: Invalid value: {\"a\":1}: bad");
        check(FieldError::duplicate(&path, "x"), "spec.ports[2].name: Duplicate value: \"x\"");
        check(
            FieldError::not_supported(&path, "x", &["TCP", "UDP"]),
            "spec.ports[2].name: Unsupported value: \"x\": supported values: \"TCP\", \"UDP\"",
        );
        check(FieldError::too_long(&path, 63), "spec.ports[2].name: Too long: may not be more than 63 bytes");
        check(FieldError::too_many(&path, 5, 3), "spec.ports[2].name: Too many: 5: must have at most 3 items");
        check(FieldError::forbidden(&path, "no"), "spec.ports[2].name: Forbidden: no");
    }

    #[test]
    fn aggregate_names_each_text_once() {
        let error = FieldError::required(&Path::new("a"), "");
        assert_eq!(aggregate(&[error.clone(), error.clone()]), "a: Required value");
        let other = FieldError::required(&Path::new("b"), "");
        assert_eq!(aggregate(&[error, other]), "[a: Required value, b: Required value]");
    }
}
