//! Volumes of pods on this machine: made before containers start, kept up to date, taken away with the pod.
//!
//! [`payload`] decides which files a projected volume holds, [`memory`] keeps those of secrets off the disk, [`atomic`]
//! swaps them in at once, [`subpath`] opens paths inside a volume without being led out of it.

mod atomic;
mod memory;
pub mod payload;
mod subpath;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pintle_api::quantity::Quantity;
use pintle_proto::cri_v1::MountPropagation;

use crate::pods::config::ReadyMount;
use crate::pods::env;

pub use payload::{Payload, PayloadError};

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("volume {volume}: {what}")]
    Io {
        volume: String,
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("volume {volume}: hostPath type check failed: {path} is not {wanted}")]
    HostPath { volume: String, path: String, wanted: &'static str },
    #[error("volume {volume}: its kind is not supported on this node")]
    Unsupported { volume: String },
    #[error("volume {volume}")]
    Payload {
        volume: String,
        #[source]
        source: PayloadError,
    },
    #[error("container {container} mounts volume {volume}, which the pod does not have")]
    Unknown { container: String, volume: String },
    #[error("container {container}: subPath {path:?} is not inside the volume")]
    SubPath {
        container: String,
        path: String,
        #[source]
        source: io::Error,
    },
}

/// When volumes are made ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The pod has no sandbox: nothing has its volumes bound.
    Start,
    /// Containers may have bound what is there.
    Refresh,
}

/// Directories of one pod below the agent's data directory.
#[derive(Clone, Debug)]
pub struct PodDirs {
    root: PathBuf,
}

impl PodDirs {
    /// `uid` comes from the API: anything that is not one plain path component is refused.
    pub fn new(data_dir: &Path, uid: &str) -> Option<Self> {
        let plain =
            !uid.is_empty() && uid.len() <= 128 && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        plain.then(|| Self { root: data_dir.join("pods").join(uid) })
    }

    /// Removes the directories of all pods but those whose uid is `claimed`; returns how many.
    pub fn remove_unclaimed(data_dir: &Path, claimed: &BTreeSet<String>) -> io::Result<usize> {
        let entries = match fs::read_dir(data_dir.join("pods")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        let mut count = 0;
        for entry in entries {
            let uid = entry?.file_name().to_string_lossy().into_owned();
            if let Some(dirs) = Self::new(data_dir, &uid).filter(|_| !claimed.contains(&uid)) {
                dirs.remove()?;
                count += 1;
            }
        }
        Ok(count)
    }

    pub fn volume(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name)
    }

    pub fn hosts(&self) -> PathBuf {
        self.root.join("hosts")
    }

    pub fn termination(&self, container: &str, attempt: u32) -> PathBuf {
        self.root.join("containers").join(container).join(attempt.to_string())
    }

    fn subpaths(&self) -> PathBuf {
        self.root.join("subpaths")
    }

    fn subpath(&self, container: &str, place: usize) -> PathBuf {
        self.subpaths().join(container).join(place.to_string())
    }

