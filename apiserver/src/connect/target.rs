//! Which container of which pod on which node a stream is for.

use std::sync::Arc;

use pintle_api::status::Status;
use pintle_proto::node_v1::Open;
use serde_json::Value;

use super::{Ask, Reach};
use crate::authz::live::{PODS, get_or_fresh, items, text, uid_of};

/// Lists of a pod spec that hold containers.
const CONTAINER_LISTS: [&str; 3] = ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"];

pub(super) struct Target {
    pub pod: Arc<Value>,
    /// Empty if the pod is on no node yet.
    pub node: String,
}

impl Target {
    pub async fn find(reach: &Reach, ask: &Ask) -> Result<Self, Status> {
        let (namespace, name) = (&ask.info.namespace, &ask.info.name);
        let pod = get_or_fresh(&*reach.live, PODS, namespace, name).await;
        let pod = pod.ok_or_else(|| Status::not_found("", "pods", name))?;
        let node = text(&pod, "/spec/nodeName").to_owned();
        Ok(Self { pod, node })
    }

    /// The node, which the pod must have.
    pub fn host(&self, name: &str) -> Result<&str, Status> {
        match self.node.as_str() {
            "" => Err(Status::bad_request(format!("pod {name} does not have a host assigned"))),
            node => Ok(node),
        }
    }

    /// The opening message of a stream, without its kind.
    pub fn open(&self, ask: &Ask, container: String) -> Open {
        Open {
            stream_id: 0,
            namespace: ask.info.namespace.clone(),
            pod: ask.info.name.clone(),
            pod_uid: uid_of(&self.pod).to_owned(),
            container,
            kind: None,
        }
    }

    pub fn container(&self, ask: &Ask) -> Result<String, Status> {
        container(&self.pod, &ask.info.name, ask.query.text("container"))
    }
}

/// The container asked for, or the only one.
fn container(pod: &Value, pod_name: &str, asked: &str) -> Result<String, Status> {
    if !asked.is_empty() {
        let known = CONTAINER_LISTS.iter().any(|list| names(pod, list).any(|name| name == asked));
        return match known {
            true => Ok(asked.to_owned()),
            false => Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}"))),
        };
    }
    let main: Vec<&str> = names(pod, CONTAINER_LISTS[0]).collect();
    let init: Vec<&str> = names(pod, CONTAINER_LISTS[1]).collect();
    match main.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {pod_name}"))),
        _ => {
            let mut message =
                format!("a container name must be specified for pod {pod_name}, choose one of: [{}]", main.join(" "));
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(message))
        }
    }
}

fn names<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    items(pod, list).map(|container| text(container, "/name"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(spec: Value, asked: &str, want: &str) {
        let got = container(&json!({ "spec": spec }), "web", asked).unwrap_or_else(|status| status.message);
        assert_eq!(got, want);
    }

    #[test]
    fn the_container_is_the_named_or_the_only_one() {
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}], "ephemeralContainers": [{"name": "e"}]});
        check(json!({"containers": [{"name": "a"}]}), "", "a");
        for name in ["a", "i", "e"] {
            check(two.clone(), name, name);
        }
        check(two.clone(), "x", "container x is not valid for pod web");
        check(
            two,
            "",
            "a container name must be specified for pod web, choose one of: [a b] or one of the init containers: [i]",
        );
        check(json!({}), "", "a container name must be specified for pod web");
    }
}
