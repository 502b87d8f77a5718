//! What every message of the Kubernetes API is made of: numbers, names, types, merge rules.
//!
//! One embedded text table (`tables.txt`, written by `scripts/gen-api-tables.py`) is parsed once, on first use, into
//! about half a megabyte of records that live as long as the process. Codec, patches, defaults and OpenAPI walk them.
//!
//! Always holds: fields of a [`Message`] stand in the order JSON output has; message references are resolved.

mod parse;

use std::sync::LazyLock;

/// The parsed table. Broken only if the committed file is, which the tests of this module would show.
pub struct Schema {
    packages: Vec<Package>,
    messages: Vec<Message>,
    enums: Vec<Enumeration>,
    /// Sorted by short name (`core.v1.Pod`).
    names: Vec<(&'static str, &'static str, MessageId)>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| parse::parse(include_str!("tables.txt")));

/// Position of a message in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u16);

/// One Go and protobuf package.
#[derive(Debug)]
pub struct Package {
    /// `k8s.io.api.core.v1`
    pub proto: &'static str,
    /// `io.k8s.api.core.v1`, the prefix of OpenAPI component names.
    pub openapi: &'static str,
    /// `v1`, as Go's error messages name the package.
    pub go: &'static str,
    /// `core.v1`, how this project names it.
    pub short: &'static str,
}

/// One message.
#[derive(Debug)]
pub struct Message {
    pub id: MessageId,
    pub name: &'static str,
    /// True if JSON carries `kind` and `apiVersion` that protobuf does not.
    pub type_meta: bool,
    pub shape: Shape,
    /// Server-side apply owns the whole value (`structType=atomic`).
    pub atomic: bool,
    package: u16,
    fields: Vec<Field>,
    /// Positions in `fields`, by field number.
    by_number: Vec<u16>,
    /// Members of the JSON object in output order, inlined ones in place: owner and position there.
    flat: Vec<(MessageId, u16)>,
    /// For each own field, where it (or the first member inlined through it) stands in `flat`.
    starts: Vec<u16>,
    /// JSON name -> position in `flat`, sorted by name.
    by_json: Vec<(&'static str, u16)>,
}

/// How the JSON of a message relates to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An object with one member per field.
    Struct,
    /// The bare value of its only field (`ExtraValue`, `Verbs`).
    Wrapper,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// Go's duration text.
    Duration,
    Quantity,
    IntOrString,
    /// Any JSON object, kept as raw bytes in protobuf.
    RawExtension,
    /// Any JSON object, kept as raw bytes in protobuf.
    FieldsV1,
    /// Any JSON value (apiextensions).
    Json,
    JsonSchemaOrArray,
    JsonSchemaOrBool,
    JsonSchemaOrStrings,
}

/// A protobuf type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    String,
    Int32,
    Int64,
    Bool,
    Double,
    Bytes,
    Message(MessageId),
}

/// How often a field is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    /// A plain Go value: always there, protobuf writes it even when zero.
    One,
    /// A Go pointer: absent and zero differ.
    Optional,
    List,
    /// Keys are strings.
    Map,
}

/// When JSON output leaves a field out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Omit {
    Never,
    /// Zero scalars, empty lists and maps; never a message.
    Empty,
    /// The zero value, a message with nothing in it included.
    Zero,
}

/// `patchStrategy` of strategic merge patch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// The default: owned as a whole.
    Atomic,
    Set,
    Map,
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub number: u32,
    /// Empty for an inlined or wrapped field.
    pub json: &'static str,
    pub ty: Type,
    pub cardinality: Cardinality,
    pub omit: Omit,
    pub required: bool,
    /// The members of its message stand in the parent's JSON object.
    pub inline: bool,
    /// Name of the Go string type (`core.v1.Protocol` or, of the same package, `Protocol`); empty if plain.
    pub named: &'static str,
    pub patch: PatchStrategy,
    /// Key of a merged list of objects; empty if none.
    pub merge_key: &'static str,
    /// `None`: not marked.
    pub list_type: Option<ListType>,
    /// Keys of a [`ListType::Map`], comma separated.
    pub list_keys: &'static str,
    /// The map or struct is owned as a whole.
    pub atomic: bool,
    /// It is not, although its type says so.
    pub granular: bool,
    /// JSON text of the documented default; empty if none.
    pub default: &'static str,
}

/// A named string type with its known values.
#[derive(Debug)]
pub struct Enumeration {
    pub name: &'static str,
    pub values: Vec<&'static str>,
    package: u16,
}

/// All messages, in table order.
pub fn messages() -> &'static [Message] {
    &SCHEMA.messages
}

/// Finds a message by short (`apps.v1.Deployment`) name.
pub fn message(short: &str) -> Option<&'static Message> {
    let (package, name) = short.rsplit_once('.')?;
    let schema = &*SCHEMA;
    let at = schema.names.binary_search_by(|(p, n, _)| (*p, *n).cmp(&(package, name))).ok()?;
    Some(get(schema.names[at].2))
}

/// The message with this id; ids come from this table only.
pub fn get(id: MessageId) -> &'static Message {
    &SCHEMA.messages[usize::from(id.0)]
}

/// Finds the values of a named string type, as a field of `message` spells it.
pub fn enumeration(message: &Message, named: &str) -> Option<&'static Enumeration> {
    let schema = &*SCHEMA;
    let (short, name) = named.rsplit_once('.').unwrap_or((message.package().short, named));
    schema.enums.iter().find(|e| e.name == name && schema.packages[usize::from(e.package)].short == short)
}

