//! Strategic merge patch: a merge patch that knows, from the schema, which lists are merged by key.
//!
//! Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$setElementOrder/list`, `$deleteFromPrimitiveList/list`.
//! Where the schema knows nothing (unknown fields), maps merge and lists are replaced. Work is linear in the sizes of
//! document and patch apart from sorting.

use std::collections::HashSet;

use serde_json::Value;

use super::{PatchError, go_map, kind_of, malformed, order};
use crate::schema::{Field, Message};
use crate::tree::Object;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

type Schema = Option<&'static Message>;

/// Applies `patch` to `document`, whose schema is `schema`.
pub fn strategic(document: Value, patch: &Value, schema: Schema) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch.clone() else { return Err(malformed("invalid JSON document")) };
    let document = match document {
        Value::Object(document) => document,
        _ => Object::new(),
    };
    merge_map(document, patch, schema).map(Value::Object)
}

/// How one list or map field merges.
#[derive(Clone, Copy)]
struct Rule {
    merge: bool,
    key: &'static str,
    inner: Schema,
}

impl Rule {
    fn of(schema: Schema, name: &str) -> Self {
        match schema.and_then(|message| message.field(name)) {
            None => Self { merge: false, key: "", inner: None },
            Some(field) => Self { merge: field.patch.merge, key: field.merge_key, inner: inner(field) },
        }
    }
}

fn inner(field: &Field) -> Schema {
    field.message()
}

fn merge_map(mut original: Object, mut patch: Object, schema: Schema) -> Result<Object, PatchError> {
    if let Some(directive) = patch.shift_remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => {
                strip_nulls_of(&mut patch);
                Ok(without_directives_of(patch))
            }
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(&directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, schema)?;
    delete_from_lists(&mut original, &mut patch)?;
    for (key, value) in patch {
        merge_field(&mut original, key, value, schema)?;
    }
    Ok(original)
}

fn unknown_directive(directive: &Value, patch: &Object) -> PatchError {
    let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    malformed(format!("unknown patch type: {directive} in map: {}", go_map(patch)))
}

fn merge_field(original: &mut Object, key: String, value: Value, schema: Schema) -> Result<(), PatchError> {
    if value.is_null() {
        original.shift_remove(&key);
        return Ok(());
    }
    let rule = Rule::of(schema, &key);
    let merged = match (original.get_mut(&key).map(Value::take), value) {
        (Some(Value::Object(old)), Value::Object(new)) => Value::Object(merge_map(old, new, rule.inner)?),
        (Some(Value::Array(old)), Value::Array(new)) if rule.merge => Value::Array(merge_list(old, new, &key, rule)?),
        (_, Value::Array(new)) if !rule.merge => Value::Array(new),
        (_, mut new) => {
            strip_nulls(&mut new);
            match without_directives(new) {
                Some(new) => new,
                None => {
                    original.shift_remove(&key);
                    return Ok(());
                }
            }
        }
    };
    original.insert(key, merged);
    Ok(())
}

/// Drops every field of `original` that `$retainKeys` does not name; the patch may set only named ones.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || malformed("invalid patch format of retainKeys");
    let keys: HashSet<&str> = keys.as_array().ok_or_else(bad)?.iter().filter_map(Value::as_str).collect();
    let named = |key: &str| keys.contains(key);
    let foreign = |(key, value): (&String, &Value)| {
        !value.is_null() && !key.starts_with(DELETE_FROM) && !key.starts_with(SET_ORDER) && !named(key)
    };
    if patch.iter().any(foreign) {
        return Err(bad());
    }
    original.retain(|key, _| named(key));
    Ok(())
}

/// Carries out `$setElementOrder/x` together with the patch of list `x`.
fn set_element_orders(original: &mut Object, patch: &mut Object, schema: Schema) -> Result<(), PatchError> {
    let orders: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in orders {
        let Some(wish) = patch.shift_remove(&directive) else { continue };
        let Value::Array(wish) = wish else {
            return Err(malformed(format!("expected a list, but received a {}", kind_of(&wish))));
        };
        let name = &directive[SET_ORDER.len()..];
        let rule = Rule::of(schema, name);
        let old = take_list(original, name)?;
        let new = take_list(patch, name)?;
        let server = old.clone().unwrap_or_default();
        if let Some(new) = &new {
            check_order(new, &wish, rule.key)?;
        }
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => new.into_iter().filter_map(stripped).collect(),
            (Some(old), Some(new)) if rule.merge => merge_list(old, new, name, rule)?,
            (Some(_), Some(new)) => new,
        };
        if let Some(element) = merged.iter().find(|item| !rule.key.is_empty() && item.get(rule.key).is_none()) {
            return Err(no_merge_key(element, rule.key));
        }
        original.insert(name.to_owned(), Value::Array(order::normalize(merged, &wish, &server, rule.key)));
    }
    Ok(())
}

fn take_list(object: &mut Object, name: &str) -> Result<Option<Vec<Value>>, PatchError> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(_)) => match object.shift_remove(name) {
            Some(Value::Array(items)) => Ok(Some(items)),
            _ => Ok(None),
        },
        Some(other) => Err(malformed(format!("expected a list, but received a {}", kind_of(other)))),
    }
}

