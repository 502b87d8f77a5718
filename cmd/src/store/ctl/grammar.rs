//! The commands and flags of etcdctl, for `pintle store` and for the program called `etcdctl` alike.
//!
//! Arguments are counted by the commands themselves, which answer a wrong count in etcdctl's words and with its exit code.

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};

use super::go;

/// A client of the store, or of an etcd, with etcdctl's commands.
#[derive(Parser)]
#[command(name = "etcdctl", disable_version_flag = true, max_term_width = 120, after_help = EXAMPLES)]
pub struct Etcdctl {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

pub const EXAMPLES: &str = "\
Examples (PROGRAM is `etcdctl` or `pintle store`):
  PROGRAM put greeting hello                             write a key
  PROGRAM get greeting                                   read it
  PROGRAM get --prefix /registry/ --keys-only --limit 5  the first keys below a prefix
  PROGRAM watch --prefix jobs/ -- sh -c 'echo $ETCD_WATCH_KEY'
  PROGRAM --endpoints=https://a:2379,https://b:2379 --cacert=ca.crt --cert=me.crt --key=me.key endpoint status -w table
  PROGRAM snapshot save backup.db                        a copy of one member's data

Every global flag can be set by ETCDCTL_NAME_IN_CAPITALS instead, such as ETCDCTL_ENDPOINTS.
Exit codes: 0 done, 1 failed, 2 no connection, 3 input not understood, 4 value or format not supported,
5 interrupted or cancelled by the server, 128 wrong arguments; `lock` ends with the code of its command.";

/// Flags of every command. As text here: an empty one, a wrong one and one from the environment are told apart later.
#[derive(Args, Clone, Debug, Default)]
pub struct Globals {
    /// Members to talk to, separated by commas; the next is tried where one does not answer [127.0.0.1:2379]
    #[arg(long, global = true, value_name = "URLS", help_heading = GLOBAL)]
    pub endpoints: Option<String>,
    /// Authorities that servers' certificates are checked against (PEM)
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    pub cacert: Option<String>,
    /// Certificate to show (PEM)
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    pub cert: Option<String>,
    /// Its private key (PEM)
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    pub key: Option<String>,
    /// `false` uses TLS for endpoints without a scheme [true]
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = GLOBAL)]
    pub insecure_transport: Option<String>,
    /// Does not check the server's certificate: whoever is on the way can read and change everything
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = GLOBAL)]
    pub insecure_skip_tls_verify: Option<String>,
    /// NAME or NAME:PASSWORD; the password is asked for if none is given
    #[arg(long, global = true, value_name = "USER", help_heading = GLOBAL)]
    pub user: Option<String>,
    /// Password of --user, which then is only a name
    #[arg(long, global = true, value_name = "PASSWORD", help_heading = GLOBAL)]
    pub password: Option<String>,
    /// How long a connection may take [2s]
    #[arg(long, global = true, value_name = "TIME", help_heading = GLOBAL)]
    pub dial_timeout: Option<String>,
    /// How long a command may take that is not meant to stay [5s]
    #[arg(long, global = true, value_name = "TIME", help_heading = GLOBAL)]
    pub command_timeout: Option<String>,
    /// Silence after which the connection is probed; less than 10s is 10s [2s]
    #[arg(long, global = true, value_name = "TIME", help_heading = GLOBAL)]
    pub keepalive_time: Option<String>,
    /// How long the answer to a probe may take [6s]
    #[arg(long, global = true, value_name = "TIME", help_heading = GLOBAL)]
    pub keepalive_timeout: Option<String>,
    /// How answers are printed: simple, json, fields, table or protobuf [simple]
    #[arg(short, long, global = true, value_name = "FORMAT", help_heading = GLOBAL)]
    pub write_out: Option<String>,
    /// Prints keys and values, in JSON the ids of members, in hexadecimal
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = GLOBAL)]
    pub hex: Option<String>,
    /// Tells on standard error what is asked of whom
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = GLOBAL)]
    pub debug: Option<String>,
    /// Not supported: name the endpoints
    #[arg(short, long, global = true, value_name = "DOMAIN", hide = true)]
    pub discovery_srv: Option<String>,
    #[arg(long, global = true, value_name = "NAME", hide = true)]
    pub discovery_srv_name: Option<String>,
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub insecure_discovery: Option<String>,
}

