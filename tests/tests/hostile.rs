//! Clients that mean harm, against a real member: what is malformed is refused, floods and laggards take no memory without end, and while
//! they go on another client's puts come at no less than half their rate.
//!
//! Rates are compared within a test, just before an attack and during it, and the best of a few tries counts: the attacker shares the
//! machine with the member, which it would not elsewhere.

#[path = "hostile/attack.rs"]
mod attack;
#[path = "hostile/http2.rs"]
mod http2;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use attack::Attack;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::request_op::Request as Op;
use pintle_proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use pintle_tests::store::Store;
use pintle_tests::{Ran, ran};
use prost::Message;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Tests here measure: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// How long puts are counted.
const WINDOW: Duration = Duration::from_millis(1500);
/// Clients that put at the same time.
const CLIENTS: usize = 4;
const TRIES: usize = 4;

struct Target {
    store: Store,
    runtime: Runtime,
    kv: KvClient<Channel>,
    _alone: MutexGuard<'static, ()>,
}

impl Target {
    fn start() -> Self {
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut store = Store::new(1);
        // As a service manager starts it: with few files, and leave to have more.
        let program = store.home.path().join("limited");
        let text = format!("#!/bin/sh\nulimit -Sn 1024\nexec '{}' \"$@\"\n", store.program.display());
        std::fs::write(&program, text).expect("write a script");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, executable).expect("make it executable");
        store.program = program;
        store.start_all();
        let runtime = Runtime::new().expect("runtime");
        let address = format!("http://127.0.0.1:{}", store.members[0].client);
        let channel = runtime.block_on(Channel::from_shared(address).expect("an address").connect()).expect("connect");
        Self { store, runtime, kv: KvClient::new(channel), _alone: alone }
    }

    fn port(&self) -> u16 {
        self.store.members[0].client
    }

    fn put(&self, key: &str, value: Vec<u8>) -> Result<i64, Status> {
        let request = PutRequest { key: Bytes::from(key.to_owned()), value: value.into(), ..PutRequest::default() };
        let answer = self.runtime.block_on(self.kv.clone().put(request))?.into_inner();
        Ok(answer.header.unwrap_or_default().revision)
    }

    /// Puts acknowledged within the window.
    fn rate(&self) -> usize {
        let until = Instant::now() + WINDOW;
        let client = |number: usize| {
            let mut kv = self.kv.clone();
            async move {
                let mut done = 0;
                while Instant::now() < until {
                    let (key, value) = (Bytes::from(format!("victim/{number}")), Bytes::from(vec![7; 256]));
                    let put = kv.put(PutRequest { key, value, ..PutRequest::default() });
                    match tokio::time::timeout_at(until + Duration::from_secs(20), put).await {
                        Ok(Ok(_)) => done += 1,
                        other => panic!("a put of somebody else failed: {other:?}"),
                    }
                }
                done
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| self.runtime.spawn(client(number))).collect();
        let done = clients.into_iter().map(|client| self.runtime.block_on(client).expect("no panic"));
        done.sum()
    }

    /// Resident memory of the member, in MiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.store.pid(0))).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
        line.split_whitespace().nth(1).and_then(|size| size.parse::<u64>().ok()).expect("a number") / 1024
    }

    /// Puts go on at half their rate or more while `attack` does, and it makes the member grow by no more than `mebibytes`.
    #[track_caller]
    fn bears(&self, what: &str, mebibytes: u64, attack: impl Fn(u16) -> Attack) {
        let memory = self.memory();
        let mut best = 0.0_f64;
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            let before = self.rate();
            let attack = attack(self.port());
            attack.until_it_does_something();
            let began = attack.done.load(Ordering::Relaxed);
            let during = self.rate();
            let did = attack.done.load(Ordering::Relaxed) - began;
            let grown = self.memory().saturating_sub(memory);
            drop(attack);
            seen.push(format!("{before} before, {during} during, {did} attempts, {grown} MiB more"));
            assert!(grown <= mebibytes, "{what}: memory grows: {seen:?}");
            best = best.max(during as f64 / before as f64);
            if best >= 0.5 {
                break;
            }
        }
        println!("{what}: {seen:?}");
        assert!(best >= 0.5, "{what}: others are slowed: {seen:?}");
        assert!(!self.store.log(0).contains("panicked"), "{what}: {}", self.store.log(0));
    }
}