    /// Unmounts and removes everything of the pod. What is still busy is tried again at the next start of the agent.
    pub fn remove(&self) -> io::Result<()> {
        unmount_below(&self.root)?;
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// Unmounts everything below `root`.
///
/// # Errors
/// Also if something stays mounted: what is behind it may be somebody else's, and must not be removed with the directory.
fn unmount_below(root: &Path) -> io::Result<()> {
    // The kernel's table has no symbolic links in its paths.
    let root = match fs::canonicalize(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for target in mounts_below(&root)? {
        unmount(&target)?;
    }
    match mounts_below(&root)?.first() {
        None => Ok(()),
        Some(target) => Err(io::Error::other(format!("{} is still mounted", target.display()))),
    }
}

/// Mount points at and below `root`, the deepest first.
fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut targets: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(root))
        .collect();
    targets.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(targets)
}

/// Unmounts `target`; one in use is detached, and goes with its last user.
fn unmount(target: &Path) -> io::Result<()> {
    let result = match umount2(target, MntFlags::empty()) {
        Err(Errno::EBUSY) => umount2(target, MntFlags::MNT_DETACH),
        other => other,
    };
    match result {
        // Gone since the table was read.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn failed(volume: &str, what: impl Into<String>) -> impl FnOnce(io::Error) -> VolumeError {
    let (volume, what) = (volume.to_owned(), what.into());
    move |source| VolumeError::Io { volume, what, source }
}

/// True for volumes whose files the agent itself writes.
pub fn is_projected(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

/// Makes a volume ready. `payload` is given for projected ones.
pub fn set_up(
    dirs: &PodDirs,
    pod: &Pod,
    volume: &Volume,
    payload: Option<&Payload>,
    stage: Stage,
) -> Result<(), VolumeError> {
    let target = dirs.volume(&volume.name);
    let group =
        pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()).and_then(|security| security.fs_group);
    let group = group.and_then(|group| u32::try_from(group).ok());
    if let Some(payload) = payload {
        if memory::is_secret(volume) {
            memory::ensure(&target, stage).map_err(failed(&volume.name, "make directory in memory"))?;
        } else {
            fs::create_dir_all(&target).map_err(failed(&volume.name, "make directory"))?;
        }
        return atomic::write(&target, payload, group).map_err(failed(&volume.name, "write files"));
    }
    if let Some(source) = &volume.empty_dir {
        empty_dir(&volume.name, &target, source, group)
    } else if let Some(source) = &volume.host_path {
        host_path(&volume.name, source)
    } else {
        Err(VolumeError::Unsupported { volume: volume.name.clone() })
    }
}

fn empty_dir(
    volume: &str,
    target: &Path,
    source: &EmptyDirVolumeSource,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    if target.exists() {
        return Ok(()); // its content belongs to the pod now
    }
    fs::DirBuilder::new().recursive(true).mode(0o777).create(target).map_err(failed(volume, "make directory"))?;
    if source.medium.as_deref() == Some("Memory") {
        let size = source
            .size_limit
            .as_ref()
            .and_then(|size| size.0.parse::<Quantity>().ok())
            .map(|size| size.units())
            .filter(|size| *size > 0);
        let options = size.map_or_else(|| "mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(|error| failed(volume, "mount tmpfs")(error.into()))?;
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    if group.is_some() {
        std::os::unix::fs::chown(target, None, group).map_err(failed(volume, "set group"))?;
    }
    // The umask took bits away at creation.
    fs::set_permissions(target, fs::Permissions::from_mode(mode)).map_err(failed(volume, "set mode"))
}

fn host_path(volume: &str, source: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = Path::new(&source.path);
    let refused = |wanted| VolumeError::HostPath { volume: volume.to_owned(), path: source.path.clone(), wanted };
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(refused("an absolute path without .."));
    }
    let is = |wanted, check: fn(&fs::Metadata) -> bool| match fs::metadata(path) {
        Ok(meta) if check(&meta) => Ok(()),
        _ => Err(refused(wanted)),
    };
    match source.type_.as_deref().unwrap_or_default() {
        "" => {
            if !path.exists() {
                fs::create_dir_all(path).map_err(failed(volume, "make host directory"))?;
            }
            Ok(())
        }
        "DirectoryOrCreate" => {
            fs::create_dir_all(path).map_err(failed(volume, "make host directory"))?;
            is("a directory", fs::Metadata::is_dir)
        }
        "FileOrCreate" => {
            fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed(volume, "make host file"))?;
            is("a file", fs::Metadata::is_file)
        }
        "Directory" => is("a directory", fs::Metadata::is_dir),
        "File" => is("a file", fs::Metadata::is_file),
        "Socket" => is("a socket", |meta| meta.file_type().is_socket()),
        "CharDevice" => is("a character device", |meta| meta.file_type().is_char_device()),
        "BlockDevice" => is("a block device", |meta| meta.file_type().is_block_device()),
        _ => Err(refused("of a known type")),
    }
}

/// The mounts of a container's volumes, sub paths resolved.
pub fn mounts(
    dirs: &PodDirs,
    pod: &Pod,
    container: &Container,
    environment: &[(String, String)],
) -> Result<Vec<ReadyMount>, VolumeError> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut mounts = Vec::new();
    for (place, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let unknown = || VolumeError::Unknown { container: container.name.clone(), volume: mount.name.clone() };
        let volume = volumes.iter().find(|volume| volume.name == mount.name).ok_or_else(unknown)?;
        let source = match &volume.host_path {
            Some(source) => PathBuf::from(&source.path),
            None => dirs.volume(&volume.name),
        };
        let lookup = |name: &str| environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
        let expanded =
            mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()).map(|text| env::expand(text, lookup));
        let sub_path = expanded.or_else(|| mount.sub_path.clone()).filter(|path| !path.is_empty());
        let host_path = match sub_path {
            None => source,
            Some(path) => {
                let target = dirs.subpath(&container.name, place);
                subpath::bind(&source, &path, &target).map_err(|source| VolumeError::SubPath {
                    container: container.name.clone(),
                    path,
                    source,
                })?;
                target
            }
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            _ => MountPropagation::PropagationPrivate,
        };
        // Files that the agent swaps must not be changed by the pod.
        let read_only = mount.read_only == Some(true) || is_projected(volume);
        mounts.push(ReadyMount {
            container_path: absolute(&mount.mount_path),
            host_path,
            read_only,
            propagation: propagation as i32,
        });
    }
    Ok(mounts)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn directories_come_from_plain_uids_only() {
        let data = Path::new("/data");
        assert!(PodDirs::new(data, "0b1c-ff").is_some());
        for uid in ["", "..", "a/b", "a\0", &"a".repeat(200)] {
            assert!(PodDirs::new(data, uid).is_none(), "{uid:?}");
        }
    }

