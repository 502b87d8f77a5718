//! Second step of decoding text: a plain tree into one whose known fields have the types of their schema.
//!
//! Reports unknown and repeated fields in document order; the first wrong type ends it, with the words of Go's decoder.

use serde_json::{Map, Value};

use super::{
    leaf,
    settle::{self, Head},
};
use crate::{
    limits,
    schema::{Cardinality, Field, Message, Shape, Type},
};

/// Why a tree is no object of its kind. The text is what upstream's decoder says.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConformError {
    #[error("{0}")]
    Value(String),
    #[error("the object has more than {} values", limits::VALUES_MAX)]
    TooLarge,
}

/// The result of [`conform`].
#[derive(Debug)]
pub(super) struct Conformed {
    pub object: Map<String, Value>,
    /// `unknown field "spec.foo"`, `duplicate field "spec.bar"`
    pub reports: Vec<String>,
}

/// Checks `value` against `message`. `duplicates` are paths of repeated keys that the parser saw.
pub(super) fn conform(
    message: &'static Message,
    value: Value,
    duplicates: &[String],
) -> Result<Conformed, ConformError> {
    let Value::Object(map) = value else {
        let text =
            format!("json: cannot unmarshal {} into Go value of type {}", leaf::json_kind(&value), message.go_name());
        return Err(ConformError::Value(text));
    };
    let mut walk = Walk { path: Vec::new(), duplicates, reports: Vec::new(), values: 0 };
    let object = walk.structure(message, map)?;
    Ok(Conformed { object, reports: walk.reports })
}

enum Step {
    Field(&'static str),
    Key(String),
    Index(usize),
}

struct Walk<'a> {
    path: Vec<Step>,
    duplicates: &'a [String],
    reports: Vec<String>,
    values: usize,
}

