//! The rule for kinds without rules of their own: what the schema requires must be there.
//!
//! Only texts and objects count as missing: an empty list, a zero or a `false` is written by some clients as nothing at
//! all, and the kinds' own rules upstream accept that.

use serde_json::Value;

use super::Errors;
use crate::kinds::Kind;
use crate::schema::{Cardinality, Message, Shape, Type};
use crate::status::{FieldError, Path};

/// Required texts that may be empty all the same: the empty audience is that of the API server.
static MAY_BE_EMPTY: &[(&str, &str)] = &[("TokenRequest", "audience")];

pub(super) fn nothing(_: &Value, _: &mut Errors) {}

/// Reports every required field of the object that is missing, `metadata` and `status` excepted.
pub(super) fn required(kind: &Kind, object: &Value, errors: &mut Errors) {
    if let Some(schema) = kind.schema() {
        walk(schema, object, &Path::default(), true, errors);
    }
}

fn walk(schema: &'static Message, value: &Value, path: &Path, top: bool, errors: &mut Errors) {
    if schema.shape != Shape::Struct {
        return;
    }
    let Value::Object(object) = value else { return };
    let skipped =
        |name: &str| name.is_empty() || (top && matches!(name, "metadata" | "status" | "kind" | "apiVersion"));
    schema.visit_flat(&mut |field| {
        if skipped(field.json) {
            return;
        }
        let child = object.get(field.json).filter(|child| !child.is_null());
        let path = path.child(field.json);
        if field.required && is_missing(field.ty, field.cardinality, child) && !may_be_empty(schema, field.json) {
            errors.push(FieldError::required(&path, ""));
            return;
        }
        let (Some(message), Some(child)) = (field.message(), child) else { return };
        match (field.cardinality, child) {
            (Cardinality::List, Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    walk(message, item, &path.index(index), false, errors);
                }
            }
            (Cardinality::Map, Value::Object(entries)) => {
                for (key, entry) in entries {
                    walk(message, entry, &path.key(key), false, errors);
                }
            }
            (Cardinality::One | Cardinality::Optional, child) => walk(message, child, &path, false, errors),
            _ => {}
        }
    });
}

fn is_missing(ty: Type, cardinality: Cardinality, value: Option<&Value>) -> bool {
    match (cardinality, ty) {
        (Cardinality::List | Cardinality::Map, _) => false,
        (_, Type::String) => value.and_then(Value::as_str).is_none_or(str::is_empty),
        (_, Type::Message(_)) => value.is_none(),
        _ => false,
    }
}

fn may_be_empty(schema: &Message, field: &str) -> bool {
    MAY_BE_EMPTY.iter().any(|(message, name)| *message == schema.name && *name == field)
}
