//! Prints what three members in one process do: proposals per second, read indexes per second, and how long nothing is
//! acknowledged after the leader is gone. Figures to look at; nothing is asserted.
//!
//! `cargo run --release -p pintle-raft --example throughput [seconds]`

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use pintle_base::clock;
use pintle_raft::Handle;
use support::Cluster;

const VALUE: usize = 256;

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3);
    let length = Duration::from_secs(seconds);
    println!("three members in one process, {VALUE}-byte commands, synced logs, TLS over loopback");
    for timing in [[50, 200, 400], [100, 500, 1000]] {
        println!("heartbeat {} ms, election {} to {} ms", timing[0], timing[1], timing[2]);
        throughput(length, timing).await;
        failover(timing).await;
    }
}

/// Heartbeat and election timeouts, in milliseconds.
type Timing = [u64; 3];

fn set(options: &mut pintle_raft::Options, [heartbeat, min, max]: Timing) {
    options.heartbeat = Duration::from_millis(heartbeat);
    options.election_min = Duration::from_millis(min);
    options.election_max = Duration::from_millis(max);
}

async fn throughput(length: Duration, timing: Timing) {
    let mut cluster = Cluster::with(3, true, |options| set(options, timing));
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let term = cluster.members[leader].handle().status().term;
    for clients in [1, 64, 256, 1000] {
        let handle = cluster.members[leader].handle();
        report("propose at the leader", clients, length, handle, propose).await;
    }
    let follower = cluster.members[(leader + 1) % 3].handle();
    report("propose at a follower", 256, length, follower, propose).await;
    for clients in [1, 256] {
        report("read index at the leader", clients, length, cluster.members[leader].handle(), read).await;
    }
    report("read index at a follower", 256, length, follower, read).await;
    let after = cluster.members[leader].handle().status().term;
    println!("elections under load: {}", after - term);
    cluster.stop().await;
}

async fn propose(handle: Handle) -> bool {
    handle.propose(Bytes::from_static(&[7; VALUE])).await.is_ok()
}

async fn read(handle: Handle) -> bool {
    handle.read_index().await.is_ok()
}

async fn report<F>(what: &str, clients: usize, length: Duration, handle: &Handle, call: fn(Handle) -> F)
where
    F: Future<Output = bool> + Send + 'static,
{
    let end = clock::now() + length;
    let errors = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (handle, errors) = (handle.clone(), Arc::clone(&errors));
            tokio::spawn(async move {
                let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("histogram");
                while clock::now() < end {
                    let start = clock::now();
                    if !call(handle.clone()).await {
                        errors.fetch_add(1, Ordering::Relaxed);
                    }
                    times.saturating_record(start.elapsed().as_micros() as u64);
                }
                times
            })
        })
        .collect();
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("histogram");
    for task in tasks {
        times.add(task.await.expect("client")).expect("add");
    }
    println!(
        "{what:<26} {clients:>5} clients {:>8.0}/s  p50 {:>7.2} ms  p99 {:>7.2} ms  errors {}",
        times.len() as f64 / length.as_secs_f64(),
        times.value_at_quantile(0.5) as f64 / 1000.0,
        times.value_at_quantile(0.99) as f64 / 1000.0,
        errors.load(Ordering::Relaxed),
    );
}

/// The longest time between two acknowledgements around a crash of the leader, of a client at another member.
async fn failover(timing: Timing) {
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let mut cluster = Cluster::with(3, true, |options| set(options, timing));
        cluster.start_all().await;
        let leader = cluster.leader().await;
        let handle = cluster.members[(leader + 1) % 3].handle().clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let client = tokio::spawn(async move {
            let (mut last, mut longest) = (clock::now(), Duration::ZERO);
            while !stopping.load(Ordering::Relaxed) {
                if propose(handle.clone()).await {
                    longest = longest.max(last.elapsed());
                    last = clock::now();
                }
            }
            longest
        });
        clock::sleep(Duration::from_millis(500)).await;
        cluster.members[leader].kill().await;
        clock::sleep(Duration::from_secs(4)).await;
        stop.store(true, Ordering::Relaxed);
        gaps.push(client.await.expect("client").as_millis());
        cluster.stop().await;
    }
    println!("leader killed: longest gap {gaps:?} ms");
}
