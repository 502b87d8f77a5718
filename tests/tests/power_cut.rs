//! Power cuts under load: each member on a file system of its own that is shut down at once, so that what was not synced is lost.
//! A killed process cannot show that, the kernel still writes for it. Whatever was acknowledged is there afterwards, everywhere.
//!
//! Needs root, loop devices, mkfs.ext4 and perl (for one ioctl); says so where it cannot run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::{PutRequest, RangeRequest};
use pintle_tests::store::Store;
use pintle_tests::{Ran, home, pintle, ran};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Snapshots and purges of the log happen between any two cuts.
const FLAGS: [&str; 4] =
    ["--heartbeat-interval=50", "--election-timeout=250", "--snapshot-count=200", "--snapshot-catchup-entries=50"];

/// FS_IOC_SHUTDOWN, without writing the journal: from now on nothing reaches the disk, and everything fails.
const SHUTDOWN: &str = r#"use Fcntl; for my $at (@ARGV) { sysopen(my $dir, $at, O_RDONLY) or die "$at: $!\n";
my $now = pack("L", 2); defined(ioctl($dir, 0x8004587d, $now)) or die "shut down $at: $!\n"; }"#;

const WRITERS: usize = 12;
/// Acknowledged writes before a cut, so that it comes under load.
const BEFORE_CUT: usize = 400;
const DEADLINE: Duration = Duration::from_secs(30);

/// A file system of its own in a file, mounted.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    fn make(image: PathBuf, at: PathBuf) -> Result<Self, String> {
        std::fs::create_dir(&at).map_err(|error| error.to_string())?;
        std::fs::File::create(&image).and_then(|file| file.set_len(512 << 20)).map_err(|error| error.to_string())?;
        must(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let disk = Self { image, at };
        disk.mount().map(|()| disk)
    }

    fn mount(&self) -> Result<(), String> {
        // A long time between two writes of the journal, and no flush of files that are written anew: what is not asked for is not written.
        must(Command::new("mount").args(["-o", "loop,commit=300,noauto_da_alloc"]).arg(&self.image).arg(&self.at))
    }
}

fn must(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Members whose power can be cut. However the test ends, nobody runs and nothing is mounted afterwards.
struct Powered {
    store: Store,
    disks: Vec<Disk>,
    images: TempDir,
}

impl Powered {
    /// `None` if that is not possible here, which is told.
    fn new(members: usize) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root can mount the disks whose power is cut");
            return None;
        }
        let mut powered = Self { store: Store::new(members), disks: Vec::new(), images: home() };
        for at in 0..members {
            let image = powered.images.path().join(format!("disk{at}"));
            match Disk::make(image, powered.store.home.path().join(format!("m{at}"))) {
                Ok(disk) => powered.disks.push(disk),
                Err(why) => {
                    println!("skipped: no disk whose power can be cut: {why}");
                    return None;
                }
            }
        }
        // One that nobody uses yet shows whether the cut can be made at all.
        powered.disks[0].leave_unsynced();
        if let Err(why) = cut_power(&[&powered.disks[0].at]) {
            println!("skipped: the power cannot be cut: {why}");
            return None;
        }
        powered.power_up(0);
        powered.start(&(0..members).collect::<Vec<_>>());
        Some(powered)
    }

    /// Mounts the disk again, which nobody uses, and checks that the cut was one.
    fn power_up(&self, at: usize) {
        let disk = &self.disks[at];
        must(Command::new("umount").arg(&disk.at)).expect("unmount");
        disk.mount().expect("mount again");
        let left = std::fs::metadata(disk.unsynced()).map_or(0, |file| file.len());
        assert_eq!(left, 0, "what was not synced is lost, or nothing is shown here");
    }

    fn start(&mut self, members: &[usize]) {
        for at in members {
            let _ = std::fs::remove_file(self.store.home.path().join(format!("m{at}.log")));
            self.store.start(*at, &FLAGS);
        }
        for at in members {
            self.store.until("a member serves", || self.store.log(*at).contains("ready to serve client requests"));
        }
    }

    /// Cuts the power of these members at the same time, and gives it back to their disks.
    fn cut(&mut self, members: &[usize]) {
        members.iter().for_each(|at| self.disks[*at].leave_unsynced());
        let places: Vec<&Path> = members.iter().map(|at| self.disks[*at].at.as_path()).collect();
        cut_power(&places).expect("cut the power");
        for at in members {
            // Its process may have ended by itself, as its disk failed.
            if self.store.has_ended(*at).is_none() {
                self.store.signal(*at, Signal::SIGKILL);
                self.store.ended(*at);
            }
            self.power_up(*at);
            let verified = verify(&self.disks[*at].at);
            assert_eq!(verified.code, 0, "after the cut: {verified:?}");
        }
    }

    /// All members answer with the same hash at the same revision.
    fn agree(&self) {
        let mut seen = Value::Null;
        self.store.until("the members agree", || {
            let told = self.store.etcdctl(&["endpoint", "hashkv", "-w", "json"]);
            seen = serde_json::from_str(&told.stdout).unwrap_or_default();
            let Some(hashes) = seen.as_array() else { return false };
            let of = |one: &Value| (one["HashKV"]["hash"].clone(), one["HashKV"]["header"]["revision"].clone());
            let first = of(&hashes[0]);
            hashes.len() == self.disks.len() && first.0.is_u64() && hashes.iter().all(|one| of(one) == first)
        });
        println!("    agreed: {seen}");
    }

    /// Every acknowledged write is there, read from each member.
    fn nothing_is_lost(&self, acknowledged: &Acknowledged) {
        let runtime = runtime();
        for at in 0..self.disks.len() {
            let found = runtime.block_on(read_all(&self.address(at)));
            let missing: Vec<&String> =
                acknowledged.iter().filter(|(key, value)| found.get(*key) != Some(value)).map(|(key, _)| key).collect();
            let (lost, all) = (missing.len(), acknowledged.len());
            assert!(missing.is_empty(), "member {at} lost {lost} of {all} acknowledged writes: {missing:?}");
        }
        println!("    {} acknowledged writes, none lost", acknowledged.len());
    }

    fn address(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.store.members[at].client)
    }

    /// Writes until the disks of `members` have lost their power and a little longer; adds what was acknowledged.
    fn write_and_cut(&mut self, round: usize, members: &[usize], acknowledged: &mut Acknowledged) {
        let addresses: Vec<String> = (0..self.disks.len()).map(|at| self.address(at)).collect();
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let load = {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            std::thread::spawn(move || runtime().block_on(write(round, addresses, stop, count)))
        };
        let wait_for = |least: usize, what: &str| {
            let began = Instant::now();
            while count.load(Ordering::Relaxed) < least && !load.is_finished() {
                assert!(began.elapsed() < DEADLINE, "{what}: {} writes", count.load(Ordering::Relaxed));
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        // At another moment of the log and of its snapshots each time.
        wait_for(BEFORE_CUT + 37 * round, "load before the cut");
        self.cut(members);
        if members.len() < self.disks.len() {
            let before = count.load(Ordering::Relaxed);
            wait_for(before + BEFORE_CUT, "the others go on");
        }
        stop.store(true, Ordering::Relaxed);
        let written = load.join().expect("the writers");
        assert!(written.len() >= BEFORE_CUT, "{} writes", written.len());
        acknowledged.extend(written);
        self.start(members);
        self.nothing_is_lost(acknowledged);
        self.agree();
    }
}

impl Drop for Powered {
    fn drop(&mut self) {
        self.store.kill_all();
        for disk in &self.disks {
            let unmounted = must(Command::new("umount").arg("-l").arg(&disk.at));
            assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
        }
    }
}

impl Disk {
    fn unsynced(&self) -> PathBuf {
        self.at.join("unsynced")
    }

    fn leave_unsynced(&self) {
        std::fs::write(self.unsynced(), [b'x'; 8192]).expect("write without syncing");
    }
}

fn cut_power(places: &[&Path]) -> Result<(), String> {
    must(Command::new("perl").args(["-e", SHUTDOWN]).args(places))
}

fn verify(dir: &Path) -> Ran {
    let mut command = Command::new("timeout");
    ran(command.args(["--kill-after=5", "60"]).arg(pintle()).args(["store", "verify", "--data-dir"]).arg(dir))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Values by key.
type Acknowledged = BTreeMap<String, String>;

/// Several writers, each with one write at a time; what they heard to be done.
async fn write(round: usize, addresses: Vec<String>, stop: Arc<AtomicBool>, count: Arc<AtomicUsize>) -> Acknowledged {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write_one(round, writer, addresses.clone(), Arc::clone(&stop), Arc::clone(&count)));
    }
    let mut all = Acknowledged::new();
    while let Some(written) = writers.join_next().await {
        all.extend(written.expect("a writer"));
    }
    all
}

