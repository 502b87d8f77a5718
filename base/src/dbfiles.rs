//! The files a RocksDB directory cannot do without, looked at before RocksDB opens it: `CURRENT`, the manifest it names, and
//! the write-ahead logs. Nothing is changed.
//!
//! RocksDB takes a record that seems to reach beyond the end of its file for the rest of an unfinished write and drops it with
//! all that follows. A power cut leaves such a rest; so does one flipped bit in a length, and then acknowledged writes are
//! dropped. Here the two are told apart.
//!
//! Always holds, where every write to a file is synced before the next one: whatever is followed by the beginning of a later
//! write was synced. So an unfinished write is the last of its file, and not all of it is there: the file ends within it, or
//! sectors of it are zeros.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Records never cross these.
const BLOCK: usize = 32 << 10;
/// Checksum (4), length (2), kind (1), all little-endian.
const HEADER: usize = 7;
/// What a disk writes as a whole.
const SECTOR: u64 = 512;
/// Before a batch of a write-ahead log: its first sequence number (8) and how many it takes (4).
const BATCH_HEADER: usize = 12;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
/// Kinds that stand alone and hold no data: compression, timestamp sizes, the log before.
const NOTES: [u8; 3] = [9, 10, 130];

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The unfinished writes, of the newest logs: never acknowledged, and dropped when the database is opened.
    pub unfinished: Vec<Unfinished>,
    /// Bytes looked at.
    pub bytes: u64,
}

/// The rest of a write that a crash cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    pub file: PathBuf,
    pub at: u64,
    pub bytes: u64,
}

/// Why the directory must not be opened. Each sentence names the file.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{file} is missing", file = .file.display())]
    Missing { file: PathBuf },
    #[error("{file} is damaged: {what}", file = .file.display())]
    Damaged { file: PathBuf, what: String },
    #[error("read {file}", file = .file.display())]
    Io {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Looks at the database in `dir`; `None` if there is none yet, or one whose making was cut off before anything was written.
///
/// # Errors
/// Something that was synced cannot be read any more.
pub fn check(dir: &Path) -> Result<Option<Files>, FilesError> {
    let mut logs = Vec::new();
    let mut tables = 0;
    let listed = match fs::read_dir(dir) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FilesError::Io { file: dir.to_owned(), source }),
    };
    for entry in listed {
        let path = entry.map_err(|source| FilesError::Io { file: dir.to_owned(), source })?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        match (path.extension().and_then(|extension| extension.to_str()), number) {
            (Some("log"), Some(number)) => logs.push((number, path)),
            (Some("sst"), Some(_)) => tables += 1,
            _ => (),
        }
    }
    logs.sort();
    let logs = logs.into_iter().map(|(_, file)| walk(&file, Kind::Log).map(|walked| (file, walked)));
    let logs = logs.collect::<Result<Vec<_>, _>>()?;
    let Some(manifest) = current(dir)? else {
        return match tables == 0 && logs.iter().all(|(_, log)| log.size == 0) {
            true => Ok(None),
            false => Err(FilesError::Missing { file: dir.join("CURRENT") }),
        };
    };
    let walked = walk(&manifest, Kind::Manifest)?;
    let mut files = Files { unfinished: Vec::new(), bytes: walked.size };
    if let Some(rest) = walked.rest {
        let file = manifest.clone();
        rest.judge(&manifest, Kind::Manifest, 0)?;
        files.unfinished.push(Unfinished { file, at: rest.end, bytes: walked.size - rest.end });
    }
    check_logs(logs, &mut files)?;
    Ok(Some(files))
}

/// After a crash RocksDB goes on in a new log, at the number where the old one ended before the unfinished write.
fn check_logs(logs: Vec<(PathBuf, Walked)>, files: &mut Files) -> Result<(), FilesError> {
    // What the logs after the one looked at begin with.
    let mut next: Option<u64> = None;
    for (file, log) in logs.into_iter().rev() {
        files.bytes += log.size;
        if let Some(rest) = log.rest {
            rest.judge(&file, Kind::Log, log.next.unwrap_or(0))?;
            if let (Some(own), Some(later)) = (log.next, next)
                && later > own
            {
                let what = format!("the batch at byte {} cannot be read, and the next log goes on after it", rest.end);
                return Err(FilesError::Damaged { file, what });
            }
            files.unfinished.push(Unfinished { file, at: rest.end, bytes: log.size - rest.end });
        }
        next = log.first.or(next);
    }
    Ok(())
}

