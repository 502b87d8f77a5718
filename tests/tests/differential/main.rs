//! pintle's store and a real etcd get the same random operations, and must answer the same.
//!
//! A run is made from a seed: [`generate`] makes steps, [`pair`] does each to both systems and compares, [`permitted`] says what may
//! differ. A run that differs prints its seed, the step, both answers and how to run it again:
//!   PINTLE_DIFF_SEED=<seed>   this one seed (and those that follow, if there are operations left)
//!   PINTLE_DIFF_OPS=<count>   operations in all (50,000; `make differential` does 1,000,000)
//!   PINTLE_DIFF_AUTH=1        users and roles too
//! A seed is good for the same reference only: what comes next hangs on its answers.

mod generate;
mod pair;
mod permitted;
mod step;
mod system;
mod twice;
mod watching;
mod world;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use generate::Generator;
use pair::{Difference, Pair, Seen};
use permitted::Reference;
use step::Step;
use system::Program;

/// No answer and no event takes longer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Operations of one seed: then both systems begin anew.
const STEPS: u64 = 6_250;
const OPERATIONS: u64 = 50_000;
/// Runs at a time: the answers of one are waited for while another goes on.
const RUNS: usize = 4;
/// Steps before the one that differed, in the report.
const SHOWN: usize = 12;

#[test]
fn pintle_answers_as_etcd_3_5_does() {
    compare(Reference::V3_5, "sid", OPERATIONS);
}

#[test]
fn pintle_answers_as_etcd_3_4_does() {
    compare(Reference::V3_4, "bookworm", OPERATIONS / 5);
}

fn compare(reference: Reference, suite: &str, operations: u64) {
    let path = pintle_tests::tools().join(suite).join("usr/bin/etcd");
    if !path.exists() {
        println!(
            "skipped: no etcd to compare with: {} is missing; scripts/setup unpacks it where it can",
            path.display()
        );
        return;
    }
    let operations = number("PINTLE_DIFF_OPS").unwrap_or(operations);
    let first = number("PINTLE_DIFF_SEED").unwrap_or(1);
    let forced = std::env::var("PINTLE_DIFF_AUTH").ok().map(|value| value == "1");
    // Every fourth run has users and roles, too; 3.4 lacks a call for it.
    let with_users = |seed: u64| forced.unwrap_or(reference == Reference::V3_5 && seed.is_multiple_of(4));
    let programs = Programs::new(path, reference);
    let seeds = operations.div_ceil(STEPS);
    let (next, failed, done) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let seen = Mutex::new(Seen::new());
    let began = Instant::now();
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= seeds || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let steps = STEPS.min(operations - nth * STEPS);
            let run = runtime.block_on(run(&programs, first + nth, steps, with_users(first + nth)));
            let answers = run.inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            for (answer, count) in answers {
                *seen.lock().expect("no run panics with it").entry(answer).or_default() += count;
            }
            done.fetch_add(steps, Ordering::Relaxed);
        }
    };
    let reports: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..RUNS).map(|_| scope.spawn(work)).collect();
        runs.into_iter().filter_map(|run| run.join().expect("a run does not panic").err()).collect()
    });
    assert!(reports.is_empty(), "{}", reports.join("\n\n"));
    for (answer, count) in seen.into_inner().expect("no run panics with it") {
        println!("{count:>8} {answer}");
    }
    for reason in permitted::reasons(reference) {
        println!("may differ: {reason}");
    }
    println!("{reference:?}: {} operations the same, in {:.1?}", done.into_inner(), began.elapsed());
}

struct Programs {
    ours: Program,
    theirs: Program,
    reference: Reference,
    /// The test that compares with it.
    test: &'static str,
}

impl Programs {
    fn new(path: PathBuf, reference: Reference) -> Self {
        // Only here: what is compared is what is answered, not what outlives the machine.
        const UNSAFE: &[&str] = &["--unsafe-no-fsync", "--bcrypt-cost=4"];
        let (theirs, test) = match reference {
            Reference::V3_5 => (Program { name: "etcd 3.5", path, flags: UNSAFE }, "pintle_answers_as_etcd_3_5_does"),
            Reference::V3_4 => {
                (Program { name: "etcd 3.4", path, flags: &["--bcrypt-cost=4"] }, "pintle_answers_as_etcd_3_4_does")
            }
        };
        let ours = Program { name: "pintle", path: pintle_tests::pintle(), flags: &["--bcrypt-cost=4"] };
        Self { ours, theirs, reference, test }
    }
}

/// One seed; the report of the first difference.
async fn run(programs: &Programs, seed: u64, steps: u64, auth: bool) -> Result<Seen, String> {
    let mut pair = Pair::start(&programs.ours, &programs.theirs, programs.reference).await;
    let mut generator = Generator::new(seed, auth);
    let mut before: Vec<Step> = Vec::new();
    for at in 0..=steps {
        let step = if at == steps { Step::Sync } else { generator.next(&pair.world) };
        if let Err(difference) = pair.run(&step).await {
            return Err(report(programs, seed, at, auth, &difference, &before, &pair));
        }
        if before.len() == SHOWN {
            before.remove(0);
        }
        before.push(step);
    }
    Ok(pair.seen)
}

fn report(
    programs: &Programs,
    seed: u64,
    at: u64,
    auth: bool,
    difference: &Difference,
    before: &[Step],
    pair: &Pair,
) -> String {
    let before: Vec<String> = before.iter().map(|step| shorten(&format!("{step:?}"), 600)).collect();
    format!(
        "seed {seed}, step {at}: pintle and {} differ, at revision {} compacted at {}\nbefore:\n  {}\nstep: {}\n\
         pintle: {}\n{}: {}\nagain: {}PINTLE_DIFF_SEED={seed} PINTLE_DIFF_OPS={} cargo test --release --locked \
         -p pintle-tests --test differential -- --nocapture {}\n{}",
        programs.theirs.name,
        pair.world.revision,
        pair.world.compacted,
        before.join("\n  "),
        shorten(&difference.step, 6000),
        shorten(&difference.ours, 6000),
        programs.theirs.name,
        shorten(&difference.theirs, 6000),
        if auth { "PINTLE_DIFF_AUTH=1 " } else { "PINTLE_DIFF_AUTH=0 " },
        at + 1,
        programs.test,
        pair.logs(),
    )
}

fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.replace('_', "").parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}
