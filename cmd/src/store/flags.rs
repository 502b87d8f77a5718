//! The flags of `pintle store serve`: etcd's names, defaults and forms, from the command line, the environment and a file.
//!
//! One table says what there is; what is read from it is text by name, with where it came from. Sources merge per key: the
//! command line wins over `ETCD_` variables, these over the file (etcd drops the others when a file is given).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// May stand without a value.
    Switch,
    Number,
    /// Go's form, such as `1h30m`; whole nanoseconds in a file.
    Time,
}

/// What becomes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Used,
    /// Accepted, with one warning that says why it changes nothing.
    Moot(&'static str),
    /// Refused: who sets it relies on it, and would be worse off than they think.
    Refused,
}

pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub effect: Effect,
    pub help: &'static str,
}

const fn used(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, effect: Effect::Used, help }
}

const fn moot(name: &'static str, kind: Kind, why: &'static str) -> Flag {
    Flag { name, kind, default: "", effect: Effect::Moot(why), help: "" }
}

const fn refused(name: &'static str, kind: Kind) -> Flag {
    Flag { name, kind, default: "", effect: Effect::Refused, help: "" }
}

const STORAGE: &str = "the store has no bbolt file and no separate write-ahead log to tune";
const DISCOVERY: &str = "members are named by --initial-cluster, there is no discovery";
const NOT_YET: &str = "not supported";
const PEERS: &str = "a peer that does not answer pings for two seconds is taken for gone";

/// Groups of flags as `--help` shows them.
pub const GROUPS: &[(&str, &[Flag])] = &[
    ("Member", MEMBER),
    ("Cluster", CLUSTER),
    ("Security", SECURITY),
    ("Other", OTHER),
    ("Of this store, unknown to etcd", OWN),
];

const MEMBER: &[Flag] = &[
    used("name", Kind::Text, "default", "name of this member"),
    used("data-dir", Kind::Text, "", "where data is kept; NAME.etcd if not given"),
    used("listen-peer-urls", Kind::Text, "http://localhost:2380", "where the other members connect"),
    used("listen-client-urls", Kind::Text, "http://localhost:2379", "where clients connect, separated by commas"),
    used("heartbeat-interval", Kind::Number, "100", "milliseconds between heartbeats"),
    used("election-timeout", Kind::Number, "1000", "milliseconds without a heartbeat that start an election"),
    used("max-txn-ops", Kind::Number, "128", "operations in one branch of a transaction"),
    used("max-request-bytes", Kind::Number, "1572864", "largest request"),
    used(
        "snapshot-count",
        Kind::Number,
        "100000",
        "entries applied that ask for the next snapshot, as 64 MiB of them do",
    ),
    used(
        "snapshot-catchup-entries",
        Kind::Number,
        "4096",
        "entries kept although a snapshot holds them; 64 MiB at least",
    ),
    used("quota-backend-bytes", Kind::Text, "0", "bytes of data beyond which nothing is taken in; 0 is no limit"),
    moot("wal-dir", Kind::Text, STORAGE),
    moot("max-wals", Kind::Number, STORAGE),
    moot("max-snapshots", Kind::Number, STORAGE),
    moot("memory-mlock", Kind::Switch, STORAGE),
    moot("backend-bbolt-freelist-type", Kind::Text, STORAGE),
    moot("backend-batch-interval", Kind::Time, STORAGE),
    moot("backend-batch-limit", Kind::Number, STORAGE),
    moot("initial-election-tick-advance", Kind::Switch, "members that start ask each other before they wait"),
    used(
        "max-concurrent-streams",
        Kind::Number,
        "4096",
        "requests and streams open at once on one connection; 0 is no bound",
    ),
    used("grpc-keepalive-interval", Kind::Time, "30s", "silence after which a client is pinged; at most 5m"),
    used("grpc-keepalive-timeout", Kind::Time, "20s", "time for its answer, then the connection is closed"),
    moot("grpc-keepalive-min-time", Kind::Time, "no client is cut off because it pings often"),
    moot("socket-reuse-port", Kind::Switch, "two processes on one port would each get half of the clients"),
    moot("socket-reuse-address", Kind::Switch, "it is always so"),
    moot("enable-grpc-gateway", Kind::Switch, "the JSON gateway is always served"),
    moot("raft-read-timeout", Kind::Time, PEERS),
    moot("raft-write-timeout", Kind::Time, PEERS),
    moot("feature-gates", Kind::Text, "there are none: what is there is on"),
];

