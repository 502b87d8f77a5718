//! Services. Addresses and node ports are allocated before validation sees the object.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Errors, checks, spec};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

static TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
static EMPTY: Value = Value::Null;
const AFFINITY_SECONDS_MAX: i64 = 86_400;
/// A load balancer must not open the agents' own port to the world.
const KUBELET_PORT: i64 = 10_250;

pub(super) fn object(object: &Value, errors: &mut Errors) {
    let (spec, path) = (tree::at(object, "/spec").unwrap_or(&EMPTY), spec());
    let kind = tree::text(spec, "/type");
    let headless = tree::text(spec, "/clusterIP") == "None" || tree::text(spec, "/clusterIPs/0") == "None";
    if tree::list(spec, "/ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    if kind == "LoadBalancer" {
        for (index, port) in tree::list(spec, "/ports").iter().enumerate() {
            if tree::int(port, "/port") == Some(KUBELET_PORT) {
                let text = "may not expose port 10250 externally since it is used by kubelet";
                let path = path.child("ports").index(index);
                errors.push(FieldError::invalid(&path, KUBELET_PORT, text));
            }
        }
        if headless {
            let text = "may not be set to 'None' for LoadBalancer services";
            errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), "None", text));
        }
    }
    if kind == "NodePort" && headless {
        let text = "may not be set to 'None' for NodePort services";
        errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), "None", text));
    }
    if kind == "ExternalName" {
        external_name(errors, spec, &path);
    }
    checks::choice(errors, spec, "type", &path, &TYPES, false);
    ports(errors, spec, &path);
    checks::labels(errors, spec, "/selector", &path.child("selector"));
    affinity(errors, spec, &path);
    cluster_ips(errors, spec, &path);
    external_addresses(errors, spec, &path);
    traffic_policies(errors, spec, &path);
}

fn external_name(errors: &mut Errors, spec: &Value, path: &Path) {
    if let Some(ips) = tree::at(spec, "/clusterIPs").filter(|_| !tree::list(spec, "/clusterIPs").is_empty()) {
        let text = "may not be set for ExternalName services";
        errors.push(FieldError::invalid(&path.child("clusterIPs"), ips.clone(), text));
    }
    let name = tree::text(spec, "/externalName");
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("externalName"), ""));
    } else {
        checks::invalid(errors, &path.child("externalName"), name, names::dns_subdomain(name));
    }
}

fn ports(errors: &mut Errors, spec: &Value, path: &Path) {
    let ports = tree::list(spec, "/ports");
    let path = path.child("ports");
    let mut seen_names = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        one_port(errors, port, ports.len() > 1, &path.index(index), &mut seen_names);
    }
    node_ports(errors, spec, ports, &path);
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let (protocol, number) = (tree::text(port, "/protocol"), tree::int(port, "/port").unwrap_or(0));
        if !seen.insert((protocol, number)) {
            let bad = json!({"Name": "", "Protocol": protocol, "AppProtocol": null, "Port": number, "TargetPort": 0, "NodePort": 0});
            errors.push(FieldError::duplicate(&path.index(index), bad));
        }
    }
}

fn one_port<'a>(errors: &mut Errors, port: &'a Value, name_required: bool, path: &Path, seen: &mut HashSet<&'a str>) {
    match tree::some_text(port, "/name") {
        None if name_required => errors.push(FieldError::required(&path.child("name"), "")),
        None => {}
        Some(name) => {
            checks::invalid(errors, &path.child("name"), name, names::dns_label(name));
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
    }
    let number = tree::int(port, "/port").unwrap_or(0);
    checks::port(errors, number, &path.child("port"));
    checks::choice(errors, port, "protocol", path, &["SCTP", "TCP", "UDP"], false);
    checks::port_or_name(errors, port.get("targetPort"), &path.child("targetPort"));
    if let Some(name) = tree::some_text(port, "/appProtocol") {
        checks::invalid(errors, &path.child("appProtocol"), name, names::qualified_name(name));
    }
}

