//! The client half of the store's command line, held against the real etcdctl: the same lines through both, each with a
//! fresh server, must print the same and end with the same code.
//!
//! Three columns run side by side: the real etcdctl with a real etcd, which is the reference; pintle called as `etcdctl`
//! with another real etcd; and the same with pintle called as `etcd`. Without a real etcd the reference is the real etcdctl
//! with a pintle of its own.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_tests::{pintle, tool};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);

/// One line of the transcript.
struct Row {
    line: &'static str,
    /// What comes on standard input.
    input: &'static [u8],
    /// Interrupted after so many lines of output; 0 lets it end by itself.
    lines: usize,
    /// Not asked of pintle's own server, which does not support it yet.
    etcd_only: bool,
    how: How,
}

/// What has to be the same.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// Output, complaints and exit code; ids and addresses aside.
    Whole,
    /// The same, numbers aside: they say how busy a server was.
    Shape,
    /// Complaints and exit code: the output is help, which both have their own of.
    Usage,
    /// Output and exit code: the complaint is pintle's own.
    Output,
}

const fn row(line: &'static str) -> Row {
    Row { line, input: b"", lines: 0, etcd_only: false, how: How::Whole }
}

impl Row {
    const fn input(self, input: &'static str) -> Self {
        Self { input: input.as_bytes(), ..self }
    }

    const fn until(self, lines: usize) -> Self {
        Self { lines, ..self }
    }

    const fn etcd_only(self) -> Self {
        Self { etcd_only: true, ..self }
    }

    const fn how(self, how: How) -> Self {
        Self { how, ..self }
    }
}

/// Keys: from an empty store, so that revisions are known.
const KEYS: &[Row] = &[
    row("get a"),
    row("put a 1"),
    row("get a"),
    row("get a -w json"),
    row("get a -w fields"),
    row("get a -w protobuf"),
    row("get a -w table"),
    row("get a --hex"),
    row("put a 2 --prev-kv"),
    row("put a 3 --prev-kv -w json"),
    row("put a 4 --prev-kv -w fields"),
    row("put b").input("from standard input\n"),
    row("put c -- -dash"),
    row("put -- -k v"),
    row("put '' v"),
    row("put empty ''"),
    row("put bin").input("\u{0}\u{1}\n\t\"<&>é\u{7f}"),
    row("get bin -w fields"),
    row("get bin -w json"),
    row("get bin --hex --print-value-only"),
    row("get bin").how(How::Whole),
    row("put a --ignore-value"),
    row("put nope --ignore-value"),
    row("put a --ignore-value v"),
    row("put a --ignore-lease 5"),
    row("put noval"),
    row("put"),
    row("put a 1 --lease=zz"),
    row("put a 1 --lease=77"),
    row("get"),
    row("get a b c"),
    row("get a c"),
    row("get '' --prefix --keys-only"),
    row("get '' --from-key --limit=2"),
    row("get a --from-key --limit 3 --order=DESCEND"),
    row("get a --prefix --sort-by=MODIFY --order=ascend"),
    row("get '' --prefix --sort-by=create --print-value-only"),
    row("get '' --prefix --sort-by=VERSION --order=DESCEND --keys-only"),
    row("get '' --prefix --sort-by=VALUE --limit=3"),
    row("get '' --prefix --count-only -w fields"),
    row("get '' --prefix --limit=1 -w json"),
    row("get '' --prefix=true --keys-only=false --count-only=false --limit=1"),
    row("get a --rev=2"),
    row("get a --rev=0x3"),
    row("get a --rev=99"),
    row("get a --consistency=s"),
    row("get a --consistency=q"),
    row("get a --count-only"),
    row("get a --print-value-only -w json"),
    row("get a --keys-only --count-only -w fields"),
    row("get a --prefix --from-key"),
    row("get a b --prefix"),
    row("get a --order=foo"),
    row("get a --sort-by=foo"),
    row("get a -w yaml"),
    row("get --nope").how(How::Usage),
    row("get -x").how(How::Usage),
    row("get a --rev=x").how(How::Usage),
    row("get a --rev").how(How::Usage),
    row("get a --prefix=perhaps").how(How::Usage),
    row("get a --dial-timeout=x").how(How::Usage),
    row("nope").how(How::Output),
    row("get a --cert="),
    row("get a --cacert=/nonexistent-file").how(How::Output),
    row("del"),
    row("del a b c"),
    row("del a --prefix --from-key"),
    row("del c -- -k").how(How::Output),
    row("del c --prev-kv"),
    row("del nope"),
    row("del b bz --range --prev-kv -w json"),
    row("del empty -w fields --prev-kv"),
    row("del '' --prefix -w protobuf"),
    row("get '' --prefix"),
    row("version"),
];

