//! A file system in memory for each volume that holds secrets, as upstream has it: what is written there reaches no disk
//! and is gone with the machine.
//!
//! Always holds: whether it is there is asked of the kernel and never remembered, so that an agent that died between any
//! two steps is followed by one that goes on.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Once;

use k8s_openapi::api::core::v1::Volume;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::Stage;
use crate::limits;

/// Keeps a node whose agent may not mount from saying so for every volume.
static REFUSAL_TOLD: Once = Once::new();

/// True for volumes with files that are to be on no disk: keys of Secrets, and tokens.
pub fn is_secret(volume: &Volume) -> bool {
    let mut sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    volume.secret.is_some() || sources.any(|source| source.secret.is_some() || source.service_account_token.is_some())
}

/// Makes `target` a directory in memory, if it is not one already.
///
/// An agent that may not mount gets a plain directory. So does a volume that an earlier agent wrote to disk, for as long
/// as containers may have that directory bound; at the pod's next start its files are removed.
/// # Errors
/// Whatever the file system says, except that mounting is not permitted.
pub fn ensure(target: &Path, stage: Stage) -> io::Result<()> {
    fs::create_dir_all(target)?;
    if is_mounted(target)? {
        return Ok(());
    }
    if fs::read_dir(target)?.next().is_some() {
        if stage == Stage::Refresh {
            return Ok(());
        }
        fs::remove_dir_all(target)?;
        fs::create_dir(target)?;
    }
    match mount_memory(target) {
        Err(Errno::EPERM | Errno::EACCES) => {
            REFUSAL_TOLD.call_once(|| {
                tracing::warn!(
                    "this agent may not mount: files of secrets and tokens are written to its data directory"
                );
            });
            Ok(())
        }
        mounted => mounted.map_err(io::Error::from),
    }
}

/// True if `path` is the root of a file system in memory.
fn is_mounted(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    let is_root = fs::metadata(path)?.dev() != fs::metadata(parent)?.dev();
    Ok(is_root && statfs(path)?.filesystem_type() == TMPFS_MAGIC)
}

