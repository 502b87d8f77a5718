//! Jobs: the selector that the server makes, so that no two jobs count each other's pods.

use serde_json::Value;

use crate::meta::Meta;
use crate::tree;

/// Makes the selector of a new job and labels its template to match. Call once the job has its uid.
///
/// A job with `manualSelector` brings a selector of its own and is left as it is.
pub fn select_own_pods(job: &mut Value) {
    if tree::flag(job, "/spec/manualSelector") {
        return;
    }
    let (name, uid) = (Meta::of(job).name().to_owned(), Meta::of(job).uid().to_owned());
    let Some(spec) = tree::object(job, "spec") else { return };
    let labels = tree::object(spec, "template")
        .and_then(|template| tree::object(template, "metadata"))
        .and_then(|metadata| tree::object(metadata, "labels"));
    if let Some(labels) = labels {
        for (key, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("job-name", &name),
        ] {
            // What the user says stands, and is refused by validation if it is another job's.
            tree::set_default(labels, key, value.as_str());
        }
    }
    if let Some(wanted) = tree::object(spec, "selector").and_then(|selector| tree::object(selector, "matchLabels")) {
        tree::set_default(wanted, "batch.kubernetes.io/controller-uid", uid.as_str());
    }
}
