//! Pods, and the pod templates inside workloads.

use std::collections::HashSet;

use serde_json::Value;

use super::container::{self, Context, Role};
use super::{Errors, affinity, checks, resources, security, volume};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

static DNS_POLICIES: [&str; 4] = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];

/// Longest `spec.dnsConfig.searches` and what it may hold.
const DNS_NAMESERVERS_MAX: usize = 3;
const DNS_SEARCHES_MAX: usize = 32;
const DNS_SEARCH_CHARACTERS_MAX: usize = 2048;

pub(super) fn object(object: &Value, errors: &mut Errors) {
    let path = super::spec();
    match tree::at(object, "/spec") {
        None => errors.push(FieldError::required(&path.child("containers"), "")),
        Some(spec) => self::spec(errors, spec, &path, true),
    }
}

/// Rules for pods that do not exist yet.
pub(super) fn create_only(object: &Value, errors: &mut Errors) {
    if !tree::list(object, "/spec/ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(&super::spec().child("ephemeralContainers"), "cannot be set on create"));
    }
    let gated = !tree::list(object, "/spec/schedulingGates").is_empty();
    if gated && tree::some_text(object, "/spec/nodeName").is_some() {
        let text = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(&super::spec().child("nodeName"), text));
    }
}

pub(super) fn pod_template(object: &Value, errors: &mut Errors) {
    template(errors, tree::at(object, "/template"), &Path::new("template"));
}

/// A `PodTemplateSpec`.
pub(super) fn template(errors: &mut Errors, template: Option<&Value>, path: &Path) {
    let empty = Value::Null;
    let template = template.unwrap_or(&empty);
    checks::labels(errors, template, "/metadata/labels", &path.child("labels"));
    for (key, _) in tree::entries(template, "/metadata/annotations") {
        checks::invalid(errors, &path.child("annotations"), key, names::qualified_name(&key.to_lowercase()));
    }
    let spec_path = path.child("spec");
    match tree::at(template, "/spec") {
        None => errors.push(FieldError::required(&spec_path.child("containers"), "")),
        Some(spec) => {
            self::spec(errors, spec, &spec_path, false);
            if !tree::list(spec, "/ephemeralContainers").is_empty() {
                let text = "ephemeral containers not allowed in pod template";
                errors.push(FieldError::forbidden(&spec_path.child("ephemeralContainers"), text));
            }
        }
    }
}

/// A `PodSpec`, of a pod or of a template.
fn spec(errors: &mut Errors, spec: &Value, path: &Path, of_pod: bool) {
    volume::list(errors, spec, path);
    containers(errors, spec, path, of_pod);
    checks::choice(errors, spec, "restartPolicy", path, &["Always", "OnFailure", "Never"], false);
    checks::choice(errors, spec, "dnsPolicy", path, &DNS_POLICIES, false);
    checks::labels(errors, spec, "/nodeSelector", &path.child("nodeSelector"));
    security::pod(errors, spec, &path.child("securityContext"));
    times(errors, spec, path);
    identities(errors, spec, path);
    affinity::affinity(errors, spec, path);
    affinity::tolerations(errors, spec, path);
    affinity::spread(errors, spec, path);
    dns_config(errors, spec, path);
    host_aliases(errors, spec, path);
    gates(errors, spec, path);
    if let Some(requirements) = tree::at(spec, "/resources") {
        resources::requirements(errors, requirements, &path.child("resources"));
    }
    for (resource, value) in tree::entries(spec, "/overhead") {
        let path = path.child("overhead").key(resource);
        resources::name(errors, resource, &path);
        resources::amount(errors, resource, value, &path);
    }
    if let Some(os) = tree::at(spec, "/os") {
        checks::choice(errors, os, "name", &path.child("os"), &["linux", "windows"], false);
    }
    checks::choice(errors, spec, "preemptionPolicy", path, &["Never", "PreemptLowerPriority"], true);
}

fn containers(errors: &mut Errors, spec: &Value, path: &Path, of_pod: bool) {
    let named = |filter: fn(&Value) -> bool| -> HashSet<&str> {
        tree::list(spec, "/volumes")
            .iter()
            .filter(|volume| filter(volume))
            .filter_map(|v| tree::some_text(v, "/name"))
            .collect()
    };
    let volumes = named(|_| true);
    let claims = named(|volume| volume.get("persistentVolumeClaim").is_some() || volume.get("ephemeral").is_some());
    let host_network = tree::flag(spec, "/hostNetwork");
    let context = Context { volumes: &volumes, claims: &claims, host_network, of_pod };
    let mut taken = HashSet::new();
    for role in [Role::App, Role::Init, Role::Ephemeral] {
        container::list(errors, spec, role, path, &context, &mut taken);
    }
}

