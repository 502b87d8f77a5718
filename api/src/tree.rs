//! Reading and writing inside objects (`serde_json::Value` trees) by JSON pointer.
//!
//! Every reader treats a missing field, a null and a value of the wrong type alike: absent. Wrong types are refused when
//! a body is decoded; nothing behind that point may panic because of one.

use serde_json::{Map, Value};

pub type Object = Map<String, Value>;

/// The value at `pointer` (`""` is `value` itself), unless it is missing or null.
pub fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    value.pointer(pointer).filter(|found| !found.is_null())
}

/// The string at `pointer`, or `""`.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The string at `pointer` if it is there and not empty.
pub fn some_text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    Some(text(value, pointer)).filter(|found| !found.is_empty())
}

pub fn int(value: &Value, pointer: &str) -> Option<i64> {
    at(value, pointer).and_then(Value::as_i64)
}

pub fn flag(value: &Value, pointer: &str) -> bool {
    at(value, pointer).and_then(Value::as_bool).unwrap_or_default()
}

pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub fn map<'a>(value: &'a Value, pointer: &str) -> Option<&'a Object> {
    at(value, pointer).and_then(Value::as_object)
}

/// The entries of the object at `pointer`; none if it is absent.
pub fn entries<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    map(value, pointer).into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

/// The elements of the list at `pointer`, to be changed in place.
pub fn list_mut<'a>(value: &'a mut Value, pointer: &str) -> &'a mut [Value] {
    value.pointer_mut(pointer).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default()
}

/// The child object `key` of `value`, made if it is not there. `None` only if `value` is not an object.
pub fn object<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let parent = value.as_object_mut()?;
    let child = parent.entry(key).or_insert_with(|| Value::Object(Object::new()));
    if !child.is_object() {
        *child = Value::Object(Object::new());
    }
    Some(child)
}

/// Sets `key` of `value` unless it has a value already.
pub fn set_default(value: &mut Value, key: &str, default: impl Into<Value>) {
    if let Some(object) = value.as_object_mut()
        && object.get(key).is_none_or(Value::is_null)
    {
        object.insert(key.to_owned(), default.into());
    }
}

/// Sets `key` of `value`.
pub fn set(value: &mut Value, key: &str, new: impl Into<Value>) {
    if let Some(object) = value.as_object_mut() {
        object.insert(key.to_owned(), new.into());
    }
}

/// Removes `key` of `value`, keeping the order of the others.
pub fn remove(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut().and_then(|object| object.shift_remove(key))
}

/// Whether two fields are the same to the API: absent, null, `""`, `{}` and `[]` are all "not set", and order of keys
/// does not count.
pub fn same(left: Option<&Value>, right: Option<&Value>) -> bool {
    match (left.filter(|v| !is_unset(v)), right.filter(|v| !is_unset(v))) {
        (None, None) => true,
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            left.iter().all(|(key, value)| same(Some(value), right.get(key)))
                && right.keys().all(|key| left.contains_key(key) || same(None, right.get(key)))
        }
        (Some(Value::Array(left)), Some(Value::Array(right))) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(Some(left), Some(right)))
        }
        (left, right) => left == right,
    }
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_unset),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wrong_types_read_as_absent() {
        let value = json!({"spec": {"replicas": "three", "paused": null, "list": {}}});
        assert_eq!(int(&value, "/spec/replicas"), None);
        assert!(!flag(&value, "/spec/paused"));
        assert!(list(&value, "/spec/list").is_empty());
        assert_eq!(text(&value, "/spec/replicas"), "three");
    }

    #[test]
    fn unset_forms_are_the_same() {
        assert!(same(Some(&json!({"a": {}, "b": "", "c": [1]})), Some(&json!({"c": [1], "d": null}))));
        assert!(!same(Some(&json!({"a": 1})), Some(&json!({"a": 2}))));
        assert!(!same(Some(&json!({"a": false})), Some(&json!({}))));
    }
}
