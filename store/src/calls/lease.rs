//! Leases: granted, renewed, revoked through the log; their times are kept by every member.

use pintle_base::rng;
use pintle_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse,
    LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use pintle_proto::store_v1::LeaseGrant;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::reply::Outcome;

use crate::error::StoreError;
use crate::mvcc::key::Interval;
use crate::mvcc::view::Source;
use crate::readers::Reading;
use crate::store::Store;
use crate::{check, limits};

impl Store {
    /// Grants a lease; id 0 lets the store choose one.
    pub async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, StoreError> {
        if request.ttl > limits::LEASE_TTL_MAX {
            return Err(StoreError::LeaseTtlTooLarge);
        }
        self.check_space(check::LEASE_COST)?;
        let ttl_seconds = request.ttl.max(self.shared().options.lease_ttl_min);
        loop {
            // Chosen here, not while applying: apply has no randomness (I4).
            let id = if request.id == 0 { (rng::u64() >> 1).cast_signed().max(1) } else { request.id };
            let granted = self.write(Operation::LeaseGrant(LeaseGrant { id, ttl_seconds }), None).await;
            let (mut answer, revision): (LeaseGrantResponse, _) = match granted {
                Err(StoreError::LeaseExists) if request.id == 0 => continue,
                other => other?,
            };
            answer.header = self.header(revision);
            self.metrics().counters.leases_granted.inc();
            return Ok(answer);
        }
    }

    /// Ends a lease and deletes its keys, in one revision.
    pub async fn lease_revoke(&self, id: i64) -> Result<LeaseRevokeResponse, StoreError> {
        let (mut answer, revision): (LeaseRevokeResponse, _) = self.write(Operation::LeaseRevoke(id), None).await?;
        answer.header = self.header(revision);
        Ok(answer)
    }

    /// Gives a lease its full time again; TTL 0 says that there is no such lease.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, StoreError> {
        self.metrics().counters.leases_renewed.inc();
        let header = self.header(self.revision());
        let ttl = match self.propose(Operation::LeaseRenew(id), None).await {
            Ok((Outcome::LeaseTtlSeconds(ttl), _)) => ttl,
            Ok(_) => return Err(StoreError::Malformed),
            Err(StoreError::LeaseNotFound) => 0,
            Err(error) => return Err(error),
        };
        Ok(LeaseKeepAliveResponse { header, id, ttl })
    }

    /// The time a lease has left, and its keys if asked; TTL -1 says that there is no such lease.
    pub async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, StoreError> {
        self.barrier().await?;
        self.permitted(|_| Ok(()))?;
        let id = request.id;
        let header = self.header(self.revision());
        let Some((granted_ttl, ttl)) = self.shared().leases.time_to_live(id) else {
            return Ok(LeaseTimeToLiveResponse { header, id, ttl: -1, granted_ttl: 0, keys: Vec::new() });
        };
        let keys = match request.keys {
            true => self.read(false, move |view| view.lease_keys(id).map_err(StoreError::storage)).await?,
            false => Vec::new(),
        };
        let mut named = keys.iter().map(|key| Interval::Key(key.clone()));
        self.permitted(|grant| named.try_for_each(|key| grant.read(&key)))?;
        Ok(LeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys })
    }

    /// All leases this member knows of. Who may not read every key that is attached to one of them is refused.
    pub async fn lease_leases(&self) -> Result<LeaseLeasesResponse, StoreError> {
        self.barrier().await?;
        let mut asked = None;
        self.permitted(|grant| {
            asked = Some(grant.clone()).filter(|grant| grant.administer().is_err());
            Ok(())
        })?;
        let ids = self.shared().leases.ids();
        if let Some(grant) = asked {
            let ids = ids.clone();
            let all_readable = move |view: &Reading<'_>| {
                for id in &ids {
                    for key in view.lease_keys(*id).map_err(StoreError::storage)? {
                        grant.read(&Interval::Key(key))?;
                    }
                }
                Ok(())
            };
            self.read(false, all_readable).await?;
        }
        let leases = ids.into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(LeaseLeasesResponse { header: self.header(self.revision()), leases })
    }
}
