//! The client half of the store's command line, held against the real etcdctl: the same lines through both, each with a
//! fresh server, must print the same and end with the same code.
//!
//! Three columns run side by side: the real etcdctl with a real etcd, which is the reference; pintle called as `etcdctl`
//! with another real etcd; and the same with pintle called as `etcd`. Without a real etcd the reference is the real etcdctl
//! with a pintle of its own.

mod column;
mod rows;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use column::{Column, DEADLINE, Killed, Server, command, read, words};
use pintle_tests::{pintle, tool};
use rows::{AUTH, CLUSTER, HOLDING, KEYS, LEASES, Row, TRANSACTIONS, WATCHES, row};
use tempfile::TempDir;

#[test]
fn keys_are_read_and_written_as_by_etcdctl() {
    compare(KEYS);
}

#[test]
fn transactions_are_read_and_told_as_by_etcdctl() {
    compare(TRANSACTIONS);
}

#[test]
fn changes_are_followed_as_by_etcdctl() {
    compare(WATCHES);
}

#[test]
fn leases_are_handled_as_by_etcdctl() {
    compare(LEASES);
}

#[test]
fn locks_and_offices_are_held_as_by_etcdctl() {
    compare(HOLDING);
}

#[test]
fn the_cluster_is_told_of_as_by_etcdctl() {
    compare(CLUSTER);
}

#[test]
fn users_and_roles_are_handled_as_by_etcdctl() {
    compare(AUTH);
}

