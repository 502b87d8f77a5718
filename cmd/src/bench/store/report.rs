//! What a run found, as text for a terminal, as Markdown and SVG for the documents, as JSON for programs.
//!
//! Always holds: a figure stands beside the other system's and the ratio; what one system lacks is left out of both.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Case;
use super::chart::{self, Goal, Line};
use super::figures::{COLUMNS, Column, Figures, medians, ratio};
use super::life::Point;
use super::plan::{Row, Sizes};

const SYSTEMS: [&str; 2] = ["pintle", "etcd"];

/// One figure of both systems.
struct Pair {
    row: Row,
    label: String,
    both: [f64; 2],
    goal: Option<Goal>,
}

pub struct Report {
    title: String,
    sizes: Sizes,
    /// Of each case the runs of both systems.
    requests: Vec<(Case, [Vec<Figures>; 2])>,
    pairs: Vec<Pair>,
}

impl Report {
    pub fn new(version: &str, sizes: Sizes) -> Self {
        let title = format!("pintle {} against {version}", env!("CARGO_PKG_VERSION"));
        Self { title, sizes, requests: Vec::new(), pairs: Vec::new() }
    }

    /// Takes one run of a case; `which` system is 0 or 1.
    pub fn add(&mut self, case: Case, which: usize, figures: Figures) {
        if let Some((_, runs)) = self.requests.iter_mut().find(|(other, _)| *other == case) {
            return runs[which].push(figures);
        }
        let mut runs = [Vec::new(), Vec::new()];
        runs[which].push(figures);
        self.requests.push((case, runs));
    }

    /// Takes what both systems, in their order, went through.
    pub fn pair(&mut self, both: Vec<Vec<Point>>) {
        let [ours, theirs] = &both[..] else { return };
        for our in ours {
            let Some(their) = theirs.iter().find(|their| their.label == our.label) else { continue };
            let Point { row, label, value, goal } = our.clone();
            self.pairs.push(Pair { row, label, both: [value, their.value], goal });
        }
    }

    fn cases(&self) -> Vec<(Case, [Figures; 2])> {
        let both =
            |(case, [ours, theirs]): &(Case, [Vec<Figures>; 2])| Some((*case, [medians(ours)?, medians(theirs)?]));
        self.requests.iter().filter_map(both).collect()
    }

    /// The measures that have a goal.
    fn goals(&self) -> Vec<Line> {
        let of_pair = |pair: &Pair| {
            let (label, [ours, theirs]) = (pair.label.clone(), pair.both);
            pair.goal.map(|goal| Line { label, ours, theirs, goal })
        };
        self.cases().iter().flat_map(goals_of).chain(self.pairs.iter().filter_map(of_pair)).collect()
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let cases = self.cases();
        if !cases.is_empty() {
            text += &requests_table(&cases);
        }
        if !self.pairs.is_empty() {
            let _ = writeln!(text, "\n{:<64} {:>10} {:>10} {:>7}", "what", SYSTEMS[0], SYSTEMS[1], "ratio");
        }
        for Pair { label, both: [ours, theirs], .. } in &self.pairs {
            let _ = writeln!(text, "{label:<64} {ours:>10.2} {theirs:>10.2} {:>7}", part(*ours, *theirs));
        }
        let goals = self.goals();
        if !goals.is_empty() {
            let _ = write!(text, "\n{}", chart::table(&goals));
        }
        text
    }

    pub fn svg(&self) -> String {
        chart::svg(&self.title, &self.goals())
    }

