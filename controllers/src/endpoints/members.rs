//! Which pods belong to which Services, found by labels, so that neither a pod nor a Service costs a look at all others.
//!
//! A pod is listed under each of its labels, a Service under one of its selector (the first): whoever matches must share it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use pintle_client::reflector::Reflected;
use pintle_client::{Index, Key, ObjectEvent, SharedReflector};

use super::select;
use crate::limits;
use crate::runtime::{Context, Intake};

/// Cheap to clone; clones share the indexes.
#[derive(Clone)]
pub struct Members {
    pods: SharedReflector<Pod>,
    by_label: Index<Pod>,
    services: Index<Service>,
}

impl Members {
    pub fn new(context: &Context) -> Self {
        Self::over(context.reflectors.of(), &context.reflectors.of())
    }

    pub fn over(pods: SharedReflector<Pod>, services: &SharedReflector<Service>) -> Self {
        let by_label = Index::new(&pods, |pod: &Pod| labels(pod));
        Self { pods, by_label, services: Index::new(services, anchor) }
    }

    /// The keys of the Services that select `pod`.
    pub fn services_of(&self, pod: &Pod) -> Vec<Key> {
        let near = labels(pod).into_iter().flat_map(|label| self.services.get(&label));
        near.filter(|service| select::selects(service, pod)).map(|service| Key::of(&service.metadata)).collect()
    }

    /// The pods that `service` selects, in order.
    pub fn pods_of(&self, service: &Service) -> Vec<Arc<Pod>> {
        let mut pods = anchor(service).map(|label| self.by_label.get(&label)).unwrap_or_default();
        pods.retain(|pod| select::selects(service, pod));
        pods
    }

    /// From now on, asks for a reconcile of the Services that a change of a pod concerns.
    ///
    /// The more pods a Service may have, the more of their changes are taken together: what is done for one change then stays
    /// the same however large the Service is.
    pub fn watch(&self, intake: &Intake, services: &SharedReflector<Service>) {
        let (members, services, intake) = (self.clone(), services.clone(), intake.clone());
        self.pods.on_event(move |event| {
            let mut keys = match event {
                ObjectEvent::Updated { old, new } if !concerns(old, new) => return,
                ObjectEvent::Updated { old, .. } => members.services_of(old),
                ObjectEvent::Added(_) | ObjectEvent::Deleted(_) => Vec::new(),
            };
            keys.extend(members.services_of(event.object()));
            keys.sort();
            keys.dedup();
            for key in keys {
                let label = services.get(&key).and_then(|service| anchor(&service));
                let size = label.map_or(0, |label| members.by_label.count(&label));
                intake.add_after(key, pause(size));
            }
        });
    }
}

/// How long changes of a Service with `size` pods are collected.
fn pause(size: usize) -> Duration {
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    limits::ENDPOINTS_PAUSE.saturating_mul(size).min(limits::ENDPOINTS_PAUSE_MAX)
}

/// True if the change of a pod may change what is behind a Service.
fn concerns(old: &Pod, new: &Pod) -> bool {
    let spec = |pod: &Pod| pod.spec.as_ref().map(|s| (s.node_name.clone(), s.hostname.clone(), s.subdomain.clone()));
    let status = |pod: &Pod| pod.status.as_ref().map(|s| (s.pod_ip.clone(), s.pod_ips.clone()));
    let state = |pod: &Pod| (crate::runtime::pods::is_finished(pod), select::is_ready(pod));
    let meta = |pod: &Pod| (pod.metadata.labels.clone(), pod.metadata.deletion_timestamp.is_some());
    (state(old), meta(old)) != (state(new), meta(new)) || spec(old) != spec(new) || status(old) != status(new)
}

/// A slash cannot be part of a namespace and an equals sign not of a label's key, so two labels never look the same.
fn label<K: Reflected>(object: &K, key: &str, value: &str) -> String {
    format!("{}/{key}={value}", object.meta().namespace.as_deref().unwrap_or_default())
}

fn labels(pod: &Pod) -> Vec<String> {
    pod.metadata.labels.iter().flatten().map(|(key, value)| label(pod, key, value)).collect()
}

/// The label under which a Service is listed; none if it selects nothing.
fn anchor(service: &Service) -> Option<String> {
    let (key, value) = service.spec.as_ref()?.selector.as_ref()?.first_key_value()?;
    Some(label(service, key, value))
}

#[cfg(test)]
mod tests {
    use super::super::select::testing::{pod, service};
    use super::*;
    use serde_json::json;

    fn service_with(name: &str, selector: serde_json::Value) -> Service {
        let mut service = service(json!([{"port": 80}]));
        service.metadata.name = Some(name.to_owned());
        service.spec.as_mut().expect("spec").selector = serde_json::from_value(selector).expect("selector");
        service
    }

    fn pod_with(name: &str, labels: serde_json::Value) -> Pod {
        let mut pod = pod(name, "10.0.0.1", true);
        pod.metadata.labels = serde_json::from_value(labels).expect("labels");
        pod
    }

    #[test]
    fn pods_and_services_find_each_other_by_all_labels_of_the_selector() {
        let (pods, services) = (SharedReflector::detached(), SharedReflector::detached());
        let members = Members::over(pods.clone(), &services);
        let (one, both) = (json!({"app": "web"}), json!({"app": "web", "tier": "front"}));
        for (name, selector) in [("wide", one.clone()), ("narrow", both.clone()), ("none", json!({}))] {
            services.apply(service_with(name, selector));
        }
        pods.apply(pod_with("a", both));
        pods.apply(pod_with("b", one));
        pods.apply(pod_with("c", json!({"app": "db"})));
        let of = |name: &str| {
            let service = services.get(&Key::new("default", name)).expect("service");
            members.pods_of(&service).iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>().join(",")
        };
        assert_eq!(["wide", "narrow", "none"].map(of), ["a,b", "a", ""]);
        let to = |name: &str| {
            let pod = pods.get(&Key::new("default", name)).expect("pod");
            members.services_of(&pod).iter().map(|key| key.name.clone()).collect::<Vec<_>>().join(",")
        };
        assert_eq!(["a", "b", "c"].map(to), ["narrow,wide", "wide", ""]);
    }

    #[test]
    fn only_changes_that_show_behind_a_service_concern_it() {
        let old = pod("a", "10.0.0.1", true);
        let mut restarted = old.clone();
        restarted.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
        restarted.status.as_mut().expect("status").start_time = Some(pintle_client::object::time_now());
        assert!(!concerns(&old, &restarted));
        assert!(concerns(&old, &pod("a", "10.0.0.1", false)));
        assert!(concerns(&old, &pod("a", "10.0.0.2", true)));
        assert!(concerns(&old, &pod_with("a", json!({"app": "other"}))));
    }

    #[test]
    fn changes_of_large_services_are_taken_together() {
        let millis = [0, 10, 1000, 1_000_000].map(|size| pause(size).as_millis());
        assert_eq!(millis, [0, 1, 100, 500]);
    }
}