#[test]
fn a_watch_goes_on_where_it_was_when_its_member_comes_back() {
    let home = pintle_tests::home();
    let mut column = Column::start("pintle", &link(&home, "etcdctl"), &link(&home, "etcd"), &home, 0);
    let spawned = command(&column.client)
        .args(["--endpoints", &column.server.address, "watch", "w", "--rev=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut watch = Killed(spawned.expect("start a watch"));
    let (output, lines) = read(watch.0.stdout.take().expect("standard output"));
    let until = |wanted: usize| {
        let began = Instant::now();
        while lines.recv_timeout(DEADLINE.saturating_sub(began.elapsed())).expect("the watch tells") < wanted {}
    };
    assert_eq!(column.run(&row("put w 1")).output, "OK\n");
    until(3);
    column.server.restart();
    column.wait();
    assert_eq!(column.run(&row("put w 2")).output, "OK\n");
    until(6);
    drop(watch);
    assert_eq!(String::from_utf8_lossy(&output.join().expect("output")), "PUT\nw\n1\nPUT\nw\n2\n");
}

#[test]
fn a_mirror_has_what_there_was_and_what_comes() {
    let home = pintle_tests::home();
    let (client, server) = (link(&home, "etcdctl"), link(&home, "etcd"));
    let mut from = Column::start("from", &client, &server, &home, 0);
    let mut to = Column::start("to", &client, &server, &home, 1);
    for line in ["put a/1 x", "put a/2 y", "put b/1 z"] {
        assert_eq!(from.run(&row(line)).output, "OK\n");
    }
    let arguments = ["--endpoints", &from.server.address, "make-mirror", "--prefix=a/", "--dest-prefix=m/"];
    let spawned = command(&client).args(arguments).arg(&to.server.address).stdin(Stdio::null()).spawn();
    let _mirror = Killed(spawned.expect("start a mirror"));
    let mut until = |wanted: &str| {
        let began = Instant::now();
        while to.run(&row("get '' --prefix")).output != wanted {
            assert!(began.elapsed() < DEADLINE, "not mirrored: {wanted}");
        }
    };
    until("m/1\nx\nm/2\ny\n");
    let both = row("txn").input("\nput a/3 w\ndel a/1\n\n\n");
    assert_eq!(from.run(&both).output, "SUCCESS\n\nOK\n\n1\n");
    until("m/2\ny\nm/3\nw\n");
}

#[test]
fn certificates_are_shown_and_checked() {
    let home = pintle_tests::home();
    let path = |name: &str| home.path().join(name).display().to_string();
    let authority = Authority::new();
    authority.issue(&home, "server");
    authority.issue(&home, "me");
    std::fs::write(path("ca.crt"), authority.certificate.pem()).expect("write a certificate");
    std::fs::write(path("other.crt"), Authority::new().certificate.pem()).expect("write a certificate");
    let server = Server::start_with(
        &link(&home, "etcd"),
        home.path(),
        "https",
        &[
            format!("--cert-file={}", path("server.crt")),
            format!("--key-file={}", path("server.key")),
            format!("--trusted-ca-file={}", path("ca.crt")),
            "--client-cert-auth".to_owned(),
        ],
    );
    let began = Instant::now();
    while !server.log().contains("ready to serve client requests") {
        assert!(began.elapsed() < DEADLINE, "it does not serve: {}", server.log());
        std::thread::yield_now();
    }
    let client = link(&home, "etcdctl");
    let me = [format!("--cert={}", path("me.crt")), format!("--key={}", path("me.key"))];
    let ask = |scheme: &str, more: &[String], seconds: &str| {
        let mut asked = command(&client);
        asked.args(more).args(["put", "a", "1", "--command-timeout", seconds]);
        pintle_tests::ran(asked.env("ETCDCTL_ENDPOINTS", format!("{scheme}{}", server.address)))
    };
    let with = |file: &str| [&me[..], &[format!("--cacert={}", path(file))]].concat();
    assert_eq!(ask("https://", &with("ca.crt"), "30s").ok(), "OK\n");
    assert_eq!(ask("", &with("ca.crt"), "30s").ok(), "OK\n");
    let skip = [&me[..], &["--insecure-skip-tls-verify".to_owned()]].concat();
    assert_eq!(ask("https://", &skip, "30s").ok(), "OK\n");
    for (files, why) in [(with("other.crt"), "invalid peer certificate"), (with("ca.crt")[2..].to_vec(), "Error: ")] {
        let refused = ask("https://", &files, "1s");
        assert!(refused.code == 1 && refused.stdout.is_empty() && refused.stderr.contains(why), "{refused:?}");
    }
    let half = ask("https://", &me[..1], "1s");
    assert!(half.code == 128 && half.stderr.contains("KeyFile and CertFile must both be present"), "{half:?}");
    // The same as a variable and as a flag: one of them is not meant.
    let both = ask("https://", &[format!("--endpoints={}", server.address)], "1s");
    assert!(both.code == 1 && both.stderr.contains("ETCDCTL_ENDPOINTS is shadowed"), "{both:?}");
}

#[test]
fn a_saved_snapshot_is_one_to_etcdutl() {
    let etcd = match real_etcd() {
        Ok(etcd) => etcd,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let home = pintle_tests::home();
    let mut column = Column::start("pintle with etcd", &link(&home, "etcdctl"), &etcd, &home, 0);
    column.run(&row("put a 1"));
    assert_eq!(column.run(&row("snapshot save {home}/saved.db")).output, "Snapshot saved at <home>/saved.db\n");
    let saved = column.directory.join("saved.db");
    let mut etcdutl = command(&etcd.with_file_name("etcdutl"));
    let status = pintle_tests::ran(etcdutl.args(["snapshot", "status"]).arg(&saved)).ok();
    assert!(status.contains(", 2, "), "revision 2: {status}");
    assert!(!column.directory.join("saved.db.part").exists());
}

#[test]
fn files_are_looked_at_as_by_etcdutl() {
    let etcd = match real_etcd() {
        Ok(etcd) => etcd,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let home = pintle_tests::home();
    let mut column = Column::start("pintle with etcd", &link(&home, "etcdctl"), &etcd, &home, 0);
    for line in ["put a 1", "put b 2", "del a", "lease grant 100", "role add r", "compaction 3"] {
        assert_eq!(column.run(&row(line)).code, Some(0), "{line}");
    }
    column.run(&row("put large").input(LARGE));
    assert_eq!(column.run(&row("snapshot save {home}/saved.db")).code, Some(0));
    let saved = column.directory.join("saved.db");
    let ask = |program: &std::path::Path, path: &std::path::Path, more: &[&str]| {
        pintle_tests::ran(command(program).args(["snapshot", "status"]).arg(path).args(more))
    };
    let (etcdutl, ours) = (etcd.with_file_name("etcdutl"), link(&home, "etcdctl"));
    for format in ["simple", "json", "fields", "table"] {
        assert_eq!(ask(&ours, &saved, &["-w", format]).ok(), ask(&etcdutl, &saved, &["-w", format]).ok());
    }
    // What was copied has no checksum, and is longer than its pages.
    let copy = column.directory.join("data/member/snap/db");
    drop(column);
    assert_eq!(ask(&ours, &copy, &["-w", "json"]).ok(), ask(&etcdutl, &copy, &["-w", "json"]).ok());

    let mut raw = std::fs::read(&saved).expect("read the snapshot");
    let at = raw.windows(5).position(|five| five == b"LARGE").expect("the value");
    raw[at] = b'l';
    std::fs::write(&saved, &raw).expect("write the snapshot");
    let refused = ask(&ours, &saved, &[]);
    assert!(refused.code == 1 && refused.stderr.contains("its checksum is wrong: expected sha256 "), "{refused:?}");
    let skipped = ["-w", "json", "--skip-hash-check"];
    assert_eq!(ask(&ours, &saved, &skipped).ok(), ask(&etcdutl, &saved, &skipped[..2]).ok());
    std::fs::write(&saved, &raw[..raw.len() / 2]).expect("write the snapshot");
    let refused = ask(&ours, &saved, &["--skip-hash-check"]);
    assert!(refused.code == 1 && refused.stderr.contains("its end is missing"), "{refused:?}");
}

/// More than a page of a database.
const LARGE: &str = concat!("LARGE", include_str!("main.rs"));

#[test]
fn pintle_store_has_the_same_commands() {
    let home = pintle_tests::home();
    let column = Column::start("pintle", &link(&home, "etcdctl"), &link(&home, "etcd"), &home, 0);
    let store = |line: &str| pintle_tests::ran(command(&pintle()).arg("store").args(words(line)));
    let endpoint = format!("--endpoints={}", column.server.address);
    assert_eq!(store(&format!("{endpoint} put a 1")).ok(), "OK\n");
    assert_eq!(store(&format!("get a --print-value-only {endpoint}")).ok(), "1\n");
    assert_eq!(store("get").code, 128);
    let unknown = store("get a --nope");
    assert_eq!((unknown.code, unknown.stderr.lines().next()), (1, Some("Error: unknown flag: --nope")));
    let help = store("--help").ok();
    for word in ["serve", "snapshot", "--endpoints", "Examples", "Exit codes"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(store("txn --help").ok().contains("value(\"lock\") = \"free\""));
}

/// Signs certificates of `127.0.0.1`.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    fn issue(&self, home: &TempDir, name: &str) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(home.path().join(format!("{name}.crt")), certificate.pem()).expect("write a certificate");
        std::fs::write(home.path().join(format!("{name}.key")), key.serialize_pem()).expect("write a key");
    }
}

/// pintle under the name of a program it stands in for.
fn link(home: &TempDir, name: &str) -> PathBuf {
    let path = home.path().join(name);
    if !path.exists() {
        std::os::unix::fs::symlink(pintle(), &path).expect("link");
    }
    path
}

/// A real etcd, or why there is none.
fn real_etcd() -> Result<PathBuf, String> {
    let path = tool("sid", "etcdctl").with_file_name("etcd");
    if path.exists() { Ok(path) } else { Err(format!("{} is missing: `make setup` fetches it", path.display())) }
}

/// Runs all rows in all columns. Tells every difference, not only the first.
#[track_caller]
fn compare(rows: &[Row]) {
    let home = pintle_tests::home();
    let (ours, our_server) = (link(&home, "etcdctl"), link(&home, "etcd"));
    let real = real_etcd();
    if let Err(why) = &real {
        eprintln!("only with pintle's own server: {why}");
    }
    let reference_server = real.as_ref().unwrap_or(&our_server);
    let mut reference = Column::start("etcdctl with etcd", &tool("sid", "etcdctl"), reference_server, &home, 0);
    let mut columns = Vec::new();
    if let Ok(etcd) = &real {
        columns.push((Column::start("pintle with etcd", &ours, etcd, &home, 1), true));
    }
    columns.push((Column::start("pintle with pintle", &ours, &our_server, &home, 2), false));
    let mut differences = String::new();
    for row in rows.iter().filter(|row| real.is_ok() || !row.etcd_only) {
        let want = reference.run(row);
        for (column, _) in columns.iter_mut().filter(|(_, real)| *real || !row.etcd_only) {
            let got = column.run(row);
            if got != want {
                let input = String::from_utf8_lossy(row.input);
                differences += &format!("--- {} {input:?} ({})\nwant {want}\ngot  {got}\n", row.line, column.name);
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
}