const TRANSACTIONS: &[Row] = &[
    row("put a 1"),
    row("txn").input("mod(\"a\") > \"0\"\nval(\"a\") = \"1\"\n\nput a 2\nget a\ndel zz\n\nget b\n\n"),
    row("txn").input("mod(\"a\") > \"0\"\nval(\"a\") = \"1\"\n\nput a 2\n\nget a --hex\nget a\n\n").how(How::Usage),
    row("txn -i").input("ver(\"a\") < \"9\"\nc(\"a\") != \"7\"\n\nput \"k \\x41\" 'q w'\nget \"k A\"\n\n\n"),
    row("txn -w json").input("version(\"a\") = \"2\"\n\nput a 3 --prev-kv\nget a\ndel a --prev-kv\n\n\n"),
    row("txn -w fields").input("create(\"a\") = \"0\"\n\nput a 3\nget a\ndel a --prev-kv\n\n\n"),
    row("txn -w protobuf").input("value(\"a\") = \"3\"\n\nget a --prefix\n\n\n"),
    row("txn").input("\n\n\n"),
    row("txn x"),
    row("txn").input("x\n"),
    row("txn").input("foo(\"a\") = \"0\"\n\n\n\n"),
    row("txn").input("mod(\"a\") = \"x\"\n\n\n\n"),
    row("txn").input("mod(a) = 0\n\n\n\n"),
    row("txn").input("mod(\"a\") = 0\n\n\n\n"),
    row("txn").input("mod(\"a\")= \"1\"\n\n\n\n"),
    row("txn").input("mod(\"a\") = \"1\" x\n\n\n\n"),
    row("txn").input("\nbad x\n\n\n"),
    row("txn").input("\nget\n\n\n"),
    row("txn").input("\nget x --order=foo\n\n\n"),
    row("txn").input("\nput a --nope x\n\n\n").how(How::Usage),
    row("txn").input("\nput a 1\nput a 2\n\n\n"),
    row("txn").input("\n\n"),
    row("compaction"),
    row("compaction x"),
    row("compaction 100"),
    row("compaction 3"),
    row("compact 3"),
    row("compaction 4 --physical"),
    row("get a --rev=1"),
];

const WATCHES: &[Row] = &[
    row("put w 1"),
    row("put w 2"),
    row("put wx 3"),
    row("del w"),
    row("watch w --rev=2").until(9),
    row("watch w --rev=2 --prev-kv").until(13),
    row("watch w --rev=2 --prefix -w json").until(1),
    row("watch w --rev=2 --prefix -w fields").until(30),
    row("watch w --rev=2 -w protobuf").until(4),
    row("watch w wz --rev 4").until(3),
    row("watch w --rev=2 -- sh -c 'env | grep ^ETCD_WATCH | sort'").until(21),
    row("watch w --rev=2 -- false"),
    row("watch w --rev=2 -- /nonexistent-file").how(How::Output),
    row("watch -i").input("watch w --rev 3 --prefix\n").until(9),
    row("watch -i").input("foo\nwatch\n\n"),
    row("watch"),
    row("watch w --"),
    row("watch w x --prefix"),
    row("compaction 4"),
    row("watch w --rev=1"),
    row("watch w --rev=1 -w json"),
];

