//! `pods/eviction`: deletes a pod if its disruption budget allows it.
//!
//! The budget's allowance is taken first, in one conditional write, then the pod is marked and deleted: two evictions at
//! once cannot both take the last allowance. A pod that is not healthy anyway costs nothing.

use std::sync::Arc;

use http::StatusCode;
use pintle_api::meta::{Meta, format_time};
use pintle_api::selector::Labels;
use pintle_api::status::Status;
use pintle_base::clock;
use serde_json::{Value, json};

use super::set_condition;
use crate::authz::live::{DISRUPTION_BUDGETS, Live, PODS, get_or_fresh, items, name_of, text, uid_of};
use crate::registry::{DeleteOptions, Propagation, Registry, WriteOptions};
use crate::types::VirtualCall;

/// Evictions a budget remembers until its controller has seen them. Upstream's figure.
const DISRUPTED_MAX: usize = 2000;
const GROUP: &str = "policy";
const RESOURCE: &str = "poddisruptionbudgets";

pub(crate) async fn evict(
    registry: &Registry,
    live: &dyn Live,
    call: VirtualCall,
) -> Result<(StatusCode, Value), Status> {
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let given = name_of(&call.body);
    if !given.is_empty() && given != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let pod = get_or_fresh(live, PODS, namespace, name).await.ok_or_else(|| Status::not_found("", "pods", name))?;
    let how = delete_options(&call, &pod)?;
    if !may_ignore_budget(&pod) {
        take_allowance(registry, live, &call, &pod, how.dry_run).await?;
    }
    mark_and_delete(registry, &call, &pod, how).await?;
    Ok((StatusCode::CREATED, Status::created().to_value()))
}

/// Pods that serve nobody: their going disrupts nothing.
fn may_ignore_budget(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending") || Meta::of(pod).is_deleting()
}

fn delete_options(call: &VirtualCall, pod: &Value) -> Result<DeleteOptions, Status> {
    let options = call.body.get("deleteOptions").unwrap_or(&Value::Null);
    let preconditions = |field: &str| match text(options, &format!("/preconditions/{field}")) {
        "" => None,
        value => Some(value.to_owned()),
    };
    let uid = preconditions("uid");
    if uid.as_deref().is_some_and(|uid| uid != uid_of(pod)) {
        let want = uid.unwrap_or_default();
        return Err(Status::precondition_failed("", "pods", name_of(pod), "UID", &want, uid_of(pod)));
    }
    let version = preconditions("resourceVersion");
    check_version(version.as_deref(), pod)?;
    let dry_run = call.dry_run || items(options, "/dryRun").any(|word| word == "All");
    let propagation = match text(options, "/propagationPolicy") {
        "Foreground" => Some(Propagation::Foreground),
        "Background" => Some(Propagation::Background),
        "Orphan" => Some(Propagation::Orphan),
        _ => None,
    };
    Ok(DeleteOptions {
        grace: options.get("gracePeriodSeconds").and_then(Value::as_i64),
        uid: Some(uid_of(pod).to_owned()).filter(|uid| !uid.is_empty()),
        resource_version: version,
        propagation,
        dry_run,
    })
}

/// The pod must be the version that the caller saw, if the caller said which.
fn check_version(wanted: Option<&str>, pod: &Value) -> Result<(), Status> {
    let found = text(pod, "/metadata/resourceVersion");
    match wanted.filter(|wanted| *wanted != found) {
        Some(wanted) => Err(Status::precondition_failed("", "pods", name_of(pod), "ResourceVersion", wanted, found)),
        None => Ok(()),
    }
}

