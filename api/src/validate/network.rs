//! Endpoints, endpoint slices, ingresses and network policies.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::{Errors, checks, spec};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

static PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
/// Most endpoints in one slice.
const SLICE_ENDPOINTS_MAX: usize = 1000;
const SLICE_PORTS_MAX: usize = 20_000;
const ENDPOINT_ADDRESSES_MAX: usize = 100;

pub(super) fn endpoints(object: &Value, errors: &mut Errors) {
    for (index, subset) in tree::list(object, "/subsets").iter().enumerate() {
        let path = Path::new("subsets").index(index);
        let (ready, unready) = (tree::list(subset, "/addresses"), tree::list(subset, "/notReadyAddresses"));
        if ready.is_empty() && unready.is_empty() {
            errors.push(FieldError::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for (key, addresses) in [("addresses", ready), ("notReadyAddresses", unready)] {
            for (index, address) in addresses.iter().enumerate() {
                endpoint_address(errors, address, &path.child(key).index(index));
            }
        }
        let ports = tree::list(subset, "/ports");
        for (index, port) in ports.iter().enumerate() {
            endpoint_port(errors, port, ports.len() > 1, &path.child("ports").index(index));
        }
    }
}

fn endpoint_address(errors: &mut Errors, address: &Value, path: &Path) {
    checks::not_special(errors, tree::text(address, "/ip"), &path.child("ip"));
    for (key, check) in [("hostname", names::dns_label as fn(&str) -> Vec<String>), ("nodeName", names::dns_subdomain)]
    {
        if let Some(name) = address.get(key).and_then(Value::as_str).filter(|name| !name.is_empty()) {
            checks::invalid(errors, &path.child(key), name, check(name));
        }
    }
}

fn endpoint_port(errors: &mut Errors, port: &Value, name_required: bool, path: &Path) {
    match tree::some_text(port, "/name") {
        None if name_required => errors.push(FieldError::required(&path.child("name"), "")),
        None => {}
        Some(name) => checks::invalid(errors, &path.child("name"), name, names::dns_label(name)),
    }
    checks::port(errors, tree::int(port, "/port").unwrap_or(0), &path.child("port"));
    checks::choice(errors, port, "protocol", path, &PROTOCOLS, false);
    if let Some(name) = tree::some_text(port, "/appProtocol") {
        checks::invalid(errors, &path.child("appProtocol"), name, names::qualified_name(name));
    }
}

pub(super) fn endpoint_slice(object: &Value, errors: &mut Errors) {
    let root = Path::default();
    checks::choice(errors, object, "addressType", &root, &["FQDN", "IPv4", "IPv6"], false);
    let family = tree::text(object, "/addressType");
    let endpoints = tree::list(object, "/endpoints");
    if endpoints.len() > SLICE_ENDPOINTS_MAX {
        errors.push(FieldError::too_many(&Path::new("endpoints"), endpoints.len(), SLICE_ENDPOINTS_MAX));
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        slice_endpoint(errors, endpoint, family, &Path::new("endpoints").index(index));
    }
    slice_ports(errors, object);
}

fn slice_endpoint(errors: &mut Errors, endpoint: &Value, family: &str, path: &Path) {
    let addresses = tree::list(endpoint, "/addresses");
    let at = path.child("addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(&at, "must contain at least 1 address"));
    } else if addresses.len() > ENDPOINT_ADDRESSES_MAX {
        errors.push(FieldError::too_many(&at, addresses.len(), ENDPOINT_ADDRESSES_MAX));
    }
    for (index, address) in addresses.iter().map(|address| address.as_str().unwrap_or_default()).enumerate() {
        let path = at.index(index);
        match (family, address.parse::<IpAddr>()) {
            ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => checks::not_special(errors, address, &path),
            ("IPv4", _) => errors.push(FieldError::invalid(&path, address, "must be a valid IPv4 address")),
            ("IPv6", _) => errors.push(FieldError::invalid(&path, address, "must be a valid IPv6 address")),
            ("FQDN", _) => checks::invalid(errors, &path, address, names::dns_subdomain(address)),
            _ => {}
        }
    }
    if let Some(name) = tree::some_text(endpoint, "/nodeName") {
        checks::invalid(errors, &path.child("nodeName"), name, names::dns_subdomain(name));
    }
    if let Some(name) = tree::some_text(endpoint, "/hostname") {
        checks::invalid(errors, &path.child("hostname"), name, names::dns_label(name));
    }
    if tree::map(endpoint, "/deprecatedTopology").is_some_and(|topology| !topology.is_empty()) {
        let text = "deprecatedTopology is not supported in this version of the API";
        errors.push(FieldError::forbidden(&path.child("deprecatedTopology"), text));
    }
}

fn slice_ports(errors: &mut Errors, object: &Value) {
    let ports = tree::list(object, "/ports");
    let path = Path::new("ports");
    if ports.len() > SLICE_PORTS_MAX {
        errors.push(FieldError::too_many(&path, ports.len(), SLICE_PORTS_MAX));
        return;
    }
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = tree::text(port, "/name");
        if !name.is_empty() {
            checks::invalid(errors, &path.child("name"), name, names::dns_label(name));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        checks::choice(errors, port, "protocol", &path, &PROTOCOLS, false);
        if let Some(number) = tree::int(port, "/port") {
            checks::port(errors, number, &path.child("port"));
        }
        if let Some(name) = tree::some_text(port, "/appProtocol") {
            checks::invalid(errors, &path.child("appProtocol"), name, names::qualified_name(name));
        }
    }
}

pub(super) fn endpoint_slice_step(new: &Value, old: &Value, errors: &mut Errors) {
    checks::immutable(errors, new, old, "/addressType", &Path::new("addressType"));
}

pub(super) fn ingress(object: &Value, errors: &mut Errors) {
    let path = spec();
    let rules = tree::list(object, "/spec/rules");
    let default = tree::at(object, "/spec/defaultBackend");
    if rules.is_empty() && default.is_none() {
        let text = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(&path, rules.to_vec(), text));
    }
    if let Some(backend) = default {
        ingress_backend(errors, backend, &path.child("defaultBackend"));
    }
    if let Some(class) = tree::some_text(object, "/spec/ingressClassName") {
        checks::invalid(errors, &path.child("ingressClassName"), class, names::dns_subdomain(class));
    }
    for (index, rule) in rules.iter().enumerate() {
        ingress_rule(errors, rule, &path.child("rules").index(index));
    }
    for (index, tls) in tree::list(object, "/spec/tls").iter().enumerate() {
        for (at, host) in tree::list(tls, "/hosts").iter().filter_map(Value::as_str).enumerate() {
            host_name(errors, host, &path.child("tls").index(index).child("hosts").index(at));
        }
    }
}

fn host_name(errors: &mut Errors, host: &str, path: &Path) {
    let texts = if host.contains('*') { names::wildcard_subdomain(host) } else { names::dns_subdomain(host) };
    checks::invalid(errors, path, host, texts);
}

fn ingress_rule(errors: &mut Errors, rule: &Value, path: &Path) {
    if let Some(host) = tree::some_text(rule, "/host") {
        if host.parse::<IpAddr>().is_ok() {
            errors.push(FieldError::invalid(&path.child("host"), host, "must be a DNS name, not an IP address"));
        }
        host_name(errors, host, &path.child("host"));
    }
    let Some(http) = tree::at(rule, "/http") else { return };
    let path = path.child("http").child("paths");
    let paths = tree::list(http, "/paths");
    if paths.is_empty() {
        errors.push(FieldError::required(&path, ""));
    }
    for (index, entry) in paths.iter().enumerate() {
        let path = path.index(index);
        let text = tree::text(entry, "/path");
        match tree::text(entry, "/pathType") {
            "Exact" | "Prefix" => {
                if !text.starts_with('/') {
                    errors.push(FieldError::invalid(&path.child("path"), text, "must be an absolute path"));
                }
                for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                    if text.contains(bad) {
                        errors.push(FieldError::invalid(
                            &path.child("path"),
                            text,
                            format!("must not contain '{bad}'"),
                        ));
                    }
                }
            }
            "ImplementationSpecific" => {
                if !text.is_empty() && !text.starts_with('/') {
                    errors.push(FieldError::invalid(&path.child("path"), text, "must be an absolute path"));
                }
            }
            "" => errors.push(FieldError::required(&path.child("pathType"), "pathType must be specified")),
            other => {
                let types = ["Exact", "ImplementationSpecific", "Prefix"];
                errors.push(FieldError::not_supported(&path.child("pathType"), other, &types));
            }
        }
        ingress_backend(errors, tree::at(entry, "/backend").unwrap_or(&Value::Null), &path.child("backend"));
    }
}

