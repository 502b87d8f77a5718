//! Who has to go for whom.

use super::*;
use crate::plugins::Budget;

/// A pod called `name` with `cpu` and `priority`, changed by `extra`.
fn pod(name: &str, cpu: &str, priority: i32, extra: Value) -> Value {
    let mut value = requests(cpu, "1Mi");
    merge(&mut value, &json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority}}));
    merge(&mut value, &extra);
    value
}

/// Protects pods with label `safe`.
fn protected() -> Budgets {
    Budgets::new(|_| {
        let selector = LabelQuery::equal_to(&[("safe".to_owned(), "yes".to_owned())].into());
        vec![Budget { selector, allowed: 0, disrupted: BTreeSet::from(["counted".to_owned()]) }]
    })
}

fn safe() -> Value {
    json!({"metadata": {"labels": {"safe": "yes"}}})
}

fn since(second: u8) -> Value {
    json!({"status": {"startTime": format!("2026-01-01T00:00:{second:02}Z")}})
}

impl Cluster {
    /// Tries to schedule a pod: `node` if it fits, `node < victims` if others must go, else what is said about it.
    fn attempt(&mut self, spec: Value) -> String {
        let pod = self.info(spec);
        self.cache.refresh(&mut self.snapshot);
        match self.cycle.schedule(&self.profile, &self.snapshot, &pod, &mut CycleState::default()) {
            Ok(placement) => placement.node,
            Err(misfit) => match &misfit.preemption {
                Some(found) => {
                    let victims: Vec<&str> = found.victims.iter().map(|victim| victim.key.name.as_str()).collect();
                    format!("{} < {}", found.node, victims.join(","))
                }
                None => misfit.attempt.clone().unwrap_or_default(),
            },
        }
    }
}

#[test]
fn only_the_least_important_pods_go_and_only_as_many_as_needed() {
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).on("a", pod("one", "2", 1, json!({}))).on("a", pod("zero", "2", 0, json!({})));
    assert_eq!(cluster.attempt(pod("p", "2", 5, json!({}))), "a < zero");
    assert_eq!(cluster.attempt(pod("p", "3", 5, json!({}))), "a < one,zero");
    assert_eq!(cluster.attempt(pod("p", "2", 1, json!({}))), "a < zero");
    assert_eq!(
        cluster.attempt(pod("p", "3", 1, json!({}))),
        "preemption: 0/1 nodes are available: 1 Insufficient cpu.",
        "equals are not preempted"
    );
}

#[test]
fn it_is_told_why_nobody_can_go() {
    let mut cluster = Cluster::new();
    let taint = json!({"spec": {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}});
    cluster.node("a", json!({})).node("b", taint).on("a", pod("high", "4", 9, json!({})));
    assert_eq!(
        cluster.attempt(pod("p", "1", 5, json!({}))),
        "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, \
         1 Preemption is not helpful for scheduling."
    );
    cluster.on("a", pod("low", "0", 0, json!({})));
    let never = json!({"spec": {"preemptionPolicy": "Never"}});
    assert_eq!(cluster.attempt(pod("p", "1", 5, never)), "preemption: not eligible due to preemptionPolicy=Never.");
}

#[test]
fn the_node_that_loses_least_is_chosen() {
    type Pods = Vec<(&'static str, &'static str, i32, Value)>;
    let one = |name, priority, extra| -> Pods { vec![(name, "4", priority, extra)] };
    let two = |names: [&'static str; 2], priorities: [i32; 2]| -> Pods {
        vec![(names[0], "2", priorities[0], json!({})), (names[1], "2", priorities[1], json!({}))]
    };
    let cases: Vec<(&str, Pods, Pods, &str)> = vec![
        ("budgets before priorities", one("x", 1, safe()), one("y", 3, json!({})), "b < y"),
        ("the most important victim", one("x", 3, json!({})), one("y", 1, json!({})), "b < y"),
        ("the sum of priorities", two(["x1", "x2"], [3, 2]), two(["y1", "y2"], [3, 1]), "b < y1,y2"),
        ("the number of victims", two(["x1", "x2"], [-1, -1]), one("y", -1, json!({})), "b < y"),
        ("who runs longest stays", one("x", 1, since(5)), one("y", 1, since(9)), "b < y"),
    ];
    for (what, on_a, on_b, want) in cases {
        let mut cluster = Cluster::with(SpreadDefaults::none(), protected());
        cluster.node("a", json!({})).node("b", json!({}));
        for (node, pods) in [("a", on_a), ("b", on_b)] {
            for (name, cpu, priority, extra) in pods {
                cluster.on(node, pod(name, cpu, priority, extra));
            }
        }
        assert_eq!(cluster.attempt(pod("p", "4", 5, json!({}))), want, "{what}");
    }
}

