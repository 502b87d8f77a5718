//! Deletes what nobody owns any more, of every kind the API serves, and carries out foreground and orphaning deletions.
//!
//! Flow: metadata watches of all deletable kinds → [`graph::Graph`] → queue of uids → verdict → write with uid and
//! version as preconditions. Runs only while leading: the graph is made anew for each term, from consistent lists.
//! Always holds: an object is deleted for a missing owner only after the API itself said that the owner is not there, and
//! only with the owners and finalizers it was judged by: whoever gets a new owner meanwhile stays.

pub mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::SelectAll;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_client::WorkQueue;
use serde_json::json;
use tokio::sync::watch;

use crate::limits;
use crate::runtime::{Lead, ReconcileError, api, is_conflict, is_not_found};
use graph::{Graph, Node, Verdict};

/// How long to wait before the kinds are discovered again after a failure.
const DISCOVERY_RETRY: Duration = Duration::from_secs(1);

type Metadata = PartialObjectMeta<DynamicObject>;

/// A resource whose objects can be owned, and how to reach them.
struct Resource {
    api: ApiResource,
    namespaced: bool,
}

struct Collector {
    resources: Vec<Resource>,
    graph: Mutex<Graph>,
    queue: WorkQueue<String>,
    /// How many kinds have been listed completely.
    listed: watch::Sender<usize>,
    lead: Lead,
}

/// Collects garbage for one term; does not return.
pub async fn run(lead: Lead) {
    let resources = loop {
        match discover(&lead).await {
            Ok(resources) => break resources,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "garbage collector cannot discover kinds, will retry");
                clock::sleep(DISCOVERY_RETRY).await;
            }
        }
    };
    tracing::debug!(kinds = resources.len(), "garbage collector watches");
    let (listed, mut progress) = watch::channel(0);
    let collector = Arc::new(Collector { resources, graph: Mutex::default(), queue: WorkQueue::new(), listed, lead });
    let work = collector.queue.clone();
    let worker = Arc::clone(&collector);
    let attend = async {
        // Nothing is judged before every kind is known: dependents that are not listed yet would look like none, and an
        // owner would be let go without them.
        if progress.wait_for(|kinds| *kinds == worker.resources.len()).await.is_ok() {
            work.drain(limits::WORKERS, |uid: String| {
                let collector = Arc::clone(&worker);
                async move { collector.attend(uid).await }
            })
            .await;
        }
    };
    tokio::join!(collector.feed(), attend);
}

async fn discover(lead: &Lead) -> Result<Vec<Resource>, ReconcileError> {
    let discovery = Discovery::new(lead.client.clone()).run().await.map_err(api("discover resources"))?;
    Ok(discovery
        .groups()
        .flat_map(|group| group.recommended_resources())
        .filter(|(_, capabilities)| {
            [verbs::DELETE, verbs::LIST, verbs::WATCH].iter().all(|v| capabilities.supports_operation(v))
        })
        // The same objects as in the core group; once is enough. Events own nothing that must be collected in order.
        .filter(|(resource, _)| resource.plural != "events")
        .map(|(api, capabilities)| Resource { api, namespaced: capabilities.scope == Scope::Namespaced })
        .collect())
}