impl Message {
    pub fn package(&self) -> &'static Package {
        &SCHEMA.packages[usize::from(self.package)]
    }

    /// Own fields, in JSON order.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The field with this protobuf number.
    pub fn by_number(&self, number: u32) -> Option<&Field> {
        let at = self.by_number.binary_search_by_key(&number, |i| self.fields[usize::from(*i)].number).ok()?;
        Some(&self.fields[usize::from(self.by_number[at])])
    }

    /// Own fields by ascending number, the order protobuf output has.
    pub fn in_number_order(&self) -> impl DoubleEndedIterator<Item = &Field> {
        self.by_number.iter().map(|i| &self.fields[usize::from(*i)])
    }

    /// The field with this JSON name, those of inlined messages included.
    pub fn field(&self, json: &str) -> Option<&'static Field> {
        self.position(json).map(|at| self.flat_field(at))
    }

    /// Where the member with this JSON name stands in [`Self::flat`].
    pub fn position(&self, json: &str) -> Option<usize> {
        let at = self.by_json.binary_search_by(|(name, _)| (*name).cmp(json)).ok()?;
        Some(usize::from(self.by_json[at].1))
    }

    /// Number of JSON members, inlined ones included.
    pub fn flat_len(&self) -> usize {
        self.flat.len()
    }

    /// All JSON members in output order, inlined ones in place.
    pub fn flat(&self) -> impl ExactSizeIterator<Item = &'static Field> {
        self.flat.iter().map(|(owner, index)| &get(*owner).fields[usize::from(*index)])
    }

    /// Calls `visit` for every JSON member in output order.
    pub fn visit_flat(&self, visit: &mut impl FnMut(&'static Field)) {
        self.flat().for_each(visit);
    }

    /// The member at a [`Self::position`].
    pub fn flat_field(&self, position: usize) -> &'static Field {
        let (owner, index) = self.flat[position];
        &get(owner).fields[usize::from(index)]
    }

    /// Position in [`Self::flat`] of an own field, by its protobuf number; of its first member if it is inlined.
    pub fn start_of(&self, number: u32) -> Option<usize> {
        let at = self.by_number.binary_search_by_key(&number, |i| self.fields[usize::from(*i)].number).ok()?;
        Some(usize::from(self.starts[usize::from(self.by_number[at])]))
    }

    /// The only field of a [`Shape::Wrapper`].
    pub fn wrapped(&self) -> Option<&Field> {
        if self.shape == Shape::Wrapper { self.fields.first() } else { None }
    }

    /// `io.k8s.api.apps.v1.Deployment`
    pub fn openapi_name(&self) -> String {
        format!("{}.{}", self.package().openapi, self.name)
    }

    /// `apps.v1.Deployment`
    pub fn short_name(&self) -> String {
        format!("{}.{}", self.package().short, self.name)
    }

    /// `v1.Deployment`, as Go's error messages name it.
    pub fn go_name(&self) -> String {
        format!("{}.{}", self.package().go, self.name)
    }
}

impl Field {
    /// The message type of this field, of its elements or of its map values.
    pub fn message(&self) -> Option<&'static Message> {
        match self.ty {
            Type::Message(id) => Some(get(id)),
            _ => None,
        }
    }

    /// Keys by which server-side apply tells the elements of an associative list apart.
    pub fn list_map_keys(&self) -> impl Iterator<Item = &'static str> {
        self.list_keys.split(',').filter(|k| !k.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_parses_and_known_facts_are_in_it() {
        assert!(messages().len() > 500, "{}", messages().len());
        let pod = message("core.v1.PodSpec").unwrap();
        let containers = pod.field("containers").unwrap();
        assert_eq!((containers.number, containers.merge_key), (2, "name"));
        assert!(containers.patch.merge && containers.list_type == Some(ListType::Map));
        let strategy = message("apps.v1.DeploymentSpec").unwrap().field("strategy").unwrap();
        assert!(strategy.patch.retain_keys);
        let ports = message("core.v1.Container").unwrap().field("ports").unwrap();
        assert_eq!(ports.list_map_keys().collect::<Vec<_>>(), ["containerPort", "protocol"]);
        let protocol = message("core.v1.ContainerPort").unwrap().field("protocol").unwrap();
        assert_eq!(enumeration(message("core.v1.ContainerPort").unwrap(), protocol.named).unwrap().values.len(), 3);
    }

    #[test]
    fn inlined_members_are_found_in_the_parent() {
        let volume = message("core.v1.Volume").unwrap();
        assert_eq!(volume.field("emptyDir").unwrap().number, 2);
        assert!(volume.field("volumeSource").is_none());
        let probe = message("core.v1.Probe").unwrap();
        assert!(probe.field("httpGet").is_some() && probe.field("periodSeconds").is_some());
        assert!(message("admissionregistration.v1.NamedRuleWithOperations").unwrap().field("apiGroups").is_some());
    }

    #[test]
    fn special_shapes_are_recognised() {
        let shape = |name| message(name).unwrap().shape;
        assert_eq!(shape("meta.v1.Time"), Shape::Time);
        assert_eq!(shape("api.resource.Quantity"), Shape::Quantity);
        assert_eq!(shape("util.intstr.IntOrString"), Shape::IntOrString);
        assert_eq!(shape("authentication.v1.ExtraValue"), Shape::Wrapper);
        assert_eq!(shape("apiextensions.v1.JSONSchemaPropsOrBool"), Shape::JsonSchemaOrBool);
    }
}
