//! Makes room for a pod: tells it where, tells the others to go, deletes them.
//!
//! Always holds: victims are deleted through the API with their grace, each by its uid; a pod whose victims could not all be
//! told is promised nothing and tried again.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_client::object::{reference, time_now};
use serde_json::json;

use super::Term;
use crate::cycle::Misfit;
use crate::framework::Preemption;
use crate::plugins::{DISRUPTION_TARGET, PREEMPTED};
use crate::state::PodInfo;

impl Term {
    /// Carries out what the post-filter found for `pod`, which is in flight, and puts it back into the queue.
    pub(super) async fn preempt(&self, pod: &PodInfo, misfit: &Misfit, preemption: &Preemption) {
        let node = preemption.node.as_str();
        tracing::info!(pod = %pod.key, node, victims = preemption.victims.len(), "preempts");
        self.tell_misfit(pod, misfit, Some(Some(node))).await;
        let gone = join_all(preemption.victims.iter().map(|victim| self.evict(pod, victim, node))).await;
        let failed = gone.into_iter().filter_map(Result::err).next();
        if let Some(error) = &failed {
            tracing::warn!(pod = %pod.key, node, error = %Chain(error), "preemption failed, will retry");
            self.promise_nothing(pod).await;
        }
        join_all(preemption.displaced.iter().map(|other| self.promise_nothing(other))).await;
        self.shared.with(|inner| {
            let now = clock::now();
            match failed {
                Some(_) => inner.queue.put_back_after_error(&pod.uid, now),
                None => {
                    let plugins: Vec<&'static str> = misfit.rejected_by.iter().copied().collect();
                    inner.queue.put_back_unschedulable(&pod.uid, &plugins, now);
                }
            }
            // Who lost its promise may fit elsewhere, or make room elsewhere.
            preemption.displaced.iter().for_each(|other| inner.queue.retry(&other.uid, now));
        });
    }

    /// Says in the victim's status why it goes, and deletes it with its grace.
    async fn evict(&self, pod: &PodInfo, victim: &Arc<PodInfo>, node: &str) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &victim.key.namespace);
        let name = &victim.key.name;
        if !victim.is_terminating() {
            let message =
                format!("{}: preempting to accommodate a higher priority pod", self.shared.profile.scheduler_name);
            let condition = json!({"type": DISRUPTION_TARGET, "status": "True", "reason": PREEMPTED, "message": message,
                "lastTransitionTime": time_now()});
            let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
            absent_is_fine(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop))?;
            let same = Preconditions { uid: Some(victim.uid.clone()), ..Preconditions::default() };
            let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
            absent_is_fine(api.delete(name, &params).await.map(drop))?;
        }
        let message = format!("Preempted by pod {} on node {node}", pod.uid);
        self.recorder.normal(reference(&*victim.pod), "Preempted", message);
        Ok(())
    }

    async fn promise_nothing(&self, pod: &PodInfo) {
        self.shared.with(|inner| inner.cache.denominate(&pod.uid));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": null}});
        if let Err(error) = api.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            tracing::debug!(pod = %pod.key, error = %Chain(&error), "promise not taken back");
        }
    }
}

/// A pod that is gone, or whose name another one has, need not go any more.
fn absent_is_fine(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
        result => result,
    }
}
