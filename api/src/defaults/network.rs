//! Defaults of services and what stands around them. Addresses, node ports and IP families are the allocator's to give.

use serde_json::{Value, json};

use super::rules::{self, Rules, To};
use crate::tree;

static SERVICE: Rules = &[
    ("spec+/type", To::Text("ClusterIP")),
    ("spec+/sessionAffinity", To::Text("None")),
    ("spec/ports/*/protocol", To::Text("TCP")),
    ("status/loadBalancer/ingress/*/ipMode", To::Text("VIP")),
];

static SLICE: Rules = &[("ports/*/name", To::Text("")), ("ports/*/protocol", To::Text("TCP"))];

static POLICY: Rules =
    &[("spec/ingress/*/ports/*/protocol", To::Text("TCP")), ("spec/egress/*/ports/*/protocol", To::Text("TCP"))];

pub(super) fn service(object: &mut Value) {
    rules::apply(object, SERVICE);
    let Some(spec) = object.get_mut("spec") else { return };
    match tree::text(spec, "/sessionAffinity") {
        "None" => drop(tree::remove(spec, "sessionAffinityConfig")),
        "ClientIP" => rules::apply(spec, &[("sessionAffinityConfig+/clientIP+/timeoutSeconds", To::Int(10800))]),
        _ => {}
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let unset = matches!(port.get("targetPort"), None | Some(Value::Null))
            || port["targetPort"] == json!(0)
            || port["targetPort"] == json!("");
        if let (true, Some(number)) = (unset, tree::int(port, "/port")) {
            tree::set(port, "targetPort", number);
        }
    }
    traffic_policies(spec);
}

fn traffic_policies(spec: &mut Value) {
    let kind = tree::text(spec, "/type").to_owned();
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        tree::set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    let has_external = !tree::list(spec, "/externalIPs").is_empty();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && has_external) {
        tree::set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        tree::set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

pub(super) fn endpoint_slice(object: &mut Value) {
    rules::apply(object, SLICE);
    for port in object.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        tree::set_default(port, "name", "");
    }
}

pub(super) fn policy(object: &mut Value) {
    rules::apply(object, POLICY);
    let Some(spec) = tree::object(object, "spec") else { return };
    tree::set_default(spec, "podSelector", json!({}));
    if tree::list(spec, "/policyTypes").is_empty() {
        let mut types = vec!["Ingress"];
        if !tree::list(spec, "/egress").is_empty() {
            types.push("Egress");
        }
        tree::set(spec, "policyTypes", types);
    }
}
