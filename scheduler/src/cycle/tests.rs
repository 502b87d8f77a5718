//! Scheduling cycles as scripts: nodes and pods as JSON fragments, placements and messages as text.

mod preemption;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use pintle_base::clock;
use pintle_client::LabelQuery;
use serde_json::{Value, json};

use super::*;
use crate::plugins::{Budgets, SpreadDefaults};
use crate::state::Cache;

struct Cluster {
    cache: Cache,
    snapshot: Snapshot,
    cycle: Cycle,
    profile: Profile,
    pods: usize,
}

impl Cluster {
    fn new() -> Self {
        rng::seed(1);
        Self::with_defaults(SpreadDefaults::none())
    }

    fn with_defaults(defaults: SpreadDefaults) -> Self {
        Self::with(defaults, Budgets::none())
    }

    fn with(defaults: SpreadDefaults, budgets: Budgets) -> Self {
        let profile = Profile::standard("default-scheduler", defaults, budgets);
        Self { cache: Cache::default(), snapshot: Snapshot::default(), cycle: Cycle::new(None), profile, pods: 0 }
    }

    /// Adds a node with 4 CPUs, 8 GiB and 10 pods, changed by `extra` (JSON pointers).
    fn node(&mut self, name: &str, extra: Value) -> &mut Self {
        let mut value = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
        });
        merge(&mut value, &extra);
        let node: Node = serde_json::from_value(value).expect("node");
        self.cache.set_node(&node);
        self
    }

    fn info(&mut self, spec: Value) -> Arc<PodInfo> {
        self.pods += 1;
        let name = format!("pod-{}", self.pods);
        let mut value = json!({"metadata": {"name": name, "uid": name, "namespace": "ns", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "a"}]}});
        merge(&mut value, &spec);
        let pod: Pod = serde_json::from_value(value).expect("pod");
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    /// Puts a pod on a node.
    fn on(&mut self, node: &str, spec: Value) -> &mut Self {
        let pod = self.info(spec);
        self.cache.assume(&pod, node);
        self
    }

    /// Schedules a pod and leaves it there.
    fn place(&mut self, spec: Value) -> String {
        let pod = self.info(spec);
        self.cache.refresh(&mut self.snapshot);
        match self.cycle.schedule(&self.profile, &self.snapshot, &pod, &mut CycleState::default()) {
            Ok(placement) => {
                self.cache.assume(&pod, &placement.node);
                placement.node
            }
            Err(misfit) => Misfit { attempt: None, ..*misfit }.to_string(),
        }
    }
}

fn merge(base: &mut Value, extra: &Value) {
    match (base, extra) {
        (Value::Object(base), Value::Object(extra)) => {
            extra.iter().for_each(|(key, value)| merge(base.entry(key).or_insert(Value::Null), value));
        }
        (base, extra) => *base = extra.clone(),
    }
}

fn requests(cpu: &str, memory: &str) -> Value {
    json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})
}

fn zone(zone: &str) -> Value {
    json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}})
}

#[test]
fn without_nodes_nothing_can_be_scheduled() {
    assert_eq!(Cluster::new().place(json!({})), "no nodes available to schedule pods");
}

#[test]
fn resources_must_fit_and_the_message_counts_nodes_per_reason() {
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).node("b", json!({"status": {"allocatable": {"memory": "1Gi"}}}));
    assert_eq!(cluster.place(requests("1", "2Gi")), "a");
    assert_eq!(
        cluster.place(requests("5", "2Gi")),
        "0/2 nodes are available: 1 Insufficient memory, 2 Insufficient cpu."
    );
    assert_eq!(cluster.place(requests("4", "1Mi")), "b");
}

#[test]
fn a_node_takes_only_so_many_pods() {
    let mut cluster = Cluster::new();
    cluster.node("a", json!({"status": {"allocatable": {"pods": "1"}}}));
    assert_eq!(cluster.place(json!({})), "a");
    assert_eq!(cluster.place(json!({})), "0/1 nodes are available: 1 Too many pods.");
}

#[test]
fn extended_resources_count_too() {
    let mut cluster = Cluster::new();
    cluster.node("a", json!({"status": {"allocatable": {"example.com/gpu": "1"}}})).node("b", json!({}));
    assert_eq!(cluster.place(requests_of("example.com/gpu")), "a");
    assert_eq!(
        cluster.place(requests_of("example.com/gpu")),
        "0/2 nodes are available: 2 Insufficient example.com/gpu."
    );
}

fn requests_of(resource: &str) -> Value {
    json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {resource: "1"}}}]}})
}

