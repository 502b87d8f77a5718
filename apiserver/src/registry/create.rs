//! Create: metadata, defaults, admission, validation, then one transaction "if absent, put".

use std::sync::Arc;

use bytes::Bytes;
use pintle_api::kinds::Kind;
use pintle_api::meta::{Meta, MetaMut};
use pintle_api::status::{FieldError, Status};
use pintle_api::{codec, defaults, names, validate};
use serde_json::Value;

use super::stored_slot;
use super::{
    Registry, WriteOptions, Written, check_place, encode_stored, finish, invalid, metadata_path, review, strategy,
};
use crate::cache::{Object, layout};
use crate::limits;
use crate::storage::{Refused, Write, status_of};
use crate::types::{Extra, Operation};

impl Registry {
    /// Creates `object` in `namespace` (empty for cluster-scoped kinds).
    ///
    /// `metadata.generateName` is tried [`limits::NAME_RETRIES`] times.
    /// # Errors
    /// 409 AlreadyExists, 422 Invalid, 403 from admission; 504 if the outcome is unknown.
    pub async fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        check_place(&object, namespace, "")?;
        if !Meta::of(&object).resource_version().is_empty() {
            return Err(Status {
                reason: pintle_api::status::Reason::Unknown,
                message: "resourceVersion should not be set on objects to be created".into(),
                ..Status::internal("")
            });
        }
        let generated = Meta::of(&object).name().is_empty() && !Meta::of(&object).generate_name().is_empty();
        for _ in 0..limits::NAME_RETRIES {
            let mut attempt = object.clone();
            if generated {
                let name = names::generate(Meta::of(&object).generate_name());
                MetaMut::of(&mut attempt).set_name(&name);
            }
            match self.create_named(kind, namespace, attempt, options).await {
                Err(CreateError::Exists(_)) if generated => (),
                Err(CreateError::Exists(name)) => return Err(Status::already_exists(kind.group, kind.resource, &name)),
                Err(CreateError::Other(status)) => return Err(*status),
                Ok(written) => return Ok(written),
            }
        }
        let base = Meta::of(&object).generate_name();
        Err(Status::generate_name_conflict(kind.group, kind.resource, base))
    }

    async fn create_named(
        &self,
        kind: &'static Kind,
        namespace: &str,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Written, CreateError> {
        defaults::apply(kind, &mut object);
        strategy::before_create(kind, namespace, &mut object, &options.user);
        let name = Meta::of(&object).name().to_owned();
        for attempt in 0..limits::CLAIM_RETRIES {
            let mut review = review(Operation::Create, kind, (namespace, &name, ""), options, object.clone(), None);
            review.attempt = attempt;
            self.mutate(&mut review).await?;
            strategy::after_admission(kind, &mut review.object);
            let errors = check_new(kind, &review.object);
            if !errors.is_empty() {
                return Err(invalid(kind, &name, &errors).into());
            }
            self.admit(&review).await?;
            let (object, extra, warnings) = (review.object, review.extra, review.warnings);
            match self.insert(kind, namespace, &name, object, &extra, options).await {
                Err(Refused::Claimed) => (),
                Err(Refused::Changed(_)) => return Err(CreateError::Exists(name)),
                Err(Refused::Store(error)) => return Err(status_of(&error).into()),
                Ok(object) => return Ok(Written { object: object?, created: true, warnings }),
            }
        }
        let why = "something the object needs was taken by other objects again and again; try again";
        Err(Status::conflict(kind.group, kind.resource, &name, why).into())
    }

    async fn insert(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        object: Value,
        extra: &[Extra],
        options: &WriteOptions,
    ) -> Result<Result<Arc<Object>, Status>, Refused> {
        let slot = match stored_slot(kind) {
            Ok(slot) => slot,
            Err(status) => return Ok(Err(status)),
        };
        let object = codec::to_storage(kind, object);
        let key = layout::local_key(namespace, name);
        let value = match encode_stored(object.clone()) {
            Ok(value) => value,
            Err(status) => return Ok(Err(status)),
        };
        if options.dry_run {
            if self.cache().get(kind, namespace, name).is_some() {
                return Err(Refused::Changed(None));
            }
            return Ok(finish::object(slot, &key, 0, object));
        }
        let lease = match strategy::is_event(kind) {
            true => self.storage().event_lease().await.map_err(Refused::Store)?,
            false => 0,
        };
        let store_key = Bytes::from(layout::store_key(kind, namespace, name));
        let write = Write { key: store_key, expected: 0, value: Some(value), lease, extra, fence: options.fence };
        let revision = self.storage().write(write).await?;
        Ok(finish::object(slot, &key, revision, object))
    }
}

enum CreateError {
    /// The name is taken.
    Exists(String),
    Other(Box<Status>),
}

impl From<Status> for CreateError {
    fn from(status: Status) -> Self {
        Self::Other(Box::new(status))
    }
}

fn check_new(kind: &'static Kind, object: &Value) -> Vec<FieldError> {
    if Meta::of(object).name().is_empty() {
        return vec![FieldError::required(&metadata_path("name"), "name or generateName is required")];
    }
    validate::create(kind, object)
}