const LEASES: &[Row] = &[
    row("lease list"),
    row("lease grant 300"),
    row("lease grant 300 -w json"),
    row("lease grant 300 -w fields"),
    row("lease grant 300 -w protobuf"),
    row("lease grant 600"),
    row("put l1 v --lease={lease}"),
    row("put l2 v --lease={lease}"),
    row("get l1 -w fields"),
    row("put l2 --ignore-value --lease={lease}"),
    row("lease timetolive {lease}").how(How::Shape),
    row("lease timetolive {lease} --keys").how(How::Shape),
    row("lease timetolive {lease} --keys -w json").how(How::Shape),
    row("lease timetolive {lease} --keys -w fields").how(How::Shape),
    row("lease timetolive {lease} -w json").how(How::Shape),
    row("lease keep-alive {lease} --once"),
    row("lease keep-alive {lease} --once -w json"),
    row("lease keep-alive {lease} --once -w fields"),
    row("lease keep-alive {lease}").until(1),
    row("lease list").how(How::Shape),
    row("lease list -w json").how(How::Shape),
    row("lease revoke {lease}"),
    row("lease revoke {lease}"),
    row("get l --prefix"),
    row("lease timetolive {lease}"),
    row("lease timetolive {lease} -w json"),
    row("lease keep-alive {lease} --once"),
    row("lease keep-alive {lease}"),
    row("lease").how(How::Usage),
    row("lease grant"),
    row("lease grant x"),
    row("lease grant -5").how(How::Usage),
    row("lease revoke"),
    row("lease revoke zz"),
    row("lease timetolive zz"),
    row("lease timetolive"),
    row("lease keep-alive"),
    row("lease grant 0").how(How::Shape),
];

const HOLDING: &[Row] = &[
    row("lock"),
    row("lock l echo held"),
    row("lock l --ttl 5 -- sh -c 'env | grep ^ETCD_LOCK | sort; exit 7'"),
    row("lock l -- /nonexistent-file").how(How::Output),
    row("lock l").until(1),
    row("lock l -w fields").until(11),
    row("get l --prefix"),
    row("elect e"),
    row("elect"),
    row("elect e p -l"),
    row("elect e prop").until(2),
    row("elect e prop -w fields").until(10),
];

const CLUSTER: &[Row] = &[
    row("member list"),
    row("member list -w json"),
    row("member list -w json --hex"),
    row("member list -w fields"),
    row("member list -w table"),
    row("member list --consistency=s"),
    row("member list --consistency=x"),
    row("endpoint health").how(How::Shape),
    row("endpoint health -w json").how(How::Shape),
    row("endpoint health -w fields").how(How::Shape),
    row("endpoint health -w table").how(How::Shape),
    row("endpoint health -w protobuf"),
    row("endpoint status").how(How::Shape),
    row("endpoint status --cluster -w json").how(How::Shape),
    row("endpoint status -w fields").how(How::Shape),
    row("endpoint status -w table").how(How::Shape),
    row("endpoint hashkv").how(How::Shape),
    row("endpoint hashkv --rev=1 -w json").how(How::Shape),
    row("endpoint hashkv -w fields").how(How::Shape),
    row("endpoint hashkv -w table").how(How::Shape),
    row("endpoint hashkv --rev=99"),
    row("--endpoints=127.0.0.1:1 --command-timeout=300ms endpoint health"),
    row("--endpoints=127.0.0.1:1 --command-timeout=300ms endpoint health -w json").how(How::Shape),
    row("--endpoints=127.0.0.1:1 --command-timeout=300ms endpoint status"),
    row("--endpoints=127.0.0.1:1 --command-timeout=300ms endpoint status --cluster"),
    row("--endpoints=127.0.0.1:1 --command-timeout=300ms get a"),
    row("--endpoints=127.0.0.1:1 --command-timeout=300ms put a 1"),
    row("--endpoints=127.0.0.1:1 --command-timeout=300ms defrag"),
    row("--endpoints=https://{address} --command-timeout=300ms get a"),
    row("--endpoints= get a"),
    row("--endpoints=127.0.0.1:1,{address} get a"),
    row("--endpoints=http://{address} put a 1"),
    row("defrag"),
    row("alarm list"),
    row("alarm list -w json"),
    row("alarm list -w table"),
    row("alarm disarm"),
    row("alarm disarm x"),
    row("move-leader"),
    row("move-leader x"),
    row("move-leader 1"),
    row("member add"),
    row("member add x y"),
    row("member add x http://y"),
    row("member add x"),
    row("member update 1"),
    row("member update zz --peer-urls=http://127.0.0.1:9"),
    row("member remove"),
    row("member remove zz"),
    row("member remove 1"),
    row("member promote 1"),
    row("member update {member} --peer-urls=http://127.0.0.1:9").etcd_only(),
    row("member update {member} --peer-urls=http://127.0.0.1:9 -w json").etcd_only(),
    row("snapshot save"),
    row("snapshot save {home}/saved.db").etcd_only().how(How::Output),
    row("--endpoints={address},{address} snapshot save {home}/two.db").etcd_only(),
];

