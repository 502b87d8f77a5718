//! Sees that every namespace has its `default` ServiceAccount.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use pintle_client::{Key, SharedReflector};

use crate::runtime::{
    Context, Controller, Intake, Lead, Outcome, ReconcileError, api, is_already_exists, is_not_found,
};

const DEFAULT: &str = "default";

pub struct ServiceAccounts {
    namespaces: SharedReflector<Namespace>,
    accounts: SharedReflector<ServiceAccount>,
}

impl ServiceAccounts {
    pub fn new(context: &Context) -> Self {
        Self { namespaces: context.reflectors.of(), accounts: context.reflectors.of() }
    }
}

impl Controller for ServiceAccounts {
    const NAME: &'static str = "serviceaccount";

    fn watch(&self, intake: &Intake) {
        intake.every(&self.namespaces);
        intake.mapped(&self.accounts, |account| account.metadata.namespace.clone().map(Key::cluster));
    }

    fn all(&self) -> Vec<Key> {
        self.namespaces.keys()
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let active = self.namespaces.get(key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none());
        if !active || self.accounts.get(&Key::new(key.name.clone(), DEFAULT)).is_some() {
            return Ok(Outcome::Done);
        }
        let mut account = ServiceAccount::default();
        account.metadata.name = Some(DEFAULT.to_owned());
        let stored: Api<ServiceAccount> = Api::namespaced(lead.client.clone(), &key.name);
        match stored.create(&PostParams::default(), &account).await {
            Err(error) if !is_already_exists(&error) && !is_not_found(&error) => {
                Err(api("create the default service account")(error))
            }
            _ => Ok(Outcome::Done),
        }
    }
}
