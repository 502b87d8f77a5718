//! Builds an image archive of one layer in the `docker save` layout, which every runtime imports.
//!
//! The same entries give the same image id: no times, no owners, entries in the order they are given.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::tar;
use crate::limits;

/// One thing in the image; `path` is relative to the root, without `..`.
#[derive(Clone, Debug)]
pub enum Entry {
    Directory {
        path: String,
        mode: u32,
    },
    Symlink {
        path: String,
        target: String,
    },
    Data {
        path: String,
        mode: u32,
        data: Vec<u8>,
    },
    /// Taken from `source` when the archive is written.
    File {
        path: String,
        mode: u32,
        source: PathBuf,
    },
}

/// What the image's configuration says.
#[derive(Clone, Debug, Default)]
pub struct ImageSpec {
    /// Full name with tag, for example `docker.io/library/busybox:1.35`.
    pub name: String,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    /// `NAME=value` each.
    pub environment: Vec<String>,
    pub working_directory: String,
}

/// Why an image archive was not made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("no pause program can be made for a {architecture} machine")]
    Architecture { architecture: &'static str },
    #[error("image path {path:?} is absolute or leaves the root")]
    Path { path: String },
    #[error("image has more than {limit} entries")]
    TooMany { limit: usize },
    #[error("write image archive {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// All of a directory as entries, sorted, symbolic links kept, special files left out.
///
/// # Errors
/// [`BuildError::Read`] or [`BuildError::TooMany`].
pub fn entries_of(root: &Path) -> Result<Vec<Entry>, BuildError> {
    let mut entries = Vec::new();
    let mut waiting = vec![(root.to_path_buf(), String::new())];
    while let Some((dir, prefix)) = waiting.pop() {
        let read = |source| BuildError::Read { path: dir.clone(), source };
        let mut children: Vec<_> = fs::read_dir(&dir).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
        children.sort_by_key(fs::DirEntry::file_name);
        for child in children {
            let path = format!("{prefix}{}", child.file_name().to_string_lossy());
            let meta = fs::symlink_metadata(child.path()).map_err(read)?;
            let mode = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                waiting.push((child.path(), format!("{path}/")));
                entries.push(Entry::Directory { path, mode });
            } else if meta.is_symlink() {
                let target = fs::read_link(child.path()).map_err(read)?.to_string_lossy().into_owned();
                entries.push(Entry::Symlink { path, target });
            } else if meta.is_file() {
                entries.push(Entry::File { path, mode, source: child.path() });
            }
            if entries.len() > limits::IMAGE_ENTRIES {
                return Err(BuildError::TooMany { limit: limits::IMAGE_ENTRIES });
            }
        }
    }
    Ok(entries)
}

/// Writes the image archive to `path`, which appears only when it is complete.
///
/// # Errors
/// [`BuildError`]; no file is left behind.
pub fn write(path: &Path, spec: &ImageSpec, entries: Vec<Entry>) -> Result<(), BuildError> {
    for entry in &entries {
        check_path(entry)?;
    }
    let partial = path.with_extension("partial");
    let result = write_archive(&partial, spec, &entries)
        .and_then(|()| fs::rename(&partial, path))
        .map_err(|source| BuildError::Write { path: path.to_path_buf(), source });
    if result.is_err() {
        // Best effort: the error that matters is already in hand.
        fs::remove_file(&partial).unwrap_or_default();
    }
    result
}

fn check_path(entry: &Entry) -> Result<(), BuildError> {
    let (Entry::Directory { path, .. }
    | Entry::Symlink { path, .. }
    | Entry::Data { path, .. }
    | Entry::File { path, .. }) = entry;
    let leaves = path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..");
    if leaves { Err(BuildError::Path { path: path.clone() }) } else { Ok(()) }
}

