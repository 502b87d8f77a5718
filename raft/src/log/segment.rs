//! How one file of the log lies on disk, and how the end of what was written is told from damage. Pure: bytes in, writes out.
//!
//! A file is made whole, with all its bytes zero behind the head, and written from front to back: a write that changes neither the size of
//! its file nor where it lies is synced without the file system's journal. Only a start writes again: the last write, in case that its sync
//! had failed, and zeros over an unfinished one.
//!
//! ```text
//! head, one sector    magic (8) number (8) size (8) first (8) salt (8) length (4) sum (4) checkpoint (length)
//! write               sum of the rest of this head (4) sum of the body (4) length (4) empty (4) sequence (8) body (length)
//! body                kind (1) length (4) record (length), and so on
//! ```
//! The head of a write lies in one sector: where it would not, the write begins with the next one. Numbers are little endian, sums crc32c. `first` is the sequence of the file's first write; sequences have no gaps, from file to file.
//! `salt` is random and part of the sum of each write's head: no value that somebody stores can look like a write. `empty` counts the sectors
//! of a write, also one it shares with the next, whose part of it is all zeros; the one of its head is none.
//!
//! Always holds: a write is synced before the next one begins. So an unfinished write is the last of all files, and some sector of it holds
//! nothing of it: that of its head is empty, or more others are than it says. Whatever else cannot be read is damage.

use crc32c::{crc32c, crc32c_append};

use crate::codec;
use crate::core::{RaftLogId, Vote};

/// The head's size, and what a disk writes as a whole.
pub(super) const SECTOR: usize = 512;
/// Before the body of a write.
pub(super) const WRITE_HEAD: usize = 24;
/// The last byte is the format.
const MAGIC: [u8; 8] = *b"pntlog\0\x01";
const CHECKPOINT: &[u8] = b"checkpoint";
/// Before the checkpoint.
const FIXED: usize = 48;
/// Before a record.
const RECORD_HEAD: usize = 5;

/// What the log says at the beginning of a file: what was written before need not be read for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Checkpoint {
    pub vote: Option<Vote>,
    pub purged: Option<RaftLogId>,
    pub committed: Option<RaftLogId>,
    /// The newest entry, or where a purge ended that reached beyond.
    pub last: Option<RaftLogId>,
}

/// The head of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Head {
    pub number: u64,
    /// Bytes of the whole file.
    pub size: u64,
    /// Sequence of the first write.
    pub first: u64,
    pub salt: u64,
    pub checkpoint: Checkpoint,
}

impl Head {
    pub fn encode(&self) -> Result<Vec<u8>, codec::RecordError> {
        let checkpoint = codec::encode(CHECKPOINT, &self.checkpoint)?;
        let mut head = MAGIC.to_vec();
        for number in [self.number, self.size, self.first, self.salt] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        let length = u32::try_from(checkpoint.len()).unwrap_or(u32::MAX);
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&crc32c(&head).to_le_bytes());
        head.extend_from_slice(&checkpoint);
        debug_assert!(head.len() <= SECTOR, "a checkpoint takes some hundred bytes at most");
        head.resize(SECTOR, 0);
        Ok(head)
    }

    /// The head of a file that is called `number` and has `bytes`.
    pub fn decode(bytes: &[u8], number: u64) -> Result<Self, String> {
        let head = bytes.get(..SECTOR).ok_or_else(|| format!("it ends after {} bytes", bytes.len()))?;
        if head[..7] != MAGIC[..7] {
            return Err("it does not begin as a file of the log does".to_owned());
        }
        if head[7] != MAGIC[7] {
            return Err(format!("it has format {}, this version reads format {}", head[7], MAGIC[7]));
        }
        if u32_at(head, FIXED - 4) != crc32c(&head[..FIXED - 4]) {
            return Err("its head does not match its checksum".to_owned());
        }
        let length = u32_at(head, FIXED - 8) as usize;
        let (checkpoint, rest) = head[FIXED..].split_at_checked(length).ok_or("its head is too long")?;
        let checkpoint = codec::decode(CHECKPOINT, checkpoint).map_err(|error| format!("the checkpoint: {error}"))?;
        let [named, size, first, salt] = [8, 16, 24, 32].map(|at| u64_at(head, at));
        if named != number {
            return Err(format!("it says it is number {named}"));
        }
        if size != bytes.len() as u64 {
            return Err(format!("it has {} bytes, {size} were made", bytes.len()));
        }
        if rest.iter().any(|byte| *byte != 0) {
            return Err("something follows its head".to_owned());
        }
        Ok(Self { number, size, first, salt, checkpoint })
    }
}