impl Collector {
    /// Keeps the graph up to date from the watches of all kinds.
    async fn feed(&self) {
        let mut streams = SelectAll::new();
        for (index, resource) in self.resources.iter().enumerate() {
            let objects: Api<Metadata> = Api::all_with(self.lead.client.clone(), &resource.api);
            let stream = watcher::watcher(objects, watcher::Config::default());
            streams.push(Box::pin(stream.map(move |event| (index, event))));
        }
        let mut listing: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        let mut complete = BTreeSet::new();
        while let Some((index, event)) = streams.next().await {
            match event {
                Ok(Event::Init) => drop(listing.insert(index, BTreeSet::new())),
                Ok(Event::InitApply(object)) => {
                    if let Some(seen) = listing.get_mut(&index) {
                        seen.extend(object.uid());
                    }
                    self.changed(&object.uid().unwrap_or_default(), Node::new(index, &object.metadata));
                }
                Ok(Event::InitDone) => {
                    let seen = listing.remove(&index).unwrap_or_default();
                    let known = self.graph.lock().uids_of(index);
                    known.iter().filter(|uid| !seen.contains(*uid)).for_each(|uid| self.gone(uid));
                    complete.insert(index);
                    self.listed.send_replace(complete.len());
                }
                Ok(Event::Apply(object)) => {
                    self.changed(&object.uid().unwrap_or_default(), Node::new(index, &object.metadata));
                }
                Ok(Event::Delete(object)) => self.gone(&object.uid().unwrap_or_default()),
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), kind = %self.resources[index].api.kind, "watch failed, goes on");
                }
            }
        }
    }

    fn changed(&self, uid: &str, node: Node) {
        let touched = self.graph.lock().set(uid, node);
        touched.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn gone(&self, uid: &str) {
        let touched = self.graph.lock().remove(uid);
        touched.into_iter().for_each(|uid| self.queue.add(uid));
    }

    async fn attend(&self, uid: String) {
        match self.settle(&uid).await {
            Ok(()) => self.queue.forget(&uid),
            Err(error) => {
                if !error.is_conflict() {
                    tracing::warn!(error = %Chain(&error), uid, "collecting failed, will retry");
                }
                self.queue.add_after_failure(uid);
            }
        }
    }

    async fn settle(&self, uid: &str) -> Result<(), ReconcileError> {
        let mut absent = BTreeSet::new();
        loop {
            let (verdict, judged) = {
                let graph = self.graph.lock();
                (graph.judge(uid, &absent), graph.get(uid).cloned())
            };
            match verdict {
                Verdict::Nothing => return Ok(()),
                Verdict::Ask(owners) => {
                    let namespace = self.graph.lock().get(uid).map(|node| node.namespace.clone()).unwrap_or_default();
                    for owner in owners {
                        if !self.is_absent(&owner, &namespace).await? {
                            // It lives, and its own event will put it into the graph.
                            return Ok(());
                        }
                        absent.insert(owner.uid);
                    }
                }
                Verdict::Delete { foreground } => {
                    // The state that was judged: a change since then must make the write fail, not be judged by it.
                    let Some(node) = judged else { return Ok(()) };
                    return self.delete(uid, node, foreground).await;
                }
                Verdict::Unblock => return self.unblock(uid).await,
                Verdict::Release(gone) => return self.release(uid, &gone).await,
                Verdict::JudgeDependents(list) => {
                    list.into_iter().for_each(|dependent| self.queue.add(dependent));
                    return Ok(());
                }
                Verdict::OrphanDependents(list) => {
                    for dependent in list {
                        self.release(&dependent, &[uid.to_owned()]).await?;
                    }
                    return Ok(());
                }
                Verdict::Finish(finalizer) => return self.finish(uid, finalizer).await,
            }
        }
    }

    /// Asks the API whether `owner`, seen from `namespace`, is gone: no such object, or another one under its name.
    async fn is_absent(&self, owner: &OwnerReference, namespace: &str) -> Result<bool, ReconcileError> {
        let found = self.resources.iter().find(|r| r.api.api_version == owner.api_version && r.api.kind == owner.kind);
        // A kind we do not know may come back: its dependents stay, as upstream.
        let Some(resource) = found else { return Ok(false) };
        match self.objects(resource, namespace).get_metadata_opt(&owner.name).await {
            Ok(None) => Ok(true),
            Ok(Some(object)) => Ok(object.uid().as_ref() != Some(&owner.uid)),
            Err(error) => Err(api("look for an owner")(error)),
        }
    }

    fn objects(&self, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
        if resource.namespaced {
            Api::namespaced_with(self.lead.client.clone(), namespace, &resource.api)
        } else {
            Api::all_with(self.lead.client.clone(), &resource.api)
        }
    }

    /// Deletes the object as it was when it was judged.
    ///
    /// If it has changed meanwhile but not in what it was judged by, it is deleted in its new version; otherwise the graph
    /// learns the new state and the object is judged again.
    async fn delete(&self, uid: &str, mut node: Node, foreground: bool) -> Result<(), ReconcileError> {
        let resource = &self.resources[node.resource];
        let objects = self.objects(resource, &node.namespace);
        let policy = policy(&node, foreground);
        tracing::debug!(kind = %resource.api.kind, namespace = node.namespace, name = node.name, "collects");
        for _ in 0..limits::COLLECT_RETRIES {
            let preconditions =
                Preconditions { uid: Some(uid.to_owned()), resource_version: Some(node.version.to_string()) };
            let params = DeleteParams {
                propagation_policy: Some(policy.clone()),
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            match objects.delete(&node.name, &params).await {
                Err(error) if is_conflict(&error) => (),
                Err(error) if is_not_found(&error) => {
                    self.gone(uid);
                    return Ok(());
                }
                result => return settled(result.map(drop), "delete garbage"),
            }
            // Told here too: the watch may have said so before this function last put the object into the graph.
            let live = objects.get_metadata_opt(&node.name).await.map_err(api("read garbage"))?;
            let Some(live) = live.filter(|live| live.uid().as_deref() == Some(uid)) else {
                self.gone(uid);
                return Ok(());
            };
            let fresh = Node::new(node.resource, &live.metadata);
            if !fresh.agrees(&node) {
                self.changed(uid, fresh);
                break;
            }
            node = fresh;
        }
        // What the watch brings next may be older than what was read: a look at it is due in any case.
        self.queue.add(uid.to_owned());
        Ok(())
    }

    /// Sees that the object does not hold back the deletion of its owners. Its event brings it back.
    async fn unblock(&self, uid: &str) -> Result<(), ReconcileError> {
        let change = |object: &Metadata| {
            let freed = |owner: &OwnerReference| OwnerReference { block_owner_deletion: Some(false), ..owner.clone() };
            let owners: Vec<OwnerReference> = object.metadata.owner_references.iter().flatten().map(freed).collect();
            json!({"ownerReferences": owners})
        };
        self.change(uid, "unblock the owners of a dependent", change).await
    }

    /// Takes the references to the owners `gone` out of the object.
    async fn release(&self, uid: &str, gone: &[String]) -> Result<(), ReconcileError> {
        let change = |object: &Metadata| {
            let owners = object.metadata.owner_references.iter().flatten();
            let kept: Vec<&OwnerReference> = owners.filter(|owner| !gone.contains(&owner.uid)).collect();
            json!({"ownerReferences": kept})
        };
        self.change(uid, "release a dependent", change).await
    }

    async fn finish(&self, uid: &str, finalizer: &str) -> Result<(), ReconcileError> {
        let change = |object: &Metadata| {
            let kept: Vec<&String> = object.finalizers().iter().filter(|name| *name != finalizer).collect();
            json!({"finalizers": kept})
        };
        self.change(uid, "finish a deletion", change).await
    }

    /// Writes what `change` makes of the object's metadata as they are now; what is gone is left alone.
    async fn change(
        &self,
        uid: &str,
        what: &str,
        change: impl FnOnce(&Metadata) -> serde_json::Value,
    ) -> Result<(), ReconcileError> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(()) };
        let objects = self.objects(&self.resources[node.resource], &node.namespace);
        let found = objects.get_metadata_opt(&node.name).await.map_err(api(what))?;
        let Some(object) = found.filter(|object| object.uid().as_deref() == Some(uid)) else { return Ok(()) };
        let mut metadata = change(&object);
        metadata["resourceVersion"] = json!(object.metadata.resource_version);
        let patch = json!({"metadata": metadata});
        settled(objects.patch(&node.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop), what)
    }
}

/// How the dependents of a collected object are treated: as its finalizers say, if they do.
fn policy(node: &Node, foreground: bool) -> PropagationPolicy {
    let has = |finalizer: &str| node.finalizers.iter().any(|name| name == finalizer);
    if has(graph::ORPHAN) {
        PropagationPolicy::Orphan
    } else if foreground || has(graph::FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    }
}

/// What is gone already is done.
fn settled(result: Result<(), kube::Error>, what: &str) -> Result<(), ReconcileError> {
    match result {
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(api(what)(error)),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
