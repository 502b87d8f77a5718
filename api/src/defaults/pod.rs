//! Defaults of pods and of the pod templates inside workloads.

use serde_json::{Value, json};

use super::quantities;
use super::rules::{self, Rules, To};
use crate::tree;

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

static SPEC: Rules = &[
    ("dnsPolicy", To::Text("ClusterFirst")),
    ("restartPolicy", To::Text("Always")),
    ("securityContext", To::Empty),
    ("terminationGracePeriodSeconds", To::Int(30)),
    ("schedulerName", To::Text("default-scheduler")),
    ("volumes/*/secret/defaultMode", To::Int(0o644)),
    ("volumes/*/configMap/defaultMode", To::Int(0o644)),
    ("volumes/*/downwardAPI/defaultMode", To::Int(0o644)),
    ("volumes/*/downwardAPI/items/*/fieldRef/apiVersion", To::Text("v1")),
    ("volumes/*/projected/defaultMode", To::Int(0o644)),
    ("volumes/*/projected/sources/*/serviceAccountToken/expirationSeconds", To::Int(3600)),
    ("volumes/*/projected/sources/*/downwardAPI/items/*/fieldRef/apiVersion", To::Text("v1")),
    ("volumes/*/hostPath/type", To::Text("")),
    ("volumes/*/iscsi/iscsiInterface", To::Text("default")),
    ("volumes/*/rbd/pool", To::Text("rbd")),
    ("volumes/*/rbd/user", To::Text("admin")),
    ("volumes/*/rbd/keyring", To::Text("/etc/ceph/keyring")),
    ("volumes/*/azureDisk/cachingMode", To::Text("ReadWrite")),
    ("volumes/*/azureDisk/kind", To::Text("Shared")),
    ("volumes/*/azureDisk/fsType", To::Text("ext4")),
    ("volumes/*/azureDisk/readOnly", To::Flag(false)),
    ("volumes/*/scaleIO/storageMode", To::Text("ThinProvisioned")),
    ("volumes/*/scaleIO/fsType", To::Text("xfs")),
    ("volumes/*/ephemeral/volumeClaimTemplate/spec+/volumeMode", To::Text("Filesystem")),
];

static CONTAINER: Rules = &[
    ("resources", To::Empty),
    ("terminationMessagePath", To::Text("/dev/termination-log")),
    ("terminationMessagePolicy", To::Text("File")),
    ("ports/*/protocol", To::Text("TCP")),
    ("env/*/valueFrom/fieldRef/apiVersion", To::Text("v1")),
    ("lifecycle/postStart/httpGet/path", To::Text("/")),
    ("lifecycle/postStart/httpGet/scheme", To::Text("HTTP")),
    ("lifecycle/preStop/httpGet/path", To::Text("/")),
    ("lifecycle/preStop/httpGet/scheme", To::Text("HTTP")),
];

static PROBE: Rules = &[
    ("timeoutSeconds", To::Int(1)),
    ("periodSeconds", To::Int(10)),
    ("successThreshold", To::Int(1)),
    ("failureThreshold", To::Int(3)),
    ("httpGet/path", To::Text("/")),
    ("httpGet/scheme", To::Text("HTTP")),
    ("grpc/service", To::Text("")),
];

/// Defaults of a pod, with those that templates do not get: service links, requests from limits, host ports.
pub(super) fn pod(object: &mut Value) {
    let Some(spec) = tree::object(object, "spec") else { return };
    self::spec(spec);
    tree::set_default(spec, "enableServiceLinks", true);
    let host_network = tree::flag(spec, "/hostNetwork");
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            requests_from_limits(container);
            if host_network {
                host_ports(container);
            }
        }
    }
    if tree::map(spec, "/resources/limits").is_some() {
        requests_from_limits(spec);
    }
}

/// Defaults of the template at `key` of `parent`.
pub(super) fn template(parent: &mut Value, key: &str) {
    let Some(template) = parent.get_mut(key).filter(|template| template.is_object()) else { return };
    if let Some(spec) = tree::object(template, "spec") {
        self::spec(spec);
    }
}

fn spec(spec: &mut Value) {
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        default_volume(volume);
    }
    rules::apply(spec, SPEC);
    service_account(spec);
    for list in CONTAINER_LISTS {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            default_container(container);
        }
    }
}

/// The two names of the service account are one field.
fn service_account(spec: &mut Value) {
    let name = tree::some_text(spec, "/serviceAccountName").or_else(|| tree::some_text(spec, "/serviceAccount"));
    if let Some(name) = name.map(str::to_owned) {
        tree::set(spec, "serviceAccountName", name.clone());
        tree::set(spec, "serviceAccount", name);
    }
}

/// A volume that names no source is an emptyDir.
fn default_volume(volume: &mut Value) {
    let Some(fields) = volume.as_object() else { return };
    if fields.iter().all(|(key, value)| key == "name" || value.is_null()) {
        tree::set(volume, "emptyDir", json!({}));
    }
    let reference = tree::some_text(volume, "/image/reference").map(image_pull_policy);
    if let (Some(policy), Some(image)) = (reference, volume.get_mut("image")) {
        tree::set_default(image, "pullPolicy", policy);
    }
}

fn default_container(container: &mut Value) {
    rules::apply(container, CONTAINER);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            rules::apply(probe, PROBE);
        }
    }
    let policy = image_pull_policy(tree::text(container, "/image"));
    if tree::text(container, "/imagePullPolicy").is_empty() {
        tree::set(container, "imagePullPolicy", policy);
    }
    quantities::round_to_milli(container.pointer_mut("/resources/requests"));
    quantities::round_to_milli(container.pointer_mut("/resources/limits"));
}

/// `Always` for images tagged `latest` or not tagged at all, `IfNotPresent` for all others.
pub fn image_pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or_default();
    let is_latest = match (name.contains('@'), name.split_once(':')) {
        (true, _) => name.split('@').next().is_some_and(|name| name.ends_with(":latest")),
        (false, Some((_, tag))) => tag == "latest",
        (false, None) => true,
    };
    if is_latest { "Always" } else { "IfNotPresent" }
}

/// A limit without a request is the request too.
fn requests_from_limits(holder: &mut Value) {
    let Some(limits) = tree::map(holder, "/resources/limits").cloned() else { return };
    let Some(requests) = tree::object(holder, "resources").and_then(|resources| tree::object(resources, "requests"))
    else {
        return;
    };
    for (name, amount) in limits {
        tree::set_default(requests, &name, amount);
    }
}

/// On the host's network a container's port is the host's port.
fn host_ports(container: &mut Value) {
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if tree::int(port, "/hostPort").unwrap_or(0) == 0
            && let Some(number) = tree::int(port, "/containerPort")
        {
            tree::set(port, "hostPort", number);
        }
    }
}
