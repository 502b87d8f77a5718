//! Patch: an update whose new object is made from the stored one.
//!
//! Without a resourceVersion in the patch a lost race is tried again ([`limits::PATCH_RETRIES`]). The result goes through
//! the same decoding as any body, so that a patch cannot smuggle in what a PUT could not. Large ones are worked out on
//! threads of their own, few at a time, so that nobody else waits for them.

use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use pintle_api::codec::{self, FieldValidation};
use pintle_api::kinds::Kind;
use pintle_api::meta::Meta;
use pintle_api::patch::{self, PatchError};
use pintle_api::status::Status;
use pintle_api::tree;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::update::{Old, Target};
use super::{Registry, WriteOptions, Written};
use crate::limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchKind {
    pub const MEDIA_TYPES: [(&'static str, Self); 4] = [
        ("application/json-patch+json", Self::Json),
        ("application/merge-patch+json", Self::Merge),
        ("application/strategic-merge-patch+json", Self::Strategic),
        ("application/apply-patch+yaml", Self::Apply),
    ];

    /// # Errors
    /// 415 for any other media type.
    pub fn of_media_type(media_type: &str) -> Result<Self, Status> {
        let found = Self::MEDIA_TYPES.iter().find(|(name, _)| *name == media_type);
        let names = Self::MEDIA_TYPES.map(|(name, _)| name);
        found.map(|(_, kind)| *kind).ok_or_else(|| Status::unsupported_media_type(&names))
    }

    /// # Errors
    /// 422 or 400 if the patch does not fit.
    pub fn apply(self, kind: &'static Kind, object: &Value, patch: &Value) -> Result<Value, Status> {
        let result = match self {
            Self::Json => patch::json(object.clone(), patch),
            Self::Merge => patch::merge(object.clone(), patch),
            Self::Strategic => patch::strategic(object.clone(), patch, kind.schema()),
            Self::Apply => Ok(patch::applied(object.clone(), patch, kind.schema())),
        };
        result.map_err(|error: PatchError| error.to_status())
    }
}

/// A patch as it came in. Cheap to clone.
#[derive(Clone)]
pub struct Patch {
    pub kind: PatchKind,
    pub body: Arc<Value>,
    /// Size of its text.
    pub bytes: usize,
}

impl Registry {
    /// Patches an object. Server-side apply creates it if absent, for those who may create it.
    ///
    /// # Errors
    /// As [`Registry::update`]; 422 if the patch does not fit the object, 413 if that is too much work.
    pub async fn patch(
        &self,
        target: Target<'_>,
        patch: Patch,
        validation: FieldValidation,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let Target { kind, namespace, name, subresource } = target;
        let creates = patch.kind == PatchKind::Apply && subresource.is_empty();
        if creates {
            check_applied(kind, name, &patch.body)?;
        }
        let warnings: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut change = |old: Old| -> BoxFuture<'static, Result<Value, Status>> {
            let (patch, warnings) = (patch.clone(), Arc::clone(&warnings));
            let bytes = old.bytes + patch.bytes;
            Box::pin(worked_out(bytes, move || {
                let patched = patch.kind.apply(kind, &old.tree, &patch.body)?;
                let (object, said) = recode(kind, patched, validation)?;
                *warnings.lock() = said;
                Ok(object)
            }))
        };
        let result = match self.modify(target, &mut change, options, limits::PATCH_RETRIES).await {
            Err(status) if status.code == 404 && creates => {
                self.may_create(kind, namespace, name, &options.user)?;
                let (object, said) = recode(kind, Value::clone(&patch.body), validation)?;
                *warnings.lock() = said;
                self.create(kind, namespace, object, options).await
            }
            other => other,
        };
        result.map(|mut written| {
            written.warnings.splice(0..0, std::mem::take(&mut *warnings.lock()));
            written
        })
    }
}

/// Does the work on objects and patches of so many bytes: here if they are small, else beside the requests.
///
/// # Errors
/// Those of `work`.
pub(crate) async fn worked_out(
    bytes: usize,
    work: impl FnOnce() -> Result<Value, Status> + Send + 'static,
) -> Result<Value, Status> {
    static LARGE: Semaphore = Semaphore::const_new(limits::LARGE_PATCHES);
    if bytes < limits::LARGE_PATCH_BYTES {
        return work();
    }
    let turn = LARGE.acquire().await.map_err(Status::internal)?;
    // The work goes on when whoever asked for it has gone: it keeps its turn.
    let work = move || {
        let result = work();
        drop(turn);
        result
    };
    tokio::task::spawn_blocking(work).await.map_err(Status::internal)?
}

/// An applied configuration names its kind and its object.
fn check_applied(kind: &'static Kind, name: &str, body: &Value) -> Result<(), Status> {
    if !tree::list(body, "/metadata/managedFields").is_empty() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    if Meta::of(body).name() != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            Meta::of(body).name()
        )));
    }
    let said = (tree::text(body, "/apiVersion"), tree::text(body, "/kind"));
    if said != (kind.api_version().as_str(), kind.kind) {
        return Err(Status::bad_request(format!(
            "the kind of the object ({}, {}) does not match the URL ({kind})",
            said.0, said.1
        )));
    }
    Ok(())
}

/// Passes a patched tree through the decoder: types checked, order canonical, unknown fields reported.
fn recode(kind: &'static Kind, object: Value, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    let decoded = codec::conform(kind, object, validation)?;
    Ok((decoded.object, decoded.warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_work_leaves_the_thread_of_requests() {
        let thread = |bytes| worked_out(bytes, || Ok(Value::from(format!("{:?}", std::thread::current().id()))));
        let here = Value::from(format!("{:?}", std::thread::current().id()));
        assert_eq!(thread(limits::LARGE_PATCH_BYTES - 1).await.expect("done"), here);
        assert_ne!(thread(limits::LARGE_PATCH_BYTES).await.expect("done"), here);
    }

    #[tokio::test]
    async fn large_work_that_panics_is_an_internal_error() {
        let result = worked_out(limits::LARGE_PATCH_BYTES, || panic!("a defect"));
        assert_eq!(result.await.expect_err("failed").code, 500);
    }
}
