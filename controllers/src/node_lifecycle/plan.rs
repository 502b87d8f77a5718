//! What the silence of a node means: its conditions, its taints, and which of its pods must go when. Pure.
//!
//! A node is heard through its Lease and its status. Once it was silent for the grace period its conditions become
//! Unknown and it is tainted unreachable; pods leave when they do not tolerate the taint any longer.
//! Rule: node-monitor-grace-period, taint-based eviction (KEP-166).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

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

/// The taints the node should have; `None` if it has them. Taints of other makers stay, in their order.
pub fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match status_of(node, "Ready") {
        Some("True") => (),
        Some("False") => wanted.extend([(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)]),
        Some("Unknown") => wanted.extend([(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)]),
        _ => wanted.push((NOT_READY, NO_SCHEDULE)),
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

/// How long a pod may stay on a node with these taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Forever,
    Until(Timestamp),
}

/// When a pod that is bound to a node with `taints` must go. Times count from when each taint was added.
pub fn stay(pod: &Pod, taints: &[Taint], now: Timestamp) -> Stay {
    let tolerations: &[Toleration] = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut end: Option<Timestamp> = None;
    for taint in taints.iter().filter(|taint| taint.effect == NO_EXECUTE) {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        let added = taint.time_added.as_ref().map_or(now, |time| time.0);
        let leave = if matching.is_empty() {
            Some(now)
        } else {
            // The shortest tolerance counts; one without a time tolerates forever.
            let seconds = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min();
            seconds.map(|seconds| added + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
        };
        end = match (end, leave) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    end.map_or(Stay::Forever, Stay::Until)
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

/// When each node was last heard, by this process's own clock, so that clocks of nodes do not matter.
#[derive(Debug, Default)]
pub struct Heard {
    nodes: BTreeMap<String, (String, Timestamp)>,
}

impl Heard {
    /// Notes what `name` last said (`mark` changes with each sign of life) and returns since when it has been silent.
    pub fn note(&mut self, name: &str, mark: String, now: Timestamp) -> Timestamp {
        match self.nodes.get_mut(name) {
            Some((old, _)) if *old != mark => {
                self.nodes.insert(name.to_owned(), (mark, now));
                now
            }
            Some((_, since)) => *since,
            None => {
                self.nodes.insert(name.to_owned(), (mark, now));
                now
            }
        }
    }

    pub fn forget(&mut self, name: &str) {
        self.nodes.remove(name);
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
        let taints = taints(node, at(0)).unwrap_or_default();
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
        let left = taints(&node, at(0)).expect("changes");
        assert_eq!(left.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>(), ["mine"]);
        node.spec.as_mut().expect("spec").taints = Some(left);
        assert_eq!(taints(&node, at(0)), None);
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
        assert_eq!(stay(&pod(json!([])), &taints, at(105)), Stay::Until(at(105)));
        let some = json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}]);
        assert_eq!(stay(&pod(some), &taints, at(105)), Stay::Until(at(130)));
        assert_eq!(stay(&pod(json!([{"operator": "Exists"}])), &taints, at(105)), Stay::Forever);
        assert_eq!(stay(&pod(json!([])), &[], at(105)), Stay::Forever);
    }

    #[test]
    fn silence_counts_from_the_last_change_we_saw() {
        let mut heard = Heard::default();
        assert_eq!(heard.note("n", "1".into(), at(10)), at(10));
        assert_eq!(heard.note("n", "1".into(), at(15)), at(10));
        assert_eq!(heard.note("n", "2".into(), at(16)), at(16));
    }
}
