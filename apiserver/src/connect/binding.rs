//! `pods/binding`: puts a pod on a node, once.
//!
//! The only way a node name gets into a pod. Two schedulers that disagree: the first wins, the other reads 409.

use std::sync::Arc;

use http::StatusCode;
use pintle_api::meta::{Meta, MetaMut};
use pintle_api::status::{FieldError, Path, Status};
use pintle_base::clock;
use serde_json::{Value, json};

use super::set_condition;
use crate::authz::live::{Live, NODES, PODS, items, name_of, namespace_of, text, uid_of};
use crate::registry::{Registry, WriteOptions};
use crate::types::VirtualCall;

const RESOURCE: &str = "pods/binding";
/// The registry's name for the write: everything but metadata identity may change.
const SUBRESOURCE: &str = "binding";

pub(crate) async fn bind(
    registry: &Registry,
    live: &dyn Live,
    call: VirtualCall,
) -> Result<(StatusCode, Value), Status> {
    let binding = &call.body;
    let info = &call.info;
    let name = if info.resource == "bindings" { name_of(binding) } else { info.name.as_str() };
    check(binding, name, &info.namespace)?;
    let node = text(binding, "/target/name");
    if live.get(NODES, "", node).is_none() {
        // Upstream accepts it: the node may register later. The pod then waits for it.
        tracing::debug!(node, pod = name, "pod bound to a node that is not known");
    }
    let kind = PODS.kind().ok_or_else(Status::no_such_path)?;
    let options =
        WriteOptions { user: call.user.clone(), dry_run: call.dry_run, fence: call.fence, ..WriteOptions::internal() };
    let binding = Arc::new(binding.clone());
    let change = move |pod: &Value| assign(pod, &binding);
    registry.update_with(kind, &info.namespace, name, SUBRESOURCE, change, &options).await?;
    Ok((StatusCode::CREATED, Status::created().to_value()))
}

fn check(binding: &Value, name: &str, namespace: &str) -> Result<(), Status> {
    let target = Path::new("target");
    let mut errors = Vec::new();
    let kind = text(binding, "/target/kind");
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError::not_supported(&target.child("kind"), kind, &["Node", "<empty>"]));
    }
    if text(binding, "/target/name").is_empty() {
        errors.push(FieldError::required(&target.child("name"), ""));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Binding", name, &errors));
    }
    let (given, space) = (name_of(binding), namespace_of(binding));
    if name.is_empty() || (!given.is_empty() && given != name) {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    if !space.is_empty() && space != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// The pod on its node; refuses a pod that is already on one, goes away, or is not the one meant.
fn assign(pod: &Value, binding: &Value) -> Result<Value, Status> {
    let name = name_of(pod);
    let (meant, version) = (uid_of(binding), text(binding, "/metadata/resourceVersion"));
    if !meant.is_empty() && meant != uid_of(pod) {
        return Err(Status::precondition_failed("", RESOURCE, name, "UID", meant, uid_of(pod)));
    }
    let stored = Meta::of(pod).resource_version();
    if !version.is_empty() && version != stored {
        return Err(Status::precondition_failed("", RESOURCE, name, "ResourceVersion", version, stored));
    }
    let refuse = |why: String| Err(Status::conflict("", RESOURCE, name, &why));
    if Meta::of(pod).is_deleting() {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = text(pod, "/spec/nodeName");
    if !node.is_empty() {
        return refuse(format!("pod {name} is already assigned to node {node:?}"));
    }
    if items(pod, "/spec/schedulingGates").next().is_some() {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut bound = pod.clone();
    let spec = bound.get_mut("spec").and_then(Value::as_object_mut);
    let spec = spec.ok_or_else(|| Status::internal(format!("pod {name} has no spec")))?;
    spec.insert("nodeName".into(), text(binding, "/target/name").into());
    for (key, value) in Meta::of(binding).annotations().into_iter().flatten() {
        MetaMut::of(&mut bound).set_annotation(key, value.as_str().unwrap_or_default());
    }
    for (key, value) in Meta::of(binding).labels().into_iter().flatten() {
        MetaMut::of(&mut bound).set_label(key, value.as_str().unwrap_or_default());
    }
    set_condition(&mut bound, json!({ "type": "PodScheduled", "status": "True" }), clock::unix_seconds());
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value, meta: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "web", "uid": "u1", "resourceVersion": "5"}, "spec": spec,
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}});
        for (key, value) in meta.as_object().into_iter().flatten() {
            pod["metadata"][key] = value.clone();
        }
        pod
    }

    fn binding(meta: Value) -> Value {
        json!({"metadata": meta, "target": {"kind": "Node", "name": "n1"}})
    }

    #[test]
    fn a_pod_is_bound_and_its_condition_turns() {
        let bound = assign(
            &pod(json!({}), json!({})),
            &binding(json!({"name": "web", "uid": "u1", "annotations": {"a": "b"}})),
        )
        .expect("bound");
        assert_eq!(bound["spec"]["nodeName"], "n1");
        assert_eq!(bound["metadata"]["annotations"]["a"], "b");
        let conditions = bound["status"]["conditions"].as_array().expect("list");
        assert_eq!((conditions.len(), &conditions[0]["status"]), (1, &json!("True")));
        assert!(conditions[0].get("reason").is_none());
    }

    #[test]
    fn everything_that_forbids_binding_is_a_conflict() {
        let free = || pod(json!({}), json!({}));
        let table = [
            (pod(json!({"nodeName": "n2"}), json!({})), json!({})),
            (pod(json!({}), json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})), json!({})),
            (pod(json!({"schedulingGates": [{"name": "g"}]}), json!({})), json!({})),
            (free(), json!({"uid": "other"})),
            (free(), json!({"resourceVersion": "4"})),
        ];
        for (pod, meta) in table {
            assert_eq!(assign(&pod, &binding(meta.clone())).expect_err("refused").http_code(), 409, "{meta}");
        }
        let taken = assign(&pod(json!({"nodeName": "n2"}), json!({})), &binding(json!({}))).expect_err("refused");
        assert_eq!(
            taken.message,
            r#"Operation cannot be fulfilled on pods/binding "web": pod web is already assigned to node "n2""#
        );
    }

    #[test]
    fn a_binding_names_a_node_and_its_own_pod() {
        assert!(check(&binding(json!({"name": "web"})), "web", "a").is_ok());
        assert_eq!(
            check(&json!({"target": {"kind": "Pod", "name": "x"}}), "web", "a").expect_err("kind").http_code(),
            422
        );
        assert_eq!(check(&json!({}), "web", "a").expect_err("name").http_code(), 422);
        assert_eq!(check(&binding(json!({"name": "db"})), "web", "a").expect_err("other").http_code(), 400);
        assert_eq!(check(&binding(json!({"namespace": "b"})), "web", "a").expect_err("other").http_code(), 400);
    }
}