fn ingress_backend(errors: &mut Errors, backend: &Value, path: &Path) {
    match (tree::at(backend, "/service"), tree::at(backend, "/resource")) {
        (Some(_), Some(_)) => {
            errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends"));
        }
        (None, Some(resource)) => {
            checks::required(errors, resource, "kind", &path.child("resource"));
            checks::required(errors, resource, "name", &path.child("resource"));
        }
        (None, None) => errors.push(FieldError::required(path, "service name is required")),
        (Some(service), None) => {
            let path = path.child("service");
            if let Some(name) = checks::required(errors, service, "name", &path) {
                checks::invalid(errors, &path.child("name"), name, names::dns_label(name));
            }
            let (name, number) =
                (tree::some_text(service, "/port/name"), tree::int(service, "/port/number").unwrap_or(0));
            let path = path.child("port");
            match (name, number) {
                (Some(_), n) if n != 0 => {
                    errors.push(FieldError::invalid(&path, "", "cannot set both port name & port number"));
                }
                (Some(name), _) => checks::invalid(errors, &path.child("name"), name, names::port_name(name)),
                (None, 0) => errors.push(FieldError::required(&path, "port name or number is required")),
                (None, number) => checks::port(errors, number, &path.child("number")),
            }
        }
    }
}

pub(super) fn ingress_class(object: &Value, errors: &mut Errors) {
    let path = spec().child("controller");
    let controller = tree::text(object, "/spec/controller");
    match controller.split_once('/') {
        _ if controller.is_empty() => errors.push(FieldError::required(&path, "")),
        Some((domain, rest)) if !rest.is_empty() => {
            checks::invalid(errors, &path, controller, names::dns_subdomain(domain));
        }
        _ => {
            let text = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid(&path, controller, text));
        }
    }
}

