//! The schema of every message that some kinds reach, in OpenAPI's words.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::Grammar;
use crate::{
    kinds::{self, BODIES, KINDS, Kind},
    schema::{self, Cardinality, Field, ListType, Message, Omit, Shape, Type},
};

/// Component of patch bodies; it has no message.
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// Components by name. `described` holds schemas whose descriptions are taken over.
pub(super) fn components(
    kinds: &[&'static Kind],
    grammar: Grammar,
    described: &Map<String, Value>,
) -> Map<String, Value> {
    let mut todo: Vec<&'static Message> = Vec::new();
    todo.extend(
        ["meta.v1.Status", "meta.v1.DeleteOptions", "meta.v1.WatchEvent"].iter().filter_map(|n| schema::message(n)),
    );
    for kind in kinds {
        todo.extend(kind.schema());
        todo.extend(kind.list_schema().filter(|_| kind.allows("list")));
        todo.extend(kind.subresources.iter().filter_map(|sub| sub.body()).filter_map(Kind::schema));
    }
    let (mut seen, mut components) = (BTreeSet::new(), BTreeMap::new());
    let writer = Writer { grammar, described };
    while let Some(message) = todo.pop() {
        if seen.insert(message.id) {
            components.insert(message.openapi_name(), writer.component(message));
            todo.extend(message.flat().filter_map(Field::message).filter(|m| m.shape != Shape::Wrapper));
            todo.extend(message.fields().iter().filter_map(Field::message).filter(|_| message.shape != Shape::Struct));
        }
    }
    components.insert(PATCH.to_owned(), json!({"type": "object"}));
    components.into_iter().collect()
}

/// `{"$ref": ...}`
pub(super) fn reference(grammar: Grammar, component: &str) -> Value {
    let place = match grammar {
        Grammar::V2 => "#/definitions/",
        Grammar::V3 => "#/components/schemas/",
    };
    json!({"$ref": format!("{place}{component}")})
}

struct Writer<'a> {
    grammar: Grammar,
    described: &'a Map<String, Value>,
}

impl Writer<'_> {
    fn component(&self, message: &'static Message) -> Value {
        let name = message.openapi_name();
        let described = self.described.get(&name);
        let mut schema = match message.shape {
            Shape::Struct => self.object(message, described),
            shape => special(shape, self.grammar),
        };
        let texts = described.and_then(|d| d.get("description")).and_then(Value::as_str);
        if let Some(text) = texts.map(str::to_owned).or_else(|| list_description(message)) {
            schema.insert("description".into(), text.into());
        }
        let gvks = gvks(message);
        if !gvks.is_empty() {
            schema.insert("x-kubernetes-group-version-kind".into(), Value::Array(gvks));
        }
        Value::Object(schema)
    }

    fn object(&self, message: &'static Message, described: Option<&Value>) -> Map<String, Value> {
        let (mut properties, mut required) = (BTreeMap::new(), Vec::new());
        let text = |json: &str| {
            let found = described.and_then(|d| d.get("properties")?.get(json)?.get("description"));
            found.and_then(Value::as_str)
        };
        if message.type_meta {
            for word in ["apiVersion", "kind"] {
                properties.insert(word.to_owned(), described_as(json!({"type": "string"}), text(word)));
            }
        }
        for field in message.flat().filter(|f| !f.json.is_empty()) {
            properties.insert(field.json.to_owned(), described_as(self.property(message, field), text(field.json)));
            if field.required {
                required.push(field.json);
            }
        }
        let mut schema = Map::new();
        schema.insert("type".into(), "object".into());
        if !required.is_empty() {
            required.sort_unstable();
            schema.insert("required".into(), json!(required));
        }
        if !properties.is_empty() {
            schema.insert("properties".into(), Value::Object(properties.into_iter().collect()));
        }
        if message.atomic {
            schema.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        schema
    }

    fn property(&self, owner: &'static Message, field: &Field) -> Value {
        let element = self.element(owner, field);
        let mut property = match field.cardinality {
            Cardinality::List => json!({"type": "array", "items": element}),
            Cardinality::Map => json!({"type": "object", "additionalProperties": element}),
            Cardinality::One | Cardinality::Optional => element,
        };
        if let Some(extensions) = property.as_object_mut() {
            self.defaults(field, extensions);
            extend(field, extensions);
        }
        property
    }

    fn element(&self, owner: &'static Message, field: &Field) -> Value {
        match field.ty {
            Type::String => match schema::enumeration(owner, field.named) {
                Some(e) => json!({"type": "string", "enum": e.values}),
                None => json!({"type": "string"}),
            },
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Message(_) => self.message_element(field),
        }
    }

    fn message_element(&self, field: &Field) -> Value {
        let Some(message) = field.message() else { return json!({}) };
        if let Some(inner) = message.wrapped() {
            return self.property(message, inner);
        }
        let target = reference(self.grammar, &message.openapi_name());
        match self.grammar {
            // A reference may have no neighbours in v3; descriptions and defaults stand around it.
            Grammar::V3 => json!({"allOf": [target]}),
            Grammar::V2 => target,
        }
    }

    fn defaults(&self, field: &Field, property: &mut Map<String, Value>) {
        if let Ok(value) = serde_json::from_str::<Value>(field.default) {
            property.insert("default".into(), value);
        } else if self.grammar == Grammar::V3 && field.cardinality == Cardinality::One && field.omit == Omit::Never {
            let zero = match field.ty {
                Type::String => json!(""),
                Type::Int32 | Type::Int64 | Type::Double => json!(0),
                Type::Bool => json!(false),
                Type::Message(_) if field.message().is_some_and(|m| m.shape == Shape::Struct) => json!({}),
                _ => return,
            };
            property.insert("default".into(), zero);
        }
    }
}