#[test]
fn on_one_node_pods_without_budget_go_first_and_counted_ones_cost_nothing() {
    let mut cluster = Cluster::with(SpreadDefaults::none(), protected());
    cluster.node("a", json!({})).on("a", pod("guarded", "2", 0, safe())).on("a", pod("bare", "2", 3, json!({})));
    assert_eq!(cluster.attempt(pod("p", "2", 5, json!({}))), "a < bare");
    assert_eq!(cluster.attempt(pod("p", "4", 5, json!({}))), "a < bare,guarded");
    let mut cluster = Cluster::with(SpreadDefaults::none(), protected());
    cluster.node("a", json!({})).on("a", pod("counted", "2", 0, safe())).on("a", pod("bare", "2", 3, json!({})));
    assert_eq!(cluster.attempt(pod("p", "2", 5, json!({}))), "a < counted");
}

#[test]
fn avoidance_and_spreading_are_right_without_the_victims() {
    let term = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let avoid = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).on("a", pod("web", "1", 0, json!({})));
    assert_eq!(cluster.attempt(pod("p", "1", 5, json!({"spec": avoid}))), "a < web");
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).on("a", pod("loner", "1", 0, json!({"spec": avoid})));
    assert_eq!(cluster.attempt(pod("p", "1", 5, json!({}))), "a < loner");

    let constraint = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let mut cluster = Cluster::new();
    cluster.node("a", zone("a")).node("b", zone("b")).on("a", pod("web", "1", 0, json!({})));
    cluster.on("b", pod("full", "4", 9, json!({"metadata": {"labels": {"app": "other"}}})));
    let spread = json!({"spec": {"topologySpreadConstraints": constraint}});
    assert_eq!(cluster.attempt(pod("p", "1", 5, spread)), "a < web");
}

#[test]
fn promised_room_is_kept_from_lesser_pods_and_used_by_the_pod_itself() {
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).on("a", pod("rest", "2", 20, json!({})));
    let waiting = cluster.info(pod("waiting", "2", 10, json!({})));
    cluster.cache.nominate(&waiting, "a", BTreeSet::new());
    assert_eq!(
        cluster.attempt(pod("lesser", "1", 5, json!({}))),
        "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    assert_eq!(cluster.attempt(pod("equal", "1", 10, json!({}))).split(':').next(), Some("preemption"));
    assert_eq!(cluster.attempt(pod("greater", "1", 11, json!({}))), "a");
    cluster.node("b", json!({}));
    assert_eq!(cluster.attempt(pod("waiting", "2", 10, json!({}))), "a", "not the emptier node");
}

#[test]
fn a_pod_waits_for_its_victims_instead_of_looking_for_more() {
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).node("b", json!({}));
    cluster.on("a", pod("x", "4", 0, json!({}))).on("b", pod("y", "4", 0, json!({})));
    let waiting = cluster.info(pod("waiting", "4", 10, json!({})));
    cluster.cache.nominate(&waiting, "a", BTreeSet::from(["x".to_owned()]));
    let declined = "preemption: not eligible due to a terminating pod on the nominated node.";
    assert_eq!(cluster.attempt(pod("waiting", "4", 10, json!({}))), declined);
    // Another leader does not know the victims, but sees what they were told.
    cluster.cache.nominate(&waiting, "a", BTreeSet::new());
    assert!(cluster.attempt(pod("waiting", "4", 10, json!({}))).contains('<'));
    cluster.cache.remove_pod("x");
    let told = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": [
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]}});
    cluster.on("a", pod("x", "4", 0, told));
    assert_eq!(cluster.attempt(pod("waiting", "4", 10, json!({}))), declined);
    cluster.cache.remove_pod("x");
    assert_eq!(cluster.attempt(pod("waiting", "4", 10, json!({}))), "a");
}

#[test]
fn lesser_pods_lose_their_promise_to_a_greater_one() {
    let mut cluster = Cluster::new();
    cluster.node("a", json!({})).on("a", pod("x", "4", 0, json!({})));
    let lesser = cluster.info(pod("lesser", "4", 5, json!({})));
    cluster.cache.nominate(&lesser, "a", BTreeSet::new());
    let greater = cluster.info(pod("greater", "4", 10, json!({})));
    cluster.cache.refresh(&mut cluster.snapshot);
    let misfit = cluster
        .cycle
        .schedule(&cluster.profile, &cluster.snapshot, &greater, &mut CycleState::default())
        .expect_err("no room yet");
    let found = misfit.preemption.expect("room can be made");
    assert_eq!(found.displaced.iter().map(|pod| pod.key.name.as_str()).collect::<Vec<_>>(), ["lesser"]);
}