fn write_archive(path: &Path, spec: &ImageSpec, entries: &[Entry]) -> io::Result<()> {
    let layer_path = path.with_extension("layer");
    let result = write_layer(&layer_path, entries).and_then(|mut layer| {
        let digest = digest_of(&mut layer)?;
        let size = layer.seek(SeekFrom::End(0))?;
        layer.seek(SeekFrom::Start(0))?;
        let config = config(spec, &digest);
        let config_name = format!("{}.json", hex::encode(Sha256::digest(config.as_bytes())));
        let layer_name = format!("{digest}/layer.tar");
        let manifest = json!([{ "Config": config_name, "RepoTags": [spec.name], "Layers": [layer_name] }]).to_string();
        let mut tar = tar::Writer::new(BufWriter::new(File::create(path)?));
        tar.file(&config_name, 0o644, config.len() as u64, config.as_bytes())?;
        tar.directory(&digest, 0o755)?;
        tar.file(&layer_name, 0o644, size, layer)?;
        tar.file("manifest.json", 0o644, manifest.len() as u64, manifest.as_bytes())?;
        let mut out = tar.finish()?;
        out.flush()?;
        out.get_ref().sync_all()
    });
    fs::remove_file(&layer_path).unwrap_or_default();
    result
}

fn write_layer(path: &Path, entries: &[Entry]) -> io::Result<File> {
    let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
    let mut tar = tar::Writer::new(BufWriter::new(file));
    for entry in entries {
        match entry {
            Entry::Directory { path, mode } => tar.directory(path, *mode)?,
            Entry::Symlink { path, target } => tar.symlink(path, target)?,
            Entry::Data { path, mode, data } => tar.file(path, *mode, data.len() as u64, data.as_slice())?,
            Entry::File { path, mode, source } => {
                let source = File::open(source)?;
                tar.file(path, *mode, source.metadata()?.len(), source)?;
            }
        }
    }
    tar.finish()?.into_inner().map_err(io::IntoInnerError::into_error)
}

fn digest_of(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

fn config(spec: &ImageSpec, digest: &str) -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
    let environment: Vec<&String> = std::iter::once(&path).chain(&spec.environment).collect();
    json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": environment,
            "Entrypoint": spec.entrypoint,
            "Cmd": spec.command,
            "WorkingDir": spec.working_directory,
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "pintle" }],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let dir = tempfile::tempdir().expect("directory");
        let spec = ImageSpec { name: "example.local/a:1".into(), command: vec!["/a".into()], ..ImageSpec::default() };
        let entries = || vec![Entry::Data { path: "a".into(), mode: 0o755, data: b"x".to_vec() }];
        let (one, two) = (dir.path().join("1.tar"), dir.path().join("2.tar"));
        write(&one, &spec, entries()).expect("first");
        write(&two, &spec, entries()).expect("second");
        assert_eq!(fs::read(&one).expect("read"), fs::read(&two).expect("read"));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 2, "nothing partial is left");
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        let dir = tempfile::tempdir().expect("directory");
        for path in ["/etc/passwd", "../x", "a/../../b", ""] {
            let entry = Entry::Directory { path: path.into(), mode: 0o755 };
            let error = write(&dir.path().join("x.tar"), &ImageSpec::default(), vec![entry]).expect_err(path);
            assert!(matches!(error, BuildError::Path { .. }));
        }
    }

    #[test]
    fn a_directory_becomes_its_entries() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("bin")).expect("mkdir");
        fs::write(dir.path().join("bin/a"), "a").expect("write");
        std::os::unix::fs::symlink("a", dir.path().join("bin/b")).expect("link");
        let names: Vec<String> = entries_of(dir.path())
            .expect("entries")
            .into_iter()
            .map(|entry| match entry {
                Entry::Directory { path, .. } => format!("d {path}"),
                Entry::Symlink { path, target } => format!("l {path} {target}"),
                Entry::File { path, .. } | Entry::Data { path, .. } => format!("f {path}"),
            })
            .collect();
        assert_eq!(names, ["d bin", "f bin/a", "l bin/b a"]);
    }
}
