//! Update: read, change, check, and put only if nobody else wrote meanwhile.
//!
//! The first try starts from the cache; whatever it refuses is looked at again with the stored object, so that a stale
//! cache never decides. A try that loses the race starts over from what it lost to.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use pintle_api::kinds::Kind;
use pintle_api::meta::{Meta, MetaMut};
use pintle_api::status::{FieldError, Status};
use pintle_api::strategy::{allows_create_on_update, allows_unconditional_update};
use pintle_api::{codec, defaults, validate};
use serde_json::Value;

use super::{Registry, WriteOptions, Written, check_place, encode_stored, finish, invalid, metadata_path};
use super::{is_stored_form, not_found, review, stored_slot, strategy};
use crate::cache::{self, Object, layout};
use crate::limits;
use crate::storage::{Refused, Write, status_of};
use crate::types::{Extra, Operation};

/// Makes the new object out of the old one. Called again after a lost race.
pub type Change<'a> = dyn FnMut(Old) -> BoxFuture<'static, Result<Value, Status>> + Send + 'a;

/// What a change starts from.
pub struct Old {
    /// In the served version.
    pub tree: Arc<Value>,
    /// Size of its text.
    pub bytes: usize,
}

/// A change that takes no time worth speaking of.
pub(crate) fn at_once<'a>(
    mut change: impl FnMut(&Value) -> Result<Value, Status> + Send + 'a,
) -> impl FnMut(Old) -> BoxFuture<'static, Result<Value, Status>> + Send + 'a {
    move |old| Box::pin(std::future::ready(change(&old.tree)))
}

/// Which part of which object is written.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub kind: &'static Kind,
    pub namespace: &'a str,
    pub name: &'a str,
    pub subresource: &'a str,
}

/// A checked change, ready to be written.
struct Prepared {
    /// Stored form.
    object: Value,
    extra: Vec<Extra>,
    warnings: Vec<String>,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Put,
    /// Nothing differs: nothing is written.
    Same,
    /// The change took the last obstacle to the object's deletion away.
    Delete,
}

