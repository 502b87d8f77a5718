//! Routes to the pods of other nodes, through those nodes' addresses (nodes share a link). They carry a protocol number
//! of our own, so that we find and remove only ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use super::parse_cidr;
use crate::limits;
use crate::program::{self, ProgramError};

/// Marks our routes in the kernel's table.
const PROTOCOL: &str = "112";

/// Range to next hop.
pub type Routes = BTreeMap<String, Ipv4Addr>;

/// The routes that should be there. Pure.
pub fn wanted(nodes: &[Arc<Node>], own: &str) -> Routes {
    let mut routes = Routes::new();
    for node in nodes.iter().filter(|node| node.metadata.name.as_deref() != Some(own)) {
        let cidr =
            node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref()).filter(|cidr| parse_cidr(cidr).is_some());
        let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        let internal = addresses
            .iter()
            .find(|address| address.type_ == "InternalIP")
            .and_then(|address| address.address.parse().ok());
        if let (Some(cidr), Some(internal)) = (cidr, internal) {
            routes.insert(cidr.to_owned(), internal);
        }
    }
    routes
}

/// Makes the kernel's table hold exactly these of our routes.
pub async fn apply(wanted: &Routes) -> Result<(), ProgramError> {
    let text = program::run("ip", &["-json", "-4", "route", "show", "proto", PROTOCOL], None, limits::PROGRAM).await?;
    let present = present(&text);
    let mut first_error = None;
    for (cidr, gateway) in wanted.iter().filter(|(cidr, gateway)| present.get(*cidr) != Some(gateway)) {
        let gateway = gateway.to_string();
        let args = ["route", "replace", cidr, "via", &gateway, "proto", PROTOCOL];
        if let Err(error) = program::run("ip", &args, None, limits::PROGRAM).await {
            // One node without a way must not keep the others from being reached.
            first_error.get_or_insert(error);
        }
    }
    let surplus: BTreeSet<&String> = present.keys().filter(|cidr| !wanted.contains_key(*cidr)).collect();
    for cidr in surplus {
        let args = ["route", "delete", cidr.as_str(), "proto", PROTOCOL];
        if let Err(error) = program::run("ip", &args, None, limits::PROGRAM).await {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Reads `ip -json route show`.
fn present(text: &str) -> Routes {
    let rows: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    let read = |row: &Value| Some((row["dst"].as_str()?.to_owned(), row["gateway"].as_str()?.parse().ok()?));
    rows.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn other_nodes_with_a_range_and_an_address() {
        let node = |name: &str, cidr: Value, ip: &str| {
            let node = json!({ "metadata": { "name": name }, "spec": { "podCIDR": cidr }, "status": { "addresses": [{ "type": "Hostname", "address": name }, { "type": "InternalIP", "address": ip }] } });
            Arc::new(serde_json::from_value::<Node>(node).expect("node"))
        };
        let nodes = [
            node("a", json!("10.244.0.0/24"), "10.0.0.1"),
            node("b", json!("10.244.1.0/24"), "10.0.0.2"),
            node("c", json!(null), "10.0.0.3"),
            node("d", json!("nonsense"), "10.0.0.4"),
            node("e", json!("10.244.4.0/24"), "nonsense"),
        ];
        assert_eq!(wanted(&nodes, "a"), Routes::from([("10.244.1.0/24".to_owned(), Ipv4Addr::new(10, 0, 0, 2))]));
        let text = r#"[{"dst":"10.244.1.0/24","gateway":"10.0.0.2","dev":"eth0"},{"dst":"default"}]"#;
        assert_eq!(present(text), wanted(&nodes, "a"));
        assert!(present("not json").is_empty());
    }
}
