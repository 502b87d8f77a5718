//! How many pods to create, which to delete, and what the status says. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::kind::{Counts, Replicated};
use crate::limits;
use crate::runtime::pods::{self, Ranked};

/// What one reconcile does about the number of pods.
#[derive(Debug)]
pub(super) enum Step {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// Compares `wanted` with the active pods of `own`. `related` are all pods of the same application, for the choice of
/// nodes to take pods from.
pub(super) fn scale(wanted: i32, own: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Step {
    let active: Vec<&Arc<Pod>> = own.iter().filter(|pod| pods::is_active(pod)).collect();
    let wanted = usize::try_from(wanted).unwrap_or(0);
    match active.len() {
        have if have < wanted => Step::Create((wanted - have).min(limits::POD_BURST)),
        have if have > wanted => Step::Delete(choose(active, (have - wanted).min(limits::POD_BURST), related, now)),
        _ => Step::Nothing,
    }
}

fn choose(active: Vec<&Arc<Pod>>, count: usize, related: &[Arc<Pod>], now: Timestamp) -> Vec<Arc<Pod>> {
    if count == active.len() {
        return active.into_iter().cloned().collect();
    }
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pods::is_active(pod)) {
        *on_node.entry(node(pod)).or_default() += 1;
    }
    let mut ranked: Vec<(Ranked<'_>, &Arc<Pod>)> = active
        .into_iter()
        .map(|pod| (Ranked { pod, neighbours: on_node.get(node(pod)).copied().unwrap_or(0) }, pod))
        .collect();
    ranked.sort_by(|(a, _), (b, _)| pods::deletion_order(a, b, now));
    ranked.into_iter().take(count).map(|(_, pod)| Arc::clone(pod)).collect()
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// What the status of `owner` says about its pods.
pub(super) fn count<R: Replicated>(owner: &R, own: &[Arc<Pod>], now: Timestamp) -> Counts {
    let labels = owner.template().and_then(|template| template.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let of =
        |holds: &dyn Fn(&Pod) -> bool| i32::try_from(own.iter().filter(|pod| holds(pod)).count()).unwrap_or(i32::MAX);
    let carries = |pod: &Pod| has_all(pod.metadata.labels.as_ref(), &labels);
    Counts {
        replicas: of(&pods::is_active),
        fully_labeled: of(&|pod| pods::is_active(pod) && carries(pod)),
        ready: of(&|pod| pods::is_active(pod) && pods::is_ready(pod)),
        available: of(&|pod| pods::is_active(pod) && pods::is_available(pod, owner.min_ready_seconds(), now)),
        terminating: of(&|pod| !pods::is_finished(pod) && pod.metadata.deletion_timestamp.is_some()),
    }
}

fn has_all(labels: Option<&BTreeMap<String, String>>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    /// Pods as words: name, `@node`, and flags `P`ending, `F`ailed, `R`eady, `D`eleting.
    fn pods_of(text: &str) -> Vec<Arc<Pod>> {
        text.split_whitespace()
            .map(|word| {
                let (name, rest) = word.split_once('@').unwrap_or((word, ":R"));
                let (node, flags) = rest.split_once(':').unwrap_or((rest, "R"));
                let phase = if flags.contains('P') { "Pending" } else if flags.contains('F') { "Failed" } else { "Running" };
                let mut metadata = json!({"name": name, "uid": name, "labels": {"app": "web"}});
                if flags.contains('D') {
                    metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                }
                let ready = if flags.contains('R') { "True" } else { "False" };
                let pod = json!({"metadata": metadata, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase,
                    "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
                Arc::new(serde_json::from_value(pod).expect("pod"))
            })
            .collect()
    }

    fn at() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("time")
    }

    #[track_caller]
    fn check(wanted: i32, own: &str, siblings: &str, want: &str) {
        let (own, mut related) = (pods_of(own), pods_of(siblings));
        related.extend(own.iter().cloned());
        let got = match scale(wanted, &own, &related, at()) {
            Step::Nothing => "nothing".to_owned(),
            Step::Create(count) => format!("create {count}"),
            Step::Delete(pods) => {
                let names: Vec<_> = pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
                format!("delete {}", names.join(" "))
            }
        };
        assert_eq!(got, want);
    }

    #[test]
    fn the_number_of_active_pods_is_brought_to_what_is_wanted() {
        check(3, "a@n1", "", "create 2");
        check(2, "a@n1 b@n2", "", "nothing");
        check(0, "a@n1 b@n2", "", "delete a b");
        check(2, "a@n1 b@n2:F c@n1:D", "", "create 1");
        check(900, "", "", "create 500");
        check(-1, "a@n1", "", "delete a");
    }

    #[test]
    fn pods_that_do_not_serve_and_pods_on_crowded_nodes_go_first() {
        check(1, "a@n1 b@n2:P c@:P", "", "delete c b");
        check(2, "a@n1 b@n2 c@n2", "", "delete b");
        check(1, "a@n1 b@n2", "x@n2 y@n2", "delete b");
    }

    #[test]
    fn the_status_counts_active_pods_and_those_that_go() {
        let set = json!({"metadata": {}, "spec": {"selector": {}, "minReadySeconds": 3600,
            "template": {"metadata": {"labels": {"app": "web"}}}}});
        let set: ReplicaSet = serde_json::from_value(set).expect("replica set");
        let own = pods_of("a@n1 b@n2:P c@n1:RD d@n1:F");
        let counts = count(&set, &own, at());
        let want = Counts { replicas: 2, fully_labeled: 2, ready: 1, available: 1, terminating: 1 };
        assert_eq!(counts, want);
        let earlier = count(&set, &own, "2026-01-01T00:59:59Z".parse().expect("time"));
        assert_eq!(earlier.available, 0);
    }
}