/// What kinds of records there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Vote = 1,
    Entry = 2,
    /// Everything from an index on is no more.
    Truncate = 3,
    Purge = 4,
    Committed = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Vote, Self::Entry, Self::Truncate, Self::Purge, Self::Committed]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A write in the making: its head is filled in when it is known where it goes.
pub(super) struct Draft(Vec<u8>);

impl Draft {
    /// Takes over the memory of an earlier one.
    pub fn new(mut memory: Vec<u8>) -> Self {
        memory.clear();
        memory.resize(WRITE_HEAD, 0);
        Self(memory)
    }

    /// Bytes with its head.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Adds a record that `write` appends to what it is given.
    pub fn record<E>(&mut self, kind: Kind, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let begin = self.0.len();
        self.0.extend_from_slice(&[kind as u8, 0, 0, 0, 0]);
        write(&mut self.0)?;
        // Bounded by what is written at once, far below.
        let length = u32::try_from(self.0.len() - begin - RECORD_HEAD).unwrap_or(u32::MAX);
        self.0[begin + 1..begin + RECORD_HEAD].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    /// Adds a record that is encoded already.
    pub fn encoded(&mut self, kind: Kind, record: &[u8]) {
        let Ok(()) = self.record(kind, |into| {
            into.extend_from_slice(record);
            Ok::<_, std::convert::Infallible>(())
        });
    }

    /// The bytes to write at `at`, which becomes write `sequence` of a file with this salt.
    pub fn seal(mut self, at: u64, sequence: u64, salt: u64) -> Vec<u8> {
        let bytes = &mut self.0;
        let body = crc32c(&bytes[WRITE_HEAD..]);
        bytes[4..8].copy_from_slice(&body.to_le_bytes());
        let length = u32::try_from(bytes.len() - WRITE_HEAD).unwrap_or(u32::MAX);
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        let empty = empty_sectors(bytes, at);
        bytes[12..16].copy_from_slice(&empty.to_le_bytes());
        let sum = head_sum(bytes, salt);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        self.0
    }
}

fn head_sum(head: &[u8], salt: u64) -> u32 {
    crc32c_append(crc32c(&salt.to_le_bytes()), &head[4..WRITE_HEAD])
}

/// How many sectors hold nothing but zeros of a write that lies at `at`; behind the one of its head.
fn empty_sectors(write: &[u8], at: u64) -> u32 {
    let empty = sectors(write, at).skip(1).filter(|part| is_empty(part));
    u32::try_from(empty.count()).unwrap_or(u32::MAX)
}

fn is_empty(part: &[u8]) -> bool {
    part.iter().all(|byte| *byte == 0)
}

/// Where a write begins that follows one which ends at `end`.
pub(super) fn next_place(end: u64) -> u64 {
    let left = SECTOR as u64 - end % SECTOR as u64;
    if left < WRITE_HEAD as u64 { end + left } else { end }
}

/// The parts of `bytes`, which lie at `at`, that each are in one sector.
fn sectors(bytes: &[u8], at: u64) -> impl Iterator<Item = &[u8]> {
    let before = usize::try_from(at % SECTOR as u64).unwrap_or(0);
    let (first, rest) = bytes.split_at(bytes.len().min((SECTOR - before) % SECTOR));
    std::iter::once(first).filter(|part| !part.is_empty()).chain(rest.chunks(SECTOR))
}

/// One write that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write<'a> {
    /// Where its head begins.
    pub at: u64,
    pub sequence: u64,
    pub body: &'a [u8],
}

impl<'a> Write<'a> {
    /// Bytes with its head.
    pub fn size(&self) -> usize {
        WRITE_HEAD + self.body.len()
    }

    pub fn records(&self) -> Records<'a> {
        Records(self.body)
    }
}

