//! Whole members talking TLS over loopback: elections, proposals from everywhere, crashes, snapshots, changes of members.

mod support;

use std::time::Duration;

use bytes::Bytes;
use pintle_base::clock;
use pintle_raft::{ChangeError, Fatal, ProposeError, Role, limits};
use support::{Authority, Cluster, DEADLINE, eventually, peer};

#[tokio::test(flavor = "multi_thread")]
async fn every_member_takes_proposals_and_serves_linearizable_reads() {
    let cluster = Cluster::start(3).await;
    cluster.leader().await;
    for (n, member) in cluster.members.iter().enumerate() {
        assert_eq!(member.propose(&format!("c{n}")).await, (n + 1).to_string());
    }
    for member in &cluster.members {
        assert_eq!(member.read().await, ["c0", "c1", "c2"]);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_member_works_alone_and_remembers() {
    let mut cluster = Cluster::start(1).await;
    assert_eq!(cluster.members[0].propose("a").await, "1");
    cluster.members[0].kill().await;
    cluster.members[0].start().await;
    assert_eq!(cluster.members[0].read().await, ["a"]);
    assert_eq!(cluster.members[0].propose("b").await, "2");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_go_on_without_the_leader_and_it_catches_up() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.members[leader].propose("before").await;
    cluster.members[leader].kill().await;
    let other = (leader + 1) % 3;
    // A write that meets no leader waits for one.
    cluster.members[other].propose("after").await;
    cluster.members[leader].start().await;
    assert_eq!(cluster.members[leader].read().await, ["before", "after"]);
    assert_eq!(cluster.members[leader].propose("again").await, "3");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_survives_a_crash_of_all_members() {
    let mut cluster = Cluster::start(3).await;
    cluster.leader().await;
    for n in 0..20 {
        cluster.members[n % 3].propose(&format!("c{n}")).await;
    }
    for member in &mut cluster.members {
        member.kill().await;
    }
    cluster.start_all().await;
    for member in &cluster.members {
        assert_eq!(member.read().await.len(), 20);
    }
    let digest = cluster.members[0].ledger.digest();
    assert!(cluster.members.iter().all(|member| member.ledger.digest() == digest));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_proposals_share_entries_and_keep_their_answers() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let before = cluster.members[leader].handle().status().last_log;
    let calls: Vec<_> = (0..600)
        .map(|n| {
            let handle = cluster.members[n % 3].handle().clone();
            tokio::spawn(async move { handle.propose(Bytes::from(format!("c{n}"))).await })
        })
        .collect();
    let mut replies = Vec::new();
    for call in calls {
        let reply = call.await.expect("call").expect("reply");
        replies.push(String::from_utf8_lossy(&reply).parse::<usize>().expect("number"));
    }
    let applied = cluster.members[leader].read().await;
    for (n, reply) in replies.iter().enumerate() {
        assert_eq!(applied[reply - 1], format!("c{n}"), "the reply belongs to the command");
    }
    let entries = cluster.members[leader].handle().status().last_log - before;
    assert!(entries < 300, "{entries} entries for 600 commands");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_can_be_handed_over_from_any_member() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let target = (leader + 1) % 3;
    let asked = (leader + 2) % 3;
    let id = cluster.members[target].options.id;
    cluster.members[asked].handle().transfer_leader(Some(id)).await.expect("transfer");
    assert_eq!(cluster.leader().await, target);
    cluster.members[leader].propose("after").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_shuts_down_hands_over_first() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let term = cluster.members[leader].handle().status().term;
    let handle = cluster.members[leader].running.take().expect("running");
    clock::timeout(DEADLINE, handle.shutdown()).await.expect("in time");
    assert_eq!(handle.stopped().await, Fatal::Shutdown);
    assert_eq!(handle.propose(Bytes::from_static(b"late")).await, Err(ProposeError::Stopped));
    let next = cluster.leader().await;
    assert_eq!(cluster.members[next].handle().status().term, term + 1, "one election, not a series");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_gets_a_snapshot_and_can_be_promoted_and_removed() {
    let adjust = |options: &mut pintle_raft::Options| {
        options.snapshot_entries = 10;
        options.entries_kept = 2;
    };
    let mut cluster = Cluster::new(3, adjust);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    for n in 0..40 {
        cluster.members[leader].propose(&format!("c{n}")).await;
    }
    let purged = || cluster.members[leader].handle().status_watch().borrow().purged;
    eventually("the leader has purged its log", || purged() > 10).await;

    let fourth = peer(4);
    let new = cluster.push_joining(&fourth, adjust);
    cluster.members[new].start().await;
    cluster.members[0].handle().add_learner(fourth).await.expect("add");
    assert_eq!(cluster.members[new].read().await.len(), 40);
    let status = cluster.members[new].handle().status();
    assert_eq!(status.role, Role::Learner);
    let snapshot = || cluster.members[new].handle().status_watch().borrow().snapshot;
    eventually("it came as a snapshot", || snapshot() > 10).await;

    cluster.members[1].handle().promote(4).await.expect("promote");
    let voters = || cluster.members[new].handle().status().voters().count();
    eventually("the new member votes", || voters() == 4).await;
    cluster.members[1].handle().remove(4).await.expect("remove");
    eventually("the member is gone", || cluster.members[leader].handle().status().peers.len() == 3).await;
    assert_eq!(cluster.members[leader].propose("after").await, "41");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_members_that_are_asked_for_together_are_made_one_after_the_other() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (fourth, fifth) = (peer(4), peer(5));
    for new in [&fourth, &fifth] {
        let at = cluster.push_joining(new, |_| ());
        cluster.members[at].start().await;
    }
    let handle = |member: usize| cluster.members[member].handle();
    let (one, two) = tokio::join!(handle(0).add_learner(fourth), handle(1).add_learner(fifth));
    assert_eq!((one, two), (Ok(()), Ok(())));
    for new in [3, 4] {
        eventually("the learner has caught up", || !handle(new).status().joining).await;
    }
    let (one, two) = tokio::join!(handle(0).promote(4), handle(1).promote(5));
    assert_eq!((one, two), (Ok(()), Ok(())));
    eventually("five vote", || handle(leader).status_watch().borrow().voters().count() == 5).await;
    let (one, two) = tokio::join!(handle(1).remove(4), handle(2).remove(5));
    assert_eq!((one, two), (Ok(()), Ok(())));
    eventually("three are left", || handle(leader).status_watch().borrow().peers.len() == 3).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_reply_reaches_a_follower_and_does_not_spoil_those_beside_it() {
    let cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let handle = cluster.members[follower].handle();
    // The ledger answers `reply N` with N bytes.
    let ask = |bytes: usize| handle.propose(Bytes::from(format!("reply {bytes}")));
    let most = limits::REPLY_BYTES;
    let (a, b, large, too_large, c) = tokio::join!(ask(1), ask(most - 1), ask(most), ask(most + 1), ask(3));
    let lengths = [a, b, large, c].map(|reply| reply.expect("a reply").len());
    assert_eq!(lengths, [1, most - 1, most, 3]);
    assert_eq!(too_large, Err(ProposeError::ReplyTooLarge));
    assert_eq!(cluster.members[follower].read().await.len(), 5, "all were applied");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_without_its_log_says_what_to_do() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].propose("a").await;
    cluster.members[0].kill().await;
    let dir = cluster.members[0].options.data_dir.clone();
    std::fs::remove_dir_all(dir.join("log")).expect("remove");
    std::fs::remove_file(dir.join("low-water-mark")).expect("remove");
    let error = cluster.members[0].try_start().await.expect_err("it must not found anew");
    assert!(error.to_string().contains("remove the whole directory, so that the member joins again"), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_too_long_gets_a_snapshot() {
    let mut cluster = Cluster::new(3, |options| {
        options.snapshot_entries = 10;
        options.entries_kept = 2;
    });
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    cluster.members[leader].propose("first").await;
    cluster.members[away].kill().await;
    for n in 0..50 {
        cluster.members[leader].propose(&format!("c{n}")).await;
    }
    let purged = || cluster.members[leader].handle().status_watch().borrow().purged;
    eventually("the leader has purged its log", || purged() > 20).await;
    cluster.members[away].start().await;
    assert_eq!(cluster.members[away].read().await.len(), 51);
    // And what was installed survives a crash.
    cluster.members[away].kill().await;
    cluster.members[away].start().await;
    assert_eq!(cluster.members[away].read().await.len(), 51);
    assert_eq!(cluster.members[away].ledger.digest(), cluster.members[leader].ledger.digest());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_large_entries_few_are_kept_behind_a_snapshot() {
    let mut cluster = Cluster::new(1, |options| {
        options.snapshot_bytes = 1 << 20;
        options.bytes_kept = 1 << 20;
    });
    cluster.start_all().await;
    let member = &cluster.members[0];
    let large = "x".repeat(10 << 10);
    for n in 0..600 {
        member.propose(&format!("{n} {large}")).await;
    }
    let purged = || member.handle().status_watch().borrow().purged;
    // By number alone all of them would be kept: a snapshot holds 500 and more.
    eventually("the log is purged", || purged() > 300).await;
    assert!(purged() < 545, "64 are kept in any case: {}", purged());
    assert_eq!(member.read().await.len(), 600);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_member_does_not_vote_until_it_has_caught_up() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.members[leader].propose("kept").await;
    let wiped = (leader + 1) % 3;
    cluster.members[wiped].kill().await;
    std::fs::remove_dir_all(&cluster.members[wiped].options.data_dir).expect("wipe");
    cluster.members[wiped].start().await;
    assert_eq!(cluster.members[wiped].read().await, ["kept"]);
    // Now it counts again: without the leader, the two others go on.
    eventually("it is admitted", || !cluster.members[wiped].handle().status().joining).await;
    cluster.members[leader].kill().await;
    cluster.members[wiped].propose("after").await;
    cluster.stop().await;
}

/// The leader cannot do without the wiped member's word, which it gives before it votes: else neither could ever read again.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_members_comes_back_without_its_disk() {
    let mut cluster = Cluster::start(2).await;
    let leader = cluster.leader().await;
    cluster.members[leader].propose("kept").await;
    let wiped = 1 - leader;
    cluster.members[wiped].kill().await;
    std::fs::remove_dir_all(&cluster.members[wiped].options.data_dir).expect("wipe");
    cluster.members[wiped].start().await;
    for member in &cluster.members {
        assert_eq!(member.read().await, ["kept"]);
    }
    eventually("it is admitted", || !cluster.members[wiped].handle().status().joining).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_acknowledged() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for member in 0..3 {
        if member != leader {
            cluster.members[member].kill().await;
        }
    }
    let handle = cluster.members[leader].handle().clone();
    let (write, read) = tokio::join!(handle.propose(Bytes::from_static(b"x")), handle.read_index());
    assert!(matches!(write, Err(ProposeError::NoLeader | ProposeError::Unknown { .. })) || write.is_err(), "{write:?}");
    assert!(read.is_err(), "{read:?}");
    eventually("the leader knows that it leads nobody", || !handle.status().is_leader()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_of_other_members_and_clusters_are_refused() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    cluster.members[0].kill().await;
    cluster.members[0].options.cluster_id += 1;
    let error = cluster.members[0].try_start().await.expect_err("another cluster's directory");
    assert!(error.to_string().contains("belongs to cluster c1, this is cluster c2"), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_ahead_of_its_log_is_refused() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].propose("a").await;
    // Durable state, then a log that never held it.
    let handle = cluster.members[0].running.take().expect("running");
    handle.shutdown().await;
    let dir = cluster.members[0].options.data_dir.clone();
    for file in ["log", "low-water-mark", "identity", "snap"] {
        let path = dir.join(file);
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.expect("remove");
    }
    let error = cluster.members[0].try_start().await.expect_err("a state without its log");
    assert!(error.to_string().starts_with("the state holds entry 1."), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_another_name_in_its_certificate_is_ignored() {
    let mut cluster = Cluster::new(3, |_| ());
    cluster.members[2].options.peering = cluster.authority.tls("server-9").into();
    cluster.start_all().await;
    for member in &cluster.members[..2] {
        assert!(member.handle().read_index().await.is_ok());
    }
    assert_eq!(cluster.members[2].handle().status().leader, None);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_strangers_certificate_is_ignored() {
    let mut cluster = Cluster::new(3, |_| ());
    cluster.members[2].options.peering = Authority::new().tls("server-3").into();
    cluster.start_all().await;
    for member in &cluster.members[..2] {
        assert!(member.handle().read_index().await.is_ok());
    }
    assert_eq!(cluster.members[2].handle().status().leader, None);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_while_applying_is_final() {
    let cluster = Cluster::start(1).await;
    cluster.members[0].propose("a").await;
    let handle = cluster.members[0].handle().clone();
    let broken = clock::timeout(DEADLINE, handle.propose(Bytes::from_static(b"break"))).await.expect("in time");
    assert!(matches!(broken, Err(ProposeError::Unknown { .. })), "{broken:?}");
    let reason = clock::timeout(DEADLINE, handle.stopped()).await.expect("in time");
    assert_eq!(reason, Fatal::Machine("asked to break".to_owned()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_with_a_reason() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let handle = cluster.members[0].handle();
    let large = Bytes::from(vec![0; limits::COMMAND_BYTES + 1]);
    assert_eq!(handle.propose(large).await, Err(ProposeError::TooLarge { bytes: limits::COMMAND_BYTES + 1 }));
    let mut lonely = cluster.members[0].options.clone();
    lonely.join = true;
    lonely.data_dir = lonely.data_dir.join("lonely");
    let group = pintle_base::task::Group::new("test");
    let started = pintle_raft::start(lonely, cluster.members[0].ledger.clone(), &group);
    let error = started.await.expect_err("nobody to ask");
    assert_eq!(error.to_string(), "raft option: a joining member needs the address of at least one voter");
    let refused = |text: &str| Err(ChangeError::Refused(text.to_owned()));
    assert_eq!(handle.promote(9).await, refused("there is no member 9"));
    assert_eq!(handle.remove(1).await, refused("the last voter cannot be removed"));
    assert_eq!(handle.transfer_leader(None).await, refused("there is no other voter"));
    assert_eq!(handle.propose(Bytes::from(vec![1; limits::COMMAND_BYTES])).await.as_deref(), Ok(&b"1"[..]));
    clock::timeout(Duration::from_secs(5), handle.shutdown()).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_purges_and_a_crash_under_load_leave_all_members_equal() {
    let mut cluster = Cluster::new(3, |options| {
        options.snapshot_entries = 50;
        options.entries_kept = 20;
    });
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let clients: Vec<_> = (0..32)
        .map(|client| {
            let handle = cluster.members[leader].handle().clone();
            tokio::spawn(async move {
                for n in 0..100 {
                    handle.propose(Bytes::from(format!("{client}/{n}"))).await.expect("reply");
                }
            })
        })
        .collect();
    let follower = (leader + 1) % 3;
    for _ in 0..2 {
        let before = cluster.members[leader].ledger.count();
        eventually("the load goes on", || cluster.members[leader].ledger.count() > (before + 300).min(3100)).await;
        cluster.members[follower].kill().await;
        cluster.members[follower].start().await;
    }
    for client in clients {
        client.await.expect("client");
    }
    for member in &cluster.members {
        assert_eq!(member.read().await.len(), 3200);
        assert_eq!(member.ledger.digest(), cluster.members[leader].ledger.digest());
    }
    let purged = || cluster.members[leader].handle().status_watch().borrow().purged;
    eventually("the log is purged", || purged() > 0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_in_plain_text_replicate_and_ignore_another_cluster() {
    let mut cluster = Cluster::new(3, |options| options.peering = pintle_raft::Peering::Plain);
    cluster.members[2].options.cluster_id += 1;
    cluster.start_all().await;
    let leader = cluster.members[0].handle().clone();
    eventually("two of three suffice", || leader.status().leader.is_some()).await;
    cluster.members[1].propose("in the clear").await;
    for member in &cluster.members[..2] {
        assert_eq!(member.read().await, ["in the clear"]);
    }
    let other = cluster.members[2].handle().status();
    assert_eq!((other.leader, other.applied), (None, 0), "nothing reached the other cluster's member");
    cluster.stop().await;
}
