//! Members, mostly three, in one process on a simulated clock and a simulated network, with faults drawn from a seed.
//!
//! Real: openraft's core, the log on real files with its checks at start, the apply worker, snapshots, batcher, read
//! index, membership, the joining of wiped members, the gRPC service and its messages. Simulated: time (tokio's paused
//! clock), randomness (`pintle_base::rng`, seeded), the network below gRPC ([`net`]: delay, loss, doubled calls, partitions,
//! also one-way), how long a sync takes and what a crash leaves ([`member`]). Checked: at most one leader for a term, all
//! apply the same entries at the same indexes and without gaps, logs agree, no acknowledged write is lost, reads and writes
//! are linearizable ([`history`]), everything works again once it is mended, every member opens what its crash left behind.
//!
//! Not simulated: RocksDB. Its calls take no simulated time, its own threads (flush, compaction) run on the real clock, a
//! crash cannot tear its files, and disks neither fail nor fill up (the tests of `log` damage files instead). Snapshots are
//! read and written by tokio's blocking threads, during which the simulated clock stands still. TLS and HTTP/2 are left to
//! `tests/cluster.rs`.
//!
//! Not exact: tokio chooses at random in which order it wakes several waiters of one watch channel, and lets that be seeded
//! only where it is built as unstable. So a seed repeats what is drawn for faults, network, disks, clients and election
//! timeouts, but two of its runs drift apart in time. A run that fails names its seed;
//! `PINTLE_RAFT_SEED=<seed> cargo test --release -p pintle-raft sim::nothing` runs that seed alone, many times over, until
//! it fails again; `RAFT_TEST_LOG=debug` shows what happens. `PINTLE_RAFT_SEEDS=<count>` runs more seeds.

mod dice;
mod history;
mod member;
mod net;
mod run;
mod world;

use std::time::Duration;

use crate::propose::Refused;
use run::{Report, crashes, random, simulate, simulate_members};

/// Seeds of each of the tests below, which run beside each other.
const SEEDS: u64 = 8;

/// Runs of a seed that is to fail again.
const REPETITIONS: usize = 50;

/// Simulated time with faults, for each seed.
const LENGTH: Duration = Duration::from_secs(25);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

fn log() {
    if let Ok(filter) = std::env::var("RAFT_TEST_LOG") {
        // Another test may have been faster.
        let _ = pintle_base::telemetry::init(&filter, pintle_base::telemetry::Format::Text);
    }
}

fn run(seed: u64) -> Report {
    let report = simulate(seed, |cluster| random(cluster, seed, LENGTH));
    assert!(
        report.violations.is_empty(),
        "PINTLE_RAFT_SEED={seed} cargo test --release -p pintle-raft sim::nothing\n{}",
        report.violations.join("\n")
    );
    report
}

fn run_all(first: u64) {
    log();
    if let Some(seed) = number("PINTLE_RAFT_SEED") {
        for _ in (0..REPETITIONS).take_while(|_| first == 0) {
            println!("seed {seed}: {}", run(seed));
        }
        return;
    }
    let count = number("PINTLE_RAFT_SEEDS").unwrap_or(SEEDS);
    let (mut calls, mut acknowledged, mut terms) = (0, 0, 0);
    for seed in (first..).step_by(4).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        let report = run(seed);
        calls += report.calls;
        acknowledged += report.acknowledged;
        terms += report.terms;
    }
    println!(
        "{count} seeds from {first}: {calls} calls, {acknowledged} writes acknowledged, {terms} terms with a leader"
    );
    assert!(acknowledged > 0 && terms as u64 > count, "the faults leave room for work, and leaders change");
}

#[test]
fn nothing_acknowledged_is_lost_a() {
    run_all(0);
}

#[test]
fn nothing_acknowledged_is_lost_b() {
    run_all(1);
}

#[test]
fn nothing_acknowledged_is_lost_c() {
    run_all(2);
}

#[test]
fn nothing_acknowledged_is_lost_d() {
    run_all(3);
}

