//! Container logs: files of lines `<time> <stream> <tag> <text>`, as every CRI runtime writes them. Tag `P` marks a piece
//! of a line that goes on in the next record.

use std::collections::VecDeque;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use pintle_base::clock;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::{mpsc, watch};

use crate::limits;

/// How often a followed file is looked at for more.
const POLL: Duration = Duration::from_millis(100);

/// One record of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub time: &'a str,
    pub is_stderr: bool,
    /// The line goes on in the next record.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Parses a record without its line end; `None` if it is none.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let is_stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // Further tags may follow after colons.
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Record { time, is_stderr, partial, text: parts.next().unwrap_or_default() })
}

/// What of a log is wanted.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub follow: bool,
    pub timestamps: bool,
    pub since: Option<Timestamp>,
    pub tail: Option<u64>,
    pub limit: Option<u64>,
}

/// Chooses records and writes them as users see them. Pure.
#[derive(Debug)]
struct Shaper {
    options: Options,
    line_begins: bool,
    shown: bool,
    left: Option<u64>,
}

/// A piece of a log, all of it from one of the two streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub is_stderr: bool,
    pub text: Bytes,
}

/// Text on its way out; neighbours of the same stream are joined.
#[derive(Default)]
struct Outgoing {
    pieces: Vec<(bool, BytesMut)>,
    size: usize,
}

impl Outgoing {
    fn push(&mut self, is_stderr: bool, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        self.size += text.len();
        match self.pieces.last_mut() {
            Some((of, last)) if *of == is_stderr => last.extend_from_slice(text),
            _ => self.pieces.push((is_stderr, BytesMut::from(text))),
        }
    }
}

impl Shaper {
    fn new(options: Options) -> Self {
        Self { left: options.limit, options, line_begins: true, shown: true }
    }

    /// Appends a record's text to `out`; false once nothing more may be written.
    fn take(&mut self, line: &[u8], out: &mut Outgoing) -> bool {
        let Some(record) = parse(line) else { return self.write(false, line, true, out) };
        let of = record.is_stderr;
        if self.line_begins {
            self.shown = match (self.options.since, record.time.parse::<Timestamp>()) {
                (Some(since), Ok(time)) => time >= since,
                _ => true,
            };
        }
        let begins = std::mem::replace(&mut self.line_begins, !record.partial);
        if !self.shown {
            return true;
        }
        if begins
            && self.options.timestamps
            && !(self.write(of, record.time.as_bytes(), false, out) && self.write(of, b" ", false, out))
        {
            return false;
        }
        self.write(of, record.text, !record.partial, out)
    }

    fn write(&mut self, is_stderr: bool, text: &[u8], ends: bool, out: &mut Outgoing) -> bool {
        for part in [text, if ends { b"\n".as_slice() } else { b"" }] {
            let room = self.left.map_or(part.len(), |left| usize::try_from(left).unwrap_or(usize::MAX).min(part.len()));
            out.push(is_stderr, &part[..room]);
            self.left = self.left.map(|left| left - room as u64);
        }
        self.left != Some(0)
    }
}

/// The file offset at which the last `lines` lines begin.
async fn tail_offset(path: &Path, lines: u64) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(64 << 10, File::open(path).await?);
    let size = reader.get_ref().metadata().await?.len();
    if lines == 0 {
        return Ok(size);
    }
    let keep = usize::try_from(lines).unwrap_or(usize::MAX);
    let mut starts: VecDeque<u64> = VecDeque::new();
    let (mut at, mut begins) = (0, true);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = reader.read_until(b'\n', &mut line).await? as u64;
        if count == 0 {
            return Ok(starts.front().copied().unwrap_or(0));
        }
        if begins {
            starts.push_back(at);
            if starts.len() > keep {
                starts.pop_front();
            }
        }
        begins = !parse(line.trim_ascii_end()).is_some_and(|record| record.partial);
        at += count;
    }
}

/// Sends the wanted part of a log, and with `follow` what is added until `running` turns false.
///
/// # Errors
/// The I/O error; `NotFound` if the container has not written its log yet.
pub async fn stream(
    path: PathBuf,
    options: Options,
    mut running: watch::Receiver<bool>,
    out: mpsc::Sender<Piece>,
) -> io::Result<()> {
    let begin = match options.tail {
        Some(lines) => tail_offset(&path, lines).await?,
        None => 0,
    };
    let follow = options.follow;
    let mut shaper = Shaper::new(options);
    let mut reader = open(&path, begin).await?;
    let mut pending = Vec::new();
    loop {
        let alive = *running.borrow_and_update();
        let mut text = Outgoing::default();
        let (more, at_end) = read_some(&mut reader, &mut pending, &mut shaper, &mut text).await?;
        for (is_stderr, text) in text.pieces {
            if out.send(Piece { is_stderr, text: text.freeze() }).await.is_err() {
                return Ok(()); // nobody reads any more
            }
        }
        if !more || (at_end && !(follow && alive)) {
            return Ok(());
        }
        if !at_end {
            continue;
        }
        if rotated(&path, reader.get_ref()).await {
            reader = open(&path, 0).await?;
            continue;
        }
        tokio::select! {
            () = clock::sleep(POLL) => (),
            _ = running.changed() => (),
            () = out.closed() => return Ok(()),
        }
    }
}

async fn open(path: &Path, at: u64) -> io::Result<BufReader<File>> {
    let mut file = File::open(path).await?;
    file.seek(SeekFrom::Start(at)).await?;
    Ok(BufReader::with_capacity(32 << 10, file))
}

async fn rotated(path: &Path, file: &File) -> bool {
    match (tokio::fs::metadata(path).await, file.metadata().await) {
        (Ok(named), Ok(open)) => named.ino() != open.ino(),
        _ => false, // between the renaming and the new file
    }
}

