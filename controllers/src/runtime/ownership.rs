//! Who controls what: which objects an owner has, should adopt, and should let go.
//!
//! Always holds: an object with another controller is never touched; an owner that is being deleted adopts nothing.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};
use pintle_client::LabelQuery;
use pintle_client::object::{controller_of, controller_reference};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::error::{ReconcileError, api, is_not_found};
use crate::runtime::Lead;

/// What an owner has to do with the objects of its namespace.
#[derive(Debug)]
pub struct Claim<K> {
    /// Controlled by the owner and matching.
    pub owned: Vec<Arc<K>>,
    /// Matching and controlled by nobody.
    pub adopt: Vec<Arc<K>>,
    /// Controlled by the owner and not matching any more.
    pub release: Vec<Arc<K>>,
}

/// Sorts `candidates` by their relation to `owner`, which selects with `selector`.
pub fn claim<K: Resource>(owner: &ObjectMeta, selector: &LabelQuery, candidates: Vec<Arc<K>>) -> Claim<K> {
    let mut claim = Claim { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    let going = owner.deletion_timestamp.is_some();
    for object in candidates {
        let meta = object.meta();
        let matches = selector.matches(meta.labels.as_ref());
        match controller_of(meta) {
            Some(reference) if Some(&reference.uid) != owner.uid.as_ref() => (),
            Some(_) if matches => claim.owned.push(object),
            Some(_) if !going => claim.release.push(object),
            None if matches && !going && meta.deletion_timestamp.is_none() => claim.adopt.push(object),
            Some(_) | None => (),
        }
    }
    claim
}

/// Does the adoptions and releases of `claim` and returns what `owner` controls then.
///
/// # Errors
/// [`ReconcileError`] if a patch fails for another reason than that the object is gone.
pub async fn settle<O, K>(owner: &O, claim: Claim<K>, lead: &Lead) -> Result<Vec<Arc<K>>, ReconcileError>
where
    O: Owner,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let Claim { mut owned, adopt, release } = claim;
    let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
    let objects: Api<K> = Api::namespaced(lead.client.clone(), namespace);
    if !adopt.is_empty() && !is_still_there(owner, lead).await? {
        return Ok(owned);
    }
    for object in adopt {
        let patch = json!({"metadata": {
            "uid": object.meta().uid,
            "ownerReferences": [controller_reference(owner)],
        }});
        if let Some(adopted) = patched(&objects, &object, &Patch::Strategic(patch), "adopt").await? {
            owned.push(Arc::new(adopted));
        }
    }
    for object in release {
        let patch = json!({"metadata": {
            "uid": object.meta().uid,
            "ownerReferences": [{"$patch": "delete", "uid": owner.meta().uid}],
        }});
        patched(&objects, &object, &Patch::Strategic(patch), "release").await?;
    }
    Ok(owned)
}

/// An object that controls others.
pub trait Owner: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned {}
impl<O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned> Owner for O {}

/// Asks the server, not the cache: adopting for an owner that is gone would leak the object.
async fn is_still_there<O: Owner>(owner: &O, lead: &Lead) -> Result<bool, ReconcileError> {
    let meta = owner.meta();
    let owners: Api<O> = Api::namespaced(lead.client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let fresh = owners.get_opt(meta.name.as_deref().unwrap_or_default()).await.map_err(api("read the owner"))?;
    Ok(fresh.is_some_and(|fresh| fresh.meta().uid == meta.uid && fresh.meta().deletion_timestamp.is_none()))
}

/// Patches `object`; `None` if it is gone or another one has its name.
async fn patched<K: Resource + Clone + Debug + DeserializeOwned>(
    objects: &Api<K>,
    object: &K,
    patch: &Patch<serde_json::Value>,
    verb: &str,
) -> Result<Option<K>, ReconcileError> {
    let name = object.meta().name.as_deref().unwrap_or_default();
    match objects.patch(name, &PatchParams::default(), patch).await {
        Ok(patched) => Ok(Some(patched)),
        Err(error) if is_not_found(&error) => Ok(None),
        // The uid in the patch is not the object's: another object has the name now.
        Err(kube::Error::Api(status)) if status.code == 422 => Ok(None),
        Err(error) => Err(api(format!("{verb} {name}"))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::Value;

    fn pod(name: &str, app: &str, owner: Option<&str>) -> Arc<Pod> {
        let owners: Vec<Value> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let metadata = json!({"name": name, "labels": {"app": app}, "ownerReferences": owners});
        Arc::new(serde_json::from_value(json!({"metadata": metadata})).expect("pod"))
    }

    /// `owned | adopt | release`
    fn run(going: bool, pods: Vec<Arc<Pod>>) -> String {
        let mut owner = ObjectMeta { uid: Some("me".into()), ..ObjectMeta::default() };
        owner.deletion_timestamp = going.then(pintle_client::object::time_now);
        let selector = LabelQuery::equal_to(&[("app".to_owned(), "web".to_owned())].into());
        let claim = claim(&owner, &selector, pods);
        let names =
            |pods: &[Arc<Pod>]| pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>().join(",");
        format!("{}|{}|{}", names(&claim.owned), names(&claim.adopt), names(&claim.release))
    }

    #[test]
    fn own_pods_are_kept_orphans_adopted_strays_released_and_others_left_alone() {
        let pods = || {
            vec![
                pod("mine", "web", Some("me")),
                pod("orphan", "web", None),
                pod("stray", "db", Some("me")),
                pod("theirs", "web", Some("you")),
                pod("unrelated", "db", None),
            ]
        };
        assert_eq!(run(false, pods()), "mine|orphan|stray");
        assert_eq!(run(true, pods()), "mine||");
    }
}