fn mount_memory(target: &Path) -> nix::Result<()> {
    // Only the agent writes here: containers have it read-only, and files bring their own modes.
    let options = format!("mode=0755,size={}", limits::SECRET_VOLUME_BYTES);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let try_mount = |options: &str| mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options));
    match try_mount(&format!("{options},noswap")) {
        // Kernels before 6.4 cannot keep it out of the swap.
        Err(Errno::EINVAL) => try_mount(&options),
        mounted => mounted,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::super::payload::File;
    use super::super::{Payload, PodDirs, atomic, set_up};
    use super::*;

    /// Directories of a pod, unmounted and removed whatever happens.
    struct World {
        dir: tempfile::TempDir,
        dirs: PodDirs,
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.dirs.remove().unwrap_or_default();
        }
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("directory");
            let dirs = PodDirs::new(dir.path(), "u1").expect("plain");
            Self { dir, dirs }
        }

        fn target(&self) -> PathBuf {
            self.dirs.volume("v")
        }

        /// Makes a volume with one secret key, and says what its file holds then.
        fn set_up(&self, data: &str, stage: Stage) -> String {
            let volume = volume(json!({ "name": "v", "secret": { "secretName": "s" } }));
            set_up(&self.dirs, &Pod::default(), &volume, Some(&payload(data)), stage).expect("made");
            fs::read_to_string(self.target().join("key")).expect("file")
        }

        fn is_in_memory(&self) -> bool {
            is_mounted(&self.target()).expect("directory")
        }
    }

    fn volume(value: serde_json::Value) -> Volume {
        serde_json::from_value(value).expect("volume")
    }

    fn payload(data: &str) -> Payload {
        let file = File { data: data.as_bytes().to_vec(), mode: 0o644, owner: None };
        Payload { files: [("key".to_owned(), file)].into() }
    }

    /// Whether this test may mount; says so if not.
    fn may_mount() -> bool {
        let dir = tempfile::tempdir().expect("directory");
        let target = dir.path().join("probe");
        fs::create_dir(&target).expect("mkdir");
        let mounted = mount_memory(&target);
        if mounted.is_ok() {
            nix::mount::umount(&target).expect("unmounts");
        } else {
            eprintln!("skipped in part: mounting is refused");
        }
        mounted.is_ok()
    }

    #[test]
    fn secrets_and_tokens_are_told_from_the_rest() {
        let of = |source: serde_json::Value| {
            is_secret(&volume(json!({ "name": "v", "projected": { "sources": [source] } })))
        };
        assert!(is_secret(&volume(json!({ "name": "v", "secret": { "secretName": "s" } }))));
        assert!(of(json!({ "secret": { "name": "s" } })) && of(json!({ "serviceAccountToken": { "path": "t" } })));
        assert!(!of(json!({ "configMap": { "name": "c" } })) && !of(json!({ "downwardAPI": {} })));
        assert!(!is_secret(&volume(json!({ "name": "v", "configMap": { "name": "c" } }))));
    }

    #[test]
    fn files_of_a_secret_are_in_memory_and_gone_with_the_pod() {
        let (world, mounts) = (World::new(), may_mount());
        assert_eq!(world.set_up("1", Stage::Start), "1");
        assert_eq!(world.is_in_memory(), mounts);
        let first = fs::metadata(world.target()).expect("there").dev();
        assert_eq!(world.set_up("2", Stage::Refresh), "2");
        assert_eq!(world.set_up("3", Stage::Start), "3");
        assert_eq!(fs::metadata(world.target()).expect("there").dev(), first, "what is mounted is used again");
        world.dirs.remove().expect("removed");
        assert!(!world.target().exists());
        world.dirs.remove().expect("again");
    }

    #[test]
    fn what_a_crash_leaves_is_used_or_made_anew() {
        let (world, mounts) = (World::new(), may_mount());
        // Between mounting and writing.
        ensure(&world.target(), Stage::Start).expect("mounted");
        assert_eq!((world.set_up("1", Stage::Start), world.is_in_memory()), ("1".to_owned(), mounts));
        if !mounts {
            return;
        }
        // Between unmounting and removing; a new start of the machine looks the same.
        nix::mount::umount(&world.target()).expect("unmounts");
        assert_eq!(fs::read_dir(world.target()).expect("list").count(), 0, "nothing below the mount");
        assert_eq!((world.set_up("2", Stage::Start), world.is_in_memory()), ("2".to_owned(), true));
        nix::mount::umount(&world.target()).expect("unmounts");
        world.dirs.remove().expect("removed");
        assert!(!world.target().exists());
    }

    #[test]
    fn files_on_disk_stay_while_containers_may_have_them_bound() {
        let (world, mounts) = (World::new(), may_mount());
        fs::create_dir_all(world.target()).expect("mkdir");
        atomic::write(&world.target(), &payload("by an earlier agent"), None).expect("written");
        assert_eq!((world.set_up("1", Stage::Refresh), world.is_in_memory()), ("1".to_owned(), false));
        assert_eq!((world.set_up("2", Stage::Start), world.is_in_memory()), ("2".to_owned(), mounts));
        if mounts {
            nix::mount::umount(&world.target()).expect("unmounts");
            assert_eq!(fs::read_dir(world.target()).expect("list").count(), 0, "the files are gone from disk");
        }
    }

    #[test]
    fn a_busy_volume_below_a_link_is_unmounted_before_it_is_removed() {
        let (mut world, mounts) = (World::new(), may_mount());
        let (real, link) = (world.dir.path().join("real"), world.dir.path().join("link"));
        fs::create_dir(&real).expect("mkdir");
        std::os::unix::fs::symlink(&real, &link).expect("link");
        world.dirs = PodDirs::new(&link, "u1").expect("plain");
        world.set_up("1", Stage::Start);
        assert_eq!(world.is_in_memory(), mounts);
        let busy = fs::File::open(world.target().join("key")).expect("open");
        world.dirs.remove().expect("removed");
        assert!(!world.target().exists());
        drop(busy);
    }
}