const AUTH: &[Row] = &[
    row("auth status").etcd_only(),
    row("auth status -w json").etcd_only(),
    row("auth status -w fields").etcd_only(),
    row("role add r").etcd_only(),
    row("role add r").etcd_only(),
    row("role add r2 -w json").etcd_only(),
    row("role grant-permission r readwrite foo").etcd_only(),
    row("role grant-permission r read a b -w fields").etcd_only(),
    row("role grant-permission r write p --prefix").etcd_only(),
    row("role grant-permission r read z --from-key").etcd_only(),
    row("role grant-permission r2 READ '' --prefix").etcd_only(),
    row("role grant-permission r bad x"),
    row("role grant-permission r"),
    row("role grant-permission r read a --prefix --from-key"),
    row("role grant-permission r read a b --prefix"),
    row("role get r").etcd_only(),
    row("role get r2").etcd_only(),
    row("role get r -w json").etcd_only(),
    row("role get r -w fields").etcd_only(),
    row("role get r -w protobuf").etcd_only(),
    row("role get r -w table").etcd_only(),
    row("role get nope").etcd_only(),
    row("role get"),
    row("role list").etcd_only(),
    row("role list -w fields").etcd_only(),
    row("role list -w json").etcd_only(),
    row("role list x"),
    row("role revoke-permission r a b").etcd_only(),
    row("role revoke-permission r z --from-key").etcd_only(),
    row("role revoke-permission r foo").etcd_only(),
    row("role revoke-permission r foo").etcd_only(),
    row("role revoke-permission r"),
    row("user add u:pw").etcd_only(),
    row("user add u:pw").etcd_only(),
    row("user add u2 --no-password").etcd_only(),
    row("user add u3 --new-user-password=x -w json").etcd_only(),
    row("user add u4 --interactive=false").input("word\n").etcd_only(),
    row("user add :x"),
    row("user add"),
    row("user get u").etcd_only(),
    row("user get u -w json").etcd_only(),
    row("user get u -w fields").etcd_only(),
    row("user get nope").etcd_only(),
    row("user list").etcd_only(),
    row("user list -w json").etcd_only(),
    row("user grant-role u r").etcd_only(),
    row("user grant-role u nope").etcd_only(),
    row("user grant-role u"),
    row("user get u --detail").etcd_only(),
    row("user get u").etcd_only(),
    row("user passwd u --interactive=false").input("pw2\n").etcd_only(),
    row("user passwd"),
    row("user delete u2").etcd_only(),
    row("user delete u2").etcd_only(),
    row("auth enable").etcd_only(),
    row("user add root:rp").etcd_only(),
    row("auth enable").etcd_only(),
    row("role get root --user=root:rp").etcd_only(),
    row("get a").etcd_only(),
    row("get a --user=root:rp").etcd_only(),
    row("get a --user=root --password=rp").etcd_only(),
    row("get a --user=root:bad").etcd_only(),
    row("get a --user=u:pw2").etcd_only(),
    row("put p1 v --user=u:pw2").etcd_only(),
    row("watch p --user=u:pw2").etcd_only(),
    row("endpoint health").etcd_only(),
    row("endpoint health --user=u:pw2").etcd_only().how(How::Shape),
    row("endpoint status").etcd_only(),
    row("auth status").etcd_only(),
    row("user revoke-role u r --user=root:rp").etcd_only(),
    row("user revoke-role u r --user=root:rp").etcd_only(),
    row("lock l --user=root:rp -- echo held").etcd_only(),
    row("auth disable --user=u:pw2").etcd_only(),
    row("auth disable --user=root:rp").etcd_only(),
    row("get a --user=root:bad").etcd_only(),
    row("role delete r").etcd_only(),
    row("role delete r").etcd_only(),
    row("auth enable x"),
];

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

/// A real etcd, or why there is none.
fn real_etcd() -> Result<PathBuf, String> {
    let path = tool("sid", "etcdctl").with_file_name("etcd");
    if path.exists() { Ok(path) } else { Err(format!("{} is missing: `make setup` fetches it", path.display())) }
}

