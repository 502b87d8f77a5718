//! What the proxy should do, as plain values: service ports and where each leads. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::limits;

/// Transport of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Where packets to a service port arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Front {
    /// An address of the service itself.
    Address(Ipv4Addr, Protocol, u16),
    /// A port of every node.
    Node(Protocol, u16),
}

/// An endpoint's address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Back {
    pub address: Ipv4Addr,
    pub port: u16,
}

/// How one front is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub protocol: Protocol,
    pub backs: Vec<Back>,
    /// Seconds a client stays with its endpoint.
    pub affinity: Option<u32>,
    /// The endpoint must see the node as the client, or its answer would not come back through here.
    pub masquerade: bool,
    /// Packets are dropped instead of refused when there is no endpoint: those of a node without local ones, so that
    /// a load balancer's health check decides.
    pub drop_empty: bool,
}

/// All fronts.
pub type Model = BTreeMap<Front, Way>;

/// Makes the model; what is malformed in an object is left out. The address of the name server is served by the agent.
pub fn build(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], node: &str, dns: &str) -> Model {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
        if let (Some(namespace), Some(name)) = (slice.metadata.namespace.as_deref(), name) {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut model = Model::new();
    for service in services {
        let key = (
            service.metadata.namespace.as_deref().unwrap_or_default(),
            service.metadata.name.as_deref().unwrap_or_default(),
        );
        let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
        add(service, slices, node, dns, &mut model);
    }
    model
}

fn add(service: &Service, slices: &[&EndpointSlice], node: &str, dns: &str, model: &mut Model) {
    let Some(spec) = &service.spec else { return };
    if spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let Some(cluster_ip) = spec.cluster_ip.as_deref().filter(|ip| *ip != dns).and_then(|ip| ip.parse().ok()) else {
        return;
    };
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        config
            .and_then(|client| client.timeout_seconds)
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(10_800)
            .clamp(1, 86_400)
    });
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let mut outside: Vec<Ipv4Addr> = spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    let ingress = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|balancer| balancer.ingress.as_ref());
    outside.extend(ingress.into_iter().flatten().filter_map(|ingress| ingress.ip.as_deref()?.parse::<Ipv4Addr>().ok()));
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (Protocol::parse(port.protocol.as_deref()), u16::try_from(port.port)) else {
            continue;
        };
        let backs = |local: bool| backs(port, slices, local.then_some(node));
        let inside =
            Way { protocol, backs: backs(internal_local), affinity, masquerade: false, drop_empty: internal_local };
        let from_outside = Way {
            backs: backs(external_local),
            masquerade: !external_local,
            drop_empty: external_local,
            ..inside.clone()
        };
        model.insert(Front::Address(cluster_ip, protocol, number), inside);
        for address in &outside {
            model.insert(Front::Address(*address, protocol, number), from_outside.clone());
        }
        if let Some(node_port) = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0) {
            model.insert(Front::Node(protocol, node_port), from_outside);
        }
    }
}

/// The ready endpoints of a port; if none is ready, those that still serve while they end.
fn backs(port: &ServicePort, slices: &[&EndpointSlice], only_node: Option<&str>) -> Vec<Back> {
    let collect = |wanted: fn(&Endpoint) -> bool| {
        let mut found = BTreeSet::new();
        for slice in slices {
            let number = slice.ports.iter().flatten().find(|other| {
                other.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                    && Protocol::parse(other.protocol.as_deref()) == Protocol::parse(port.protocol.as_deref())
            });
            let Some(number) = number.and_then(|other| other.port).and_then(|number| u16::try_from(number).ok()) else {
                continue;
            };
            for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| wanted(endpoint)) {
                if only_node.is_some_and(|node| endpoint.node_name.as_deref() != Some(node)) {
                    continue;
                }
                let address = endpoint.addresses.first().and_then(|address| address.parse::<Ipv4Addr>().ok());
                found.extend(address.map(|address| Back { address, port: number }));
            }
        }
        found.into_iter().take(limits::ENDPOINTS_PER_PORT).collect::<Vec<_>>()
    };
    let ready = collect(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false));
    if !ready.is_empty() {
        return ready;
    }
    collect(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.is_some_and(|conditions| conditions.serving == Some(true) && conditions.terminating == Some(true))
    })
}

/// Tracked UDP connections that lead where they should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The service's address; `None` for a port of every node.
    pub address: Option<Ipv4Addr>,
    pub port: u16,
    /// The endpoint that is gone. `None` where there was none before: packets may have been tracked without translation.
    pub endpoint: Option<Ipv4Addr>,
}