/// The case of docs/adr/0005: an old leader that was cut off meets a member that has forgotten the new one.
#[test]
fn a_wiped_member_does_not_help_an_old_leader_to_undo_what_a_newer_one_acknowledged() {
    log();
    for seed in 0..4 {
        let report = simulate(seed, |cluster| async move {
            let second = Duration::from_secs(1);
            let old = cluster.leader_within(second * 30, |_| true).await.expect("a leader");
            let at = |id: u64| cluster.member(id).running().expect("it runs");
            assert!(cluster.append(&at(old), "before".to_owned(), second * 10).await);
            cluster.net.isolate(old, cluster.others(old));
            let new = cluster.leader_within(second * 30, |leader| leader != old).await.expect("a leader");
            assert!(cluster.append(&at(new), "acknowledged".to_owned(), second * 10).await);
            let wiped = cluster.others(old).find(|other| *other != new).expect("a third");
            cluster.member(new).crash().await;
            cluster.restart(wiped, second / 10, true).await;
            cluster.net.heal();
            // The two of them are a majority, and must not act as one.
            let undone = cluster.append(&at(old), "instead".to_owned(), second * 20).await;
            assert!(!undone, "the wiped member helped the old leader");
            cluster.member(new).start().await;
            assert!(cluster.append(&at(wiped), "after".to_owned(), second * 30).await, "it takes part again");
            cluster.settle().await
        });
        assert_eq!(report.violations, [""; 0], "seed {seed}");
    }
}

/// A leader that was cut off does not know that it was replaced: what makes it sure of itself is what the others say when it asks, and none
/// of them speaks for it who may have forgotten a vote.
#[test]
fn a_leader_that_was_replaced_is_confirmed_by_nobody() {
    log();
    for seed in 0..SEEDS {
        let report = simulate(seed, |cluster| async move {
            let second = Duration::from_secs(1);
            let old = cluster.leader_within(second * 30, |_| true).await.expect("a leader");
            let at = |id: u64| cluster.member(id).running().expect("it runs");
            assert!(cluster.append(&at(old), "before".to_owned(), second * 10).await);
            let index = at(old).node.confirm().await.expect("it leads");
            assert!(index >= at(old).node.applying.last(), "seed {seed}");
            cluster.net.isolate(old, cluster.others(old));
            let new = cluster.leader_within(second * 30, |leader| leader != old).await.expect("a leader");
            assert!(cluster.append(&at(new), "acknowledged".to_owned(), second * 10).await);
            assert_eq!(at(old).node.confirm().await, Err(Refused::NotLeader(None)), "seed {seed}: cut off");

            let wiped = cluster.others(old).find(|other| *other != new).expect("a third");
            cluster.restart(wiped, second / 10, true).await;
            assert!(at(wiped).node.newest_term().is_err(), "seed {seed}: it may have forgotten its vote");
            let acknowledged = at(new).node.applying.last();
            cluster.net.heal();
            if let Ok(index) = at(old).node.confirm().await {
                assert!(index >= acknowledged, "seed {seed}: {index} is before {acknowledged}");
            }
            cluster.settle().await
        });
        assert_eq!(report.violations, [""; 0], "seed {seed}");
    }
}

/// A member of etcd that was alone answered its clients while its log was still being written: the quorum of one was itself, and it counted
/// before its sync. A crash then lost what was acknowledged. Here an entry counts only from the callback of the synced write, however many
/// members there are: what a crash leaves of a member alone holds all that was acknowledged, and all that anybody has read.
#[test]
fn etcd_14370_a_member_alone_acknowledges_and_shows_nothing_before_it_is_synced() {
    log();
    let mut acknowledged = 0;
    for seed in 0..SEEDS {
        let report = simulate_members(1, seed, |cluster| crashes(cluster, seed, LENGTH));
        assert_eq!(report.violations, [""; 0], "seed {seed}");
        acknowledged += report.acknowledged;
    }
    assert!(acknowledged > 0, "the crashes leave room for work");
}
