//! Sends pod statuses to the API: the latest of each pod, a bounded number at once, again and again while no server
//! answers. A worker never waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_base::task::Group;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::limits;

/// Names the pod a status is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodId {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl PodId {
    pub fn of(pod: &Pod) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self { namespace: text(&pod.metadata.namespace), name: text(&pod.metadata.name), uid: text(&pod.metadata.uid) }
    }
}

#[derive(Default)]
struct Waiting {
    statuses: Mutex<BTreeMap<PodId, PodStatus>>,
    changed: Notify,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Statuses {
    client: kube::Client,
    waiting: Arc<Waiting>,
}

/// What became of one attempt.
enum Sent {
    Done,
    /// The pod is gone or another one has its name: nothing to tell any more.
    Pointless,
    Again(PodId, Box<PodStatus>),
}

impl Statuses {
    pub fn start(client: kube::Client, group: &Group) -> Self {
        let statuses = Self { client, waiting: Arc::default() };
        group.spawn_until_stopped("pod-statuses", statuses.clone().run());
        statuses
    }

    /// Replaces what is waiting to be sent for this pod.
    pub fn post(&self, pod: PodId, status: PodStatus) {
        let mut waiting = self.waiting.statuses.lock();
        if waiting.len() < limits::STATUS_WAITING || waiting.contains_key(&pod) {
            waiting.insert(pod, status);
        }
        drop(waiting);
        self.waiting.changed.notify_one();
    }

    async fn run(self) {
        let mut sending = FuturesUnordered::new();
        let mut busy = BTreeSet::new();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            while sending.len() < limits::STATUS_IN_FLIGHT {
                let next = {
                    let mut waiting = self.waiting.statuses.lock();
                    let free = waiting.keys().find(|pod| !busy.contains(*pod)).cloned();
                    free.and_then(|pod| waiting.remove_entry(&pod))
                };
                let Some((pod, status)) = next else { break };
                busy.insert(pod.clone());
                let client = self.client.clone();
                sending.push(async move { (pod.clone(), send(&client, pod, status).await) });
            }
            tokio::select! {
                Some((pod, sent)) = sending.next(), if !sending.is_empty() => {
                    busy.remove(&pod);
                    match sent {
                        Sent::Done | Sent::Pointless => backoff.reset(),
                        Sent::Again(pod, status) => {
                            self.waiting.statuses.lock().entry(pod).or_insert(*status);
                            clock::sleep(backoff.next_delay()).await;
                        }
                    }
                }
                () = self.waiting.changed.notified() => (),
            }
        }
    }

    /// Sends the pod's last status, then confirms its deletion. Returns when the API has forgotten the pod.
    pub async fn finish(&self, pod: PodId, status: PodStatus) {
        self.waiting.statuses.lock().remove(&pod);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut status = Some(status);
        loop {
            if let Some(last) = status.take()
                && let Sent::Again(_, last) = send(&self.client, pod.clone(), last).await
            {
                status = Some(*last);
            } else if delete(&self.client, &pod).await {
                return;
            }
            clock::sleep(backoff.next_delay()).await;
        }
    }
}

/// The merge patch that makes the API's status equal to `status`; absent fields are removed.
fn patch(pod: &PodId, status: &PodStatus) -> Result<Value, serde_json::Error> {
    const OURS: [&str; 8] =
        ["reason", "message", "hostIP", "podIP", "podIPs", "hostIPs", "initContainerStatuses", "containerStatuses"];
    let mut fields = serde_json::to_value(status)?;
    if let Some(fields) = fields.as_object_mut() {
        for name in OURS {
            fields.entry(name).or_insert(Value::Null);
        }
    }
    // With the uid a pod that took the name of an earlier one is never given that one's status.
    Ok(json!({ "metadata": { "uid": pod.uid }, "status": fields }))
}

async fn send(client: &kube::Client, pod: PodId, status: PodStatus) -> Sent {
    let body = match patch(&pod, &status) {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(pod = %pod.name, %error, "status cannot be written as JSON");
            return Sent::Pointless;
        }
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    match api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(body)).await {
        Ok(_) => Sent::Done,
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422 | 403) => {
            tracing::debug!(pod = %pod.name, namespace = %pod.namespace, code = status.code, message = %status.message, "status refused");
            Sent::Pointless
        }
        Err(error) => {
            tracing::debug!(pod = %pod.name, namespace = %pod.namespace, error = %Chain(&error), "status not sent, will retry");
            Sent::Again(pod, Box::new(status))
        }
    }
}

/// Deletes with no grace left; true if nothing with this uid remains.
async fn delete(client: &kube::Client, pod: &PodId) -> bool {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let preconditions = Preconditions { uid: Some(pod.uid.clone()), ..Preconditions::default() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }.grace_period(0);
    match api.delete(&pod.name, &params).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => true,
        Err(error) => {
            tracing::debug!(pod = %pod.name, namespace = %pod.namespace, error = %Chain(&error), "deletion not confirmed, will retry");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_removes_what_is_absent_and_names_the_pod() {
        let pod = PodId { namespace: "ns".into(), name: "p".into(), uid: "u".into() };
        let status = PodStatus { phase: Some("Pending".into()), ..PodStatus::default() };
        let body = patch(&pod, &status).expect("json");
        assert_eq!(body["metadata"]["uid"], "u");
        assert!(body["status"]["podIP"].is_null() && body["status"].get("podIP").is_some());
        assert!(body["status"].get("conditions").is_none());
    }
}