/// Reads up to one frame's worth of records; tells whether more may be written and whether the file's end was met.
async fn read_some(
    reader: &mut BufReader<File>,
    pending: &mut Vec<u8>,
    shaper: &mut Shaper,
    out: &mut Outgoing,
) -> io::Result<(bool, bool)> {
    while out.size < limits::FRAME_BYTES {
        if reader.read_until(b'\n', pending).await? == 0 {
            return Ok((true, true));
        }
        if pending.last() == Some(&b'\n') {
            pending.pop();
        } else if pending.len() < limits::LOG_LINE {
            return Ok((true, true)); // the record is still being written
        }
        let more = shaper.take(pending, out);
        pending.clear();
        if !more {
            return Ok((false, false));
        }
    }
    Ok((true, false))
}

/// The last lines of a log as one text, for a termination message.
pub fn tail_text(path: &Path) -> String {
    use std::io::{Read, Seek};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        // Twice the bytes: each record has a prefix of about 40.
        file.seek(SeekFrom::Start(size.saturating_sub(limits::TERMINATION_LOG_BYTES * 4)))?;
        let mut bytes = Vec::new();
        file.take(limits::TERMINATION_LOG_BYTES * 4).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let lines: Vec<Record<'_>> = bytes.split(|byte| *byte == b'\n').filter_map(parse).collect();
    let keep = usize::try_from(limits::TERMINATION_LOG_LINES).unwrap_or(0);
    let mut text = Vec::new();
    for record in &lines[lines.len().saturating_sub(keep)..] {
        text.extend_from_slice(record.text);
        if !record.partial {
            text.push(b'\n');
        }
    }
    let limit = usize::try_from(limits::TERMINATION_LOG_BYTES).unwrap_or(0);
    String::from_utf8_lossy(&text[text.len().saturating_sub(limit)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let record = parse(b"2026-01-02T03:04:05.000000006Z stderr P a b").expect("record");
        assert_eq!((record.is_stderr, record.partial, record.text), (true, true, &b"a b"[..]));
        assert_eq!(parse(b"2026-01-02T03:04:05Z stdout F:x ").expect("tags").text, b"");
        for bad in [&b""[..], b"x", b"t stdout", b"t stdin F a", b"t stdout X a", b"\xff stdout F a"] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }

    fn file(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("0.log");
        std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).expect("write");
        (dir, path)
    }

    async fn shown(lines: &[&str], options: Options) -> String {
        let (_dir, path) = file(lines);
        let (out, mut pieces) = mpsc::channel(16);
        let (_alive, running) = watch::channel(false);
        stream(path, options, running, out).await.expect("read");
        let mut text = Vec::new();
        while let Some(piece) = pieces.recv().await {
            text.extend_from_slice(&piece.text);
        }
        String::from_utf8(text).expect("text")
    }

    const LINES: [&str; 4] = [
        "2026-01-01T00:00:01Z stdout F one",
        "2026-01-01T00:00:02Z stdout P tw",
        "2026-01-01T00:00:03Z stdout F o",
        "2026-01-01T00:00:04Z stderr F three",
    ];

    #[tokio::test]
    async fn all_tail_since_timestamps_and_limit() {
        let plain = Options::default();
        assert_eq!(shown(&LINES, plain.clone()).await, "one\ntwo\nthree\n");
        assert_eq!(shown(&LINES, Options { tail: Some(2), ..plain.clone() }).await, "two\nthree\n");
        assert_eq!(shown(&LINES, Options { tail: Some(0), ..plain.clone() }).await, "");
        assert_eq!(shown(&LINES, Options { tail: Some(9), ..plain.clone() }).await, "one\ntwo\nthree\n");
        let since = "2026-01-01T00:00:02Z".parse().ok();
        assert_eq!(shown(&LINES, Options { since, ..plain.clone() }).await, "two\nthree\n");
        assert_eq!(shown(&LINES, Options { limit: Some(5), ..plain.clone() }).await, "one\nt");
        let stamped = shown(&LINES, Options { timestamps: true, tail: Some(2), ..plain }).await;
        assert_eq!(stamped, "2026-01-01T00:00:02Z two\n2026-01-01T00:00:04Z three\n");
    }

    #[tokio::test]
    async fn following_sees_growth_and_rotation_and_ends_with_the_container() {
        let (dir, path) = file(&LINES[..1]);
        let (out, mut pieces) = mpsc::channel(16);
        let (alive, running) = watch::channel(true);
        let reading = tokio::spawn(stream(path.clone(), Options { follow: true, ..Options::default() }, running, out));
        let deadline = Duration::from_secs(10);
        let mut next = async || clock::timeout(deadline, pieces.recv()).await.expect("in time");
        assert_eq!(next().await.expect("piece").text, "one\n");
        let append = |text: &str| {
            use std::io::Write;
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).expect("open");
            file.write_all(text.as_bytes()).expect("append");
        };
        append("2026-01-01T00:00:05Z stdout F four\n");
        assert_eq!(next().await.expect("piece").text, "four\n");
        std::fs::rename(&path, dir.path().join("0.log.old")).expect("rotate");
        append("2026-01-01T00:00:06Z stdout F five\n");
        assert_eq!(next().await.expect("piece").text, "five\n");
        alive.send(false).expect("told");
        assert_eq!(next().await, None);
        clock::timeout(deadline, reading).await.expect("in time").expect("joined").expect("read");
    }

    #[test]
    fn last_words_from_the_log() {
        let (_dir, path) = file(&LINES);
        assert_eq!(tail_text(&path), "one\ntwo\nthree\n");
        assert_eq!(tail_text(Path::new("/nonexistent")), "");
    }
}