const GLOBAL: &str = "Global flags";

#[derive(Subcommand)]
pub enum Command {
    /// Read a key, or the keys of a range or prefix
    Get(GetArgs),
    /// Write a key; the value comes from standard input if it is not given
    Put(PutArgs),
    /// Delete a key, or the keys of a range or prefix; prints how many
    Del(DelArgs),
    /// Several reads and writes at once, under conditions read from standard input
    #[command(after_help = TXN_EXAMPLE)]
    Txn(TxnArgs),
    /// Follow changes; with a command after `--`, run it for each
    Watch(WatchArgs),
    /// Forget the history before a revision
    Compaction(CompactionArgs),
    /// Leases: grant, revoke, look at and keep alive
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Hold a lock, until interrupted or while a command runs
    Lock(LockArgs),
    /// Stand for election, or with --listen follow who is elected
    Elect(ElectArgs),
    /// Members of the cluster: list, add, remove, update and promote
    #[command(subcommand)]
    Member(MemberCommand),
    /// Health, status and hashes of members
    Endpoint(EndpointArgs),
    /// The same as `endpoint hashkv`
    #[command(hide = true)]
    Hashkv(HashArgs),
    /// Hand the leadership to another member
    MoveLeader(Words),
    /// Alarms, such as of a full store
    #[command(subcommand)]
    Alarm(AlarmCommand),
    /// Give back unused space of members' data
    Defrag(DefragArgs),
    /// Copies of the data
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Keep a copy of keys in another cluster up to date
    MakeMirror(MirrorArgs),
    /// Authentication: on, off, or which
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Users
    #[command(subcommand)]
    User(UserCommand),
    /// Roles and what they may do
    #[command(subcommand)]
    Role(RoleCommand),
    /// Measure how a cluster does under load
    #[command(subcommand)]
    Check(CheckCommand),
    /// How much may be under a prefix, or be asked by a user; not in etcd
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// The busiest and the largest prefixes of a member, again and again; not in etcd
    Top(TopArgs),
    /// Print the version
    Version,
}