fn node_ports(errors: &mut Errors, spec: &Value, ports: &[Value], path: &Path) {
    let kind = tree::text(spec, "/type");
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let Some(number) = tree::int(port, "/nodePort").filter(|number| *number != 0) else { continue };
        let path = path.index(index).child("nodePort");
        if matches!(kind, "ClusterIP" | "ExternalName") {
            let text = format!("may not be used when `type` is '{kind}'");
            errors.push(FieldError::forbidden(&path, text));
            continue;
        }
        checks::port(errors, number, &path);
        if !seen.insert((tree::text(port, "/protocol"), number)) {
            errors.push(FieldError::duplicate(&path, number));
        }
    }
}

fn affinity(errors: &mut Errors, spec: &Value, path: &Path) {
    checks::choice(errors, spec, "sessionAffinity", path, &["ClientIP", "None"], false);
    let config = tree::at(spec, "/sessionAffinityConfig");
    let config_path = path.child("sessionAffinityConfig");
    match (tree::text(spec, "/sessionAffinity"), config) {
        ("None", Some(_)) => {
            let text = "must not be set when session affinity is None";
            errors.push(FieldError::forbidden(&config_path, text));
        }
        ("ClientIP", config) => {
            let seconds = config.and_then(|config| tree::int(config, "/clientIP/timeoutSeconds"));
            let path = config_path.child("clientIP").child("timeoutSeconds");
            match seconds {
                None => errors.push(FieldError::required(&path, "when session affinity type is ClientIP")),
                Some(seconds) if !(1..=AFFINITY_SECONDS_MAX).contains(&seconds) => {
                    let text = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
                    errors.push(FieldError::invalid(&path, seconds, text));
                }
                Some(_) => {}
            }
        }
        _ => {}
    }
}

fn cluster_ips(errors: &mut Errors, spec: &Value, path: &Path) {
    let ips = tree::list(spec, "/clusterIPs");
    let first = ips.first().and_then(Value::as_str).unwrap_or_default();
    let single = tree::text(spec, "/clusterIP");
    if !ips.is_empty() && single != first {
        let text = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(&path.child("clusterIPs"), ips.to_vec(), text));
    }
    for (index, ip) in ips.iter().filter_map(Value::as_str).enumerate() {
        let path = path.child("clusterIPs").index(index);
        match ip {
            "None" if index == 0 && ips.len() == 1 => {}
            "None" => errors.push(FieldError::invalid(&path, ip, "must be the only value if it is 'None'")),
            "" => errors.push(FieldError::invalid(&path, ip, "must be empty or a valid IP address")),
            ip => drop(checks::address(errors, ip, &path)),
        }
    }
    if ips.is_empty() && !matches!(single, "" | "None") {
        checks::address(errors, single, &path.child("clusterIP"));
    }
    let families = tree::list(spec, "/ipFamilies");
    for (index, family) in families.iter().filter_map(Value::as_str).enumerate() {
        if !matches!(family, "IPv4" | "IPv6") {
            let path = path.child("ipFamilies").index(index);
            errors.push(FieldError::not_supported(&path, family, &["IPv4", "IPv6"]));
        }
    }
    checks::unique(errors, families.iter().filter_map(Value::as_str), |index| path.child("ipFamilies").index(index));
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    checks::choice(errors, spec, "ipFamilyPolicy", path, &policies, true);
}

