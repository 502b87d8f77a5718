//! What may change in a pod that exists: very little. Images, deadline, more tolerations; gates may only go; everything
//! else has a subresource or means a new pod.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::container::Role;
use super::{Errors, checks, pod, spec};
use crate::status::{FieldError, Path};
use crate::tree;

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
/// Most changed fields that one message names.
const CHANGES_NAMED: usize = 10;

pub(super) fn step(new: &Value, old: &Value, errors: &mut Errors) {
    let path = spec();
    if !same_containers(errors, new, old, &path) {
        return;
    }
    active_deadline(errors, new, old, &path);
    tolerations(errors, new, old, &path);
    scheduling_gates(errors, new, old, &path);
    for role in [Role::App, Role::Init] {
        for (index, container) in tree::list(new, &format!("/spec/{}", role.key())).iter().enumerate() {
            let path = path.child(role.key()).index(index);
            if let Some(image) = checks::required(errors, container, "image", &path)
                && image.trim() != image
            {
                let text = "must not have leading or trailing whitespace";
                errors.push(FieldError::invalid(&path.child("image"), image, text));
            }
        }
    }
    let expected = with_mutable_fields_of(old, new);
    let was_gated = !tree::list(old, "/spec/schedulingGates").is_empty();
    let changes = changes(tree::at(&expected, "/spec"), tree::at(new, "/spec"), was_gated);
    if !changes.is_empty() {
        errors.push(FieldError::forbidden(&path, format!("{MUTABLE}\n{}", changes.join("\n"))));
    }
    if was_gated {
        pod::object(new, errors);
    }
}

/// `old` with the fields that may change taken from `new`.
fn with_mutable_fields_of(old: &Value, new: &Value) -> Value {
    let mut expected = old.clone();
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = tree::list(new, &format!("/spec/{list}"))
            .iter()
            .map(|c| c.get("image").cloned().unwrap_or_default())
            .collect();
        for (container, image) in tree::list_mut(&mut expected, &format!("/spec/{list}")).iter_mut().zip(images) {
            tree::set(container, "image", image);
        }
    }
    let negative_grace = tree::int(old, "/spec/terminationGracePeriodSeconds").is_some_and(|grace| grace < 0);
    let grace_is_one = tree::int(new, "/spec/terminationGracePeriodSeconds") == Some(1);
    let Some(spec) = expected.get_mut("spec") else { return expected };
    let mut taken = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    if negative_grace && grace_is_one {
        taken.push("terminationGracePeriodSeconds");
    }
    for key in taken {
        match tree::at(new, &format!("/spec/{key}")) {
            Some(value) => tree::set(spec, key, value.clone()),
            None => drop(tree::remove(spec, key)),
        }
    }
    expected
}

/// The fields that differ, as lines. A pod that was gated may still narrow down where it runs.
fn changes(old: Option<&Value>, new: Option<&Value>, was_gated: bool) -> Vec<String> {
    let empty = Value::Null;
    let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
    let keys =
        |value: &Value| value.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut all = keys(old);
    all.extend(keys(new).into_iter().filter(|key| old.get(key).is_none()));
    all.into_iter()
        .filter(|key| !(was_gated && matches!(key.as_str(), "nodeSelector" | "affinity")))
        .filter(|key| !tree::same(old.get(key), new.get(key)))
        .take(CHANGES_NAMED)
        .map(|key| {
            let show = |value: Option<&Value>| value.cloned().unwrap_or_default();
            format!("  {key}: {} -> {}", show(old.get(&key)), show(new.get(&key)))
        })
        .collect()
}

fn same_containers(errors: &mut Errors, new: &Value, old: &Value, path: &Path) -> bool {
    let mut same = true;
    for role in [Role::App, Role::Init] {
        let pointer = format!("/spec/{}", role.key());
        if tree::list(new, &pointer).len() != tree::list(old, &pointer).len() {
            same = false;
            errors.push(FieldError::forbidden(&path.child(role.key()), "pod updates may not add or remove containers"));
        }
    }
    same
}