async fn take_allowance(
    registry: &Registry,
    live: &dyn Live,
    call: &VirtualCall,
    pod: &Arc<Value>,
    dry_run: bool,
) -> Result<(), Status> {
    let budgets = live.list(DISRUPTION_BUDGETS, Some(&call.info.namespace));
    let mut selecting = budgets.iter().filter(|budget| selects(budget, pod));
    let Some(budget) = selecting.next() else { return Ok(()) };
    if selecting.next().is_some() {
        return Err(Status::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    if is_unhealthy_and_free(pod, budget) {
        return Ok(());
    }
    let kind = DISRUPTION_BUDGETS.kind().ok_or_else(Status::no_such_path)?;
    let options = WriteOptions { dry_run, fence: call.fence, ..WriteOptions::internal() };
    let pod_name = name_of(pod).to_owned();
    let now = clock::unix_seconds();
    let change = move |budget: &Value| decrement(budget, &pod_name, now);
    registry.update_with(kind, &call.info.namespace, name_of(budget), "status", change, &options).await.map(|_| ())
}

fn selects(budget: &Value, pod: &Value) -> bool {
    let selector = budget.pointer("/spec/selector").filter(|selector| selector.is_object());
    selector.is_some() && Labels::from_selector(selector).is_ok_and(|labels| labels.matches(pod))
}

/// A pod that is not ready costs nothing, always or as long as enough others are healthy, as the budget says.
fn is_unhealthy_and_free(pod: &Value, budget: &Value) -> bool {
    let ready = items(pod, "/status/conditions").any(|c| text(c, "/type") == "Ready" && text(c, "/status") == "True");
    let count = |field: &str| budget.pointer(&format!("/status/{field}")).and_then(Value::as_i64).unwrap_or(0);
    match text(budget, "/spec/unhealthyPodEvictionPolicy") {
        _ if ready => false,
        "AlwaysAllow" => true,
        _ => count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0,
    }
}

/// The budget with one disruption less, and the pod noted until the controller has counted it.
fn decrement(budget: &Value, pod: &str, now: i64) -> Result<Value, Status> {
    let name = name_of(budget);
    let count = |field: &str| budget.pointer(&format!("/status/{field}")).and_then(Value::as_i64).unwrap_or(0);
    if count("observedGeneration") < Meta::of(budget).generation() {
        let mut status =
            Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 10);
        if let Some(details) = &mut status.details {
            details.causes.push(pintle_api::status::Cause {
                reason: "DisruptionBudget".into(),
                message: format!("The disruption budget {name} is still being processed by the server."),
                field: String::new(),
            });
        }
        return Err(status);
    }
    let allowed = count("disruptionsAllowed");
    if allowed < 0 {
        return Err(Status::forbidden(GROUP, RESOURCE, name, "pdb disruptions allowed is negative"));
    }
    let noted = budget.pointer("/status/disruptedPods").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    if noted > DISRUPTED_MAX {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden(GROUP, RESOURCE, name, why));
    }
    if allowed == 0 {
        return Err(Status::disruption_budget(name, count("desiredHealthy"), count("currentHealthy")));
    }
    let mut taken = budget.clone();
    let status = &mut taken["status"];
    status["disruptionsAllowed"] = (allowed - 1).into();
    if !status["disruptedPods"].is_object() {
        status["disruptedPods"] = json!({});
    }
    let now = jiff::Timestamp::from_second(now).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    status["disruptedPods"][pod] = format_time(now).into();
    Ok(taken)
}

async fn mark_and_delete(
    registry: &Registry,
    call: &VirtualCall,
    pod: &Value,
    mut how: DeleteOptions,
) -> Result<(), Status> {
    let kind = PODS.kind().ok_or_else(Status::no_such_path)?;
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let options =
        WriteOptions { user: call.user.clone(), dry_run: how.dry_run, fence: call.fence, ..WriteOptions::internal() };
    let (uid, now) = (uid_of(pod).to_owned(), clock::unix_seconds());
    // Marking makes a new version; the deletion goes by the uid.
    let version = how.resource_version.take();
    let marking = move |pod: &Value| {
        check_version(version.as_deref(), pod)?;
        if uid_of(pod) != uid {
            return Err(Status::precondition_failed("", "pods", name_of(pod), "UID", &uid, uid_of(pod)));
        }
        let mut marked = pod.clone();
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
        });
        set_condition(&mut marked, condition, now);
        Ok(marked)
    };
    registry.update_with(kind, namespace, name, "status", marking, &options).await?;
    registry.delete(kind, namespace, name, &how, &options).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64, observed: i64) -> Value {
        json!({"metadata": {"name": "b", "generation": 2}, "spec": {"selector": {"matchLabels": {"app": "web"}}},
            "status": {"disruptionsAllowed": allowed, "observedGeneration": observed, "desiredHealthy": 2, "currentHealthy": 2}})
    }

    #[test]
    fn an_allowance_is_taken_and_the_pod_noted() {
        let taken = decrement(&budget(1, 2), "web-1", 1_800_000_000).expect("allowed");
        assert_eq!(taken["status"]["disruptionsAllowed"], 0);
        assert_eq!(taken["status"]["disruptedPods"]["web-1"], "2027-01-15T08:00:00Z");
    }

    #[test]
    fn an_exhausted_budget_says_429_with_its_cause() {
        let refused = decrement(&budget(0, 2), "web-1", 0).expect_err("exhausted");
        assert_eq!(refused.http_code(), 429);
        let cause = &refused.details.expect("details").causes[0];
        assert_eq!(
            (cause.reason.as_str(), cause.message.as_str()),
            ("DisruptionBudget", "The disruption budget b needs 2 healthy pods and has 2 currently")
        );
        assert_eq!(decrement(&budget(5, 1), "web-1", 0).expect_err("stale").http_code(), 429);
        assert_eq!(decrement(&budget(-1, 2), "web-1", 0).expect_err("broken").http_code(), 403);
    }

    #[test]
    fn unhealthy_pods_are_free_as_the_budget_says() {
        let pod = |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        assert!(is_unhealthy_and_free(&pod("False"), &budget(0, 2)));
        assert!(!is_unhealthy_and_free(&pod("True"), &budget(0, 2)));
        let mut short = budget(0, 2);
        short["status"]["currentHealthy"] = 1.into();
        assert!(!is_unhealthy_and_free(&pod("False"), &short));
        short["spec"]["unhealthyPodEvictionPolicy"] = "AlwaysAllow".into();
        assert!(is_unhealthy_and_free(&pod("False"), &short));
    }

    #[test]
    fn a_budget_without_selector_selects_nothing() {
        let pod = json!({"metadata": {"labels": {"app": "web"}}});
        assert!(selects(&budget(1, 2), &pod));
        assert!(!selects(&json!({"spec": {}}), &pod));
        assert!(may_ignore_budget(&json!({"status": {"phase": "Pending"}})));
        assert!(!may_ignore_budget(&json!({"status": {"phase": "Running"}})));
    }
}
