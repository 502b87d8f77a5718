//! Empties namespaces that are being deleted, pods first, and then lets them go.
//!
//! Always holds: the namespace's own finalizer is taken off only after every listable kind was seen empty in it, by
//! consistent lists made after the deletion began.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, ResourceExt};
use pintle_base::clock;
use pintle_client::object::time_now;
use pintle_client::{Key, SharedReflector};
use serde_json::json;

use crate::limits;
use crate::runtime::{
    Context, Controller, Deleted, Intake, Lead, Outcome, ReconcileError, api, delete_same, is_conflict, is_not_found,
};

const FINALIZER: &str = "kubernetes";
/// How soon to look again at what is still ending. Pods need their grace period.
const AGAIN: Duration = Duration::from_millis(500);
/// How late that may become, however many there are.
const AGAIN_LONGEST: Duration = Duration::from_secs(2);

pub struct Namespaces {
    namespaces: SharedReflector<Namespace>,
}

impl Namespaces {
    pub fn new(context: &Context) -> Self {
        Self { namespaces: context.reflectors.of() }
    }
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace";

    fn watch(&self, intake: &Intake) {
        intake.mapped(&self.namespaces, |namespace| {
            namespace.metadata.deletion_timestamp.as_ref().map(|_| Key::of(&namespace.metadata))
        });
    }

    fn all(&self) -> Vec<Key> {
        let list = self.namespaces.list();
        let ending = list.iter().filter(|namespace| namespace.metadata.deletion_timestamp.is_some());
        ending.map(|namespace| Key::of(&namespace.metadata)).collect()
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Outcome::Done) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if namespace.metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|name| name == FINALIZER) {
            return Ok(Outcome::Done);
        }
        let began = clock::now();
        let left = remaining(&key.name, lead).await?;
        if !left.is_empty() {
            tell(&namespace, &left, lead).await?;
            // Looking at thousands of objects that end is work, too: a look that took long is followed by a longer pause.
            return Ok(Outcome::After(began.elapsed().clamp(AGAIN, AGAIN_LONGEST)));
        }
        let mut freed = (*namespace).clone();
        let kept = finalizers.into_iter().filter(|name| name != FINALIZER).collect();
        freed.spec.get_or_insert_default().finalizers = Some(kept);
        let stored: Api<Namespace> = Api::all(lead.client.clone());
        match stored.replace_subresource("finalize", &key.name, &PostParams::default(), &freed).await {
            Err(error) if is_not_found(&error) => Ok(Outcome::Done),
            Err(error) if is_conflict(&error) => Ok(Outcome::After(AGAIN)),
            Err(error) => Err(api("finalize the namespace")(error)),
            Ok(_) => Ok(Outcome::Done),
        }
    }
}

/// Deletes what is in the namespace and returns how many objects of which resource are still there.
async fn remaining(namespace: &str, lead: &Lead) -> Result<Vec<(String, usize)>, ReconcileError> {
    let discovery = Discovery::new(lead.client.clone()).run().await.map_err(api("discover resources"))?;
    let mut resources: Vec<ApiResource> = discovery
        .groups()
        .flat_map(|group| group.recommended_resources())
        .filter(|(_, capabilities)| {
            capabilities.scope == Scope::Namespaced && capabilities.supports_operation(verbs::LIST)
        })
        .filter(|(_, capabilities)| capabilities.supports_operation(verbs::DELETE))
        .map(|(resource, _)| resource)
        .collect();
    // Pods hold on to the other objects (volumes, accounts), so these wait for them.
    resources.sort_by_key(|resource| resource.plural != "pods");
    let mut left = Vec::new();
    for resource in resources {
        let count = empty(namespace, &resource, lead).await?;
        if count > 0 {
            left.push((resource.plural.clone(), count));
            if resource.plural == "pods" {
                break;
            }
        }
    }
    Ok(left)
}

/// Deletes the objects of one resource; how many are still there afterwards.
///
/// Page by page and one object at a time, not by deletecollection: that answers with every object it deleted, thousands in
/// one piece, and would mark again what is marked already.
async fn empty(namespace: &str, resource: &ApiResource, lead: &Lead) -> Result<usize, ReconcileError> {
    let objects: Api<DynamicObject> = Api::namespaced_with(lead.client.clone(), namespace, resource);
    let what = || format!("empty {} of the namespace", resource.plural);
    let (mut ending, mut found) = (0, false);
    let mut page = ListParams { limit: Some(limits::NAMESPACE_PAGE), ..ListParams::default() };
    loop {
        let list = objects.list_metadata(&page).await.map_err(api(what()))?;
        found |= !list.items.is_empty();
        let (marked, fresh): (Vec<_>, Vec<_>) =
            list.items.into_iter().map(|object| object.metadata).partition(|meta| meta.deletion_timestamp.is_some());
        let deletions = fresh.into_iter().map(|meta| {
            let objects = objects.clone();
            async move { delete_same(&objects, &meta, DeleteParams::background()).await }
        });
        let deletions = futures::stream::iter(deletions);
        let pending = deletions.buffer_unordered(limits::NAMESPACE_DELETES);
        ending += marked.len()
            + pending
                .try_fold(0, async |sum, how| Ok(sum + usize::from(how != Deleted::Gone)))
                .await
                .map_err(api(what()))?;
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    if found && ending == 0 {
        let rest = ListParams { limit: Some(1), ..ListParams::default() };
        return Ok(objects.list_metadata(&rest).await.map_err(api(what()))?.items.len());
    }
    Ok(ending)
}

async fn tell(namespace: &Namespace, left: &[(String, usize)], lead: &Lead) -> Result<(), ReconcileError> {
    let counts: Vec<String> =
        left.iter().map(|(resource, count)| format!("{resource} has {count} resource instances")).collect();
    let message = format!("Some resources are remaining: {}", counts.join(", "));
    let conditions = namespace.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let told = |condition: &NamespaceCondition| condition.message.as_deref() == Some(message.as_str());
    if conditions.into_iter().any(told) {
        return Ok(());
    }
    let condition = NamespaceCondition {
        type_: "NamespaceContentRemaining".to_owned(),
        status: "True".to_owned(),
        reason: Some("SomeResourcesRemain".to_owned()),
        message: Some(message),
        last_transition_time: Some(time_now()),
    };
    let stored: Api<Namespace> = Api::all(lead.client.clone());
    let patch = json!({"status": {"conditions": [condition]}});
    match stored.patch_status(&namespace.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
        Err(error) if !is_not_found(&error) => Err(api("tell what remains in the namespace")(error)),
        _ => Ok(()),
    }
}
