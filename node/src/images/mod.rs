//! Images that the project makes itself, and their way into a runtime: no registry is needed to start a pod (D12).
//!
//! [`pause`] emits the sandbox program, [`tar`] writes archives, [`archive`] wraps one layer and its configuration into
//! an image archive, [`import`] hands such a file to containerd.

pub mod archive;
mod pause;
mod tar;

use std::path::Path;
use std::time::Duration;

pub use archive::{BuildError, Entry, ImageSpec};

use crate::limits;
use crate::program::{self, ProgramError};

/// Name of the sandbox image. Its registry does not exist, so nothing can ever be pulled over it.
pub const PAUSE_IMAGE: &str = "pintle.local/pause:1";

/// Writes the archive of the sandbox image.
///
/// # Errors
/// [`BuildError`] if this CPU is unknown or the file cannot be written.
pub fn write_pause(path: &Path) -> Result<(), BuildError> {
    let program = pause::program(std::env::consts::ARCH)
        .ok_or(BuildError::Architecture { architecture: std::env::consts::ARCH })?;
    let entries = vec![Entry::Data { path: "pause".into(), mode: 0o755, data: program }];
    let spec =
        ImageSpec { name: PAUSE_IMAGE.to_owned(), entrypoint: vec!["/pause".to_owned()], ..ImageSpec::default() };
    archive::write(path, &spec, entries)
}

/// Imports an image archive (docker or OCI layout) into the containerd at `socket`, for Kubernetes' namespace.
///
/// # Errors
/// [`ProgramError`] with what the program said, if containerd cannot be reached or refuses the file.
pub async fn import(socket: &Path, archive: &Path) -> Result<(), ProgramError> {
    let socket = socket.to_string_lossy();
    let archive = archive.to_string_lossy();
    let args = ["--address", &socket, "--namespace", "k8s.io", "images", "import", &archive];
    program::run("ctr", &args, None, Duration::max(limits::PROGRAM, limits::IMAGE_PULL)).await.map(|_| ())
}
