//! Reads `tables.txt` (format: `scripts/gen-api-tables.py`) into [`Schema`].
//!
//! The input is part of the binary, so a malformed line is a bug of this tree and panics; nothing from outside comes here.

use std::collections::HashMap;

use super::{
    Cardinality, Enumeration, Field, ListType, Message, MessageId, Omit, Package, PatchStrategy, Schema, Shape, Type,
};

pub(super) fn parse(text: &'static str) -> Schema {
    let mut schema = Schema { packages: Vec::new(), messages: Vec::new(), enums: Vec::new(), names: Vec::new() };
    let ids = collect_names(text, &mut schema);
    for line in text.lines() {
        let mut words = line.split(' ');
        match words.next() {
            Some("P") => schema.packages.push(package(words)),
            Some("E") => schema.enums.push(Enumeration {
                name: words.next().expect("enum name"),
                values: words.collect(),
                package: (schema.packages.len() - 1) as u16,
            }),
            Some("M") => {
                let at = (schema.messages.len(), schema.packages.len() - 1);
                let short = schema.packages[at.1].short;
                schema.messages.push(message(at, short, words));
            }
            Some(number) => {
                let short = schema.packages.last().expect("package before fields").short;
                let field = field(number, words, short, &ids);
                schema.messages.last_mut().expect("message before fields").fields.push(field);
            }
            None => (),
        }
    }
    index(&mut schema);
    schema
}

/// First pass: message names and their ids, since fields refer forward.
fn collect_names(text: &'static str, schema: &mut Schema) -> HashMap<(&'static str, &'static str), MessageId> {
    let (mut ids, mut short) = (HashMap::new(), "");
    for line in text.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("P"), Some(proto)) => short = short_package(proto),
            (Some("M"), Some(name)) => {
                ids.insert((short, name), MessageId(ids.len() as u16));
            }
            _ => (),
        }
    }
    schema.names = ids.iter().map(|((p, n), id)| (*p, *n, *id)).collect();
    schema.names.sort_unstable();
    ids
}

