//! Deletes bootstrap tokens that have expired, at the second they do.
//!
//! Flow: Secrets of that type in kube-system → [`plan`] → deletion, or a later look. Always holds: what is deleted is the
//! very Secret that was judged (by uid); the API server refuses an expired token whether it is deleted yet or not.

pub mod plan;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::DeleteParams;
use pintle_api::tokens::bootstrap::{NAMESPACE, SECRET_TYPE};
use pintle_client::reflector::Selection;
use pintle_client::{Key, SharedReflector};

use crate::runtime::{Context, Controller, Deleted, Intake, Lead, Outcome, ReconcileError, api, delete_same, pods};

pub struct TokenCleaner {
    secrets: SharedReflector<Secret>,
}

impl TokenCleaner {
    pub fn new(context: &Context) -> Self {
        let tokens = Selection::fields(format!("type={SECRET_TYPE},metadata.namespace={NAMESPACE}"));
        Self { secrets: context.reflectors.selected(tokens) }
    }
}

impl Controller for TokenCleaner {
    const NAME: &'static str = "token-cleaner";

    fn watch(&self, intake: &Intake) {
        intake.every(&self.secrets);
    }

    fn all(&self) -> Vec<Key> {
        self.secrets.keys()
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let Some(secret) = self.secrets.get(key) else { return Ok(Outcome::Done) };
        let why = match plan::next(&secret, pods::now()) {
            plan::Next::Keep => return Ok(Outcome::Done),
            plan::Next::After(delay) => return Ok(Outcome::After(delay)),
            plan::Next::Delete(why) => why,
        };
        let stored: Api<Secret> = Api::namespaced(lead.client.clone(), &key.namespace);
        let deleted = delete_same(&stored, &secret.metadata, DeleteParams::default()).await;
        if deleted.map_err(api("delete a bootstrap token"))? == Deleted::Gone {
            tracing::info!(secret = %key, why, "bootstrap token deleted");
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::plan::testing::secret;
    use super::*;
    use kube::client::Body;
    use parking_lot::Mutex;
    use pintle_client::Clients;
    use serde_json::{Value, json};

    #[tokio::test]
    async fn an_expired_token_is_deleted_by_its_uid_and_one_that_lives_waits() {
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&log);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let seen = Arc::clone(&seen);
            async move {
                let line = format!("{} {}", request.method(), request.uri().path());
                let body: Value = serde_json::from_slice(&request.into_body().collect_bytes().await?)?;
                seen.lock().push(format!("{line} {}", body["preconditions"]["uid"]));
                let answer = json!({"kind": "Status", "status": "Success"}).to_string();
                Ok::<_, tower::BoxError>(http::Response::new(answer))
            }
        });
        let lead = Lead { term: 1, client: Clients::in_process(service).fenced(1) };
        let cleaner = TokenCleaner { secrets: SharedReflector::detached() };
        cleaner.secrets.apply(secret("old", SECRET_TYPE, Some("2001-01-01T00:00:00Z")));
        cleaner.secrets.apply(secret("new", SECRET_TYPE, Some("2999-01-01T00:00:00Z")));
        let look = async |name: &str| cleaner.reconcile(&Key::new(NAMESPACE, name), &lead).await.expect("reconciled");
        assert_eq!(look("old").await, Outcome::Done);
        assert_eq!(look("new").await, Outcome::After(crate::limits::TOKEN_LOOK));
        assert_eq!(look("gone").await, Outcome::Done);
        assert_eq!(*log.lock(), ["DELETE /api/v1/namespaces/kube-system/secrets/old \"old-uid\""]);
    }
}