const CLUSTER: &[Flag] = &[
    used("initial-advertise-peer-urls", Kind::Text, "http://localhost:2380", "where the other members reach this one"),
    used("advertise-client-urls", Kind::Text, "http://localhost:2379", "where clients reach this member"),
    used("initial-cluster", Kind::Text, "", "all founding members, NAME=PEER-URL, separated by commas"),
    used("initial-cluster-state", Kind::Text, "new", "`new` founds a cluster, `existing` joins one"),
    used("initial-cluster-token", Kind::Text, "etcd-cluster", "tells clusters with the same addresses apart"),
    used("auto-compaction-mode", Kind::Text, "periodic", "`periodic`: by time, `revision`: by number of revisions"),
    used(
        "auto-compaction-retention",
        Kind::Text,
        "0",
        "history kept: hours, or a time such as 10m, or revisions; 0 keeps all",
    ),
    moot("strict-reconfig-check", Kind::Switch, "a change that would cost the quorum is always refused"),
    moot("pre-vote", Kind::Switch, "candidates always ask first"),
    refused("discovery", Kind::Text),
    moot("discovery-token", Kind::Text, DISCOVERY),
    moot("discovery-endpoints", Kind::Text, DISCOVERY),
    moot("discovery-fallback", Kind::Text, DISCOVERY),
    moot("discovery-proxy", Kind::Text, DISCOVERY),
    refused("discovery-srv", Kind::Text),
    moot("discovery-srv-name", Kind::Text, DISCOVERY),
];

const SECURITY: &[Flag] = &[
    used("cert-file", Kind::Text, "", "certificate shown to clients (PEM)"),
    used("key-file", Kind::Text, "", "its private key (PEM)"),
    used("client-cert-auth", Kind::Switch, "false", "clients need a certificate"),
    used(
        "trusted-ca-file",
        Kind::Text,
        "",
        "authorities that clients' certificates are checked against (PEM): clients need one",
    ),
    used("peer-cert-file", Kind::Text, "", "certificate shown to other members, as server and as client (PEM)"),
    used("peer-key-file", Kind::Text, "", "its private key (PEM)"),
    used("peer-client-cert-auth", Kind::Switch, "false", "other members need a certificate"),
    used("peer-trusted-ca-file", Kind::Text, "", "authorities that members' certificates are checked against (PEM)"),
    used("client-crl-file", Kind::Text, "", "revoked certificates of clients (PEM or DER)"),
    used("client-cert-allowed-hostname", Kind::Text, "", "clients' certificates are for one of these hosts"),
    refused("client-cert-file", Kind::Text),
    refused("client-key-file", Kind::Text),
    used("auto-tls", Kind::Switch, "false", "clients are shown a certificate that this member makes for itself"),
    used("peer-auto-tls", Kind::Switch, "false", "members make their own certificates and do not check each other's"),
    refused("peer-client-cert-file", Kind::Text),
    refused("peer-client-key-file", Kind::Text),
    used("peer-crl-file", Kind::Text, "", "revoked certificates of members (PEM or DER)"),
    used("peer-cert-allowed-cn", Kind::Text, "", "members' certificates have one of these common names"),
    used("peer-cert-allowed-hostname", Kind::Text, "", "members' certificates are for one of these hosts"),
    moot("peer-skip-client-san-verification", Kind::Switch, NOT_YET),
    used("self-signed-cert-validity", Kind::Number, "1", "years that certificates made by members are valid"),
    used("cipher-suites", Kind::Text, "", "suites of TLS 1.2 that are spoken, by Go's names, separated by commas"),
    used("tls-min-version", Kind::Text, "TLS1.2", "oldest TLS that is spoken: TLS1.2 or TLS1.3"),
    used("tls-max-version", Kind::Text, "", "newest TLS that is spoken: TLS1.2 or TLS1.3"),
    used("cors", Kind::Text, "*", "origins whose web pages may read answers, separated by commas; * for all"),
    used(
        "host-whitelist",
        Kind::Text,
        "*",
        "hosts that are answered for in plain text, separated by commas; * for all",
    ),
    used("auth-token", Kind::Text, "simple", "`simple`, or jwt,pub-key=FILE,priv-key=FILE,sign-method=RS256,ttl=10m"),
    used("bcrypt-cost", Kind::Number, "10", "work of hashing a password, 4 to 31: it doubles with each step"),
    used("auth-token-ttl", Kind::Number, "300", "seconds a simple token lives without being used"),
];

