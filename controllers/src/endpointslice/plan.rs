//! The EndpointSlices a Service should have, changing as few of the existing ones as possible. Pure.
//!
//! Always holds: a backend is in one slice per list of ports and address family; a slice holds at most
//! [`limits::SLICE_ENDPOINTS`]; slices that are right are not touched.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::endpoints::select::{Backend, Port};
use crate::limits;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What must be done, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    /// Names of slices with nothing left in them.
    pub delete: Vec<String>,
}

/// What leads from the slices `old`, all of this controller and Service, to the right ones.
pub fn plan(service: &Service, backends: &[Backend], old: &[EndpointSlice]) -> Plan {
    let mut plan = Plan::default();
    let mut unused: Vec<&EndpointSlice> = old.iter().collect();
    let mut groups: BTreeMap<(&'static str, Vec<Port>), Vec<Endpoint>> = BTreeMap::new();
    for backend in backends {
        let family = if backend.address.is_ipv4() { "IPv4" } else { "IPv6" };
        groups.entry((family, backend.ports.clone())).or_default().push(endpoint(backend));
    }
    for ((family, ports), endpoints) in groups {
        let (own, others) = unused.into_iter().partition(|slice| fits(slice, family, &ports));
        unused = others;
        place(service, family, &ports, endpoints, own, &mut plan);
    }
    plan.delete.extend(unused.into_iter().filter_map(|slice| slice.metadata.name.clone()));
    plan
}

/// Distributes the endpoints of one group: each stays where it is, new ones fill slices that change anyway, then new slices.
fn place(
    service: &Service,
    family: &str,
    ports: &[Port],
    endpoints: Vec<Endpoint>,
    old: Vec<&EndpointSlice>,
    plan: &mut Plan,
) {
    let mut wanted: BTreeMap<String, Endpoint> =
        endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    let mut kept: Vec<(&EndpointSlice, Vec<Endpoint>)> = Vec::new();
    for slice in old {
        let mut seen = BTreeSet::new();
        let stay = endpoints_of(slice).iter().map(identity).filter(|id| seen.insert(id.clone()));
        let stay: Vec<Endpoint> = stay.filter_map(|id| wanted.remove(&id)).collect();
        kept.push((slice, stay));
    }
    let mut new: Vec<Endpoint> = wanted.into_values().collect();
    // Fill what changes anyway first, then what has room, so that few objects are written.
    kept.sort_by_key(|(slice, stay)| *stay == endpoints_of(slice));
    for (slice, stay) in &mut kept {
        let changed = *stay != endpoints_of(slice);
        let room = limits::SLICE_ENDPOINTS.saturating_sub(stay.len());
        if !new.is_empty() && room > 0 && (changed || new.len() <= room) {
            stay.extend(new.drain(..room.min(new.len())));
        }
    }
    for (slice, endpoints) in kept {
        if endpoints.is_empty() {
            plan.delete.extend(slice.metadata.name.clone());
        } else if endpoints != endpoints_of(slice)
            || labels(service) != slice.metadata.labels.clone().unwrap_or_default()
        {
            let mut slice = slice.clone();
            slice.endpoints = Some(endpoints);
            slice.metadata.labels = Some(labels(service));
            plan.update.push(slice);
        }
    }
    for chunk in new.chunks(limits::SLICE_ENDPOINTS) {
        plan.create.push(EndpointSlice {
            metadata: metadata(service),
            address_type: family.to_owned(),
            endpoints: Some(chunk.to_vec()),
            ports: Some(ports.iter().map(port).collect()),
        });
    }
}

fn fits(slice: &EndpointSlice, family: &str, ports: &[Port]) -> bool {
    slice.address_type == family
        && slice.ports.as_deref().unwrap_or_default().iter().map(ported).eq(ports.iter().cloned())
}

fn endpoints_of(slice: &EndpointSlice) -> &[Endpoint] {
    slice.endpoints.as_deref().unwrap_or_default()
}

fn ported(port: &EndpointPort) -> Port {
    Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        port: port.port.unwrap_or(0),
        app_protocol: port.app_protocol.clone(),
    }
}

fn port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint(backend: &Backend) -> Endpoint {
    Endpoint {
        addresses: vec![backend.address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name: backend.node.clone(),
        target_ref: Some(backend.target.clone()),
        ..Endpoint::default()
    }
}

/// What makes an endpoint the same one over changes of its conditions.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{}/{uid}", endpoint.addresses.join(","))
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn metadata(service: &Service) -> ObjectMeta {
    let name = service.metadata.name.clone().unwrap_or_default();
    ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels(service)),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Service".to_owned(),
            name,
            uid: service.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::select::backends;
    use crate::endpoints::select::testing::{pod, service};
    use serde_json::json;

    fn named(mut plan: Plan) -> Vec<EndpointSlice> {
        for (index, slice) in plan.create.iter_mut().enumerate() {
            slice.metadata.name = Some(format!("web-{index}"));
        }
        plan.create
    }

    #[test]
    fn right_slices_are_left_alone() {
        let service = service(json!([{"name": "http", "port": 80, "targetPort": "http"}]));
        let found = backends(&service, &[pod("a", "10.0.0.1", true), pod("b", "10.0.0.2", false)]);
        let slices = named(plan(&service, &found, &[]));
        assert_eq!(slices.len(), 1);
        assert_eq!(endpoints_of(&slices[0]).len(), 2);
        assert_eq!(plan(&service, &found, &slices), Plan::default());
    }

    #[test]
    fn a_pod_that_became_ready_changes_its_slice_only() {
        let service = service(json!([{"name": "http", "port": 80}]));
        let pods: Vec<_> = (0..150).map(|i| pod(&format!("p{i}"), &format!("10.0.0.{}", i + 1), true)).collect();
        let slices = named(plan(&service, &backends(&service, &pods), &[]));
        assert_eq!(slices.iter().map(|slice| endpoints_of(slice).len()).collect::<Vec<_>>(), [100, 50]);
        let mut pods = pods;
        pods[3] = pod("p3", "10.0.0.4", false);
        let change = plan(&service, &backends(&service, &pods), &slices);
        assert_eq!((change.create.len(), change.update.len(), change.delete.len()), (0, 1, 0));
    }

    #[test]
    fn an_empty_slice_is_deleted_and_its_name_told() {
        let service = service(json!([{"name": "http", "port": 80}]));
        let slices = named(plan(&service, &backends(&service, &[pod("a", "10.0.0.1", true)]), &[]));
        let change = plan(&service, &[], &slices);
        assert_eq!(change.delete, ["web-0"]);
    }
}
