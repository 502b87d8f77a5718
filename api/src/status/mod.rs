//! What the API answers when it does not answer with an object: `Status`, with the codes, reasons and texts that
//! clients of Kubernetes match on and kubectl prints.
//!
//! Errors of all other crates are mapped to a [`Status`] in one place of the API server; the constructors here are the
//! only source of the texts.

mod field;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use field::{ErrorKind, FieldError, Path, aggregate};

/// Machine-readable reason; `Unknown` is written as an absent field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    StoreReadError,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
    #[default]
    #[serde(other)]
    Unknown,
}

impl Reason {
    fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource (plural) for most errors, the kind for `Invalid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

fn is_zero(seconds: &u32) -> bool {
    *seconds == 0
}

/// `metadata` of a status; `continue` is set in the 410 answer to an expired page token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListMeta {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty", rename = "continue")]
    pub continue_token: String,
}

/// The answer to a request that failed, or that succeeded with nothing to show.
///
/// It is the error of nearly every operation: what few of them set is boxed, so that results stay small.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    pub kind: String,
    pub api_version: String,
    pub metadata: Box<ListMeta>,
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "Reason::is_unknown")]
    pub reason: Reason,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    #[serde(skip_serializing_if = "is_no_code")]
    pub code: u16,
}

fn is_no_code(code: &u16) -> bool {
    *code == 0
}

impl Default for Status {
    fn default() -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: Box::default(),
            status: String::new(),
            message: String::new(),
            reason: Reason::Unknown,
            details: None,
            code: 0,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// `deployments.apps`, or `pods` in the group without a name. The same form serves kinds (`Deployment.apps`).
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn details(group: &str, kind: &str, name: &str) -> Details {
    Details { group: group.into(), kind: kind.into(), name: name.into(), ..Details::default() }
}

impl Status {
    fn failure(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "Failure".into(), code, reason, message: message.into(), ..Self::default() }
    }

    #[must_use]
    fn about(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// The answer to a deletion that is complete.
    pub fn success(group: &str, resource: &str, name: &str, uid: &str) -> Self {
        let details = Details { uid: uid.into(), ..details(group, resource, name) };
        Self { status: "Success".into(), ..Self::default() }.about(details)
    }

    /// A plain success, as subresources without an object answer (binding, eviction).
    pub fn created() -> Self {
        Self { status: "Success".into(), code: 201, ..Self::default() }
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::failure(404, Reason::NotFound, format!("{} {name:?} not found", qualified(group, resource)))
            .about(details(group, resource, name))
    }

    /// No such path or resource is served.
    pub fn no_such_path() -> Self {
        Self::failure(404, Reason::NotFound, "the server could not find the requested resource")
            .about(Details::default())
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::failure(409, Reason::AlreadyExists, format!("{} {name:?} already exists", qualified(group, resource)))
            .about(details(group, resource, name))
    }

    /// All names tried for a `generateName` were taken.
    pub fn generate_name_conflict(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {name:?} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource)
        );
        let details = Details { retry_after_seconds: 1, ..details(group, resource, name) };
        Self::failure(409, Reason::AlreadyExists, message).about(details)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource));
        Self::failure(409, Reason::Conflict, message).about(details(group, resource, name))
    }

    /// The resourceVersion of a write is not the current one.
    pub fn object_modified(group: &str, resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// `deleteOptions.preconditions` do not hold.
    pub fn precondition_failed(group: &str, resource: &str, name: &str, field: &str, want: &str, have: &str) -> Self {
        let why = format!("Precondition failed: {field} in precondition: {want}, {field} in object meta: {have}");
        Self::conflict(group, resource, name, &why)
    }

    /// Several field managers claim the same fields.
    pub fn apply_conflict(causes: Vec<Cause>, message: impl Into<String>) -> Self {
        Self::failure(409, Reason::Conflict, message).about(Details { causes, ..Details::default() })
    }

    /// `kind` is the kind, not the resource.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut message = format!("{} {name:?} is invalid", qualified(group, kind));
        if !errors.is_empty() {
            message.push_str(": ");
            message.push_str(&aggregate(errors));
        }
        let causes = errors.iter().map(FieldError::to_cause).collect();
        Self::failure(422, Reason::Invalid, message).about(Details { causes, ..details(group, kind, name) })
    }

    /// `resource` may be empty for requests that are not about one.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = match (resource.is_empty() && group.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{} is forbidden: {why}", qualified(group, resource)),
            (false, false) => format!("{} {name:?} is forbidden: {why}", qualified(group, resource)),
        };
        Self::failure(403, Reason::Forbidden, message).about(details(group, resource, name))
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, Reason::BadRequest, message)
    }

    pub fn unauthorized() -> Self {
        Self::failure(401, Reason::Unauthorized, "Unauthorized")
    }

    /// `action` is what was asked: `create`, `watch`...
    pub fn method_not_supported(group: &str, resource: &str, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {:?}", qualified(group, resource));
        Self::failure(405, Reason::MethodNotAllowed, message).about(details(group, resource, ""))
    }

    /// The path is served, but not with this HTTP method.
    pub fn method_not_allowed() -> Self {
        Self::failure(405, Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
            .about(Details::default())
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::failure(406, Reason::NotAcceptable, message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::failure(415, Reason::UnsupportedMediaType, message)
    }

    /// The body is longer than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::failure(413, Reason::RequestEntityTooLarge, format!("Request entity too large: limit is {limit}"))
    }

    /// Something other than the length of the body is over its limit.
    pub fn too_large_because(message: impl fmt::Display) -> Self {
        Self::failure(413, Reason::RequestEntityTooLarge, format!("Request entity too large: {message}"))
    }

    /// A patch that is well formed but does not fit the object.
    pub fn unprocessable(why: impl Into<String>) -> Self {
        let cause = Cause { message: why.into(), ..Cause::default() };
        Self::failure(422, Reason::Invalid, "the server rejected our request due to an error in our request")
            .about(Details { causes: vec![cause], ..Details::default() })
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, Reason::Expired, message)
    }

    /// A watch or list asked for a revision that is compacted.
    pub fn resource_version_too_old(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// A page token is older than the compaction. `inconsistent` is the token that goes on at the newest revision.
    pub fn expired_continue(inconsistent: impl Into<String>) -> Self {
        let mut status = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        );
        status.metadata.continue_token = inconsistent.into();
        status
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Self::failure(410, Reason::Gone, message)
    }

    pub fn timeout(message: impl fmt::Display, retry_after_seconds: u32) -> Self {
        Self::failure(504, Reason::Timeout, format!("Timeout: {message}"))
            .about(Details { retry_after_seconds, ..Details::default() })
    }

    /// A read asked for a revision that this server has not reached in time.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let mut status = Self::timeout(format_args!("Too large resource version: {asked}, current: {current}"), 1);
        if let Some(details) = &mut status.details {
            details.causes = vec![Cause {
                reason: "ResourceVersionTooLarge".into(),
                message: "Too large resource version".into(),
                field: String::new(),
            }];
        }
        status
    }

    /// The operation may succeed when tried again; nothing is known to be written.
    pub fn server_timeout(group: &str, resource: &str, operation: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(group, resource)
        );
        Self::failure(500, Reason::ServerTimeout, message)
            .about(Details { retry_after_seconds, ..details(group, resource, operation) })
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::failure(429, Reason::TooManyRequests, message)
            .about(Details { retry_after_seconds, ..Details::default() })
    }

    /// An eviction that a disruption budget does not allow now.
    pub fn disruption_budget(budget: &str, needed: i64, healthy: i64) -> Self {
        let mut status =
            Self::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0);
        if let Some(details) = &mut status.details {
            let message =
                format!("The disruption budget {budget} needs {needed} healthy pods and has {healthy} currently");
            details.causes = vec![Cause { reason: "DisruptionBudget".into(), message, field: String::new() }];
        }
        status
    }

    pub fn internal(error: impl fmt::Display) -> Self {
        let cause = Cause { message: error.to_string(), ..Cause::default() };
        Self::failure(500, Reason::InternalError, format!("Internal error occurred: {error}"))
            .about(Details { causes: vec![cause], ..Details::default() })
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, Reason::ServiceUnavailable, message)
    }

    /// The HTTP status code to answer with.
    pub fn http_code(&self) -> u16 {
        match (self.code, self.status.as_str()) {
            (0, "Failure") => 500,
            (0, _) => 200,
            (code, _) => code,
        }
    }

    pub fn retry_after(&self) -> Option<u32> {
        self.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0)
    }

    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(status: &Status, code: u16, reason: Reason, message: &str) {
        assert_eq!((status.http_code(), status.reason, status.message.as_str()), (code, reason, message));
    }

    #[test]
    fn texts_are_the_ones_kubectl_prints() {
        check(&Status::not_found("", "pods", "x"), 404, Reason::NotFound, "pods \"x\" not found");
        check(
            &Status::already_exists("apps", "deployments", "x"),
            409,
            Reason::AlreadyExists,
            "deployments.apps \"x\" already exists",
        );
        check(
            &Status::object_modified("apps", "deployments", "web"),
            409,
            Reason::Conflict,
            "Operation cannot be fulfilled on deployments.apps \"web\": the object has been modified; please apply your changes to the latest version and try again",
        );
        check(
            &Status::forbidden("", "pods", "", "User \"u\" cannot list resource \"pods\" in API group \"\""),
            403,
            Reason::Forbidden,
            "pods is forbidden: User \"u\" cannot list resource \"pods\" in API group \"\"",
        );
        check(&Status::internal("boom"), 500, Reason::InternalError, "Internal error occurred: boom");
        check(&Status::timeout("slow", 1), 504, Reason::Timeout, "Timeout: slow");
    }

    #[test]
    fn invalid_lists_its_causes() {
        let spec = Path::new("spec");
        let status = Status::invalid(
            "apps",
            "Deployment",
            "x",
            &[
                FieldError::required(&spec.child("selector"), ""),
                FieldError::invalid(&spec.child("replicas"), -1, "must be greater than or equal to 0"),
            ],
        );
        check(
            &status,
            422,
            Reason::Invalid,
            "Deployment.apps \"x\" is invalid: [spec.selector: Required value, spec.replicas: Invalid value: -1: must be greater than or equal to 0]",
        );
        assert_eq!(
            status.to_value()["details"],
            json!({"name": "x", "group": "apps", "kind": "Deployment", "causes": [
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.selector"},
                {"reason": "FieldValueInvalid", "message": "Invalid value: -1: must be greater than or equal to 0", "field": "spec.replicas"},
            ]})
        );
    }

    #[test]
    fn a_status_survives_json() {
        let status = Status::disruption_budget("db", 2, 1);
        let back: Status = serde_json::from_value(status.to_value()).expect("own output");
        assert_eq!(back, status);
        let foreign: Status = serde_json::from_value(json!({"reason": "Teapot", "code": 418})).expect("unknown reason");
        assert_eq!((foreign.reason, foreign.code), (Reason::Unknown, 418));
    }

    #[test]
    fn results_stay_small() {
        assert!(std::mem::size_of::<Status>() < 128);
    }

    #[test]
    fn success_has_no_reason_and_no_message() {
        assert_eq!(
            Status::success("", "pods", "x", "u-1").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                   "details": {"name": "x", "kind": "pods", "uid": "u-1"}})
        );
    }
}