/// The manifest that `CURRENT` names.
fn current(dir: &Path) -> Result<Option<PathBuf>, FilesError> {
    let file = dir.join("CURRENT");
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FilesError::Io { file, source }),
    };
    let name = std::str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n'));
    let name = name.filter(|name| {
        name.strip_prefix("MANIFEST-")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    });
    let Some(name) = name else {
        return Err(FilesError::Damaged { file, what: "it names no manifest".to_owned() });
    };
    let manifest = dir.join(name);
    if manifest.exists() { Ok(Some(manifest)) } else { Err(FilesError::Missing { file: manifest }) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Log,
    Manifest,
}

/// A file of records.
struct Walked {
    size: u64,
    /// Sequence number of the first batch, and the one after the last whole batch.
    first: Option<u64>,
    next: Option<u64>,
    /// What begins where the whole records end, unless the file does.
    rest: Option<Rest>,
}

#[derive(Clone, Copy)]
struct Rest {
    /// Where the last whole record ends.
    end: u64,
    /// Where the first piece is that cannot be read; the file's end if pieces are missing.
    bad: u64,
}

/// One piece of a record: a record lies in one block, or is cut into pieces at their ends.
struct Piece<'a> {
    kind: u8,
    body: &'a [u8],
    end: usize,
}

/// The piece at `at` of a block, if there is a whole one that matches its checksum.
fn piece(block: &[u8], at: usize) -> Option<Piece<'_>> {
    let header = block.get(at..at + HEADER)?;
    let (sum, kind) = (u32::from_le_bytes(header[..4].try_into().ok()?), header[6]);
    let end = at + HEADER + usize::from(u16::from_le_bytes([header[4], header[5]]));
    let body = block.get(at + HEADER..end)?;
    let known = (FULL..=LAST).contains(&kind) || NOTES.contains(&kind);
    (known && mask(crc32c::crc32c_append(crc32c::crc32c(&[kind]), body)) == sum).then_some(Piece { kind, body, end })
}

/// A checksum as RocksDB stores it.
fn mask(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Reads whole records until the end or the first that is none.
fn walk(path: &Path, kind: Kind) -> Result<Walked, FilesError> {
    let failed = |source| FilesError::Io { file: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut walked = Walked { size: file.metadata().map_err(failed)?.len(), first: None, next: None, rest: None };
    let mut block = Vec::with_capacity(BLOCK);
    let (mut begins, mut end, mut within) = (0, 0, false);
    let mut head = Vec::new();
    loop {
        block.clear();
        file.by_ref().take(BLOCK as u64).read_to_end(&mut block).map_err(failed)?;
        let mut at = 0;
        while let Some(found) = piece(&block, at) {
            let starts = matches!(found.kind, FULL | FIRST);
            let alone = NOTES.contains(&found.kind);
            let follows = if alone { !within } else { starts != within };
            if !follows {
                break;
            }
            if starts {
                head.clear();
            }
            head.extend_from_slice(&found.body[..found.body.len().min(BATCH_HEADER.saturating_sub(head.len()))]);
            within = matches!(found.kind, FIRST | MIDDLE);
            at = found.end;
            if !within {
                end = begins + at as u64;
                if kind == Kind::Log && !alone {
                    walked.count(&head);
                }
            }
        }
        let whole = block.len() == BLOCK;
        // The last bytes of a block that no header fits into are unused.
        let unused = whole && block.len() - at < HEADER;
        if !unused && at < block.len() {
            walked.rest = Some(Rest { end, bad: begins + at as u64 });
            return Ok(walked);
        }
        if unused && !within {
            end = begins + block.len() as u64;
        }
        begins += block.len() as u64;
        if !whole {
            walked.rest = within.then_some(Rest { end, bad: begins });
            return Ok(walked);
        }
    }
}

impl Walked {
    /// A whole batch that begins with `head`.
    fn count(&mut self, head: &[u8]) {
        if let Some((sequence, count)) = numbers(head) {
            self.first.get_or_insert(sequence);
            self.next = Some(sequence.saturating_add(count));
        }
    }
}

/// The first sequence number of a batch, and how many it takes.
fn numbers(head: &[u8]) -> Option<(u64, u64)> {
    let (sequence, rest) = head.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*sequence), u64::from(u32::from_le_bytes(*rest.first_chunk::<4>()?))))
}