const TXN_EXAMPLE: &str = "\
Three parts, each ended by an empty line: conditions, what to do if all hold, what to do otherwise.
Conditions are TARGET(\"KEY\") OP \"VALUE\" with OP one of = != < > and TARGET one of
value (val), version (ver), create (c), mod (m), lease. Requests are get, put and del with their flags:

  value(\"lock\") = \"free\"

  put lock taken

  get lock
  ⏎";

/// Arguments alone.
#[derive(Args, Clone, Debug)]
pub struct Words {
    #[arg(value_name = "ARGUMENTS")]
    pub words: Vec<OsString>,
}

#[derive(Args, Clone, Debug)]
#[command(override_usage = "get [FLAGS] KEY [RANGE_END]")]
pub struct GetArgs {
    /// KEY, and the first key that is not wanted any more
    #[arg(value_name = "KEY")]
    pub words: Vec<OsString>,
    /// `l`: what the majority has; `s`: what the member asked has
    #[arg(long, value_name = "L|S", default_value = "l")]
    pub consistency: String,
    /// ASCEND or DESCEND
    #[arg(long, value_name = "ORDER", default_value = "", hide_default_value = true)]
    pub order: String,
    /// CREATE, KEY, MODIFY, VALUE or VERSION
    #[arg(long, value_name = "TARGET", default_value = "", hide_default_value = true)]
    pub sort_by: String,
    /// At most so many keys; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = go::flag_int)]
    pub limit: i64,
    /// As it was at this revision; 0 is now
    #[arg(long, value_name = "REVISION", default_value_t = 0, value_parser = go::flag_int)]
    pub rev: i64,
    /// All keys that start with KEY
    #[arg(long)]
    pub prefix: bool,
    /// KEY and all keys after it
    #[arg(long)]
    pub from_key: bool,
    #[arg(long)]
    pub keys_only: bool,
    /// How many there are; needs -w fields
    #[arg(long)]
    pub count_only: bool,
    #[arg(long)]
    pub print_value_only: bool,
}

#[derive(Args, Clone, Debug)]
#[command(override_usage = "put [FLAGS] KEY [VALUE]     (a VALUE that starts with - stands after --)")]
pub struct PutArgs {
    #[arg(value_name = "KEY [VALUE]")]
    pub words: Vec<OsString>,
    /// Lease, in hexadecimal, that the key lives as long as
    #[arg(long, value_name = "ID", default_value = "0")]
    pub lease: String,
    /// Also prints what was there before
    #[arg(long)]
    pub prev_kv: bool,
    /// Keeps the value
    #[arg(long)]
    pub ignore_value: bool,
    /// Keeps the lease
    #[arg(long)]
    pub ignore_lease: bool,
}

#[derive(Args, Clone, Debug)]
#[command(override_usage = "del [FLAGS] KEY [RANGE_END]")]
pub struct DelArgs {
    #[arg(value_name = "KEY [RANGE_END]")]
    pub words: Vec<OsString>,
    /// All keys that start with KEY
    #[arg(long)]
    pub prefix: bool,
    /// KEY and all keys after it
    #[arg(long)]
    pub from_key: bool,
    /// Says that a range is meant
    #[arg(long)]
    pub range: bool,
    /// Also prints what was there
    #[arg(long)]
    pub prev_kv: bool,
}

#[derive(Args, Clone, Debug)]
pub struct TxnArgs {
    #[arg(value_name = "ARGUMENTS", hide = true)]
    pub words: Vec<OsString>,
    /// Asks for each part
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go::switch, action = clap::ArgAction::Set)]
    pub interactive: bool,
}

#[derive(Args, Clone, Debug, Default)]
#[command(override_usage = "watch [FLAGS] KEY [RANGE_END] [-- COMMAND...]\n       watch -i")]
pub struct WatchArgs {
    /// KEY [RANGE_END]; or ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END
    #[arg(value_name = "KEY")]
    pub words: Vec<OsString>,
    /// Run for every event, which it finds in ETCD_WATCH_KEY, _VALUE, _EVENT_TYPE and _REVISION
    #[arg(last = true, value_name = "COMMAND")]
    pub exec: Vec<OsString>,
    /// Reads lines such as `watch KEY` and `progress`
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go::switch, action = clap::ArgAction::Set)]
    pub interactive: bool,
    /// All keys that start with KEY
    #[arg(long)]
    pub prefix: bool,
    /// Starts with the changes of this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0, value_parser = go::flag_int)]
    pub rev: i64,
    /// Also prints what was there before
    #[arg(long)]
    pub prev_kv: bool,
    /// Asks the server to say from time to time how far it is
    #[arg(long)]
    pub progress_notify: bool,
}

#[derive(Args, Clone, Debug)]
pub struct CompactionArgs {
    #[arg(value_name = "REVISION")]
    pub words: Vec<OsString>,
    /// Waits until the space is freed
    #[arg(long)]
    pub physical: bool,
}

#[derive(Subcommand)]
pub enum LeaseCommand {
    /// Grant a lease of so many seconds: grant TTL
    Grant(Words),
    /// End a lease, and its keys with it: revoke ID
    Revoke(Words),
    /// What is left of a lease: timetolive ID
    Timetolive {
        #[arg(value_name = "ID")]
        words: Vec<OsString>,
        /// Also the keys that live as long as it
        #[arg(long)]
        keys: bool,
    },
    /// All leases
    List(Words),
    /// Renew a lease, again and again: keep-alive ID
    KeepAlive {
        #[arg(value_name = "ID")]
        words: Vec<OsString>,
        /// Renews it once
        #[arg(long)]
        once: bool,
    },
}

