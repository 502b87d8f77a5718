//! Swaps the files of a projected volume all at once.
//!
//! Layout: `..2026_01_02.123/` holds one generation of files, `..data` points at it, and each visible name is a link
//! through `..data`. A reader sees all old or all new files, never a mix, because one rename moves `..data`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path};

use pintle_base::rng;

use super::payload::Payload;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Makes `target` hold exactly `payload`; does nothing if it already does.
pub fn write(target: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    if payload.files.keys().any(|path| !is_inside(path)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file's path leaves the volume"));
    }
    let current = fs::read_link(target.join(DATA)).ok();
    if current.as_ref().is_some_and(|generation| holds(&target.join(generation), payload)) {
        return Ok(());
    }
    let generation = format!("..{:016x}", rng::u64());
    let dir = target.join(&generation);
    fill(&dir, payload, group).inspect_err(|_| fs::remove_dir_all(&dir).unwrap_or_default())?;
    match fs::remove_file(target.join(DATA_NEXT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    symlink(&generation, target.join(DATA_NEXT))?;
    fs::rename(target.join(DATA_NEXT), target.join(DATA))?;
    link_names(target, payload)?;
    if let Some(old) = current {
        fs::remove_dir_all(target.join(old))?;
    }
    Ok(())
}

fn is_inside(path: &str) -> bool {
    let plain = |part| matches!(part, Component::Normal(name) if !name.to_string_lossy().starts_with(".."));
    !path.is_empty() && Path::new(path).components().all(plain)
}

fn holds(dir: &Path, payload: &Payload) -> bool {
    let mut count = 0;
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(next) = waiting.pop() {
        let Ok(children) = fs::read_dir(&next) else { return false };
        for child in children.flatten() {
            match child.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(child.path()),
                _ => count += 1,
            }
        }
    }
    count == payload.files.len()
        && payload.files.iter().all(|(path, file)| {
            let path = dir.join(path);
            let mode = fs::metadata(&path).map(|meta| meta.permissions().mode() & 0o7777);
            mode.is_ok_and(|mode| mode == file.mode) && fs::read(&path).is_ok_and(|data| data == file.data)
        })
}

fn fill(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    fs::create_dir(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for (path, file) in &payload.files {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &file.data)?;
        if group.is_some() || file.owner.is_some() {
            chown(&path, file.owner, group)?;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    Ok(())
}

/// Each first path component becomes a link through `..data`; links of names that are gone are removed.
fn link_names(target: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &names {
        if fs::symlink_metadata(target.join(name)).is_err() {
            symlink(Path::new(DATA).join(name), target.join(name))?;
        }
    }
    for child in fs::read_dir(target)? {
        let child = child?;
        let name = child.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(name.as_ref()) {
            fs::remove_file(child.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o640, owner: None };
        Payload { files: files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect() }
    }

    #[test]
    fn files_appear_change_and_disappear() {
        let dir = tempfile::tempdir().expect("directory");
        write(dir.path(), &payload(&[("a", "1"), ("deep/b", "2")]), None).expect("first");
        assert_eq!(fs::read(dir.path().join("deep/b")).expect("read"), b"2");
        assert_eq!(fs::metadata(dir.path().join("a")).expect("meta").permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(dir.path().join(DATA)).expect("link");
        write(dir.path(), &payload(&[("a", "1"), ("deep/b", "2")]), None).expect("same");
        assert_eq!(fs::read_link(dir.path().join(DATA)).expect("link"), first, "unchanged files are not rewritten");
        write(dir.path(), &payload(&[("c", "3")]), None).expect("second");
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.retain(|name| name != DATA);
        names.sort();
        assert_eq!(names.len(), 2, "one generation and one name: {names:?}");
        assert!(names[0].starts_with("..") && names[1] == "c", "{names:?}");
    }

    #[test]
    fn paths_that_leave_are_refused() {
        let dir = tempfile::tempdir().expect("directory");
        for path in ["../x", "/etc/x", "a/../../x", "..data/x", "", "."] {
            assert!(write(dir.path(), &payload(&[(path, "x")]), None).is_err(), "{path:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
    }
}
