//! Does what the plan says: creates and deletes pods, writes the status.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Resource};
use pintle_client::Key;
use pintle_client::object::{controller_reference, reference, time_now};

use super::Replicas;
use super::kind::{Counts, Kind, Replicated, Trouble};
use super::plan::Step;
use crate::limits;
use crate::runtime::{Lead, ReconcileError, api, is_not_found, is_refused, pods};

/// Creating or deleting pods did not go well.
#[derive(Debug)]
pub(super) struct Failure {
    reason: &'static str,
    message: String,
    error: ReconcileError,
}

impl Failure {
    fn new(reason: &'static str, what: String, error: kube::Error) -> Self {
        let message = match &error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        Self { reason, message, error: api(what)(error) }
    }

    pub(super) fn into_error(self) -> ReconcileError {
        self.error
    }
}

impl<T: Kind> Replicas<T> {
    pub(super) async fn execute(&self, key: &Key, owner: &T::Object, step: Step, lead: &Lead) -> Result<(), Failure> {
        match step {
            Step::Nothing => Ok(()),
            Step::Create(count) => self.create(key, owner, count, lead).await,
            Step::Delete(pods) => self.delete(key, owner, pods, lead).await,
        }
    }

    /// Creates pods in batches that double as long as none fails: a quota that is used up costs one refusal, not hundreds.
    async fn create(&self, key: &Key, owner: &T::Object, count: usize, lead: &Lead) -> Result<(), Failure> {
        let Some(template) = owner.template() else { return Ok(()) };
        let pod = pods::from_template(template, controller_reference(owner));
        let api: Api<Pod> = Api::namespaced(lead.client.clone(), &key.namespace);
        let (mut left, mut batch) = (count, limits::SLOW_START);
        while left > 0 {
            let now = batch.min(left);
            let results = join_all((0..now).map(|_| self.create_one(key, owner, &api, &pod))).await;
            results.into_iter().collect::<Result<(), Failure>>()?;
            left -= now;
            batch = batch.saturating_mul(2);
        }
        Ok(())
    }

    async fn create_one(&self, key: &Key, owner: &T::Object, api: &Api<Pod>, pod: &Pod) -> Result<(), Failure> {
        self.expectations.creating(key);
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                let (name, uid) = (created.metadata.name.unwrap_or_default(), created.metadata.uid.unwrap_or_default());
                self.expectations.created(key, &uid);
                self.recorder.normal(reference(owner), "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.expectations.not_created(key, is_refused(&error));
                if is_terminating(&error) {
                    return Ok(()); // everything in the namespace is being deleted, this owner too
                }
                let failure = Failure::new("FailedCreate", "create a pod".to_owned(), error);
                self.recorder.warning(reference(owner), "FailedCreate", format!("Error creating: {}", failure.message));
                Err(failure)
            }
        }
    }

    async fn delete(&self, key: &Key, owner: &T::Object, pods: Vec<Arc<Pod>>, lead: &Lead) -> Result<(), Failure> {
        let api: Api<Pod> = Api::namespaced(lead.client.clone(), &key.namespace);
        // All of them are expected before the first is sent: none may be chosen again meanwhile.
        for pod in &pods {
            self.expectations.deleting(key, pod.metadata.uid.as_deref().unwrap_or_default());
        }
        let results = join_all(pods.iter().map(|pod| self.delete_one(key, owner, &api, pod))).await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, key: &Key, owner: &T::Object, api: &Api<Pod>, pod: &Pod) -> Result<(), Failure> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let same = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        match api.delete(name, &DeleteParams { preconditions: Some(same), ..DeleteParams::default() }).await {
            Ok(_) => {
                self.recorder.normal(reference(owner), "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.expectations.not_deleted(key, uid);
                if is_not_found(&error) {
                    return Ok(());
                }
                let failure = Failure::new("FailedDelete", format!("delete pod {name}"), error);
                self.recorder.warning(reference(owner), "FailedDelete", format!("Error deleting: {}", failure.message));
                Err(failure)
            }
        }
    }

    /// Writes the status if it differs.
    pub(super) async fn publish(
        &self,
        key: &Key,
        owner: &Arc<T::Object>,
        counts: &Counts,
        failure: Option<&Failure>,
        lead: &Lead,
    ) -> Result<(), ReconcileError> {
        let trouble = failure.map(|failure| Trouble { reason: failure.reason, message: &failure.message });
        let Some(changed) = owner.with_status(counts, trouble, &time_now()) else { return Ok(()) };
        let owners: Api<T::Object> = Api::namespaced(lead.client.clone(), &key.namespace);
        let name = owner.meta().name.as_deref().unwrap_or_default();
        match owners.replace_status(name, &PostParams::default(), &changed).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(api("write the status")(error)),
        }
    }
}

/// True if the namespace is being deleted and takes nothing new.
fn is_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}
