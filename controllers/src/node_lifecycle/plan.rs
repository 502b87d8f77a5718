//! What the silence of a node means: its conditions, its taints, and which of its pods must go when. Pure.
//!
//! A node is heard through its Lease and its status. Once it was silent for the grace period its conditions become
//! Unknown and it is tainted unreachable; pods leave when they do not tolerate the taint any longer.
//! Always holds: spans of time are measured on this process's monotonic clock, from when it saw their beginning itself; the
//! wall clock is only written into objects for people to read.
//! Rule: node-monitor-grace-period, taint-based eviction (KEP-166), full disruption mode.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use pintle_base::clock::Instant;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const NO_EXECUTE: &str = "NoExecute";
pub const NO_SCHEDULE: &str = "NoSchedule";

/// Conditions a kubelet reports; all become Unknown when it falls silent.
const REPORTED: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Conditions that are shown as NoSchedule taints while they are True.
const PRESSURE_TAINTS: &[(&str, &str)] = &[
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The conditions of a node that fell silent; `None` if they say so already.
pub fn silent_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let old: &[NodeCondition] =
        node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let mut conditions = old.to_vec();
    for kind in REPORTED {
        let (reason, message) = if old.iter().any(|condition| condition.type_ == *kind) {
            ("NodeStatusUnknown", "Kubelet stopped posting node status.")
        } else {
            ("NodeStatusNeverUpdated", "Kubelet never posted node status.")
        };
        match conditions.iter_mut().find(|condition| condition.type_ == *kind) {
            Some(condition) if condition.status == "Unknown" => (),
            Some(condition) => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some(reason.to_owned());
                condition.message = Some(message.to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            None => conditions.push(NodeCondition {
                type_: (*kind).to_owned(),
                status: "Unknown".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_transition_time: Some(Time(now)),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            }),
        }
    }
    (conditions != old).then_some(conditions)
}

fn status_of<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.status.as_str())
}

pub fn is_ready(node: &Node) -> bool {
    status_of(node, "Ready") == Some("True")
}

/// What may be done about the pods of lost nodes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// They are sent away.
    Start,
    /// Where they are being sent away this goes on; elsewhere it does not begin.
    Hold,
    /// Nobody is sent away: no node is ready at all, so the fault is more likely on this side, and nothing could take them.
    Stop,
}

/// The taint that tells why the node does not work, if it says that it does not, or nobody hears from it.
fn lost(node: &Node) -> Option<&'static str> {
    match status_of(node, "Ready") {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    }
}

fn is_evicted(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.effect == NO_EXECUTE && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()))
}

/// True if the node is lost and its pods are not being sent away yet.
pub fn awaits_eviction(node: &Node) -> bool {
    lost(node).is_some() && !is_evicted(node)
}

/// The taints the node should have; `None` if it has them. Taints of other makers stay, in their order.
pub fn taints(node: &Node, eviction: Eviction, now: Timestamp) -> Option<Vec<Taint>> {
    let evicts = match eviction {
        Eviction::Start => true,
        Eviction::Hold => is_evicted(node),
        Eviction::Stop => false,
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match lost(node) {
        Some(key) if evicts => wanted.extend([(key, NO_SCHEDULE), (key, NO_EXECUTE)]),
        Some(key) => wanted.push((key, NO_SCHEDULE)),
        None if is_ready(node) => (),
        None => wanted.push((NOT_READY, NO_SCHEDULE)),
    }
    let pressures = PRESSURE_TAINTS.iter().filter(|(condition, _)| status_of(node, condition) == Some("True"));
    wanted.extend(pressures.map(|(_, taint)| (*taint, NO_SCHEDULE)));
    let spec = node.spec.as_ref();
    if spec.and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let old: &[Taint] = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let ours = |taint: &Taint| {
        let key = taint.key.as_str();
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key) || PRESSURE_TAINTS.iter().any(|(_, ours)| *ours == key)
    };
    let is = |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let mut taints: Vec<Taint> =
        old.iter().filter(|taint| !ours(taint) || wanted.iter().any(|want| is(taint, *want))).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| is(taint, (key, effect))) {
            let time_added = (effect == NO_EXECUTE).then_some(Time(now));
            taints.push(Taint { key: key.to_owned(), effect: effect.to_owned(), value: None, time_added });
        }
    }
    (taints != old).then_some(taints)
}

/// How long a pod may stay on a node with these taints, from when they came together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Forever,
    For(Duration),
}

/// How long `pod` may stay on a node with `taints`.
pub fn stay(pod: &Pod, taints: &[Taint]) -> Stay {
    let tolerations: &[Toleration] = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut shortest: Option<Duration> = None;
    for taint in taints.iter().filter(|taint| taint.effect == NO_EXECUTE) {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        let limit = if matching.is_empty() {
            Some(Duration::ZERO)
        } else {
            // The shortest tolerance counts; one without a time tolerates forever.
            let seconds = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min();
            seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
        };
        shortest = match (shortest, limit) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    shortest.map_or(Stay::Forever, Stay::For)
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or("");
    let key = toleration.key.as_deref().unwrap_or("");
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == taint.key,
        _ => key == taint.key && toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
    }
}

