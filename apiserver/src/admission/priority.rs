//! Priority: a pod's class name becomes its number; there is one default class at most.

use std::sync::Arc;

use pintle_api::status::Status;
use serde_json::Value;

use super::{Chain, child, forbidden};
use crate::authz::live::{PRIORITY_CLASSES, get_or_fresh, name_of, text};
use crate::types::{Operation, Review};

const PREEMPT: &str = "PreemptLowerPriority";

pub(super) async fn admit_pod(chain: &Chain, review: &mut Review<'_>) -> Result<(), Status> {
    if !review.subresource.is_empty() {
        return Ok(());
    }
    if review.operation == Operation::Update {
        keep_computed(review);
        return Ok(());
    }
    let class = class_of(chain, review).await?;
    let (priority, policy) = match &class {
        Some(class) => (class.get("value").and_then(Value::as_i64).unwrap_or(0), text(class, "/preemptionPolicy")),
        None => (0, ""),
    };
    let policy = if policy.is_empty() { PREEMPT } else { policy };
    check_given(review, priority, policy)?;
    let class_name = class.as_ref().map(|class| name_of(class).to_owned());
    if let Some(spec) = child(&mut review.object, "spec") {
        spec["priority"] = priority.into();
        spec["preemptionPolicy"] = policy.into();
        if let Some(name) = class_name {
            spec["priorityClassName"] = name.into();
        }
    }
    Ok(())
}

/// The class the pod names, or the default one. `None`: there is no default.
async fn class_of(chain: &Chain, review: &Review<'_>) -> Result<Option<Arc<Value>>, Status> {
    match text(&review.object, "/spec/priorityClassName") {
        "" => Ok(chain.live.find(PRIORITY_CLASSES, None, &mut |class| is_default(class))),
        name => match get_or_fresh(&*chain.live, PRIORITY_CLASSES, "", name).await {
            Some(class) => Ok(Some(class)),
            None => Err(forbidden(review, &format!("no PriorityClass with name {name} was found"))),
        },
    }
}

/// A pod may repeat what admission computes and nothing else.
fn check_given(review: &Review<'_>, priority: i64, policy: &str) -> Result<(), Status> {
    if let Some(given) = review.object.pointer("/spec/priority").and_then(Value::as_i64)
        && given != priority
    {
        return Err(forbidden(
            review,
            &format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
            ),
        ));
    }
    let given = text(&review.object, "/spec/preemptionPolicy");
    if !given.is_empty() && given != policy {
        return Err(forbidden(
            review,
            &format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            ),
        ));
    }
    Ok(())
}

/// An update that leaves the computed fields out means them unchanged.
fn keep_computed(review: &mut Review<'_>) {
    let Some(old) = review.old.clone() else { return };
    for field in ["priority", "preemptionPolicy"] {
        let Some(value) = old.get("spec").and_then(|spec| spec.get(field)) else { continue };
        if let Some(spec) = child(&mut review.object, "spec")
            && spec.get(field).is_none_or(Value::is_null)
        {
            spec[field] = value.clone();
        }
    }
}

fn is_default(class: &Value) -> bool {
    class.get("globalDefault").and_then(Value::as_bool) == Some(true)
}

pub(super) fn check_class(chain: &Chain, review: &Review<'_>) -> Result<(), Status> {
    if !is_default(&review.object) {
        return Ok(());
    }
    let other =
        chain.live.find(PRIORITY_CLASSES, None, &mut |class| is_default(class) && name_of(class) != review.name);
    match other {
        None => Ok(()),
        Some(other) => {
            let name = name_of(&other);
            Err(forbidden(
                review,
                &format!("PriorityClass {name} is already marked as default. Only one default can exist"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{chain, creation, kind};
    use super::*;
    use crate::authz::live::tests::Fixed;
    use crate::types::UserInfo;

    fn live() -> Fixed {
        Fixed::default()
            .with(PRIORITY_CLASSES, json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"}))
    }

    async fn admitted(live: Fixed, spec: Value) -> Result<Value, Status> {
        let (pod, user) = (json!({"metadata": {"name": "p"}, "spec": spec}), UserInfo::internal());
        let mut review = creation(kind("", "pods"), &pod, &user);
        admit_pod(&chain(live), &mut review).await?;
        Ok(review.object["spec"].clone())
    }

    #[tokio::test]
    async fn names_become_numbers() {
        let spec = admitted(live(), json!({"priorityClassName": "high"})).await.expect("admitted");
        assert_eq!(spec, json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"}));
        let spec = admitted(live(), json!({})).await.expect("admitted");
        assert_eq!(spec, json!({"priority": 0, "preemptionPolicy": PREEMPT}));
        let default = json!({"metadata": {"name": "usual"}, "value": 7, "globalDefault": true});
        let spec = admitted(live().with(PRIORITY_CLASSES, default), json!({})).await.expect("admitted");
        assert_eq!(spec["priorityClassName"], "usual");
    }

    #[tokio::test]
    async fn unknown_classes_and_invented_numbers_are_refused() {
        let unknown = admitted(live(), json!({"priorityClassName": "none"})).await.expect_err("unknown");
        assert_eq!(unknown.message, r#"pods "p" is forbidden: no PriorityClass with name none was found"#);
        assert!(admitted(live(), json!({"priority": 5})).await.is_err());
        assert!(admitted(live(), json!({"priorityClassName": "high", "preemptionPolicy": PREEMPT})).await.is_err());
        assert!(admitted(live(), json!({"priorityClassName": "high", "priority": 1000})).await.is_ok());
    }
}