#[test]
fn floods_of_frames_headers_and_broken_requests_slow_nobody_else() {
    let target = Target::start();
    target.bears("streams opened and reset at once", 64, attack::rapid_resets);
    target.bears("pings and settings", 64, attack::control_frames);
    target.bears("headers without an end", 64, attack::endless_headers);
    target.bears("lists of headers that are too large", 64, attack::large_headers);
    target.bears("requests that cannot be read", 64, attack::garbage);
}

#[test]
fn clients_that_write_a_byte_at_a_time_slow_nobody_else() {
    let target = Target::start();
    target.bears("slow writers", 128, attack::slow_writers);
}

#[test]
fn five_thousand_idle_connections_slow_nobody_else() {
    let target = Target::start();
    let allowed = ran(std::process::Command::new("sh").args(["-c", "ulimit -Hn"])).ok();
    if allowed.trim().parse::<u64>().is_ok_and(|files| files < 12_000) {
        println!("skipped: this process may open {} files only", allowed.trim());
        return;
    }
    let own = std::process::id().to_string();
    ran(std::process::Command::new("prlimit").args(["--pid", &own, "--nofile=12000:"])).ok();
    target.bears("5,000 idle connections", 192, |port| attack::idle(port, 5000));
}

#[test]
fn answers_that_nobody_takes_do_not_pile_up() {
    let target = Target::start();
    for number in 0..32 {
        target.put(&format!("large/{number:02}"), vec![7; 256 << 10]).expect("put");
    }
    // 512 answers of 8 MiB, if all were made.
    target.bears("readers that take nothing", 768, |port| attack::slow_readers(port, 64, 8, "large/"));
}

#[test]
fn watchers_that_never_read_take_bounded_memory_and_slow_nobody_else() {
    let target = Target::start();
    let attack = attack::deaf_watchers(target.port(), 20, 20);
    attack.until_it_does_something();
    let fill = |mebibytes: usize| {
        for number in 0..mebibytes * 4 {
            target.put(&format!("watched/{}", number % 50), vec![number as u8; 256 << 10]).expect("put");
        }
    };
    fill(48); // more than their queues and the hub's ring hold
    let memory = target.memory();
    fill(192);
    let grown = target.memory().saturating_sub(memory);
    println!("400 deaf watchers: {memory} MiB, and {grown} more after four times as many events");
    assert!(grown < 150, "it goes on growing: {memory} MiB, then {grown} more");
    drop(attack);
    target.bears("deaf watchers", 256, |port| attack::deaf_watchers(port, 20, 20));
}

#[test]
fn progress_asked_for_by_one_who_hardly_reads_takes_bounded_memory() {
    let target = Target::start();
    let before = target.memory();
    let attack = attack::late_progress(target.port(), 1000);
    attack.until_it_does_something();
    // Less than a watcher's queue, and 3 GiB if all were encoded at once.
    for number in 0..3 {
        target.put("watched/0", vec![number; 1 << 20]).expect("put");
    }
    let looks = (0..60).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        target.memory()
    });
    let grown = looks.max().unwrap_or_default().saturating_sub(before);
    println!("1000 watches of one key and a report of progress: {grown} MiB more");
    assert!(grown < 256, "{grown} MiB more");
    drop(attack);
    assert!(target.put("watched/0", vec![9]).is_ok() && !target.store.log(0).contains("panicked"));
}

/// Transactions within each other.
fn nested(depth: usize) -> TxnRequest {
    let mut txn = TxnRequest::default();
    for _ in 0..depth {
        let inner = RequestOp { request: Some(Op::RequestTxn(txn)) };
        txn = TxnRequest { success: vec![inner], ..TxnRequest::default() };
    }
    txn
}

fn post(port: u16, path: &str, body: &[u8]) -> Ran {
    let file = tempfile::NamedTempFile::new().expect("make a file");
    std::fs::write(file.path(), body).expect("write");
    let data = format!("@{}", file.path().display());
    let url = format!("http://127.0.0.1:{port}{path}");
    ran(std::process::Command::new("curl").args([
        "-sS",
        "--max-time",
        "20",
        "-w",
        "\n%{http_code}",
        "--data-binary",
        &data,
        &url,
    ]))
}

