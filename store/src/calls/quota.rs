//! Quotas: set and removed through the log, counted by the leader.

use std::ops::ControlFlow;

use bytes::Bytes;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::{
    Quota, QuotaChange, QuotaCount, QuotaListResponse, QuotaName, quota, quota_change, quota_name,
};

use crate::auth::Grant;
use crate::error::StoreError;
use crate::mvcc::key::{Interval, prefix_end};
use crate::mvcc::view::Source;
use crate::quota::Size;
use crate::store::Store;

impl Store {
    /// Sets a quota, or changes its limits; the revision it is from. One of a prefix is kept once what is there has been counted.
    pub async fn set_quota(&self, quota: Quota) -> Result<i64, StoreError> {
        let limited = match &quota.of {
            Some(quota::Of::Prefix(quota)) => (quota.keys, quota.bytes) != (None, None),
            Some(quota::Of::User(quota)) => !quota.user.is_empty() && (quota.requests, quota.bytes) != (None, None),
            None => false,
        };
        if !limited {
            return Err(StoreError::QuotaMalformed);
        }
        self.change_quotas(quota_change::Change::Set(quota)).await
    }

    pub async fn remove_quota(&self, name: QuotaName) -> Result<i64, StoreError> {
        match &name.of {
            Some(quota_name::Of::Prefix(_) | quota_name::Of::User(_)) => (),
            None => return Err(StoreError::QuotaMalformed),
        }
        self.change_quotas(quota_change::Change::Remove(name)).await
    }

    /// What quotas there are, and what is used of them.
    pub async fn quotas(&self) -> Result<QuotaListResponse, StoreError> {
        let revision = self.read_barrier().await?;
        self.permitted(Grant::administer)?;
        let quotas = self.shared().quotas.load();
        Ok(QuotaListResponse { revision, prefixes: quotas.usage(), users: quotas.users() })
    }

    async fn change_quotas(&self, change: quota_change::Change) -> Result<i64, StoreError> {
        let change = QuotaChange { change: Some(change) };
        self.propose(Operation::Quota(change), None).await.map(|(_, revision)| revision)
    }

    pub(crate) fn uncounted_quotas(&self) -> Vec<(Bytes, i64)> {
        self.shared().quotas.load().uncounted()
    }

    /// Counts what lived under `prefix` at revision `since`, and has it recorded in the present leadership.
    pub(crate) async fn count_quota(&self, prefix: Bytes, since: i64, term: u64) -> Result<(), StoreError> {
        let interval = Interval::new(&prefix, &prefix_end(&prefix));
        let counted = self.read_long(move |view| {
            if view.compacted() > since {
                return Ok(None);
            }
            let mut size = Size::default();
            let scanned = view.scan(&interval, since, &mut |row| {
                size += Size::of(row.key, row.value);
                ControlFlow::Continue(())
            });
            scanned.map(|()| Some(size)).map_err(StoreError::storage)
        });
        let count = match counted.await? {
            Some(Size { keys, bytes }) => QuotaCount { prefix, since, keys, bytes, anew: false },
            None => QuotaCount { prefix, since, anew: true, ..QuotaCount::default() },
        };
        self.propose(Operation::QuotaCount(count), Some(term)).await.map(drop)
    }
}
