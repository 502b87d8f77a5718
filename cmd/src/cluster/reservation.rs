//! Which cluster of this machine has which bridge network: one small file per network, naming the cluster's record.
//!
//! A cluster that is down keeps its network, also across reboots and whatever home its record is in. Always holds: a
//! reservation whose cluster is gone is nobody's; taking one is atomic, so two `up`s at once get two networks.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// Where reservations are. Only root makes bridges, so only root writes here.
const DIRECTORY: &str = "/var/lib/pintle/networks";
/// A record is written right after its reservation; after this long without one, the `up` was interrupted in between.
const RECORD_DUE: Duration = Duration::from_secs(60);

pub struct Reservations {
    directory: PathBuf,
}

impl Reservations {
    /// Those of this machine.
    pub fn of_machine() -> Self {
        Self { directory: DIRECTORY.into() }
    }

    /// Reserves network `octet` for the cluster recorded in `record`; if another cluster has it, returns that one's record.
    pub fn take(&self, octet: u8, record: &Path) -> Result<Option<PathBuf>> {
        fs::create_dir_all(&self.directory).with_context(|| format!("create {}", self.directory.display()))?;
        let file = self.file(octet);
        // A second try after a stale reservation was removed; whoever is faster has it.
        for _ in 0..2 {
            if self.create(octet, record)? {
                return Ok(None);
            }
            match self.holder(octet)? {
                Some(holder) if holder == record => return Ok(None),
                Some(holder) => return Ok(Some(holder)),
                None => match fs::remove_file(&file) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("remove {}", file.display()));
                    }
                    _ => (),
                },
            }
        }
        Ok(Some(file))
    }

    /// Gives network `octet` up, if the cluster recorded in `record` has it.
    pub fn release(&self, octet: u8, record: &Path) -> Result<()> {
        let file = self.file(octet);
        if fs::read_to_string(&file).is_ok_and(|text| Path::new(text.trim_end()) == record) {
            fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        }
        Ok(())
    }

    fn file(&self, octet: u8) -> PathBuf {
        self.directory.join(octet.to_string())
    }

    /// Writes the reservation in full or not at all; false if there is one.
    fn create(&self, octet: u8, record: &Path) -> Result<bool> {
        let (file, draft) = (self.file(octet), self.directory.join(format!("{octet}.{}", std::process::id())));
        let what = || format!("write {}", file.display());
        let mut open = fs::File::create(&draft).with_context(what)?;
        open.write_all(record.as_os_str().as_encoded_bytes()).with_context(what)?;
        open.sync_all().with_context(what)?;
        let linked = fs::hard_link(&draft, &file);
        fs::remove_file(&draft).with_context(what)?;
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error).with_context(what),
        }
    }

    /// The record of the cluster that has network `octet`; none if the reservation is stale.
    fn holder(&self, octet: u8) -> Result<Option<PathBuf>> {
        let file = self.file(octet);
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("read {}", file.display()))?,
        };
        let record = PathBuf::from(text.trim_end());
        let young = || {
            let written = fs::metadata(&file).and_then(|meta| meta.modified()).ok();
            written.and_then(|time| time.elapsed().ok()).is_some_and(|age| age < RECORD_DUE)
        };
        let held = match fs::read(&record) {
            Ok(bytes) => names(&bytes, octet),
            Err(error) if error.kind() == ErrorKind::NotFound => young(),
            // A home that cannot be read now may be back later.
            Err(_) => true,
        };
        Ok(held.then_some(record))
    }
}

/// True if the record says that its cluster has network `octet`, or is unreadable and may say so.
fn names(record: &[u8], octet: u8) -> bool {
    match serde_json::from_slice::<Value>(record) {
        Ok(value) => value.pointer("/network/octet").and_then(Value::as_u64) == Some(u64::from(octet)),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        home: tempfile::TempDir,
        reservations: Reservations,
    }

    impl World {
        fn new() -> Self {
            let home = tempfile::tempdir().expect("tempdir");
            let reservations = Reservations { directory: home.path().join("networks") };
            Self { home, reservations }
        }

        fn record(&self, name: &str) -> PathBuf {
            self.home.path().join(name)
        }

        /// Writes the record of cluster `name` with network `octet`.
        fn recorded(&self, name: &str, octet: u8) -> PathBuf {
            let record = self.record(name);
            fs::write(&record, format!(r#"{{"network":{{"octet":{octet}}}}}"#)).expect("write");
            record
        }

        fn take(&self, octet: u8, record: &Path) -> Option<PathBuf> {
            self.reservations.take(octet, record).expect("taken")
        }

        fn age(&self, octet: u8, seconds: u64) {
            let file = fs::File::options().write(true).open(self.reservations.file(octet)).expect("open");
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds)).expect("aged");
        }
    }

    #[test]
    fn a_cluster_that_is_down_keeps_its_network() {
        let world = World::new();
        let (a, b) = (world.recorded("a", 3), world.record("b"));
        assert_eq!(world.take(3, &a), None);
        world.age(3, 1_000_000);
        assert_eq!(world.take(3, &b), Some(a.clone()));
        assert_eq!(world.take(3, &a), None, "the cluster itself resumes");
        assert_eq!(world.take(4, &b), None);
    }

    #[test]
    fn a_network_whose_cluster_is_gone_or_has_another_is_free() {
        let world = World::new();
        let (a, b) = (world.recorded("a", 3), world.record("b"));
        assert_eq!(world.take(3, &a), None);
        world.reservations.release(3, &b).expect("not its own: nothing happens");
        assert_eq!(world.take(3, &b), Some(a.clone()));
        world.reservations.release(3, &a).expect("released");
        assert_eq!(world.take(3, &b), None);
        let c = world.recorded("c", 9);
        assert_eq!(world.take(5, &c), None);
        assert_eq!(world.take(5, &a), None, "the record of c names another network");
    }

    #[test]
    fn a_reservation_without_record_holds_for_a_minute() {
        let world = World::new();
        let (a, b) = (world.record("a"), world.record("b"));
        assert_eq!(world.take(3, &a), None);
        assert_eq!(world.take(3, &b), Some(a));
        world.age(3, 61);
        assert_eq!(world.take(3, &b), None);
    }

    #[test]
    fn a_record_that_cannot_be_read_keeps_its_network() {
        let world = World::new();
        let a = world.record("a");
        fs::write(&a, "{").expect("write");
        assert_eq!(world.take(3, &a), None);
        assert_eq!(world.take(3, &world.record("b")), Some(a));
    }
}
