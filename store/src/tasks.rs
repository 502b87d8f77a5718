//! What runs beside requests: following the leadership, ending leases, compacting history, watching the quota, making this
//! member's URLs known. Ending leases and compacting happen on the leader only,
//! and their proposals are void if the leadership changed (I9).

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pintle_base::{clock, task};
use pintle_proto::etcdserverpb::AlarmType;
use pintle_proto::store_v1::Alarm;
use pintle_proto::store_v1::command::Operation;
use tokio_util::sync::CancellationToken;

use crate::consensus::standing;
use crate::error::StoreError;
use crate::store::{Leadership, Shared, Store};
use crate::{compaction, limits};

/// Turns Raft's status into [`Leadership`], and restarts lease times whenever the leader changed.
pub(crate) fn follow_leadership(shared: &Arc<Shared>, raft: &pintle_raft::Handle, group: &task::Group) {
    let shared = Arc::clone(shared);
    let mut status = raft.status_watch();
    group.spawn_until_stopped("store-leadership", async move {
        loop {
            let now = standing(&status.borrow_and_update());
            shared.set_leadership(Leadership { leading: now.leading, term: now.term, leader: now.leader });
            if status.changed().await.is_err() {
                shared.set_leadership(Leadership { leading: false, term: now.term, leader: None });
                return;
            }
        }
    });
}

impl Shared {
    pub fn set_leadership(&self, now: Leadership) {
        let mut restarted = false;
        self.leadership.send_if_modified(|before| {
            restarted = now.leader.is_some() && (before.leader, before.term) != (now.leader, now.term);
            let changed = *before != now;
            if restarted {
                // Before anybody can act as the new leader.
                self.leases.prolong(self.options.request_timeout);
            }
            *before = now;
            changed
        });
        if restarted {
            self.metrics.counters.leader_changes.inc();
            tracing::info!(term = now.term, leader = now.leader, leading = now.leading, "leader changed");
        }
    }
}

/// Proposes the end of leases whose time is over.
pub(crate) fn expire_leases(store: &Store, group: &task::Group) {
    let store = store.clone();
    group.spawn_until_stopped("store-lease-expiry", async move {
        let mut ticker = clock::ticker(crate::limits::LEASE_TICK);
        let leadership = store.leadership();
        loop {
            ticker.tick().await;
            let now = *leadership.borrow();
            if !now.leading {
                continue;
            }
            let mut proposals: FuturesUnordered<_> = store
                .shared()
                .leases
                .take_due()
                .into_iter()
                .map(|expire| store.propose(Operation::LeaseExpire(expire), Some(now.term)))
                .collect();
            store.metrics().counters.leases_expired.inc_by(proposals.len() as u64);
            while let Some(ended) = proposals.next().await {
                match ended {
                    // Renewed, revoked, or led by another meanwhile: nothing to end.
                    Ok(_) | Err(StoreError::LeaseNotFound | StoreError::Fenced { .. }) => (),
                    Err(error) => tracing::debug!(%error, "lease was not ended, will retry"),
                }
            }
        }
    });
}

/// Forgets history as the options say, on the leader.
pub(crate) fn compact_automatically(store: &Store, group: &task::Group) {
    let Some(mode) = store.options().auto_compaction else { return };
    let store = store.clone();
    group.spawn_until_stopped("store-auto-compaction", async move {
        let leadership = store.leadership();
        let mut plan = compaction::Plan::new(mode);
        let mut ticker = clock::ticker(mode.pause());
        loop {
            ticker.tick().await;
            let due = plan.next(clock::now(), store.revision(), store.compact_revision());
            let now = *leadership.borrow();
            let Some(due) = due.filter(|_| now.leading) else { continue };
            match store.propose(Operation::Compact(due), Some(now.term)).await {
                Ok(_) => tracing::debug!(revision = due, "history compacted"),
                Err(StoreError::Compacted { .. } | StoreError::Fenced { .. }) => (),
                Err(error) => tracing::warn!(%error, "history was not compacted, will retry"),
            }
        }
    });
}

/// Looks at how much room the data takes, and raises this member's alarm when it is beyond the quota. While it is raised, what
/// a compaction of history freed is given back at once, and then the alarm is cleared: nobody has to do it by hand.
pub(crate) fn watch_space(store: &Store, group: &task::Group) {
    let Some(quota) = store.options().quota_bytes else { return };
    let (store, me, stop) = (store.clone(), store.options().member_id, group.token());
    group.spawn_until_stopped("store-space", async move {
        let mut ticker = clock::ticker(limits::SPACE_TICK);
        let (mut over, mut reclaimed) = (false, 0);
        loop {
            ticker.tick().await;
            let scrubbed = store.shared().scrubbed();
            if over && scrubbed > reclaimed {
                reclaimed = scrubbed;
                reclaim(&store, &stop).await;
            }
            let size = store.shared().engine.current().size().0;
            store.shared().about.set_size(size);
            let raised = store.alarms().contains(&Alarm { member: me, kind: NO_SPACE });
            let wanted = if raised { size >= quota / 10 * 9 } else { size > quota };
            over = wanted;
            if wanted == raised {
                continue;
            }
            match store.set_alarm(me, NO_SPACE, wanted).await {
                Ok(_) if wanted => {
                    tracing::warn!(size, quota, "no space: nothing is taken in until there is room again")
                }
                Ok(_) => tracing::info!(size, quota, "there is space again"),
                Err(error) => tracing::debug!(%error, "the alarm for space was not set, will retry"),
            }
        }
    });
}

