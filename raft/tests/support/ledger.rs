//! A small state machine for tests: it remembers every command, in order. Like the real one it keeps what it applied in
//! memory and is durable only up to the last flush.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use bytes::Bytes;
use parking_lot::Mutex;
use pintle_raft::{Applied, Committed, LogId, Payload, StateMachine};
use serde::{Deserialize, Serialize};

const FILE: &str = "ledger.json";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Content {
    log_id: Option<(u64, u64)>,
    membership: Vec<u8>,
    /// Commands, if few; see [`Ledger::counting`].
    commands: Vec<String>,
    count: u64,
    checksum: u32,
}

/// Cheap to clone; clones see the same state.
#[derive(Clone)]
pub struct Ledger {
    dir: PathBuf,
    content: Arc<Mutex<Content>>,
    remember: bool,
}

#[allow(dead_code)]
impl Ledger {
    /// What was flushed into `dir`, or an empty ledger.
    pub fn open(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("create the ledger's directory");
        let content = fs::read(dir.join(FILE)).map(|text| serde_json::from_slice(&text).expect("ledger file"));
        Self { dir: dir.to_owned(), content: Arc::new(Mutex::new(content.unwrap_or_default())), remember: true }
    }

    /// Counts commands without remembering them, for measurements.
    pub fn counting(dir: &Path) -> Self {
        Self { remember: false, ..Self::open(dir) }
    }

    pub fn commands(&self) -> Vec<String> {
        self.content.lock().commands.clone()
    }

    pub fn count(&self) -> u64 {
        self.content.lock().count
    }

    /// Count and checksum: equal if and only if the same commands were applied in the same order.
    pub fn digest(&self) -> (u64, u32) {
        let content = self.content.lock();
        (content.count, content.checksum)
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(&*self.content.lock())?;
        fs::write(dir.join("new"), text)?;
        fs::rename(dir.join("new"), dir.join(FILE))
    }
}

impl StateMachine for Ledger {
    fn applied(&self) -> io::Result<Applied> {
        let content = self.content.lock();
        let log_id = content.log_id.map(|(term, index)| LogId { term, index });
        Ok(Applied { log_id, membership: Bytes::from(content.membership.clone()) })
    }

    /// Replies with the number of commands so far; to `reply N` with N bytes.
    fn apply(&mut self, entry: Committed) -> io::Result<Vec<Bytes>> {
        let mut content = self.content.lock();
        content.log_id = Some((entry.log_id.term, entry.log_id.index));
        let mut replies = Vec::new();
        match entry.payload {
            Payload::Blank => (),
            Payload::Membership(bytes) => content.membership = bytes.to_vec(),
            Payload::Commands(commands) => {
                for command in commands {
                    if &*command == b"break" {
                        return Err(io::Error::other("asked to break"));
                    }
                    content.count += 1;
                    content.checksum = crc32c::crc32c_append(content.checksum, &command);
                    if self.remember {
                        content.commands.push(String::from_utf8_lossy(&command).into_owned());
                    }
                    let asked = command.strip_prefix(b"reply ").and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
                    replies.push(match asked {
                        Some(bytes) => Bytes::from(vec![b'x'; bytes]),
                        None => Bytes::from(content.count.to_string()),
                    });
                }
            }
        }
        Ok(replies)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write(&self.dir)
    }

    fn checkpoint(&mut self, dir: &Path) -> io::Result<()> {
        self.write(dir)?;
        fs::create_dir(dir.join("sub"))?;
        fs::write(dir.join("sub/empty.sst"), b"")?;
        // Larger than a chunk, so that a transfer needs several.
        fs::write(dir.join("sub/large.sst"), vec![7; 700_000])
    }

    fn install(&mut self, dir: &Path) -> io::Result<()> {
        if fs::metadata(dir.join("sub/large.sst"))?.len() != 700_000 {
            return Err(io::Error::other("checkpoint is not whole"));
        }
        *self.content.lock() = serde_json::from_slice(&fs::read(dir.join(FILE))?)?;
        self.write(&self.dir)
    }
}