    /// All tables, and how to get them again; `picture` is the name of what was drawn of the goals.
    pub fn markdown(&self, picture: Option<&str>) -> String {
        let mut text = format!(
            "# The store beside etcd\n\n{}, on {}, the clients on the same machine. One run of\n\n```\n{}\n```\n\n\
             wrote this page. `--only ROW` repeats a row by itself; requests are medians of {} runs of {} s each, what databases go\n\
             through was measured once. Values have {} bytes. A ratio is pintle's figure in etcd's.\n",
            self.title,
            machine(),
            command(std::env::args()),
            self.sizes.runs,
            self.sizes.time.as_secs(),
            self.sizes.value_bytes,
        );
        if self.sizes.quick {
            text += "\nThis run is a scaled-down one; `make bench-store` writes the page anew at full size.\n";
        }
        if let Some(picture) = picture {
            text += &format!("\n![the measures that have a goal]({picture})\n");
        }
        let goals = self.goals();
        if !goals.is_empty() {
            text += "\n## Goals\n\n| measure | pintle | etcd | ratio | goal | |\n|---|---|---|---|---|---|\n";
        }
        for line in &goals {
            let Line { label, ours, theirs, goal } = line;
            let (ratio, goal, verdict) = (part(*ours, *theirs), goal.text(), line.verdict());
            let _ = writeln!(text, "| {label} | {ours:.2} | {theirs:.2} | {ratio} | {goal} | {verdict} |");
        }
        let cases = self.cases();
        if !cases.is_empty() {
            let names = COLUMNS.map(|(name, ..)| name).join(" | ");
            let _ = write!(
                text,
                "\n## Requests\n\nOf {} keys; each cell: pintle / etcd. CPU, memory, disk and fsyncs are of all members together; `client` is the\n\
                 benchmark's own CPU, on the same cores.\n\n| members | row | clients | {names} |\n|---|---|---|{}\n",
                self.sizes.load_keys,
                "---|".repeat(COLUMNS.len()),
            );
        }
        for (Case { members, row, clients }, [ours, theirs]) in &cases {
            let cell = |(.., digits, value): Column| format!("{:.digits$} / {:.digits$}", value(ours), value(theirs));
            let cells = COLUMNS.map(cell);
            let _ = writeln!(text, "| {members} | {} | {clients} | {} |", row.name(), cells.join(" | "));
        }
        if !self.pairs.is_empty() {
            text += "\n## Databases\n\n| row | what | pintle | etcd | ratio |\n|---|---|---|---|---|\n";
        }
        for Pair { row, label, both: [ours, theirs], .. } in &self.pairs {
            let ratio = part(*ours, *theirs);
            let _ = writeln!(text, "| {} | {label} | {ours:.2} | {theirs:.2} | {ratio} |", row.name());
        }
        text
    }

    pub fn json(&self) -> Value {
        let figures = |figures: &Figures| -> Value {
            COLUMNS.iter().map(|(_, name, _, value)| ((*name).to_owned(), json!(value(figures)))).collect()
        };
        let requests = self.cases().iter().map(|(case, [ours, theirs])| {
            let Case { members, row, clients } = case;
            let what = row.clients();
            json!({"members": members, "row": row.name(), what: clients, "pintle": figures(ours), "etcd": figures(theirs)})
        }).collect::<Vec<_>>();
        let pair = |Pair { row, label, both: [ours, theirs], .. }: &Pair| json!({"row": row.name(), "what": label, "pintle": ours, "etcd": theirs});
        let goal = |line: &Line| {
            let Line { label, ours, theirs, goal } = line;
            let (goal, verdict) = (goal.text(), line.verdict());
            json!({"what": label, "pintle": ours, "etcd": theirs, "goal": goal, "verdict": verdict})
        };
        json!({
            "title": self.title,
            "rows": requests,
            "databases": self.pairs.iter().map(pair).collect::<Vec<_>>(),
            "goals": self.goals().iter().map(goal).collect::<Vec<_>>(),
        })
    }
}

fn part(ours: f64, theirs: f64) -> String {
    ratio(ours, theirs).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn requests_table(cases: &[(Case, [Figures; 2])]) -> String {
    let mut text = format!("\n{:>7} {:<13} {:>8} {:<7}", "members", "row", "clients", "system");
    for (name, ..) in COLUMNS {
        let _ = write!(text, " {name:>10}");
    }
    text.push('\n');
    for (Case { members, row, clients }, both) in cases {
        for (system, figures) in SYSTEMS.iter().zip(both) {
            let _ = write!(text, "{members:>7} {:<13} {clients:>8} {system:<7}", row.name());
            for (_, _, digits, value) in COLUMNS {
                let _ = write!(text, " {:>10.digits$}", value(figures));
            }
            text.push('\n');
        }
        let _ = write!(text, "{:>30} {:<7}", "", "ratio");
        for (.., value) in COLUMNS {
            let _ = write!(text, " {:>10}", part(value(&both[0]), value(&both[1])));
        }
        text.push('\n');
    }
    text
}

/// The measures of a case that have a goal; goals are of three members.
fn goals_of((case, [ours, theirs]): &(Case, [Figures; 2])) -> Vec<Line> {
    let mut lines = Vec::new();
    if case.members != 3 {
        return lines;
    }
    let mut line = |what: &str, goal: Goal, value: fn(&Figures) -> f64| {
        let label = format!("{} {what}, {} {}", case.row.name(), case.clients, case.row.clients());
        lines.push(Line { label, ours: value(ours), theirs: value(theirs), goal });
    };
    let (per_second, p99): (fn(&Figures) -> f64, fn(&Figures) -> f64) =
        (|figures| figures.per_second, |figures| figures.p99_ms);
    match (case.row, case.clients) {
        (Row::Put | Row::Txn, 256 | 1000) => line("per second", Goal::AtLeast(2.0), per_second),
        (Row::Get | Row::StaleGet, 64..=256) => line("per second", Goal::AtLeast(1.5), per_second),
        (Row::List10000 | Row::ListPaged, _) => line("per second", Goal::AtLeast(2.5), per_second),
        (Row::FanOut, 10_000) => line("p50 ms", Goal::AtMost(1.0 / 3.0), |figures| figures.p50_ms),
        _ => {}
    }
    if case.row == Row::Put {
        match case.clients {
            1 => line("p50 ms", Goal::AtMost(0.7), |figures| figures.p50_ms),
            64 | 1000 => line("p99 ms", Goal::AtMost(1.0 / 3.0), p99),
            _ => {}
        }
        line("CPU us", Goal::AtMost(0.5), |figures| figures.cpu_us);
    }
    lines
}

/// What this machine is, as far as it matters here.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    format!("{cores} cores and {} GB of memory", kib.unwrap_or(0).div_ceil(1 << 20))
}

