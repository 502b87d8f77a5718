//! The audit log: one JSON line for each write of a client who is known, or who is refused for not being.
//!
//! A request hands its line to a bounded queue and never waits; a thread writes ([`sink`]). What finds no room is dropped, counted, and
//! told in the log itself. Always holds: no value, password, key of logins or token is in a line ([`describe`]).

mod describe;
mod sink;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;

use pintle_base::clock::{self, Instant};
use pintle_proto::store_v1::reply::Outcome;
use prometheus::IntCounter;
use serde_json::{Map, Value, json};
use tonic::Code;

pub(crate) use self::describe::{Description, describe, describe_member};
use self::sink::{Files, Sink};
use crate::auth::{Actor, Peer};
use crate::error::StoreError;
use crate::limits;
use crate::metrics::code_name;

/// Where the log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditOptions {
    /// Older files are beside it, with `.1`, `.2`, … behind its name.
    pub file: PathBuf,
    /// A file that would become larger is put aside.
    pub max_bytes: u64,
    /// Files there are, this one included; the oldest go.
    pub max_files: usize,
}

/// When it is dropped everything in the queue has been written.
pub(crate) struct AuditLog {
    queue: Option<SyncSender<String>>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    /// Bytes in the queue.
    bytes: AtomicUsize,
    /// Lines dropped and not told yet.
    untold: AtomicU64,
    dropped: IntCounter,
}

impl AuditLog {
    /// Opens the file, or makes it.
    pub fn open(options: &AuditOptions, dropped: IntCounter) -> io::Result<Self> {
        Self::with(Files::open(options)?, dropped)
    }

    fn with(sink: impl Sink + Send + 'static, dropped: IntCounter) -> io::Result<Self> {
        let (queue, lines) = sync_channel(limits::AUDIT_LINES);
        let state = Arc::new(State { bytes: AtomicUsize::new(0), untold: AtomicU64::new(0), dropped });
        let writer = Writer { lines, state: Arc::clone(&state), sink, told: None, failing: false };
        let thread = std::thread::Builder::new().name("store-audit".to_owned()).spawn(move || writer.run())?;
        Ok(Self { queue: Some(queue), state, thread: Some(thread) })
    }

    /// Begins the line of a write. It is handed in when it is dropped.
    pub fn begin<'a>(&'a self, actor: &'a Actor, peer: Option<Peer>, description: Description) -> Entry<'a> {
        Entry { log: self, actor, peer, description, revision: None, code: None, error: None }
    }

    fn hand_in(&self, line: String) {
        let bytes = line.len();
        let before = self.state.bytes.fetch_add(bytes, Ordering::Relaxed);
        let taken =
            before <= limits::AUDIT_BYTES && self.queue.as_ref().is_some_and(|queue| queue.try_send(line).is_ok());
        if !taken {
            self.state.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.state.lost(1);
        }
    }
}

impl State {
    fn lost(&self, lines: u64) {
        self.dropped.inc_by(lines);
        self.untold.fetch_add(lines, Ordering::Relaxed);
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic was told by its thread
        }
    }
}

/// One write, from before it is tried until its outcome is known, or nobody waits for it any more.
pub(crate) struct Entry<'a> {
    log: &'a AuditLog,
    actor: &'a Actor,
    peer: Option<Peer>,
    description: Description,
    revision: Option<i64>,
    code: Option<Code>,
    error: Option<String>,
}

impl Entry<'_> {
    /// It was carried out.
    pub fn done(&mut self, revision: i64, outcome: Option<&Outcome>) {
        (self.code, self.revision) = (Some(Code::Ok), Some(revision));
        self.description.add_outcome(outcome);
    }

    pub fn failed(&mut self, error: &StoreError) {
        (self.code, self.error) = (Some(error.code()), Some(error.to_string()));
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let user = match self.actor {
            Actor::User(caller) => Value::from(caller.name.as_str()),
            Actor::Member | Actor::Anonymous | Actor::BadToken => Value::Null,
        };
        let mut line = Map::new();
        line.insert("time".to_owned(), time().into());
        line.insert("user".to_owned(), user);
        line.insert("peer".to_owned(), self.peer.map(|peer| peer.address.to_string()).into());
        line.insert("method".to_owned(), (&*self.description.method).into());
        line.append(&mut self.description.what);
        // Whoever asked may be gone before there was an answer.
        line.insert("code".to_owned(), code_name(self.code.unwrap_or(Code::Cancelled)).into());
        if let Some(revision) = self.revision {
            line.insert("revision".to_owned(), revision.into());
        }
        if let Some(error) = self.error.take() {
            line.insert("error".to_owned(), error.into());
        }
        self.log.hand_in(format!("{}\n", Value::Object(line)));
    }
}

