//! `/healthz`, `/livez`, `/readyz` (whole, verbose, per check), `/version` and `/metrics`.
//!
//! Live means "need not be restarted"; ready means "send requests here": the cache is filled, the store has a leader and the
//! server is not draining.

use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use pintle_api::kinds::KINDS;
use pintle_api::status::Status;
use serde_json::json;

use crate::cache::layout;
use crate::handlers::{Call, Handler};
use crate::negotiate;
use crate::types::Response;

pub const GIT_VERSION: &str = concat!("v1.36.0+pintle.", env!("CARGO_PKG_VERSION"));

pub fn owns(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
    matches!(first, "healthz" | "livez" | "readyz" | "version" | "metrics")
}

/// A named check; `Err` carries the reason.
type Check = (&'static str, Result<(), String>);

pub(crate) async fn serve(handler: &Arc<Handler>, path: &str, call: &Call) -> Result<Response, Status> {
    match path {
        "/version" => Ok(negotiate::json_response(StatusCode::OK, &version())),
        "/metrics" => Ok(metrics(handler)),
        _ => health(handler, path, call).await,
    }
}

fn version() -> serde_json::Value {
    json!({
        "major": "1",
        "minor": "36",
        "gitVersion": GIT_VERSION,
        "gitCommit": option_env!("PINTLE_COMMIT").unwrap_or("unknown"),
        "gitTreeState": "clean",
        "buildDate": option_env!("PINTLE_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn metrics(handler: &Handler) -> Response {
    let cache = &handler.ctx.cache;
    let mut objects: Vec<(String, usize)> = KINDS
        .iter()
        .filter(|kind| layout::slot(kind).is_some_and(|slot| layout::stored_kind(slot) == *kind))
        .map(|kind| (pintle_api::status::qualified(kind.group, kind.resource), cache.count(kind)))
        .collect();
    objects.sort();
    let text = handler.metrics.text(&objects, cache.revision());
    negotiate::bytes_response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

async fn health(handler: &Handler, path: &str, call: &Call) -> Result<Response, Status> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let group = parts.next().unwrap_or("");
    let mut checks = checks(handler, group == "readyz").await;
    match parts.next() {
        Some(name) => {
            checks.retain(|(check, _)| *check == name);
            if checks.is_empty() {
                return Err(Status::no_such_path());
            }
        }
        None => {
            let excluded: Vec<&str> = call.query.all("exclude").collect();
            checks.retain(|(check, _)| !excluded.contains(check));
        }
    }
    let failed = checks.iter().any(|(_, result)| result.is_err());
    let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    let text = if failed || call.query.flag("verbose") { report(group, &checks, failed) } else { "ok".to_owned() };
    let mut response = negotiate::bytes_response(code, "text/plain; charset=utf-8", text);
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

fn report(group: &str, checks: &[Check], failed: bool) -> String {
    let mut text = String::new();
    for (name, result) in checks {
        match result {
            Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
            // The reason is in the log; anybody may ask for health.
            Err(_) => text.push_str(&format!("[-]{name} failed: reason withheld\n")),
        }
    }
    text.push_str(&format!("{group} check {}\n", if failed { "failed" } else { "passed" }));
    text
}

async fn checks(handler: &Handler, ready: bool) -> Vec<Check> {
    let cache = match handler.ctx.cache.is_ready() {
        true => Ok(()),
        false => Err("the watch cache is being filled".to_owned()),
    };
    let mut checks: Vec<Check> = vec![("ping", Ok(())), ("log", Ok(()))];
    if ready {
        checks.push(("etcd", store(handler).await));
        checks.push(("informer-sync", cache));
        let draining = handler.stop.is_cancelled();
        checks.push(("shutdown", if draining { Err("the server is shutting down".to_owned()) } else { Ok(()) }));
    }
    for (name, result) in &checks {
        if let Err(reason) = result {
            tracing::debug!(check = name, reason, "health check failed");
        }
    }
    checks
}

/// True if a linearizable read is possible now.
async fn store(handler: &Handler) -> Result<(), String> {
    let barrier = pintle_base::clock::timeout(crate::limits::CACHE_WAIT, handler.ctx.store.read_barrier()).await;
    match barrier {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
