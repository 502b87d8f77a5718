//! One column of the comparison: a client, a server of its own, and what of their doings can be compared.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::rows::{How, Row, row};

pub const DEADLINE: Duration = Duration::from_secs(30);

/// A client with a server of its own.
pub struct Column {
    pub name: &'static str,
    pub client: PathBuf,
    pub server: Server,
    pub directory: PathBuf,
    /// The lease granted last.
    lease: String,
    member: String,
    /// The member added last.
    added: String,
}

/// What a line did, without what differs between two servers.
#[derive(Debug, PartialEq)]
pub struct Did {
    pub code: Option<i32>,
    pub output: String,
    pub complaints: String,
}

impl std::fmt::Display for Did {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.code, self.output, self.complaints)
    }
}

impl Column {
    pub fn start(name: &'static str, client: &Path, server: &Path, home: &TempDir, number: usize) -> Self {
        let directory = home.path().join(format!("column{number}"));
        std::fs::create_dir(&directory).expect("make a directory");
        let server = Server::start(server, &directory);
        let mut column = Self {
            name,
            client: client.to_owned(),
            server,
            directory,
            lease: "0".to_owned(),
            member: String::new(),
            added: "0".to_owned(),
        };
        column.wait();
        column
    }

    /// Until it serves.
    pub fn wait(&mut self) {
        let began = Instant::now();
        loop {
            let (code, output, _) = self.ran(&row("member list"));
            if code == Some(0) {
                self.member = String::from_utf8_lossy(&output).split(',').next().expect("an id").to_owned();
                return;
            }
            assert!(began.elapsed() < DEADLINE, "{} does not serve: {}", self.name, self.server.log());
        }
    }

    pub fn run(&mut self, row: &Row) -> Did {
        let (code, output, complaints) = self.ran(row);
        let output = if row.line.contains("-w protobuf") {
            decoded(&output, 0).unwrap_or_else(|| format!("{output:?} is no message"))
        } else {
            String::from_utf8_lossy(&output).into_owned()
        };
        if let Some(granted) = output.strip_prefix("lease ").filter(|rest| rest.contains("granted")) {
            self.lease = granted.split(' ').next().expect("an id").to_owned();
        }
        if let Some(added) = output.strip_prefix("Member ").filter(|rest| rest.contains(" added ")) {
            self.added = added.split_whitespace().next().expect("an id").to_owned();
        }
        let complaints = self.complaints(&String::from_utf8_lossy(&complaints));
        let mut did = Did { code, output: self.same(&output, row.how), complaints: self.same(&complaints, row.how) };
        match row.how {
            How::Whole | How::Shape => (),
            How::Sorted => {
                let mut items: Vec<&str> = did.output.split([',', '\n', '"']).collect();
                items.sort_unstable();
                did.output = items.join(",");
            }
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
        let line = line
            .replace("{member}", &self.member)
            .replace("{added}", &self.added)
            .replace("{home}", &self.directory.display().to_string());
        let mut command = command(&self.client);
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
        const HINTS: [&str; 8] =
            ["{", "warning: ", "Run '", "fetched snapshot", "In etcd v3.6", "Did you mean", "Deprecated: ", "\t"];
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
        for term in 0..10 {
            for name in ["raft_term\":", "RaftTerm\" : "] {
                same = same.replace(&format!("{name}{term}"), &format!("{name}<term>"));
            }
        }
        // Ids are padded to sixteen places: one blank for every zero they begin with.
        while same.contains("  <id>") {
            same = same.replace("  <id>", " <id>");
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
pub fn read(mut stream: impl Read + Send + 'static) -> (std::thread::JoinHandle<Vec<u8>>, mpsc::Receiver<usize>) {
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

/// A program without the variables of whoever runs the tests.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD")) {
        command.env_remove(name);
    }
    command
}

/// Splits at spaces; what stands in single quotes is one word.
pub fn words(line: &str) -> Vec<String> {
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
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has mostly ended by itself
        let _ = self.0.wait();
    }
}

/// One etcd, whoever made it.
pub struct Server {
    process: Killed,
    program: PathBuf,
    arguments: Vec<String>,
    pub address: String,
    peer: String,
    log: PathBuf,
}

impl Server {
    pub fn start(program: &Path, directory: &Path) -> Self {
        Self::start_with(program, directory, "http", &[])
    }

    pub fn start_with(program: &Path, directory: &Path, scheme: &str, more: &[String]) -> Self {
        let ports = pintle_tests::free_ports(2);
        let (address, peer) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1]));
        let mut arguments = vec![
            "--name=m".to_owned(),
            format!("--data-dir={}", directory.join("data").display()),
            format!("--listen-peer-urls=http://{peer}"),
            format!("--initial-advertise-peer-urls=http://{peer}"),
            format!("--listen-client-urls={scheme}://{address}"),
            format!("--advertise-client-urls={scheme}://{address}"),
            format!("--initial-cluster=m=http://{peer}"),
        ];
        arguments.extend_from_slice(more);
        let log = directory.join("log");
        let process = Self::spawn(program, &arguments, &log);
        Self { process, program: program.to_owned(), arguments, address, peer, log }
    }

    fn spawn(program: &Path, arguments: &[String], log: &Path) -> Killed {
        let file = std::fs::File::options().create(true).append(true).open(log).expect("open a log");
        let process = command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share the log"))
            .stderr(file)
            .spawn();
        Killed(process.expect("start a server"))
    }

    /// Kills it, and starts it with the same data.
    pub fn restart(&mut self) {
        let _ = self.process.0.kill(); // a dead one is what is wanted
        self.process.0.wait().expect("wait for a server");
        self.process = Self::spawn(&self.program, &self.arguments, &self.log);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
