//! A directory of small files that are replaced whole and checked when they are read.
//!
//! A file is one line (`pintle-checkpoint 1 <kind> <sha256 of the rest>`) and then JSON. Always holds: a reader sees the
//! old or the new content; a file that is cut, changed, of another version or of another kind is dropped with a warning;
//! nobody but the owner can read or replace anything in here.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use pintle_base::error::Chain;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::limits;

const MAGIC: &str = "pintle-checkpoint";
/// Counts incompatible changes of what files hold.
const VERSION: u32 = 1;

/// Why a file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum BadFile {
    #[error("read it")]
    Read(#[source] io::Error),
    #[error("it is larger than {0} bytes")]
    TooLarge(usize),
    #[error("it does not begin as a checkpoint of this kind")]
    Header,
    #[error("it has format {0}, this agent reads {VERSION}")]
    Version(u32),
    #[error("it is damaged: its checksum is another")]
    Digest,
    #[error("its content is not what it should be")]
    Content(#[source] serde_json::Error),
}

/// Cheap to clone; clones are the same directory.
#[derive(Clone, Debug)]
pub struct Shelf {
    dir: PathBuf,
    /// Digests of what the files are known to hold: the same content is not written twice.
    written: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Shelf {
    /// Opens a directory of ours, and makes it where it is missing.
    ///
    /// # Errors
    /// If it is not a directory, belongs to somebody else, or cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let found = fs::symlink_metadata(dir)?;
        if !found.is_dir() || found.uid() != nix::unistd::Uid::effective().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a directory of this user"));
        }
        if found.mode() & 0o077 != 0 {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        Ok(Self { dir: dir.to_path_buf(), written: Arc::default() })
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.dir.join(format!("{kind}.ckpt"))
    }

    /// What the file of this kind holds; a bad one is removed with a warning.
    pub fn read<T: DeserializeOwned>(&self, kind: &'static str) -> Option<T> {
        let path = self.path(kind);
        let bytes = match read_bounded(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            other => other.map_err(BadFile::Read),
        };
        match bytes.and_then(|bytes| parse(&bytes, kind)) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(file = %path.display(), error = %Chain(&error), "checkpoint dropped");
                if let Err(error) = self.remove(kind) {
                    tracing::warn!(file = %path.display(), %error, "bad checkpoint not removed");
                }
                None
            }
        }
    }

    /// Makes the file of this kind hold `value`; returns the bytes written, none if it already does.
    ///
    /// # Errors
    /// Whatever the file system says, or if the file would be too large. The old content stays then.
    pub fn write<T: Serialize>(&self, kind: &'static str, value: &T) -> io::Result<u64> {
        let body = serde_json::to_vec(value)?;
        if body.len() > limits::CHECKPOINT_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{} bytes are too many", body.len())));
        }
        let digest = hex::encode(Sha256::digest(&body));
        if self.written.lock().get(kind) == Some(&digest) {
            return Ok(0);
        }
        let path = self.path(kind);
        let partial = path.with_extension("partial");
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&partial)?;
        // It may be left of an agent that was killed, made by another umask.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        writeln!(file, "{MAGIC} {VERSION} {kind} {digest}")?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&partial, &path)?;
        File::open(&self.dir)?.sync_all()?;
        self.written.lock().insert(kind, digest);
        Ok(body.len() as u64)
    }

    /// Removes the file of this kind, if there is one.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn remove(&self, kind: &'static str) -> io::Result<()> {
        self.written.lock().remove(kind);
        match fs::remove_file(self.path(kind)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    // One byte more than allowed shows that there is more; the header is short.
    file.take(limits::CHECKPOINT_FILE as u64 + 4096).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file's bytes.
///
/// # Errors
/// [`BadFile`] for anything but what [`Shelf::write`] wrote for this kind.
pub fn parse<T: DeserializeOwned>(bytes: &[u8], kind: &str) -> Result<T, BadFile> {
    let end = bytes.iter().take(256).position(|byte| *byte == b'\n').ok_or(BadFile::Header)?;
    let (header, body) = (&bytes[..end], &bytes[end + 1..]);
    let header = std::str::from_utf8(header).map_err(|_| BadFile::Header)?;
    let [MAGIC, version, found, digest] = header.split(' ').collect::<Vec<_>>()[..] else {
        return Err(BadFile::Header);
    };
    let version: u32 = version.parse().map_err(|_| BadFile::Header)?;
    if version != VERSION {
        return Err(BadFile::Version(version));
    }
    if found != kind {
        return Err(BadFile::Header);
    }
    if body.len() > limits::CHECKPOINT_FILE {
        return Err(BadFile::TooLarge(limits::CHECKPOINT_FILE));
    }
    if hex::encode(Sha256::digest(body)) != digest {
        return Err(BadFile::Digest);
    }
    serde_json::from_slice(body).map_err(BadFile::Content)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "words";

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let dir = tempfile::tempdir().expect("directory");
        let shelf = Shelf::open(&dir.path().join("deep/checkpoint")).expect("opened");
        (dir, shelf)
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_is_written_is_read_and_closed_to_others() {
        let (_dir, shelf) = shelf();
        assert_eq!(shelf.read::<Vec<String>>(KIND), None);
        assert!(shelf.write(KIND, &words("a b")).expect("written") > 0);
        assert_eq!(shelf.write(KIND, &words("a b")).expect("nothing to do"), 0);
        shelf.write(KIND, &words("c")).expect("written");
        assert_eq!(Shelf::open(&shelf.dir).expect("again").read(KIND), Some(words("c")));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&shelf.dir), mode(&shelf.path(KIND))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&shelf.dir).expect("list").count(), 1, "no partial file remains");
        shelf.remove(KIND).expect("removed");
        assert_eq!(shelf.read::<Vec<String>>(KIND), None);
        assert!(shelf.write(KIND, &words("c")).expect("written") > 0, "it is gone, so it is written");
    }

    #[test]
    fn a_file_cut_or_changed_anywhere_is_dropped() {
        let (_dir, shelf) = shelf();
        shelf.write(KIND, &words("some text")).expect("written");
        let whole = fs::read(shelf.path(KIND)).expect("read");
        assert!(parse::<Vec<String>>(&whole, KIND).is_ok());
        for length in 0..whole.len() {
            assert!(parse::<Vec<String>>(&whole[..length], KIND).is_err(), "cut at {length}");
        }
        for place in 0..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 0x11;
            assert!(parse::<Vec<String>>(&changed, KIND).is_err(), "changed at {place}");
        }
        fs::write(shelf.path(KIND), &whole[..whole.len() - 1]).expect("cut");
        assert_eq!(shelf.read::<Vec<String>>(KIND), None);
        assert!(!shelf.path(KIND).exists(), "a bad file is removed");
    }

    #[test]
    fn other_kinds_versions_and_contents_are_refused() {
        let (_dir, shelf) = shelf();
        shelf.write(KIND, &words("x")).expect("written");
        let text = fs::read_to_string(shelf.path(KIND)).expect("read");
        assert!(matches!(parse::<Vec<String>>(text.as_bytes(), "other"), Err(BadFile::Header)));
        let newer = text.replacen(" 1 ", " 2 ", 1);
        assert!(matches!(parse::<Vec<String>>(newer.as_bytes(), KIND), Err(BadFile::Version(2))));
        assert!(matches!(parse::<u64>(text.as_bytes(), KIND), Err(BadFile::Content(_))));
        for text in ["", "\n", "pintle-checkpoint\n", "a b c d\n", "pintle-checkpoint x words 00\n"] {
            assert!(matches!(parse::<Vec<String>>(text.as_bytes(), KIND), Err(BadFile::Header)), "{text:?}");
        }
    }

    #[test]
    fn links_and_open_directories_are_not_trusted() {
        let (dir, shelf) = shelf();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "kept").expect("write");
        std::os::unix::fs::symlink(&elsewhere, shelf.path(KIND)).expect("link");
        assert_eq!(shelf.read::<Vec<String>>(KIND), None);
        std::os::unix::fs::symlink(&elsewhere, shelf.path(KIND).with_extension("partial")).expect("link");
        assert!(shelf.write(KIND, &words("a")).is_err());
        assert_eq!(fs::read_to_string(&elsewhere).expect("read"), "kept");
        let open = dir.path().join("open");
        fs::create_dir(&open).expect("mkdir");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("mode");
        Shelf::open(&open).expect("ours");
        assert_eq!(fs::metadata(&open).expect("there").permissions().mode() & 0o777, 0o700);
        std::os::unix::fs::symlink(&open, dir.path().join("link")).expect("link");
        assert!(Shelf::open(&dir.path().join("link")).is_err());
        assert!(Shelf::open(&elsewhere).is_err(), "a file is no directory");
    }
}
