//! Rotates container logs that grew too large: rename, tell the runtime to reopen, keep a few old ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_proto::cri_v1::ContainerState;

use crate::limits;
use crate::runtime::Runtime;

const PERIOD: Duration = Duration::from_secs(10);

/// Runs until dropped.
pub async fn run(runtime: Arc<dyn Runtime>) {
    let mut ticker = clock::ticker(PERIOD);
    loop {
        ticker.tick().await;
        let Ok(containers) = runtime.containers(None).await else { continue };
        for container in containers.iter().filter(|one| one.state == ContainerState::ContainerRunning as i32) {
            let Ok(status) = runtime.container(&container.id).await else { continue };
            let path = PathBuf::from(status.log_path);
            if !fs::metadata(&path).is_ok_and(|meta| meta.len() > limits::LOG_ROTATE_BYTES) {
                continue;
            }
            let stamp = clock::unix_millis().to_string();
            let moved = rotate(&path, &stamp);
            if let Err(error) = &moved {
                tracing::warn!(path = %path.display(), %error, "log not rotated");
            } else if let Err(error) = runtime.reopen_log(&container.id).await {
                tracing::warn!(path = %path.display(), error = %Chain(&error), "log not reopened after rotation");
            }
        }
    }
}

fn rotate(path: &Path, stamp: &str) -> io::Result<()> {
    let mut rotated = path.as_os_str().to_owned();
    rotated.push(format!(".{stamp}"));
    fs::rename(path, rotated)?;
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let prefix = format!("{name}.");
    let mut old: Vec<PathBuf> = fs::read_dir(dir)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    old.sort();
    let surplus = old.len().saturating_sub(limits::LOG_FILES);
    old.iter().take(surplus).try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_rotated_files_are_kept() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("0.log");
        for stamp in 1..=7 {
            fs::write(&path, stamp.to_string()).expect("write");
            rotate(&path, &stamp.to_string()).expect("rotate");
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["0.log.4", "0.log.5", "0.log.6", "0.log.7"]);
    }
}