#[derive(Args, Clone, Debug)]
#[command(override_usage = "lock [FLAGS] NAME [-- COMMAND...]")]
pub struct LockArgs {
    /// NAME of the lock, and the COMMAND that is to hold it
    #[arg(value_name = "NAME")]
    pub words: Vec<OsString>,
    /// Seconds after which the lock of a dead holder is free
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = go::flag_int)]
    pub ttl: i64,
}

#[derive(Args, Clone, Debug)]
#[command(override_usage = "elect NAME PROPOSAL\n       elect --listen NAME")]
pub struct ElectArgs {
    #[arg(value_name = "NAME [PROPOSAL]")]
    pub words: Vec<OsString>,
    /// Only follows who is elected
    #[arg(short, long)]
    pub listen: bool,
}

#[derive(Subcommand)]
pub enum MemberCommand {
    /// Add a member before it is started: add NAME --peer-urls=URLS
    Add {
        #[arg(value_name = "NAME")]
        words: Vec<OsString>,
        /// Where the others reach it, separated by commas
        #[arg(long, value_name = "URLS", default_value = "", hide_default_value = true)]
        peer_urls: String,
        /// Without a vote, until it is promoted
        #[arg(long)]
        learner: bool,
    },
    /// Remove a member: remove ID
    Remove(Words),
    /// Put a new member in a member's place: replace ID|NAME NEWNAME --peer-urls=URLS
    ///
    /// Adds the new member, says what it is to be started with, waits until it runs, has caught up and votes, and removes the old one.
    /// Interrupted, the same command goes on where it was. A new member at the old one's address is possible if the old one is down.
    Replace {
        #[arg(value_name = "ID|NAME NEWNAME")]
        words: Vec<OsString>,
        /// Where the others reach the new member, separated by commas
        #[arg(long, value_name = "URLS", default_value = "", hide_default_value = true)]
        peer_urls: String,
        /// How long to wait for the new member
        #[arg(long, value_name = "DURATION", default_value = "10m")]
        wait: String,
    },
    /// Change where a member is reached: update ID --peer-urls=URLS
    Update {
        #[arg(value_name = "ID")]
        words: Vec<OsString>,
        #[arg(long, value_name = "URLS", default_value = "", hide_default_value = true)]
        peer_urls: String,
    },
    /// List all: id, whether started, name, peer and client addresses, whether a learner
    List {
        #[arg(value_name = "ARGUMENTS", hide = true)]
        words: Vec<OsString>,
        /// `l`: what the majority has; `s`: what the member asked has
        #[arg(long, value_name = "L|S", default_value = "l")]
        consistency: String,
    },
    /// Give a learner a vote: promote ID
    Promote(Words),
}

#[derive(Args)]
pub struct EndpointArgs {
    /// All members of the cluster instead of --endpoints
    #[arg(long, global = true)]
    pub cluster: bool,
    #[command(subcommand)]
    pub command: EndpointCommand,
}

#[derive(Subcommand)]
pub enum EndpointCommand {
    /// Whether each takes requests
    Health(Words),
    /// Version, size, leader and indices of each
    Status(Words),
    /// A hash over the history of each, to compare
    Hashkv {
        #[arg(value_name = "ARGUMENTS", hide = true)]
        words: Vec<OsString>,
        /// Up to this revision; 0 is the newest
        #[arg(long, value_name = "REVISION", default_value_t = 0, value_parser = go::flag_int)]
        rev: i64,
    },
}

#[derive(Args, Clone, Debug)]
pub struct HashArgs {
    /// All members of the cluster instead of --endpoints
    #[arg(long)]
    pub cluster: bool,
    /// Up to this revision; 0 is the newest
    #[arg(long, value_name = "REVISION", default_value_t = 0, value_parser = go::flag_int)]
    pub rev: i64,
}

