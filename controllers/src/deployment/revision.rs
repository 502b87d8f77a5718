//! Revisions of a deployment: which replica set runs the present template, how they are numbered and named.
//!
//! Always holds: a template is recognised by comparing it, not by its hash; the hash only makes names and labels.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pintle_client::object::controller_reference;

use crate::limits;

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a deployment that are not its replica sets' business.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// True if `set` was made from the deployment's present template.
pub(super) fn runs_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    own.is_some_and(|own| own.spec == template.spec && metadata(own) == metadata(template))
}

/// Labels and annotations of a template without the hash.
fn metadata(template: &PodTemplateSpec) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    labels.remove(HASH_LABEL);
    (labels, meta.annotations.unwrap_or_default())
}

/// The hash of a template in the alphabet of generated names; `collisions` tells apart templates whose hashes met.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    // Maps are ordered and absent fields left out: equal templates have equal text.
    let text = serde_json::to_vec(template).unwrap_or_default();
    let hash = text
        .iter()
        .chain(&collisions.to_le_bytes())
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// The replica set for the deployment's present template, with no replicas yet.
pub(super) fn new_replica_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The number a set's (or deployment's) revision annotation holds, 0 without one.
pub(super) fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A number kept in one of the replica annotations.
pub(super) fn noted(set: &ReplicaSet, key: &str) -> Option<i32> {
    annotation(&set.metadata, key).and_then(|text| text.parse().ok())
}

/// Notes on `set` how many replicas its deployment wants, and may have at most.
pub(super) fn note_replicas(set: &mut ReplicaSet, desired: i32, max: i32) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), max.to_string());
}

/// Makes `set` the newest revision: copies the deployment's annotations, and numbers it `number` if that is higher.
pub(super) fn mark_newest(set: &mut ReplicaSet, deployment: &Deployment, number: i64) {
    let before = annotation(&set.metadata, REVISION).map(str::to_owned);
    let current = revision(&set.metadata);
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if current >= number {
        return;
    }
    annotations.insert(REVISION.to_owned(), number.to_string());
    if let Some(before) = before {
        let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
        *history = with_revision(history, &before);
    }
}

/// Appends to a comma-separated list and forgets its oldest entries when it grows too long.
fn with_revision(history: &str, revision: &str) -> String {
    let mut list: Vec<&str> = history.split(',').filter(|entry| !entry.is_empty()).collect();
    list.push(revision);
    while list.len() > 1 && list.iter().map(|entry| entry.len() + 1).sum::<usize>() > limits::REVISION_HISTORY {
        list.remove(0);
    }
    list.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> PodTemplateSpec {
        let value =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": image}]}});
        serde_json::from_value(value).expect("template")
    }

    #[test]
    fn a_template_is_recognised_with_its_hash_label_and_told_from_others() {
        let deployment = json!({"metadata": {"name": "web", "uid": "1"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
            "template": template("a")}});
        let set = new_replica_set(&serde_json::from_value(deployment).expect("deployment"));
        assert!(runs_template(&set, &template("a")) && !runs_template(&set, &template("b")));
        let hash = template_hash(&template("a"), 0);
        assert_eq!(set.metadata.name, Some(format!("web-{hash}")));
        let selector = set.spec.expect("spec").selector.match_labels.expect("labels");
        assert_eq!(selector.get(HASH_LABEL), Some(&hash));
        assert_ne!(template_hash(&template("a"), 1), hash);
        assert_ne!(template_hash(&template("b"), 0), hash);
    }

    #[test]
    fn a_revision_that_comes_back_is_renumbered_and_remembers_its_numbers() {
        let mut set = ReplicaSet::default();
        let deployment = json!({"metadata": {"annotations": {"note": "x", REVISION: "9"}}, "spec": {"selector": {}, "template": {}}});
        let deployment: Deployment = serde_json::from_value(deployment).expect("deployment");
        for number in [1, 1, 3, 2] {
            mark_newest(&mut set, &deployment, number);
        }
        let annotations = set.metadata.annotations.expect("annotations");
        assert_eq!(annotations.get(REVISION).map(String::as_str), Some("3"));
        assert_eq!(annotations.get(REVISION_HISTORY).map(String::as_str), Some("1"));
        assert_eq!(annotations.get("note").map(String::as_str), Some("x"));
        assert_eq!(with_revision("1,2", "3"), "1,2,3");
        assert!(with_revision(&"1000,".repeat(500), "7").len() <= limits::REVISION_HISTORY);
    }
}
