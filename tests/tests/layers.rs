//! The layers of ARCHITECTURE.md, held over `cargo metadata`: who may import whom. The table is the documentation.

use std::collections::BTreeMap;
use std::process::Command;

/// Each crate and the crates of ours that it may depend on, lowest layer first.
const LAYERS: &[(&str, &[&str])] = &[
    ("pintle-base", &[]),
    ("pintle-proto", &[]),
    ("pintle-api", &["pintle-base"]),
    ("pintle-raft", &["pintle-proto", "pintle-base"]),
    ("pintle-store", &["pintle-raft", "pintle-proto", "pintle-base"]),
    ("pintle-client", &["pintle-api", "pintle-proto", "pintle-base"]),
    ("pintle-apiserver", &["pintle-store", "pintle-api", "pintle-proto", "pintle-base"]),
    ("pintle-scheduler", &["pintle-client", "pintle-api", "pintle-proto", "pintle-base"]),
    ("pintle-controllers", &["pintle-client", "pintle-api", "pintle-proto", "pintle-base"]),
    ("pintle-node", &["pintle-client", "pintle-api", "pintle-proto", "pintle-base"]),
    (
        "pintle",
        &[
            "pintle-base",
            "pintle-proto",
            "pintle-api",
            "pintle-raft",
            "pintle-store",
            "pintle-client",
            "pintle-apiserver",
            "pintle-scheduler",
            "pintle-controllers",
            "pintle-node",
        ],
    ),
    ("pintle-jepsen", &["pintle-proto", "pintle-client", "pintle-api", "pintle-base"]),
    ("pintle-fuzz", &["pintle-store", "pintle-raft"]),
];

/// Libraries that one crate alone may see.
const CONFINED: &[(&str, &[&str])] = &[
    ("openraft", &["pintle-raft"]),
    ("bincode", &["pintle-raft"]),
    ("rocksdb", &["pintle-raft", "pintle-store"]),
    ("anyhow", &["pintle", "pintle-tests", "pintle-jepsen"]),
];

fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("run cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let names = |package: &serde_json::Value| -> Vec<String> {
        let normal = |dependency: &&serde_json::Value| dependency["kind"].is_null();
        let list = package["dependencies"].as_array().into_iter().flatten().filter(normal);
        list.filter_map(|dependency| dependency["name"].as_str().map(str::to_owned)).collect()
    };
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| (package["name"].as_str().expect("name").to_owned(), names(package)))
        .collect()
}

#[test]
fn imports_only_point_downwards() {
    let dependencies = dependencies();
    for (name, allowed) in LAYERS {
        let ours = dependencies[*name].iter().filter(|dependency| dependency.starts_with("pintle"));
        for dependency in ours {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not import {dependency}");
        }
    }
}

#[test]
fn every_crate_has_its_place() {
    for name in dependencies().keys() {
        let known = LAYERS.iter().any(|(layer, _)| layer == name) || name == "pintle-tests";
        assert!(known, "{name} is missing in the layer table");
    }
}

#[test]
fn confined_libraries_stay_in_their_crates() {
    for (name, list) in dependencies() {
        for (library, allowed) in CONFINED {
            let uses = list.iter().any(|dependency| dependency == library);
            assert!(!uses || allowed.contains(&name.as_str()), "{name} must not use {library}");
        }
    }
}