#[derive(Subcommand)]
pub enum AlarmCommand {
    List(Words),
    /// Take back all alarms
    Disarm(Words),
}

#[derive(Args, Clone, Debug)]
pub struct DefragArgs {
    #[arg(value_name = "ARGUMENTS", hide = true)]
    pub words: Vec<OsString>,
    /// All members of the cluster instead of --endpoints
    #[arg(long)]
    pub cluster: bool,
    /// Not supported
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    pub data_dir: Option<String>,
}

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Fetch a copy of one member's data into a file: save FILE
    Save(Words),
    /// What a file holds: hash, revision, keys of all kinds, bytes: status FILE
    #[command(after_help = super::snapshot::STATUS_HELP)]
    Status {
        #[arg(value_name = "FILE")]
        words: Vec<OsString>,
        /// Does not look at the checksum behind a snapshot
        #[arg(long)]
        skip_hash_check: bool,
    },
    /// Make the data directory of a member of a new cluster from a file; run it for each member, then start them all
    Restore(crate::store::restore::RestoreArgs),
}

#[derive(Args, Clone, Debug)]
#[command(override_usage = "make-mirror [FLAGS] DESTINATION")]
pub struct MirrorArgs {
    #[arg(value_name = "DESTINATION")]
    pub words: Vec<OsString>,
    /// Only keys that start so
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// Only changes from this revision on, without a first copy
    #[arg(long, value_name = "REVISION", default_value_t = 0, value_parser = go::flag_int)]
    pub rev: i64,
    /// What stands there for PREFIX; PREFIX itself if not given
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub dest_prefix: String,
    /// Nothing stands there for PREFIX
    #[arg(long)]
    pub no_dest_prefix: bool,
    /// At most so many changes in one transaction there
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = go::flag_int)]
    pub max_txn_ops: i64,
    #[arg(long, value_name = "FILE")]
    pub dest_cert: Option<String>,
    #[arg(long, value_name = "FILE")]
    pub dest_key: Option<String>,
    #[arg(long, value_name = "FILE")]
    pub dest_cacert: Option<String>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub dest_insecure_transport: Option<String>,
    #[arg(long, value_name = "USER")]
    pub dest_user: Option<String>,
    #[arg(long, value_name = "PASSWORD")]
    pub dest_password: Option<String>,
}

#[derive(Subcommand)]
pub enum AuthCommand {
    /// Ask for users and passwords from now on; needs a user root
    Enable(Words),
    Disable(Words),
    Status(Words),
}

#[derive(Subcommand)]
pub enum UserCommand {
    /// Add a user: add NAME, or NAME:PASSWORD
    Add {
        #[arg(value_name = "NAME")]
        words: Vec<OsString>,
        /// `false` reads the password from standard input
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_parser = go::switch, action = clap::ArgAction::Set)]
        interactive: bool,
        #[arg(long, value_name = "PASSWORD", default_value = "", hide_default_value = true)]
        new_user_password: String,
        /// Known by its certificate alone
        #[arg(long)]
        no_password: bool,
    },
    /// Delete a user: delete NAME
    Delete(Words),
    /// The roles of a user: get NAME
    Get {
        #[arg(value_name = "NAME")]
        words: Vec<OsString>,
        /// Also what the roles may do
        #[arg(long)]
        detail: bool,
    },
    List(Words),
    /// Change a password: passwd NAME
    Passwd {
        #[arg(value_name = "NAME")]
        words: Vec<OsString>,
        /// `false` reads the password from standard input
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_parser = go::switch, action = clap::ArgAction::Set)]
        interactive: bool,
    },
    /// Give a user a role: grant-role USER ROLE
    GrantRole(Words),
    /// Take a role from a user: revoke-role USER ROLE
    RevokeRole(Words),
}

