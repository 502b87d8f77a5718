//! Answers on standard output, in etcdctl's five formats.
//!
//! A format that an answer cannot be printed in is an error with etcdctl's code, after the command was carried out.

mod fields;
mod json;
mod simple;
mod table;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use bytes::Bytes;
use pintle_proto::authpb::Permission;
use pintle_proto::etcdserverpb as e;
use prost::Message;

use super::rpc::Answer as Named;
use super::snapshot::FileStatus;
use super::{Done, Failure};

/// 128 and the number of the signal SIGPIPE.
const BROKEN_PIPE: u8 = 141;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Simple,
    Fields,
    Json,
    Protobuf,
    Table,
}

impl Format {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        Ok(match text {
            "simple" => Self::Simple,
            "fields" => Self::Fields,
            "json" => Self::Json,
            "protobuf" => Self::Protobuf,
            "table" => Self::Table,
            _ => return Err(Failure::bad_feature("unsupported output format")),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Fields => "fields",
            Self::Json => "json",
            Self::Protobuf => "protobuf",
            Self::Table => "table",
        }
    }
}

/// What there is to print.
pub enum Answer<'a> {
    Get(&'a e::RangeResponse),
    Put(&'a e::PutResponse),
    Del(&'a e::DeleteRangeResponse),
    Txn(&'a e::TxnResponse),
    Watch(&'a e::WatchResponse),
    Grant(&'a e::LeaseGrantResponse),
    KeepAlive(&'a e::LeaseKeepAliveResponse),
    TimeToLive(&'a e::LeaseTimeToLiveResponse, Keys),
    Leases(&'a e::LeaseLeasesResponse),
    MemberList(&'a e::MemberListResponse),
    Health(&'a [Health]),
    Status(&'a [(String, e::StatusResponse)]),
    HashKv(&'a [(String, e::HashKvResponse)]),
    /// Leader and target.
    Moved(u64, u64),
    Alarm(&'a e::AlarmResponse),
    File(&'a FileStatus),
    Role(&'a str, &'a e::AuthRoleGetResponse),
    Roles(&'a e::AuthRoleListResponse),
    /// A sentence to people, the whole answer to programs; in `fields` its header, or nothing.
    Told {
        text: String,
        whole: Whole,
        in_fields: bool,
    },
}

/// Whether keys were asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    Asked,
    NotAsked,
}

/// An answer of any kind.
pub struct Whole {
    name: &'static str,
    bytes: Vec<u8>,
    header: e::ResponseHeader,
}

impl Whole {
    pub fn of<A: Named>(answer: &A) -> Self {
        Self { name: A::NAME, bytes: answer.encode_to_vec(), header: answer.header() }
    }
}

/// How one member does.
pub struct Health {
    pub endpoint: String,
    pub health: bool,
    pub took: String,
    pub error: String,
}

#[derive(Clone, Copy)]
pub struct Printer {
    pub format: Format,
    pub hex: bool,
    pub value_only: bool,
}

impl Printer {
    /// # Errors
    /// The format does not exist for this answer; or standard output is gone.
    pub fn print(self, answer: &Answer<'_>) -> Done {
        let printed = match self.format {
            Format::Simple => Some(simple::text(answer, self)),
            Format::Fields => fields::text(answer),
            Format::Json => json::text(answer, self.hex),
            Format::Protobuf => protobuf(answer),
            Format::Table => table::text(answer).map(String::into_bytes),
        };
        let unsupported = || Failure::bad_feature(format!("{} not supported as output format", self.format.name()));
        out(printed.ok_or_else(unsupported)?)
    }

    /// A sentence, and in the other formats the answer it is about.
    pub fn tell<A: Named>(self, text: String, answer: &A) -> Done {
        self.print(&Answer::Told { text, whole: Whole::of(answer), in_fields: true })
    }

    /// The same for answers that `fields` does not show.
    pub fn tell_only<A: Named>(self, text: String, answer: &A) -> Done {
        self.print(&Answer::Told { text, whole: Whole::of(answer), in_fields: false })
    }
}

/// Writes to standard output, at once and in one piece: a reader waits for every event.
///
/// # Errors
/// The reader went away: silently, with the code that a shell gives to a program that died of it.
pub fn out(text: impl AsRef<[u8]>) -> Done {
    let written = std::io::stdout().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).write_all(text.as_ref()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::told(BROKEN_PIPE),
        _ => Failure::error(format!("write to standard output: {error}")),
    })
}

/// A table of what etcdctl does not have, of box-drawing lines; each row has a cell below each heading.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    table::draw(headings, rows)
}

fn protobuf(answer: &Answer<'_>) -> Option<Vec<u8>> {
    // Of leases etcdctl prints the header alone, and scripts read that.
    let header = |header: &Option<e::ResponseHeader>| header.unwrap_or_default().encode_to_vec();
    Some(match answer {
        Answer::Get(answer) => answer.encode_to_vec(),
        Answer::Put(answer) => answer.encode_to_vec(),
        Answer::Del(answer) => answer.encode_to_vec(),
        Answer::Txn(answer) => answer.encode_to_vec(),
        Answer::Watch(answer) => {
            let shown = e::WatchResponse { watch_id: 0, cancel_reason: String::new(), ..(*answer).clone() };
            shown.encode_to_vec()
        }
        Answer::Grant(answer) => header(&answer.header),
        Answer::KeepAlive(answer) => header(&answer.header),
        Answer::TimeToLive(answer, _) => header(&answer.header),
        Answer::Leases(answer) => header(&answer.header),
        Answer::MemberList(answer) => answer.encode_to_vec(),
        Answer::Alarm(answer) => answer.encode_to_vec(),
        Answer::Role(_, answer) => answer.encode_to_vec(),
        Answer::Roles(answer) => answer.encode_to_vec(),
        Answer::Told { whole, .. } => whole.bytes.clone(),
        Answer::Health(_) | Answer::Status(_) | Answer::HashKv(_) | Answer::Moved(..) | Answer::File(_) => {
            return None;
        }
    })
}

/// The rows of a list of members, as lines and as a table.
fn member_rows(answer: &e::MemberListResponse) -> Vec<Vec<String>> {
    let row = |member: &e::Member| {
        vec![
            format!("{:x}", member.id),
            if member.name.is_empty() { "unstarted" } else { "started" }.to_owned(),
            member.name.clone(),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            member.is_learner.to_string(),
        ]
    };
    answer.members.iter().map(row).collect()
}

fn status_rows(list: &[(String, e::StatusResponse)]) -> Vec<Vec<String>> {
    let row = |(endpoint, status): &(String, e::StatusResponse)| {
        let member = status.header.unwrap_or_default().member_id;
        vec![
            endpoint.clone(),
            format!("{member:x}"),
            status.version.clone(),
            super::go::size(u64::try_from(status.db_size).unwrap_or_default()),
            (status.leader == member).to_string(),
            status.is_learner.to_string(),
            status.raft_term.to_string(),
            status.raft_index.to_string(),
            status.raft_applied_index.to_string(),
            status.errors.join(", "),
        ]
    };
    list.iter().map(row).collect()
}

fn hash_rows(list: &[(String, e::HashKvResponse)]) -> Vec<Vec<String>> {
    list.iter().map(|(endpoint, hash)| vec![endpoint.clone(), hash.hash.to_string()]).collect()
}

fn file_rows(status: &FileStatus) -> Vec<Vec<String>> {
    let size = super::go::size(status.bytes);
    vec![vec![format!("{:x}", status.hash), status.revision.to_string(), status.keys.to_string(), size]]
}

fn health_rows(list: &[Health]) -> Vec<Vec<String>> {
    let row = |one: &Health| vec![one.endpoint.clone(), one.health.to_string(), one.took.clone(), one.error.clone()];
    list.iter().map(row).collect()
}

/// Whether a permission lets read, and whether it lets write.
fn lets(permission: &Permission) -> (bool, bool) {
    (permission.perm_type != 1, permission.perm_type != 0)
}

fn event_type(event: &pintle_proto::mvccpb::Event) -> &'static str {
    if event.r#type == 0 { "PUT" } else { "DELETE" }
}

fn alarm_type(alarm: i32) -> String {
    match alarm {
        0 => "NONE".to_owned(),
        1 => "NOSPACE".to_owned(),
        2 => "CORRUPT".to_owned(),
        other => other.to_string(),
    }
}

fn permission_type(kind: i32) -> &'static str {
    match kind {
        0 => "READ",
        1 => "WRITE",
        _ => "READWRITE",
    }
}

fn line(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(bytes);
    text.push(b'\n');
}

/// Bytes as `\x61\x62`.
fn hexed(bytes: &Bytes) -> Vec<u8> {
    bytes.iter().flat_map(|byte| format!("\\x{byte:02x}").into_bytes()).collect()
}
