//! Containers of a pod: app, init and ephemeral ones.

use std::collections::HashSet;

use serde_json::Value;

use super::{Errors, checks, env, probe, resources, security};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

/// Which list of the pod a container stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    App,
    Init,
    Ephemeral,
}

impl Role {
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::App => "containers",
            Self::Init => "initContainers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// Names that containers may refer to.
pub(super) struct Context<'a> {
    pub(super) volumes: &'a HashSet<&'a str>,
    /// Volumes backed by a claim whose mode may be a block device.
    pub(super) claims: &'a HashSet<&'a str>,
    pub(super) host_network: bool,
    /// The containers of a pod, not of a template: what defaults fill in is there.
    pub(super) of_pod: bool,
}

/// All containers of `role` in `spec`. `names` are those used by the lists checked before.
pub(super) fn list<'a>(
    errors: &mut Errors,
    spec: &'a Value,
    role: Role,
    path: &Path,
    context: &Context<'_>,
    taken: &mut HashSet<&'a str>,
) {
    let path = path.child(role.key());
    let containers = tree::list(spec, &format!("/{}", role.key()));
    if role == Role::App && containers.is_empty() {
        errors.push(FieldError::required(&path, ""));
    }
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        if let Some(name) = checks::required(errors, container, "name", &path) {
            checks::invalid(errors, &path.child("name"), name, names::dns_label(name));
            if !taken.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
        one(errors, container, role, &path, context);
    }
    if role == Role::App {
        host_port_conflicts(errors, containers, &path);
    }
}

fn one(errors: &mut Errors, container: &Value, role: Role, path: &Path, context: &Context<'_>) {
    image(errors, container, path);
    checks::choice(errors, container, "terminationMessagePolicy", path, &["FallbackToLogsOnError", "File"], false);
    checks::choice(errors, container, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"], false);
    env::variables(errors, container, path);
    mounts(errors, container, path, context);
    security::container(errors, container, path);
    resize_policy(errors, container, path);
    if role == Role::Ephemeral {
        forbidden_for_ephemeral(errors, container, path);
        return;
    }
    ports(errors, container, path, context);
    if let Some(requirements) = tree::at(container, "/resources") {
        resources::requirements(errors, requirements, &path.child("resources"));
    }
    let is_sidecar = role == Role::Init && tree::text(container, "/restartPolicy") == "Always";
    if role == Role::App || is_sidecar {
        probe::probes(errors, container, path);
        probe::lifecycle(errors, container, path);
    } else {
        let text = "may not be set for init containers without restartPolicy=Always";
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.get(key).is_some_and(|value| !value.is_null()) {
                errors.push(FieldError::forbidden(&path.child(key), text));
            }
        }
    }
    restart_policy(errors, container, role, path);
}

fn image(errors: &mut Errors, container: &Value, path: &Path) {
    let Some(image) = checks::required(errors, container, "image", path) else { return };
    if image.trim() != image {
        let text = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(&path.child("image"), image, text));
    }
}

fn restart_policy(errors: &mut Errors, container: &Value, role: Role, path: &Path) {
    let Some(policy) = tree::some_text(container, "/restartPolicy") else { return };
    let allowed: &[&str] =
        if role == Role::Init { &["Always", "Never", "OnFailure"] } else { &["Always", "OnFailure", "Never"] };
    if !allowed.contains(&policy) {
        errors.push(FieldError::not_supported(&path.child("restartPolicy"), policy, allowed));
    }
}

fn resize_policy(errors: &mut Errors, container: &Value, path: &Path) {
    for (index, policy) in tree::list(container, "/resizePolicy").iter().enumerate() {
        let path = path.child("resizePolicy").index(index);
        checks::choice(errors, policy, "resourceName", &path, &["cpu", "memory"], false);
        checks::choice(errors, policy, "restartPolicy", &path, &["NotRequired", "RestartContainer"], false);
    }
}

fn forbidden_for_ephemeral(errors: &mut Errors, container: &Value, path: &Path) {
    for key in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources", "resizePolicy"] {
        if container.get(key).is_some_and(|value| !tree::same(Some(value), None)) {
            errors.push(FieldError::forbidden(&path.child(key), "cannot be set for an Ephemeral Container"));
        }
    }
    for (index, mount) in tree::list(container, "/volumeMounts").iter().enumerate() {
        for key in ["subPath", "subPathExpr"] {
            if tree::some_text(mount, &format!("/{key}")).is_some() {
                let path = path.child("volumeMounts").index(index).child(key);
                errors.push(FieldError::forbidden(&path, "cannot be set for an Ephemeral Container"));
            }
        }
    }
}

