//! Amounts of resources: what pods request and nodes have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use pintle_api::quantity::Quantity;

use crate::limits;

/// CPU in thousandths, everything else in units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Pods a node may run; not used for requests.
    pub pods: i64,
    /// Extended and huge-page resources.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a resource list; amounts that are no quantity count as nothing, as validation refuses them.
    pub fn read(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut resources = Self::default();
        for (name, text) in list.into_iter().flatten() {
            let quantity: Quantity = text.0.parse().unwrap_or_default();
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.milli(),
                "memory" => resources.memory = quantity.units(),
                "ephemeral-storage" => resources.ephemeral_storage = quantity.units(),
                "pods" => resources.pods = quantity.units(),
                other => drop(resources.others.insert(other.to_owned(), quantity.units())),
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self) {
        self.change(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.change(other, i64::saturating_sub);
    }

    /// Raises each amount to at least that of `other`.
    pub fn raise(&mut self, other: &Self) {
        self.change(other, i64::max);
    }

    fn change(&mut self, other: &Self, change: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = change(self.milli_cpu, other.milli_cpu);
        self.memory = change(self.memory, other.memory);
        self.ephemeral_storage = change(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.others {
            let own = self.others.entry(name.clone()).or_default();
            *own = change(*own, *amount);
        }
    }

    /// Puts the amounts that `list` names in place of the present ones.
    fn replace(&mut self, list: Option<&BTreeMap<String, Text>>) {
        let given = Self::read(list);
        for name in list.into_iter().flatten().map(|(name, _)| name.as_str()) {
            match name {
                "cpu" => self.milli_cpu = given.milli_cpu,
                "memory" => self.memory = given.memory,
                "ephemeral-storage" => self.ephemeral_storage = given.ephemeral_storage,
                other => drop(self.others.insert(other.to_owned(), given.others.get(other).copied().unwrap_or(0))),
            }
        }
    }
}

/// What a pod requests: the containers together, or more if a start-up step needs more; with sidecars and overhead.
pub fn requests(spec: &PodSpec) -> Resources {
    let mut total = sum(spec, requested);
    if let Some(pod_level) = &spec.resources {
        total.replace(pod_level.requests.as_ref());
    }
    total.add(&Resources::read(spec.overhead.as_ref()));
    total
}

/// As [`requests`], with a minimum per container, so that pods without requests do not look free when nodes are compared.
pub fn estimated_requests(spec: &PodSpec) -> (i64, i64) {
    let mut total = sum(spec, |container| {
        let list = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let mut resources = Resources::read(list);
        let names = |name: &str| list.is_some_and(|list| list.contains_key(name));
        if !names("cpu") {
            resources.milli_cpu = limits::DEFAULT_MILLI_CPU;
        }
        if !names("memory") {
            resources.memory = limits::DEFAULT_MEMORY;
        }
        resources
    });
    if let Some(pod_level) = &spec.resources {
        total.replace(pod_level.requests.as_ref());
    }
    total.add(&Resources::read(spec.overhead.as_ref()));
    (total.milli_cpu, total.memory)
}

fn requested(container: &Container) -> Resources {
    Resources::read(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

/// Init containers run one after the other, each beside the sidecars started before it; then all containers at once.
fn sum(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let (mut sidecars, mut highest) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let mut now = of(container);
        now.add(&sidecars);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = now.clone();
        }
        highest.raise(&now);
    }
    let mut running = sidecars;
    for container in &spec.containers {
        running.add(&of(container));
    }
    running.raise(&highest);
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn container(cpu: &str, sidecar: bool) -> Value {
        let mut value = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        if sidecar {
            value["restartPolicy"] = json!("Always");
        }
        value
    }

    #[track_caller]
    fn check(init: &[Value], containers: &[Value], extra: Value, milli: i64) {
        let mut spec = json!({"initContainers": init, "containers": containers});
        for (key, value) in extra.as_object().expect("object") {
            spec[key] = value.clone();
        }
        let spec: PodSpec = serde_json::from_value(spec).expect("spec");
        assert_eq!(requests(&spec).milli_cpu, milli);
    }

    #[test]
    fn start_up_steps_sidecars_and_overhead_count_as_they_run() {
        let (a, b) = (container("100m", false), container("200m", false));
        check(&[], &[a.clone(), b.clone()], json!({}), 300);
        check(&[container("1", false)], std::slice::from_ref(&a), json!({}), 1000);
        check(&[container("50m", true), container("1", false)], std::slice::from_ref(&a), json!({}), 1050);
        check(&[container("1", false), container("50m", true)], std::slice::from_ref(&a), json!({}), 1000);
        check(&[container("50m", true)], &[a.clone(), b], json!({}), 350);
        check(&[], std::slice::from_ref(&a), json!({"overhead": {"cpu": "10m"}}), 110);
        check(&[], &[a], json!({"resources": {"requests": {"cpu": "2"}}}), 2000);
    }

    #[test]
    fn containers_without_requests_are_estimated() {
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [{"name": "a"}, {"name": "b"}]})).expect("spec");
        assert_eq!(estimated_requests(&spec), (200, 400 * 1024 * 1024));
        assert_eq!(requests(&spec), Resources::default());
    }
}
