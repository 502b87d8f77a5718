//! Deletes an object only if it still is the one that was judged.
//!
//! Always holds: the precondition names the uid, so an object that was made anew under the same name is never hit.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use serde::de::DeserializeOwned;

use super::error::{is_conflict, is_not_found};

/// What became of an object that was to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone, or was before.
    Gone,
    /// It is marked; a grace period or a finalizer holds it.
    Marked,
    /// Another object has its name by now, and was left alone. Its own event brings it to whoever cares.
    Replaced,
}

/// Deletes the object that `meta` is of, in the manner of `how`, whose preconditions are set here.
///
/// # Errors
/// What the API answered, but for "not found" and a conflict, which are outcomes.
pub async fn delete_same<K>(stored: &Api<K>, meta: &ObjectMeta, how: DeleteParams) -> Result<Deleted, kube::Error>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug,
{
    let same = Preconditions { uid: meta.uid.clone(), resource_version: None };
    let how = DeleteParams { preconditions: Some(same), ..how };
    match stored.delete(meta.name.as_deref().unwrap_or_default(), &how).await {
        Ok(answer) => {
            let held = answer.left().is_some_and(|object| object.meta().deletion_timestamp.is_some());
            Ok(if held { Deleted::Marked } else { Deleted::Gone })
        }
        Err(error) if is_not_found(&error) => Ok(Deleted::Gone),
        Err(error) if is_conflict(&error) => Ok(Deleted::Replaced),
        Err(error) => Err(error),
    }
}
