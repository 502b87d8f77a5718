//! A tree into protobuf bytes, byte for byte as upstream writes them.
//!
//! Fields stand in number order; plain values are written even when zero, pointers only when there; map keys are sorted.
//! A tree that does not fit its schema loses the values that do not fit; nothing panics.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::{leaf, wire::Writer};
use crate::schema::{self, Cardinality, Field, Message, Shape, Type};

type Object = Map<String, Value>;

/// The fields of one message, without tag or length of its own.
pub(super) fn message(message: &Message, value: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    body(&mut out, message, Some(value));
    out.finish()
}

fn body(out: &mut Writer, message: &Message, value: Option<&Value>) {
    match message.shape {
        Shape::Struct => structure(out, message, value.and_then(Value::as_object)),
        Shape::Wrapper => {
            if let Some(inner) = message.wrapped() {
                member(out, inner, value);
            }
        }
        Shape::Time | Shape::MicroTime => time(out, message.shape, value),
        Shape::Duration => {
            let nanos = value.and_then(Value::as_str).and_then(|t| leaf::parse_duration(t).ok()).unwrap_or_default();
            out.varint_field(1, nanos as u64);
        }
        Shape::Quantity => {
            let text = match value {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Number(number)) => number.to_string(),
                _ => "0".into(),
            };
            out.bytes_field(1, text.as_bytes());
        }
        Shape::IntOrString => int_or_string(out, value),
        Shape::RawExtension | Shape::FieldsV1 | Shape::Json => {
            if let Some(value) = value {
                out.bytes_field(1, &serde_json::to_vec(value).unwrap_or_default());
            }
        }
        Shape::JsonSchemaOrArray | Shape::JsonSchemaOrBool | Shape::JsonSchemaOrStrings => either(out, message, value),
    }
}

fn structure(out: &mut Writer, message: &Message, object: Option<&Object>) {
    for field in message.in_number_order().rev() {
        if field.inline {
            let end = out.len();
            if let Some(inner) = field.message() {
                structure(out, inner, object);
            }
            out.close(field.number, end);
        } else {
            member(out, field, object.and_then(|o| o.get(field.json)).filter(|v| !v.is_null()));
        }
    }
}

fn member(out: &mut Writer, field: &Field, value: Option<&Value>) {
    match (field.cardinality, value) {
        (Cardinality::List, Some(Value::Array(list))) => {
            list.iter().rev().for_each(|v| one(out, field, field.number, Some(v)))
        }
        (Cardinality::Map, Some(Value::Object(map))) => entries(out, field, map),
        (Cardinality::List | Cardinality::Map, _) | (Cardinality::Optional, None) => (),
        (Cardinality::One | Cardinality::Optional, value) => one(out, field, field.number, value),
    }
}

fn entries(out: &mut Writer, field: &Field, map: &Object) {
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort_unstable();
    for key in keys.into_iter().rev() {
        let end = out.len();
        one(out, field, 2, map.get(key));
        out.bytes_field(1, key.as_bytes());
        out.close(field.number, end);
    }
}

/// One value of the field's type under `number`; an absent one is written as zero.
fn one(out: &mut Writer, field: &Field, number: u32, value: Option<&Value>) {
    match field.ty {
        Type::String => out.bytes_field(number, value.and_then(Value::as_str).unwrap_or_default().as_bytes()),
        Type::Int32 | Type::Int64 => out.varint_field(number, value.and_then(Value::as_i64).unwrap_or_default() as u64),
        Type::Bool => out.varint_field(number, value.and_then(Value::as_bool).unwrap_or_default().into()),
        Type::Double => out.double_field(number, value.and_then(Value::as_f64).unwrap_or_default()),
        Type::Bytes => {
            if let Some(text) = value.and_then(Value::as_str) {
                out.bytes_field(number, &STANDARD.decode(text).unwrap_or_default());
            }
        }
        Type::Message(id) => {
            let end = out.len();
            body(out, schema::get(id), value);
            out.close(number, end);
        }
    }
}

/// A zero time is an empty message.
fn time(out: &mut Writer, shape: Shape, value: Option<&Value>) {
    if let Some(time) = value.and_then(Value::as_str).and_then(|text| leaf::parse_time(text).ok()) {
        let nanos = match shape {
            Shape::MicroTime => time.subsec_nanosecond() / 1_000 * 1_000,
            _ => 0,
        };
        // Before 1970 jiff counts both parts down from zero; protobuf wants the second below and a positive rest.
        let (seconds, nanos) =
            if nanos < 0 { (time.as_second() - 1, nanos + 1_000_000_000) } else { (time.as_second(), nanos) };
        out.varint_field(2, i64::from(nanos) as u64);
        out.varint_field(1, seconds as u64);
    }
}

fn int_or_string(out: &mut Writer, value: Option<&Value>) {
    let (kind, int, text) = match value {
        Some(Value::String(text)) => (1, 0, text.as_str()),
        Some(Value::Number(number)) => (0, number.as_i64().unwrap_or_default(), ""),
        _ => (0, 0, ""),
    };
    out.bytes_field(3, text.as_bytes());
    out.varint_field(2, int as u64);
    out.varint_field(1, kind);
}

/// The either-or messages of apiextensions: a schema, or a list, a bool, a list of strings.
fn either(out: &mut Writer, message: &Message, value: Option<&Value>) {
    let or_bool = message.shape == Shape::JsonSchemaOrBool;
    let schema_number = if or_bool { 2 } else { 1 };
    let Some(schema) = message.by_number(schema_number).and_then(Field::message) else { return };
    let mut nested = |number: u32, value: &Value| {
        let end = out.len();
        body(out, schema, Some(value));
        out.close(number, end);
    };
    match value {
        Some(Value::Object(_)) => nested(schema_number, value.unwrap_or(&Value::Null)),
        Some(Value::Array(list)) if message.shape == Shape::JsonSchemaOrArray => {
            list.iter().rev().for_each(|v| nested(2, v));
        }
        Some(Value::Array(list)) if message.shape == Shape::JsonSchemaOrStrings => {
            list.iter().rev().filter_map(Value::as_str).for_each(|s| out.bytes_field(2, s.as_bytes()));
        }
        _ => (),
    }
    if or_bool {
        let allows = value.is_some_and(|v| v.as_bool().unwrap_or(v.is_object()));
        out.varint_field(1, allows.into());
    }
}