    #[test]
    fn only_unclaimed_directories_are_swept() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(PodDirs::remove_unclaimed(dir.path(), &BTreeSet::new()).expect("nothing yet"), 0);
        for uid in ["u1", "u2"] {
            fs::create_dir_all(dir.path().join("pods").join(uid).join("volumes")).expect("mkdir");
        }
        let claimed = BTreeSet::from(["u1".to_owned()]);
        assert_eq!(PodDirs::remove_unclaimed(dir.path(), &claimed).expect("swept"), 1);
        assert!(dir.path().join("pods/u1").exists() && !dir.path().join("pods/u2").exists());
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("file");
        let source = |path: &Path, kind: &str| HostPathVolumeSource {
            path: path.to_string_lossy().into_owned(),
            type_: Some(kind.into()),
        };
        assert!(host_path("v", &source(&file, "File")).is_err());
        assert!(host_path("v", &source(&file, "FileOrCreate")).is_ok());
        assert!(host_path("v", &source(&file, "File")).is_ok() && host_path("v", &source(&file, "Directory")).is_err());
        assert!(host_path("v", &source(&dir.path().join("new/er"), "DirectoryOrCreate")).is_ok());
        assert!(host_path("v", &source(Path::new("relative"), "")).is_err());
        assert!(host_path("v", &source(Path::new("/a/../etc"), "")).is_err());
    }

    #[test]
    fn an_empty_dir_is_open_to_all_and_kept() {
        let dir = tempfile::tempdir().expect("directory");
        let dirs = PodDirs::new(dir.path(), "u1").expect("plain");
        let volume: Volume = serde_json::from_value(json!({ "name": "v", "emptyDir": {} })).expect("volume");
        set_up(&dirs, &Pod::default(), &volume, None, Stage::Start).expect("made");
        let path = dirs.volume("v");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o777);
        fs::write(path.join("kept"), "x").expect("write");
        set_up(&dirs, &Pod::default(), &volume, None, Stage::Start).expect("again");
        assert!(path.join("kept").exists());
        dirs.remove().expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn a_mount_without_its_volume_is_an_error() {
        let dirs = PodDirs::new(Path::new("/data"), "u1").expect("plain");
        let container: Container =
            serde_json::from_value(json!({ "name": "c", "volumeMounts": [{ "name": "x", "mountPath": "/x" }] }))
                .expect("container");
        let error = mounts(&dirs, &Pod::default(), &container, &[]).expect_err("unknown");
        assert!(error.to_string().contains("does not have"));
    }
}