/// The patch's own elements must follow the order it sets.
fn check_order(patch: &[Value], wish: &[Value], key: &str) -> Result<(), PatchError> {
    let elements: Vec<Value> = patch.iter().filter(|item| item.get(PATCH).is_none()).cloned().collect();
    if elements.is_empty() || wish.is_empty() || order::agrees(&elements, wish, key) {
        return Ok(());
    }
    let show = |items: &[Value]| super::go_value(&Value::from(items.to_vec()));
    Err(malformed(format!(
        "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
        show(patch),
        show(wish)
    )))
}

/// Carries out `$deleteFromPrimitiveList/x`.
fn delete_from_lists(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let deletions: Vec<String> = patch.keys().filter(|key| key.starts_with(DELETE_FROM)).cloned().collect();
    for directive in deletions {
        let Some(Value::Array(gone)) = patch.shift_remove(&directive) else {
            return Err(malformed("invalid patch format of primitive list"));
        };
        let gone = order::positions(&gone, "");
        if let Some(Value::Array(items)) = original.get_mut(&directive[DELETE_FROM.len()..]) {
            items.retain(|item| !gone.contains_key(&item.to_string()));
        }
    }
    Ok(())
}

fn merge_list(old: Vec<Value>, new: Vec<Value>, name: &str, rule: Rule) -> Result<Vec<Value>, PatchError> {
    if old.is_empty() && new.is_empty() {
        return Ok(old);
    }
    if old.iter().chain(&new).any(Value::is_array) {
        return Err(PatchError::Unprocessable("lists of lists are not supported".to_owned()));
    }
    if !old.iter().chain(&new).any(Value::is_object) {
        let merged = order::deduplicate(old.iter().chain(&new).cloned().collect());
        return Ok(order::normalize(merged, &new, &old, ""));
    }
    if rule.key.is_empty() {
        return Err(malformed(format!("cannot merge lists without merge key for {name}")));
    }
    let (old, new) = special_elements(old, new, rule.key)?;
    let merged = merge_elements(old.clone(), &new, rule)?;
    Ok(order::normalize(merged, &new, &old, rule.key))
}

/// Carries out the elements that carry `$patch`; what is left of both lists is merged by key.
fn special_elements(mut old: Vec<Value>, new: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut plain = Vec::with_capacity(new.len());
    let mut gone = Vec::new();
    let mut replace = false;
    for item in new {
        let Value::Object(element) = &item else {
            return Err(malformed(format!("expected a map, but received a {}", kind_of(&item))));
        };
        match element.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
            None => plain.push(item),
            Some("replace") => replace = true,
            Some("merge") => return Err(malformed("merging lists cannot yet be specified in the patch")),
            Some("delete") => gone.push(order::identity(&item, key).ok_or_else(|| no_merge_key(&item, key))?),
            Some(_) => return Err(unknown_directive(&element[PATCH], element)),
        }
    }
    if replace {
        return Ok((Vec::new(), plain));
    }
    let gone: HashSet<String> = gone.into_iter().collect();
    old.retain(|item| order::identity(item, key).is_none_or(|identity| !gone.contains(&identity)));
    Ok((old, plain))
}

fn merge_elements(mut old: Vec<Value>, new: &[Value], rule: Rule) -> Result<Vec<Value>, PatchError> {
    if let Some(element) = old.iter().find(|item| item.get(rule.key).is_none()) {
        return Err(no_merge_key(element, rule.key));
    }
    let mut places = order::positions(&old, rule.key);
    for item in new {
        let identity = order::identity(item, rule.key).ok_or_else(|| no_merge_key(item, rule.key))?;
        let Value::Object(element) = item.clone() else { continue };
        match places.get(&identity).copied() {
            Some(at) => {
                let Value::Object(present) = old[at].take() else {
                    return Err(malformed(format!("value for key {at} is not a map")));
                };
                old[at] = Value::Object(merge_map(present, element, rule.inner)?);
            }
            None => {
                places.insert(identity, old.len());
                let mut element = Value::Object(element);
                strip_nulls(&mut element);
                old.extend(without_directives(element));
            }
        }
    }
    Ok(old)
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    match item {
        Value::Object(element) => {
            malformed(format!("map: {} does not contain declared merge key: {key}", go_map(element)))
        }
        other => malformed(format!("expected a map, but received a {}", kind_of(other))),
    }
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => strip_nulls_of(object),
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

fn strip_nulls_of(object: &mut Object) {
    object.retain(|_, value| !value.is_null());
    object.values_mut().for_each(strip_nulls);
}

fn stripped(mut value: Value) -> Option<Value> {
    strip_nulls(&mut value);
    without_directives(value)
}

/// The value a patch leaves behind where there was nothing to patch; `None` if it is a directive as a whole.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(object) if object.contains_key(PATCH) => None,
        Value::Object(object) => Some(Value::Object(without_directives_of(object))),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}

fn without_directives_of(object: Object) -> Object {
    object
        .into_iter()
        .filter(|(key, _)| key != RETAIN_KEYS && !key.starts_with(SET_ORDER) && !key.starts_with(DELETE_FROM))
        .filter_map(|(key, value)| without_directives(value).map(|value| (key, value)))
        .collect()
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
