//! Which groups, versions and resources there are: plain and aggregated discovery, and the OpenAPI documents.
//!
//! All documents follow from tables that do not change while the process lives, so each has one ETag, known without
//! building it for OpenAPI. Aggregated discovery answers exactly the version that was asked for (W1).

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use pintle_api::discovery::Aggregated;
use pintle_api::openapi::Document;
use pintle_api::status::Status;
use pintle_api::{codec, discovery, kinds, openapi};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::compress;
use crate::handlers::Call;
use crate::negotiate::{self, Accepted, Format, JSON, PROTOBUF};
use crate::types::{Body, Response};

/// Aggregated documents made so far, with their tags.
#[derive(Default)]
pub struct Documents {
    aggregated: Mutex<BTreeMap<(bool, &'static str), (String, Bytes)>>,
}

pub fn owns(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
    matches!(first, "" | "api" | "apis" | "openapi")
}

impl Documents {
    /// # Errors
    /// 404 for groups and versions that are not served, 406 if the client accepts no form of the document.
    pub(crate) async fn serve(&self, path: &str, call: &Call) -> Result<Response, Status> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            [] => Ok(negotiate::json_response(StatusCode::OK, &json!({ "paths": root_paths() }))),
            ["openapi", "v3"] => {
                let body = codec::encode_json(&openapi::v3_index());
                let tag = hex::encode_upper(Sha256::digest(&body));
                Ok(tagged(call, JSON, &tag, body))
            }
            ["openapi", "v3", "api", version] => openapi_v3(call, "", version).await,
            ["openapi", "v3", "apis", group, version] => openapi_v3(call, group, version).await,
            ["openapi", "v2"] => openapi_v2(call).await,
            ["openapi", ..] => Err(Status::no_such_path()),
            _ => self.discovery(&parts, call),
        }
    }

    fn discovery(&self, parts: &[&str], call: &Call) -> Result<Response, Status> {
        if let (["api"] | ["apis"], Some(form)) = (parts, aggregated(call.headers())) {
            let (tag, body) = self.aggregated(parts == ["api"], form);
            return Ok(tagged(call, form.media_type(), &tag, body));
        }
        let value = match parts {
            ["api"] => discovery::api_versions(&host(call)),
            ["apis"] => discovery::api_group_list(),
            ["apis", group] => discovery::api_group(group).ok_or_else(Status::no_such_path)?,
            ["api", version] => discovery::api_resource_list("", version).ok_or_else(Status::no_such_path)?,
            ["apis", group, version] => {
                discovery::api_resource_list(group, version).ok_or_else(Status::no_such_path)?
            }
            _ => return Err(Status::no_such_path()),
        };
        let accepted = Accepted::of(call.headers(), call.query.flag("pretty"))?;
        Ok(plain(accepted, &value))
    }

    fn aggregated(&self, core: bool, form: Aggregated) -> (String, Bytes) {
        let mut made = self.aggregated.lock();
        let entry = made.entry((core, form.version())).or_insert_with(|| {
            let value = if core { discovery::aggregated_core(form) } else { discovery::aggregated_groups(form) };
            let body = codec::encode_json(&value);
            (hex::encode_upper(Sha256::digest(&body)), body)
        });
        entry.clone()
    }
}

/// The address clients reach this server by, as they say.
fn host(call: &Call) -> String {
    let authority = call.parts.uri.authority().map(ToString::to_string);
    let header = || call.headers().get(http::header::HOST).and_then(|value| value.to_str().ok()).map(str::to_owned);
    authority.or_else(header).unwrap_or_default()
}

fn plain(accepted: Accepted, value: &Value) -> Response {
    match accepted.format {
        Format::Protobuf => match codec::encode_any_protobuf(value) {
            Some(body) => negotiate::bytes_response(StatusCode::OK, PROTOBUF, body),
            None => negotiate::json_response(StatusCode::OK, value),
        },
        Format::Yaml => negotiate::bytes_response(StatusCode::OK, negotiate::YAML, codec::encode_yaml(value)),
        Format::Json => negotiate::json_response(StatusCode::OK, value),
    }
}

