//! Files of a stopped member that are damaged, cut, or gone: whatever it is, the member serves everything it acknowledged, or
//! says in one sentence why it does not start, or ends at the read that finds the damage. `store verify` says it before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest};
use pintle_tests::store::Store;
use pintle_tests::{Ran, pintle, ran};
use serde_json::Value;

/// Elections of a member that is alone need no patience; snapshots come often, so that there is one and the log begins with it.
const FLAGS: [&str; 4] =
    ["--heartbeat-interval=20", "--election-timeout=100", "--snapshot-count=60", "--snapshot-catchup-entries=20"];

/// What happens to a member whose file was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It serves everything that was acknowledged.
    Serves,
    /// It says why it does not start.
    Refused,
    /// It starts, and a read finds the damage: it answers with an error and ends.
    Stops,
}

use Outcome::{Refused, Serves, Stops};

/// A member that holds data, and copies of its directory.
struct Filled {
    store: Store,
    /// It was asked to stop.
    stopped: Copied,
    /// It was killed right after the last acknowledgement.
    killed: Copied,
}

struct Copied {
    dir: PathBuf,
    all: Value,
}

/// Bytes that cannot be compressed, the same for the same number.
fn noise(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b'a' + (state >> 59) as u8 % 26
    };
    (0..length).map(|_| next()).collect()
}

impl Filled {
    fn new() -> Self {
        let mut store = Store::new(1);
        let home = store.home.path().to_owned();
        start(&mut store);
        put(&store, 0..200, 1500);
        let granted = store.etcdctl(&["lease", "grant", "7200"]).ok();
        let lease = granted.split(' ').nth(1).expect("an id").to_owned();
        store.etcdctl(&["put", "leased", "1", &format!("--lease={lease}")]).ok();
        compact(&store, 50);
        let snapshots = home.join("m0/raft/snap");
        store
            .until("a snapshot", || fs::read_dir(&snapshots).is_ok_and(|mut all| all.any(|one| is_snapshot(one.ok()))));
        stop(&mut store, Signal::SIGTERM);
        start(&mut store);
        put(&store, 200..230, 1500);
        let all = contents(&store).expect("all of it");
        stop(&mut store, Signal::SIGTERM);
        let stopped = Copied { dir: copy(&home.join("m0"), &home.join("stopped")), all };
        start(&mut store);
        put(&store, 230..260, 1500);
        stop(&mut store, Signal::SIGKILL);
        let killed = copy(&home.join("m0"), &home.join("killed"));
        start(&mut store);
        let all = contents(&store).expect("all of it");
        assert_eq!(all["hash"]["count"], 252, "nothing acknowledged was lost: {}", all["hash"]);
        stop(&mut store, Signal::SIGKILL);
        Self { store, stopped, killed: Copied { dir: killed, all } }
    }

    /// Damages a copy, asks `verify`, starts the member, reads everything, and says how it went; with what `verify` said.
    #[track_caller]
    fn after(&mut self, killed: bool, damage: impl FnOnce(&Path)) -> (Outcome, Ran) {
        let from = if killed { &self.killed } else { &self.stopped };
        let dir = self.store.home.path().join("m0");
        fs::remove_dir_all(&dir).expect("remove the last one");
        copy(&from.dir, &dir);
        damage(&dir);
        let before = listing(&dir);
        let verified = verify(&dir, &[]);
        assert_eq!(listing(&dir), before, "verify changes nothing");
        let all = from.all.clone();
        let _ = fs::remove_file(self.store.home.path().join("m0.log"));
        self.store.start(0, &FLAGS);
        (self.outcome(&all), verified)
    }

    #[track_caller]
    fn outcome(&mut self, all: &Value) -> Outcome {
        let mut ended = None;
        self.store.until_mut("it serves, or ends", |store| {
            ended = store.has_ended(0);
            ended.is_some() || store.log(0).contains("ready to serve client requests")
        });
        if let Some(code) = ended {
            self.check_refusal(code);
            return Refused;
        }
        match contents(&self.store) {
            Ok(found) => {
                assert_eq!(found, *all, "it serves something else");
                stop(&mut self.store, Signal::SIGKILL);
                Serves
            }
            Err(_) => {
                let code = self.store.ended(0);
                self.check_refusal(code);
                Stops
            }
        }
    }

