//! What a Service needs and has: pure rules over its spec.
//!
//! [`complete`] fills in addresses and ports, keeps what an update leaves out, and drops what the type does not need.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use bytes::Bytes;
use pintle_api::status::{FieldError, Path};
use serde_json::{Value, json};

use super::keys;
use super::ranges::Ranges;
use crate::authz::live::{items, text};

const NONE: &str = "None";
const FAMILY: &str = "IPv4";

/// The claimed things of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holdings {
    pub addresses: BTreeSet<String>,
    pub ports: BTreeSet<u16>,
}

impl Holdings {
    pub fn of(service: &Value) -> Self {
        let single = text(service, "/spec/clusterIP");
        let all = items(service, "/spec/clusterIPs").filter_map(Value::as_str).chain([single]);
        let numbers = items(service, "/spec/ports").filter_map(|port| port_field(port, "nodePort"));
        let health = service.get("spec").and_then(|spec| port_field(spec, "healthCheckNodePort"));
        Self {
            addresses: all.filter(|ip| !ip.is_empty() && *ip != NONE).map(str::to_owned).collect(),
            ports: numbers.chain(health).collect(),
        }
    }

    /// Keys of what is here and not in `other`.
    pub fn missing_from(&self, other: &Self) -> Vec<Bytes> {
        let addresses = self.addresses.difference(&other.addresses).map(|ip| keys::address(ip));
        let ports = self.ports.difference(&other.ports).map(|port| keys::node_port(*port));
        addresses.chain(ports).collect()
    }
}

/// What picks are made from. Taken sets may be empty: then picks are blind and the claim decides.
pub(super) struct Picker<'a> {
    pub ranges: &'a Ranges,
    pub taken_addresses: &'a BTreeSet<String>,
    pub taken_ports: &'a BTreeSet<String>,
    /// What the Service holds already.
    pub before: &'a Holdings,
}

type Errors = Vec<FieldError>;

/// Completes `service` and returns what it then holds.
pub(super) fn complete(service: &mut Value, old: Option<&Value>, picker: &Picker<'_>) -> Result<Holdings, Errors> {
    if let Some(old) = old {
        keep_allocated(service, old);
        drop_unneeded(service, old);
    }
    let Some(spec) = service.get_mut("spec") else { return Ok(Holdings::default()) };
    if needs_address(spec) {
        complete_address(spec, picker)?;
    }
    if needs_node_ports(spec) {
        complete_node_ports(spec, picker)?;
    }
    Ok(Holdings::of(service))
}

fn kind_of(spec: &Value) -> &str {
    match text(spec, "/type") {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn needs_address(spec: &Value) -> bool {
    matches!(kind_of(spec), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_ports(spec: &Value) -> bool {
    match kind_of(spec) {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false),
        _ => false,
    }
}

fn needs_health_port(spec: &Value) -> bool {
    kind_of(spec) == "LoadBalancer" && text(spec, "/externalTrafficPolicy") == "Local"
}

fn port_field(object: &Value, field: &str) -> Option<u16> {
    object.get(field).and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}

/// Fields that an update left out are taken from the stored Service, as long as its type still has them.
fn keep_allocated(service: &mut Value, old: &Value) {
    let (Some(new), Some(old)) = (service.get_mut("spec"), old.get("spec")) else { return };
    if needs_address(new) && needs_address(old) {
        let unset = |spec: &Value| text(spec, "/clusterIP").is_empty();
        let fields: &[&str] = if unset(new) && items(new, "/clusterIPs").next().is_none() {
            &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]
        } else {
            &["ipFamilies", "ipFamilyPolicy"]
        };
        for field in fields {
            if is_unset(new.get(*field))
                && let Some(value) = old.get(*field)
            {
                new[*field] = value.clone();
            }
        }
        follow_single(new, old);
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        let key = |port: &Value| (text(port, "/protocol").to_owned(), port.get("port").and_then(Value::as_i64));
        let held: BTreeMap<_, _> =
            items(old, "/ports").filter_map(|port| Some((key(port), port_field(port, "nodePort")?))).collect();
        for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if port.is_object()
                && port_field(port, "nodePort").is_none()
                && let Some(node_port) = held.get(&key(port))
            {
                port["nodePort"] = (*node_port).into();
            }
        }
    }
    if needs_health_port(new)
        && needs_health_port(old)
        && port_field(new, "healthCheckNodePort").is_none()
        && let Some(port) = port_field(old, "healthCheckNodePort")
    {
        new["healthCheckNodePort"] = port.into();
    }
}

/// Clients that know only `clusterIP` change it alone; the list then follows.
fn follow_single(new: &mut Value, old: &Value) {
    if new.get("clusterIPs") == old.get("clusterIPs") && new.get("clusterIP") != old.get("clusterIP") {
        match text(new, "/clusterIP").to_owned() {
            ip if ip.is_empty() => remove(new, "clusterIPs"),
            ip => new["clusterIPs"] = json!([ip]),
        }
    }
}

/// Fields the new type has no use for go, if they are only what was stored: a value of the user's own is for validation.
fn drop_unneeded(service: &mut Value, old: &Value) {
    let (Some(new), Some(old)) = (service.get_mut("spec"), old.get("spec")) else { return };
    if needs_address(old) && !needs_address(new) && new.get("clusterIP") == old.get("clusterIP") {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            remove(new, field);
        }
    }
    if needs_node_ports(old) && !needs_node_ports(new) {
        let held: BTreeSet<u16> = items(old, "/ports").filter_map(|port| port_field(port, "nodePort")).collect();
        for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if port_field(port, "nodePort").is_some_and(|node_port| held.contains(&node_port)) {
                remove(port, "nodePort");
            }
        }
    }
    if needs_health_port(old) && !needs_health_port(new) {
        remove(new, "healthCheckNodePort");
    }
}

