//! Who the members are, which of them leads, what is wrong with them.

use pintle_base::clock;
use pintle_proto::etcdserverpb::AlarmResponse;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::{Alarm, MemberAttributes, SetAlarm};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::audit::describe_member;
use crate::consensus::{ChangeFailure, Member, MemberChange};
use crate::error::StoreError;
use crate::limits;
use crate::store::{Store, StoreOptions};

impl Store {
    /// The cluster's servers, in the order of their ids.
    pub fn members(&self) -> Vec<Member> {
        let mut members = self.shared().consensus().map(|consensus| consensus.members()).unwrap_or_default();
        members.sort_by_key(|member| member.id);
        for member in &mut members {
            let said = self.shared().about.member(member.id).unwrap_or_default();
            member.client_urls = said.client_urls;
            if !said.name.is_empty() {
                member.name = said.name;
            }
        }
        members
    }

    /// Adds a member that has still to be started, by the URL of its peer port. It learns first: a member that is to vote does so once
    /// it has caught up, so that adding one never costs the quorum.
    pub async fn add_member(&self, peer_urls: &[String], learner: bool) -> Result<Member, StoreError> {
        if !self.options().members_by_url {
            let reason = "members of this cluster are added by starting them with its token".to_owned();
            return Err(StoreError::Refused { reason });
        }
        let peer_addr = peer_address(peer_urls)?;
        self.may_administer().await?;
        let members = self.members();
        if members.iter().any(|member| member.peer_addr == peer_addr) {
            return Err(StoreError::PeerUrlExists);
        }
        let about = &self.shared().about;
        let only_learn =
            members.iter().filter(|member| member.learner && !about.is_expected_to_vote(member.id)).count();
        let learning = members.iter().filter(|member| member.learner).count();
        if (learner && only_learn >= self.options().max_learners) || learning >= limits::LEARNERS {
            return Err(StoreError::TooManyLearners);
        }
        let id = member_id(peer_urls);
        if !learner {
            self.propose(Operation::ExpectVoter(id), None).await?;
        }
        self.change(MemberChange::Add { id, peer_addr }).await?;
        self.member(id)
    }

    /// Records the address at which a member's peer port is from now on.
    pub async fn update_member(&self, id: u64, peer_urls: &[String]) -> Result<(), StoreError> {
        let peer_addr = peer_address(peer_urls)?;
        self.may_administer().await?;
        self.member(id)?;
        if self.members().iter().any(|member| member.id != id && member.peer_addr == peer_addr) {
            return Err(StoreError::PeerUrlExists);
        }
        self.change(MemberChange::Move { id, peer_addr }).await
    }

    /// Has a member that learns vote from now on.
    pub async fn promote(&self, id: u64) -> Result<(), StoreError> {
        self.may_administer().await?;
        let member = self.member(id)?;
        if !member.learner {
            return Err(StoreError::NotLearner);
        }
        self.change(MemberChange::Promote(id)).await.map_err(|error| match error {
            StoreError::Refused { .. } => StoreError::LearnerNotReady,
            error => error,
        })
    }

    /// Removes a member for ever.
    pub async fn remove_member(&self, id: u64) -> Result<(), StoreError> {
        self.may_administer().await?;
        self.member(id)?;
        self.change(MemberChange::Remove(id)).await
    }

    /// Hands the leadership, which this member must have, to another voter.
    pub async fn move_leader(&self, to: u64) -> Result<(), StoreError> {
        if !self.standing().leading {
            return Err(StoreError::NotLeader);
        }
        let votes = self.members().iter().any(|member| member.id == to && !member.learner);
        if !votes {
            return Err(StoreError::BadLeaderTransferee);
        }
        self.change(MemberChange::MoveLeader(to)).await
    }

    fn member(&self, id: u64) -> Result<Member, StoreError> {
        self.members().into_iter().find(|member| member.id == id).ok_or(StoreError::MemberNotFound)
    }

    async fn change(&self, change: MemberChange) -> Result<(), StoreError> {
        let entry = self.audit(|| describe_member(&change));
        let changed = self.try_to_change(change).await;
        if let Some(mut entry) = entry {
            match &changed {
                Ok(()) => entry.done(self.revision(), None),
                Err(error) => entry.failed(error),
            }
        }
        changed
    }

    async fn try_to_change(&self, change: MemberChange) -> Result<(), StoreError> {
        let consensus = self.shared().consensus()?;
        match clock::timeout(self.shared().options.request_timeout, consensus.change(change)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ChangeFailure::NotMade)) => Err(StoreError::NoLeader),
            Ok(Err(ChangeFailure::Refused(reason))) => Err(StoreError::Refused { reason }),
            Ok(Err(ChangeFailure::Unhealthy)) => Err(StoreError::Unhealthy),
            Ok(Err(ChangeFailure::Stopped)) => Err(StoreError::Stopped),
            Ok(Err(ChangeFailure::Unknown)) | Err(_) => Err(StoreError::Unknown),
        }
    }

    /// Raises or clears an alarm of a member; answers it if it is raised now, or was until now.
    pub async fn set_alarm(&self, member: u64, kind: i32, active: bool) -> Result<AlarmResponse, StoreError> {
        let set = SetAlarm { alarm: Some(Alarm { member, kind }), active };
        let (mut answer, revision): (AlarmResponse, _) = self.write(Operation::SetAlarm(set), None).await?;
        answer.header = self.header(revision);
        Ok(answer)
    }

    /// The alarms that are raised.
    pub fn alarms(&self) -> Vec<Alarm> {
        self.shared().about.alarms()
    }

    /// What this member says of itself.
    pub(crate) fn attributes(&self) -> MemberAttributes {
        let StoreOptions { member_id, client_urls, name, .. } = &self.shared().options;
        MemberAttributes { id: *member_id, client_urls: client_urls.clone(), name: name.clone() }
    }

    /// Tells the others how clients reach this member.
    pub(crate) async fn publish(&self) -> Result<(), StoreError> {
        let attributes = self.attributes();
        self.propose(Operation::Publish(attributes), None).await.map(drop)
    }
}

/// The one address in the URLs of a member's peer port.
fn peer_address(urls: &[String]) -> Result<String, StoreError> {
    let [url] = urls else { return Err(StoreError::BadMemberUrls) };
    let address = url.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme)).map(|(_, rest)| rest);
    let address = address.ok_or(StoreError::BadMemberUrls)?.trim_end_matches('/');
    let (host, port) = address.rsplit_once(':').ok_or(StoreError::BadMemberUrls)?;
    if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
        return Err(StoreError::BadMemberUrls);
    }
    Ok(address.to_owned())
}

/// As etcd names members that are added: never the same twice, whatever their URL.
fn member_id(urls: &[String]) -> u64 {
    let text = format!("{}{}", urls.concat(), clock::unix_millis());
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    digest.as_ref().first_chunk::<8>().map_or(1, |first| u64::from_be_bytes(*first)).max(1)
}