impl Registry {
    /// Replaces an object, or its status, by `object`.
    ///
    /// With a resourceVersion in `object` only that version is replaced; without, any. Some kinds are created if absent, by
    /// those who may create them.
    /// # Errors
    /// 409 Conflict, 404, 422 Invalid, 403 from authorization or admission; 504 if the outcome is unknown.
    pub async fn update(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        check_place(&object, namespace, name)?;
        let target = Target { kind, namespace, name, subresource };
        let create = subresource.is_empty() && allows_create_on_update(kind);
        if !create && !allows_unconditional_update(kind) && Meta::of(&object).resource_version().is_empty() {
            let error = FieldError::invalid(&metadata_path("resourceVersion"), 0, "must be specified for an update");
            return Err(invalid(kind, name, &[error]));
        }
        let result = self.modify(target, &mut at_once(|_| Ok(object.clone())), options, limits::UPDATE_RETRIES).await;
        match result {
            Err(status) if status.code == 404 && create => {
                self.may_create(kind, namespace, name, &options.user)?;
                let mut object = object;
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("resourceVersion");
                    metadata.remove("uid");
                }
                self.create(kind, namespace, object, options).await
            }
            other => other,
        }
    }

    /// Reads, changes and writes one object, again if others write between. For this server's own use.
    ///
    /// # Errors
    /// What `change` refuses with, 404, 409 after too many lost races, and as [`Registry::update`].
    pub async fn update_with(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        change: impl FnMut(&Value) -> Result<Value, Status> + Send,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let target = Target { kind, namespace, name, subresource };
        self.modify(target, &mut at_once(change), options, limits::UPDATE_RETRIES).await
    }

    pub(crate) async fn modify(
        &self,
        target: Target<'_>,
        change: &mut Change<'_>,
        options: &WriteOptions,
        retries: u32,
    ) -> Result<Written, Status> {
        let Target { kind, namespace, name, .. } = target;
        let mut cached = true;
        let mut old = match self.cache().get(kind, namespace, name) {
            Some(old) => old,
            None => {
                cached = false;
                self.stored(kind, namespace, name).await?.ok_or_else(|| not_found(kind, name))?
            }
        };
        for attempt in 0..retries.max(1) {
            let prepared = match self.prepare(target, &old, change, options, attempt).await {
                Ok(prepared) => prepared,
                Err(_) if cached => {
                    // The refusal may be due to a stale cache; the store decides.
                    cached = false;
                    old = self.stored(kind, namespace, name).await?.ok_or_else(|| not_found(kind, name))?;
                    self.prepare(target, &old, change, options, attempt).await?
                }
                Err(status) => return Err(status),
            };
            if prepared.outcome == Outcome::Same && cached {
                // "Nothing to do" must hold for the stored object too.
                cached = false;
                let stored = self.stored(kind, namespace, name).await?.ok_or_else(|| not_found(kind, name))?;
                if stored.revision != old.revision {
                    old = stored;
                    continue;
                }
            }
            cached = false;
            let warnings = prepared.warnings.clone();
            match self.write_prepared(target, &old, prepared, options).await {
                Ok(object) => return Ok(Written { object: object?, created: false, warnings }),
                Err(Refused::Claimed) => (),
                Err(Refused::Changed(None)) => return Err(not_found(kind, name)),
                Err(Refused::Changed(Some(kv))) => {
                    old =
                        cache::feed::object(&kv).ok_or_else(|| Status::internal("the stored object is unreadable"))?;
                }
                Err(Refused::Store(error)) => return Err(status_of(&error)),
            }
        }
        Err(Status::object_modified(kind.group, kind.resource, name))
    }

    async fn prepare(
        &self,
        target: Target<'_>,
        old: &Arc<Object>,
        change: &mut Change<'_>,
        options: &WriteOptions,
        attempt: u32,
    ) -> Result<Prepared, Status> {
        let Target { kind, namespace, name, subresource } = target;
        let old_tree = match is_stored_form(kind) {
            true => old.tree(),
            false => Arc::new(codec::from_storage(kind, (*old.tree()).clone())),
        };
        let mut object = change(Old { tree: Arc::clone(&old_tree), bytes: old.size() }).await?;
        check_place(&object, namespace, name)?;
        check_version(kind, name, &object, &old_tree)?;
        defaults::apply(kind, &mut object);
        strategy::before_update(kind, subresource, &mut object, &old_tree);
        let place = (namespace, name, subresource);
        let mut review = review(Operation::Update, kind, place, options, object, Some(Arc::clone(&old_tree)));
        review.attempt = attempt;
        self.mutate(&mut review).await?;
        MetaMut::of(&mut review.object).set_resource_version(u64::try_from(old.revision).unwrap_or(0));
        let errors = validation(kind, subresource, &review.object, &old_tree);
        if !errors.is_empty() {
            return Err(invalid(kind, name, &errors));
        }
        self.admit(&review).await?;

        let outcome = match () {
            () if is_released(kind, &review.object) => Outcome::Delete,
            () if review.extra.is_empty() && same(&review.object, &old_tree) => Outcome::Same,
            () => Outcome::Put,
        };
        let mut extra = review.extra;
        if outcome == Outcome::Delete {
            extra.extend(self.admission().released(kind, &old_tree));
        }
        Ok(Prepared { object: codec::to_storage(kind, review.object), extra, warnings: review.warnings, outcome })
    }

    async fn write_prepared(
        &self,
        target: Target<'_>,
        old: &Arc<Object>,
        prepared: Prepared,
        options: &WriteOptions,
    ) -> Result<Result<Arc<Object>, Status>, Refused> {
        let Target { kind, namespace, name, .. } = target;
        if prepared.outcome == Outcome::Same {
            return Ok(Ok(Arc::clone(old)));
        }
        let value = match (stored_slot(kind), encode_stored(prepared.object.clone())) {
            (Ok(_), Ok(value)) => value,
            (Err(status), _) | (_, Err(status)) => return Ok(Err(status)),
        };
        if options.dry_run {
            return Ok(finish::object(old.slot, &old.key, old.revision, prepared.object));
        }
        let put = prepared.outcome == Outcome::Put;
        let lease = match put && strategy::is_event(kind) {
            true => self.storage().event_lease().await.map_err(Refused::Store)?,
            false => 0,
        };
        let write = Write {
            key: Bytes::from(layout::store_key(kind, namespace, name)),
            expected: old.revision,
            value: put.then_some(value),
            lease,
            extra: &prepared.extra,
            fence: options.fence,
        };
        let revision = self.storage().write(write).await?;
        Ok(finish::object(old.slot, &old.key, revision, prepared.object))
    }
}

/// Holds the new object against the version and identity it says it replaces.
fn check_version(kind: &Kind, name: &str, object: &Value, old: &Value) -> Result<(), Status> {
    let (new, old) = (Meta::of(object), Meta::of(old));
    if !new.uid().is_empty() && new.uid() != old.uid() {
        return Err(Status::precondition_failed(kind.group, kind.resource, name, "UID", new.uid(), old.uid()));
    }
    match new.resource_version() {
        "" | "0" => Ok(()),
        version if version == old.resource_version() => Ok(()),
        version if version.parse::<u64>().is_err() => {
            let error = FieldError::invalid(&metadata_path("resourceVersion"), version, "must be a whole number");
            Err(invalid(kind, name, &[error]))
        }
        _ => Err(Status::object_modified(kind.group, kind.resource, name)),
    }
}

/// The rules for the part of the object that is written.
fn validation(kind: &'static Kind, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    match subresource {
        "status" => validate::update_status(kind, new, old),
        "approval" => validate::certificate_approval(kind, new, old),
        "ephemeralcontainers" => validate::pod_ephemeral_containers(new, old),
        "resize" => validate::pod_resize(new, old),
        // What a binding may change is checked where it is made, in `connect::binding`.
        "binding" => Vec::new(),
        _ => validate::update(kind, new, old),
    }
}

/// True if deletion was asked for and nothing holds the object any more.
fn is_released(kind: &Kind, object: &Value) -> bool {
    let meta = Meta::of(object);
    meta.is_deleting()
        && meta.finalizers().next().is_none()
        && meta.deletion_grace_seconds().unwrap_or(0) == 0
        && !(strategy::is_namespace(kind) && super::delete::has_namespace_finalizers(object))
}

/// Equal but for the version.
fn same(new: &Value, old: &Value) -> bool {
    let without_version = |value: &Value| {
        let mut value = value.clone();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
        }
        value
    };
    without_version(new) == without_version(old)
}
