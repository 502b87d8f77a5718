//! Locks and elections over a real connection.

use std::time::Duration;

use bytes::Bytes;
use pintle_base::clock;
use pintle_proto::etcdserverpb::{LeaseGrantRequest, RangeRequest};
use pintle_proto::v3electionpb::election_client::ElectionClient;
use pintle_proto::v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use pintle_proto::v3lockpb::lock_client::LockClient;
use pintle_proto::v3lockpb::{LockRequest, UnlockRequest};
use tonic::Code;
use tonic::transport::Channel;

use super::front::served;
use crate::recipe::{Claim, RecipeError};
use crate::store::Store;

async fn lease(store: &Store) -> i64 {
    store.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().id
}

fn lock_of(lease: i64) -> LockRequest {
    LockRequest { name: Bytes::from_static(b"jobs"), lease }
}

async fn keys(store: &Store) -> Vec<Bytes> {
    let all =
        RangeRequest { key: Bytes::from_static(b"jobs"), range_end: Bytes::from_static(b"jobt"), ..Default::default() };
    store.range(all).await.unwrap().kvs.into_iter().map(|kv| kv.key).collect()
}

/// Waits until `count` contenders have entered.
async fn entered(store: &Store, count: usize) {
    let all = async {
        while keys(store).await.len() != count {
            clock::sleep(Duration::from_millis(5)).await;
        }
    };
    clock::timeout(Duration::from_secs(20), all).await.expect("contenders enter in time");
}

fn waiting(channel: &Channel, lease: i64) -> tokio::task::JoinHandle<Result<Bytes, tonic::Status>> {
    let mut client = LockClient::new(channel.clone());
    tokio::spawn(async move { Ok(client.lock(lock_of(lease)).await?.into_inner().key) })
}

#[tokio::test]
async fn a_lock_goes_from_the_oldest_key_to_the_next_and_skips_who_gave_up() {
    let (local, channel) = served().await;
    let store = &local.store;
    let (first, second, third) = (lease(store).await, lease(store).await, lease(store).await);
    let mut client = LockClient::new(channel.clone());
    let held = client.lock(lock_of(first)).await.unwrap().into_inner();
    assert_eq!(held.key, format!("jobs/{first:x}"));
    assert!(held.header.unwrap().revision > 1);
    let again = client.lock(lock_of(first)).await.unwrap().into_inner();
    assert_eq!(again.key, held.key, "who holds it gets it again");

    let gave_up = waiting(&channel, second);
    entered(store, 2).await;
    let next = waiting(&channel, third);
    entered(store, 3).await;
    gave_up.abort();
    entered(store, 2).await;
    assert!(!next.is_finished());
    client.unlock(UnlockRequest { key: held.key }).await.unwrap();
    let key = clock::timeout(Duration::from_secs(20), next).await.expect("in time").unwrap().unwrap();
    assert_eq!(key, format!("jobs/{third:x}"));
}

#[tokio::test]
async fn who_lost_its_lease_while_it_waited_does_not_get_the_lock() {
    let (local, channel) = served().await;
    let store = &local.store;
    let mut client = LockClient::new(channel.clone());
    let unknown = client.lock(lock_of(77)).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (Code::Unknown, "etcdserver: requested lease not found"));

    let holder = client.lock(lock_of(0)).await.unwrap().into_inner();
    let lost = lease(store).await;
    let waits = waiting(&channel, lost);
    entered(store, 2).await;
    store.lease_revoke(lost).await.unwrap();
    client.unlock(UnlockRequest { key: holder.key }).await.unwrap();
    let refused = clock::timeout(Duration::from_secs(40), waits).await.expect("in time").unwrap().unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, "mutex: session is expired"));
    assert_eq!(keys(store).await, Vec::<Bytes>::new());
}

/// Nobody was before it, and still it may not be told that it has the lock.
#[tokio::test]
async fn a_contender_whose_key_went_before_its_turn_was_looked_at_has_nothing() {
    let (local, _channel) = served().await;
    let lost = lease(&local.store).await;
    let claim = Claim::enter(&local.store, b"jobs", lost, Bytes::new()).await.unwrap();
    local.store.lease_revoke(lost).await.unwrap();
    assert!(matches!(claim.win().await, Err(RecipeError::SessionExpired)));
}

#[tokio::test]
async fn an_election_has_one_leader_whose_values_observers_see() {
    let (local, channel) = served().await;
    let store = &local.store;
    let mut client = ElectionClient::new(channel.clone());
    let name = Bytes::from_static(b"jobs");
    let ask = LeaderRequest { name: name.clone() };
    let nobody = client.leader(ask.clone()).await.unwrap_err();
    assert_eq!((nobody.code(), nobody.message()), (Code::Unknown, "election: no leader"));
    let unnamed = client.resign(ResignRequest { leader: None }).await.unwrap_err();
    assert_eq!((unnamed.code(), unnamed.message()), (Code::Unknown, r#""leader" field must be provided"#));

    let mut seen = client.observe(ask.clone()).await.unwrap().into_inner();
    let campaign = |lease, value: &'static str| CampaignRequest {
        name: Bytes::from_static(b"jobs"),
        lease,
        value: Bytes::from(value),
    };
    let (first, second) = (lease(store).await, lease(store).await);
    let leader = client.campaign(campaign(first, "a")).await.unwrap().into_inner().leader.unwrap();
    assert_eq!((&leader.name, &leader.key, leader.lease), (&name, &Bytes::from(format!("jobs/{first:x}")), first));
    client.campaign(campaign(first, "b")).await.unwrap();
    let mut other = client.clone();
    let next = tokio::spawn(async move { other.campaign(campaign(second, "c")).await });
    entered(store, 2).await;
    let proclaim = ProclaimRequest { leader: Some(leader.clone()), value: Bytes::from_static(b"d") };
    client.proclaim(proclaim.clone()).await.unwrap();
    assert_eq!(client.leader(ask).await.unwrap().into_inner().kv.unwrap().value, "d");
    client.resign(ResignRequest { leader: Some(leader) }).await.unwrap();
    let won = clock::timeout(Duration::from_secs(20), next).await.expect("in time").unwrap().unwrap().into_inner();
    assert_eq!(won.leader.unwrap().lease, second);
    let late = client.proclaim(proclaim).await.unwrap_err();
    assert_eq!((late.code(), late.message()), (Code::Unknown, "election: not leader"));

    let mut values = Vec::new();
    while values.last() != Some(&Bytes::from_static(b"c")) {
        let next = clock::timeout(Duration::from_secs(20), seen.message()).await.expect("in time");
        let answer = next.unwrap().expect("open");
        assert!(answer.header.unwrap().revision >= answer.kv.as_ref().unwrap().mod_revision);
        values.push(answer.kv.unwrap().value);
    }
    // The observer may have begun after the first value; it sees all that follow, in order.
    assert!(["a", "b", "d", "c"].map(Bytes::from).ends_with(&values), "{values:?}");
}
