//! Incidents of etcd's that need several real members; the others, and the list of all, are in `store/src/tests/incidents`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::Signal;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::{PutRequest, RangeRequest};
use pintle_tests::store::Store;
use serde_json::Value;
use tonic::transport::Channel;

/// Times a leader is frozen.
const ROUNDS: i64 = 6;
const READERS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(30);

fn client(store: &Store, at: usize) -> KvClient<Channel> {
    let address = format!("http://127.0.0.1:{}", store.members[at].client);
    KvClient::new(Channel::from_shared(address).expect("an address").connect_lazy())
}

async fn read(kv: &mut KvClient<Channel>) -> Option<i64> {
    let request = RangeRequest { key: Bytes::from_static(b"counter"), ..RangeRequest::default() };
    let answer = tokio::time::timeout(PATIENCE, kv.range(request)).await.ok()?.ok()?.into_inner();
    let value = answer.kvs.first().map_or("0", |kv| std::str::from_utf8(&kv.value).expect("text"));
    Some(value.parse().expect("a number"))
}

/// Puts `value` by any of these members, as often as it takes.
async fn write(store: &Store, members: &[usize], value: i64) {
    let mut clients: Vec<KvClient<Channel>> = members.iter().map(|at| client(store, *at)).collect();
    let put = || PutRequest {
        key: Bytes::from_static(b"counter"),
        value: Bytes::from(value.to_string()),
        ..PutRequest::default()
    };
    let began = Instant::now();
    loop {
        for kv in &mut clients {
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(2), kv.put(put())).await {
                return;
            }
        }
        assert!(began.elapsed() < DEADLINE, "nothing was written: {}", store.log(members[0]));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A leader of etcd that was frozen, and woke when others had long gone on without it, answered reads from the time of its sleep with what a
/// round of before had confirmed. Here a round serves only reads that were there when it began, so its confirmation is younger than they are.
/// Reads go on at the frozen leader all the time; none may be older than what was acknowledged before it was asked for.
#[test]
fn etcd_20418_a_leader_that_was_frozen_answers_no_read_with_what_was() {
    let mut store = Store::new(3);
    store.start_all();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let acknowledged = Arc::new(AtomicI64::new(0));
    // By round: how many reads that were asked for while the member slept were answered.
    let answered: Arc<Vec<AtomicU64>> = Arc::new((0..=ROUNDS).map(|_| AtomicU64::default()).collect());
    for round in 1..=ROUNDS {
        let leader = store.leader();
        let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
        runtime.block_on(async {
            let stop = Arc::new(AtomicBool::new(false));
            let readers: Vec<_> = (0..READERS)
                .map(|_| {
                    let (mut kv, floor, stop) = (client(&store, leader), Arc::clone(&acknowledged), Arc::clone(&stop));
                    let answered = Arc::clone(&answered);
                    tokio::spawn(async move {
                        while !stop.load(Ordering::Relaxed) {
                            let least = floor.load(Ordering::SeqCst);
                            let Some(found) = read(&mut kv).await else { continue };
                            assert!(found >= least, "read {found} after {least} was acknowledged");
                            if least == round {
                                answered[usize::try_from(round).expect("small")].fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(100 + 37 * round.unsigned_abs())).await;
            store.signal(leader, Signal::SIGSTOP);
            write(&store, &others, round).await;
            acknowledged.store(round, Ordering::SeqCst);
            // These wait at the frozen member, and are the first that it finds.
            let late: Vec<_> = (0..READERS * 4)
                .map(|_| {
                    let mut kv = client(&store, leader);
                    tokio::spawn(async move { read(&mut kv).await })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(200)).await;
            store.signal(leader, Signal::SIGCONT);
            for read in late {
                let found = read.await.expect("no panic");
                assert!(found.is_none_or(|found| found == round), "read {found:?} after {round} was acknowledged");
            }
            let began = Instant::now();
            while answered[usize::try_from(round).expect("small")].load(Ordering::Relaxed) < 20 {
                assert!(began.elapsed() < DEADLINE, "the member that was frozen answers again");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            stop.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.await.expect("a reader");
            }
        });
    }
}

/// Who is a member, by name, and whether it only learns: as one member tells it.
fn told_by(store: &Store, at: usize) -> Option<Vec<(String, bool)>> {
    let told = store.etcdctl_of(&[at], &["member", "list", "-w", "json"]);
    let list: Value = serde_json::from_str(&told.stdout).ok().filter(|_| told.code == 0)?;
    let name = |member: &Value| member["name"].as_str().unwrap_or_default().to_owned();
    let mut members: Vec<(String, bool)> = list["members"]
        .as_array()?
        .iter()
        .map(|member| (name(member), member["isLearner"].as_bool().unwrap_or(false)))
        .collect();
    members.sort();
    Some(members)
}

fn id(store: &Store, name: &str) -> String {
    let list = store.json_of(&[0], &["member", "list"]);
    let found = list["members"].as_array().expect("members").iter().find(|member| member["name"] == name);
    format!("{:x}", found.expect("a member")["ID"].as_u64().expect("an id"))
}

/// etcd kept who is a member in two places, wrote some changes to one of them only, and after an upgrade believed the other: members that
/// had been removed were back, promoted ones only learned again. Here there is one: the log, and what is applied of it, in the same write
/// as the data. Removed stays removed and promoted stays promoted through restarts, on every member, also once the log is cut.
#[test]
fn etcd_19557_20967_removed_members_stay_away_and_promoted_ones_go_on_voting() {
    let mut store = Store::growing(4);
    let short = ["--snapshot-count=50", "--snapshot-catchup-entries=5"];
    store.start(0, &short);
    store.until("it serves", || store.etcdctl_of(&[0], &["put", "a", "0"]).code == 0);
    for at in 1..4 {
        let (name, port) = (store.members[at].name.clone(), store.members[at].peer);
        let url = format!("--peer-urls=http://127.0.0.1:{port}");
        let learns: &[&str] = if at == 3 { &["--learner"] } else { &[] };
        store.etcdctl_of(&[0], &[&["member", "add", &name, &url], learns].concat()).ok();
        store.start(at, &short);
        store.until("it is told of", || told_by(&store, 0).is_some_and(|all| all.iter().any(|(one, _)| *one == name)));
        if at == 3 {
            let id = id(&store, &name);
            store.until("it is promoted", || store.etcdctl_of(&[0], &["member", "promote", &id]).code == 0);
        }
        store.until("it votes", || told_by(&store, 0).is_some_and(|all| all.contains(&(name.clone(), false))));
    }
    let gone = id(&store, "m1");
    store.etcdctl_of(&[0], &["member", "remove", &gone]).ok();
    assert_eq!(store.ended(1), Some(0), "{}", store.log(1));
    let expected: Vec<(String, bool)> = ["m0", "m2", "m3"].map(|name| (name.to_owned(), false)).into();
    for round in 0..2 {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            for value in 0..120 {
                write(&store, &[0, 2, 3], 1000 * round + value).await;
            }
        });
        for at in [0, 2, 3] {
            store.signal(at, Signal::SIGKILL);
            store.ended(at);
        }
        [0, 2, 3].into_iter().for_each(|at| store.start(at, &short));
        for at in [0, 2, 3] {
            store.until("it tells who is a member", || told_by(&store, at).is_some());
            assert_eq!(told_by(&store, at).as_ref(), Some(&expected), "as member {at} tells it, after restart {round}");
        }
    }
    // The promoted one counts: with it, and without another, there is a majority.
    store.signal(0, Signal::SIGKILL);
    store.ended(0);
    store.until("two of three go on", || store.etcdctl_of(&[2, 3], &["put", "a", "1"]).code == 0);
}
