//! Fills the Secrets that ask for a service account's token, and deletes them with their account.
//!
//! Flow: Secrets of that type, and service accounts → [`plan`] → a signed token into the Secret, or its deletion. The API
//! server checks such a token against the Secret and the account (its `legacy_token`).
//! Always holds: a token is signed only for an account that is there, and kept only by a write that replaces the Secret as
//! it was read; nothing is deleted for an account that the API, asked directly, still has. The key never leaves this value.

pub mod plan;

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use pintle_api::tokens::jwt::Keys;
use pintle_api::tokens::legacy::{Claims, SECRET_TYPE, TOKEN};
use pintle_client::reflector::Selection;
use pintle_client::{Index, Key, SharedReflector};

use crate::runtime::{
    Context, Controller, Intake, Lead, Outcome, ReconcileError, api, delete_same, is_conflict, is_not_found,
};

pub struct ServiceAccountTokens {
    secrets: SharedReflector<Secret>,
    accounts: SharedReflector<ServiceAccount>,
    /// By the key of the service account, as text.
    secrets_by_account: Index<Secret>,
    keys: Keys,
    certificate: String,
}

impl ServiceAccountTokens {
    /// Signs with `keys`; `certificate` is the authority's, PEM.
    pub fn new(context: &Context, keys: Keys, certificate: String) -> Self {
        let secrets = context.reflectors.selected(Selection::fields(format!("type={SECRET_TYPE}")));
        Self::over(secrets, context.reflectors.of(), keys, certificate)
    }

    fn over(
        secrets: SharedReflector<Secret>,
        accounts: SharedReflector<ServiceAccount>,
        keys: Keys,
        certificate: String,
    ) -> Self {
        let secrets_by_account = Index::new(&secrets, |secret| account_key(secret).map(|key| key.to_string()));
        Self { secrets, accounts, secrets_by_account, keys, certificate }
    }
}

fn account_key(secret: &Secret) -> Option<Key> {
    Some(Key::new(secret.metadata.namespace.as_deref()?, plan::account_name(secret)?))
}

impl Controller for ServiceAccountTokens {
    const NAME: &'static str = "service-account-token";

    fn watch(&self, intake: &Intake) {
        intake.every(&self.secrets);
        let secrets = self.secrets_by_account.clone();
        intake.mapped(&self.accounts, move |account| {
            let of_account = secrets.get(&Key::of(&account.metadata).to_string());
            of_account.iter().map(|secret| Key::of(&secret.metadata)).collect::<Vec<_>>()
        });
    }

    fn all(&self) -> Vec<Key> {
        self.secrets.keys()
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let Some(secret) = self.secrets.get(key) else { return Ok(Outcome::Done) };
        let Some(account) = account_key(&secret) else { return Ok(Outcome::Done) };
        let account = self.account(&secret, &account, lead).await?;
        let stored: Api<Secret> = Api::namespaced(lead.client.clone(), &key.namespace);
        let written = match plan::next(&secret, account.as_deref(), &self.certificate) {
            plan::Next::Done => return Ok(Outcome::Done),
            plan::Next::Delete => {
                tracing::info!(secret = %key, "the token's service account is gone, it goes too");
                delete_same(&stored, &secret.metadata, DeleteParams::default()).await.map(drop)
            }
            plan::Next::Write { mut secret, token } => {
                if let Some(claims) = token {
                    secret.data.get_or_insert_default().insert(TOKEN.to_owned(), self.sign(&claims)?);
                }
                stored.replace(&key.name, &PostParams::default(), &secret).await.map(drop)
            }
        };
        match written {
            // The Secret is another one by now, and its event brings us back.
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(Outcome::Done),
            Err(error) => Err(api("keep a service account's token")(error)),
            Ok(()) => Ok(Outcome::Done),
        }
    }
}

impl ServiceAccountTokens {
    /// The account that `secret` is of. If the cache does not have it the API is asked: the account may have been made just
    /// before the Secret, and its event be under way.
    async fn account(
        &self,
        secret: &Secret,
        key: &Key,
        lead: &Lead,
    ) -> Result<Option<Arc<ServiceAccount>>, ReconcileError> {
        if let Some(account) = self.accounts.get(key).filter(|account| plan::is_of(secret, account)) {
            return Ok(Some(account));
        }
        let stored: Api<ServiceAccount> = Api::namespaced(lead.client.clone(), &key.namespace);
        let found = stored.get_opt(&key.name).await.map_err(api("look for the service account of a token"))?;
        Ok(found.map(Arc::new))
    }

    fn sign(&self, claims: &Claims) -> Result<ByteString, ReconcileError> {
        let token = self.keys.sign(claims).map_err(|error| ReconcileError::Invalid(error.to_string()))?;
        Ok(ByteString(token.into_bytes()))
    }
}

#[cfg(test)]
mod tests;