fn times(errors: &mut Errors, spec: &Value, path: &Path) {
    checks::in_range(errors, spec, "activeDeadlineSeconds", path, 1, i64::from(i32::MAX));
    checks::not_negative(errors, spec, "terminationGracePeriodSeconds", path);
}

/// Names of other things that the pod mentions.
fn identities(errors: &mut Errors, spec: &Value, path: &Path) {
    for key in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        if let Some(name) = spec.get(key).and_then(Value::as_str).filter(|name| !name.is_empty()) {
            checks::invalid(errors, &path.child(key), name, names::dns_subdomain(name));
        }
    }
    for key in ["hostname", "subdomain"] {
        if let Some(name) = spec.get(key).and_then(Value::as_str).filter(|name| !name.is_empty()) {
            checks::invalid(errors, &path.child(key), name, names::dns_label(name));
        }
    }
    if let Some(name) = tree::some_text(spec, "/schedulerName") {
        checks::invalid(errors, &path.child("schedulerName"), name, names::qualified_name(name));
    }
    for (index, secret) in tree::list(spec, "/imagePullSecrets").iter().enumerate() {
        checks::required(errors, secret, "name", &path.child("imagePullSecrets").index(index));
    }
}

fn dns_config(errors: &mut Errors, spec: &Value, path: &Path) {
    let config = tree::at(spec, "/dnsConfig");
    let path = path.child("dnsConfig");
    let servers = config.map(|config| tree::list(config, "/nameservers")).unwrap_or_default();
    if tree::text(spec, "/dnsPolicy") == "None" {
        if config.is_none() {
            errors.push(FieldError::required(&path, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if servers.is_empty() {
            let text = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(&path.child("nameservers"), text));
        }
    }
    let Some(config) = config else { return };
    if servers.len() > DNS_NAMESERVERS_MAX {
        let text = format!("must not have more than {DNS_NAMESERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(&path.child("nameservers"), servers.to_vec(), text));
    }
    for (index, server) in servers.iter().enumerate() {
        checks::address(errors, server.as_str().unwrap_or_default(), &path.child("nameservers").index(index));
    }
    let searches = tree::list(config, "/searches");
    let joined: usize = searches.iter().filter_map(Value::as_str).map(|search| search.len() + 1).sum();
    if searches.len() > DNS_SEARCHES_MAX {
        let text = format!("must not have more than {DNS_SEARCHES_MAX} search paths");
        errors.push(FieldError::invalid(&path.child("searches"), searches.to_vec(), text));
    }
    if joined > DNS_SEARCH_CHARACTERS_MAX + 1 {
        let text = format!(
            "must not have more than {DNS_SEARCH_CHARACTERS_MAX} characters (including spaces) in the search list"
        );
        errors.push(FieldError::invalid(&path.child("searches"), searches.to_vec(), text));
    }
    for (index, search) in searches.iter().filter_map(Value::as_str).enumerate() {
        let plain = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
        if !plain.is_empty() {
            checks::invalid(errors, &path.child("searches").index(index), search, names::dns_subdomain(&plain));
        }
    }
    for (index, option) in tree::list(config, "/options").iter().enumerate() {
        if tree::text(option, "/name").is_empty() {
            errors.push(FieldError::required(&path.child("options").index(index), "must not be empty"));
        }
    }
}

fn host_aliases(errors: &mut Errors, spec: &Value, path: &Path) {
    for alias in tree::list(spec, "/hostAliases") {
        checks::address(errors, tree::text(alias, "/ip"), &path.child("hostAliases").child("ip"));
        for name in tree::list(alias, "/hostnames").iter().filter_map(Value::as_str) {
            let path = path.child("hostAliases").child("hostnames");
            checks::invalid(errors, &path, name, names::dns_subdomain(name));
        }
    }
}

fn gates(errors: &mut Errors, spec: &Value, path: &Path) {
    for (index, gate) in tree::list(spec, "/readinessGates").iter().enumerate() {
        let condition = tree::text(gate, "/conditionType");
        let path = path.child("readinessGates").index(index).child("conditionType");
        checks::invalid(errors, &path, condition, names::qualified_name(condition));
    }
    let gates = tree::list(spec, "/schedulingGates");
    for (index, gate) in gates.iter().enumerate() {
        let name = tree::text(gate, "/name");
        let path = path.child("schedulingGates").index(index);
        checks::invalid(errors, &path, name, names::qualified_name(name));
    }
    checks::unique(errors, gates.iter().map(|gate| tree::text(gate, "/name")), |index| {
        path.child("schedulingGates").index(index)
    });
}