/// The `x-kubernetes-` marks of a field.
fn extend(field: &Field, property: &mut Map<String, Value>) {
    let mut mark = |name: &str, value: Value| property.insert(format!("x-kubernetes-{name}"), value);
    let keys: Vec<&str> = field.list_map_keys().collect();
    if !keys.is_empty() {
        mark("list-map-keys", json!(keys));
    }
    match field.list_type {
        None => None,
        Some(ListType::Atomic) => mark("list-type", "atomic".into()),
        Some(ListType::Set) => mark("list-type", "set".into()),
        Some(ListType::Map) => mark("list-type", "map".into()),
    };
    if field.atomic {
        mark("map-type", "atomic".into());
    }
    if !field.merge_key.is_empty() {
        mark("patch-merge-key", field.merge_key.into());
    }
    let strategies: Vec<&str> = [(field.patch.merge, "merge"), (field.patch.retain_keys, "retainKeys")]
        .iter()
        .filter_map(|(on, word)| on.then_some(*word))
        .collect();
    if !strategies.is_empty() {
        mark("patch-strategy", strategies.join(",").into());
    }
}

fn described_as(mut schema: Value, text: Option<&str>) -> Value {
    if let (Some(map), Some(text)) = (schema.as_object_mut(), text) {
        map.insert("description".into(), text.into());
    }
    schema
}

fn special(shape: Shape, grammar: Grammar) -> Map<String, Value> {
    let schema = match (shape, grammar) {
        (Shape::Time | Shape::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
        (Shape::Duration, _) | (Shape::Quantity, Grammar::V2) => json!({"type": "string"}),
        (Shape::Quantity, Grammar::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        (Shape::IntOrString, Grammar::V2) => json!({"type": "string", "format": "int-or-string"}),
        (Shape::IntOrString, Grammar::V3) => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        (Shape::RawExtension | Shape::FieldsV1, _) => json!({"type": "object"}),
        _ => json!({}),
    };
    match schema {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn list_description(message: &Message) -> Option<String> {
    let item = message.name.strip_suffix("List")?;
    message.type_meta.then(|| format!("{} is a list of {item}", message.name))
}

/// The kinds whose body this message is; options stand for every served version.
fn gvks(message: &'static Message) -> Vec<Value> {
    let entry = |group: &str, version: &str, kind: &str| json!({"group": group, "kind": kind, "version": version});
    let short = message.short_name();
    let is_options = |k: &&Kind| k.group == "meta.k8s.io" && k.message == short;
    if BODIES.iter().any(|k| is_options(&k)) || message.name == "WatchEvent" {
        return super::versions().map(|(group, version)| entry(group, version, message.name)).collect();
    }
    let all = || KINDS.iter().chain(BODIES);
    let own = all().filter(|k| k.message == short).map(|k| entry(k.group, k.version, k.kind));
    let item = short.strip_suffix("List").unwrap_or_default();
    let lists = kinds_with_lists().filter(|k| k.message == item).map(|k| entry(k.group, k.version, &k.list_kind()));
    own.chain(lists).collect()
}

fn kinds_with_lists() -> impl Iterator<Item = &'static Kind> {
    kinds::KINDS.iter().filter(|k| k.allows("list"))
}