impl Rest {
    /// Accepts what an unfinished write leaves.
    fn judge(self, path: &Path, kind: Kind, next: u64) -> Result<(), FilesError> {
        let failed = |source| FilesError::Io { file: path.to_owned(), source };
        let damaged = |what| Err(FilesError::Damaged { file: path.to_owned(), what });
        let aligned = self.end - self.end % BLOCK as u64;
        let mut file = File::open(path).map_err(failed)?;
        file.seek(SeekFrom::Start(aligned)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let place = |at: u64| usize::try_from(at - aligned).unwrap_or(usize::MAX);
        if let Some(later) = later_write(&bytes, place(self.bad), kind, next) {
            let (bad, later) = (self.bad, aligned + later as u64);
            return damaged(format!(
                "the record at byte {bad} cannot be read, and a later one follows at byte {later}"
            ));
        }
        if has_other_length(&bytes, place(self.bad)) {
            return damaged(format!("the length of the record at byte {} is wrong", self.bad));
        }
        if ends_within(&bytes, place(self.bad)) || has_empty_sector(&bytes, place(self.end), aligned) {
            return Ok(());
        }
        damaged(format!("the last record, at byte {}, does not match its checksum", self.bad))
    }
}

/// Where, from `from` on, the beginning of another write can be read. `bytes` begin with a block.
fn later_write(bytes: &[u8], from: usize, kind: Kind, next: u64) -> Option<usize> {
    (from..bytes.len()).find(|at| {
        // Most places are no beginning: asked first, as checksums take time.
        if !matches!(bytes.get(at + 6), Some(&(FULL | FIRST))) {
            return false;
        }
        let block = at - at % BLOCK;
        let Some(found) = piece(&bytes[block..bytes.len().min(block + BLOCK)], at - block) else { return false };
        match kind {
            Kind::Manifest => !found.body.is_empty(),
            // A value may hold anything, a piece of such a file too.
            Kind::Log => numbers(found.body).is_some_and(|(sequence, _)| sequence >= next),
        }
    })
}

/// Whether the piece at `at` is whole and only its length is wrong: then it is no rest of a write.
fn has_other_length(bytes: &[u8], at: usize) -> bool {
    let block = at - at % BLOCK;
    let Some(head) = bytes.get(at..at + HEADER) else { return false };
    let mut sum = crc32c::crc32c(&head[6..]);
    let wanted = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    bytes[at + HEADER..bytes.len().min(block + BLOCK)].iter().any(|byte| {
        sum = crc32c::crc32c_append(sum, &[*byte]);
        mask(sum) == wanted
    })
}

/// Whether the file ends before the piece at `at` does.
fn ends_within(bytes: &[u8], at: usize) -> bool {
    let Some(head) = bytes.get(at..at + HEADER) else { return true };
    let end = at + HEADER + usize::from(u16::from_le_bytes([head[4], head[5]]));
    end > bytes.len() && end - (at - at % BLOCK) <= BLOCK
}

/// Whether some sector was not written, or what of it lies after `from`. `bytes` begin at a multiple of sectors.
fn has_empty_sector(bytes: &[u8], from: usize, begins: u64) -> bool {
    debug_assert!(begins.is_multiple_of(SECTOR));
    let sector = SECTOR as usize;
    let mut at = from;
    while at < bytes.len() {
        let end = bytes.len().min(at - at % sector + sector);
        if end - at >= HEADER && bytes[at..end].iter().all(|byte| *byte == 0) {
            return true;
        }
        at = end;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of batches of these sizes, as RocksDB lays it out.
    fn log(sizes: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for (number, size) in sizes.iter().enumerate() {
            let mut batch = (number as u64 + 1).to_le_bytes().to_vec();
            batch.extend_from_slice(&1u32.to_le_bytes());
            batch.extend((0..*size).map(|at| (at * 7 + number) as u8 | 1));
            let (mut rest, mut begun) = (&batch[..], false);
            while !rest.is_empty() {
                let left = BLOCK - bytes.len() % BLOCK;
                if left < HEADER {
                    bytes.resize(bytes.len() + left, 0);
                    continue;
                }
                let (piece, after) = rest.split_at(rest.len().min(left - HEADER));
                let kind = match (begun, after.is_empty()) {
                    (false, true) => FULL,
                    (false, false) => FIRST,
                    (true, false) => MIDDLE,
                    (true, true) => LAST,
                };
                let sum = mask(crc32c::crc32c_append(crc32c::crc32c(&[kind]), piece));
                bytes.extend_from_slice(&sum.to_le_bytes());
                bytes.extend_from_slice(&(piece.len() as u16).to_le_bytes());
                bytes.push(kind);
                bytes.extend_from_slice(piece);
                (rest, begun) = (after, true);
            }
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    /// The verdict on a directory with this log: how many bytes are unfinished, or why it is refused.
    fn verdict(logs: &[&[u8]]) -> Result<u64, String> {
        let dir = Dir::new();
        for (number, log) in logs.iter().enumerate() {
            fs::write(dir.0.join(format!("{:06}.log", number + 4)), log).unwrap();
        }
        fs::write(dir.0.join("MANIFEST-000003"), self::log(&[20]).0).unwrap();
        fs::write(dir.0.join("CURRENT"), "MANIFEST-000003\n").unwrap();
        let files = check(&dir.0).map_err(|error| error.to_string())?.unwrap();
        Ok(files.unfinished.iter().map(|rest| rest.bytes).sum())
    }

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            let path =
                std::env::temp_dir().join(format!("pintle-dbfiles-{}-{}", std::process::id(), crate::rng::u64()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const SIZES: [usize; 6] = [10, 3000, BLOCK, 5, 70_000, 600];

    #[test]
    fn every_cut_leaves_an_unfinished_write() {
        let (bytes, ends) = log(&SIZES);
        for cut in (0..bytes.len()).step_by(97).chain(ends.iter().copied()) {
            let whole = ends.iter().copied().filter(|end| *end <= cut).max().unwrap_or(0);
            let rest = verdict(&[&bytes[..cut]]).expect("a power cut");
            // Unused bytes at the end of a block belong to nobody.
            assert!(rest == (cut - whole) as u64 || cut - whole < HEADER, "cut at {cut}: {rest}");
        }
    }

    #[test]
    fn sectors_that_were_not_written_leave_an_unfinished_write() {
        let (mut bytes, ends) = log(&SIZES);
        let last = ends[ends.len() - 2];
        let end = bytes.len();
        bytes[last - last % 512 + 512..end].fill(0);
        assert_eq!(verdict(&[&bytes]), Ok((end - last) as u64));
        bytes.resize(end + 5000, 0);
        bytes[last..].fill(0);
        assert_eq!(verdict(&[&bytes]), Ok((bytes.len() - last) as u64));
        // In the middle of the file they are damage.
        bytes[ends[0]..ends[0] + 600].fill(0);
        assert!(verdict(&[&bytes]).is_err());
    }

    #[test]
    fn a_flipped_bit_is_damage_wherever_it_is() {
        let (bytes, ends) = log(&[10, 300, BLOCK + 100, 600]);
        let mut places: Vec<usize> = (0..bytes.len()).step_by(211).collect();
        let begins = [0].into_iter().chain(ends.iter().copied()).filter(|at| *at < bytes.len());
        places.extend(begins.flat_map(|at| at..at + HEADER + 4));
        places.extend(bytes.len() - 20..bytes.len());
        for at in places {
            for bit in 0..8 {
                let mut broken = bytes.clone();
                broken[at] ^= 1 << bit;
                let found = verdict(&[&broken]);
                assert!(found.is_err(), "bit {bit} of byte {at}: {found:?}");
            }
        }
    }

    #[test]
    fn an_unfinished_write_in_an_older_log_is_one_only_if_the_next_goes_on_there() {
        let (bytes, ends) = log(&[10, 20, 30, 40]);
        let (two, four) = (&bytes[..ends[1] + 9], &bytes[ends[2]..]);
        assert_eq!(verdict(&[two, &bytes[ends[1]..]]), Ok(9));
        let refused = verdict(&[two, four]).expect_err("the third batch is in neither");
        assert!(refused.contains("000004.log is damaged"), "{refused}");
        assert_eq!(verdict(&[two, &[], &bytes[ends[1]..]]), Ok(9));
    }

    #[test]
    fn what_nobody_began_to_fill_is_no_database_and_the_rest_needs_its_files() {
        let dir = Dir::new();
        assert_eq!(check(&dir.0.join("absent")).unwrap(), None);
        fs::write(dir.0.join("000004.log"), b"").unwrap();
        assert_eq!(check(&dir.0).unwrap(), None);
        fs::write(dir.0.join("000005.sst"), b"data").unwrap();
        assert!(check(&dir.0).unwrap_err().to_string().ends_with("CURRENT is missing"));
        fs::write(dir.0.join("CURRENT"), "MANIFEST-000003\n").unwrap();
        assert!(check(&dir.0).unwrap_err().to_string().ends_with("MANIFEST-000003 is missing"));
        fs::write(dir.0.join("CURRENT"), "MANIFEST-00000s\n").unwrap();
        assert!(check(&dir.0).unwrap_err().to_string().contains("CURRENT is damaged"));
    }
}