fn active_deadline(errors: &mut Errors, new: &Value, old: &Value, path: &Path) {
    let path = path.child("activeDeadlineSeconds");
    match (tree::int(new, "/spec/activeDeadlineSeconds"), tree::int(old, "/spec/activeDeadlineSeconds")) {
        (Some(now), _) if !(1..=i64::from(i32::MAX)).contains(&now) => {
            errors.push(FieldError::invalid(&path, now, checks::range_text(1, i64::from(i32::MAX))));
        }
        (Some(now), Some(before)) if now > before => {
            errors.push(FieldError::invalid(&path, now, "must be less than or equal to previous value"));
        }
        (None, Some(before)) => {
            errors.push(FieldError::invalid(&path, before, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

/// Tolerations may be added; of an existing one only the seconds may change.
fn tolerations(errors: &mut Errors, new: &Value, old: &Value, path: &Path) {
    let identity = |toleration: &Value| -> [String; 4] {
        ["/key", "/operator", "/value", "/effect"].map(|field| tree::text(toleration, field).to_owned())
    };
    let now: HashSet<[String; 4]> = tree::list(new, "/spec/tolerations").iter().map(identity).collect();
    if tree::list(old, "/spec/tolerations").iter().any(|before| !now.contains(&identity(before))) {
        let text = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(&path.child("tolerations"), text));
    }
    super::affinity::tolerations(errors, tree::at(new, "/spec").unwrap_or(&Value::Null), path);
}

fn scheduling_gates(errors: &mut Errors, new: &Value, old: &Value, path: &Path) {
    let before: HashSet<&str> =
        tree::list(old, "/spec/schedulingGates").iter().map(|gate| tree::text(gate, "/name")).collect();
    let now = tree::list(new, "/spec/schedulingGates").iter().map(|gate| tree::text(gate, "/name"));
    for name in now.filter(|name| !before.contains(name)) {
        let text = format!("only deletion is allowed, but found new scheduling gate '{name}'");
        errors.push(FieldError::forbidden(&path.child("schedulingGates"), text));
    }
}

pub(super) fn status(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let (now, before) = (tree::text(new, "/spec/nodeName"), tree::text(old, "/spec/nodeName"));
    if now != before {
        let text = "may not be changed directly";
        errors.push(FieldError::forbidden(&path.child("nodeName"), text));
    }
    if let Some(name) = tree::some_text(new, "/status/nominatedNodeName") {
        let texts = crate::names::dns_subdomain(name);
        checks::invalid(errors, &path.child("nominatedNodeName"), name, texts);
    }
    for (index, condition) in tree::list(new, "/status/conditions").iter().enumerate() {
        let path = path.child("conditions").index(index);
        let kind = tree::text(condition, "/type");
        checks::invalid(errors, &path.child("type"), kind, crate::names::qualified_name(kind));
    }
    for (index, ip) in tree::list(new, "/status/podIPs").iter().enumerate() {
        checks::address(errors, tree::text(ip, "/ip"), &path.child("podIPs").index(index));
    }
    for list in ["containerStatuses", "initContainerStatuses"] {
        no_resurrection(errors, new, old, list, &path);
    }
}

/// A container that ended may start again only as its restart policy allows.
fn no_resurrection(errors: &mut Errors, new: &Value, old: &Value, list: &str, path: &Path) {
    let policy = tree::text(new, "/spec/restartPolicy");
    let by_container =
        tree::list(new, "/spec/containers").iter().any(|c| tree::some_text(c, "/restartPolicy").is_some());
    if !matches!(policy, "Never" | "OnFailure") || list != "containerStatuses" || by_container {
        return;
    }
    let statuses = by_name(tree::list(new, &format!("/status/{list}")));
    for before in tree::list(old, &format!("/status/{list}")) {
        let Some(exit) = tree::int(before, "/state/terminated/exitCode") else { continue };
        if policy == "OnFailure" && exit != 0 {
            continue;
        }
        let revived = statuses
            .get(tree::text(before, "/name"))
            .filter(|(_, status)| tree::at(status, "/state/terminated").is_none());
        if let Some((index, _)) = revived {
            let text = "may not be transitioned to non-terminated state";
            errors.push(FieldError::forbidden(&path.child(list).index(*index).child("state"), text));
        }
    }
}

/// Elements and their places, by name; the first of equal names counts.
fn by_name(items: &[Value]) -> HashMap<&str, (usize, &Value)> {
    let mut found = HashMap::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        found.entry(tree::text(item, "/name")).or_insert((index, item));
    }
    found
}

/// The errors of a write to `pods/ephemeralcontainers`: containers may be added, none may change or go.
pub fn ephemeral_containers(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let path = spec().child("ephemeralContainers");
    pod::object(new, &mut errors);
    let now = by_name(tree::list(new, "/spec/ephemeralContainers"));
    for before in tree::list(old, "/spec/ephemeralContainers") {
        let name = tree::text(before, "/name");
        match now.get(name) {
            None => {
                let text = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(&path, text));
            }
            Some((_, container)) if !tree::same(Some(container), Some(before)) => {
                let text = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.push(FieldError::forbidden(&path, text));
            }
            Some(_) => {}
        }
    }
    errors.0
}

/// The errors of a write to `pods/resize`: only amounts of cpu and memory of containers may differ.
pub fn resize(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    pod::object(new, &mut errors);
    let mut plain = new.clone();
    for list in ["containers", "initContainers"] {
        let amounts: Vec<Value> = tree::list(old, &format!("/spec/{list}"))
            .iter()
            .map(|container| container.get("resources").cloned().unwrap_or_default())
            .collect();
        for (container, amounts) in tree::list_mut(&mut plain, &format!("/spec/{list}")).iter_mut().zip(amounts) {
            tree::set(container, "resources", amounts);
        }
    }
    if !tree::same(tree::at(&plain, "/spec"), tree::at(old, "/spec")) {
        let text = "only cpu and memory resources are mutable";
        errors.push(FieldError::forbidden(&spec(), text));
    }
    errors.0
}