/// Gives the room of removed history back once there was half as much of it as is left, and at least [`limits::RECLAIM_ROWS`]: then the tables,
/// and after them the checkpoint that still holds the old ones.
pub(crate) fn give_back(store: &Store, group: &task::Group) {
    let (store, stop) = (store.clone(), group.token());
    group.spawn_until_stopped("store-give-back", async move {
        let mut scrubbed = store.shared().scrub.progress();
        let mut given_back = 0;
        while scrubbed.changed().await.is_ok() {
            let removed = store.shared().scrub.removed();
            let left = store.shared().engine.current().rows();
            if removed - given_back < (left / 2).max(limits::RECLAIM_ROWS) {
                continue;
            }
            given_back = removed;
            reclaim(&store, &stop).await;
            if let Ok(consensus) = store.shared().consensus() {
                consensus.snapshot();
            }
        }
    });
}

async fn reclaim(store: &Store, stop: &CancellationToken) {
    let (engine, stop) = (Arc::clone(&store.shared().engine), stop.clone());
    match tokio::task::spawn_blocking(move || engine.current().reclaim(&|| !stop.is_cancelled())).await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => tracing::warn!(%error, "the room of what was deleted was not given back"),
        Err(error) => tracing::debug!(%error, "giving room back was broken off"),
    }
}

const NO_SPACE: i32 = AlarmType::Nospace as i32;

/// Has members vote that are to, once they have caught up.
pub(crate) fn promote_members(store: &Store, group: &task::Group) {
    let store = store.clone();
    group.spawn_until_stopped("store-promotion", async move {
        let mut ticker = clock::ticker(limits::PROMOTE_TICK);
        loop {
            ticker.tick().await;
            if !store.standing().leading {
                continue;
            }
            let about = &store.shared().about;
            let waiting = store.members().into_iter().filter(|one| one.learner && about.is_expected_to_vote(one.id));
            for member in waiting {
                match store.promote(member.id).await {
                    Ok(()) => tracing::info!(id = member.id, name = member.name, "member has caught up, it votes now"),
                    Err(error) => tracing::debug!(%error, id = member.id, "member does not vote yet"),
                }
            }
        }
    });
}

/// Has a key made to sign logins with where a restored state has none.
pub(crate) fn make_token_key(store: &Store, group: &task::Group) {
    let store = store.clone();
    if !store.auth().lacks_key() {
        return;
    }
    group.spawn_until_stopped("store-token-key", async move {
        let mut leadership = store.leadership();
        while store.auth().lacks_key() {
            if leadership.wait_for(|now| now.leader.is_some()).await.is_err() {
                return;
            }
            match store.auth_enable().await {
                Ok(_) => tracing::info!("a key to sign logins with was made; everybody has to log in again"),
                Err(error) => tracing::debug!(%error, "no key to sign logins with yet, will retry"),
            }
            clock::sleep(limits::PUBLISH_PAUSE).await;
        }
    });
}

/// Counts, on the leader, what was there when quotas were set.
pub(crate) fn count_quotas(store: &Store, group: &task::Group) {
    let store = store.clone();
    group.spawn_until_stopped("store-quotas", async move {
        let mut ticker = clock::ticker(limits::QUOTA_TICK);
        let leadership = store.leadership();
        loop {
            ticker.tick().await;
            let now = *leadership.borrow();
            if !now.leading {
                continue;
            }
            for (prefix, since) in store.uncounted_quotas() {
                match store.count_quota(prefix, since, now.term).await {
                    Ok(()) | Err(StoreError::Fenced { .. }) => (),
                    Err(error) => tracing::debug!(%error, "a quota's prefix was not counted, will retry"),
                }
            }
        }
    });
}

/// Makes this member's name and client URLs known, if they are not yet.
pub(crate) fn publish(store: &Store, group: &task::Group) {
    let store = store.clone();
    let own = store.attributes();
    if own.client_urls.is_empty() {
        return;
    }
    group.spawn_until_stopped("store-publish", async move {
        let mut leadership = store.leadership();
        while store.shared().about.member(own.id).as_ref() != Some(&own) {
            if leadership.wait_for(|now| now.leader.is_some()).await.is_err() {
                return;
            }
            if let Err(error) = store.publish().await {
                tracing::debug!(%error, "this member's client URLs were not made known, will retry");
            }
            // Until it is applied here, too: a member that has much to catch up must not say it again and again.
            clock::sleep(limits::PUBLISH_PAUSE).await;
        }
    });
}
