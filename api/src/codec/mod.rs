//! Bytes of the API into trees and back: JSON, YAML, Kubernetes protobuf.
//!
//! Text goes through [`raw`] (parse), then [`conform`](mod@conform) (check against the schema); protobuf through
//! [`envelope`] and [`read`]. All end in the one form of [`settle`], so equal objects have equal trees whichever way they
//! came. Output: [`write`] for protobuf, serde for text, [`frames`] for watch streams.
//!
//! Always holds: no input panics; depth, size and number of values are bounded by `limits`.

mod conform;
mod convert;
mod envelope;
mod frames;
mod leaf;
mod raw;
mod read;
mod settle;
mod wire;
mod write;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{
    kinds::{self, Kind},
    limits,
    schema::{self, Message},
    status::Status,
};

pub use convert::{from_storage, storage_kind, to_storage};
pub use frames::{watch_frame_json, watch_frame_protobuf};
pub(crate) use wire::Writer;

/// First bytes of Kubernetes protobuf.
pub const MAGIC: &[u8] = b"k8s\0";

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Media types a body may have, as error messages list them.
pub const ACCEPTED: &[&str] = &[JSON, YAML, PROTOBUF];

/// What to do about unknown and duplicate fields (`fieldValidation=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    /// The default of a request that does not say.
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; `None` if it is none of the three words. Empty is the default.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// A checked object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Known fields have the types of the schema; `kind` and `apiVersion` are there.
    pub object: Value,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// A way to write a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    /// By media type, parameters ignored. `None`: not one of ours.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        match essence.to_ascii_lowercase().as_str() {
            JSON => Some(Self::Json),
            YAML | "application/x-yaml" | "text/yaml" | "application/apply-patch+yaml" => Some(Self::Yaml),
            PROTOBUF => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// Decodes a request body that must be a `kind`. A missing content type means JSON.
///
/// # Errors
/// The Status to answer with: 413 too large, 415 unknown media type, 400 everything about the content.
pub fn decode(
    kind: &Kind,
    content_type: Option<&str>,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    if body.len() > limits::BODY_BYTES_MAX {
        return Err(Status::too_large(limits::BODY_BYTES_MAX));
    }
    let media_type = content_type.filter(|c| !c.trim().is_empty()).unwrap_or(JSON);
    let unrecognized = |why: String| {
        let excerpt = excerpt(body);
        refusal(format!("the object provided is unrecognized (must be of type {}): {why} ({excerpt})", kind.kind))
    };
    let parsed = match Encoding::of_media_type(media_type) {
        None => return Err(Status::unsupported_media_type(ACCEPTED)),
        Some(Encoding::Protobuf) => return decode_protobuf(kind, body, validation, unrecognized),
        Some(Encoding::Json) => raw::json(body).map_err(|e| unrecognized(format!("couldn't get version/kind; {e}"))),
        Some(Encoding::Yaml) => raw::yaml(body).map_err(|e| unrecognized(e.to_string())),
    }?;
    from_tree(kind, parsed.value, &parsed.duplicates, validation)
}

/// Checks a tree that is not a request body as it came: the result of a patch, an object from a store.
///
/// # Errors
/// 400, as [`decode`].
pub fn conform(kind: &Kind, object: Value, validation: FieldValidation) -> Result<Decoded, Status> {
    // The parsers bound the depth of bodies; what patches build is bounded here, free-form parts included.
    if is_deeper_than(&object, limits::DEPTH_MAX) {
        return Err(refusal(format!("the object is nested more than {} levels deep", limits::DEPTH_MAX)));
    }
    from_tree(kind, object, &[], validation)
}

/// True if lists and objects are nested deeper than `levels`; looks no further down than that.
///
/// Trees are walked and freed by recursion, so one that is deep enough ends the process: whoever builds a tree out of
/// input in several steps (`copy` of a JSON patch doubles the depth each time) asks this before each step.
pub fn is_deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(list) => levels == 0 || list.iter().any(|v| is_deeper_than(v, levels - 1)),
        Value::Object(map) => levels == 0 || map.values().any(|v| is_deeper_than(v, levels - 1)),
        _ => false,
    }
}