fn is_unset(value: Option<&Value>) -> bool {
    value.is_none_or(|value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        _ => false,
    })
}

fn remove(object: &mut Value, field: &str) {
    if let Some(object) = object.as_object_mut() {
        object.shift_remove(field);
    }
}

fn complete_address(spec: &mut Value, picker: &Picker<'_>) -> Result<(), Errors> {
    check_families(spec)?;
    let single = text(spec, "/clusterIP").to_owned();
    let listed: Vec<String> = items(spec, "/clusterIPs").filter_map(Value::as_str).map(str::to_owned).collect();
    let wanted = match (single.is_empty(), listed.first()) {
        (false, _) => single,
        (true, Some(first)) => first.clone(),
        (true, None) => String::new(),
    };
    let address = match wanted.as_str() {
        NONE => wanted,
        "" => pick_address(picker)?,
        _ => checked_address(&wanted, picker)?,
    };
    if listed.len() > 1 {
        let at = Path::new("spec.clusterIPs");
        return Err(vec![FieldError::invalid(&at, json!(listed), "may only hold one value on a single-stack cluster")]);
    }
    spec["clusterIP"] = address.as_str().into();
    spec["clusterIPs"] = json!([address]);
    if is_unset(spec.get("ipFamilies")) {
        spec["ipFamilies"] = json!([FAMILY]);
    }
    if is_unset(spec.get("ipFamilyPolicy")) {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    Ok(())
}

fn check_families(spec: &Value) -> Result<(), Errors> {
    let mut errors = Vec::new();
    let at = Path::new("spec.ipFamilies");
    for (n, family) in items(spec, "/ipFamilies").enumerate() {
        if family != FAMILY {
            errors.push(FieldError::invalid(&at.index(n), family.clone(), "not configured on this cluster"));
        }
    }
    if text(spec, "/ipFamilyPolicy") == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid(&Path::new("spec.ipFamilyPolicy"), "RequireDualStack", why));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn address_error(ip: &str, why: &str) -> Errors {
    vec![FieldError::invalid(&Path::new("spec.clusterIPs"), json!([ip]), format!("failed to allocate IP {ip}: {why}"))]
}

fn pick_address(picker: &Picker<'_>) -> Result<String, Errors> {
    let picked = picker.ranges.pick_address(picker.taken_addresses);
    picked.map(|ip| ip.to_string()).ok_or_else(|| {
        let why = "failed to allocate IP: range is full";
        vec![FieldError::internal(&Path::new("spec.clusterIPs"), why)]
    })
}

fn checked_address(wanted: &str, picker: &Picker<'_>) -> Result<String, Errors> {
    if picker.before.addresses.contains(wanted) {
        return Ok(wanted.to_owned());
    }
    let ip: Ipv4Addr = wanted.parse().map_err(|_| {
        let at = Path::new("spec.clusterIPs").index(0);
        vec![FieldError::invalid(&at, wanted, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")]
    })?;
    if !picker.ranges.holds_address(ip) {
        let range = picker.ranges.cidr();
        let why = format!("the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {range}");
        return Err(address_error(wanted, &why));
    }
    if picker.taken_addresses.contains(wanted) {
        return Err(address_error(wanted, "provided IP is already allocated"));
    }
    Ok(wanted.to_owned())
}

fn complete_node_ports(spec: &mut Value, picker: &Picker<'_>) -> Result<(), Errors> {
    let mut errors = Vec::new();
    let mut taken = picker.taken_ports.clone();
    let explicit = items(spec, "/ports").filter_map(|port| port_field(port, "nodePort"));
    taken.extend(explicit.map(|port| port.to_string()));
    // One number serves all protocols of one port of the Service.
    let mut by_port: BTreeMap<i64, u16> = BTreeMap::new();
    for (n, port) in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        if !port.is_object() {
            continue;
        }
        let at = Path::new("spec.ports").index(n).child("nodePort");
        let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
        let chosen = match (port_field(port, "nodePort"), by_port.get(&number)) {
            (Some(wanted), _) => check_port(wanted, &at, picker).map(|()| wanted),
            (None, Some(shared)) => Ok(*shared),
            (None, None) => pick_port(&mut taken, &at, picker),
        };
        match chosen {
            Ok(chosen) => {
                by_port.entry(number).or_insert(chosen);
                port["nodePort"] = chosen.into();
            }
            Err(error) => errors.push(error),
        }
    }
    if needs_health_port(spec) && errors.is_empty() {
        let at = Path::new("spec.healthCheckNodePort");
        match port_field(spec, "healthCheckNodePort") {
            Some(wanted) => errors.extend(check_port(wanted, &at, picker).err()),
            None => match pick_port(&mut taken, &at, picker) {
                Ok(port) => spec["healthCheckNodePort"] = port.into(),
                Err(error) => errors.push(error),
            },
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn pick_port(taken: &mut BTreeSet<String>, at: &Path, picker: &Picker<'_>) -> Result<u16, FieldError> {
    let port = picker.ranges.pick_port(taken);
    let port = port.ok_or_else(|| FieldError::internal(at, "failed to allocate a nodePort: range is full"))?;
    taken.insert(port.to_string());
    Ok(port)
}

fn check_port(wanted: u16, at: &Path, picker: &Picker<'_>) -> Result<(), FieldError> {
    if picker.before.ports.contains(&wanted) {
        return Ok(());
    }
    if !picker.ranges.holds_port(wanted) {
        let range = picker.ranges.ports_text();
        let why = format!("provided port is not in the valid range. The range of valid ports is {range}");
        return Err(FieldError::invalid(at, wanted, why));
    }
    if picker.taken_ports.contains(&wanted.to_string()) {
        return Err(FieldError::invalid(at, wanted, "provided port is already allocated"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(spec: Value, old: Option<Value>) -> Result<Value, String> {
        let ranges = Ranges::new("10.96.0.0/16", 30000..=32767).expect("ranges");
        let (none, before) = (BTreeSet::new(), old.as_ref().map(Holdings::of).unwrap_or_default());
        let picker = Picker { ranges: &ranges, taken_addresses: &none, taken_ports: &none, before: &before };
        let mut service = json!({"metadata": {}, "spec": spec});
        match complete(&mut service, old.as_ref(), &picker) {
            Ok(_) => Ok(service),
            Err(errors) => Err(pintle_api::status::aggregate(&errors)),
        }
    }

    #[test]
    fn a_new_service_gets_an_address_and_its_family() {
        let service = run(json!({"type": "ClusterIP"}), None).expect("complete");
        let ip = text(&service, "/spec/clusterIP");
        assert!(ip.starts_with("10.96."));
        assert_eq!(service["spec"]["clusterIPs"], json!([ip]));
        assert_eq!(
            (&service["spec"]["ipFamilies"], &service["spec"]["ipFamilyPolicy"]),
            (&json!(["IPv4"]), &json!("SingleStack"))
        );
        let headless = run(json!({"clusterIP": "None"}), None).expect("complete");
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let named = run(json!({"type": "ExternalName", "externalName": "a.b"}), None).expect("complete");
        assert!(named["spec"].get("clusterIPs").is_none());
    }

    #[test]
    fn wrong_wishes_are_refused_in_upstreams_words() {
        let table = [
            (
                json!({"clusterIP": "1.2.3.4"}),
                r#"spec.clusterIPs: Invalid value: ["1.2.3.4"]: failed to allocate IP 1.2.3.4: the provided IP (1.2.3.4) is not in the valid range. The range of valid IPs is 10.96.0.0/16"#,
            ),
            (
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
                "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                r#"spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#,
            ),
        ];
        for (spec, want) in table {
            assert_eq!(run(spec, None).expect_err("refused"), want);
        }
    }

    #[test]
    fn one_node_port_serves_both_protocols_of_a_port() {
        let ports =
            json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 80, "protocol": "TCP"}]);
        let service = run(json!({"type": "NodePort", "ports": ports}), None).expect("complete");
        let port = |n: usize| service["spec"]["ports"][n]["nodePort"].clone();
        assert_eq!(port(0), port(1));
        assert_ne!(port(0), port(2));
    }

    #[test]
    fn an_update_that_leaves_fields_out_keeps_them() {
        let old = run(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}), None).expect("complete");
        let again = run(
            json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}),
            Some(old.clone()),
        )
        .expect("complete");
        assert_eq!(again["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        assert_eq!(again["spec"]["ports"][0], old["spec"]["ports"][0]);
        assert_ne!(again["spec"]["ports"][1]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
    }

    #[test]
    fn nothing_in_a_spec_makes_it_panic() {
        for spec in [
            json!({"ports": [1, null, {"port": "x"}], "type": "NodePort"}),
            json!({"clusterIPs": [1, {}], "clusterIP": 7, "ipFamilies": "x"}),
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": -1}),
            json!({"clusterIPs": ["10.96.0.1", "10.96.0.2"]}),
        ] {
            let _ = run(spec.clone(), None);
            let _ = run(json!({"type": "ExternalName"}), Some(json!({"spec": spec})));
        }
    }
}