pub(super) fn ingress_class_step(new: &Value, old: &Value, errors: &mut Errors) {
    checks::immutable(errors, new, old, "/spec/controller", &spec().child("controller"));
}

pub(super) fn policy(object: &Value, errors: &mut Errors) {
    let path = spec();
    checks::label_selector(errors, tree::at(object, "/spec/podSelector"), &path.child("podSelector"));
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in tree::list(object, &format!("/spec/{list}")).iter().enumerate() {
            let path = path.child(list).index(index);
            for (at, port) in tree::list(rule, "/ports").iter().enumerate() {
                policy_port(errors, port, &path.child("ports").index(at));
            }
            for (at, peer) in tree::list(rule, &format!("/{peers}")).iter().enumerate() {
                policy_peer(errors, peer, &path.child(peers).index(at));
            }
        }
    }
    for (index, kind) in tree::list(object, "/spec/policyTypes").iter().filter_map(Value::as_str).enumerate() {
        if !matches!(kind, "Ingress" | "Egress") {
            let path = path.child("policyTypes").index(index);
            errors.push(FieldError::not_supported(&path, kind, &["Egress", "Ingress"]));
        }
    }
}

fn policy_port(errors: &mut Errors, port: &Value, path: &Path) {
    checks::choice(errors, port, "protocol", path, &PROTOCOLS, true);
    if let Some(value) = tree::at(port, "/port") {
        checks::port_or_name(errors, Some(value), &path.child("port"));
    }
    if let Some(end) = tree::int(port, "/endPort") {
        match tree::int(port, "/port") {
            None => {
                errors.push(FieldError::required(&path.child("port"), "must be specified when `endPort` is specified"))
            }
            Some(start) if end < start => {
                let text = "must be greater than or equal to `port`";
                errors.push(FieldError::invalid(&path.child("endPort"), end, text));
            }
            Some(_) => checks::port(errors, end, &path.child("endPort")),
        }
    }
}

fn policy_peer(errors: &mut Errors, peer: &Value, path: &Path) {
    let selects = tree::at(peer, "/podSelector").is_some() || tree::at(peer, "/namespaceSelector").is_some();
    checks::label_selector(errors, tree::at(peer, "/podSelector"), &path.child("podSelector"));
    checks::label_selector(errors, tree::at(peer, "/namespaceSelector"), &path.child("namespaceSelector"));
    match tree::at(peer, "/ipBlock") {
        None if !selects => errors.push(FieldError::required(path, "must specify a peer")),
        None => {}
        Some(_) if selects => {
            errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
        }
        Some(block) => {
            let path = path.child("ipBlock");
            match tree::some_text(block, "/cidr") {
                None => errors.push(FieldError::required(&path.child("cidr"), "")),
                Some(cidr) => checks::cidr(errors, cidr, &path.child("cidr")),
            }
            for (index, except) in tree::list(block, "/except").iter().enumerate() {
                checks::cidr(errors, except.as_str().unwrap_or_default(), &path.child("except").index(index));
            }
        }
    }
}
