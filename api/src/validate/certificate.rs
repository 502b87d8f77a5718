//! Certificate signing requests: who decides about them, and that a decision stays.
//!
//! The verdict (conditions Approved and Denied) is written through the approval subresource alone, by those who may
//! approve; the status subresource belongs to signers.

use serde_json::Value;

use super::{Errors, generic};
use crate::kinds;
use crate::status::{FieldError, Path};
use crate::strategy::{DENIED, VERDICTS};
use crate::tree;

const FAILED: &str = "Failed";

pub(super) fn object(object: &Value, errors: &mut Errors) {
    if let Some(kind) = kinds::by_gvk("certificates.k8s.io", "v1", "CertificateSigningRequest") {
        generic::required(kind, object, errors);
    }
}

pub(super) fn status(new: &Value, old: &Value, errors: &mut Errors) {
    approval(new, old, errors);
    for verdict in VERDICTS {
        if count(new, verdict) > count(old, verdict) {
            forbid(errors, &format!("updates may not add a condition of type {verdict:?}"));
        }
    }
}

pub(super) fn approval(new: &Value, old: &Value, errors: &mut Errors) {
    for condition in VERDICTS.into_iter().chain([FAILED]) {
        if count(new, condition) < count(old, condition) {
            forbid(errors, &format!("updates may not remove a condition of type {condition:?}"));
        }
    }
    if VERDICTS.into_iter().all(|verdict| count(new, verdict) > 0) {
        let why = "Approved and Denied conditions are mutually exclusive";
        errors.push(FieldError::invalid(&path(), DENIED, why));
    }
}

fn path() -> Path {
    Path::new("status").child("conditions")
}

fn forbid(errors: &mut Errors, why: &str) {
    errors.push(FieldError::forbidden(&path(), why));
}

fn count(request: &Value, condition: &str) -> usize {
    tree::list(request, "/status/conditions").iter().filter(|one| tree::text(one, "/type") == condition).count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(conditions: &[&str]) -> Value {
        let conditions: Vec<Value> = conditions.iter().map(|kind| json!({ "type": kind, "status": "True" })).collect();
        json!({ "status": { "conditions": conditions } })
    }

    #[track_caller]
    fn check(step: fn(&Value, &Value, &mut Errors), old: &[&str], new: &[&str], want: &[&str]) {
        let mut errors = Errors::default();
        step(&request(new), &request(old), &mut errors);
        let got: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        let want: Vec<String> = want.iter().map(|why| format!("status.conditions: {why}")).collect();
        assert_eq!(got, want, "{old:?} {new:?}");
    }

    #[test]
    fn a_verdict_is_not_written_through_the_status() {
        check(status, &[], &["Approved"], &["Forbidden: updates may not add a condition of type \"Approved\""]);
        check(status, &[], &["Denied"], &["Forbidden: updates may not add a condition of type \"Denied\""]);
        check(status, &["Approved"], &["Approved", "Failed"], &[]);
        check(approval, &[], &["Approved"], &[]);
    }

    #[test]
    fn a_verdict_stays() {
        for step in [status as fn(&Value, &Value, &mut Errors), approval] {
            check(step, &["Denied"], &[], &["Forbidden: updates may not remove a condition of type \"Denied\""]);
            check(step, &["Failed"], &[], &["Forbidden: updates may not remove a condition of type \"Failed\""]);
        }
        let both = "Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive";
        check(approval, &["Approved"], &["Approved", "Denied"], &[both]);
    }
}