async fn write_one(
    round: usize,
    writer: usize,
    addresses: Vec<String>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
) -> Acknowledged {
    let mut written = Acknowledged::new();
    let (mut number, mut member) = (0, writer);
    while !stop.load(Ordering::Relaxed) {
        let address = addresses[member % addresses.len()].clone();
        member += 1;
        let connecting = tokio::time::timeout(Duration::from_millis(500), KvClient::connect(address)).await;
        let Ok(Ok(mut client)) = connecting else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        loop {
            number += 1;
            let key = format!("w/{round}/{writer}/{number}");
            let value = format!("{key}{}", "v".repeat(number * 31 % 2000));
            let put = PutRequest { key: key.clone().into(), value: value.clone().into(), ..PutRequest::default() };
            let answer = tokio::time::timeout(Duration::from_secs(2), client.put(put)).await;
            // Whatever else is answered, it may have been done or not.
            let Ok(Ok(_)) = answer else { break };
            written.insert(key, value);
            count.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    written
}

async fn read_all(address: &str) -> BTreeMap<String, String> {
    let client = KvClient::connect(address.to_owned()).await.expect("connect");
    let mut client = client.max_decoding_message_size(usize::MAX);
    let range = RangeRequest { key: "w/".into(), range_end: "w0".into(), ..RangeRequest::default() };
    let found = client.range(range).await.expect("read").into_inner();
    let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
    found.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

#[test]
fn one_member_alone_loses_nothing_that_was_acknowledged() {
    let Some(mut powered) = Powered::new(1) else { return };
    let mut acknowledged = Acknowledged::new();
    for round in 0..5 {
        powered.write_and_cut(round, &[0], &mut acknowledged);
    }
}

#[test]
fn three_members_lose_nothing_when_one_or_all_of_them_are_cut() {
    let Some(mut powered) = Powered::new(3) else { return };
    let mut acknowledged = Acknowledged::new();
    for round in 0..3 {
        let leader = powered.store.leader();
        powered.write_and_cut(2 * round, &[leader], &mut acknowledged);
        powered.write_and_cut(2 * round + 1, &[0, 1, 2], &mut acknowledged);
    }
    let follower = (powered.store.leader() + 1) % 3;
    powered.write_and_cut(6, &[follower], &mut acknowledged);
}
