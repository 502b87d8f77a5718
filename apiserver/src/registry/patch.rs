//! Patch: an update whose new object is made from the stored one.
//!
//! Without a resourceVersion in the patch a lost race is tried again ([`limits::PATCH_RETRIES`]). The result goes through
//! the same decoding as any body, so that a patch cannot smuggle in what a PUT could not.

use pintle_api::codec::{self, FieldValidation};
use pintle_api::kinds::Kind;
use pintle_api::meta::Meta;
use pintle_api::patch::{self, PatchError};
use pintle_api::status::Status;
use pintle_api::tree;
use serde_json::Value;

use super::update::Target;
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
            // Applied configurations merge as a strategic patch does: lists by key, everything named is set.
            Self::Strategic | Self::Apply => patch::strategic(object.clone(), patch, kind.schema()),
        };
        result.map_err(|error: PatchError| error.to_status())
    }
}

/// A patch as it came in.
pub struct Patch<'a> {
    pub kind: PatchKind,
    pub body: &'a Value,
    pub validation: FieldValidation,
}

impl Registry {
    /// Patches an object. Server-side apply creates it if absent.
    ///
    /// # Errors
    /// As [`Registry::update`]; 422 if the patch does not fit the object.
    pub async fn patch(&self, target: Target<'_>, patch: Patch<'_>, options: &WriteOptions) -> Result<Written, Status> {
        let Target { kind, namespace, name, subresource } = target;
        if let (PatchKind::Apply, true) = (patch.kind, subresource.is_empty()) {
            check_applied(kind, name, patch.body)?;
        }
        let mut warnings = Vec::new();
        let mut change = |old: &Value| {
            let patched = patch.kind.apply(kind, old, patch.body)?;
            let (object, said) = recode(kind, &patched, patch.validation)?;
            warnings = said;
            Ok(object)
        };
        let result = self.modify(target, &mut change, options, limits::PATCH_RETRIES).await;
        let result = match result {
            Err(status) if status.code == 404 && patch.kind == PatchKind::Apply && subresource.is_empty() => {
                let (object, said) = recode(kind, patch.body, patch.validation)?;
                warnings = said;
                self.create(kind, namespace, object, options).await
            }
            other => other,
        };
        result.map(|mut written| {
            written.warnings.splice(0..0, warnings);
            written
        })
    }
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
fn recode(kind: &'static Kind, object: &Value, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    let decoded = codec::conform(kind, object.clone(), validation)?;
    Ok((decoded.object, decoded.warnings))
}