    /// One sentence says why it ended.
    #[track_caller]
    fn check_refusal(&self, code: Option<i32>) {
        let log = self.store.log(0);
        let said: Vec<&str> = log.lines().filter(|line| line.starts_with("pintle: ")).collect();
        assert!(code == Some(1) && said.len() == 1 && log.ends_with(&format!("{}\n", said[0])), "{code:?}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        println!("    {}", said[0]);
    }

    /// Checks a table of damages: what is done to which file, what may come of it, and what `verify` must name.
    #[track_caller]
    fn check(&mut self, killed: bool, file: &str, what: &str, may: &[Outcome], damage: impl FnOnce(&Path)) -> Outcome {
        println!("{file}: {what}");
        let (outcome, verified) = self.after(killed, damage);
        assert!(may.contains(&outcome), "{file}, {what}: {outcome:?}\n{}", self.store.log(0));
        if outcome != Serves {
            assert_eq!(verified.code, 1, "{file}, {what}: {verified:?}");
            let told = verified.stdout.lines().filter(|line| line.starts_with("damaged: "));
            let told: Vec<&str> = told.filter(|line| line.contains("; next: ")).collect();
            assert!(!told.is_empty() && told.iter().all(|line| line.contains("/m0")), "{file}, {what}: {verified:?}");
        }
        outcome
    }
}

fn is_snapshot(entry: Option<fs::DirEntry>) -> bool {
    entry.is_some_and(|entry| !entry.file_name().to_string_lossy().starts_with("tmp"))
}

fn start(store: &mut Store) {
    let _ = fs::remove_file(store.home.path().join("m0.log"));
    store.start(0, &FLAGS);
    store.until("it serves", || store.log(0).contains("ready to serve client requests"));
}

fn stop(store: &mut Store, signal: Signal) {
    store.signal(0, signal);
    store.ended(0);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Puts `k<number>` for each number, one after the other, and deletes every tenth again.
fn put(store: &Store, numbers: std::ops::Range<u64>, length: usize) {
    let address = format!("http://127.0.0.1:{}", store.members[0].client);
    runtime().block_on(async {
        let mut client = KvClient::connect(address).await.expect("connect");
        for number in numbers {
            let key: bytes::Bytes = format!("k{number:05}").into();
            let value = noise(number, length).into();
            client.put(PutRequest { key: key.clone(), value, ..PutRequest::default() }).await.expect("put");
            if number % 30 == 7 {
                client.delete_range(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }).await.expect("delete");
            }
        }
    });
}

fn compact(store: &Store, revision: i64) {
    let address = format!("http://127.0.0.1:{}", store.members[0].client);
    runtime().block_on(async {
        let mut client = KvClient::connect(address).await.expect("connect");
        client.compact(CompactionRequest { revision, physical: true }).await.expect("compact");
    });
}

/// Everything a client can see: all keys as they are and as they were, the hash over all history, the leases.
fn contents(store: &Store) -> Result<Value, String> {
    let ask = |arguments: &[&str]| -> Result<Value, String> {
        let ran = store.etcdctl(&[arguments, &["-w", "json"]].concat());
        if ran.code != 0 {
            return Err(ran.stderr);
        }
        serde_json::from_str(&ran.stdout).map_err(|error| error.to_string())
    };
    let now = ask(&["get", "", "--prefix"])?;
    let then = ask(&["get", "", "--prefix", "--rev=120"])?;
    let hash = ask(&["endpoint", "hashkv"])?;
    let leases = store.etcdctl(&["lease", "list"]);
    if leases.code != 0 {
        return Err(leases.stderr);
    }
    Ok(serde_json::json!({
        "now": now["kvs"],
        "then": then["kvs"],
        "leases": leases.stdout,
        "hash": {
            "revision": now["header"]["revision"],
            "hash": hash[0]["HashKV"]["hash"],
            "count": now["count"],
        },
    }))
}

fn verify(dir: &Path, more: &[&str]) -> Ran {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60"]).arg(pintle()).args(["store", "verify", "--data-dir"]).arg(dir);
    ran(command.args(more))
}

fn copy(from: &Path, to: &Path) -> PathBuf {
    // Links between its files are links between the copies: what is damaged is damaged in both places.
    ran(Command::new("cp").arg("-a").arg(from).arg(to)).ok();
    to.to_owned()
}

/// All files with their sizes and times.
fn listing(dir: &Path) -> String {
    ran(Command::new("find").arg(dir).args(["-printf", "%p %s %T@ %i\n"])).ok()
}

/// The files directly in `dir` whose names match, oldest first.
fn files(dir: &Path, matches: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .expect("list")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| matches(&path.file_name().expect("a name").to_string_lossy()))
        .collect();
    found.sort();
    found
}