fn external_addresses(errors: &mut Errors, spec: &Value, path: &Path) {
    for (index, ip) in tree::list(spec, "/externalIPs").iter().enumerate() {
        checks::not_special(errors, ip.as_str().unwrap_or_default(), &path.child("externalIPs").index(index));
    }
    for (index, range) in tree::list(spec, "/loadBalancerSourceRanges").iter().enumerate() {
        let path = path.child("loadBalancerSourceRanges").index(index);
        checks::cidr(errors, range.as_str().unwrap_or_default(), &path);
    }
    if !tree::list(spec, "/loadBalancerSourceRanges").is_empty() && tree::text(spec, "/type") != "LoadBalancer" {
        let text = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden(&path.child("loadBalancerSourceRanges"), text));
    }
    if let Some(class) = tree::some_text(spec, "/loadBalancerClass") {
        let path = path.child("loadBalancerClass");
        if tree::text(spec, "/type") != "LoadBalancer" {
            errors.push(FieldError::forbidden(&path, "may only be used when `type` is 'LoadBalancer'"));
        }
        checks::invalid(errors, &path, class, names::qualified_name(class));
    }
    if tree::at(spec, "/allocateLoadBalancerNodePorts").is_some() && tree::text(spec, "/type") != "LoadBalancer" {
        let path = path.child("allocateLoadBalancerNodePorts");
        errors.push(FieldError::forbidden(&path, "may only be used when `type` is 'LoadBalancer'"));
    }
}

fn traffic_policies(errors: &mut Errors, spec: &Value, path: &Path) {
    let kind = tree::text(spec, "/type");
    let externally = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !tree::list(spec, "/externalIPs").is_empty());
    let external = tree::text(spec, "/externalTrafficPolicy");
    let external_path = path.child("externalTrafficPolicy");
    match (externally, external) {
        (false, "") => {}
        (false, other) => {
            let text = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid(&external_path, other, text));
        }
        (true, "") => errors.push(FieldError::required(&external_path, "")),
        (true, "Cluster" | "Local") => {}
        (true, other) => errors.push(FieldError::not_supported(&external_path, other, &["Cluster", "Local"])),
    }
    let internal = tree::text(spec, "/internalTrafficPolicy");
    if kind != "ExternalName" {
        checks::choice(errors, spec, "internalTrafficPolicy", path, &["Cluster", "Local"], true);
    } else if !internal.is_empty() {
        let text = "may not be set when `type` is 'ExternalName'";
        errors.push(FieldError::forbidden(&path.child("internalTrafficPolicy"), text));
    }
    let health = tree::int(spec, "/healthCheckNodePort").filter(|port| *port != 0);
    if let Some(health) = health.filter(|_| !(kind == "LoadBalancer" && external == "Local")) {
        let text = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(&path.child("healthCheckNodePort"), health, text));
    }
    checks::choice(
        errors,
        spec,
        "trafficDistribution",
        path,
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
        true,
    );
}

/// An address that was given stays, as long as the service has one.
pub(super) fn step(new: &Value, old: &Value, errors: &mut Errors) {
    let path = spec();
    let external = |object| tree::text(object, "/spec/type") == "ExternalName";
    let first =
        |object| tree::some_text(object, "/spec/clusterIPs/0").unwrap_or_else(|| tree::text(object, "/spec/clusterIP"));
    if !external(new) && !external(old) && !first(old).is_empty() && first(new) != first(old) {
        let bad = tree::list(new, "/spec/clusterIPs").to_vec();
        errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), bad, "may not change once set"));
    }
    let class = |object| tree::at(object, "/spec/loadBalancerClass").cloned();
    let balanced = |object| tree::text(object, "/spec/type") == "LoadBalancer";
    if balanced(old) && balanced(new) && class(new) != class(old) {
        let bad = class(new).unwrap_or_default();
        errors.push(FieldError::invalid(&path.child("loadBalancerClass"), bad, "may not change once set"));
    }
}

pub(super) fn status(new: &Value, _old: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    for (index, ingress) in tree::list(new, "/status/loadBalancer/ingress").iter().enumerate() {
        let path = path.index(index);
        if let Some(ip) = tree::some_text(ingress, "/ip") {
            checks::address(errors, ip, &path.child("ip"));
        }
        if let Some(name) = tree::some_text(ingress, "/hostname") {
            checks::invalid(errors, &path.child("hostname"), name, names::dns_subdomain(name));
        }
    }
}
