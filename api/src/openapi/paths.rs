//! The paths of some kinds with their operations.
//!
//! What clients read here: which parameters an operation takes (kubectl looks for `fieldValidation` and `dryRun` on PATCH),
//! which kind it is about (`x-kubernetes-group-version-kind`), what it is called (`operationId`).

use serde_json::{Map, Value, json};

use super::{
    Grammar,
    schemas::{PATCH, reference},
};
use crate::kinds::{Kind, Subresource};

const MEDIA_TYPES: [&str; 3] = ["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];
const LIST_MEDIA_TYPES: [&str; 5] = [
    "application/json",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/yaml",
];
const PATCH_MEDIA_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

type Parameter = (&'static str, &'static str);

const WRITE: &[Parameter] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCHING: &[Parameter] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETING: &[Parameter] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const LISTING: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const NONE: &[Parameter] = &[];

/// One operation before it is put into a grammar.
struct Operation {
    method: &'static str,
    action: &'static str,
    id: String,
    parameters: &'static [Parameter],
    /// Component of the request body.
    body: Option<String>,
    /// Component of the answer; `None`: text or a stream.
    answer: Option<String>,
    created: bool,
    media_types: &'static [&'static str],
    gvk: Value,
}

/// Paths by name, sorted.
pub(super) fn paths(kinds: &[&'static Kind], grammar: Grammar) -> Map<String, Value> {
    let mut paths = Vec::new();
    for kind in kinds {
        add_kind(kind, grammar, &mut paths);
    }
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    paths.into_iter().collect()
}

fn add_kind(kind: &'static Kind, grammar: Grammar, paths: &mut Vec<(String, Value)>) {
    let root = format!("/{}", super::path_of(kind.group, kind.version));
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{scope}/{}", kind.resource);
    let mut add = |path: String, operations: Vec<Operation>| {
        if !operations.is_empty() {
            let item = path_item(&path, operations, kind, grammar);
            paths.push((path, item));
        }
    };
    if kind.namespaced && kind.allows("list") {
        let mut list = operation(kind, "list");
        list.id += "ForAllNamespaces";
        list.id = list.id.replace("Namespaced", "");
        add(format!("{root}/{}", kind.resource), vec![list]);
    }
    let named = format!("{collection}/{{name}}");
    let of = |verbs: &[&'static str]| verbs.iter().filter(|v| kind.allows(v)).map(|v| operation(kind, v)).collect();
    add(collection, of(&["list", "create", "deletecollection"]));
    add(named.clone(), of(&["get", "update", "patch", "delete"]));
    for sub in kind.subresources {
        let operations: Vec<_> = sub.verbs.iter().filter_map(|verb| sub_operation(kind, sub, verb)).collect();
        add(format!("{named}/{}", sub.name), operations);
    }
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "kind": kind, "version": version})
}

