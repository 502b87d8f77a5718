//! Services: the two spellings of the cluster address, and what an update keeps that its author left out.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::tree;

/// Brings `clusterIP` and `clusterIPs` in line, and on an update takes over addresses and ports that were given.
pub(super) fn normalize(new: &mut Value, old: Option<&Value>) {
    if let Some(old) = old {
        keep_allocated(new, old);
    }
    cluster_ips(new, old);
    drop_what_the_type_has_not(new);
}

fn kind(service: &Value) -> &str {
    tree::text(service, "/spec/type")
}

fn has_cluster_ip(service: &Value) -> bool {
    matches!(kind(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn has_node_ports(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
}

/// A request that left out what was allocated keeps it; this is what makes `kubectl replace` of a manifest work.
fn keep_allocated(new: &mut Value, old: &Value) {
    if has_cluster_ip(new) && has_cluster_ip(old) {
        let unset = tree::text(new, "/spec/clusterIP").is_empty() && tree::list(new, "/spec/clusterIPs").is_empty();
        if let (true, Some(spec)) = (unset, new.get_mut("spec")) {
            for key in ["clusterIP", "clusterIPs"] {
                if let Some(value) = tree::at(old, &format!("/spec/{key}")) {
                    tree::set(spec, key, value.clone());
                }
            }
        }
        if let Some(spec) = new.get_mut("spec") {
            for key in ["ipFamilies", "ipFamilyPolicy"] {
                if let Some(value) = tree::at(old, &format!("/spec/{key}")) {
                    tree::set_default(spec, key, value.clone());
                }
            }
        }
    }
    if has_node_ports(new) && has_node_ports(old) {
        node_ports(new, old);
    }
    let health = tree::int(old, "/spec/healthCheckNodePort").filter(|port| *port != 0);
    if let (Some(port), Some(spec), true) = (health, new.get_mut("spec"), kind(old) == "LoadBalancer") {
        tree::set_default(spec, "healthCheckNodePort", port);
    }
}

fn node_ports(new: &mut Value, old: &Value) {
    let number = |port: &Value| tree::int(port, "/nodePort").filter(|number| *number != 0);
    let taken: HashSet<i64> = tree::list(new, "/spec/ports").iter().filter_map(number).collect();
    let given: HashMap<(String, i64), i64> = tree::list(old, "/spec/ports")
        .iter()
        .filter_map(|port| Some((identity(port), number(port).filter(|number| !taken.contains(number))?)))
        .collect();
    for port in tree::list_mut(new, "/spec/ports") {
        if number(port).is_none()
            && let Some(given) = given.get(&identity(port))
        {
            tree::set(port, "nodePort", *given);
        }
    }
}

fn identity(port: &Value) -> (String, i64) {
    (tree::text(port, "/protocol").to_owned(), tree::int(port, "/port").unwrap_or(0))
}

/// Clients know one field or both. Who sets only the old one, or changes only the old one, means both.
fn cluster_ips(new: &mut Value, old: Option<&Value>) {
    let single = tree::text(new, "/spec/clusterIP").to_owned();
    let many = tree::list(new, "/spec/clusterIPs").to_vec();
    let first = many.first().and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    let Some(old) = old else {
        if !single.is_empty() && many.is_empty() {
            tree::set(spec, "clusterIPs", json!([single]));
        } else if single.is_empty() && !first.is_empty() {
            tree::set(spec, "clusterIP", first);
        }
        return;
    };
    let single_changed = single != tree::text(old, "/spec/clusterIP");
    let many_changed = many != tree::list(old, "/spec/clusterIPs");
    match (single_changed, many_changed) {
        (true, false) if single.is_empty() => drop(tree::remove(spec, "clusterIPs")),
        (true, false) => tree::set(spec, "clusterIPs", json!([single])),
        (false, true) if many.is_empty() => drop(tree::remove(spec, "clusterIP")),
        (false, true) => tree::set(spec, "clusterIP", first),
        _ => {}
    }
}

/// Fields left over from another type go, unless the request set them on purpose (then validation speaks).
fn drop_what_the_type_has_not(service: &mut Value) {
    let of = kind(service).to_owned();
    let Some(spec) = service.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if of == "ExternalName" {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            tree::remove(spec, key);
        }
    }
    if !matches!(of.as_str(), "NodePort" | "LoadBalancer") {
        let keeps_policy = of == "ClusterIP" && !tree::list(spec, "/externalIPs").is_empty();
        if !keeps_policy {
            tree::remove(spec, "externalTrafficPolicy");
        }
    }
    if of != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"] {
            tree::remove(spec, key);
        }
    }
}
