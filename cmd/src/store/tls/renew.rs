//! Settings made from files, made anew when the files change: certificates are renewed without a restart.
//!
//! Always holds: what is given out was made from files that belonged together. A pair that is broken or half-written leaves
//! what there was in use and is told once; it is tried again when a file changes.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use parking_lot::Mutex;
use pintle_base::clock;
use pintle_base::current::Current;

use super::Files;

/// A file written less than so long ago may be written again without looking different: clocks of file systems are coarse.
const COARSE: Duration = Duration::from_millis(50);

struct State<T> {
    seen: String,
    current: Arc<T>,
    /// The last failure, told already.
    failure: Option<String>,
}

/// Settings that follow `files`. Asking for them costs looking at each file's metadata, which a handshake dwarfs.
///
/// # Errors
/// What is wrong with the files as they are now.
pub fn current<T: Send + Sync + 'static>(files: Files, make: fn(&Files) -> Result<T>) -> Result<Current<T>> {
    // Looked at before they are read: what changes meanwhile is seen as a change next time.
    let seen = look(&files);
    let state = Mutex::new(State { seen, current: Arc::new(make(&files)?), failure: None });
    Ok(Current::new(move || {
        let mut state = state.lock();
        let seen = look(&files);
        if state.seen != seen {
            state.seen = seen;
            state.renew(make(&files));
        }
        Arc::clone(&state.current)
    }))
}

impl<T> State<T> {
    fn renew(&mut self, made: Result<T>) {
        match made {
            Ok(made) => {
                self.current = Arc::new(made);
                self.failure = None;
                tracing::info!("certificate files changed: new connections use them");
            }
            Err(error) => {
                let failure = format!("{error:#}");
                if self.failure.as_ref() != Some(&failure) {
                    tracing::warn!(
                        error = failure,
                        "certificate files changed and cannot be used: the ones before stay in use"
                    );
                }
                self.failure = Some(failure);
            }
        }
    }
}

/// What tells one state of the files from another. Never the same while one of them may still be being written.
fn look(files: &Files) -> String {
    let mut seen = String::new();
    let now = clock::wall();
    for path in files.paths() {
        let _ = match std::fs::metadata(path) {
            Ok(file) => {
                let written = file.modified().unwrap_or(now);
                let young = now.duration_since(written).is_ok_and(|age| age < COARSE);
                let look =
                    if young { now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() } else { 0 };
                let (mtime, ctime) = ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
                write!(seen, "{}/{} {} {mtime:?} {ctime:?} {look};", file.dev(), file.ino(), file.len())
            }
            Err(error) => write!(seen, "{:?};", error.kind()),
        };
    }
    seen
}