fn ports(errors: &mut Errors, container: &Value, path: &Path, context: &Context<'_>) {
    let ports = tree::list(container, "/ports");
    checks::unique(errors, ports.iter().map(|port| tree::text(port, "/name")), |index| {
        path.child("ports").index(index).child("name")
    });
    for (index, port) in ports.iter().enumerate() {
        let path = path.child("ports").index(index);
        if let Some(name) = tree::some_text(port, "/name") {
            checks::invalid(errors, &path.child("name"), name, names::port_name(name));
        }
        let number = tree::int(port, "/containerPort").unwrap_or(0);
        let host = tree::int(port, "/hostPort").unwrap_or(0);
        match number {
            0 => errors.push(FieldError::required(&path.child("containerPort"), "")),
            number => checks::port(errors, number, &path.child("containerPort")),
        }
        if host != 0 {
            checks::port(errors, host, &path.child("hostPort"));
        }
        if context.host_network && host != number && (context.of_pod || host != 0) {
            let text = "must match `containerPort` when `hostNetwork` is true";
            errors.push(FieldError::invalid(&path.child("hostPort"), host, text));
        }
        checks::choice(errors, port, "protocol", &path, &["SCTP", "TCP", "UDP"], false);
        if let Some(address) = tree::some_text(port, "/hostIP") {
            checks::address(errors, address, &path.child("hostIP"));
        }
    }
}

/// Two containers cannot have one port of the host.
fn host_port_conflicts(errors: &mut Errors, containers: &[Value], path: &Path) {
    let mut taken = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (at, port) in tree::list(container, "/ports").iter().enumerate() {
            let Some(number) = tree::int(port, "/hostPort").filter(|number| *number != 0) else { continue };
            let key = format!("{}/{}/{number}", tree::text(port, "/protocol"), tree::text(port, "/hostIP"));
            if !taken.insert(key.clone()) {
                errors.push(FieldError::duplicate(&path.index(index).child("ports").index(at).child("hostPort"), key));
            }
        }
    }
}

fn mounts(errors: &mut Errors, container: &Value, path: &Path, context: &Context<'_>) {
    let mut mount_points = HashSet::new();
    for (index, mount) in tree::list(container, "/volumeMounts").iter().enumerate() {
        let path = path.child("volumeMounts").index(index);
        if let Some(name) = checks::required(errors, mount, "name", &path)
            && !context.volumes.contains(name)
        {
            errors.push(FieldError::not_found(&path.child("name"), name));
        }
        if let Some(point) = checks::required(errors, mount, "mountPath", &path)
            && !mount_points.insert(point)
        {
            errors.push(FieldError::invalid(&path.child("mountPath"), point, "must be unique"));
        }
        let (sub_path, expression) = (tree::text(mount, "/subPath"), tree::text(mount, "/subPathExpr"));
        for (key, value) in [("subPath", sub_path), ("subPathExpr", expression)] {
            if !value.is_empty() {
                checks::local_path(errors, value, &path.child(key));
            }
        }
        if !sub_path.is_empty() && !expression.is_empty() {
            let text = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(&path.child("subPathExpr"), expression, text));
        }
        checks::choice(errors, mount, "mountPropagation", &path, &["Bidirectional", "HostToContainer", "None"], true);
        if tree::text(mount, "/mountPropagation") == "Bidirectional"
            && !tree::flag(container, "/securityContext/privileged")
        {
            let text = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(&path.child("mountPropagation"), text));
        }
    }
    devices(errors, container, path, context);
}

fn devices(errors: &mut Errors, container: &Value, path: &Path, context: &Context<'_>) {
    for (index, device) in tree::list(container, "/volumeDevices").iter().enumerate() {
        let path = path.child("volumeDevices").index(index);
        if let Some(name) = checks::required(errors, device, "name", &path) {
            if !context.volumes.contains(name) {
                errors.push(FieldError::not_found(&path.child("name"), name));
            } else if !context.claims.contains(name) {
                let text = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(&path.child("name"), name, text));
            }
        }
        if let Some(device_path) = tree::some_text(device, "/devicePath") {
            checks::no_backsteps(errors, device_path, &path.child("devicePath"));
        } else {
            errors.push(FieldError::required(&path.child("devicePath"), ""));
        }
    }
}
