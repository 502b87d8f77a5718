//! Removes the cgroups of a pod that is gone. The runtime removes those of containers; their parent is ours.

use std::fs;
use std::io;
use std::path::Path;

const ROOT: &str = "/sys/fs/cgroup";

/// Removes `parent` and what is below it from every hierarchy. Only empty groups can be removed: nothing is ended here.
pub fn remove(parent: &str) -> io::Result<()> {
    remove_below(Path::new(ROOT), parent)
}

fn remove_below(root: &Path, parent: &str) -> io::Result<()> {
    let relative = parent.trim_start_matches('/');
    if relative.is_empty() || relative.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{parent:?} is not a group of a pod")));
    }
    remove_tree(&root.join(relative))?; // one hierarchy for all (cgroup v2)
    for hierarchy in fs::read_dir(root)? {
        remove_tree(&hierarchy?.path().join(relative))?;
    }
    Ok(())
}

fn remove_tree(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_groups_go_from_all_hierarchies_and_others_stay() {
        let root = tempfile::tempdir().expect("directory");
        for group in ["cpu/kubepods/poda/c1", "memory/kubepods/poda", "memory/kubepods/podb", "cpu/other"] {
            fs::create_dir_all(root.path().join(group)).expect("mkdir");
        }
        fs::write(root.path().join("file"), "").expect("write");
        remove_below(root.path(), "/kubepods/poda").expect("removed");
        assert!(!root.path().join("cpu/kubepods/poda").exists() && !root.path().join("memory/kubepods/poda").exists());
        assert!(root.path().join("memory/kubepods/podb").exists() && root.path().join("cpu/other").exists());
        for parent in ["", "/", "/kubepods/../other", "/kubepods//x"] {
            assert!(remove_below(root.path(), parent).is_err(), "{parent:?}");
        }
    }
}