/// `AppsV1`, `RbacAuthorizationV1`, `CoreV1`
fn camel_version(kind: &Kind) -> String {
    let group = if kind.group.is_empty() { "core" } else { kind.group.trim_end_matches(".k8s.io") };
    group.split('.').chain([kind.version]).map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

fn component(kind: &Kind) -> Option<String> {
    kind.schema().map(|m| m.openapi_name())
}

fn operation(kind: &'static Kind, verb: &str) -> Operation {
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    let id = |action: &str, what: &str| format!("{action}{}{what}{scope}{}", camel_version(kind), kind.kind);
    let own = component(kind);
    let base = |method, action, id| Operation {
        method,
        action,
        id,
        parameters: NONE,
        body: None,
        answer: own.clone(),
        created: false,
        media_types: &MEDIA_TYPES,
        gvk: gvk(kind.group, kind.version, kind.kind),
    };
    let status = Some(STATUS.to_owned());
    let options = Some(DELETE_OPTIONS.to_owned());
    match verb {
        "list" => Operation {
            parameters: LISTING,
            answer: kind.list_schema().map(|m| m.openapi_name()),
            media_types: &LIST_MEDIA_TYPES,
            ..base("get", "list", id("list", ""))
        },
        "create" => {
            Operation { parameters: WRITE, body: own.clone(), created: true, ..base("post", "post", id("create", "")) }
        }
        "deletecollection" => Operation {
            parameters: LISTING,
            body: options,
            answer: status,
            ..base("delete", "deletecollection", id("delete", "Collection"))
        },
        "update" => Operation { parameters: WRITE, body: own.clone(), ..base("put", "put", id("replace", "")) },
        "patch" => {
            Operation { parameters: PATCHING, body: Some(PATCH.into()), ..base("patch", "patch", id("patch", "")) }
        }
        "delete" => Operation {
            parameters: DELETING,
            body: options,
            answer: status,
            ..base("delete", "delete", id("delete", ""))
        },
        _ => base("get", "get", id("read", "")),
    }
}

fn sub_operation(kind: &'static Kind, sub: &'static Subresource, verb: &str) -> Option<Operation> {
    let body = sub.body()?;
    let connects = body.kind.ends_with("Options");
    let (method, action, word) = match verb {
        "get" => ("get", "get", "read"),
        "create" => ("post", "post", "create"),
        "update" => ("put", "put", "replace"),
        "patch" => ("patch", "patch", "patch"),
        "delete" => ("delete", "delete", "delete"),
        _ => return None,
    };
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    let action = if connects { "connect" } else { action };
    let word = if connects { format!("connect{}", capital(method)) } else { word.to_owned() };
    let component = component(body);
    let is_text = connects || sub.name == "log";
    Some(Operation {
        method,
        action,
        id: format!("{word}{}{scope}{}{}", camel_version(kind), kind.kind, capital(sub.name)),
        parameters: match method {
            _ if connects => NONE,
            "patch" => PATCHING,
            "post" | "put" => WRITE,
            _ => NONE,
        },
        body: match method {
            _ if connects => None,
            "patch" => Some(PATCH.into()),
            "post" | "put" => component.clone(),
            _ => None,
        },
        answer: if is_text { None } else { component },
        created: method == "post" && !connects,
        media_types: &MEDIA_TYPES,
        gvk: gvk(body.group, body.version, body.kind),
    })
}

fn path_item(path: &str, operations: Vec<Operation>, kind: &Kind, grammar: Grammar) -> Value {
    let mut item = Map::new();
    let tag = camel_tag(kind);
    for operation in operations {
        let method = operation.method.to_owned();
        item.insert(method, render(operation, &tag, grammar));
    }
    let mut parameters = Vec::new();
    for name in ["name", "namespace"] {
        if path.contains(&format!("{{{name}}}")) {
            parameters.push(parameter(name, "string", "path", grammar));
        }
    }
    parameters.push(parameter("pretty", "string", "query", grammar));
    item.insert("parameters".into(), Value::Array(parameters));
    Value::Object(item)
}

/// `apps_v1`
fn camel_tag(kind: &Kind) -> String {
    let version = camel_version(kind);
    let group = version.strip_suffix(&capital(kind.version)).unwrap_or_default();
    let mut letters = group.chars();
    let group: String = letters.next().map(|c| c.to_ascii_lowercase()).into_iter().chain(letters).collect();
    format!("{group}_{}", kind.version)
}

fn parameter(name: &str, ty: &str, place: &str, grammar: Grammar) -> Value {
    let mut parameter = match grammar {
        Grammar::V3 => json!({"name": name, "in": place, "schema": {"type": ty, "uniqueItems": true}}),
        Grammar::V2 => json!({"name": name, "in": place, "type": ty, "uniqueItems": true}),
    };
    if place == "path" {
        parameter["required"] = true.into();
    }
    parameter
}

fn render(operation: Operation, tag: &str, grammar: Grammar) -> Value {
    let mut parameters: Vec<Value> =
        operation.parameters.iter().map(|(name, ty)| parameter(name, ty, "query", grammar)).collect();
    let body_types: &[&str] = if operation.method == "patch" { &PATCH_MEDIA_TYPES } else { &["*/*"] };
    let required = operation.method != "delete";
    let mut rendered = json!({
        "tags": [tag],
        "operationId": operation.id,
        "responses": responses(&operation, grammar),
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": operation.gvk,
    });
    match (grammar, &operation.body) {
        (_, None) => (),
        (Grammar::V3, Some(body)) => {
            let mut request = json!({"content": content(body_types, body, grammar)});
            if required {
                request["required"] = true.into();
            }
            rendered["requestBody"] = request;
        }
        (Grammar::V2, Some(body)) => {
            let mut entry = json!({"name": "body", "in": "body", "schema": reference(grammar, body)});
            if required {
                entry["required"] = true.into();
            }
            parameters.insert(0, entry);
        }
    }
    if grammar == Grammar::V2 {
        rendered["consumes"] = json!(body_types);
        rendered["produces"] = json!(if operation.answer.is_some() { operation.media_types } else { &["*/*"] });
        rendered["schemes"] = json!(["https"]);
    }
    if !parameters.is_empty() {
        rendered["parameters"] = Value::Array(parameters);
    }
    rendered
}

fn content(media_types: &[&str], component: &str, grammar: Grammar) -> Value {
    let schema = reference(grammar, component);
    media_types.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

fn responses(operation: &Operation, grammar: Grammar) -> Value {
    let answer = |text: &str| match (grammar, &operation.answer) {
        (Grammar::V3, Some(component)) => {
            json!({"description": text, "content": content(operation.media_types, component, grammar)})
        }
        (Grammar::V2, Some(component)) => json!({"description": text, "schema": reference(grammar, component)}),
        (Grammar::V3, None) => json!({"description": text, "content": {"*/*": {"schema": {"type": "string"}}}}),
        (Grammar::V2, None) => json!({"description": text, "schema": {"type": "string"}}),
    };
    let mut responses = json!({"200": answer("OK"), "401": {"description": "Unauthorized"}});
    if operation.created || matches!(operation.method, "put" | "patch") && operation.action != "connect" {
        responses["201"] = answer("Created");
    }
    if operation.created || operation.action == "delete" {
        responses["202"] = answer("Accepted");
    }
    responses
}
