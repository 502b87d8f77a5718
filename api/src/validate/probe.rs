//! Probes and lifecycle hooks: exactly one way to act, in sane numbers.

use serde_json::Value;

use super::{Errors, checks};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

static PROBE_HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
static HOOK_HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "sleep"];

/// The three probes of a container.
pub(super) fn probes(errors: &mut Errors, container: &Value, path: &Path) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(name).filter(|probe| probe.is_object()) else { continue };
        let path = path.child(name);
        handler(errors, probe, &PROBE_HANDLERS, &path);
        for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
            checks::not_negative(errors, probe, key, &path);
        }
        let grace = tree::int(probe, "/terminationGracePeriodSeconds");
        if name == "readinessProbe" {
            if let Some(grace) = grace {
                let path = path.child("terminationGracePeriodSeconds");
                errors.push(FieldError::invalid(&path, grace, "must not be set for readinessProbes"));
            }
            continue;
        }
        if let Some(grace) = grace.filter(|grace| *grace <= 0) {
            let path = path.child("terminationGracePeriodSeconds");
            errors.push(FieldError::invalid(&path, grace, "must be greater than 0"));
        }
        if let Some(successes) = tree::int(probe, "/successThreshold").filter(|successes| *successes != 1) {
            errors.push(FieldError::invalid(&path.child("successThreshold"), successes, "must be 1"));
        }
    }
}

/// `lifecycle.postStart` and `preStop`.
pub(super) fn lifecycle(errors: &mut Errors, container: &Value, path: &Path) {
    let path = path.child("lifecycle");
    for name in ["postStart", "preStop"] {
        if let Some(hook) = tree::at(container, &format!("/lifecycle/{name}")) {
            handler(errors, hook, &HOOK_HANDLERS, &path.child(name));
        }
    }
}

fn handler(errors: &mut Errors, holder: &Value, allowed: &[&'static str], path: &Path) {
    let mut count = 0;
    for name in allowed.iter().copied() {
        let Some(action) = holder.get(name).filter(|action| action.is_object()) else { continue };
        count += 1;
        let path = path.child(name);
        if count > 1 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        match name {
            "exec" if tree::list(action, "/command").is_empty() => {
                errors.push(FieldError::required(&path.child("command"), ""));
            }
            "httpGet" => http(errors, action, &path),
            "tcpSocket" => checks::port_or_name(errors, action.get("port"), &path.child("port")),
            "grpc" => checks::port(errors, tree::int(action, "/port").unwrap_or(0), &path.child("port")),
            "sleep" => checks::not_negative(errors, action, "seconds", &path),
            _ => {}
        }
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http(errors: &mut Errors, action: &Value, path: &Path) {
    checks::required(errors, action, "path", path);
    checks::port_or_name(errors, action.get("port"), &path.child("port"));
    checks::choice(errors, action, "scheme", path, &["HTTP", "HTTPS"], false);
    for header in tree::list(action, "/httpHeaders") {
        let name = tree::text(header, "/name");
        checks::invalid(errors, &path.child("httpHeaders"), name, names::http_header(name));
    }
}