/// What a gRPC call with this body, as it is, is answered.
fn grpc_status(port: u16, path: &str, body: &[u8]) -> Option<u32> {
    let file = tempfile::NamedTempFile::new().expect("make a file");
    std::fs::write(file.path(), body).expect("write");
    let (data, url) = (format!("@{}", file.path().display()), format!("http://127.0.0.1:{port}{path}"));
    let said = ran(std::process::Command::new("curl")
        .args(["-sS", "--max-time", "20", "--http2-prior-knowledge", "-D", "-", "-o", "/dev/null"])
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", &data, &url]));
    let line = said.stdout.lines().find_map(|line| line.strip_prefix("grpc-status:"));
    line.and_then(|code| code.trim().parse().ok())
}

/// Status and message of the gateway's refusal.
fn refused(ran: Ran) -> (u16, String) {
    let text = ran.ok();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("a refusal in JSON: {text}"));
    (status.parse().expect("a number"), body["message"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn requests_of_absurd_shapes_are_refused_in_words_and_nothing_is_written() {
    let target = Target::start();
    let mut kv = target.kv.clone();
    let before = target.put("a", vec![1]).expect("put");
    let mut txn = |depth| target.runtime.block_on(kv.txn(nested(depth)));
    txn(45).expect("some are fine");
    for depth in [60, 1000, 3000] {
        let refused = txn(depth).expect_err("too deep");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            "{depth}"
        );
    }
    // A megabyte is a key like any other; what does not fit into a request is refused.
    let huge = "k".repeat(1 << 20);
    let revision = target.put(&huge, vec![]).expect("a key of a mebibyte");
    assert_eq!(revision, before + 1);
    let key = RangeRequest { key: Bytes::from(huge.clone()), ..RangeRequest::default() };
    assert_eq!(target.runtime.block_on(kv.range(key)).expect("range").into_inner().count, 1);
    let refused_put = target.put(&huge, vec![7; 600 << 10]).expect_err("too large");
    assert_eq!(
        (refused_put.code(), refused_put.message()),
        (Code::InvalidArgument, "etcdserver: request is too large")
    );
    let over = target.put("b", vec![7; 4 << 20]).expect_err("too large");
    assert_eq!(over.code(), Code::ResourceExhausted, "{over}");

    let port = target.port();
    let deep = format!("{}{}", r#"{"success":[{"requestTxn":"#.repeat(1000), "}]}".repeat(1000));
    for (call, body, says) in [
        ("put", &b"{"[..], "EOF"),
        ("put", b"\xff\xfe", ""),
        ("put", br#"{"key":"*not base64*"}"#, ""),
        ("put", br#"{"key":"YQ==","value":[]}"#, ""),
        ("put", br#"{"key":{}}"#, ""),
        ("put", br#"[1,2]"#, ""),
        ("put", br#""text""#, ""),
        ("txn", deep.as_bytes(), "recursion limit"),
    ] {
        let (status, message) = refused(post(port, &format!("/v3/kv/{call}"), body));
        assert!(status == 400 && !message.is_empty() && message.contains(says), "{body:.30?}: {status} {message}");
    }
    let (status, message) = refused(post(port, "/v3/kv/put", &vec![b' '; 8 << 20]));
    assert_eq!((status, message.as_str()), (429, "http: request body too large"));
    assert!(refused(post(port, "/v3/kv/put", STANDARD.encode(vec![0; 4000]).as_bytes())).0 == 400);
    for frame in
        http2::broken_messages(&PutRequest { key: Bytes::from_static(b"x"), ..PutRequest::default() }.encode_to_vec())
    {
        let status = grpc_status(port, "/etcdserverpb.KV/Put", &frame);
        assert!(status.is_some_and(|code| code != 0), "{frame:.20?} was answered with {status:?}");
    }
    let all = RangeRequest {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        count_only: true,
        ..RangeRequest::default()
    };
    let answer = target.runtime.block_on(kv.range(all)).expect("range").into_inner();
    assert_eq!((answer.count, answer.header.unwrap_or_default().revision), (2, revision));
    assert!(!target.store.log(0).contains("panicked"), "{}", target.store.log(0));
}
