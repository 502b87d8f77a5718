//! One implementation of create, get, list, update, patch and delete for every kind, over the kinds table.
//!
//! Sits between the handlers and the store. What differs per kind is in [`strategy`]; defaults and validation are
//! `pintle_api`'s; admission is a hook. Always holds: nothing is stored that did not pass decoding, defaulting,
//! admission and validation in this order; an object's version is compared in the transaction that changes it.

mod create;
mod delete;
mod finish;
mod options;
mod patch;
mod read;
mod strategy;
mod update;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use pintle_api::codec;
use pintle_api::kinds::Kind;
use pintle_api::meta::Meta;
use pintle_api::status::{FieldError, Path, Status};
use pintle_store::Store;
use serde_json::Value;

use crate::authz;
use crate::cache::{self, Cache, Object, Slot, layout};
use crate::limits;
use crate::storage::{Storage, status_of};
use crate::types::{Admit, Decision, Hooks, Operation, RequestInfo, Review, UserInfo};

pub use delete::Deleted;
pub use options::{DeleteOptions, Propagation, WriteOptions};
pub(crate) use patch::worked_out;
pub use patch::{Patch, PatchKind};
pub use read::{ListOptions, Page, VersionMatch};
pub use strategy::now;
pub use update::Target;
pub(crate) use update::{Old, at_once};

/// Cheap to clone; clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Storage,
    store: Store,
    cache: Arc<Cache>,
    hooks: OnceLock<Hooks>,
}

/// What a write left behind.
#[derive(Clone, Debug)]
pub struct Written {
    /// As stored, in the stored version of the kind.
    pub object: Arc<Object>,
    pub created: bool,
    /// Lines for `Warning: 299` headers.
    pub warnings: Vec<String>,
}

impl Registry {
    pub(crate) fn new(store: Store, cache: Arc<Cache>) -> Self {
        let storage = Storage::new(store.clone());
        Self { inner: Arc::new(Inner { storage, store, cache, hooks: OnceLock::new() }) }
    }

    /// Installs the hooks; the first call wins.
    pub(crate) fn install(&self, hooks: Hooks) {
        self.inner.hooks.get_or_init(|| hooks);
    }

    pub fn hooks(&self) -> &Hooks {
        self.inner.hooks.get_or_init(crate::hooks::closed)
    }

    fn admission(&self) -> &dyn Admit {
        &*self.hooks().admission
    }

    fn cache(&self) -> &Arc<Cache> {
        &self.inner.cache
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    fn storage(&self) -> &Storage {
        &self.inner.storage
    }

    /// The object as the store has it now, past any cache.
    async fn stored(&self, kind: &'static Kind, namespace: &str, name: &str) -> Result<Option<Arc<Object>>, Status> {
        let key = Bytes::from(layout::store_key(kind, namespace, name));
        let found = self.storage().read(key).await.map_err(|error| status_of(&error))?;
        Ok(found.as_ref().and_then(cache::feed::object))
    }

    /// Refuses an update or apply that would create, unless the user may create: the request was authorised for another verb.
    fn may_create(&self, kind: &'static Kind, namespace: &str, name: &str, user: &UserInfo) -> Result<(), Status> {
        let info = RequestInfo {
            verb: "create".into(),
            is_resource: true,
            api_prefix: if kind.group.is_empty() { "api".into() } else { "apis".into() },
            api_group: kind.group.into(),
            version: kind.version.into(),
            resource: kind.resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestInfo::default()
        };
        match self.hooks().authz.authorize(user, &info) {
            Decision::Allow => Ok(()),
            Decision::Deny { reason } => Err(authz::forbidden(user, &authz::action_of(&info), &reason)),
        }
    }

    /// Runs the mutating half of admission, and takes over what it changed.
    async fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        self.admission().mutate(review).await
    }

    /// Runs the validating half of admission.
    async fn admit(&self, review: &Review<'_>) -> Result<(), Status> {
        self.admission().validate(review).await
    }
}

/// True if `kind` is served in the form it is stored in.
pub fn is_stored_form(kind: &'static Kind) -> bool {
    codec::storage_kind(kind) == kind
}

fn stored_slot(kind: &'static Kind) -> Result<Slot, Status> {
    layout::slot(kind).ok_or_else(|| Status::method_not_supported(kind.group, kind.resource, "storage"))
}

fn not_found(kind: &Kind, name: &str) -> Status {
    Status::not_found(kind.group, kind.resource, name)
}

fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Status {
    Status::invalid(kind.group, kind.kind, name, errors)
}

/// The text of an object as it is stored: no resourceVersion (that is the key's), no managed fields.
fn encode_stored(mut object: Value) -> Result<Bytes, Status> {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
        metadata.remove("selfLink");
    }
    let text = serde_json::to_vec(&object).map_err(Status::internal)?;
    if text.len() > limits::OBJECT_BYTES {
        return Err(Status::too_large(limits::OBJECT_BYTES));
    }
    Ok(text.into())
}

/// A new review of a write.
fn review<'a>(
    operation: Operation,
    kind: &'static Kind,
    place: (&'a str, &'a str, &'a str),
    options: &'a WriteOptions,
    object: Value,
    old: Option<Arc<Value>>,
) -> Review<'a> {
    let (namespace, name, subresource) = place;
    Review {
        operation,
        kind,
        subresource,
        namespace,
        name,
        user: &options.user,
        object,
        old,
        dry_run: options.dry_run,
        extra: Vec::new(),
        warnings: Vec::new(),
        attempt: 0,
    }
}

/// Refuses an object whose name or namespace is not the one in the path.
fn check_place(object: &Value, namespace: &str, name: &str) -> Result<(), Status> {
    let meta = Meta::of(object);
    if !meta.namespace().is_empty() && meta.namespace() != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if !name.is_empty() && meta.name() != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            meta.name()
        )));
    }
    Ok(())
}

fn metadata_path(field: &str) -> Path {
    Path::new("metadata").child(field)
}
