//! Brings a decoded message into the form Go's JSON output has.
//!
//! Members stand in declaration order; what Go omits when empty is left out, what it always writes is there (`status: {}`,
//! `divisor: "0"`). No member is null; only a zero time that is an element of a list or map is. So equal objects have equal trees, whichever encoding they came in.

use serde_json::{Map, Value};

use crate::schema::{Cardinality, Field, Message, Omit, Shape, Type};

/// `kind` and `apiVersion` of a message that carries them.
#[derive(Debug, Default)]
pub(super) struct Head {
    pub kind: Option<String>,
    pub api_version: Option<String>,
}

/// Builds the object from its members, which stand as in [`Message::flat`].
pub(super) fn object(message: &Message, head: Head, members: Vec<Option<Value>>) -> Map<String, Value> {
    let mut map = Map::new();
    for (key, value) in [("kind", head.kind), ("apiVersion", head.api_version)] {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            map.insert(key.to_owned(), Value::String(value));
        }
    }
    for (field, member) in message.flat().zip(members) {
        let value = match member {
            Some(value) if is_omitted(field, &value) => continue,
            Some(value) => value,
            None => match zero(field) {
                Some(value) => value,
                None => continue,
            },
        };
        map.insert(field.json.to_owned(), value);
    }
    map
}

fn is_omitted(field: &Field, value: &Value) -> bool {
    if field.omit == Omit::Never || field.cardinality == Cardinality::Optional {
        return false;
    }
    match value {
        Value::Null => true,
        Value::Bool(on) => !on && field.ty == Type::Bool,
        Value::Number(n) => n.as_f64() == Some(0.0) && matches!(field.ty, Type::Int32 | Type::Int64 | Type::Double),
        Value::String(s) => s.is_empty() && matches!(field.ty, Type::String | Type::Bytes),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() && (field.cardinality == Cardinality::Map || field.omit == Omit::Zero),
    }
}

/// What Go writes for a field that is not there, other than null.
fn zero(field: &Field) -> Option<Value> {
    if field.cardinality != Cardinality::One {
        return None;
    }
    match field.message() {
        Some(_) if field.omit == Omit::Zero => None,
        Some(message) => zero_message(message),
        None if field.omit != Omit::Never => None,
        None => zero_scalar(field.ty),
    }
}

fn zero_scalar(ty: Type) -> Option<Value> {
    match ty {
        Type::String => Some(Value::String(String::new())),
        Type::Int32 | Type::Int64 | Type::Double => Some(Value::from(0)),
        Type::Bool => Some(Value::Bool(false)),
        Type::Bytes | Type::Message(_) => None,
    }
}

fn zero_message(message: &Message) -> Option<Value> {
    match message.shape {
        Shape::Struct => Some(Value::Object(object(message, Head::default(), vec![None; message.flat_len()]))),
        Shape::Quantity => Some(Value::String("0".into())),
        Shape::IntOrString => Some(Value::from(0)),
        _ => None,
    }
}

/// The value of a null element of a list or map of this field's type.
pub(super) fn zero_element(field: &Field) -> Value {
    let zero = field.message().map_or_else(|| zero_scalar(field.ty), zero_message);
    zero.unwrap_or(Value::Null)
}
