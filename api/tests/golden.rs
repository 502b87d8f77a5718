//! JSON, YAML and protobuf against the golden files that upstream publishes with its API (Debian's golang-k8s-api-dev).
//!
//! They are looked for in the folder that `PINTLE_K8S_TESTDATA` names; then where the set-up unpacks them, in
//! `k8s-testdata` among the project's tools; then where the package installs them. Skipped, saying so, where they are not.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use pintle_api::{
    codec::{self, FieldValidation},
    kinds,
};
use serde_json::Value;

/// Where the package has the files, below the root of what it unpacks to.
const IN_PACKAGE: &str = "usr/share/gocode/src/k8s.io/api/testdata/HEAD";

fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = variable("PINTLE_K8S_TESTDATA") {
        assert!(has_files(&named), "PINTLE_K8S_TESTDATA names {}, which holds no golden files", named.display());
        return Some(named);
    }
    let cache = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let tools = variable("PINTLE_TOOLS").or_else(|| Some(cache()?.join("pintle/tools")));
    let unpacked = tools.map(|tools| tools.join("k8s-testdata"));
    let roots = unpacked.clone().into_iter().chain([PathBuf::from("/")]);
    unpacked.into_iter().chain(roots.map(|root| root.join(IN_PACKAGE))).find(|folder| has_files(folder))
}

fn has_files(folder: &Path) -> bool {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.into_iter().any(|file| file.path().extension().is_some_and(|extension| extension == "pb"))
}

/// A kind's three files.
struct Golden {
    name: String,
    kind: &'static kinds::Kind,
    json: Vec<u8>,
    yaml: Vec<u8>,
    pb: Vec<u8>,
}

fn golden() -> Vec<Golden> {
    let Some(folder) = folder() else {
        // Past the capture of the test harness: a skipped test must not look like a passed one.
        let text = "golden files SKIPPED: not unpacked by the set-up, golang-k8s-api-dev not installed, PINTLE_K8S_TESTDATA not set\n";
        let _ = std::io::stderr().write_all(text.as_bytes());
        return Vec::new();
    };
    let mut all = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let json = fs::read(&path).unwrap();
        let tree: Value = serde_json::from_slice(&json).unwrap();
        let word = |key: &str| tree.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let api_version = word("apiVersion");
        let Some((group, version)) = kinds::split_api_version(&api_version) else { continue };
        let Some(kind) = kinds::by_gvk(group, version, &word("kind")) else { continue };
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let other = |extension: &str| fs::read(path.with_extension(extension)).unwrap();
        all.push(Golden { name, kind, yaml: other("yaml"), pb: other("pb"), json });
    }
    assert!(all.len() >= 85, "only {} kinds in {}", all.len(), folder.display());
    all
}

/// Upstream writes some absent members as null, trees here do not; elements that are null (zero times) are so in both.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[test]
fn json_becomes_upstreams_protobuf_byte_for_byte() {
    for golden in golden() {
        let decoded = codec::decode(golden.kind, Some(codec::JSON), &golden.json, FieldValidation::Strict)
            .unwrap_or_else(|status| panic!("{}: {}", golden.name, status.message));
        let pb = codec::encode_any_protobuf(&decoded.object).unwrap();
        let at = pb.iter().zip(&golden.pb).position(|(a, b)| a != b).unwrap_or(pb.len().min(golden.pb.len()));
        let near = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[at.saturating_sub(40)..bytes.len().min(at + 20)]).into_owned()
        };
        assert!(pb == golden.pb, "{} at {at}: {:?} not {:?}", golden.name, near(&pb), near(&golden.pb));
    }
}

#[test]
fn protobuf_becomes_upstreams_json_in_its_order() {
    for golden in golden() {
        let decoded = codec::decode(golden.kind, Some(codec::PROTOBUF), &golden.pb, FieldValidation::Strict)
            .unwrap_or_else(|status| panic!("{}: {}", golden.name, status.message));
        let want = without_nulls(serde_json::from_slice(&golden.json).unwrap());
        let got = without_nulls(decoded.object);
        let (got, want) = (serde_json::to_string(&got).unwrap(), serde_json::to_string(&want).unwrap());
        assert_eq!(got, want, "{}", golden.name);
    }
}

#[test]
fn yaml_and_json_decode_alike() {
    for golden in golden() {
        let decode = |media_type: &str, body: &[u8]| {
            codec::decode(golden.kind, Some(media_type), body, FieldValidation::Strict)
                .unwrap_or_else(|status| panic!("{} {media_type}: {}", golden.name, status.message))
                .object
        };
        let json = decode(codec::JSON, &golden.json);
        let yaml = decode(codec::YAML, &golden.yaml);
        assert_eq!(yaml, json, "{}", golden.name);
        let text = codec::encode_yaml(&json);
        assert_eq!(decode(codec::YAML, &text), json, "{}", golden.name);
    }
}
