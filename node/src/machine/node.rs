//! The Node object of this machine. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use pintle_proto::cri_v1::Image;

use super::Machine;
use crate::limits;
use crate::options::AgentOptions;

/// What changes while the agent runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Situation {
    /// `containerd://1.6.20`
    pub runtime_version: String,
    /// Why the node cannot run pods now; empty if it can.
    pub problems: Vec<String>,
    pub images: Vec<ContainerImage>,
}

/// The object as it is registered.
pub fn registration(options: &AgentOptions, machine: &Machine, situation: &Situation, now: &Time) -> Node {
    let info = &machine.info;
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", options.node_name.as_str()),
        ("kubernetes.io/os", info.operating_system.as_str()),
        ("kubernetes.io/arch", info.architecture.as_str()),
        ("beta.kubernetes.io/os", info.operating_system.as_str()),
        ("beta.kubernetes.io/arch", info.architecture.as_str()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    labels.extend(options.labels.clone());
    Node {
        metadata: ObjectMeta { name: Some(options.node_name.clone()), labels: Some(labels), ..ObjectMeta::default() },
        spec: Some(NodeSpec {
            taints: Some(options.taints.clone()).filter(|taints| !taints.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status(options, machine, situation, &[], now)),
    }
}

/// The status as it is now; times of conditions that stay as they were in `old` are kept, and so are others' conditions.
pub fn status(
    options: &AgentOptions,
    machine: &Machine,
    situation: &Situation,
    old: &[NodeCondition],
    now: &Time,
) -> NodeStatus {
    let quantities = |amounts: BTreeMap<String, String>| {
        amounts.into_iter().map(|(name, amount)| (name, Quantity(amount))).collect()
    };
    let capacity: BTreeMap<String, Quantity> = quantities(machine.capacity(options.max_pods, &options.capacity));
    let mut info = machine.info.clone();
    info.container_runtime_version.clone_from(&situation.runtime_version);
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", options.node_ip.to_string()),
            address("Hostname", options.node_name.clone()),
        ]),
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        conditions: Some(conditions(situation, old, now)),
        images: Some(situation.images.clone()).filter(|images| !images.is_empty()),
        node_info: Some(info),
        ..NodeStatus::default()
    }
}

fn conditions(situation: &Situation, old: &[NodeCondition], now: &Time) -> Vec<NodeCondition> {
    let ready = situation.problems.is_empty();
    let problems = situation.problems.join(", ");
    let ours: [(&str, bool, &str, &str); 4] = [
        ("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        if ready {
            ("Ready", true, "KubeletReady", "kubelet is posting ready status")
        } else {
            ("Ready", false, "KubeletNotReady", problems.as_str())
        },
    ];
    let mut conditions: Vec<NodeCondition> =
        old.iter().filter(|old| !ours.iter().any(|(kind, ..)| *kind == old.type_)).cloned().collect();
    for (kind, value, reason, message) in ours {
        let status = if value { "True" } else { "False" };
        let kept = old.iter().find(|old| old.type_ == kind && old.status == status);
        conditions.push(NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: kept.and_then(|old| old.last_transition_time.clone()).or_else(|| Some(now.clone())),
        });
    }
    conditions
}

/// True if `new` says something else than `old`, apart from the time it was said.
pub fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let conditions = status.conditions.iter().flatten();
        let mut conditions: Vec<_> = conditions
            .map(|one| (one.type_.clone(), one.status.clone(), one.reason.clone(), one.message.clone()))
            .collect();
        conditions.sort();
        let info = status.node_info.clone();
        (
            conditions,
            status.capacity.clone(),
            status.allocatable.clone(),
            status.addresses.clone(),
            status.images.clone().unwrap_or_default(),
            info,
        )
    };
    plain(old) != plain(new)
}

/// The largest images, as the Node object shows them.
pub fn images(found: Vec<Image>) -> Vec<ContainerImage> {
    let mut found: Vec<Image> =
        found.into_iter().filter(|image| !image.repo_tags.is_empty() || !image.repo_digests.is_empty()).collect();
    found.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    found.truncate(limits::IMAGES_REPORTED);
    found
        .into_iter()
        .map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(5).collect()),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::RuntimeChoice;

    fn at(second: i64) -> Time {
        Time(jiff::Timestamp::from_second(second).expect("time"))
    }

    fn options() -> AgentOptions {
        AgentOptions::new("w1", "/data".into(), "10.0.0.7".parse().expect("address"), RuntimeChoice::Simulated)
    }

    #[test]
    fn the_object_has_the_labels_schedulers_look_for() {
        let node = registration(&options(), &Machine::default(), &Situation::default(), &at(1));
        assert_eq!(node.metadata.labels.expect("labels")["kubernetes.io/hostname"], "w1");
        let status = node.status.expect("status");
        assert_eq!(status.addresses.expect("addresses")[0].address, "10.0.0.7");
    }

    #[test]
    fn readiness_changes_its_time_only_with_its_value() {
        let status = |problems: &[&str], old: &NodeStatus, now| {
            let situation = Situation {
                problems: problems.iter().map(|text| (*text).to_owned()).collect(),
                ..Situation::default()
            };
            super::status(
                &options(),
                &Machine::default(),
                &situation,
                old.conditions.as_deref().unwrap_or_default(),
                &at(now),
            )
        };
        let since = |status: &NodeStatus| {
            let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").expect("ready");
            (ready.status.clone(), ready.last_transition_time.as_ref().expect("time").0.as_second())
        };
        let first = status(&["no network"], &NodeStatus::default(), 1);
        let second = status(&["no runtime"], &first, 2);
        let third = status(&[], &second, 3);
        let fourth = status(&[], &third, 4);
        assert_eq!(
            [since(&first), since(&second), since(&third), since(&fourth)]
                .map(|(value, time)| format!("{value}{time}")),
            ["False1", "False1", "True3", "True3"]
        );
        assert!(differs(&first, &second) && differs(&second, &third) && !differs(&third, &fourth));
    }

    #[test]
    fn conditions_of_others_are_kept() {
        let foreign =
            NodeCondition { type_: "NetworkUnavailable".into(), status: "False".into(), ..NodeCondition::default() };
        let status = status(&options(), &Machine::default(), &Situation::default(), &[foreign], &at(1));
        assert!(status.conditions.iter().flatten().any(|condition| condition.type_ == "NetworkUnavailable"));
    }
}
