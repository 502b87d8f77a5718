//! The v2 document as protobuf (`openapi.v2.Document` of gnostic), which older kubectl and Helm read.
//!
//! Covers the members that our own v2 document has. The writer works backwards, so fields stand here from last to first.

use serde_json::{Map, Value};

use crate::codec::Writer;

type Object = Map<String, Value>;

/// The whole document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    let Some(document) = document.as_object() else { return Vec::new() };
    nested(&mut out, 13, document.get("securityDefinitions"), |out, definitions| {
        named(out, 1, definitions, |out, scheme| message(out, 2, |out| api_key(out, scheme)));
    });
    for requirement in list(document, "security").rev().filter_map(Value::as_object) {
        message(&mut out, 12, |out| {
            named(out, 1, requirement, |out, scopes| {
                scopes.as_array().into_iter().flatten().rev().for_each(|s| text(out, 1, Some(s)));
            });
        });
    }
    nested(&mut out, 9, document.get("definitions"), |out, definitions| named(out, 1, definitions, schema));
    nested(&mut out, 8, document.get("paths"), |out, paths| named(out, 2, paths, path_item));
    nested(&mut out, 2, document.get("info"), |out, info| {
        text(out, 2, info.get("version"));
        text(out, 1, info.get("title"));
    });
    text(&mut out, 1, document.get("swagger"));
    out.finish()
}

fn api_key(out: &mut Writer, scheme: &Value) {
    message(out, 2, |out| {
        for (number, key) in [(4, "description"), (3, "in"), (2, "name"), (1, "type")] {
            text(out, number, scheme.get(key));
        }
    });
}

fn list<'a>(object: &'a Object, key: &str) -> std::slice::Iter<'a, Value> {
    object.get(key).and_then(Value::as_array).map(|list| list.iter()).unwrap_or_default()
}

fn message(out: &mut Writer, number: u32, write: impl FnOnce(&mut Writer)) {
    let end = out.len();
    write(out);
    out.close(number, end);
}

fn nested(out: &mut Writer, number: u32, value: Option<&Value>, write: impl FnOnce(&mut Writer, &Object)) {
    if let Some(object) = value.and_then(Value::as_object) {
        message(out, number, |out| write(out, object));
    }
}

fn text(out: &mut Writer, number: u32, value: Option<&Value>) {
    if let Some(text) = value.and_then(Value::as_str) {
        out.bytes_field(number, text.as_bytes());
    }
}

fn texts(out: &mut Writer, number: u32, object: &Object, key: &str) {
    list(object, key).rev().for_each(|value| text(out, number, Some(value)));
}

fn flag(out: &mut Writer, number: u32, value: Option<&Value>) {
    if value.and_then(Value::as_bool) == Some(true) {
        out.varint_field(number, 1);
    }
}

/// Entries of a map as messages of name (1) and value (2).
fn named(out: &mut Writer, number: u32, object: &Object, write: impl Fn(&mut Writer, &Value)) {
    for (name, value) in object.iter().rev() {
        message(out, number, |out| {
            message(out, 2, |out| write(out, value));
            out.bytes_field(1, name.as_bytes());
        });
    }
}

/// `Any`: the value as YAML text, of which JSON is a part.
fn any(out: &mut Writer, number: u32, value: &Value) {
    message(out, number, |out| out.bytes_field(2, value.to_string().as_bytes()));
}

fn extensions(out: &mut Writer, number: u32, object: &Object) {
    for (name, value) in object.iter().rev().filter(|(name, _)| name.starts_with("x-")) {
        message(out, number, |out| {
            any(out, 2, value);
            out.bytes_field(1, name.as_bytes());
        });
    }
}

fn path_item(out: &mut Writer, item: &Value) {
    let Some(item) = item.as_object() else { return };
    list(item, "parameters").rev().for_each(|p| parameter(out, 9, p));
    for (number, method) in
        [(8, "patch"), (7, "head"), (6, "options"), (5, "delete"), (4, "post"), (3, "put"), (2, "get")]
    {
        nested(out, number, item.get(method), operation);
    }
}

fn operation(out: &mut Writer, operation: &Object) {
    extensions(out, 13, operation);
    texts(out, 10, operation, "schemes");
    nested(out, 9, operation.get("responses"), |out, responses| {
        named(out, 1, responses, |out, response| {
            message(out, 1, |out| {
                if let Some(answer) = response.get("schema") {
                    message(out, 2, |out| message(out, 1, |out| schema(out, answer)));
                }
                text(out, 1, response.get("description"));
            });
        });
    });
    list(operation, "parameters").rev().for_each(|p| parameter(out, 8, p));
    texts(out, 7, operation, "consumes");
    texts(out, 6, operation, "produces");
    text(out, 5, operation.get("operationId"));
    texts(out, 1, operation, "tags");
}

/// `ParametersItem`: a parameter in the body, the query or the path.
fn parameter(out: &mut Writer, number: u32, parameter: &Value) {
    let get = |key: &str| parameter.get(key);
    message(out, number, |out| {
        message(out, 1, |out| match get("in").and_then(Value::as_str) {
            Some("body") => message(out, 1, |out| {
                if let Some(body) = get("schema") {
                    message(out, 5, |out| schema(out, body));
                }
                flag(out, 4, get("required"));
                text(out, 3, get("in"));
                text(out, 2, get("name"));
            }),
            place => {
                let is_path = place == Some("path");
                let (kind, unique, ty) = if is_path { (4, 19, 5) } else { (3, 20, 6) };
                message(out, 2, |out| {
                    message(out, kind, |out| {
                        flag(out, unique, get("uniqueItems"));
                        text(out, ty, get("type"));
                        text(out, 4, get("name"));
                        text(out, 2, get("in"));
                        flag(out, 1, get("required"));
                    });
                });
            }
        });
    });
}

fn schema(out: &mut Writer, schema_value: &Value) {
    let Some(object) = schema_value.as_object() else { return };
    extensions(out, 31, object);
    nested(out, 25, object.get("properties"), |out, properties| named(out, 1, properties, schema));
    if let Some(items) = object.get("items") {
        message(out, 23, |out| message(out, 1, |out| schema(out, items)));
    }
    if object.contains_key("type") {
        message(out, 22, |out| text(out, 1, object.get("type")));
    }
    if let Some(additional) = object.get("additionalProperties") {
        message(out, 21, |out| message(out, 1, |out| schema(out, additional)));
    }
    list(object, "enum").rev().for_each(|value| any(out, 20, value));
    texts(out, 19, object, "required");
    if let Some(default) = object.get("default") {
        any(out, 5, default);
    }
    for (number, key) in [(4, "description"), (2, "format"), (1, "$ref")] {
        text(out, number, object.get(key));
    }
}
