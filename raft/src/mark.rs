//! The low-water mark: a small file outside the log that says what the log must at least hold (I14). A log restored from an
//! old copy, or whose synced tail was lost, is found by comparing the two.
//!
//! Always holds: the file never promises more than has been synced in the log. So it is lowered before the log is truncated
//! and raised after the log was synced. Votes are recorded before they are answered.
//!
//! Two slots are written in turn, so that a crash while writing leaves the other one intact. The file appears whole, with its
//! first slot: a crash while it is made leaves none.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::core::{RaftLogId, Vote};

pub(crate) const FILE: &str = "low-water-mark";
const SLOT: u64 = 256;

/// A lower bound of what the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub vote: Option<Vote>,
    /// This entry was synced and has not been truncated; it may have been purged.
    pub last: Option<RaftLogId>,
    /// The log has a file of this number.
    pub segment: u64,
}

#[derive(Serialize, Deserialize)]
struct Slot {
    sequence: u64,
    mark: Mark,
}

/// The open file.
pub(crate) struct MarkFile {
    file: File,
    sequence: u64,
    mark: Mark,
}

impl MarkFile {
    pub fn exists(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// Opens the file in `dir`, creating it if it is missing.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        if !path.exists() {
            let (place, padded) = encode(&Slot { sequence: 1, mark: Mark::default() })?;
            let mut content = vec![0; 2 * SLOT as usize];
            let start = (place * SLOT) as usize;
            content[start..start + padded.len()].copy_from_slice(&padded);
            crate::identity::write_durably(dir, FILE, &content)?;
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let newest = [0, 1].into_iter().filter_map(|slot| read_slot(&file, slot)).max_by_key(|slot| slot.sequence);
        let Some(Slot { sequence, mark }) = newest else {
            return Err(damaged());
        };
        Ok(Self { file, sequence, mark })
    }

    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Replaces the mark, durably. Does nothing if it is the same.
    pub fn set(&mut self, mark: Mark) -> io::Result<()> {
        if mark == self.mark { Ok(()) } else { self.store(mark) }
    }

    /// Writes it again, even if it is the same.
    pub fn renew(&mut self, mark: Mark) -> io::Result<()> {
        self.store(mark)
    }

    fn store(&mut self, mark: Mark) -> io::Result<()> {
        let slot = Slot { sequence: self.sequence + 1, mark };
        let (place, padded) = encode(&slot)?;
        self.file.write_all_at(&padded, place * SLOT)?;
        self.file.sync_data()?;
        self.sequence = slot.sequence;
        self.mark = mark;
        Ok(())
    }
}

/// What the file in `dir` says; and whether one of its slots cannot be read, as after a crash while it was written. Changes
/// nothing.
pub(crate) fn look(dir: &Path) -> io::Result<(Mark, bool)> {
    let file = File::open(dir.join(FILE))?;
    let slots = [0, 1].map(|place| read_slot(&file, place));
    let mut broken = file.metadata()?.len() != 2 * SLOT;
    for (place, slot) in [0, 1].into_iter().zip(&slots) {
        let mut padded = [0; SLOT as usize];
        let unused = file.read_exact_at(&mut padded, place * SLOT).is_ok() && padded.iter().all(|byte| *byte == 0);
        broken |= slot.is_none() && !unused;
    }
    let newest = slots.into_iter().flatten().max_by_key(|slot| slot.sequence);
    newest.map(|slot| (slot.mark, broken)).ok_or_else(damaged)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "both slots of the low-water mark are damaged")
}

/// Which of the two places a slot goes to, and its bytes there.
fn encode(slot: &Slot) -> io::Result<(u64, Vec<u8>)> {
    let place = slot.sequence % 2;
    let record = codec::encode(&[place as u8], slot).map_err(io::Error::other)?;
    let mut padded = vec![0; SLOT as usize];
    padded[0] = u8::try_from(record.len()).map_err(io::Error::other)?;
    padded[1..=record.len()].copy_from_slice(&record);
    Ok((place, padded))
}

fn read_slot(file: &File, place: u64) -> Option<Slot> {
    let mut padded = [0; SLOT as usize];
    file.read_exact_at(&mut padded, place * SLOT).ok()?;
    let record = padded.get(1..=usize::from(padded[0]))?;
    codec::decode(&[place as u8], record).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::raft_log_id;
    use crate::machine::LogId;

    fn mark(term: u64, index: u64) -> Mark {
        Mark { vote: Some(Vote::new(term, 2)), last: Some(raft_log_id(LogId { term, index })), segment: 3 }
    }

    #[test]
    fn the_newest_mark_is_found_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(!MarkFile::exists(dir.path()));
        let mut file = MarkFile::open(dir.path()).expect("open");
        for index in 1..=3 {
            file.set(mark(1, index)).expect("set");
        }
        let file = MarkFile::open(dir.path()).expect("open");
        assert_eq!(file.mark(), mark(1, 3));
    }

    #[test]
    fn a_file_that_could_not_be_made_whole_is_not_there() {
        let dir = tempfile::tempdir().expect("temporary directory");
        // What a crash leaves while the file is being made; and something that makes the making fail.
        let unfinished = dir.path().join(format!("{FILE}.new"));
        std::fs::create_dir(&unfinished).expect("create");
        assert!(MarkFile::open(dir.path()).is_err());
        assert!(!dir.path().join(FILE).exists(), "or the next start would find it damaged");
        std::fs::remove_dir(&unfinished).expect("remove");
        std::fs::write(&unfinished, b"half").expect("write");
        let file = MarkFile::open(dir.path()).expect("open");
        assert_eq!(file.mark(), Mark::default());
    }

    #[test]
    fn a_torn_write_leaves_the_previous_mark() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut file = MarkFile::open(dir.path()).expect("open");
        file.set(mark(1, 1)).expect("set");
        file.set(mark(1, 2)).expect("set");
        let torn = file.sequence % 2;
        file.file.write_all_at(&[0xff; 20], torn * SLOT + 10).expect("tear");
        let file = MarkFile::open(dir.path()).expect("open");
        assert_eq!(file.mark(), mark(1, 1));
    }
}
