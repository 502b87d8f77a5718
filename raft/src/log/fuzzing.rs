//! What the fuzzer gives its bytes to: a file of the log, as it may be found on a disk. Beside that nothing panics, what is read ends within
//! the file, and what was read is a log without gaps.

use openraft::EntryPayload;

use super::open::checkpoint;
use super::segment::{self, Draft, Head, Kind, SECTOR};
use super::segments::{Replay, Span};
use super::{COMMITTED, ENTRY, OpenError, PURGED, State, TRUNCATION, VOTE};
use crate::codec::{self, RecordError};
use crate::core::{Entry, RaftLogId, Vote, raft_log_id};
use crate::machine::LogId;

const KINDS: [Kind; 5] = [Kind::Vote, Kind::Entry, Kind::Truncate, Kind::Purge, Kind::Committed];

enum Ended {
    Damaged,
    Refused(OpenError),
}

impl From<String> for Ended {
    fn from(_: String) -> Self {
        Self::Damaged
    }
}

/// By the first byte: bytes behind a sound head, or records, each `[kind][length][bytes]` and with a right checksum, as none is found by chance.
pub(crate) fn file(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    let mut head = Head { number: 1, size: 0, first: 1, salt: 7, checkpoint: Default::default() };
    let mut bytes = head.encode().expect("our own");
    match which % 2 {
        0 => bytes.extend_from_slice(body),
        _ => bytes.extend(records(body).seal(SECTOR as u64, head.first, head.salt)),
    }
    // Whole sectors, as files have.
    bytes.resize((bytes.len() + SECTOR).next_multiple_of(SECTOR), 0);
    head.size = bytes.len() as u64;
    let mut state = State::default();
    state.begin(&head.checkpoint, true).expect("the first");
    let end = segment::scan(&bytes, &head, |write| {
        let mut span = Span::default();
        for record in write.records() {
            let (kind, record) = record?;
            state.record(kind, record, &mut span).map_err(Ended::Refused)?;
        }
        Ok(())
    });
    match end {
        Ok(end) => assert!(end.at + end.unfinished <= bytes.len() as u64),
        Err(Ended::Refused(error)) => drop(error.to_string()),
        Err(Ended::Damaged) => (),
    }
    let (first, until) = state.bounds();
    let held = state.tail.read(0, u64::MAX, usize::MAX);
    assert!(held.iter().all(|entry| entry.log_id.index < until), "{first}..{until}");
    assert!(held.windows(2).all(|pair| pair[0].log_id.index + 1 == pair[1].log_id.index));
    assert_eq!(checkpoint(&state).last, state.last);
}

fn records(mut body: &[u8]) -> Draft {
    let mut draft = Draft::new(Vec::new());
    while let [kind, length, rest @ ..] = body {
        let (record, after) = rest.split_at(rest.len().min(usize::from(*length)));
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        let name = [VOTE, ENTRY, TRUNCATION, PURGED, COMMITTED][KINDS.iter().position(|one| *one == kind).unwrap_or(0)];
        let sealed = codec::wrap(name, record);
        draft.encoded(kind, &sealed);
        body = after;
    }
    draft
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let id = |term, index| raft_log_id(LogId { term, index });
    let entry = |term, index| {
        let entry = Entry { log_id: id(term, index), payload: EntryPayload::Blank };
        codec::encode_entry(ENTRY, &entry)
    };
    let body = |name: &[u8], record: Result<Vec<u8>, RecordError>| {
        let record = record.expect("our own");
        codec::unwrap(name, &record).expect("our own").to_vec()
    };
    let mut records = vec![1];
    for (kind, body) in [
        (0, body(VOTE, codec::encode(VOTE, &Vote::new_committed(3, 1)))),
        (1, body(ENTRY, entry(1, 0))),
        (1, body(ENTRY, entry(2, 1))),
        (2, body(TRUNCATION, codec::encode(TRUNCATION, &(1u64, Some(id(1, 0)))))),
        (1, body(ENTRY, entry(3, 1))),
        (4, body(COMMITTED, codec::encode(COMMITTED, &Some(id(3, 1))))),
        (3, body(PURGED, codec::encode::<RaftLogId>(PURGED, &id(3, 1)))),
    ] {
        records.extend([kind, u8::try_from(body.len()).expect("short")]);
        records.extend(body);
    }
    let mut raw = vec![0];
    raw.extend(self::records(&records[1..]).seal(SECTOR as u64, 1, 7));
    vec![records, raw]
}