/// UDP fronts and the endpoints they do not lead to any more.
pub fn stale_udp(before: &Model, after: &Model) -> Vec<Stale> {
    let mut stale = Vec::new();
    for (front, way) in before {
        let (address, port) = match front {
            Front::Address(address, Protocol::Udp, port) => (Some(*address), *port),
            Front::Node(Protocol::Udp, port) => (None, *port),
            _ => continue,
        };
        let kept = after.get(front).map(|way| way.backs.as_slice()).unwrap_or_default();
        let gone = way.backs.iter().filter(|back| !kept.contains(back));
        stale.extend(gone.map(|back| Stale { address, port, endpoint: Some(back.address) }));
        if way.backs.is_empty() && !kept.is_empty() {
            stale.push(Stale { address, port, endpoint: None });
        }
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Arc<Service> {
        Arc::new(
            serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": spec }))
                .expect("service"),
        )
    }

    fn slice(endpoints: Value) -> Arc<EndpointSlice> {
        let slice = json!({ "metadata": { "name": "web-1", "namespace": "ns", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080 }], "endpoints": endpoints });
        Arc::new(serde_json::from_value(slice).expect("slice"))
    }

    fn shown(model: &Model) -> Vec<String> {
        model
            .iter()
            .map(|(front, way)| {
                let backs: Vec<String> =
                    way.backs.iter().map(|back| format!("{}:{}", back.address, back.port)).collect();
                format!("{front:?} -> [{}]{}", backs.join(" "), if way.masquerade { " masquerade" } else { "" })
            })
            .collect()
    }

    #[test]
    fn ready_endpoints_serve_and_ending_ones_only_in_need() {
        let spec = json!({ "clusterIP": "10.96.0.5", "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }] });
        let endpoints = json!([
            { "addresses": ["10.244.0.2"], "conditions": { "ready": true }, "nodeName": "n1" },
            { "addresses": ["10.244.1.2"], "conditions": { "ready": false, "serving": true, "terminating": true } },
        ]);
        let model = build(&[service(spec.clone())], &[slice(endpoints.clone())], "n1", "10.96.0.10");
        assert_eq!(
            shown(&model),
            ["Address(10.96.0.5, Tcp, 80) -> [10.244.0.2:8080]", "Node(Tcp, 30080) -> [10.244.0.2:8080] masquerade"]
        );
        let model = build(&[service(spec)], &[slice(json!([endpoints[1]]))], "n1", "10.96.0.10");
        assert_eq!(shown(&model)[0], "Address(10.96.0.5, Tcp, 80) -> [10.244.1.2:8080]");
    }

    #[test]
    fn local_policies_look_at_the_node() {
        let spec = json!({ "clusterIP": "10.96.0.5", "externalTrafficPolicy": "Local", "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }] });
        let endpoints = json!([{ "addresses": ["10.244.0.2"], "nodeName": "n1" }, { "addresses": ["10.244.1.2"], "nodeName": "n2" }]);
        let model = build(&[service(spec)], &[slice(endpoints)], "n2", "");
        assert_eq!(shown(&model)[1], "Node(Tcp, 30080) -> [10.244.1.2:8080]");
    }

    #[test]
    fn what_has_no_address_or_is_ours_is_left_out() {
        for spec in [
            json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "10.96.0.10", "ports": [{ "port": 53 }] }),
            json!({ "type": "ExternalName", "externalName": "x" }),
            json!({ "clusterIP": "nonsense", "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "10.96.0.7", "ports": [{ "port": 99999 }, { "port": 1, "protocol": "ICMP" }] }),
        ] {
            assert!(build(&[service(spec.clone())], &[], "n1", "10.96.0.10").is_empty(), "{spec}");
        }
    }

    #[test]
    fn udp_connections_to_lost_endpoints_are_named() {
        let way = |backs: &[u8]| Way {
            protocol: Protocol::Udp,
            affinity: None,
            masquerade: false,
            drop_empty: false,
            backs: backs.iter().map(|last| Back { address: Ipv4Addr::new(10, 244, 0, *last), port: 53 }).collect(),
        };
        let address = Ipv4Addr::new(10, 96, 0, 5);
        for (front, of) in
            [(Front::Address(address, Protocol::Udp, 53), Some(address)), (Front::Node(Protocol::Udp, 53), None)]
        {
            let stale = |before: &[u8], after: &[u8]| {
                let found = stale_udp(&Model::from([(front, way(before))]), &Model::from([(front, way(after))]));
                assert!(found.iter().all(|stale| (stale.address, stale.port) == (of, 53)), "{found:?}");
                found.iter().map(|stale| stale.endpoint.map_or(0, |ip| ip.octets()[3])).collect::<Vec<_>>()
            };
            assert_eq!(stale(&[1, 2], &[2, 3]), [1]);
            assert_eq!(stale(&[], &[1]), [0]);
            assert!(stale(&[1], &[1]).is_empty());
        }
        let tcp = Model::from([(Front::Node(Protocol::Tcp, 53), way(&[1]))]);
        assert!(stale_udp(&tcp, &Model::new()).is_empty());
    }
}
