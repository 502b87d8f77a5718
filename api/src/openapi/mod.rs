//! OpenAPI documents: v3 per group and version, v2 as JSON and as gnostic protobuf.
//!
//! Structure comes from the schema table, descriptions at run time from `k8s-openapi`. A document is built when first asked
//! for and kept compressed (some 30 KB each), so that an idle server holds none. Building takes tens of milliseconds for a
//! group version and some hundred for v2: call from where blocking is allowed. One is built at a time.

mod describe;
mod gnostic;
mod paths;
mod schemas;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{Read, Write as _},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::kinds;

/// Media type to answer with when [`v2_protobuf`] is sent. Clients ask for it with an `@` that an answer must not have:
/// Go's parser, and with it kubectl, refuses such a Content-Type.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Media types in `Accept` that mean [`v2_protobuf`].
pub const V2_PROTOBUF_ASKED: [&str; 2] = ["application/com.github.proto-openapi.spec.v2@v1.0+protobuf", V2_PROTOBUF];

/// Raised when the documents of an unchanged table change, so that clients drop what they cached under its hash.
const REVISION: u32 = 1;

/// Which grammar a document follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grammar {
    V2,
    V3,
}

/// A finished document.
#[derive(Clone, Debug)]
pub struct Document {
    /// For `ETag` (in quotes) and `?hash=`.
    pub hash: String,
    /// Compressed body.
    pub gzip: Bytes,
}

impl Document {
    fn new(hash: String, body: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        // Writing to memory does not fail.
        let _ = encoder.write_all(body);
        Self { hash, gzip: encoder.finish().unwrap_or_default().into() }
    }

    /// The body for clients that do not take gzip.
    pub fn plain(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let _ = GzDecoder::new(&self.gzip[..]).read_to_end(&mut body);
        body
    }
}

static BUILT: Mutex<BTreeMap<String, Document>> = Mutex::new(BTreeMap::new());

fn cached(name: &str, build: impl FnOnce() -> Vec<u8>) -> Document {
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(document) = built.get(name) {
        return document.clone();
    }
    let document = Document::new(hash(name), &build());
    built.insert(name.to_owned(), document.clone());
    document
}

/// Known without building: documents are a function of the binary.
fn hash(name: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(include_str!("../schema/tables.txt"));
    digest.update(format!("{:?}", kinds::KINDS));
    digest.update(format!("{} {REVISION} {name}", env!("CARGO_PKG_VERSION")));
    digest.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

/// `api/v1`, `apis/apps/v1`
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// All served pairs of group and version, the core group first.
fn versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    let others = kinds::groups().into_iter().flat_map(|(g, versions)| versions.into_iter().map(move |v| (g, v)));
    std::iter::once(("", "v1")).chain(others)
}

/// `GET /openapi/v3`
pub fn v3_index() -> Value {
    let paths: Map<String, Value> = versions()
        .map(|(group, version)| {
            let path = path_of(group, version);
            let url = format!("/openapi/v3/{path}?hash={}", hash(&path));
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The hash that [`v3_index`] names and [`v3`] will have; `None` if nothing is served there.
pub fn v3_hash(group: &str, version: &str) -> Option<String> {
    kinds::serves(group, version).then(|| hash(&path_of(group, version)))
}

/// `GET /openapi/v3/apis/GROUP/VERSION`
pub fn v3(group: &str, version: &str) -> Option<Document> {
    let (group, version) = versions().find(|served| *served == (group, version))?;
    Some(cached(&path_of(group, version), || to_bytes(&build_v3(group, version))))
}

/// `GET /openapi/v2` as JSON.
pub fn v2_json() -> Document {
    cached("v2 json", || to_bytes(&build_v2()))
}

/// `GET /openapi/v2` as [`V2_PROTOBUF`].
pub fn v2_protobuf() -> Document {
    cached("v2 protobuf", || gnostic::document(&build_v2()))
}

fn to_bytes(document: &Value) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_default()
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.0"})
}

fn security() -> Value {
    json!({"BearerToken": {
        "description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header",
    }})
}

fn build_v3(group: &'static str, version: &'static str) -> Value {
    let kinds = kinds::in_version(group, version);
    let described = describe::definitions(&[(group, version)]);
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths::paths(&kinds, Grammar::V3),
        "components": {
            "schemas": schemas::components(&kinds, Grammar::V3, &described),
            "securitySchemes": security(),
        },
    })
}

fn build_v2() -> Value {
    let served: Vec<_> = versions().collect();
    let kinds: Vec<_> = served.iter().flat_map(|(group, version)| kinds::in_version(group, version)).collect();
    let described = describe::definitions(&served);
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths::paths(&kinds, Grammar::V2),
        "definitions": schemas::components(&kinds, Grammar::V2, &described),
        "securityDefinitions": security(),
        "security": [{"BearerToken": []}],
    })
}

#[cfg(test)]
mod tests;
