//! Rows of nodes, namespaces, configuration, accounts, events, leases and access rules.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{self, NONE};
use super::columns::{AGE, Column, NAME, text, wide};
use super::{Table, duration, table_of};
use crate::meta;
use crate::tree;

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) static TABLES: &[Table] = &[
    table_of("", "Node", NODE, node),
    table_of("", "Namespace", NAMESPACE, namespace),
    table_of("", "ConfigMap", CONFIG_MAP, config_map),
    table_of("", "Secret", SECRET, secret),
    table_of("", "ServiceAccount", SERVICE_ACCOUNT, service_account),
    table_of("", "Event", EVENT, event),
    table_of("events.k8s.io", "Event", EVENT, event),
    table_of("", "ResourceQuota", QUOTA, quota),
    table_of("", "ComponentStatus", COMPONENT, component),
    table_of("coordination.k8s.io", "Lease", LEASE, lease),
    table_of(RBAC, "RoleBinding", BINDING, binding),
    table_of(RBAC, "ClusterRoleBinding", BINDING, binding),
];

static NODE: &[Column] = &[
    NAME,
    text("Status", "Whether the node is ready and takes pods."),
    text("Roles", "Roles of the node, from its labels."),
    AGE,
    text("Version", "Version of the node's agent."),
    wide("Internal-IP", "Address inside the cluster's network."),
    wide("External-IP", "Address from outside."),
    wide("OS-Image", "Operating system of the node."),
    wide("Kernel-Version", "Kernel of the node."),
    wide("Container-Runtime", "Container runtime and its version."),
];

static NAMESPACE: &[Column] = &[NAME, text("Status", "Whether the namespace is in use or being emptied."), AGE];
static CONFIG_MAP: &[Column] = &[NAME, text("Data", "How many entries there are."), AGE];

static SECRET: &[Column] =
    &[NAME, text("Type", "What the secret is for."), text("Data", "How many entries there are."), AGE];

static SERVICE_ACCOUNT: &[Column] = &[NAME, text("Secrets", "How many secrets the account lists."), AGE];

static EVENT: &[Column] = &[
    text("Last Seen", "When this was seen last."),
    text("Type", "Normal or Warning."),
    text("Reason", "Short machine-readable reason."),
    text("Object", "What the event is about."),
    wide("Subobject", "Part of the object the event is about."),
    wide("Source", "Who reported it."),
    text("Message", "What happened."),
    wide("First Seen", "When this was seen first."),
    wide("Count", "How often this was seen."),
    Column { priority: 1, ..NAME },
];

static QUOTA: &[Column] =
    &[NAME, text("Request", "Use and bound of counts and requests."), text("Limit", "Use and bound of limits."), AGE];

static COMPONENT: &[Column] = &[
    NAME,
    text("Status", "Whether the component is healthy."),
    text("Message", "What the component says."),
    text("Error", "What is wrong with it."),
];

static LEASE: &[Column] = &[NAME, text("Holder", "Who holds the lease."), AGE];

static BINDING: &[Column] = &[
    NAME,
    text("Role", "Role that is granted."),
    AGE,
    wide("Users", "Users it is granted to."),
    wide("Groups", "Groups it is granted to."),
    wide("ServiceAccounts", "Service accounts it is granted to."),
];

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let address = |kind: &str| {
        let found = tree::list(object, "/status/addresses").iter().find(|address| tree::text(address, "/type") == kind);
        json!(found.map_or(NONE, |address| tree::text(address, "/address")))
    };
    let unknown = "<unknown>";
    vec![
        cells::name(object),
        json!(node_status(object)),
        json!(node_roles(object)),
        cells::age(object, now),
        json!(tree::text(object, "/status/nodeInfo/kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        cells::text_or(object, "/status/nodeInfo/osImage", unknown),
        cells::text_or(object, "/status/nodeInfo/kernelVersion", unknown),
        cells::text_or(object, "/status/nodeInfo/containerRuntimeVersion", unknown),
    ]
}

fn node_status(object: &Value) -> String {
    let ready =
        tree::list(object, "/status/conditions").iter().rfind(|condition| tree::text(condition, "/type") == "Ready");
    let mut status = match ready.map(|condition| tree::text(condition, "/status")) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if tree::flag(object, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(object: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in tree::entries(object, "/metadata/labels") {
        let value = value.as_str().unwrap_or_default();
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => drop(roles.insert(role)),
            None if key == "kubernetes.io/role" => drop(roles.insert(value)),
            None => {}
        }
    }
    roles.remove("");
    if roles.is_empty() { NONE.to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), json!(tree::text(object, "/status/phase")), cells::age(object, now)]
}

fn entries(object: &Value, pointer: &str) -> usize {
    tree::map(object, pointer).map_or(0, |map| map.len())
}

fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = entries(object, "/data") + entries(object, "/binaryData");
    vec![cells::name(object), json!(count), cells::age(object, now)]
}

fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    let kind = tree::text(object, "/type");
    vec![cells::name(object), json!(kind), json!(entries(object, "/data")), cells::age(object, now)]
}

fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), cells::length(object, "/secrets"), cells::age(object, now)]
}

/// Events of both groups: the newer form calls the same things by other names.
fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let since = |pointers: &[&str]| {
        let time = pointers.iter().find_map(|pointer| meta::timestamp(object, pointer));
        time.map_or_else(|| "<unknown>".to_owned(), |time| duration::human(now.duration_since(time)))
    };
    let first = since(&["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]);
    let last = match tree::at(object, "/series") {
        Some(_) => since(&["/series/lastObservedTime"]),
        None => match since(&["/lastTimestamp", "/deprecatedLastTimestamp"]) {
            unknown if unknown == "<unknown>" => first.clone(),
            last => last,
        },
    };
    let either =
        |new: &str, old: &str| tree::some_text(object, new).unwrap_or_else(|| tree::text(object, old)).to_owned();
    vec![
        json!(last),
        json!(tree::text(object, "/type")),
        json!(tree::text(object, "/reason")),
        json!(event_object(object)),
        json!(either("/involvedObject/fieldPath", "/regarding/fieldPath")),
        json!(event_source(object)),
        json!(either("/message", "/note").trim()),
        json!(first),
        json!(event_count(object)),
        cells::name(object),
    ]
}

fn event_object(object: &Value) -> String {
    let key = if object.get("regarding").is_some() { "/regarding" } else { "/involvedObject" };
    let part = |name: &str| tree::text(object, &format!("{key}/{name}"));
    let kind = part("kind").to_lowercase();
    if part("name").is_empty() { kind } else { format!("{kind}/{}", part("name")) }
}

fn event_source(object: &Value) -> String {
    let first_of = |pointers: &[&str]| {
        pointers.iter().find_map(|pointer| tree::some_text(object, pointer)).unwrap_or_default().to_owned()
    };
    let component =
        first_of(&["/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController"]);
    let host = first_of(&["/source/host", "/deprecatedSource/host", "/reportingInstance"]);
    if host.is_empty() { component } else { format!("{component}, {host}") }
}

fn event_count(object: &Value) -> i64 {
    if tree::at(object, "/series").is_some() {
        return tree::int(object, "/series/count").unwrap_or(0);
    }
    let count = tree::int(object, "/count").or_else(|| tree::int(object, "/deprecatedCount")).unwrap_or(0);
    count.max(1)
}

fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut resources: Vec<(&str, &Value)> = tree::entries(object, "/status/hard").collect();
    resources.sort_unstable_by_key(|(resource, _)| *resource);
    let used = tree::map(object, "/status/used");
    let show = |limits: bool| {
        let texts: Vec<String> = resources
            .iter()
            .filter(|(resource, _)| resource.starts_with("limits.") == limits)
            .map(|(resource, hard)| {
                let used = used.and_then(|used| used.get(*resource)).and_then(Value::as_str).unwrap_or("0");
                format!("{resource}: {used}/{}", hard.as_str().unwrap_or("0"))
            })
            .collect();
        json!(texts.join(", "))
    };
    vec![cells::name(object), show(false), show(true), cells::age(object, now)]
}

fn component(object: &Value, _now: Timestamp) -> Vec<Value> {
    let health = tree::list(object, "/conditions").iter().find(|condition| tree::text(condition, "/type") == "Healthy");
    let text = |pointer| health.map_or("", |health| tree::text(health, pointer));
    let status = match text("/status") {
        "" => "Unknown",
        "True" => "Healthy",
        _ => "Unhealthy",
    };
    vec![cells::name(object), json!(status), json!(text("/message")), json!(text("/error"))]
}

fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), json!(tree::text(object, "/spec/holderIdentity")), cells::age(object, now)]
}

fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let of_kind = |kind: &str| {
        let names: Vec<String> = tree::list(object, "/subjects")
            .iter()
            .filter(|subject| tree::text(subject, "/kind") == kind)
            .map(|subject| match (kind, tree::some_text(subject, "/namespace")) {
                ("ServiceAccount", Some(namespace)) => format!("{namespace}/{}", tree::text(subject, "/name")),
                _ => tree::text(subject, "/name").to_owned(),
            })
            .collect();
        json!(names.join(", "))
    };
    let role = format!("{}/{}", tree::text(object, "/roleRef/kind"), tree::text(object, "/roleRef/name"));
    vec![
        cells::name(object),
        json!(role),
        cells::age(object, now),
        of_kind("User"),
        of_kind("Group"),
        of_kind("ServiceAccount"),
    ]
}