/// What a node last said.
#[derive(Debug)]
struct Heard {
    /// Changes with each sign of life.
    mark: String,
    since: Instant,
    /// The mark has changed while this process listened: there is somebody who says it.
    alive: bool,
}

/// When each node was last heard, and since when each pod's time on a tainted node runs, by this process's own clock.
#[derive(Debug, Default)]
pub struct Memory {
    heard: BTreeMap<String, Heard>,
    /// Of each tainted node: its pods by uid, and since when this process has seen them under taints.
    leaving: BTreeMap<String, HashMap<String, Instant>>,
}

impl Memory {
    /// Notes what `name` last said (`mark` changes with each sign of life) and returns since when it has been silent.
    pub fn note(&mut self, name: &str, mark: String, now: Instant) -> Instant {
        let first = || Heard { mark: mark.clone(), since: now, alive: false };
        let heard = self.heard.entry(name.to_owned()).or_insert_with(first);
        if heard.mark != mark {
            *heard = Heard { mark, since: now, alive: true };
        }
        heard.since
    }

    /// True if `name` has given a sign of life in this term. What it said before is hearsay.
    pub fn has_heard(&self, name: &str) -> bool {
        self.heard.get(name).is_some_and(|heard| heard.alive)
    }

    /// Every node gets its full grace again, and every pod its full time.
    pub fn restart(&mut self, now: Instant) {
        self.heard.values_mut().for_each(|heard| heard.since = now);
        self.leaving.clear();
    }

    /// Since when the time of each of `pods` on the tainted node `name` runs; those that are not named are forgotten.
    pub fn leaving(&mut self, name: &str, pods: &[&str], now: Instant) -> Vec<Instant> {
        let before = self.leaving.remove(name).unwrap_or_default();
        let since: Vec<Instant> = pods.iter().map(|uid| before.get(*uid).copied().unwrap_or(now)).collect();
        let kept = pods.iter().zip(&since).map(|(uid, since)| ((*uid).to_owned(), *since));
        self.leaving.insert(name.to_owned(), kept.collect());
        since
    }

    /// The node has no taint that makes pods leave: their time starts anew with the next one.
    pub fn staying(&mut self, name: &str) {
        self.leaving.remove(name);
    }

    pub fn forget(&mut self, name: &str) {
        self.heard.remove(name);
        self.leaving.remove(name);
    }
}

/// Which nodes are ready, counted as they change, so that no look at one node costs a look at all.
#[derive(Debug, Default)]
pub struct Census {
    nodes: HashMap<String, bool>,
    ready: usize,
}

impl Census {
    /// Takes over whether `name` is ready, `None` if it is gone; true if the cluster fell into or got out of disruption.
    pub fn set(&mut self, name: &str, ready: Option<bool>) -> bool {
        let before = self.is_disrupted();
        let old = match ready {
            Some(ready) => self.nodes.insert(name.to_owned(), ready),
            None => self.nodes.remove(name),
        };
        self.ready = self.ready + usize::from(ready == Some(true)) - usize::from(old == Some(true));
        before != self.is_disrupted()
    }

    /// True if there are nodes and none is ready.
    pub fn is_disrupted(&self) -> bool {
        self.ready == 0 && !self.nodes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("time")
    }