const OTHER: &[Flag] = &[
    used("config-file", Kind::Text, "", "YAML file with these names as keys"),
    used("log-level", Kind::Text, "info", "debug, info, warn, error"),
    used("version", Kind::Switch, "false", "print the version and end"),
    used("help", Kind::Switch, "false", "print this text and end"),
    used(
        "listen-client-http-urls",
        Kind::Text,
        "",
        "where clients connect without gRPC; the client URLs are then for gRPC alone",
    ),
    used("listen-metrics-urls", Kind::Text, "", "where metrics and health are served besides"),
    moot("metrics", Kind::Text, "all metrics are always there"),
    moot("enable-pprof", Kind::Switch, NOT_YET),
    moot("logger", Kind::Text, "lines are JSON, on standard error"),
    moot("log-outputs", Kind::Text, "lines are JSON, on standard error"),
    moot("log-format", Kind::Text, "lines are JSON, on standard error"),
    moot("enable-log-rotation", Kind::Switch, "lines are JSON, on standard error"),
    moot("log-rotation-config-json", Kind::Text, "lines are JSON, on standard error"),
    moot("warning-unary-request-duration", Kind::Time, NOT_YET),
    moot("warning-apply-duration", Kind::Time, NOT_YET),
    moot("enable-distributed-tracing", Kind::Switch, NOT_YET),
    moot("distributed-tracing-address", Kind::Text, NOT_YET),
    moot("distributed-tracing-service-name", Kind::Text, NOT_YET),
    moot("distributed-tracing-instance-id", Kind::Text, NOT_YET),
    moot("distributed-tracing-sampling-rate", Kind::Number, NOT_YET),
    moot("corrupt-check-time", Kind::Time, NOT_YET),
    moot("compact-hash-check-time", Kind::Time, NOT_YET),
    moot("compaction-batch-limit", Kind::Number, STORAGE),
    moot("compaction-sleep-interval", Kind::Time, STORAGE),
    used("watch-progress-notify-interval", Kind::Time, "10m", "between two progress notifications of an idle watch"),
    moot("bootstrap-defrag-threshold-megabytes", Kind::Number, STORAGE),
    used(
        "max-learners",
        Kind::Number,
        "1",
        "members that only learn, beside those that are to vote once they have caught up",
    ),
    moot("downgrade-check-time", Kind::Time, NOT_YET),
    used(
        "force-new-cluster",
        Kind::Switch,
        "false",
        "after the quorum was lost for good: go on as the only member, with all this one has; never start the others again",
    ),
    moot("unsafe-no-fsync", Kind::Switch, "what is acknowledged is always synced"),
];

/// What etcd does not have.
const OWN: &[Flag] = &[
    used("audit-log", Kind::Text, "", "file that is told of every write of a user, as lines of JSON; never of values"),
    used("audit-log-max-bytes", Kind::Number, "67108864", "size from which that file is put aside"),
    used("audit-log-max-files", Kind::Number, "10", "files of the audit log that are kept"),
];

/// Blocks of the file and what their keys are called on the command line.
const BLOCKS: [(&str, &str); 2] = [("client-transport-security", ""), ("peer-transport-security", "peer-")];

pub fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|(_, flags)| flags.iter())
}

fn find(name: &str) -> Option<&'static Flag> {
    // Before 3.6 what was young had a prefix.
    let name = name.strip_prefix("experimental-").unwrap_or(name);
    all().find(|flag| flag.name == name)
}