/// Runs all rows in all columns. Tells every difference, not only the first.
#[track_caller]
fn compare(rows: &[Row]) {
    let home = pintle_tests::home();
    let link = |name: &str| {
        let path = home.path().join(name);
        std::os::unix::fs::symlink(pintle(), &path).expect("link");
        path
    };
    let (ours, our_server) = (link("etcdctl"), link("etcd"));
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

/// A client with a server of its own.
struct Column {
    name: &'static str,
    client: PathBuf,
    server: Server,
    directory: PathBuf,
    /// The lease granted last.
    lease: String,
    member: String,
}

/// What a line did, without what differs between two servers.
#[derive(Debug, PartialEq)]
struct Did {
    code: Option<i32>,
    output: String,
    complaints: String,
}

impl std::fmt::Display for Did {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.code, self.output, self.complaints)
    }
}

impl Column {
    fn start(name: &'static str, client: &Path, server: &Path, home: &TempDir, number: usize) -> Self {
        let directory = home.path().join(format!("column{number}"));
        std::fs::create_dir(&directory).expect("make a directory");
        let server = Server::start(server, &directory);
        let mut column =
            Self { name, client: client.to_owned(), server, directory, lease: "0".to_owned(), member: String::new() };
        let began = Instant::now();
        loop {
            let (code, output, _) = column.ran(&row("member list"));
            if code == Some(0) {
                column.member = String::from_utf8_lossy(&output).split(',').next().expect("an id").to_owned();
                return column;
            }
            assert!(began.elapsed() < DEADLINE, "{name} does not serve: {}", column.server.log());
        }
    }

    fn run(&mut self, row: &Row) -> Did {
        let (code, output, complaints) = self.ran(row);
        let output = if row.line.contains("-w protobuf") {
            decoded(&output, 0).unwrap_or_else(|| format!("{output:?} is no message"))
        } else {
            String::from_utf8_lossy(&output).into_owned()
        };
        if let Some(granted) = output.strip_prefix("lease ").filter(|rest| rest.contains("granted")) {
            self.lease = granted.split(' ').next().expect("an id").to_owned();
        }
        let complaints = self.complaints(&String::from_utf8_lossy(&complaints));
        let mut did = Did { code, output: self.same(&output, row.how), complaints: self.same(&complaints, row.how) };
        match row.how {
            How::Whole | How::Shape => (),
            How::Usage => {
                did.output.clear();
                did.complaints = did.complaints.lines().filter(|line| line.starts_with("Error: ")).collect();
            }
            How::Output => did.complaints.clear(),
        }
        did
    }

    /// Runs it to its end, or interrupts it after its lines.
    fn ran(&self, row: &Row) -> (Option<i32>, Vec<u8>, Vec<u8>) {
        let line = row.line.replace("{lease}", &self.lease).replace("{address}", &self.server.address);
        let line = line.replace("{member}", &self.member).replace("{home}", &self.directory.display().to_string());
        let mut command = Command::new(&self.client);
        command.env("ETCDCTL_API", "3").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if !line.contains("--endpoints") {
            command.arg(format!("--endpoints={}", self.server.address));
        }
        let mut child = Killed(command.args(words(&line)).spawn().expect("start a client"));
        let mut input = child.0.stdin.take().expect("standard input");
        // It may end without reading.
        let _ = input.write_all(row.input);
        let input = (row.lines > 0).then_some(input);
        let (output, counted) = read(child.0.stdout.take().expect("standard output"));
        let (complaints, _) = read(child.0.stderr.take().expect("standard error"));
        let began = Instant::now();
        let mut lines = 0;
        while row.lines > lines {
            let left = DEADLINE.saturating_sub(began.elapsed());
            match counted.recv_timeout(left) {
                Ok(count) => lines = count,
                Err(_) => break, // too few: the comparison tells
            }
        }
        if row.lines > 0 {
            let id = i32::try_from(child.0.id()).expect("a pid");
            let _ = kill(Pid::from_raw(id), Signal::SIGINT); // it may have ended too early, which its code tells
        }
        let code = loop {
            if let Some(status) = child.0.try_wait().expect("wait for a client") {
                break status.code();
            }
            assert!(began.elapsed() < 2 * DEADLINE, "{} {line} does not end", self.name);
            std::thread::park_timeout(Duration::from_millis(2));
        };
        drop(input);
        (code, output.join().expect("output"), complaints.join().expect("complaints"))
    }

