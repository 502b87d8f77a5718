//! `pintle bench store`, small, against a real etcd: every kind of row gives figures of both systems, and nothing is left behind.
//! No figure is judged here.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_tests::{etcd, home, pintle, ran};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// The real etcd, unless it has been told that there is none.
fn real() -> Option<PathBuf> {
    match etcd::real() {
        Ok(programs) => Some(programs.join("etcd")),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// Processes with something of `directory` in their command line.
fn running(directory: &Path) -> Vec<String> {
    let directory = directory.display().to_string();
    let lines = std::fs::read_dir("/proc").expect("read /proc").flatten().filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(&directory).then_some(line)
    });
    lines.collect()
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("read a directory").count()
}

#[test]
fn every_row_has_figures_of_both_and_the_documents_are_written() {
    let Some(etcd) = real() else { return };
    let (home, data) = (home(), home());
    let out = |name: &str| home.path().join(name);
    let mut command = etcd::command(&pintle());
    command.env("TMPDIR", data.path()).args([
        "bench",
        "store",
        "--quick",
        "--members=1",
        "--clients=2",
        "--watchers=3",
    ]);
    command
        .args(["--only=put,list-paged,keep-alive,fan-out,fan-out-keys,memory,restart,compaction,database,overwrite"]);
    command.args(["--load-keys=700", "--keys=600", "--size-gb=0.002", "--overwrite-keys=200", "--overwrite-times=3"]);
    command.args(["--rate=200", "--value-bytes=64"]).arg("--against").arg(etcd);
    command.arg("--json").arg(out("json")).arg("--svg").arg(out("svg")).arg("--markdown").arg(out("md"));
    let told = ran(&mut command).ok();
    assert_eq!((running(data.path()), entries(data.path())), (Vec::new(), 0), "something is left");

    let read = |name: &str| std::fs::read_to_string(out(name)).expect("a file");
    let json: Value = serde_json::from_str(&read("json")).expect("JSON");
    let rows = json["rows"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().filter_map(|row| row["row"].as_str()).collect();
    assert_eq!(names, ["put", "list-paged", "keep-alive", "fan-out", "fan-out-keys"], "{told}");
    for (row, system) in rows.iter().flat_map(|row| [(row, "pintle"), (row, "etcd")]) {
        let figure = |name: &str| row[system][name].as_f64().expect("a figure");
        assert!(figure("per_second") > 0.0 && figure("p50_ms") > 0.0 && figure("p50_ms") <= figure("p999_ms"), "{row}");
        assert!(figure("memory_mb") > 0.0 && figure("disk_mb") > 0.0, "{row}");
        // Whoever acknowledges writes has them on disk.
        assert!(row["row"] != "put" || figure("fsyncs_per_second") > 0.0, "{row}");
    }
    let databases = json["databases"].as_array().expect("databases");
    for row in ["memory", "restart", "compaction", "database", "overwrite"] {
        let of_row: Vec<&Value> = databases.iter().filter(|pair| pair["row"] == row).collect();
        assert!(!of_row.is_empty(), "{row}: {told}");
        for pair in of_row {
            let both = ["pintle", "etcd"].map(|system| pair[system].as_f64().expect("a figure"));
            assert!(both.iter().all(|value| value.is_finite() && *value > 0.0), "{pair}");
            let label = pair["what"].as_str().expect("a label");
            assert!(told.contains(label) && read("md").contains(label), "{label}");
        }
    }
    let verdicts = json["goals"].as_array().expect("goals");
    assert!(verdicts.iter().all(|goal| goal["verdict"] == "met" || goal["verdict"] == "missed"), "{verdicts:?}");
    assert_eq!(read("svg").matches("<rect").count(), verdicts.len());
}

/// A benchmark that is ended with the test.
struct Bench(Child);

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

#[test]
fn interrupted_it_ends_its_members_and_removes_their_data() {
    let Some(etcd) = real() else { return };
    // In the middle of the first system, and of the second.
    for system in ["pintle", "etcd"] {
        let data = home();
        let mut command = Command::new(pintle());
        command.env("TMPDIR", data.path()).args(["bench", "store", "--quick", "--only=put", "--clients=3"]);
        command.args(["--load-keys=500", "--seconds", if system == "etcd" { "3" } else { "50" }]);
        if system == "etcd" {
            command.arg("--runs=9");
        }
        command.arg("--against").arg(&etcd).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut bench = Bench(command.spawn().expect("start a benchmark"));
        let began = Instant::now();
        let place = format!("/{system}/m2/");
        while !running(data.path()).iter().any(|line| line.contains(&place)) {
            assert!(began.elapsed() < DEADLINE, "no third member of {system}: {:?}", running(data.path()));
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let pid = i32::try_from(bench.0.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGINT).expect("interrupt it");
        let ended = loop {
            if let Some(ended) = bench.0.try_wait().expect("wait") {
                break ended;
            }
            assert!(began.elapsed() < DEADLINE, "it does not end");
            std::thread::park_timeout(Duration::from_millis(20));
        };
        assert_eq!(ended.code(), Some(130), "{system}");
        assert_eq!((running(data.path()), entries(data.path())), (Vec::new(), 0), "{system}: something is left");
    }
}