/// What was given, by flag.
#[derive(Debug, Default)]
pub struct Given(BTreeMap<&'static str, String>);

impl Given {
    /// Reads `args` (without the program's name), variables and the file these name.
    pub fn read(args: &[String], variables: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let mut given = Self::from_args(args)?;
        given.add(Self::from_variables(variables)?);
        if let Some(path) = given.0.get("config-file").cloned() {
            let text = std::fs::read_to_string(&path).with_context(|| format!("read configuration {path}"))?;
            given.add(Self::from_file(&text).with_context(|| format!("configuration {path}"))?);
        }
        Ok(given)
    }

    /// Takes over what is not there yet.
    fn add(&mut self, other: Self) {
        for (name, value) in other.0 {
            self.0.entry(name).or_insert(value);
        }
    }

    fn from_args(args: &[String]) -> Result<Self> {
        let mut given = BTreeMap::new();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let word = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|word| !word.is_empty());
            let Some(word) = word else { bail!("'{arg}' is not a valid flag") };
            let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
            let name = if name == "h" { "help" } else { name };
            let flag = find(name).with_context(|| format!("flag provided but not defined: -{name}"))?;
            let value = match value {
                Some(value) => value.to_owned(),
                None if flag.kind == Kind::Switch => "true".to_owned(),
                None => args.next().with_context(|| format!("flag needs an argument: -{name}"))?.clone(),
            };
            given.insert(flag.name, value);
        }
        Ok(Self(given))
    }

    fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let mut given = BTreeMap::new();
        for (variable, value) in variables {
            let Some(name) = variable.strip_prefix("ETCD_") else { continue };
            let name = name.to_lowercase().replace('_', "-");
            match find(&name) {
                Some(flag) => drop(given.insert(flag.name, value)),
                None => tracing::warn!(variable, "unrecognized environment variable"),
            }
        }
        Ok(Self(given))
    }

    fn from_file(text: &str) -> Result<Self> {
        let file: Value = serde_saphyr::from_str(text)?;
        let mut given = BTreeMap::new();
        let empty = serde_json::Map::new();
        let file =
            if file.is_null() { &empty } else { file.as_object().context("it is not a map of names to values")? };
        for (key, value) in file {
            match BLOCKS.iter().find(|(block, _)| block == key) {
                Some((_, prefix)) => {
                    for (key, value) in value.as_object().with_context(|| format!("{key} is not a map"))? {
                        insert(&mut given, &format!("{prefix}{key}"), value)?;
                    }
                }
                None => insert(&mut given, key, value)?,
            }
        }
        Ok(Self(given))
    }

    pub fn text(&self, name: &'static str) -> &str {
        self.0.get(name).map_or_else(|| find(name).map_or("", |flag| flag.default), String::as_str)
    }

    /// The text if there is any.
    pub fn some(&self, name: &'static str) -> Option<&str> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    pub fn is_given(&self, name: &'static str) -> bool {
        self.0.contains_key(name)
    }

    pub fn switch(&self, name: &'static str) -> Result<bool> {
        match self.text(name) {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" | "" => Ok(false),
            other => bail!("invalid boolean value {other:?} for -{name}"),
        }
    }

    pub fn number(&self, name: &'static str) -> Result<u64> {
        let text = self.text(name);
        text.parse().with_context(|| format!("invalid value {text:?} for flag -{name}: a whole number is needed"))
    }

    pub fn time(&self, name: &'static str) -> Result<Duration> {
        let text = self.text(name);
        duration(text).with_context(|| format!("--{name}: {text:?} is no time, such as 10m"))
    }

    /// Flags that were given and change nothing, with why.
    pub fn moot(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.0.keys().filter_map(|name| match find(name)?.effect {
            Effect::Moot(why) => Some((*name, why)),
            Effect::Used | Effect::Refused => None,
        })
    }

    /// # Errors
    /// Names the first flag that was given and is not supported. A switch that is off asks for nothing.
    pub fn check_supported(&self) -> Result<()> {
        for name in self.0.keys() {
            let Some(flag) = find(name).filter(|flag| flag.effect == Effect::Refused) else { continue };
            if flag.kind == Kind::Text && self.text(name).is_empty()
                || flag.kind == Kind::Switch && !self.switch(name)?
            {
                continue;
            }
            bail!("flag -{name} is not supported");
        }
        Ok(())
    }
}