impl Walk<'_> {
    fn structure(
        &mut self,
        message: &'static Message,
        map: Map<String, Value>,
    ) -> Result<Map<String, Value>, ConformError> {
        let mut members = vec![None; message.flat_len()];
        let mut head = Head::default();
        for (key, value) in map {
            if message.type_meta && (key == "kind" || key == "apiVersion") {
                self.check_duplicate(&key);
                let slot = if key == "kind" { &mut head.kind } else { &mut head.api_version };
                *slot = self.head_word(message, &key, value)?;
                continue;
            }
            let Some(at) = message.position(&key) else {
                self.report("unknown", &key);
                continue;
            };
            let field = message.flat_field(at);
            self.check_duplicate(field.json);
            if !value.is_null() {
                self.path.push(Step::Field(field.json));
                members[at] = Some(self.member(message, field, value)?);
                self.path.pop();
            }
        }
        Ok(settle::object(message, head, members))
    }

    fn head_word(&self, message: &Message, key: &str, value: Value) -> Result<Option<String>, ConformError> {
        match value {
            Value::Null => Ok(None),
            Value::String(word) => Ok(Some(word)),
            other => Err(ConformError::Value(format!(
                "json: cannot unmarshal {} into Go struct field {}.{key} of type string",
                leaf::json_kind(&other),
                message.name
            ))),
        }
    }

    fn member(&mut self, owner: &'static Message, field: &Field, value: Value) -> Result<Value, ConformError> {
        match (field.cardinality, value) {
            (Cardinality::List, Value::Array(list)) => self.list(owner, field, list).map(Value::Array),
            (Cardinality::Map, Value::Object(map)) => self.map(owner, field, map).map(Value::Object),
            (Cardinality::List | Cardinality::Map, other) => Err(self.wrong_type(owner, field, &other, true)),
            (_, value) => self.element(owner, field, value),
        }
    }

    fn list(&mut self, owner: &'static Message, field: &Field, list: Vec<Value>) -> Result<Vec<Value>, ConformError> {
        let mut out = Vec::with_capacity(list.len());
        for (index, value) in list.into_iter().enumerate() {
            self.path.push(Step::Index(index));
            out.push(if value.is_null() { settle::zero_element(field) } else { self.element(owner, field, value)? });
            self.path.pop();
        }
        Ok(out)
    }

    fn map(
        &mut self,
        owner: &'static Message,
        field: &Field,
        map: Map<String, Value>,
    ) -> Result<Map<String, Value>, ConformError> {
        let mut out = Map::with_capacity(map.len());
        for (key, value) in map {
            self.check_duplicate(&key);
            let value = if value.is_null() {
                settle::zero_element(field)
            } else {
                self.path.push(Step::Key(key.clone()));
                let value = self.element(owner, field, value)?;
                self.path.pop();
                value
            };
            out.insert(key, value);
        }
        out.sort_keys();
        Ok(out)
    }

    fn element(&mut self, owner: &'static Message, field: &Field, value: Value) -> Result<Value, ConformError> {
        self.values += 1;
        if self.values > limits::VALUES_MAX {
            return Err(ConformError::TooLarge);
        }
        match (field.ty, value) {
            (Type::Message(_), value) => match field.message() {
                Some(message) => self.message(owner, field, message, value),
                None => Ok(value),
            },
            (Type::String, value @ Value::String(_)) | (Type::Bool, value @ Value::Bool(_)) => Ok(value),
            (Type::Int32, Value::Number(n)) if n.as_i64().is_some_and(|i| i32::try_from(i).is_ok()) => {
                Ok(Value::Number(n))
            }
            (Type::Int64, Value::Number(n)) if n.is_i64() => Ok(Value::Number(n)),
            (Type::Double, Value::Number(n)) => Ok(Value::Number(n)),
            (Type::Bytes, Value::String(text)) => canonical_base64(text),
            (_, value) => Err(self.wrong_type(owner, field, &value, false)),
        }
    }

    fn message(
        &mut self,
        owner: &'static Message,
        field: &Field,
        message: &'static Message,
        value: Value,
    ) -> Result<Value, ConformError> {
        match (message.shape, value) {
            (Shape::Struct, Value::Object(map)) => self.structure(message, map).map(Value::Object),
            (Shape::Struct, other) => Err(self.wrong_type(owner, field, &other, false)),
            (Shape::Wrapper, value) => match message.wrapped() {
                Some(inner) => self.member(message, inner, value),
                None => Ok(value),
            },
            (Shape::JsonSchemaOrArray | Shape::JsonSchemaOrBool, Value::Object(map)) => {
                self.json_schema(message, map).map(Value::Object)
            }
            (Shape::JsonSchemaOrArray, Value::Array(list)) => {
                let mut out = Vec::with_capacity(list.len());
                for (index, value) in list.into_iter().enumerate() {
                    self.path.push(Step::Index(index));
                    let Value::Object(map) = value else { return Err(self.wrong_type(owner, field, &value, false)) };
                    out.push(Value::Object(self.json_schema(message, map)?));
                    self.path.pop();
                }
                Ok(Value::Array(out))
            }
            (Shape::JsonSchemaOrBool, value @ Value::Bool(_)) => Ok(value),
            (Shape::JsonSchemaOrStrings, Value::Object(map)) => self.json_schema(message, map).map(Value::Object),
            (Shape::JsonSchemaOrStrings, Value::Array(list)) if list.iter().all(Value::is_string) => {
                Ok(Value::Array(list))
            }
            (Shape::JsonSchemaOrArray | Shape::JsonSchemaOrBool | Shape::JsonSchemaOrStrings, _) => {
                Err(ConformError::Value("unexpected JSON type".into()))
            }
            (Shape::RawExtension | Shape::FieldsV1 | Shape::Json, value) => Ok(value),
            (shape, value) => leaf::canonical(shape, value).map_err(ConformError::Value),
        }
    }

    /// The schema alternative of the three either-or messages is their field 1 (or 2 of `OrBool`).
    fn json_schema(&mut self, either: &Message, map: Map<String, Value>) -> Result<Map<String, Value>, ConformError> {
        match either.fields().iter().find_map(|f| f.message()) {
            Some(schema) => self.structure(schema, map),
            None => Ok(map),
        }
    }

    fn check_duplicate(&mut self, key: &str) {
        if !self.duplicates.is_empty() {
            let path = self.path_to(key);
            if self.duplicates.contains(&path) {
                self.report("duplicate", key);
            }
        }
    }

    fn report(&mut self, what: &str, key: &str) {
        if self.reports.len() < limits::FIELD_REPORTS_MAX {
            let path = self.path_to(key);
            self.reports.push(format!("{what} field {path:?}"));
        }
    }

    /// `spec.containers[0].name`, cut off at the bound for paths.
    fn path_to(&self, key: &str) -> String {
        let mut path = String::new();
        let mut add = |dot: bool, text: &str| {
            if dot && !path.is_empty() {
                path.push('.');
            }
            let room = limits::FIELD_PATH_MAX.saturating_sub(path.len());
            path.extend(text.chars().take(room));
        };
        for step in &self.path {
            match step {
                Step::Field(name) => add(true, name),
                Step::Key(key) => add(true, key),
                Step::Index(index) => add(false, &format!("[{index}]")),
            }
        }
        add(true, key);
        path
    }

    fn wrong_type(&self, owner: &Message, field: &Field, value: &Value, whole: bool) -> ConformError {
        let names: Vec<&str> = self
            .path
            .iter()
            .filter_map(|step| match step {
                Step::Field(name) => Some(*name),
                Step::Key(key) => Some(key.as_str()),
                Step::Index(_) => None,
            })
            .collect();
        let literal = match (value, field.ty) {
            (Value::Number(n), Type::Int32 | Type::Int64) => format!(" {n}"),
            _ => String::new(),
        };
        ConformError::Value(format!(
            "json: cannot unmarshal {}{literal} into Go struct field {}.{} of type {}",
            leaf::json_kind(value),
            owner.name,
            names.join("."),
            go_type(owner, field, whole)
        ))
    }
}

/// `int32`, `[]v1.Container`, `map[string]string`: the whole field or one element of it.
fn go_type(owner: &Message, field: &Field, whole: bool) -> String {
    let element = match field.ty {
        Type::String if field.named.is_empty() => "string".to_owned(),
        Type::String => match field.named.rsplit_once('.') {
            Some((_, name)) => format!("v1.{name}"),
            None => format!("{}.{}", owner.package().go, field.named),
        },
        Type::Int32 => "int32".to_owned(),
        Type::Int64 => "int64".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::Double => "float64".to_owned(),
        Type::Bytes => "[]uint8".to_owned(),
        Type::Message(_) => field.message().map(Message::go_name).unwrap_or_default(),
    };
    match field.cardinality {
        Cardinality::List if whole => format!("[]{element}"),
        Cardinality::Map if whole => format!("map[string]{element}"),
        _ => element,
    }
}

/// Go's decoder takes standard base64 with line breaks in it.
fn canonical_base64(text: String) -> Result<Value, ConformError> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], "") } else { text };
    match STANDARD.decode(&text) {
        Ok(_) => Ok(Value::String(text)),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => text.len(),
            };
            Err(ConformError::Value(format!("illegal base64 data at input byte {at}")))
        }
    }
}
