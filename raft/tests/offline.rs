//! What is done to data directories while nobody runs on them, and members that start on the result.

mod support;

use bytes::Bytes;
use pintle_base::clock;
use pintle_raft::offline::{Founding, OfflineError, force_alone, found};
use pintle_raft::{Committed, LogId, Payload, Role, StateMachine};
use support::ledger::Ledger;
use support::{CLUSTER, Cluster, DEADLINE, peer};

/// Makes the directories of a cluster that begins with `commands`, and returns it, not started.
fn founded(size: u64, commands: &[&str]) -> Cluster {
    let cluster = Cluster::new(size, |_| ());
    let at = LogId { term: 1, index: 7 };
    for member in &cluster.members {
        let peers = member.options.peers.clone();
        let founding = Founding { cluster_id: CLUSTER, group_id: 0, node_id: member.options.id, peers, at };
        let mut ledger = Ledger::open(&member.state_dir());
        let payloads = [
            (5, Payload::Membership(founding.membership().expect("members"))),
            (7, Payload::Commands(commands.iter().map(|command| Bytes::from((*command).to_owned())).collect())),
        ];
        for (index, payload) in payloads {
            ledger.apply(Committed { log_id: LogId { term: 1, index }, payload }).expect("apply");
        }
        ledger.flush().expect("flush");
        // Only what is the state machine's own may be there: it lies inside the data directory in these tests.
        let dir = member.options.data_dir.with_extension("raft");
        found(&dir, &founding, |into| ledger.checkpoint(into)).expect("found");
        for entry in std::fs::read_dir(&dir).expect("list") {
            let entry = entry.expect("entry");
            std::fs::rename(entry.path(), member.options.data_dir.join(entry.file_name())).expect("move");
        }
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_begins_with_a_state_and_goes_on_from_there() {
    let mut cluster = founded(3, &["a", "b"]);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.members[leader].propose("c").await, "3");
    for member in &cluster.members {
        assert_eq!(member.read().await, ["a", "b", "c"]);
    }
    // A member that comes later gets the state, not only what was logged since.
    let fourth = peer(4);
    let new = cluster.push_joining(&fourth, |_| ());
    cluster.members[new].start().await;
    cluster.members[0].handle().add_learner(fourth).await.expect("add");
    assert_eq!(cluster.members[new].read().await, ["a", "b", "c"]);
    cluster.stop().await;
}

#[test]
fn nothing_is_founded_where_something_is() {
    let cluster = founded(1, &["a"]);
    let at = LogId { term: 1, index: 1 };
    let again = Founding { cluster_id: CLUSTER, group_id: 0, node_id: 1, peers: vec![peer(1)], at };
    let refused = found(&cluster.members[0].options.data_dir, &again, |_| Ok(()));
    assert!(matches!(refused, Err(OfflineError::NotEmpty { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_member_goes_on_alone_with_everything_it_has() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for command in ["a", "b", "c"] {
        cluster.members[leader].propose(command).await;
    }
    let last = (leader + 1) % 3;
    assert_eq!(cluster.members[last].read().await, ["a", "b", "c"]);
    for member in &mut cluster.members {
        member.kill().await;
    }
    let dir = cluster.members[last].options.data_dir.clone();
    let id = cluster.members[last].options.id;
    let mut gone = force_alone(&dir).expect("forced");
    gone.sort_unstable();
    assert_eq!(gone, (1..=3).filter(|other| *other != id).collect::<Vec<u64>>());
    assert_eq!(force_alone(&dir).expect("nothing to do"), Vec::<u64>::new());

    let member = &mut cluster.members[last];
    member.start().await;
    let mut status = member.handle().status_watch();
    let leads = status.wait_for(|status| status.role == Role::Leader && status.voters().count() == 1);
    clock::timeout(DEADLINE, leads).await.expect("in time").expect("a status");
    assert_eq!(member.propose("d").await, "4");
    assert_eq!(member.read().await, ["a", "b", "c", "d"]);
    member.kill().await;
    member.start().await;
    assert_eq!(member.read().await, ["a", "b", "c", "d"]);
    cluster.stop().await;
}

#[test]
fn a_member_that_never_was_one_is_not_forced() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let refused = force_alone(dir.path());
    assert!(matches!(refused, Err(OfflineError::NoMember { .. })), "{refused:?}");
}