/// The version of aggregated discovery that the client prefers to anything plain (W1): exactly the one it names.
fn aggregated(headers: &HeaderMap) -> Option<Aggregated> {
    let mut wishes = negotiate::clauses(headers).into_iter().filter_map(|clause| match clause.param("as") {
        "APIGroupDiscoveryList" if clause.param("g") == discovery::AGGREGATED_GROUP => {
            Aggregated::parse(clause.param("v")).map(Some)
        }
        "" if clause.format().is_some() => Some(None),
        _ => None,
    });
    wishes.next().flatten()
}

async fn openapi_v3(call: &Call, group: &str, version: &str) -> Result<Response, Status> {
    let tag = openapi::v3_hash(group, version).ok_or_else(Status::no_such_path)?;
    let (group, version) = (group.to_owned(), version.to_owned());
    send(call, JSON, &tag, move || openapi::v3(&group, &version)).await
}

async fn openapi_v2(call: &Call) -> Result<Response, Status> {
    let protobuf = negotiate::clauses(call.headers()).into_iter().find_map(|clause| match clause.media_type.as_str() {
        JSON | "*/*" | "application/*" => Some(false),
        asked => openapi::V2_PROTOBUF_ASKED.contains(&asked).then_some(true),
    });
    match protobuf {
        Some(true) => send(call, openapi::V2_PROTOBUF, "", || Some(openapi::v2_protobuf())).await,
        Some(false) => send(call, JSON, "", || Some(openapi::v2_json())).await,
        None => Err(Status::not_acceptable(&[JSON, openapi::V2_PROTOBUF_ASKED[0]])),
    }
}

/// Sends a document; builds it on a blocking thread unless the client has it already.
async fn send(
    call: &Call,
    media_type: &'static str,
    tag: &str,
    build: impl FnOnce() -> Option<Document> + Send + 'static,
) -> Result<Response, Status> {
    if is_same(call.headers(), tag) {
        return Ok(tagged(call, media_type, tag, Bytes::new()));
    }
    let gzip = compress::accepts_gzip(call.headers());
    let built = tokio::task::spawn_blocking(move || {
        let document = build()?;
        let body = if gzip { document.gzip.clone() } else { document.plain().into() };
        Some((document.hash, body))
    });
    let (tag, body) = built.await.map_err(Status::internal)?.ok_or_else(Status::no_such_path)?;
    let mut response = tagged(call, media_type, &tag, body);
    if gzip && response.status() == StatusCode::OK {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

fn is_same(headers: &HeaderMap, tag: &str) -> bool {
    let tags = headers.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    !tag.is_empty()
        && tags
            .flat_map(|text| text.split(','))
            .any(|text| text.trim().trim_start_matches("W/").trim_matches('"') == tag)
}

/// A body with its ETag, or 304 if the client has it.
fn tagged(call: &Call, media_type: &'static str, tag: &str, body: Bytes) -> Response {
    let mut response = match is_same(call.headers(), tag) {
        true => Response::new(Body::empty()),
        false => negotiate::bytes_response(StatusCode::OK, media_type, body),
    };
    if !response.headers().contains_key(CONTENT_TYPE) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&format!("\"{tag}\"")) {
        headers.insert(ETAG, value);
    }
    headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    // Asked for by its hash a document never changes: another version has another address.
    let cache = match call.query.text("hash") == tag {
        true => "public, max-age=31536000, immutable",
        false => "no-cache, private",
    };
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

fn root_paths() -> Vec<String> {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_owned).to_vec();
    for (group, versions) in kinds::groups() {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    for path in ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"] {
        paths.push(path.to_owned());
    }
    paths.sort();
    paths
}
