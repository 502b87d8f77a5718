//! Takes away pods that nobody else will: of nodes that are gone, ended ones beyond a number, and those that end without a
//! node to confirm it.
//!
//! A look at everything now and then, as upstream, because there is no event for what does not happen.
//! Always holds: a pod is taken from a node only after the node was missed for the quarantine and the API itself, not the
//! cache, said that it is not there; every deletion names the uid it was decided on.

pub mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_client::object::time_now;
use pintle_client::{Key, SharedReflector};
use serde_json::json;

use crate::limits;
use crate::runtime::{Context, Lead, ReconcileError, api, delete_same, is_conflict, is_not_found, pods};
use plan::Quarantine;

/// Why a pod is taken away, as its condition tells people.
const ORPHANED: &str = "PodGC: node no longer exists";
const OUT_OF_SERVICE: &str = "PodGC: node is out of service";

pub struct PodGc {
    nodes: SharedReflector<Node>,
    pods: SharedReflector<Pod>,
}

impl PodGc {
    pub fn new(context: &Context) -> Self {
        Self { nodes: context.reflectors.of(), pods: context.reflectors.of() }
    }

    /// Looks again and again for one term; does not return.
    pub async fn run(self: Arc<Self>, lead: Lead) {
        let mut quarantine = Quarantine::default();
        let mut ticker = clock::ticker(limits::POD_GC_PERIOD);
        loop {
            ticker.tick().await;
            self.look(&mut quarantine, &lead).await;
        }
    }

    async fn look(&self, quarantine: &mut Quarantine, lead: &Lead) {
        let all = self.pods.list();
        let gone = self.gone_nodes(&all, quarantine, lead).await;
        let mut work: Vec<(Arc<Pod>, Option<&'static str>)> = Vec::new();
        for pod in &all {
            let ending = pod.metadata.deletion_timestamp.is_some();
            let node = plan::node_of(pod);
            if node.is_some_and(|node| gone.contains(node)) {
                work.push((Arc::clone(pod), Some(ORPHANED)));
            } else if plan::ends_unscheduled(pod) {
                work.push((Arc::clone(pod), None));
            } else if ending && node.and_then(|node| self.node(node)).is_some_and(|n| plan::is_out_of_service(&n)) {
                work.push((Arc::clone(pod), Some(OUT_OF_SERVICE)));
            }
        }
        work.extend(plan::surplus(all, limits::ENDED_PODS).into_iter().map(|pod| (pod, None)));
        let removals = futures::stream::iter(work);
        removals.for_each_concurrent(limits::WORKERS, |(pod, why)| async move { remove(&pod, why, lead).await }).await;
    }

    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&Key::cluster(name))
    }

    /// Nodes that pods name, that were missed for the quarantine, and that the API does not know.
    async fn gone_nodes(&self, all: &[Arc<Pod>], quarantine: &mut Quarantine, lead: &Lead) -> BTreeSet<String> {
        let named = all.iter().filter_map(|pod| plan::node_of(pod));
        let missing = named.filter(|name| self.node(name).is_none()).map(str::to_owned).collect();
        let nodes: Api<Node> = Api::all(lead.client.clone());
        let mut gone = BTreeSet::new();
        for name in quarantine.step(&missing, clock::now()) {
            match nodes.get_metadata_opt(&name).await {
                Ok(None) => drop(gone.insert(name)),
                Ok(Some(_)) => (),
                Err(error) => {
                    tracing::debug!(node = name, error = %Chain(&error), "cannot confirm that a node is gone")
                }
            }
        }
        gone
    }
}

async fn remove(pod: &Pod, why: Option<&str>, lead: &Lead) {
    let key = Key::of(&pod.metadata);
    match settle(pod, &key, why, lead).await {
        Ok(()) => tracing::info!(pod = %key, why, "pod collected"),
        Err(error) => tracing::warn!(pod = %key, error = %Chain(&error), "pod not collected, will retry"),
    }
}

/// Says why in the pod's status, so that whoever counts failures knows, and deletes it without grace.
async fn settle(pod: &Pod, key: &Key, why: Option<&str>, lead: &Lead) -> Result<(), ReconcileError> {
    let stored: Api<Pod> = Api::namespaced(lead.client.clone(), &key.namespace);
    if let Some(why) = why.filter(|_| !pods::is_finished(pod)) {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": why, "lastTransitionTime": time_now()});
        let patch =
            json!({"metadata": {"uid": pod.metadata.uid}, "status": {"phase": "Failed", "conditions": [condition]}});
        match stored.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Err(error) if is_not_found(&error) || is_conflict(&error) => return Ok(()),
            Err(error) => return Err(api("mark a pod that is collected")(error)),
            Ok(_) => (),
        }
    }
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    delete_same(&stored, &pod.metadata, at_once).await.map(drop).map_err(api("collect a pod"))
}

#[cfg(test)]
mod tests;
