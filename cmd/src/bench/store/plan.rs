//! What a run measures, and how large everything is.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::Case;
use super::requests::Workload;
use crate::exit::{self, Exit};

#[derive(clap::Args)]
#[command(after_help = "\
    pintle bench store --against /usr/bin/etcd --quick            everything, scaled down: about five minutes\n    \
    pintle bench store --against /usr/bin/etcd --only put,txn     two kinds of requests\n    \
    pintle bench store --against /usr/bin/etcd --only memory,restart --keys 200000\n\n\
    Figures of requests are medians of --runs; what a database goes through is measured once. Clients run in this process, on\n\
    the same cores as the members. Data lie in the system's temporary directory (TMPDIR).")]
pub struct Args {
    /// The etcd to compare with: a path, or a name to look for; etcdctl and etcdutl lie beside it
    #[arg(long, default_value = "etcd", value_name = "PROGRAM")]
    pub against: PathBuf,
    /// Everything scaled down: the whole table in about five minutes
    #[arg(long)]
    pub quick: bool,
    /// Only these rows
    #[arg(long, value_delimiter = ',', value_enum, value_name = "ROW")]
    pub only: Vec<Row>,
    /// Members of each cluster that requests are sent to  [default: 1,3; quick: 3]
    #[arg(long, value_delimiter = ',', value_name = "COUNT")]
    pub members: Vec<usize>,
    /// Clients that send requests at the same time  [default: 1,64,256,1000; quick: 1,64,1000]
    #[arg(long, value_delimiter = ',', value_name = "COUNT")]
    pub clients: Vec<usize>,
    /// Watchers of rows fan-out and fan-out-keys  [default: 10,100,1000,10000; quick: 100,10000]
    #[arg(long, value_delimiter = ',', value_name = "COUNT")]
    pub watchers: Vec<usize>,
    /// How often requests are measured; figures are medians  [default: 3; quick: 1]
    #[arg(long, value_name = "COUNT")]
    pub runs: Option<usize>,
    /// Length of each measurement of requests  [default: 5; quick: 1]
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Keys in the store that requests are sent to
    #[arg(long, default_value_t = 20_000, value_name = "COUNT")]
    pub load_keys: u64,
    /// Bytes of each value; those of the large databases have 4096
    #[arg(long, default_value_t = 256, value_name = "BYTES")]
    pub value_bytes: usize,
    /// Keys of rows memory, restart and compaction  [default: 1000000; quick: 100000]
    #[arg(long, value_name = "COUNT")]
    pub keys: Option<u64>,
    /// Sizes of row database  [default: 2,8; quick: 0.2]
    #[arg(long, value_delimiter = ',', value_name = "GB")]
    pub size_gb: Vec<f64>,
    /// Keys of row overwrite  [default: 100000; quick: 10000]
    #[arg(long, value_name = "COUNT")]
    pub overwrite_keys: Option<u64>,
    /// How often they are overwritten  [default: 100; quick: 20]
    #[arg(long, value_name = "COUNT")]
    pub overwrite_times: Option<u64>,
    /// Requests a second while row compaction compacts, half of them puts, half gets; 0: as many as get answers
    #[arg(long, default_value_t = 2000, value_name = "COUNT")]
    pub rate: u32,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the measures that have a goal, and the goals, to this file as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write all tables to this file as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}

/// A row, or several, of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Row {
    /// Puts on random keys
    Put,
    /// Compare-and-put as a kube-apiserver updates
    Txn,
    /// Linearizable reads of one key
    Get,
    /// Serializable reads of one key
    StaleGet,
    /// Lists of 100 keys
    #[value(name = "list-100")]
    List100,
    /// Lists of 10,000 keys
    #[value(name = "list-10000")]
    List10000,
    /// Pages of 500 keys of a list of all, at one revision
    ListPaged,
    /// Renewals of a lease of one's own
    KeepAlive,
    /// What a busy kube-apiserver does: 60 % updates, 25 % reads, 10 % lists of 100, 5 % puts
    Mixed,
    /// One event to so many watchers of one key: the time to the last of them
    FanOut,
    /// The same with the watchers spread over 10,000 keys
    FanOutKeys,
    /// Many keys: memory and disk of a member
    Memory,
    /// Many keys: all members restarted, to the first linearizable read
    Restart,
    /// Many keys overwritten and compacted: what that does to requests meanwhile
    Compaction,
    /// Large databases: disk, restart, snapshot save and restore
    Database,
    /// Keys overwritten again and again, then compacted: disk
    Overwrite,
}

/// Lists are asked for by so many clients at most: a thousand lists at once are another question.
const LISTERS: usize = 64;
/// Keys of fan-out-keys.
const WATCHED_KEYS: usize = 10_000;

impl Row {
    /// As `--only` takes it.
    pub fn name(self) -> String {
        use clap::ValueEnum;
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub fn is_of_requests(self) -> bool {
        self.workload().is_some() || self.watched_keys().is_some()
    }

    pub fn workload(self) -> Option<Workload> {
        match self {
            Self::Put => Some(Workload::Put),
            Self::Txn => Some(Workload::Txn),
            Self::Get => Some(Workload::Get),
            Self::StaleGet => Some(Workload::StaleGet),
            Self::List100 => Some(Workload::List(100)),
            Self::List10000 => Some(Workload::List(10_000)),
            Self::ListPaged => Some(Workload::Paged),
            Self::KeepAlive => Some(Workload::KeepAlive),
            Self::Mixed => Some(Workload::Mixed),
            _ => None,
        }
    }

    /// How many keys the watchers watch.
    pub fn watched_keys(self) -> Option<usize> {
        match self {
            Self::FanOut => Some(1),
            Self::FanOutKeys => Some(WATCHED_KEYS),
            _ => None,
        }
    }

    /// What its clients are called.
    pub fn clients(self) -> &'static str {
        if self.watched_keys().is_some() { "watchers" } else { "clients" }
    }

