//! The Endpoints object a Service should have. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::select::{Backend, Port};
use super::{MANAGED_BY, MANAGER};
use crate::limits;

/// Marks Endpoints that name only some of the backends.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// On the Endpoints of headless services.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What the Endpoints of `service` should be, made from the stored object `old` if there is one.
///
/// `None` if `old` is right already.
pub fn plan(service: &Service, backends: &[Backend], old: Option<&Endpoints>) -> Option<Endpoints> {
    let cut = &backends[..backends.len().min(limits::ENDPOINTS_ADDRESSES)];
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let mut annotations = old.and_then(|old| old.metadata.annotations.clone()).unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    if cut.len() < backends.len() {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    let subsets = subsets(cut);
    let metadata = ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
        ..old.map(|old| old.metadata.clone()).unwrap_or_default()
    };
    let wanted = Endpoints { metadata, subsets: Some(subsets).filter(|subsets| !subsets.is_empty()) };
    let same = old.is_some_and(|old| {
        old.subsets.as_deref().unwrap_or_default() == wanted.subsets.as_deref().unwrap_or_default()
            && old.metadata.labels.clone().unwrap_or_default() == wanted.metadata.labels.clone().unwrap_or_default()
            && old.metadata.annotations == wanted.metadata.annotations
    });
    (!same).then_some(wanted)
}

/// One subset for each distinct list of ports, in order.
fn subsets(backends: &[Backend]) -> Vec<EndpointSubset> {
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for backend in backends {
        let mut ports = backend.ports.clone();
        ports.sort();
        let (ready, waiting) = groups.entry(ports).or_default();
        let address = EndpointAddress {
            ip: backend.address.to_string(),
            node_name: backend.node.clone(),
            hostname: backend.hostname.clone(),
            target_ref: Some(backend.target.clone()),
        };
        if backend.ready {
            ready.push(address);
        } else if !backend.terminating {
            waiting.push(address);
        }
    }
    groups
        .into_iter()
        .filter(|(_, (ready, waiting))| !ready.is_empty() || !waiting.is_empty())
        .map(|(ports, (ready, waiting))| EndpointSubset {
            addresses: Some(ready).filter(|list| !list.is_empty()),
            not_ready_addresses: Some(waiting).filter(|list| !list.is_empty()),
            ports: Some(ports.into_iter().map(port).collect::<Vec<_>>()).filter(|list| !list.is_empty()),
        })
        .collect()
}

fn port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name).filter(|name| !name.is_empty()),
        port: port.port,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::super::select::backends;
    use super::super::select::testing::{pod, service};
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_and_waiting_pods_stand_apart_and_a_second_look_changes_nothing() {
        let service = service(json!([{"name": "http", "port": 80, "targetPort": "http"}]));
        let found = backends(&service, &[pod("a", "10.0.0.1", true), pod("b", "10.0.0.2", false)]);
        let made = plan(&service, &found, None).expect("must be made");
        let subsets = made.subsets.clone().expect("subsets");
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().expect("ready")[0].ip, "10.0.0.1");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().expect("waiting")[0].ip, "10.0.0.2");
        assert_eq!(subsets[0].ports.as_ref().expect("ports")[0].port, 8080);
        assert_eq!(plan(&service, &found, Some(&made)), None);
    }

    #[test]
    fn without_backends_there_is_an_object_without_subsets() {
        let service = service(json!([{"port": 80}]));
        assert_eq!(plan(&service, &[], None).expect("made").subsets, None);
    }

    #[test]
    fn too_many_backends_are_cut_and_marked() {
        let service = service(json!([{"port": 80}]));
        let pods: Vec<_> =
            (0..1100).map(|i| pod(&format!("p{i}"), &format!("10.1.{}.{}", i / 250, i % 250 + 1), true)).collect();
        let made = plan(&service, &backends(&service, &pods), None).expect("made");
        assert_eq!(made.subsets.expect("subsets")[0].addresses.as_ref().map(Vec::len), Some(1000));
        assert_eq!(made.metadata.annotations.expect("marked")[OVER_CAPACITY], "truncated");
    }
}
