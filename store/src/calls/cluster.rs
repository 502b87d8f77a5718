//! Who the members are, which of them leads, what is wrong with them.

use pintle_base::clock;
use pintle_proto::etcdserverpb::AlarmResponse;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::{Alarm, MemberAttributes, SetAlarm};

use crate::consensus::{ChangeFailure, Member, MemberChange};
use crate::error::StoreError;
use crate::store::{Store, StoreOptions};

impl Store {
    /// The cluster's servers, in the order of their ids.
    pub fn members(&self) -> Vec<Member> {
        let mut members = self.shared().consensus().map(|consensus| consensus.members()).unwrap_or_default();
        members.sort_by_key(|member| member.id);
        for member in &mut members {
            member.client_urls = self.shared().about.client_urls(member.id);
        }
        members
    }

    /// Has a member that learns vote from now on.
    pub async fn promote(&self, id: u64) -> Result<(), StoreError> {
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
        let consensus = self.shared().consensus()?;
        match clock::timeout(self.shared().options.request_timeout, consensus.change(change)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ChangeFailure::NotMade)) => Err(StoreError::NoLeader),
            Ok(Err(ChangeFailure::Refused(reason))) => Err(StoreError::Refused { reason }),
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

    /// Tells the others how clients reach this member.
    pub(crate) async fn publish(&self) -> Result<(), StoreError> {
        let StoreOptions { member_id, client_urls, .. } = &self.shared().options;
        let attributes = MemberAttributes { id: *member_id, client_urls: client_urls.clone() };
        self.propose(Operation::Publish(attributes), None).await.map(drop)
    }
}
