//! DefaultTolerationSeconds and TaintNodesByCondition: how a failing node treats pods, and a new node before it is ready.

use pintle_api::status::Status;
use serde_json::{Value, json};

use super::{Chain, child, list};
use crate::authz::live::{items, text};
use crate::types::Review;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Seconds a pod stays on a node that has failed, unless it says otherwise. Upstream's figure.
const TOLERATION_SECONDS: i64 = 300;

/// Every pod tolerates a failed node for a while, so that a short outage moves nothing.
pub(super) fn tolerate_failing_node(_: &Chain, review: &mut Review<'_>) -> Result<(), Status> {
    if !review.subresource.is_empty() {
        return Ok(());
    }
    for taint in [NOT_READY, UNREACHABLE] {
        let tolerated = items(&review.object, "/spec/tolerations").any(|toleration| tolerates(toleration, taint));
        if tolerated {
            continue;
        }
        if let Some(tolerations) = child(&mut review.object, "spec").and_then(|spec| list(spec, "tolerations")) {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
    Ok(())
}

fn tolerates(toleration: &Value, taint: &str) -> bool {
    let (key, effect) = (text(toleration, "/key"), text(toleration, "/effect"));
    (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
}

/// A new node takes no pods until the node lifecycle controller has seen it ready.
pub(super) fn taint_new_node(_: &Chain, review: &mut Review<'_>) -> Result<(), Status> {
    let tainted = items(&review.object, "/spec/taints")
        .any(|taint| text(taint, "/key") == NOT_READY && text(taint, "/effect") == "NoSchedule");
    if !tainted && let Some(taints) = child(&mut review.object, "spec").and_then(|spec| list(spec, "taints")) {
        taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{chain, creation, kind};
    use super::*;
    use crate::authz::live::tests::Fixed;
    use crate::types::UserInfo;

    fn tolerations(given: Value) -> Value {
        let (pod, user) = (json!({"spec": {"tolerations": given}}), UserInfo::internal());
        let mut review = creation(kind("", "pods"), &pod, &user);
        tolerate_failing_node(&chain(Fixed::default()), &mut review).expect("admitted");
        review.object["spec"]["tolerations"].clone()
    }

    #[test]
    fn missing_tolerations_are_added_and_given_ones_kept() {
        let added = tolerations(Value::Null);
        let keys: Vec<&str> = added.as_array().into_iter().flatten().map(|t| text(t, "/key")).collect();
        assert_eq!(keys, [NOT_READY, UNREACHABLE]);
        assert_eq!(added[0]["tolerationSeconds"], 300);
        let all = json!([{"operator": "Exists"}]);
        assert_eq!(tolerations(all.clone()), all);
        let own = json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]);
        assert_eq!(tolerations(own).as_array().map(Vec::len), Some(2));
        let other_effect = json!([{"key": NOT_READY, "effect": "NoSchedule"}]);
        assert_eq!(tolerations(other_effect).as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn a_new_node_is_tainted_once() {
        let (node, user) = (json!({"metadata": {"name": "n"}}), UserInfo::internal());
        let mut review = creation(kind("", "nodes"), &node, &user);
        let chain = chain(Fixed::default());
        taint_new_node(&chain, &mut review).expect("admitted");
        taint_new_node(&chain, &mut review).expect("admitted");
        assert_eq!(review.object["spec"]["taints"], json!([{"key": NOT_READY, "effect": "NoSchedule"}]));
    }
}
