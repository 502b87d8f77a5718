//! Opens a path inside a volume and binds it to a place of ours. The pod can write symbolic links into its volume; the
//! kernel resolves the path so that none of them leads out (openat2 with RESOLVE_BENEATH), and what was opened is what is
//! bound: nothing can be swapped in between.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fstat, mkdirat};

/// Binds `volume`/`path` to `target`, making missing directories.
pub fn bind(volume: &Path, path: &str, target: &Path) -> io::Result<()> {
    let inside = open_inside(volume, Path::new(path))?;
    let is_dir = fstat(inside.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    // A binding of an earlier container instance is replaced.
    match umount2(target, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => (),
        Err(error) => return Err(error.into()),
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_dir {
        fs::create_dir_all(target)?;
    } else {
        fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    let source = format!("/proc/self/fd/{}", inside.as_raw_fd());
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

fn open_inside(volume: &Path, path: &Path) -> io::Result<OwnedFd> {
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !path.components().all(plain) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "must be a relative path without .."));
    }
    let root = open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = |flags| {
        OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
    };
    match openat2(&root, path, how(OFlag::O_PATH)) {
        Ok(found) => return Ok(found),
        Err(Errno::ENOENT) => (),
        Err(error) => return Err(error.into()),
    }
    let mut here = root;
    for part in path.components().filter(|part| *part != Component::CurDir) {
        let name = Path::new(part.as_os_str());
        match mkdirat(&here, name, Mode::from_bits_truncate(0o777)) {
            Ok(()) | Err(Errno::EEXIST) => (),
            Err(error) => return Err(error.into()),
        }
        here = openat2(&here, name, how(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW))?;
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_out_are_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("sub")).expect("mkdir");
        fs::write(dir.path().join("secret"), "x").expect("write");
        std::os::unix::fs::symlink("..", volume.join("up")).expect("link");
        std::os::unix::fs::symlink("/etc", volume.join("etc")).expect("link");
        std::os::unix::fs::symlink("sub", volume.join("fine")).expect("link");
        for path in ["up/secret", "etc/passwd", "../secret", "/etc", "up"] {
            assert!(open_inside(&volume, Path::new(path)).is_err(), "{path}");
        }
        for path in ["sub", "fine", "new/er", "./sub"] {
            assert!(open_inside(&volume, Path::new(path)).is_ok(), "{path}");
        }
        assert!(volume.join("new/er").is_dir());
    }
}
