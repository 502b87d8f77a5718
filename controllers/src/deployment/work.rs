//! Does what the plan says.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use pintle_client::object::{controller_of, reference};
use serde_json::json;

use super::plan::{Plan, Write};
use super::{Deployments, now_in_seconds, revision, status};
use crate::runtime::{Lead, ReconcileError, api, is_already_exists, is_not_found};

impl Deployments {
    pub(super) async fn execute(
        &self,
        deployment: &Arc<Deployment>,
        plan: Plan,
        lead: &Lead,
    ) -> Result<(), ReconcileError> {
        let mut current = (**deployment).clone();
        let namespace = current.metadata.namespace.clone().unwrap_or_default();
        let sets: Api<ReplicaSet> = Api::namespaced(lead.client.clone(), &namespace);
        for write in plan.writes {
            match write {
                Write::Create(set) => self.create(&mut current, &sets, &set, lead).await?,
                Write::Update(set) => {
                    let name = set.metadata.name.clone().unwrap_or_default();
                    sets.replace(&name, &PostParams::default(), &set).await.map_err(api(format!("update {name}")))?;
                }
                Write::Delete(set) => delete(&sets, &set).await?,
                Write::Revision(number) => current = annotate(&current, number, lead).await?,
            }
        }
        for message in plan.scaled {
            self.recorder.normal(reference(&**deployment), "ScalingReplicaSet", message);
        }
        match plan.status {
            Some(status) => write_status(&mut current, status, lead).await,
            None => Ok(()),
        }
    }

    /// Creates the newest set. If its name is taken by a set of another template, the next try uses another hash.
    async fn create(
        &self,
        current: &mut Deployment,
        sets: &Api<ReplicaSet>,
        set: &ReplicaSet,
        lead: &Lead,
    ) -> Result<(), ReconcileError> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let error = match sets.create(&PostParams::default(), set).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if is_already_exists(&error) {
            let taken = sets.get_opt(name).await.map_err(api(format!("read {name}")))?;
            let template = current.spec.as_ref().map(|spec| &spec.template);
            let ours = taken.as_ref().is_some_and(|taken| {
                controller_of(&taken.metadata).map(|owner| owner.uid.as_str()) == current.metadata.uid.as_deref()
                    && template.is_some_and(|template| revision::runs_template(taken, template))
            });
            if !ours && taken.is_some() {
                let mut next = current.status.clone().unwrap_or_default();
                next.collision_count = Some(next.collision_count.unwrap_or(0).saturating_add(1));
                write_status(current, next, lead).await?;
            }
        } else {
            self.tell_failure(current, name, &error, lead).await?;
        }
        Err(api(format!("create {name}"))(error))
    }

    async fn tell_failure(
        &self,
        current: &mut Deployment,
        name: &str,
        error: &kube::Error,
        lead: &Lead,
    ) -> Result<(), ReconcileError> {
        let cause = match error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        let message = format!("Failed to create new replica set {name:?}: {cause}");
        self.recorder.warning(reference(&*current), status::SET_FAILED, message.clone());
        if status::progress_deadline(current).is_none() {
            return Ok(());
        }
        let mut next = current.status.clone().unwrap_or_default();
        let condition =
            status::new_condition(status::PROGRESSING, "False", status::SET_FAILED, message, now_in_seconds());
        status::set_condition(next.conditions.get_or_insert_default(), condition);
        if current.status.as_ref() == Some(&next) { Ok(()) } else { write_status(current, next, lead).await }
    }
}

async fn delete(sets: &Api<ReplicaSet>, set: &ReplicaSet) -> Result<(), ReconcileError> {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    // Only in the state that was decided on: it may have been scaled up since.
    let same = Preconditions { uid: set.metadata.uid.clone(), resource_version: set.metadata.resource_version.clone() };
    match sets.delete(name, &DeleteParams { preconditions: Some(same), ..DeleteParams::background() }).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(api(format!("delete {name}"))(error)),
    }
}

async fn annotate(current: &Deployment, number: i64, lead: &Lead) -> Result<Deployment, ReconcileError> {
    let patch = json!({"metadata": {
        "resourceVersion": current.metadata.resource_version,
        "annotations": {revision::REVISION: number.to_string()},
    }});
    let name = current.metadata.name.as_deref().unwrap_or_default();
    let patched = deployments(current, lead).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map_err(api("note the revision"))
}

async fn write_status(current: &mut Deployment, status: DeploymentStatus, lead: &Lead) -> Result<(), ReconcileError> {
    let name = current.metadata.name.clone().unwrap_or_default();
    let changed = Deployment { status: Some(status), ..current.clone() };
    match deployments(current, lead).replace_status(&name, &PostParams::default(), &changed).await {
        Ok(written) => *current = written,
        Err(error) if is_not_found(&error) => (),
        Err(error) => return Err(api("write the status")(error)),
    }
    Ok(())
}

fn deployments(current: &Deployment, lead: &Lead) -> Api<Deployment> {
    Api::namespaced(lead.client.clone(), current.metadata.namespace.as_deref().unwrap_or_default())
}
