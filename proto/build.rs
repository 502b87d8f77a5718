//! Compiles every `.proto` below `proto/` without protoc, and writes one module per package.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut files = Vec::new();
    collect(Path::new("proto"), &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, ["proto"])?;
    let mut packages: Vec<String> = descriptors.file.iter().map(|file| file.package().to_owned()).collect();
    packages.sort();
    packages.dedup();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("etcd.bin"), etcd(&descriptors).encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;

    let modules: String = packages
        .iter()
        .map(|package| {
            format!(
                "pub mod {} {{\n    include!(concat!(env!(\"OUT_DIR\"), \"/{package}.rs\"));\n}}\n",
                module(package)
            )
        })
        .collect();
    fs::write(out.join("modules.rs"), modules)?;
    Ok(())
}

/// The part of the descriptors that the store's JSON gateway needs.
fn etcd(all: &FileDescriptorSet) -> FileDescriptorSet {
    const PACKAGES: [&str; 5] = ["authpb", "etcdserverpb", "mvccpb", "v3electionpb", "v3lockpb"];
    let of_etcd = |file: &&FileDescriptorProto| PACKAGES.contains(&file.package());
    FileDescriptorSet { file: all.file.iter().filter(of_etcd).cloned().collect() }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

/// `pintle.node.v1` becomes `node_v1`, CRI's `runtime.v1` becomes `cri_v1`; etcd's packages keep their names.
fn module(package: &str) -> String {
    match package {
        "runtime.v1" => "cri_v1".to_owned(),
        "grpc.health.v1" => "health_v1".to_owned(),
        other => other.trim_start_matches("pintle.").replace('.', "_"),
    }
}
