//! Nodes.

use serde_json::Value;

use super::{Errors, affinity, checks, resources, spec};
use crate::status::{FieldError, Path};
use crate::tree;

static EMPTY: Value = Value::Null;

pub(super) fn object(object: &Value, errors: &mut Errors) {
    let (spec, path) = (tree::at(object, "/spec").unwrap_or(&EMPTY), spec());
    affinity::taints(errors, spec, &path);
    let ranges = tree::list(spec, "/podCIDRs");
    for (index, range) in ranges.iter().enumerate() {
        checks::cidr(errors, range.as_str().unwrap_or_default(), &path.child("podCIDRs").index(index));
    }
    if let Some(single) = tree::some_text(spec, "/podCIDR") {
        let first = ranges.first().and_then(Value::as_str);
        if first.is_some_and(|first| first != single) {
            let text = "must match the first element of `podCIDRs`";
            errors.push(FieldError::invalid(&path.child("podCIDR"), single, text));
        }
    }
    amounts(errors, object);
}

fn amounts(errors: &mut Errors, object: &Value) {
    for list in ["capacity", "allocatable"] {
        for (resource, value) in tree::entries(object, &format!("/status/{list}")) {
            let path = Path::new("status").child(list).key(resource);
            resources::name(errors, resource, &path);
            resources::amount(errors, resource, value, &path);
        }
    }
}

/// Of a node's spec only taints and schedulability change; ranges and provider are given once.
pub(super) fn step(new: &Value, old: &Value, errors: &mut Errors) {
    let path = spec();
    let ranges = |object| tree::list(object, "/spec/podCIDRs").to_vec();
    let (now, before) = (ranges(new), ranges(old));
    if !before.is_empty() && now != before {
        let text = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden(&path.child("podCIDRs"), text));
    }
    let provider = |object| tree::text(object, "/spec/providerID");
    if !provider(old).is_empty() && provider(new) != provider(old) {
        let text = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden(&path.child("providerID"), text));
    }
    let mut addresses = std::collections::HashSet::new();
    for (index, address) in tree::list(new, "/status/addresses").iter().enumerate() {
        let key = (tree::text(address, "/type"), tree::text(address, "/address"));
        if !addresses.insert(key) {
            let path = Path::new("status").child("addresses").index(index);
            errors.push(FieldError::duplicate(&path, address.clone()));
        }
    }
}