fn one(dir: &Path, matches: impl Fn(&str) -> bool) -> PathBuf {
    files(dir, matches).pop().unwrap_or_else(|| panic!("nothing in {}", dir.display()))
}

/// The newest file of the log.
fn wal(dir: &Path) -> PathBuf {
    one(&dir.join("raft/log"), |name| name.ends_with(".log"))
}

/// Where its writes begin, and where the last one ends.
fn writes(path: &Path) -> (Vec<u64>, u64) {
    let bytes = fs::read(path).expect("read");
    let (mut begins, mut at) = (Vec::new(), 512);
    loop {
        let length = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().expect("four"));
        if length == 0 {
            return (begins, at as u64);
        }
        begins.push(at as u64);
        at += 24 + length as usize;
        // A head lies in one sector.
        let left = 512 - at % 512;
        at += if left < 24 { left } else { 0 };
    }
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    fs::File::options().write(true).open(path).expect("open").write_all_at(bytes, at).expect("write");
}

fn manifest(dir: &Path) -> PathBuf {
    one(dir, |name| name.starts_with("MANIFEST-"))
}

fn state(dir: &Path) -> PathBuf {
    one(&dir.join("state"), |name| name.starts_with("state-"))
}

fn snapshot(dir: &Path) -> PathBuf {
    one(&dir.join("raft/snap"), |name| !name.starts_with("tmp"))
}

/// The largest table.
fn table(dir: &Path) -> PathBuf {
    files(dir, |name| name.ends_with(".sst")).into_iter().max_by_key(|path| size(path)).expect("a table")
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).expect("look at a file").len()
}

/// Flips one bit in place, also in what is linked to the file.
fn flip(path: &Path, at: u64, bit: u8) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at).expect("write");
}

fn cut(path: &Path, to: u64) {
    fs::File::options().write(true).open(path).expect("open").set_len(to).expect("cut");
}

fn append(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    fs::File::options().append(true).open(path).expect("open").write_all(bytes).expect("append");
}

/// Where the records of a manifest begin, of those that lie in one block.
fn records(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).expect("read");
    let mut at = 0;
    let mut found = Vec::new();
    while at + 7 <= bytes.len() {
        found.push(at as u64);
        at += 7 + usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        let left = 32768 - at % 32768;
        if left < 7 {
            at += left;
        }
    }
    found
}

#[test]
fn sound_data_is_told_with_its_hash_and_a_running_member_is_left_alone() {
    let mut filled = Filled::new();
    let dir = filled.store.home.path().join("m0");
    for copied in [&filled.stopped, &filled.killed] {
        let told = verify(&copied.dir, &[]);
        assert!(told.stdout.ends_with("sound\n") && told.code == 0, "{told:?}");
        assert_eq!(told.stderr, "", "it took no time");
    }
    let told = verify(&filled.stopped.dir, &["-w", "json"]).ok();
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let all = &filled.stopped.all;
    assert_eq!(told["hash"], all["hash"]["hash"], "{told}");
    assert_eq!(told["revision"], all["hash"]["revision"], "{told}");
    assert_eq!((&told["keys"], &told["leases"], &told["sound"]), (&all["hash"]["count"], &1.into(), &true.into()));
    assert_eq!(told["raftIndex"], told["raftAppliedIndex"], "it was stopped: {told}");
    assert!(told["logEntries"].as_u64() > Some(20) && told["snapshots"] == 1, "{told}");
    assert!(verify(&filled.stopped.dir, &["-w", "table"]).ok().contains("true"));
    let refused = verify(&filled.stopped.dir, &["-w", "fields"]);
    assert_eq!(refused.code, 4, "{refused:?}");

    start(&mut filled.store);
    let refused = verify(&dir, &[]);
    assert!(
        refused.code == 1 && refused.stderr.contains("a member runs on") && refused.stdout.is_empty(),
        "{refused:?}"
    );
    stop(&mut filled.store, Signal::SIGTERM);
    let nothing = verify(filled.store.home.path(), &[]);
    assert!(nothing.code == 1 && nothing.stderr.contains("holds no member"), "{nothing:?}");
}