/// The records of a body.
pub(super) struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(Kind, &'a [u8]), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let body = std::mem::take(&mut self.0);
        let read = || {
            let (head, rest) = body.split_at_checked(RECORD_HEAD)?;
            let (record, rest) = rest.split_at_checked(u32_at(head, 1) as usize)?;
            Some((Kind::of(head[0])?, record, rest))
        };
        let Some((kind, record, rest)) = read() else { return Some(Err("a record that makes no sense".to_owned())) };
        self.0 = rest;
        Some(Ok((kind, record)))
    }
}

/// Where the whole writes of a file end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub at: u64,
    /// Sequence of the next write.
    pub sequence: u64,
    /// Bytes of an unfinished write there, as far as it was written.
    pub unfinished: u64,
    /// Where the last write begins and ends, if there is one.
    pub last: Option<(u64, u64)>,
}

/// The write at `at` of a file.
///
/// # Errors
/// There is no such write.
pub(super) fn write_at(bytes: &[u8], at: u64, salt: u64, sequence: u64) -> Option<Write<'_>> {
    let rest = bytes.get(usize::try_from(at).ok()?..)?;
    let head = head_at(rest, salt).filter(|head| head.sequence == sequence)?;
    let body = rest.get(WRITE_HEAD..WRITE_HEAD.checked_add(head.length)?)?;
    (crc32c(body) == head.body).then_some(Write { at, sequence, body })
}

struct WriteHead {
    body: u32,
    length: usize,
    empty: u32,
    sequence: u64,
}

/// The head that `bytes` begin with.
fn head_at(bytes: &[u8], salt: u64) -> Option<WriteHead> {
    let head = bytes.get(..WRITE_HEAD)?;
    if u32_at(head, 0) != head_sum(head, salt) {
        return None;
    }
    let (body, length, empty) = (u32_at(head, 4), u32_at(head, 8) as usize, u32_at(head, 12));
    Some(WriteHead { body, length, empty, sequence: u64_at(head, 16) })
}