    fn node(ready: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": [
            {"type": "Ready", "status": ready}, {"type": "DiskPressure", "status": "False"}]}}))
        .expect("node")
    }

    fn keys(node: &Node) -> String {
        let taints = taints(node, Eviction::Start, at(0)).unwrap_or_default();
        taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn taints_follow_conditions() {
        assert_eq!(keys(&node("True")), "");
        assert_eq!(
            keys(&node("False")),
            "node.kubernetes.io/not-ready:NoSchedule node.kubernetes.io/not-ready:NoExecute"
        );
        assert_eq!(
            keys(&node("Unknown")),
            "node.kubernetes.io/unreachable:NoSchedule node.kubernetes.io/unreachable:NoExecute"
        );
    }

    #[test]
    fn a_ready_node_loses_our_taints_and_keeps_those_of_others() {
        let mut node = node("True");
        node.spec = Some(
            serde_json::from_value(json!({"taints": [{"key": "mine", "effect": "NoSchedule"},
                {"key": NOT_READY, "effect": "NoSchedule"}]}))
            .expect("spec"),
        );
        let left = taints(&node, Eviction::Start, at(0)).expect("changes");
        assert_eq!(left.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>(), ["mine"]);
        node.spec.as_mut().expect("spec").taints = Some(left);
        assert_eq!(taints(&node, Eviction::Start, at(0)), None);
    }

    #[test]
    fn silence_makes_every_reported_condition_unknown_once() {
        let mut node = node("True");
        let conditions = silent_conditions(&node, at(9)).expect("changes");
        assert!(conditions.iter().all(|condition| condition.status == "Unknown"));
        assert_eq!(conditions.len(), 4);
        node.status.as_mut().expect("status").conditions = Some(conditions);
        assert_eq!(silent_conditions(&node, at(10)), None);
    }

    #[test]
    fn pods_stay_as_long_as_they_tolerate() {
        let taint = Taint {
            key: UNREACHABLE.to_owned(),
            effect: NO_EXECUTE.to_owned(),
            time_added: Some(Time(at(100))),
            value: None,
        };
        let pod = |tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p"}, "spec": {"containers": [], "tolerations": tolerations}}),
            )
            .expect("pod")
        };
        let taints = [taint];
        assert_eq!(stay(&pod(json!([])), &taints), Stay::For(Duration::ZERO));
        let some = json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}]);
        assert_eq!(stay(&pod(some), &taints), Stay::For(Duration::from_secs(30)));
        assert_eq!(stay(&pod(json!([{"operator": "Exists"}])), &taints), Stay::Forever);
        assert_eq!(stay(&pod(json!([])), &[]), Stay::Forever);
    }

    #[test]
    fn silence_counts_from_the_last_change_we_saw() {
        let (start, mut memory) = (pintle_base::clock::now(), Memory::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(memory.note("n", "1".into(), after(10)), after(10));
        assert_eq!(memory.note("n", "1".into(), after(15)), after(10));
        assert!(!memory.has_heard("n"), "it may have said that to somebody else, long ago");
        assert_eq!(memory.note("n", "2".into(), after(16)), after(16));
        assert!(memory.has_heard("n"));
        memory.restart(after(20));
        assert_eq!(memory.note("n", "2".into(), after(25)), after(20));
    }

    #[test]
    fn the_time_of_a_pod_runs_while_its_node_is_tainted_and_starts_anew_with_the_next_taint() {
        let (start, mut memory) = (pintle_base::clock::now(), Memory::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(memory.leaving("n", &["a"], after(1)), [after(1)]);
        assert_eq!(memory.leaving("n", &["a", "b"], after(2)), [after(1), after(2)]);
        memory.staying("n");
        assert_eq!(memory.leaving("n", &["a"], after(3)), [after(3)]);
        memory.restart(after(4));
        assert_eq!(memory.leaving("n", &["a"], after(5)), [after(5)]);
    }

    #[test]
    fn without_any_ready_node_none_is_tainted_so_that_its_pods_must_go() {
        let mut node = node("Unknown");
        let left = taints(&node, Eviction::Stop, at(0)).expect("changes");
        assert_eq!(left.iter().map(|taint| taint.effect.as_str()).collect::<Vec<_>>(), [NO_SCHEDULE]);
        let full = taints(&node, Eviction::Start, at(0));
        node.spec = Some(k8s_openapi::api::core::v1::NodeSpec { taints: full, ..Default::default() });
        assert_eq!(
            taints(&node, Eviction::Stop, at(0)).map(|taints| taints.len()),
            Some(1),
            "a taint that was there goes"
        );
    }

    #[test]
    fn a_node_waits_for_its_turn_and_what_has_begun_goes_on() {
        let effects = |node: &Node| {
            let taints = taints(node, Eviction::Hold, at(0));
            let taints = taints.or_else(|| node.spec.clone()?.taints).unwrap_or_default();
            taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect::<Vec<_>>().join(" ")
        };
        let mut lost = node("Unknown");
        assert!(awaits_eviction(&lost));
        assert_eq!(effects(&lost), "node.kubernetes.io/unreachable:NoSchedule");
        let full = taints(&lost, Eviction::Start, at(0));
        lost.spec = Some(k8s_openapi::api::core::v1::NodeSpec { taints: full, ..Default::default() });
        assert!(!awaits_eviction(&lost));
        assert_eq!(taints(&lost, Eviction::Hold, at(0)), None);
        let mut speaks = node("False");
        speaks.spec = lost.spec.clone();
        assert!(!awaits_eviction(&speaks), "one reason for another needs no turn");
        let want = "node.kubernetes.io/not-ready:NoSchedule node.kubernetes.io/not-ready:NoExecute";
        assert_eq!(effects(&speaks), want);
        assert!(!awaits_eviction(&node("True")));
    }

    #[test]
    fn disruption_begins_with_the_last_ready_node_and_ends_with_the_first() {
        let mut census = Census::default();
        let mut step = |name: &str, ready| (census.set(name, ready), census.is_disrupted());
        assert_eq!(step("a", Some(true)), (false, false));
        assert_eq!(step("b", Some(true)), (false, false));
        assert_eq!(step("a", Some(false)), (false, false));
        assert_eq!(step("b", Some(false)), (true, true));
        assert_eq!(step("a", None), (false, true));
        assert_eq!(step("b", Some(true)), (true, false));
        assert_eq!(step("b", Some(true)), (false, false));
        assert_eq!(step("b", None), (false, false));
    }
}