/// Parses a JSON or YAML document that has no kind: a patch.
///
/// # Errors
/// 400 with the parser's words; 413 if too large.
pub fn parse(encoding: Encoding, body: &[u8]) -> Result<Value, Status> {
    if body.len() > limits::BODY_BYTES_MAX {
        return Err(Status::too_large(limits::BODY_BYTES_MAX));
    }
    let parsed = match encoding {
        Encoding::Yaml => raw::yaml(body),
        Encoding::Json | Encoding::Protobuf => raw::json(body),
    };
    parsed.map(|raw| raw.value).map_err(|error| refusal(error.to_string()))
}

fn from_tree(kind: &Kind, value: Value, duplicates: &[String], validation: FieldValidation) -> Result<Decoded, Status> {
    let Value::Object(mut map) = value else {
        let what = leaf::json_kind(&value);
        return Err(refusal(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {what} into Go value of type {}",
            kind.message
        )));
    };
    check_kind(kind, word(&map, "apiVersion"), word(&map, "kind"))?;
    for (key, value) in [("kind", kind.kind.to_owned()), ("apiVersion", kind.api_version())] {
        if word(&map, key).is_empty() && map.get(key).is_none_or(|v| v.is_null() || v.is_string()) {
            map.insert(key.to_owned(), Value::String(value));
        }
    }
    let message = schema_of(kind)?;
    let done = conform::conform(message, Value::Object(map), duplicates)
        .map_err(|error| cannot_be_handled(kind, kind.version, kind.kind, &error.to_string()))?;
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => done.reports,
        FieldValidation::Strict if done.reports.is_empty() => Vec::new(),
        FieldValidation::Strict => {
            let text = format!("strict decoding error: {}", done.reports.join(", "));
            return Err(cannot_be_handled(kind, kind.version, kind.kind, &text));
        }
    };
    Ok(Decoded { object: Value::Object(done.object), warnings })
}

fn word<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn schema_of(kind: &Kind) -> Result<&'static Message, Status> {
    kind.schema().ok_or_else(|| refusal(format!("no schema for {kind}")))
}

/// Compares the words of the body with what the path asks for; a missing word is taken as right.
fn check_kind(want: &Kind, api_version: &str, kind: &str) -> Result<(), Status> {
    let expected = want.api_version();
    let (got_kind, got_version) =
        (if kind.is_empty() { want.kind } else { kind }, if api_version.is_empty() { &expected } else { api_version });
    if got_kind == want.kind && got_version == expected {
        return Ok(());
    }
    let found = kinds::split_api_version(got_version)
        .ok_or_else(|| refusal(format!("unexpected GroupVersion string: {got_version}")))
        .map(|(group, version)| (version, kinds::by_gvk(group, version, got_kind)))?;
    match found {
        (_, Some(found)) if found == want => Ok(()),
        (version, None) => Err(cannot_be_handled(
            want,
            version,
            got_kind,
            &format!(
                r#"no kind "{got_kind}" is registered for version "{got_version}" in scheme "pkg/api/legacyscheme/scheme.go:30""#
            ),
        )),
        (_, Some(found)) if found.kind == want.kind => Err(refusal(format!(
            "the API version in the data ({got_version}) does not match the expected API version ({expected})"
        ))),
        (version, Some(found)) => {
            let internal = want.message.split('.').next().unwrap_or_default();
            let text = format!("converting (v1.{}) to ({internal}.{}): unknown conversion", found.kind, want.kind);
            Err(cannot_be_handled(want, version, got_kind, &text))
        }
    }
}

fn cannot_be_handled(want: &Kind, version: &str, kind: &str, why: &str) -> Status {
    refusal(format!("{kind} in version {version:?} cannot be handled as a {}: {why}", want.kind))
}

