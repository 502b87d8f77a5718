//! Endpoints and EndpointSlices of `default/kubernetes`: the API addresses of the servers that live.
//!
//! Pure: addresses in, objects out. Servers on one machine differ by port; addresses are grouped by it. Loopback, which no
//! pod could reach and validation refuses, is left out: a cluster that listens only there has no endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";

fn by_port(servers: &[SocketAddr]) -> BTreeMap<u16, BTreeSet<IpAddr>> {
    let mut ports: BTreeMap<u16, BTreeSet<IpAddr>> = BTreeMap::new();
    for server in servers.iter().filter(|server| !server.ip().is_loopback()) {
        ports.entry(server.port()).or_default().insert(server.ip());
    }
    ports
}

pub(super) fn endpoints(servers: &[SocketAddr]) -> Value {
    let subset = |(port, ips): (u16, BTreeSet<IpAddr>)| {
        let addresses: Vec<Value> = ips.into_iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
        json!({ "addresses": addresses, "ports": [port_entry(port)] })
    };
    let subsets: Vec<Value> = by_port(servers).into_iter().map(subset).collect();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
        },
        "subsets": subsets,
    })
}

/// One slice per port and address family; the first is named like the Service.
pub(super) fn slices(servers: &[SocketAddr]) -> Vec<Value> {
    let mut slices = Vec::new();
    for (port, ips) in by_port(servers) {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = ips.into_iter().partition(IpAddr::is_ipv4);
        for (family, ips) in [("IPv4", v4), ("IPv6", v6)] {
            if ips.is_empty() {
                continue;
            }
            let name = match slices.len() {
                0 => NAME.to_owned(),
                _ => format!("{NAME}-{}-{port}", family.to_ascii_lowercase()),
            };
            slices.push(slice(&name, family, port, &ips));
        }
    }
    slices
}

fn slice(name: &str, family: &str, port: u16, ips: &[IpAddr]) -> Value {
    let endpoint = |ip: &IpAddr| json!({ "addresses": [ip.to_string()], "conditions": { "ready": true } });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": NAME },
        },
        "addressType": family,
        "endpoints": ips.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [port_entry(port)],
    })
}

fn port_entry(port: u16) -> Value {
    json!({ "name": "https", "port": port, "protocol": "TCP" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|address| address.parse().expect("address")).collect()
    }

    #[test]
    fn servers_are_grouped_by_port() {
        let all = servers(&["10.0.0.2:6443", "10.0.0.1:6443", "10.0.0.3:7443"]);
        let endpoints = endpoints(&all);
        assert_eq!(endpoints["subsets"][0]["addresses"], json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]));
        assert_eq!(endpoints["subsets"][1]["ports"][0]["port"], 7443);
        let names: Vec<Value> = slices(&all).iter().map(|slice| slice["metadata"]["name"].clone()).collect();
        assert_eq!(names, ["kubernetes", "kubernetes-ipv4-7443"]);
        assert_eq!(slices(&all)[0]["endpoints"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn without_servers_there_is_nothing() {
        assert_eq!(endpoints(&servers(&["127.0.0.1:6443", "[::1]:6443"]))["subsets"], json!([]));
        assert_eq!(endpoints(&[])["subsets"], json!([]));
        assert!(slices(&[]).is_empty());
    }
}