    /// Lines of standard error that scripts look at; not logs and hints.
    fn complaints(&self, text: &str) -> String {
        const HINTS: [&str; 7] = ["{", "warning: ", "Run '", "fetched snapshot", "In etcd v3.6", "Did you mean", "\t"];
        let mut lines: Vec<&str> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !HINTS.iter().any(|hint| line.starts_with(hint))) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines.join("\n")
    }

    /// Takes out of `text` what differs between two servers of the same state.
    fn same(&self, text: &str, how: How) -> String {
        let text = text.replace(&self.server.address, "<address>").replace(&self.server.peer, "<peer>");
        let text = text.replace(&self.directory.display().to_string(), "<home>");
        let mut same = String::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            // Ids of members, clusters and leases, in base ten or sixteen.
            let id = word.len() >= 12 && word.chars().all(|c| c.is_ascii_hexdigit());
            same.push_str(if id { "<id>" } else { word });
            let next = after.chars().next();
            same.extend(next);
            rest = &after[next.map_or(0, char::len_utf8)..];
        }
        if how == How::Shape {
            shape(&same)
        } else if same.starts_with('┌') {
            narrow(&same)
        } else {
            same
        }
    }
}

/// A message, field by field, ids and terms aside. `None` if it is none.
fn decoded(mut bytes: &[u8], depth: usize) -> Option<String> {
    const ID: u64 = 1 << 40;
    fn number(bytes: &mut &[u8]) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = bytes.split_first()?;
            *bytes = rest;
            number |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
    let mut text = String::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes)?;
        let value = match tag & 7 {
            0 => match (tag >> 3, number(&mut bytes)?) {
                (_, ID..) => "<id>".to_owned(),
                // Of a header, which comes first in every answer, or is one.
                (4, _) if depth == 0 || depth == 1 && text.matches("<id>").count() == 2 => "<term>".to_owned(),
                (_, value) => value.to_string(),
            },
            2 => {
                let length = usize::try_from(number(&mut bytes)?).ok().filter(|length| *length <= bytes.len())?;
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                decoded(value, depth + 1).unwrap_or_else(|| format!("{:?}", String::from_utf8_lossy(value)))
            }
            _ => return None,
        };
        text += &format!("{}:{value} ", tag >> 3);
    }
    Some(format!("{{{text}}}"))
}

/// Every number, with its unit and decimals, as `#`.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for c in narrow(text).chars() {
        match c {
            '0'..='9' if shape.ends_with('#') || shape.ends_with("#.") => (),
            '0'..='9' => shape.push('#'),
            _ => shape.push(c),
        }
    }
    let shape = shape.replace("#.#", "#").replace("#.", "#");
    ["#µs", "#ms", "#ns"].iter().fold(shape, |shape, unit| shape.replace(unit, "#s")).replace("# MB", "# kB")
}

/// Tables as if all columns were equally wide.
fn narrow(text: &str) -> String {
    let mut narrow = String::new();
    for c in text.chars() {
        if !(matches!(c, ' ' | '─') && narrow.ends_with(c)) {
            narrow.push(c);
        }
    }
    if narrow.starts_with('┌') { narrow.replace(' ', "") } else { narrow }
}

/// Reads all of a stream, and counts its lines on the way.
fn read(mut stream: impl Read + Send + 'static) -> (std::thread::JoinHandle<Vec<u8>>, mpsc::Receiver<usize>) {
    let (counts, counted) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let (mut all, mut block) = (Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = stream.read(&mut block) {
            all.extend_from_slice(&block[..length]);
            // Nobody may be waiting.
            let _ = counts.send(all.iter().filter(|byte| **byte == b'\n').count());
        }
        all
    });
    (reader, counted)
}

/// Splits at spaces; what stands in single quotes is one word.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        if at % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// A process that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has mostly ended by itself
        let _ = self.0.wait();
    }
}

/// One etcd, whoever made it.
struct Server {
    _process: Killed,
    address: String,
    peer: String,
    log: PathBuf,
}

impl Server {
    fn start(program: &Path, directory: &Path) -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("bind"));
        let [address, peer] = listeners.map(|listener| listener.local_addr().expect("address").to_string());
        let log = directory.join("log");
        let file = std::fs::File::create(&log).expect("create a log");
        let process = Command::new(program)
            .arg("--name=m")
            .arg(format!("--data-dir={}", directory.join("data").display()))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .arg(format!("--initial-advertise-peer-urls=http://{peer}"))
            .arg(format!("--listen-client-urls=http://{address}"))
            .arg(format!("--advertise-client-urls=http://{address}"))
            .arg(format!("--initial-cluster=m=http://{peer}"))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share the log"))
            .stderr(file)
            .spawn()
            .expect("start a server");
        Self { _process: Killed(process), address, peer, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