#[test]
fn who_a_member_is_and_what_it_promised_are_never_guessed() {
    let mut filled = Filled::new();
    for (name, length) in [("raft/identity", 20), ("raft/low-water-mark", 100)] {
        filled.check(false, name, "deleted", &[Refused], |dir| fs::remove_file(dir.join(name)).expect("delete"));
        filled.check(false, name, "cut", &[Refused], |dir| cut(&dir.join(name), length));
        filled.check(false, name, "emptied", &[Refused], |dir| cut(&dir.join(name), 0));
    }
    for at in [0, 3, 9, 25] {
        filled.check(false, "raft/identity", "flipped", &[Refused], |dir| flip(&dir.join("raft/identity"), at, 2));
    }
    let mark = |dir: &Path| dir.join("raft/low-water-mark");
    for slot in [0, 256] {
        // Each of the two may have been written when a crash came.
        filled.check(false, "raft/low-water-mark", "one slot flipped", &[Serves], |dir| flip(&mark(dir), slot + 12, 5));
    }
    filled.check(false, "raft/low-water-mark", "both slots flipped", &[Refused], |dir| {
        flip(&mark(dir), 12, 5);
        flip(&mark(dir), 268, 5);
    });
    for name in ["raft", "raft/log", "raft/snap"] {
        filled.check(false, name, "deleted", &[Refused], |dir| fs::remove_dir_all(dir.join(name)).expect("delete"));
    }
    filled.check(false, "lock", "deleted", &[Serves], |dir| fs::remove_file(dir.join("lock")).expect("delete"));
}

#[test]
fn damage_of_the_log_is_refused_and_what_is_unused_is_not_asked_for() {
    const LOG: &str = "raft/log/*.log";
    let mut filled = Filled::new();
    for killed in [false, true] {
        let (begins, end) = writes(&wal(if killed { &filled.killed.dir } else { &filled.stopped.dir }));
        let last = *begins.last().expect("writes");
        println!("{} writes in {end} bytes", begins.len());
        let of_the_head = [(0, 0), (7, 1), (9, 3), (17, 6), (25, 0), (33, 7), (40, 2), (45, 5), (50, 1), (70, 4)];
        let of_a_write =
            |at: u64| [(at, 4), (at + 5, 0), (at + 8, 0), (at + 9, 5), (at + 13, 1), (at + 17, 6), (at + 26, 2)];
        let elsewhere = [(begins[begins.len() / 2] + 900, 3), (end - 1, 0)];
        for (at, bit) in [&of_the_head[..], &of_a_write(begins[1]), &of_a_write(last), &elsewhere].concat() {
            let what = format!("bit {bit} of byte {at} flipped");
            filled.check(killed, LOG, &what, &[Refused], |dir| flip(&wal(dir), at, bit));
        }
        filled.check(killed, LOG, "zeros in the middle", &[Refused], |dir| {
            overwrite(&wal(dir), end / 2 / 4096 * 4096, &[0; 4096]);
        });
        filled
            .check(killed, LOG, "something after its end", &[Refused], |dir| overwrite(&wal(dir), end, &noise(1, 300)));
        filled.check(killed, LOG, "something far after its end", &[Serves], |dir| {
            overwrite(&wal(dir), end + 4096, &noise(1, 300));
        });
        filled.check(killed, LOG, "deleted", &[Refused], |dir| fs::remove_file(wal(dir)).expect("delete"));
        for length in [0, 300, end - 1, end, end + 4096] {
            filled.check(killed, LOG, "cut", &[Refused], |dir| cut(&wal(dir), length));
        }
        filled.check(killed, LOG, "longer than it was made", &[Refused], |dir| append(&wal(dir), &[0; 512]));
        filled.check(killed, LOG, "another of its name", &[Refused], |dir| {
            fs::copy(wal(dir), dir.join("raft/log/0000000000000002.log")).expect("copy");
        });
        filled.check(killed, LOG, "one that was being made", &[Serves], |dir| {
            fs::write(dir.join("raft/log/0000000000000002.log.new"), noise(1, 700)).expect("write");
        });
    }
    // Within the last two seconds before a kill nothing says where the log ended; later, and after a stop, the low-water mark does.
    let (begins, end) = writes(&wal(&filled.stopped.dir));
    let from = begins[begins.len() - 8];
    filled.check(false, LOG, "its last writes are zeros", &[Refused], |dir| {
        overwrite(&wal(dir), from, &vec![0; usize::try_from(end - from).expect("few")]);
    });
    filled.check(false, "raft/log/MANIFEST", "of another version", &[Refused], |dir| {
        fs::write(dir.join("raft/log/MANIFEST-000004"), "").expect("write");
    });
}