/// A command line as somebody else would type it: files without where they lie here.
fn command(words: impl Iterator<Item = String>) -> String {
    let bare = |word: String| match word.rsplit_once('/') {
        Some((before, name)) => match before.split_once('=') {
            Some((flag, _)) => format!("{flag}={name}"),
            None => name.to_owned(),
        },
        None => word,
    };
    words.map(bare).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report() -> Report {
        let sizes = Sizes {
            quick: true,
            rows: vec![Row::Put],
            members: vec![3],
            clients: vec![64],
            watchers: Vec::new(),
            runs: 3,
            time: Duration::from_secs(5),
            load_keys: 20_000,
            value_bytes: 256,
            keys: 1000,
            settle: Duration::ZERO,
            steady: Duration::ZERO,
            rate: 0,
            gb: Vec::new(),
            overwrite_keys: 1,
            overwrite_times: 1,
        };
        let mut report = Report::new("etcd Version: 3.5", sizes);
        let case = Case { members: 3, row: Row::Put, clients: 64 };
        let put = |per_second, p99_ms| Figures { per_second, p99_ms, cpu_us: 10.0, ..Figures::default() };
        for per_second in [10.0, 40.0, 20.0] {
            report.add(case, 0, put(per_second, 2.0));
        }
        report.add(case, 1, put(5.0, 10.0));
        let point =
            |value| Point { row: Row::Memory, label: "resident".to_owned(), value, goal: Some(Goal::AtMost(0.5)) };
        report.pair(vec![vec![point(60.0)], vec![point(100.0)]]);
        report
    }

    #[test]
    fn figures_are_medians_and_stand_beside_the_other_systems() {
        let text = report().text();
        let row = |name: &str| {
            let line = text.lines().find(|line| line.contains(name)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row(" pintle  ")[..5], ["3", "put", "64", "pintle", "20"], "{text}");
        assert_eq!(row(" etcd  ")[..5], ["3", "put", "64", "etcd", "5"], "{text}");
        assert_eq!(row("ratio  ")[..2], ["ratio", "4.00"], "{text}");
        assert_eq!(row("resident  "), ["resident", "60.00", "100.00", "0.60"], "{text}");
    }

    #[test]
    fn goals_are_met_or_missed() {
        let goals = report().goals();
        let told = |line: &Line| (line.label.clone(), line.verdict());
        let want = [
            ("put p99 ms, 64 clients".to_owned(), "met"),
            ("put CPU us, 64 clients".to_owned(), "missed"),
            ("resident".to_owned(), "missed"),
        ];
        assert_eq!(goals.iter().map(told).collect::<Vec<_>>(), want);
    }

    #[test]
    fn documents_and_programs_get_the_same_figures() {
        let report = report();
        let (markdown, json) = (report.markdown(Some("goals.svg")), report.json());
        assert!(markdown.contains("| 3 | put | 64 | 20 / 5 | 0.00 / 0.00 | 2.00 / 10.00 |"), "{markdown}");
        assert!(markdown.contains("\n![the measures that have a goal](goals.svg)\n"), "{markdown}");
        assert!(markdown.contains("| resident | 60.00 | 100.00 | 0.60 | <= 0.50 | missed |"), "{markdown}");
        assert_eq!(
            (&json["rows"][0]["pintle"]["per_second"], &json["rows"][0]["etcd"]["p99_ms"]),
            (&json!(20.0), &json!(10.0))
        );
        assert_eq!((&json["databases"][0]["etcd"], &json["goals"][0]["verdict"]), (&json!(100.0), &json!("met")));
        assert_eq!(report.svg().matches("<rect").count(), 3);
    }

    #[test]
    fn a_command_line_says_nothing_about_where_things_lie_here() {
        let words = ["/x/y/pintle", "bench", "store", "--against", "/a/etcd", "--svg=/b/c.svg", "--quick"];
        let told = command(words.into_iter().map(str::to_owned));
        assert_eq!(told, "pintle bench store --against etcd --svg=c.svg --quick");
    }
}