/// 400 with a text of bounded length.
fn refusal(mut text: String) -> Status {
    if text.len() > limits::MESSAGE_BYTES_MAX {
        let cut = (0..=limits::MESSAGE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        text.push_str(" ...");
    }
    Status::bad_request(text)
}

/// The start of a body, as text if it looks like JSON and in hex if not.
fn excerpt(body: &[u8]) -> String {
    let head = &body[..body.len().min(limits::EXCERPT_BYTES_MAX)];
    let more = if body.len() > head.len() { " ..." } else { "" };
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => format!("{}{more}", head.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    }
}

fn decode_protobuf(
    kind: &Kind,
    body: &[u8],
    validation: FieldValidation,
    unrecognized: impl Fn(String) -> Status,
) -> Result<Decoded, Status> {
    if !body.starts_with(MAGIC) {
        let why = "provided data does not appear to be a protobuf message, expected prefix 6b387300";
        return Err(unrecognized(why.into()));
    }
    let envelope = envelope::open(body).map_err(|error| unrecognized(error.to_string()))?;
    check_kind(kind, envelope.api_version, envelope.kind)?;
    if !envelope.content_encoding.is_empty() {
        return Err(unrecognized(format!("unsupported content encoding {:?}", envelope.content_encoding)));
    }
    if envelope.content_type == JSON {
        return decode(kind, Some(JSON), envelope.raw, validation);
    }
    let mut head = envelope.head();
    if envelope.kind.is_empty() || envelope.api_version.is_empty() {
        head.kind = Some(kind.kind.to_owned());
        head.api_version = Some(kind.api_version());
    }
    let object = read::message(schema_of(kind)?, envelope.raw, head)
        .map_err(|error| cannot_be_handled(kind, kind.version, kind.kind, &error.to_string()))?;
    Ok(Decoded { object: Value::Object(object), warnings: Vec::new() })
}

/// Decodes protobuf whose kind only its envelope knows: answers of a server, stored objects.
///
/// # Errors
/// 400 if the kind is unknown or the bytes do not fit it.
pub fn decode_any_protobuf(body: &[u8]) -> Result<Value, Status> {
    if !body.starts_with(MAGIC) {
        return Err(refusal(
            "provided data does not appear to be a protobuf message, expected prefix 6b387300".to_owned(),
        ));
    }
    let bad = |error: wire::WireError| refusal(error.to_string());
    let envelope = envelope::open(body).map_err(bad)?;
    let message = message_of(envelope.api_version, envelope.kind).ok_or_else(|| {
        refusal(format!("no kind {:?} is registered for version {:?}", envelope.kind, envelope.api_version))
    })?;
    read::message(message, envelope.raw, envelope.head()).map(Value::Object).map_err(bad)
}

/// The message of a body, lists included.
fn message_of(api_version: &str, kind: &str) -> Option<&'static Message> {
    let (group, version) = kinds::split_api_version(api_version)?;
    let own = kinds::by_gvk(group, version, kind).and_then(Kind::schema);
    own.or_else(|| kinds::by_gvk(group, version, kind.strip_suffix("List")?)?.list_schema())
}

/// Compact JSON.
pub fn encode_json(value: &Value) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// Indented JSON with a line end (`?pretty=true`).
pub fn encode_json_pretty(value: &Value) -> Bytes {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// YAML with sorted keys, as upstream writes it.
pub fn encode_yaml(value: &Value) -> Bytes {
    let mut sorted = value.clone();
    sorted.sort_all_objects();
    serde_saphyr::to_string(&sorted).unwrap_or_default().into_bytes().into()
}

/// Protobuf with envelope of an object of this kind, whose `apiVersion` and `kind` are the kind's own.
pub fn encode_protobuf(kind: &Kind, object: &Value) -> Bytes {
    envelope::seal(&kind.api_version(), kind.kind, &encode_bare(kind, object)).into()
}

/// Protobuf without envelope: what a list holds per item.
pub fn encode_bare(kind: &Kind, object: &Value) -> Vec<u8> {
    kind.schema().map(|message| write::message(message, object)).unwrap_or_default()
}

/// Protobuf of a tree that says itself what it is: objects, lists, `Status`, `PartialObjectMetadata`... `None` if its
/// kind has no protobuf form (`Table`, custom resources).
pub fn encode_any_protobuf(value: &Value) -> Option<Bytes> {
    let (api_version, kind) = (value.get("apiVersion")?.as_str()?, value.get("kind")?.as_str()?);
    let message = message_of(api_version, kind)?;
    Some(envelope::seal(api_version, kind, &write::message(message, value)).into())
}

/// A protobuf list from its `metadata` and items that [`encode_bare`] wrote.
pub fn list_protobuf<'a>(kind: &Kind, metadata: &Value, items: impl DoubleEndedIterator<Item = &'a [u8]>) -> Bytes {
    let mut out = wire::Writer::default();
    for item in items.rev() {
        out.bytes_field(2, item);
    }
    let meta = schema::message("meta.v1.ListMeta").map(|m| write::message(m, metadata)).unwrap_or_default();
    out.bytes_field(1, &meta);
    envelope::seal(&kind.api_version(), &kind.list_kind(), &out.finish()).into()
}