#[test]
fn damage_of_the_state_is_refused_at_start_or_found_by_the_read() {
    let mut filled = Filled::new();
    filled.check(false, "state", "deleted", &[Serves], |dir| fs::remove_dir_all(dir.join("state")).expect("delete"));
    let current = |dir: &Path| dir.join("state/CURRENT");
    filled.check(false, "state/CURRENT", "deleted", &[Refused], |dir| fs::remove_file(current(dir)).expect("delete"));
    filled.check(false, "state/CURRENT", "cut", &[Refused], |dir| cut(&current(dir), 8));
    for (at, bit) in [(0, 7), (2, 1), (11, 1), (12, 0)] {
        filled.check(false, "state/CURRENT", "flipped", &[Refused], |dir| flip(&current(dir), at, bit));
    }
    let inner = |dir: &Path| state(dir).join("CURRENT");
    filled.check(false, "state/*/CURRENT", "deleted", &[Refused], |dir| fs::remove_file(inner(dir)).expect("delete"));
    filled.check(false, "state/*/CURRENT", "flipped", &[Refused], |dir| flip(&inner(dir), 12, 1));
    let begins = records(&manifest(&state(&filled.stopped.dir)));
    let last = *begins.last().expect("records");
    for (at, bit) in [(2, 1), (5, 3), (6, 2), (12, 0), (begins[1] + 5, 7), (last + 4, 6), (last + 8, 3)] {
        let what = format!("bit {bit} of byte {at} flipped");
        filled.check(false, "state/*/MANIFEST", &what, &[Refused], |dir| flip(&manifest(&state(dir)), at, bit));
    }
    for less in [1, 30, 200] {
        filled.check(false, "state/*/MANIFEST", "cut", &[Refused, Serves], |dir| {
            let path = manifest(&state(dir));
            cut(&path, size(&path) - less);
        });
    }
    let gone = |dir: &Path| fs::remove_file(manifest(&state(dir))).expect("delete");
    filled.check(false, "state/*/MANIFEST", "deleted", &[Refused], gone);
    filled.check(false, "state/*/*.sst", "deleted", &[Refused], |dir| {
        fs::remove_file(table(&state(dir))).expect("delete")
    });
    filled.check(false, "state/*/*.sst", "cut", &[Refused], |dir| {
        let path = table(&state(dir));
        cut(&path, size(&path) - 1000);
    });
    let length = size(&table(&state(&filled.stopped.dir)));
    let mut found = 0;
    for at in (0..12).map(|part| length * part / 12 + 40).chain([length - 1, length - 20]) {
        let what = format!("byte {at} of {length} flipped");
        let outcome = filled
            .check(false, "state/*/*.sst", &what, &[Refused, Stops, Serves], |dir| flip(&table(&state(dir)), at, 3));
        found += u32::from(outcome != Serves); // by whoever reads first: at start history is removed that was compacted
    }
    assert!(found > 4, "blocks with keys are most of a table, {found} were found");
    for name in ["OPTIONS", "IDENTITY", "LOG"] {
        filled.check(false, "state/*", &format!("{name} deleted"), &[Serves], |dir| {
            files(&state(dir), |file| file.starts_with(name))
                .iter()
                .for_each(|path| fs::remove_file(path).expect("delete"));
        });
    }
}

#[test]
fn a_snapshot_that_the_log_begins_with_is_needed() {
    let mut filled = Filled::new();
    let manifest = |dir: &Path| snapshot(dir).join("manifest");
    filled.check(false, "raft/snap/*/manifest", "deleted", &[Refused], |dir| {
        fs::remove_file(manifest(dir)).expect("delete");
    });
    filled.check(false, "raft/snap/*/manifest", "cut", &[Refused], |dir| cut(&manifest(dir), 30));
    for at in [0, 2, 8, 60] {
        filled.check(false, "raft/snap/*/manifest", "flipped", &[Refused], |dir| flip(&manifest(dir), at, 4));
    }
    let data = |dir: &Path| snapshot(dir).join("data");
    filled.check(false, "raft/snap/*/data/*.sst", "deleted", &[Refused], |dir| {
        fs::remove_file(table(&data(dir))).expect("delete");
    });
    filled.check(false, "raft/snap/*/data/MANIFEST", "cut", &[Refused], |dir| {
        cut(&self::manifest(&data(dir)), 20);
    });
    // The member itself does not read them while its state is whole; `verify` does.
    for (what, at) in [("CURRENT flipped", 12), ("MANIFEST flipped", 5)] {
        println!("raft/snap/*/data/{what}");
        let (outcome, verified) = filled.after(false, |dir| match what.starts_with('C') {
            true => flip(&data(dir).join("CURRENT"), at, 0),
            false => flip(&self::manifest(&data(dir)), at, 3),
        });
        assert_eq!(outcome, Serves);
        assert!(verified.code == 1 && verified.stdout.contains("damaged: the snapshot"), "{verified:?}");
    }
}