#[derive(Subcommand)]
pub enum RoleCommand {
    /// Add a role: add ROLE
    Add(Words),
    /// Delete a role: delete ROLE
    Delete(Words),
    /// What a role may do: get ROLE
    Get(Words),
    List(Words),
    /// Allow a role something: grant-permission ROLE read|write|readwrite KEY [RANGE_END]
    GrantPermission(PermissionArgs),
    /// Take that back: revoke-permission ROLE KEY [RANGE_END]
    RevokePermission(PermissionArgs),
}

#[derive(Args, Clone, Debug)]
pub struct PermissionArgs {
    #[arg(value_name = "ARGUMENTS")]
    pub words: Vec<OsString>,
    /// All keys that start with KEY
    #[arg(long)]
    pub prefix: bool,
    /// KEY and all keys after it
    #[arg(long)]
    pub from_key: bool,
}

#[derive(Subcommand)]
pub enum CheckCommand {
    /// Write at a steady rate for a minute: is it kept, and how long does the slowest write take?
    Perf(LoadArgs),
    /// Write many keys: how much memory does the server use for them?
    Datascale(LoadArgs),
}

#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    #[arg(value_name = "ARGUMENTS", hide = true)]
    pub words: Vec<OsString>,
    /// How much: s(mall), m(edium), l(arge) or xl(arge)
    #[arg(long, value_name = "SIZE", default_value = "s")]
    pub load: String,
    /// Where keys are written, and deleted afterwards; must be empty
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Forgets the history afterwards
    #[arg(long)]
    pub auto_compact: bool,
    /// Gives back the space afterwards
    #[arg(long)]
    pub auto_defrag: bool,
}

#[derive(Subcommand)]
pub enum QuotaCommand {
    /// Limit a prefix: set PREFIX --keys=N --bytes=N; or a user: set --of-user=NAME --requests=N --bytes=N, for each second and member
    Set(QuotaSetArgs),
    /// Every quota, and what is used of it
    List(Words),
    /// Limit something no more: remove PREFIX, or remove --of-user=NAME
    Remove(QuotaNameArgs),
}

#[derive(Args, Clone, Debug)]
#[command(
    override_usage = "quota set PREFIX [--keys=N] [--bytes=N]\n       quota set --of-user=NAME [--requests=N] [--bytes=N]"
)]
pub struct QuotaSetArgs {
    /// Keys that start so; what is not limited is left away
    #[arg(value_name = "PREFIX")]
    pub words: Vec<OsString>,
    /// A user instead of a prefix
    #[arg(long, value_name = "NAME")]
    pub of_user: Option<String>,
    /// Keys under the prefix at most
    #[arg(long, value_name = "N")]
    pub keys: Option<u64>,
    /// Bytes of these keys and their values at most; or what the user may send and receive in a second
    #[arg(long, value_name = "N")]
    pub bytes: Option<u64>,
    /// Requests of the user in a second at most
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
}

#[derive(Args, Clone, Debug)]
#[command(override_usage = "quota remove PREFIX\n       quota remove --of-user=NAME")]
pub struct QuotaNameArgs {
    #[arg(value_name = "PREFIX")]
    pub words: Vec<OsString>,
    #[arg(long, value_name = "NAME")]
    pub of_user: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    #[arg(value_name = "ARGUMENTS", hide = true)]
    pub words: Vec<OsString>,
    /// Between two looks
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub interval: String,
    /// Parts of the prefixes, each ended by a slash: 1 to 4
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub depth: u32,
    /// Lines of each list
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub rows: usize,
    /// Looks once, over one interval and once keys and bytes are counted
    #[arg(long)]
    pub once: bool,
}

/// Commands that can stand in a transaction.
#[derive(Parser)]
#[command(name = "txn", disable_help_subcommand = true)]
pub struct RequestLine {
    #[command(subcommand)]
    pub request: RequestCommand,
}

#[derive(Subcommand)]
pub enum RequestCommand {
    Get(GetArgs),
    Put(PutArgs),
    Del(DelArgs),
}

/// A line of an interactive watch.
#[derive(Parser)]
#[command(name = "watch")]
pub struct WatchLine {
    #[command(flatten)]
    pub watch: WatchArgs,
}
