//! Rows of services, endpoints and what routes to them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{self, NONE, UNSET};
use super::columns::{AGE, Column, NAME, SELECTOR, text};
use super::{Table, table_of};
use crate::tree;

pub(super) static TABLES: &[Table] = &[
    table_of("", "Service", SERVICE, service),
    table_of("", "Endpoints", ENDPOINTS, endpoints),
    table_of("discovery.k8s.io", "EndpointSlice", SLICE, slice),
    table_of("networking.k8s.io", "Ingress", INGRESS, ingress),
    table_of("networking.k8s.io", "IngressClass", INGRESS_CLASS, ingress_class),
    table_of("networking.k8s.io", "NetworkPolicy", POLICY, policy),
    table_of("networking.k8s.io", "ServiceCIDR", CIDR, cidr),
    table_of("networking.k8s.io", "IPAddress", ADDRESS, address),
];

static SERVICE: &[Column] = &[
    NAME,
    text("Type", "How the service is reached."),
    text("Cluster-IP", "Address inside the cluster."),
    text("External-IP", "Addresses from outside."),
    text("Port(s)", "Ports, with node ports and protocols."),
    AGE,
    SELECTOR,
];

static ENDPOINTS: &[Column] = &[NAME, text("Endpoints", "Addresses and ports behind the service."), AGE];

static SLICE: &[Column] = &[
    NAME,
    text("AddressType", "Kind of addresses in the slice."),
    text("Ports", "Ports of every endpoint."),
    text("Endpoints", "Addresses in the slice."),
    AGE,
];

static INGRESS: &[Column] = &[
    NAME,
    text("Class", "Class of the ingress."),
    text("Hosts", "Host names that are routed."),
    text("Address", "Addresses of the load balancer."),
    text("Ports", "Ports that are open."),
    AGE,
];

static INGRESS_CLASS: &[Column] = &[
    NAME,
    text("Controller", "Who serves ingresses of the class."),
    text("Parameters", "Object that configures the controller."),
    AGE,
];

static POLICY: &[Column] = &[NAME, text("Pod-Selector", "Labels of the pods the policy is about."), AGE];
static CIDR: &[Column] = &[NAME, text("CIDRs", "Ranges of service addresses."), AGE];
static ADDRESS: &[Column] = &[NAME, text("ParentRef", "Object that uses the address.")];

fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = tree::list(object, "/spec/ports").iter().map(service_port).collect();
    vec![
        cells::name(object),
        json!(tree::text(object, "/spec/type")),
        cells::text_or(object, "/spec/clusterIPs/0", tree::some_text(object, "/spec/clusterIP").unwrap_or(NONE)),
        json!(external_ip(object)),
        json!(if ports.is_empty() { NONE.to_owned() } else { ports.join(",") }),
        cells::age(object, now),
        cells::labels(tree::map(object, "/spec/selector")),
    ]
}

fn service_port(port: &Value) -> String {
    let (number, protocol) = (tree::int(port, "/port").unwrap_or(0), tree::text(port, "/protocol"));
    match tree::int(port, "/nodePort").unwrap_or(0) {
        0 => format!("{number}/{protocol}"),
        node => format!("{number}:{node}/{protocol}"),
    }
}

fn external_ip(object: &Value) -> String {
    let given: Vec<&str> = tree::list(object, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match tree::text(object, "/spec/type") {
        "ClusterIP" | "NodePort" if given.is_empty() => NONE.to_owned(),
        "ClusterIP" | "NodePort" => given.join(","),
        "LoadBalancer" => {
            let balancer = ingress_points(object);
            let all: Vec<&str> = balancer.iter().map(String::as_str).chain(given).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => tree::text(object, "/spec/externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// Addresses or names of a load balancer, sorted, each once.
fn ingress_points(object: &Value) -> BTreeSet<String> {
    tree::list(object, "/status/loadBalancer/ingress")
        .iter()
        .filter_map(|point| tree::some_text(point, "/ip").or_else(|| tree::some_text(point, "/hostname")))
        .map(str::to_owned)
        .collect()
}

/// Joins an address and a port; IPv6 addresses get brackets.
fn host_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut list = Vec::new();
    for subset in tree::list(object, "/subsets") {
        let ports = tree::list(subset, "/ports");
        let addresses = || tree::list(subset, "/addresses").iter().map(|address| tree::text(address, "/ip"));
        if ports.is_empty() {
            list.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let number = tree::int(port, "/port").unwrap_or(0);
            list.extend(addresses().map(|address| host_port(address, number)));
        }
    }
    let empty = tree::list(object, "/subsets").is_empty();
    let text = if empty { NONE.to_owned() } else { cells::some_of(&list, 3) };
    vec![cells::name(object), json!(text), cells::age(object, now)]
}

fn unset_if_empty(text: String) -> String {
    if text.is_empty() { UNSET.to_owned() } else { text }
}

fn slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = tree::list(object, "/ports")
        .iter()
        .map(|port| match tree::int(port, "/port") {
            Some(number) => number.to_string(),
            None if port.get("name").is_some() => tree::text(port, "/name").to_owned(),
            None => "*".to_owned(),
        })
        .collect();
    let addresses: Vec<String> = tree::list(object, "/endpoints")
        .iter()
        .flat_map(|endpoint| tree::list(endpoint, "/addresses"))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    vec![
        cells::name(object),
        json!(tree::text(object, "/addressType")),
        json!(unset_if_empty(cells::some_of(&ports, 3))),
        json!(unset_if_empty(cells::some_of(&addresses, 3))),
        cells::age(object, now),
    ]
}

fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let rules = tree::list(object, "/spec/rules");
    let hosts: Vec<&str> = rules.iter().filter_map(|rule| tree::some_text(rule, "/host")).take(3).collect();
    let hosts = match (hosts.is_empty(), hosts.len() == 3 && rules.len() > 3) {
        (true, _) => "*".to_owned(),
        (false, true) => format!("{} + {} more...", hosts.join(","), rules.len() - 3),
        (false, false) => hosts.join(","),
    };
    let ports = if tree::list(object, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        cells::name(object),
        cells::text_or(object, "/spec/ingressClassName", NONE),
        json!(hosts),
        json!(ingress_points(object).into_iter().collect::<Vec<_>>().join(",")),
        json!(ports),
        cells::age(object, now),
    ]
}

fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = tree::at(object, "/spec/parameters").map_or_else(
        || NONE.to_owned(),
        |parameters| {
            let group = tree::some_text(parameters, "/apiGroup").map(|group| format!(".{group}")).unwrap_or_default();
            format!("{}{group}/{}", tree::text(parameters, "/kind"), tree::text(parameters, "/name"))
        },
    );
    vec![cells::name(object), json!(tree::text(object, "/spec/controller")), json!(parameters), cells::age(object, now)]
}

fn policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), cells::selector(object, "/spec/podSelector"), cells::age(object, now)]
}

fn cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    let ranges: Vec<&str> = tree::list(object, "/spec/cidrs").iter().filter_map(Value::as_str).collect();
    vec![cells::name(object), json!(ranges.join(",")), cells::age(object, now)]
}

fn address(object: &Value, _now: Timestamp) -> Vec<Value> {
    let parent = tree::at(object, "/spec/parentRef").map_or_else(
        || NONE.to_owned(),
        |parent| {
            let part = |key: &str| tree::text(parent, key).to_lowercase();
            let parts = [part("/group"), part("/resource"), part("/namespace"), part("/name")];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
        },
    );
    vec![cells::name(object), json!(parent)]
}