/// Hands all whole writes of a file to `each`, and says where they end.
///
/// # Errors
/// What cannot be read is not what a crash leaves; or `each` says so.
pub(super) fn scan<E: From<String>>(
    bytes: &[u8],
    head: &Head,
    mut each: impl FnMut(Write<'_>) -> Result<(), E>,
) -> Result<End, E> {
    let from = |at: u64| bytes.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
    let (mut at, mut sequence, mut last) = (SECTOR as u64, head.first, None);
    while let Some(write) = write_at(bytes, at, head.salt, sequence) {
        each(write)?;
        let end = at + write.size() as u64;
        let next = next_place(end);
        let unused = usize::try_from(next - end).unwrap_or(0);
        if !from(end).iter().take(unused).all(|byte| *byte == 0) {
            return Err(format!("something follows the write at byte {at} that belongs to none").into());
        }
        last = Some((at, end));
        (at, sequence) = (next, sequence.saturating_add(1));
    }
    let rest = from(at);
    let written = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if written > 0 {
        judge(rest, written, at, sequence, head.salt)?;
    }
    Ok(End { at, sequence, unfinished: written as u64, last })
}

/// Accepts what an unfinished write leaves in `rest`, of which so much is not zero. It lies at `at`.
fn judge(rest: &[u8], written: usize, at: u64, sequence: u64, salt: u64) -> Result<(), String> {
    // Any bytes match a checksum now and then; few of them make sense besides.
    let most = sequence.saturating_add((rest.len() / WRITE_HEAD) as u64);
    let is_later = |from: &[u8]| {
        head_at(from, salt).is_some_and(|head| {
            head.sequence > sequence && head.sequence <= most && head.length <= from.len() - WRITE_HEAD
        })
    };
    let later = (1..written).find(|later| is_later(&rest[*later..]));
    if let Some(later) = later {
        return Err(format!(
            "the write at byte {at} cannot be read, and a later one follows at byte {}",
            at + later as u64
        ));
    }
    match head_at(rest, salt) {
        Some(head) if head.sequence != sequence => {
            Err(format!("the write at byte {at} is number {}, {sequence} is next", head.sequence))
        }
        Some(head) => match rest.get(..WRITE_HEAD.saturating_add(head.length)) {
            None => Err(format!("the write at byte {at} is longer than the file")),
            Some(_) if written > WRITE_HEAD + head.length => {
                Err(format!("something follows the write at byte {at}, which cannot be read"))
            }
            Some(write) if empty_sectors(write, at) > head.empty => Ok(()),
            Some(_) => Err(format!("the last write, at byte {at}, does not match its checksum")),
        },
        None if sectors(rest, at).next().is_some_and(is_empty) => Ok(()),
        None => Err(format!("the head of the write at byte {at} does not match its checksum")),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::raft_log_id;
    use crate::machine::LogId;

    const SIZE: usize = 64 << 10;

    fn head() -> Head {
        let last = Some(raft_log_id(LogId { term: 3, index: 7 }));
        let checkpoint = Checkpoint { vote: Some(Vote::new_committed(3, 1)), purged: last, committed: None, last };
        // A sequence whose last byte is zero: nothing may hang on what is zero by chance.
        Head { number: 4, size: SIZE as u64, first: 0x12_3400, salt: 0x5eed_0bad_cafe_f00d, checkpoint }
    }

    /// A file with writes whose bodies have one record of these sizes, and where they end.
    fn file(sizes: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let head = head();
        let mut bytes = head.encode().expect("encode");
        let mut ends = vec![bytes.len()];
        for (sequence, size) in (head.first..).zip(sizes) {
            let mut draft = Draft::new(Vec::new());
            let record: Vec<u8> = (0..*size).map(|at| (at * 7) as u8 | 1).collect();
            draft.encoded(Kind::Entry, &record);
            let at = next_place(bytes.len() as u64);
            bytes.resize(at as usize, 0);
            bytes.extend(draft.seal(at, sequence, head.salt));
            ends.push(next_place(bytes.len() as u64) as usize);
        }
        bytes.resize(SIZE, 0);
        (bytes, ends)
    }

    /// Sizes of the records that are read, and where they end.
    fn read(bytes: &[u8]) -> Result<(Vec<usize>, End), String> {
        let head = Head::decode(bytes, 4)?;
        let mut sizes = Vec::new();
        let end = scan(bytes, &head, |write| {
            for record in write.records() {
                sizes.push(record?.1.len());
            }
            Ok::<_, String>(())
        })?;
        Ok((sizes, end))
    }

    const SIZES: [usize; 7] = [10, 3000, 480, 0, 20_000, 600, 1100];

    #[test]
    fn all_writes_are_read_and_so_is_their_end() {
        let (bytes, ends) = file(&SIZES);
        let (sizes, end) = read(&bytes).expect("sound");
        assert_eq!(sizes, SIZES);
        let last = end.last.expect("a write");
        assert_eq!((last.0, next_place(last.1)), (ends[6] as u64, ends[7] as u64));
        assert_eq!(end, End { at: ends[7] as u64, sequence: head().first + 7, unfinished: 0, last: end.last });
        let empty = End { at: 512, sequence: head().first, unfinished: 0, last: None };
        assert_eq!(read(&file(&[]).0).expect("sound").1, empty);
        assert_eq!(Head::decode(&bytes, 4), Ok(head()));
    }

    /// A crash leaves any of the last write's sectors unwritten, whatever they held.
    #[test]
    fn sectors_that_were_not_written_leave_an_unfinished_write() {
        let at_each_place =
            (0..512).map(|before| (before, 60)).chain((0..512).step_by(13).map(|before| (before, 1100)));
        for (before, last) in at_each_place.chain([(100, 0), (700, 3), (700, 480), (10, 3000)]) {
            let (bytes, ends) = file(&[10, before, last]);
            let (from, to) = (ends[2], read(&bytes).expect("sound").1.last.expect("a write").1 as usize);
            let sectors: Vec<(usize, usize)> = (from / 512..to.div_ceil(512))
                .map(|sector| (from.max(sector * 512), to.min(sector * 512 + 512)))
                .collect();
            for missing in 1u32..1 << sectors.len() {
                let mut torn = bytes.clone();
                for (nth, (begin, end)) in sectors.iter().enumerate() {
                    if missing & 1 << nth != 0 {
                        torn[*begin..*end].fill(0);
                    }
                }
                let (sizes, end) = read(&torn).unwrap_or_else(|why| panic!("{before}, {last}, {missing:b}: {why}"));
                assert_eq!((sizes.len(), end.at), (2, from as u64), "{before}, {last}, {missing:b}");
                let all = missing + 1 == 1 << sectors.len();
                assert_eq!(end.unfinished == 0, all, "{before}, {last}, {missing:b}");
            }
        }
    }

    /// A value of zeros makes no difference: how many sectors are empty is known.
    #[test]
    fn a_write_of_zeros_is_not_taken_for_an_unfinished_one() {
        let head = head();
        let mut bytes = head.encode().expect("encode");
        let mut draft = Draft::new(vec![9; 100]);
        draft.encoded(Kind::Entry, &[0; 5000]);
        bytes.extend(draft.seal(512, head.first, head.salt));
        let end = bytes.len();
        bytes.resize(SIZE, 0);
        assert_eq!(read(&bytes).expect("sound").0, [5000]);
        for at in [512, 520, 536, 541, 600, 3000, end - 1] {
            let mut broken = bytes.clone();
            broken[at] ^= 4;
            let why = read(&broken).expect_err("damage");
            assert!(why.contains("at byte 512"), "{at}: {why}");
        }
    }

    #[test]
    fn a_flipped_bit_is_damage_wherever_it_is() {
        let (bytes, ends) = file(&SIZES);
        let mut places: Vec<usize> = (0..SIZE).step_by(211).collect();
        places.extend(0..FIXED + 20);
        places.extend(ends.iter().flat_map(|end| end.saturating_sub(5)..end + WRITE_HEAD + 8));
        for at in places {
            for bit in 0..8 {
                let mut broken = bytes.clone();
                broken[at] ^= 1 << bit;
                // Behind the last write a single byte looks like the rest of one whose head was not written as a whole.
                let may = at >= ends[7] && read(&broken).is_ok_and(|(sizes, _)| sizes == SIZES);
                assert!(may || read(&broken).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_file_that_was_cut_or_is_another_is_refused() {
        let (bytes, _) = file(&SIZES);
        for length in [0, 8, 511, 512, 5000, SIZE - 1] {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
        assert!(read(&[&bytes[..], &[0]].concat()).expect_err("longer").contains("65537 bytes, 65536 were made"));
        assert!(Head::decode(&bytes, 5).expect_err("another").contains("number 4"));
        let mut newer = bytes.clone();
        newer[7] = 9;
        assert!(read(&newer).expect_err("newer").contains("format 9"));
    }

    #[test]
    fn zeros_in_the_middle_are_damage() {
        let (bytes, ends) = file(&SIZES);
        for (from, to) in
            [(ends[0], ends[1]), (1024, 1536), (ends[4], ends[4] + 4096), (ends[1], ends[4]), (512, ends[6])]
        {
            let mut broken = bytes.clone();
            broken[from..to].fill(0);
            assert!(read(&broken).expect_err("damage").contains("a later one follows"), "{from}..{to}");
        }
        // The end of a write and the head of the last one, of which the rest is there.
        let mut broken = bytes.clone();
        broken[ends[6] - 100..ends[6] + WRITE_HEAD].fill(0);
        assert!(read(&broken).expect_err("damage").contains("something follows the write"));
    }

    #[test]
    fn what_was_stored_never_looks_like_a_later_write() {
        // A whole write of another file, stored as a value in the last one, which a crash cut off.
        let (inner, ends) = file(&[10, 20, 30]);
        let own = Head { salt: 1, ..head() };
        let mut bytes = own.encode().expect("encode");
        let mut draft = Draft::new(Vec::new());
        let value = &inner[ends[1]..ends[3]];
        draft.encoded(Kind::Entry, &[&[7; 1000][..], value, &[7; 1000]].concat());
        bytes.extend(draft.seal(512, own.first, own.salt));
        bytes.resize(SIZE, 0);
        bytes[512 + 2000..].fill(0);
        assert_eq!(read(&bytes).expect("unfinished").1.at, 512);
    }

    #[test]
    fn records_that_make_no_sense_end_the_body() {
        let all = |body: &[u8]| Records(body).map(|record| record.map(|(kind, _)| kind)).collect::<Vec<_>>();
        assert_eq!(all(&[1, 0, 0, 0, 0, 5, 1, 0, 0, 0, 9]), [Ok(Kind::Vote), Ok(Kind::Committed)]);
        for body in [&[0, 0, 0, 0, 0][..], &[6, 0, 0, 0, 0], &[1, 1, 0, 0, 0], &[1, 0, 0], &[2, 255, 255, 255, 255]] {
            assert!(matches!(all(body)[..], [Err(_)]), "{body:?}");
        }
    }
}