#[test]
fn taints_and_cordons_keep_pods_away_that_do_not_tolerate_them() {
    let taint = json!({"spec": {"taints": [{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]}});
    let mut cluster = Cluster::new();
    cluster.node("a", taint).node("b", json!({"spec": {"unschedulable": true}}));
    assert_eq!(
        cluster.place(json!({})),
        "0/2 nodes are available: 1 node(s) had untolerated taint {dedicated: db}, 1 node(s) were unschedulable."
    );
    let tolerations = json!({"spec": {"tolerations": [{"key": "dedicated", "operator": "Exists"}]}});
    assert_eq!(cluster.place(tolerations), "a");
}

#[test]
fn soft_taints_make_a_node_the_second_choice() {
    let taint = json!({"spec": {"taints": [{"key": "slow", "effect": "PreferNoSchedule"}]}});
    let mut cluster = Cluster::new();
    cluster.node("a", taint).node("b", json!({}));
    assert_eq!(cluster.place(json!({})), "b");
}

#[test]
fn selectors_and_affinity_choose_nodes() {
    let mut cluster = Cluster::new();
    cluster.node("a", json!({"metadata": {"labels": {"disk": "ssd"}}})).node("b", json!({}));
    assert_eq!(cluster.place(json!({"spec": {"nodeSelector": {"disk": "ssd"}}})), "a");
    assert_eq!(
        cluster.place(json!({"spec": {"nodeSelector": {"disk": "tape"}}})),
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
    );
    let prefer =
        json!([{"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]}}]);
    let prefer =
        json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": prefer}}}});
    assert_eq!(cluster.place(prefer), "b");
    let named =
        json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]});
    let named =
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": named}}}});
    assert_eq!(cluster.place(named), "b");
}

#[test]
fn a_host_port_is_taken_once_per_node_and_address() {
    let port = |address: &str| json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": address}]}]}});
    let mut cluster = Cluster::new();
    cluster.node("a", json!({}));
    assert_eq!(cluster.place(port("10.0.0.1")), "a");
    assert_eq!(cluster.place(port("10.0.0.2")), "a");
    assert_eq!(
        cluster.place(port("")),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    );
}

#[test]
fn the_emptier_node_is_better() {
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).node("b", json!({})).on("a", requests("2", "4Gi"));
    assert_eq!(cluster.place(requests("1", "1Gi")), "b");
}

#[test]
fn an_image_that_is_there_draws_pods() {
    let image = json!({"status": {"images": [{"names": ["big:1"], "sizeBytes": 900 * 1024 * 1024}]}});
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).node("b", image).node("c", json!({}));
    assert_eq!(cluster.place(json!({"spec": {"containers": [{"name": "a", "image": "big:1"}]}})), "b");
}

#[test]
fn required_spread_keeps_domains_even() {
    let constraint = |min_domains: Option<i32>| {
        json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "minDomains": min_domains,
        "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}}]}})
    };
    let mut cluster = Cluster::new();
    cluster.node("a", zone("a")).node("b", zone("b")).node("c", json!({}));
    let (first, second) = (cluster.place(constraint(None)), cluster.place(constraint(None)));
    assert_eq!(BTreeSet::from([first.as_str(), second.as_str()]), BTreeSet::from(["a", "b"]));
    cluster.on("a", json!({}));
    assert_eq!(cluster.place(constraint(None)), "b");
    assert_eq!(
        cluster.place(constraint(Some(3))),
        "0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
         2 node(s) didn't match pod topology spread constraints."
    );
}

#[test]
fn pods_of_one_service_are_spread_by_default() {
    let labels = [("app".to_owned(), "web".to_owned())].into();
    let defaults = SpreadDefaults::new(move |_| Some(LabelQuery::equal_to(&labels)));
    let mut cluster = Cluster::with_defaults(defaults);
    for name in ["a", "b", "c", "d"] {
        cluster.node(name, json!({}));
    }
    let placed: BTreeSet<String> = (0..4).map(|_| cluster.place(json!({}))).collect();
    assert_eq!(placed.len(), 4);
}

#[test]
fn avoidance_works_both_ways_and_attraction_follows() {
    let term = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let avoid =
        json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    let follow =
        json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).node("b", json!({}));
    let first = cluster.place(follow.clone());
    assert_eq!(cluster.place(follow), first);
    let other = if first == "a" { "b" } else { "a" };
    assert_eq!(cluster.place(avoid.clone()), other);
    assert_eq!(cluster.place(avoid), "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.");
    assert_eq!(cluster.place(json!({})), first, "the pod on the other node avoids it");
}

#[test]
fn large_clusters_are_sampled_and_every_node_gets_its_turn() {
    let cycle = Cycle::new(None);
    assert_eq!([10, 99, 100, 500, 5000, 20000].map(|nodes| cycle.wanted(nodes)), [10, 99, 100, 230, 500, 1000]);
    let mut cluster = Cluster::new();
    for at in 0..300 {
        cluster.node(&format!("n{at:03}"), json!({"status": {"allocatable": {"pods": "1"}}}));
    }
    let placed: BTreeSet<String> = (0..300).map(|_| cluster.place(json!({}))).collect();
    assert_eq!(placed.len(), 300);
}

/// Speed of the pure part, with default spreading, on the scale of the project's goal.
#[test]
fn five_hundred_nodes_take_five_thousand_pods_quickly() {
    let labels = [("app".to_owned(), "web".to_owned())].into();
    let mut cluster = Cluster::with_defaults(SpreadDefaults::new(move |_| Some(LabelQuery::equal_to(&labels))));
    for at in 0..500 {
        cluster.node(
            &format!("n{at:03}"),
            json!({"status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "110"}}}),
        );
    }
    let started = clock::now();
    for _ in 0..5000 {
        assert!(cluster.place(requests("100m", "64Mi")).starts_with('n'));
    }
    let rate = 5000.0 / started.elapsed().as_secs_f64();
    println!("{rate:.0} pods/s");
    assert!(rate > 300.0, "{rate:.0} pods/s");
}