    fn is_of_lists(self) -> bool {
        matches!(self, Self::List100 | Self::List10000 | Self::ListPaged)
    }
}

/// What is measured, everything settled.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// What was not asked for is scaled down.
    pub quick: bool,
    pub rows: Vec<Row>,
    pub members: Vec<usize>,
    pub clients: Vec<usize>,
    pub watchers: Vec<usize>,
    pub runs: usize,
    pub time: Duration,
    pub load_keys: u64,
    pub value_bytes: usize,
    pub keys: u64,
    /// Rest after many keys were written; a directory that stays the same for so long has settled.
    pub settle: Duration,
    /// A load under a compaction lasts so long before it, and at least so long from its beginning.
    pub steady: Duration,
    pub rate: u32,
    pub gb: Vec<f64>,
    pub overwrite_keys: u64,
    pub overwrite_times: u64,
}

impl Sizes {
    pub fn of(args: &Args) -> Result<Self> {
        use clap::ValueEnum;
        let pick = |given: &[usize], full: &[usize], quick: &[usize]| match (given, args.quick) {
            ([], true) => quick.to_vec(),
            ([], false) => full.to_vec(),
            (given, _) => given.to_vec(),
        };
        let scaled = |full: u64, quick: u64| if args.quick { quick } else { full };
        let gb: &[f64] = if args.quick { &[0.2] } else { &[2.0, 8.0] };
        let sizes = Self {
            quick: args.quick,
            rows: if args.only.is_empty() { Row::value_variants().to_vec() } else { args.only.clone() },
            members: pick(&args.members, &[1, 3], &[3]),
            clients: pick(&args.clients, &[1, 64, 256, 1000], &[1, 64, 1000]),
            watchers: pick(&args.watchers, &[10, 100, 1000, 10_000], &[100, 10_000]),
            runs: args.runs.unwrap_or(if args.quick { 1 } else { 3 }),
            time: Duration::from_secs(args.seconds.unwrap_or(scaled(5, 1))),
            load_keys: args.load_keys,
            value_bytes: args.value_bytes,
            keys: args.keys.unwrap_or(scaled(1_000_000, 100_000)),
            settle: Duration::from_secs(scaled(10, 1)),
            steady: Duration::from_secs(scaled(15, 3)),
            rate: args.rate,
            gb: if args.size_gb.is_empty() { gb.to_vec() } else { args.size_gb.clone() },
            overwrite_keys: args.overwrite_keys.unwrap_or(scaled(100_000, 10_000)),
            overwrite_times: args.overwrite_times.unwrap_or(scaled(100, 20)),
        };
        let mut counts: Vec<u64> = [&sizes.members, &sizes.clients, &sizes.watchers]
            .into_iter()
            .flatten()
            .map(|count| *count as u64)
            .collect();
        counts.extend([sizes.runs as u64, sizes.time.as_secs(), sizes.load_keys, sizes.keys, sizes.overwrite_keys]);
        if counts.contains(&0) || sizes.gb.iter().any(|gb| !(*gb > 0.0 && *gb <= 40.0)) {
            let message = "every count is at least one, and a database has more than 0 and at most 40 GB";
            return Err(exit::with(Exit::Usage, message.to_owned()));
        }
        Ok(sizes)
    }

    pub fn has(&self, row: Row) -> bool {
        self.rows.contains(&row)
    }

    /// All measurements of requests with `members` members.
    pub fn cases(&self, members: usize) -> Vec<Case> {
        let mut cases = Vec::new();
        for &row in self.rows.iter().filter(|row| row.is_of_requests()) {
            let clients = if row.watched_keys().is_some() { &self.watchers } else { &self.clients };
            let fit = |clients: &&usize| !row.is_of_lists() || **clients <= LISTERS;
            cases.extend(clients.iter().filter(fit).map(|&clients| Case { members, row, clients }));
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn sizes(line: &str) -> Result<Sizes> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Sizes::of(&Line::try_parse_from(words).expect("a line").args)
    }

    #[test]
    fn quick_scales_down_what_is_not_given() {
        let sizes = sizes("--quick --clients 7 --size-gb 0.1,1").expect("sizes");
        assert_eq!((sizes.members, sizes.clients, sizes.runs, sizes.keys), (vec![3], vec![7], 1, 100_000));
        assert_eq!(sizes.gb, [0.1, 1.0]);
    }

    #[test]
    fn a_thousand_clients_put_and_do_not_list_and_watchers_are_counted_by_themselves() {
        let cases = sizes("--only put,list-10000,fan-out --watchers 5 --members 3").expect("sizes").cases(3);
        let of = |row| cases.iter().filter(|case| case.row == row).map(|case| case.clients).collect::<Vec<_>>();
        assert_eq!([of(Row::Put), of(Row::List10000), of(Row::FanOut)], [vec![1, 64, 256, 1000], vec![1, 64], vec![5]]);
    }

    #[test]
    fn nothing_is_refused_as_a_size() {
        for line in ["--clients 0", "--keys 0", "--size-gb 0", "--size-gb=-1", "--size-gb 100", "--seconds 0"] {
            assert!(sizes(line).is_err(), "{line}");
        }
    }
}