/// The time now as RFC 3339 has it, in UTC.
fn time() -> String {
    let now = i64::try_from(clock::unix_millis()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(now).map(|time| format!("{time:.3}")).unwrap_or_default()
}

struct Writer<S> {
    lines: Receiver<String>,
    state: Arc<State>,
    sink: S,
    /// When it was last told what was dropped.
    told: Option<Instant>,
    failing: bool,
}

impl<S: Sink> Writer<S> {
    fn run(mut self) {
        loop {
            match self.lines.recv_timeout(limits::AUDIT_TELL) {
                Ok(line) => self.write(&line),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while let Ok(line) = self.lines.try_recv() {
                self.write(&line);
            }
            if self.told.is_none_or(|told| told.elapsed() >= limits::AUDIT_TELL) {
                self.tell_dropped();
            }
        }
        self.tell_dropped();
    }

    fn write(&mut self, line: &str) {
        self.state.bytes.fetch_sub(line.len(), Ordering::Relaxed);
        match self.sink.write(line.as_bytes()) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.state.lost(1);
                if !self.failing {
                    tracing::error!(%error, "the audit log cannot be written, lines are lost");
                }
                self.failing = true;
            }
        }
    }

    fn tell_dropped(&mut self) {
        let dropped = self.state.untold.swap(0, Ordering::Relaxed);
        if dropped == 0 {
            return;
        }
        self.told = Some(clock::now());
        tracing::warn!(dropped, "lines of the audit log were dropped");
        let line = json!({ "time": time(), "dropped": dropped });
        if self.sink.write(format!("{line}\n").as_bytes()).is_err() {
            self.state.untold.fetch_add(dropped, Ordering::Relaxed); // told once it can be
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use pintle_proto::store_v1::Caller;

    use super::*;

    /// Passes lines on, each only once it is asked for.
    struct Slow {
        asked: mpsc::Receiver<()>,
        lines: mpsc::Sender<String>,
    }

    impl Sink for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<()> {
            self.asked.recv().map_err(io::Error::other)?;
            self.lines.send(String::from_utf8_lossy(line).into_owned()).map_err(io::Error::other)
        }
    }

    fn slow() -> (AuditLog, mpsc::Sender<()>, mpsc::Receiver<String>, IntCounter) {
        let (ask, asked) = mpsc::channel();
        let (lines, written) = mpsc::channel();
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        (AuditLog::with(Slow { asked, lines }, dropped.clone()).unwrap(), ask, written, dropped)
    }

    fn description() -> Description {
        Description { method: "Put".into(), what: Map::new() }
    }

    #[test]
    fn a_line_says_who_from_where_what_and_how_it_ended() {
        let (log, ask, lines, _) = slow();
        let user = Actor::User(Arc::new(Caller { name: "alice \"a\"".to_owned(), ..Caller::default() }));
        let peer = Some(Peer { connection: 1, address: "127.0.0.1:7".parse().unwrap() });
        log.begin(&user, peer, description()).done(9, None);
        log.begin(&Actor::Anonymous, None, description()).failed(&StoreError::NoSpace);
        drop(log.begin(&user, peer, description()));
        let next = || -> Value {
            ask.send(()).unwrap();
            let mut line: Value = serde_json::from_str(&lines.recv().unwrap()).unwrap();
            let time = line.as_object_mut().unwrap().remove("time").unwrap();
            assert!(time.as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 24), "{time}");
            line
        };
        let (name, at) = ("alice \"a\"", "127.0.0.1:7");
        assert_eq!(next(), json!({"user": name, "peer": at, "method": "Put", "code": "OK", "revision": 9}));
        let error = "etcdserver: mvcc: database space exceeded";
        let refused = json!({"user": null, "peer": null, "method": "Put", "code": "ResourceExhausted", "error": error});
        assert_eq!(next(), refused);
        assert_eq!(next(), json!({"user": name, "peer": at, "method": "Put", "code": "Canceled"}));
    }

    #[test]
    fn nobody_waits_for_a_slow_disk_and_what_is_dropped_is_counted_and_told() {
        let (log, ask, lines, dropped) = slow();
        let more = 500;
        for _ in 0..limits::AUDIT_LINES + more {
            drop(log.begin(&Actor::Anonymous, None, description()));
        }
        let lost = dropped.get();
        // The writer may have taken one from the queue.
        assert!((more as u64 - 1..=more as u64).contains(&lost), "{lost}");
        for _ in 0..limits::AUDIT_LINES + 2 {
            ask.send(()).unwrap();
        }
        drop(log);
        let written: Vec<Value> = lines.iter().map(|line| serde_json::from_str(&line).unwrap()).collect();
        assert_eq!(written.len() as u64, (limits::AUDIT_LINES + more) as u64 - lost + 1);
        assert_eq!(written.last().unwrap()["dropped"], lost);
    }

    #[test]
    fn large_lines_are_bounded_too() {
        let (log, ask, lines, dropped) = slow();
        let mut large = description();
        large.what.insert("key".to_owned(), "k".repeat(limits::AUDIT_BYTES / 4).into());
        let large = || Description { method: large.method.clone(), what: large.what.clone() };
        for _ in 0..10 {
            drop(log.begin(&Actor::Anonymous, None, large()));
        }
        assert!((4..=6).contains(&dropped.get()), "{}", dropped.get());
        (0..11).for_each(|_| ask.send(()).unwrap());
        drop(log);
        assert_eq!(lines.iter().count() as u64, 10 - dropped.get() + 1);
    }
}
