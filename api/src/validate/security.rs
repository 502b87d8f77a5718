//! Security contexts of pods and containers.

use serde_json::Value;

use super::{Errors, checks};
use crate::status::{FieldError, Path};
use crate::tree;

const ID_MAX: i64 = i32::MAX as i64;

pub(super) fn pod(errors: &mut Errors, spec: &Value, path: &Path) {
    let Some(context) = tree::at(spec, "/securityContext") else { return };
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        checks::in_range(errors, context, key, path, 0, ID_MAX);
    }
    for (index, group) in tree::list(context, "/supplementalGroups").iter().enumerate() {
        let id = group.as_i64().unwrap_or(-1);
        if !(0..=ID_MAX).contains(&id) {
            let path = path.child("supplementalGroups").index(index);
            errors.push(FieldError::invalid(&path, group.clone(), checks::range_text(0, ID_MAX)));
        }
    }
    if tree::flag(spec, "/shareProcessNamespace") && tree::flag(spec, "/hostPID") {
        let text = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(&path.child("shareProcessNamespace"), true, text));
    }
    sysctls(errors, spec, context, &path.child("sysctls"));
    checks::choice(errors, context, "fsGroupChangePolicy", path, &["Always", "OnRootMismatch"], true);
    checks::choice(errors, context, "supplementalGroupsPolicy", path, &["Merge", "Strict"], true);
    profile(errors, context, "seccompProfile", path);
    profile(errors, context, "appArmorProfile", path);
}

fn sysctls(errors: &mut Errors, spec: &Value, context: &Value, path: &Path) {
    let sysctls = tree::list(context, "/sysctls");
    checks::unique(errors, sysctls.iter().map(|sysctl| tree::text(sysctl, "/name")), |index| {
        path.index(index).child("name")
    });
    for (index, sysctl) in sysctls.iter().enumerate() {
        let path = path.index(index);
        let Some(name) = checks::required(errors, sysctl, "name", &path) else { continue };
        let valid = name.len() <= 253
            && name.split(['.', '/']).all(|part| {
                let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                let bytes = part.as_bytes();
                edge(bytes.first())
                    && edge(bytes.last())
                    && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
            });
        if !valid {
            let text = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(&path.child("name"), name, text));
        }
        let dotted = name.replace('/', ".");
        if tree::flag(spec, "/hostNetwork") && dotted.starts_with("net.") {
            errors.push(FieldError::invalid(
                &path.child("name"),
                name,
                "may not be specified when 'hostNetwork' is true",
            ));
        }
        let is_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix))
            || dotted == "kernel.sem";
        if tree::flag(spec, "/hostIPC") && is_ipc {
            errors.push(FieldError::invalid(&path.child("name"), name, "may not be specified when 'hostIPC' is true"));
        }
    }
}

/// Seccomp and AppArmor profiles have one shape.
fn profile(errors: &mut Errors, context: &Value, key: &str, path: &Path) {
    let Some(profile) = context.get(key).filter(|profile| profile.is_object()) else { return };
    let path = path.child(key);
    checks::choice(errors, profile, "type", &path, &["Localhost", "RuntimeDefault", "Unconfined"], false);
    let local = tree::text(profile, "/localhostProfile");
    match (tree::text(profile, "/type"), local) {
        ("Localhost", "") => {
            let text = "must be set when seccomp type is Localhost ";
            errors.push(FieldError::required(&path.child("localhostProfile"), text));
        }
        ("Localhost", local) if key == "seccompProfile" => {
            checks::local_path(errors, local, &path.child("localhostProfile"));
        }
        ("Localhost", _) | (_, "") => {}
        (_, local) => {
            let text = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(&path.child("localhostProfile"), local, text));
        }
    }
}

pub(super) fn container(errors: &mut Errors, container: &Value, path: &Path) {
    let Some(context) = tree::at(container, "/securityContext") else { return };
    let path = path.child("securityContext");
    for key in ["runAsUser", "runAsGroup"] {
        checks::in_range(errors, context, key, &path, 0, ID_MAX);
    }
    checks::choice(errors, context, "procMount", &path, &["Default", "Unmasked"], true);
    profile(errors, context, "seccompProfile", &path);
    profile(errors, context, "appArmorProfile", &path);
    if tree::at(context, "/allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false) {
        if tree::flag(context, "/privileged") {
            let text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(&path, context.clone(), text));
        }
        let added = tree::list(context, "/capabilities/add");
        if added.iter().any(|capability| capability.as_str() == Some("CAP_SYS_ADMIN")) {
            let text = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(&path, context.clone(), text));
        }
    }
}
