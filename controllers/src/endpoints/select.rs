//! Which pods are behind a Service, at which addresses and ports. Pure; Endpoints and EndpointSlices both start here.
//!
//! Always holds: the result is ordered by address and then pod name, so equal states give equal objects.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// One pod behind a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub address: IpAddr,
    pub node: Option<String>,
    pub hostname: Option<String>,
    pub target: ObjectReference,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// The Service's ports as this pod serves them; a named target port the pod does not have is left out.
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    pub protocol: String,
    pub port: i32,
    pub app_protocol: Option<String>,
}

/// The pods of `pods` behind `service`, which must be of its namespace and match its selector.
pub fn backends<'a>(service: &Service, pods: impl IntoIterator<Item = &'a Pod>) -> Vec<Backend> {
    let mut list: Vec<Backend> = pods.into_iter().filter_map(|pod| backend(service, pod)).collect();
    list.sort_by(|a, b| (a.address, &a.target.name).cmp(&(b.address, &b.target.name)));
    list
}

/// True if the selector of `service` is not empty and `pod` carries all of its labels.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else { return false };
    let labels = pod.metadata.labels.as_ref();
    !selector.is_empty()
        && selector.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
}

fn backend(service: &Service, pod: &Pod) -> Option<Backend> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let address: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = is_ready(pod);
    let service_spec = service.spec.as_ref()?;
    let publish = service_spec.publish_not_ready_addresses == Some(true);
    let ports = service_spec.ports.iter().flatten().filter_map(|port| resolve(port, pod)).collect();
    let in_service = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    Some(Backend {
        address,
        node: spec.node_name.clone(),
        hostname: spec.hostname.clone().filter(|_| in_service),
        target: ObjectReference {
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        },
        ready: publish || (serving && !terminating),
        serving,
        terminating,
        ports,
    })
}

/// The pod's Ready condition.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named(pod, name, &protocol)?,
    };
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol,
        port: number,
        app_protocol: port.app_protocol.clone(),
    })
}

/// The container port called `name`: of app containers and restartable init containers.
fn named(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|port| port.container_port)
}

#[cfg(test)]
pub mod testing {
    use k8s_openapi::api::core::v1::{Pod, Service};
    use serde_json::json;

    pub fn service(ports: serde_json::Value) -> Service {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "default", "uid": "s", "labels": {"app": "web"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": ports}}))
        .expect("service")
    }

    pub fn pod(name: &str, ip: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "w1", "containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
        .expect("pod")
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{pod, service};
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(service: &Service, pods: &[Pod], want: &str) {
        let show = |backend: &Backend| {
            let ports: Vec<String> = backend.ports.iter().map(|port| port.port.to_string()).collect();
            let state = if backend.ready { "ready" } else { "not-ready" };
            format!("{}:{} {state}", backend.address, ports.join(","))
        };
        assert_eq!(backends(service, pods).iter().map(show).collect::<Vec<_>>().join("; "), want);
    }

    #[test]
    fn backends_are_ordered_and_named_ports_resolved() {
        let service = service(json!([{"port": 80, "targetPort": "http"}, {"name": "b", "port": 81}]));
        let pods = [pod("b", "10.0.0.2", true), pod("a", "10.0.0.1", false)];
        check(&service, &pods, "10.0.0.1:8080,81 not-ready; 10.0.0.2:8080,81 ready");
    }

    #[test]
    fn finished_and_addressless_pods_are_no_backends() {
        let service = service(json!([{"port": 80}]));
        let mut done = pod("a", "10.0.0.1", true);
        done.status.as_mut().expect("status").phase = Some("Succeeded".to_owned());
        let mut young = pod("b", "10.0.0.2", true);
        young.status.as_mut().expect("status").pod_ip = None;
        check(&service, &[done, young], "");
    }

    #[test]
    fn a_terminating_pod_serves_but_is_not_ready() {
        let service = service(json!([{"port": 80}]));
        let mut leaving = pod("a", "10.0.0.1", true);
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("time");
        let backend = backends(&service, [&leaving]).remove(0);
        assert!((!backend.ready, backend.serving, backend.terminating) == (true, true, true));
    }

    #[test]
    fn an_empty_selector_selects_nothing() {
        let mut service = service(json!([]));
        assert!(selects(&service, &pod("a", "10.0.0.1", true)));
        service.spec.as_mut().expect("spec").selector = Some([].into());
        assert!(!selects(&service, &pod("a", "10.0.0.1", true)));
    }
}
