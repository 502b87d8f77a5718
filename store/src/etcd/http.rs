//! The HTTP endpoints beside gRPC: `/health`, `/livez`, `/readyz`, `/version`, `/metrics`.

use std::fmt::Write;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pintle_proto::etcdserverpb::{AlarmType, RangeRequest};

use super::{CLUSTER_VERSION, VERSION};
use crate::store::Store;

/// One thing `/livez` and `/readyz` look at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVE: &[Check] = &[Check::SerializableRead];
const READY: &[Check] = &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

pub(super) fn routes(store: Store) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/livez", get(|store, query| all(store, query, LIVE)))
        .route("/livez/{check}", get(|store, check| one(store, check, LIVE)))
        .route("/readyz", get(|store, query| all(store, query, READY)))
        .route("/readyz/{check}", get(|store, check| one(store, check, READY)))
        .with_state(store)
}

/// What nobody serves: gRPC callers are told which service is missing, others that there is no such page.
pub(super) async fn nothing(request: axum::extract::Request) -> Response {
    let is_grpc = |kind: &header::HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    if !request.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc) {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let service = request.uri().path().split('/').nth(1).unwrap_or_default();
    tonic::Status::unimplemented(format!("unknown service {service}")).into_http()
}

async fn version() -> Response {
    json(StatusCode::OK, format!(r#"{{"etcdserver":"{VERSION}","etcdcluster":"{CLUSTER_VERSION}"}}"#))
}

async fn metrics(State(store): State<Store>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], store.metrics().render(&store)).into_response()
}

async fn health(State(store): State<Store>, RawQuery(query): RawQuery) -> Response {
    let serializable = parameters(query.as_deref()).any(|pair| pair == ("serializable", "true"));
    let excluded = |name: &str| parameters(query.as_deref()).any(|pair| pair == ("exclude", name));
    let raised = store.alarms().into_iter().find_map(|alarm| {
        let name = AlarmType::try_from(alarm.kind).ok()?.as_str_name();
        (!excluded(name)).then(|| format!("ALARM {name}"))
    });
    let checked = match (raised, serializable, store.standing().leader) {
        (Some(alarm), _, _) => Err(alarm),
        (None, false, None) => Err("RAFT NO LEADER".to_owned()),
        _ => read(&store, serializable).await.map_err(|error| format!("RANGE ERROR:{error}")),
    };
    let counters = &store.metrics().counters;
    if checked.is_ok() {
        counters.health_success.inc()
    } else {
        counters.health_failures.inc()
    }
    match checked {
        Ok(()) => json(StatusCode::OK, r#"{"health":"true","reason":""}"#.to_owned()),
        Err(reason) => {
            let body = serde_json::json!({ "health": "false", "reason": reason });
            json(StatusCode::SERVICE_UNAVAILABLE, body.to_string())
        }
    }
}

async fn all(State(store): State<Store>, RawQuery(query): RawQuery, checks: &'static [Check]) -> Response {
    let query = query.unwrap_or_default();
    let excluded: Vec<&str> =
        parameters(Some(&query)).filter(|(name, _)| *name == "exclude").map(|(_, value)| value).collect();
    let verbose = parameters(Some(&query)).any(|(name, _)| name == "verbose");
    let mut report = String::new();
    let mut failed = false;
    for check in checks.iter().filter(|check| !excluded.contains(&check.name())) {
        let result = check.run(&store).await;
        failed |= result.is_err();
        let _ = match result {
            Ok(()) => writeln!(report, "[+]{} ok", check.name()),
            Err(reason) => writeln!(report, "[-]{} failed: {reason}", check.name()),
        };
    }
    match (failed, verbose) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, report).into_response(),
        (false, true) => (StatusCode::OK, format!("{report}ok\n")).into_response(),
        (false, false) => (StatusCode::OK, "ok\n").into_response(),
    }
}

async fn one(State(store): State<Store>, Path(name): Path<String>, checks: &'static [Check]) -> Response {
    let Some(check) = checks.iter().find(|check| check.name() == name) else {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    };
    match check.run(&store).await {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("[-]{name} failed: {reason}\n")).into_response(),
    }
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, store: &Store) -> Result<(), String> {
        match self {
            Self::DataCorruption => {
                match store.alarms().iter().any(|alarm| alarm.kind == i32::from(AlarmType::Corrupt)) {
                    true => Err("alarm activated: CORRUPT".to_owned()),
                    false => Ok(()),
                }
            }
            Self::SerializableRead => read(store, true).await,
            Self::LinearizableRead => read(store, false).await,
            Self::NonLearner if store.standing().learner => Err("member is a learner".to_owned()),
            Self::NonLearner => Ok(()),
        }
    }
}

/// Reads a key nobody writes, as etcd's own checks do.
async fn read(store: &Store, serializable: bool) -> Result<(), String> {
    let request = RangeRequest { key: bytes::Bytes::from_static(b"health"), serializable, ..RangeRequest::default() };
    store.range(request).await.map(drop).map_err(|error| error.to_string())
}

fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
