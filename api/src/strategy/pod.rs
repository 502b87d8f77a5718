//! Pods: quality of service, and the narrow writes that their subresources allow.

use std::collections::HashMap;

use serde_json::Value;

use crate::quantity::Quantity;
use crate::tree;

/// `Guaranteed`, `Burstable` or `BestEffort`, from what the containers (or the pod as a whole) ask for.
///
/// Guaranteed: every container limits cpu and memory and requests exactly that. Best effort: nothing is asked for.
pub fn qos_class(pod: &Value) -> &'static str {
    let whole = tree::at(pod, "/spec/resources").filter(|resources| asks(resources));
    let holders: Vec<&Value> = match whole {
        Some(_) => tree::at(pod, "/spec").into_iter().collect(),
        None => {
            let lists = ["/spec/containers", "/spec/initContainers"];
            lists.iter().flat_map(|list| tree::list(pod, list)).collect()
        }
    };
    let resources = |holder: &'_ Value| holder.get("resources").cloned().unwrap_or_default();
    if !holders.iter().any(|holder| asks(&resources(holder))) {
        return "BestEffort";
    }
    if holders.iter().all(|holder| is_guaranteed(&resources(holder))) { "Guaranteed" } else { "Burstable" }
}

fn amount(resources: &Value, list: &str, name: &str) -> Option<Quantity> {
    let value = tree::map(resources, list)?.get(name)?;
    Quantity::from_value(value).ok().filter(|quantity| !quantity.is_zero())
}

fn asks(resources: &Value) -> bool {
    ["/requests", "/limits"]
        .iter()
        .any(|list| ["cpu", "memory"].iter().any(|name| amount(resources, list, name).is_some()))
}

fn is_guaranteed(resources: &Value) -> bool {
    ["cpu", "memory"].iter().all(|name| {
        let limit = amount(resources, "/limits", name);
        let request = amount(resources, "/requests", name).or(limit);
        limit.is_some() && request == limit
    })
}

/// A status write cannot take back what the server gave: the quality of service stays.
pub(super) fn keep_status(new: &mut Value, old: &Value) {
    if let (Some(class), Some(status)) = (tree::some_text(old, "/status/qosClass"), new.get_mut("status"))
        && status.is_object()
    {
        tree::set(status, "qosClass", class);
    }
}

/// Takes from `new` only the amounts its containers ask for, and how they are resized.
pub(super) fn resized_only(new: &mut Value, old: &Value) {
    let asked = new.clone();
    super::take_from_old(new, old, &[]);
    for list in ["/spec/containers", "/spec/initContainers"] {
        let wanted: HashMap<&str, &Value> =
            tree::list(&asked, list).iter().map(|container| (tree::text(container, "/name"), container)).collect();
        for container in tree::list_mut(new, list) {
            let Some(source) = wanted.get(tree::text(container, "/name")) else { continue };
            for key in ["resources", "resizePolicy"] {
                if let Some(value) = source.get(key) {
                    tree::set(container, key, value.clone());
                }
            }
        }
    }
}