/// The last two parts of a protobuf package.
fn short_package(proto: &'static str) -> &'static str {
    let last = proto.rfind('.').unwrap_or(0);
    proto[..last].rfind('.').map_or(proto, |at| &proto[at + 1..])
}

fn package(mut words: std::str::Split<'static, char>) -> Package {
    let proto = words.next().expect("package name");
    let openapi = words.next().expect("component prefix");
    Package { proto, openapi, go: words.next().expect("Go name"), short: short_package(proto) }
}

fn message((id, package): (usize, usize), short: &str, mut words: std::str::Split<'static, char>) -> Message {
    let name = words.next().expect("message name");
    let mut message = Message {
        id: MessageId(id as u16),
        name,
        type_meta: false,
        shape: shape(short, name),
        atomic: false,
        package: package as u16,
        fields: Vec::new(),
        by_number: Vec::new(),
        flat: Vec::new(),
        starts: Vec::new(),
        by_json: Vec::new(),
    };
    for flag in words {
        match flag {
            "T" => message.type_meta = true,
            "W" => message.shape = Shape::Wrapper,
            "struct=atomic" => message.atomic = true,
            _ => (),
        }
    }
    message
}

fn shape(package: &str, name: &str) -> Shape {
    match (package, name) {
        ("meta.v1", "Time") => Shape::Time,
        ("meta.v1", "MicroTime") => Shape::MicroTime,
        ("meta.v1", "Duration") => Shape::Duration,
        ("meta.v1", "FieldsV1") => Shape::FieldsV1,
        ("api.resource", "Quantity") => Shape::Quantity,
        ("util.intstr", "IntOrString") => Shape::IntOrString,
        ("pkg.runtime", "RawExtension") => Shape::RawExtension,
        ("apiextensions.v1", "JSON") => Shape::Json,
        ("apiextensions.v1", "JSONSchemaPropsOrArray") => Shape::JsonSchemaOrArray,
        ("apiextensions.v1", "JSONSchemaPropsOrBool") => Shape::JsonSchemaOrBool,
        ("apiextensions.v1", "JSONSchemaPropsOrStringArray") => Shape::JsonSchemaOrStrings,
        _ => Shape::Struct,
    }
}

type Ids = HashMap<(&'static str, &'static str), MessageId>;

fn field(number: &str, mut words: std::str::Split<'static, char>, package: &'static str, ids: &Ids) -> Field {
    let json = words.next().expect("json name");
    let (cardinality, ty) = field_type(words.next().expect("type"), package, ids);
    let mut field = Field {
        number: number.parse().expect("field number"),
        json: if json == "-" { "" } else { json },
        ty,
        cardinality,
        omit: Omit::Never,
        required: false,
        inline: false,
        named: "",
        patch: PatchStrategy::default(),
        merge_key: "",
        list_type: None,
        list_keys: "",
        atomic: false,
        granular: false,
        default: "",
    };
    words.for_each(|flag| apply_flag(&mut field, flag));
    field
}

fn apply_flag(field: &mut Field, flag: &'static str) {
    match flag.split_once('=') {
        None => match flag {
            "o" if field.omit == Omit::Never => field.omit = Omit::Empty,
            "z" => field.omit = Omit::Zero,
            "r" => field.required = true,
            "^" => field.inline = true,
            _ => (),
        },
        Some(("e", name)) => field.named = name,
        Some(("ps", strategy)) => {
            field.patch.merge = strategy.split(',').any(|s| s == "merge");
            field.patch.retain_keys = strategy.split(',').any(|s| s == "retainKeys");
        }
        Some(("pk", key)) => field.merge_key = key,
        Some(("lt", kind)) => {
            field.list_type = Some(match kind {
                "map" => ListType::Map,
                "set" => ListType::Set,
                _ => ListType::Atomic,
            });
        }
        Some(("lk", keys)) => field.list_keys = keys,
        Some(("mt" | "st", kind)) => {
            field.atomic = kind == "atomic";
            field.granular = kind == "granular";
        }
        Some(("def", value)) => field.default = value,
        Some(_) => (),
    }
}

fn field_type(word: &'static str, package: &'static str, ids: &Ids) -> (Cardinality, Type) {
    let (word, pointer) = word.strip_prefix('*').map_or((word, false), |w| (w, true));
    let (name, cardinality) = if let Some(name) = word.strip_prefix("[]") {
        (name, Cardinality::List)
    } else if let Some(name) = word.strip_prefix("{}") {
        (name, Cardinality::Map)
    } else {
        (word, if pointer { Cardinality::Optional } else { Cardinality::One })
    };
    let ty = match name {
        "s" => Type::String,
        "i" => Type::Int32,
        "l" => Type::Int64,
        "b" => Type::Bool,
        "d" => Type::Double,
        "y" => Type::Bytes,
        _ => {
            let key = name.rsplit_once('.').unwrap_or((package, name));
            Type::Message(*ids.get(&key).unwrap_or_else(|| panic!("unknown message {name} in {package}")))
        }
    };
    (cardinality, ty)
}

/// Second pass: the lookup tables of every message.
fn index(schema: &mut Schema) {
    for at in 0..schema.messages.len() {
        let (mut flat, mut starts) = (Vec::new(), Vec::new());
        flatten(&schema.messages, at, &mut flat, Some(&mut starts));
        let name =
            |(owner, index): &(MessageId, u16)| schema.messages[usize::from(owner.0)].fields[usize::from(*index)].json;
        let mut by_json: Vec<_> = flat.iter().enumerate().map(|(i, f)| (name(f), i as u16)).collect();
        by_json.retain(|(name, _)| !name.is_empty());
        by_json.sort_unstable();
        let message = &mut schema.messages[at];
        let mut numbers: Vec<u16> = (0..message.fields.len() as u16).collect();
        numbers.sort_unstable_by_key(|i| message.fields[usize::from(*i)].number);
        message.fields.shrink_to_fit();
        (message.flat, message.starts, message.by_json, message.by_number) = (flat, starts, by_json, numbers);
    }
}

fn flatten(messages: &[Message], at: usize, flat: &mut Vec<(MessageId, u16)>, mut starts: Option<&mut Vec<u16>>) {
    for (index, field) in messages[at].fields.iter().enumerate() {
        if let Some(starts) = starts.as_deref_mut() {
            starts.push(flat.len() as u16);
        }
        match field.ty {
            Type::Message(inner) if field.inline => flatten(messages, usize::from(inner.0), flat, None),
            _ => flat.push((messages[at].id, index as u16)),
        }
    }
}