fn insert(given: &mut BTreeMap<&'static str, String>, key: &str, value: &Value) -> Result<()> {
    let flag = find(key).with_context(|| format!("unknown key {key:?}"))?;
    let text = match value {
        Value::Null => return Ok(()),
        Value::String(text) => text.clone(),
        Value::Number(nanoseconds) if flag.kind == Kind::Time => format!("{nanoseconds}ns"),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(list) => {
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            texts.with_context(|| format!("{key} is a list of something else than text"))?.join(",")
        }
        Value::Object(_) => bail!("{key} is a map"),
    };
    given.insert(flag.name, text);
    Ok(())
}

/// Go's notation of time: numbers with units, such as `1h30m` or `1.5s`.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let units = [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let seconds = units.iter().find(|(name, _)| *name == unit)?.1;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// What `--help` prints.
pub fn help(program: &str) -> String {
    let mut text = format!(
        "Usage: {program} [flags]\n\nRuns one member of the store, an etcd v3 server. Flags are etcd's; each can also be set by\n\
         ETCD_NAME_IN_CAPITALS or in a file (--config-file). One member, for a try:  {program} --data-dir=/tmp/store\n"
    );
    for (group, flags) in GROUPS {
        let _ = writeln!(text, "\n{group}:");
        for flag in flags.iter().filter(|flag| flag.effect == Effect::Used) {
            let default = if flag.default.is_empty() { String::new() } else { format!(" [{}]", flag.default) };
            let _ = writeln!(text, "  --{:<29} {}{default}", flag.name, flag.help);
        }
    }
    let names = |wanted: fn(Effect) -> bool| {
        all().filter(|flag| wanted(flag.effect)).map(|flag| flag.name).collect::<Vec<_>>().join(", ")
    };
    let _ = writeln!(
        text,
        "\nAccepted with a warning, without effect: {}",
        names(|effect| matches!(effect, Effect::Moot(_)))
    );
    let _ = writeln!(text, "\nNot supported: {}", names(|effect| effect == Effect::Refused));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn args(list: &[&str]) -> Vec<String> {
        list.iter().map(|&arg| arg.to_owned()).collect()
    }

    #[test]
    fn flags_are_taken_in_all_of_gos_forms_and_refused_like_it() {
        let given = Given::from_args(&args(&["-name", "a", "--client-cert-auth", "--heartbeat-interval=50"])).unwrap();
        assert_eq!((given.text("name"), given.switch("client-cert-auth").unwrap()), ("a", true));
        assert_eq!(
            (given.number("heartbeat-interval").unwrap(), given.number("election-timeout").unwrap()),
            (50, 1000)
        );
        assert!(!Given::from_args(&args(&["--client-cert-auth=false"])).unwrap().switch("client-cert-auth").unwrap());
        for (list, text) in [
            (&["--nope"][..], "flag provided but not defined: -nope"),
            (&["--name"], "flag needs an argument: -name"),
            (&["serve"], "'serve' is not a valid flag"),
        ] {
            assert_eq!(Given::from_args(&args(list)).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn sources_merge_per_key_and_the_nearest_wins() {
        let mut given = Given::from_args(&args(&["--name=line"])).unwrap();
        let variables = [("ETCD_NAME", "variable"), ("ETCD_DATA_DIR", "/v"), ("PATH", "/bin")];
        given.add(Given::from_variables(variables.map(|(name, value)| (name.to_owned(), value.to_owned()))).unwrap());
        let file = "name: file\ndata-dir: /f\nelection-timeout: 700\ncorrupt-check-time: 5000000000\n\
                    peer-transport-security:\n  cert-file: /c\n  client-cert-auth: true\n";
        given.add(Given::from_file(file).unwrap());
        assert_eq!((given.text("name"), given.text("data-dir")), ("line", "/v"));
        assert_eq!(given.number("election-timeout").unwrap(), 700);
        assert_eq!((given.text("peer-cert-file"), given.switch("peer-client-cert-auth").unwrap()), ("/c", true));
        assert_eq!(duration(given.text("corrupt-check-time")), Some(Duration::from_secs(5)));
        assert_eq!(given.moot().map(|(name, _)| name).collect::<Vec<_>>(), ["corrupt-check-time"]);
        assert!(given.check_supported().is_ok());
        let allowed = Given::from_args(&args(&["--discovery-srv=x", "--discovery="])).unwrap();
        assert_eq!(allowed.check_supported().unwrap_err().to_string(), "flag -discovery-srv is not supported");
        assert!(Given::from_file("nope: 1").is_err() && Given::from_file("[1]").is_err());
        assert!(Given::from_file("").unwrap().0.is_empty());
    }

    #[test]
    fn times_are_written_as_go_writes_them() {
        let read = |text| duration(text).map(|time| time.as_millis());
        assert_eq!(
            [read("1h30m"), read("1.5s"), read("300ms"), read("0"), read("2m")].map(Option::unwrap),
            [5_400_000, 1500, 300, 0, 120_000]
        );
        for text in ["", "5", "s", "1x", "-1s", "1e9999h", "999999999999999999999h"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_unique_and_defaults_are_valid() {
        let mut names: Vec<&str> = all().map(|flag| flag.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        let none = Given::default();
        for flag in all().filter(|flag| flag.effect == Effect::Used) {
            match flag.kind {
                Kind::Text => (),
                Kind::Switch => drop(none.switch(flag.name).unwrap()),
                Kind::Number => drop(none.number(flag.name).unwrap()),
                Kind::Time => assert!(duration(flag.default).is_some(), "{}", flag.name),
            }
        }
    }

    /// Pieces of the file's language, names of flags, and whatever else.
    fn file() -> impl Strategy<Value = String> {
        const PIECES: [&str; 24] = [
            "\n",
            "\n  ",
            ": ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ",",
            "&a ",
            "*a",
            "<<: ",
            "!!binary ",
            "|\n",
            "\"",
            "true",
            "1e9",
            "~",
            "0x7f",
            "peer-transport-security",
            "client-transport-security",
            "#",
            "5000000000",
            "?",
        ];
        let piece = (0..PIECES.len()).prop_map(|at| PIECES[at].to_owned());
        let names: Vec<&str> = all().map(|flag| flag.name).collect();
        let name = (0..names.len()).prop_map(move |at| names[at].to_owned());
        let any = proptest::collection::vec(any::<char>(), 0..4).prop_map(|chars| chars.into_iter().collect());
        proptest::collection::vec(prop_oneof![4 => piece, 3 => name, 1 => any], 0..20)
            .prop_map(|pieces| pieces.concat())
    }

    /// Numbers, units, and whatever else.
    fn time() -> impl Strategy<Value = String> {
        const PIECES: [&str; 12] = ["1", "0", "9", ".", "h", "m", "s", "ms", "ns", "µs", "-", "e"];
        let piece = (0..PIECES.len()).prop_map(|at| PIECES[at].to_owned());
        let any = any::<char>().prop_map(String::from);
        proptest::collection::vec(prop_oneof![9 => piece, 1 => any], 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(text in file()) {
            if let Ok(given) = Given::from_file(&text) {
                let _ = given.check_supported();
                let _ = super::super::config::Config::from_flags(&given);
            }
        }

        #[test]
        fn any_time_is_read_or_refused(text in time()) {
            if let Some(time) = duration(&text) {
                prop_assert!(text == "0" || text.chars().last().is_some_and(|last| "smh".contains(last)), "{text}: {time:?}");
            }
        }

        #[test]
        fn any_url_is_read_or_refused(text in time(), scheme in prop_oneof![Just("http://"), Just("https://"), Just("")]) {
            if let Ok(url) = super::super::config::Url::parse(&format!("{scheme}{text}:80")) {
                prop_assert_eq!(super::super::config::Url::parse(&url.to_string()).unwrap(), url);
            }
        }
    }
}
