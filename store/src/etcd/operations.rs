//! `pintle.store.v1.Operations`: what this store has beside etcd's API.

use pintle_proto::store_v1::operations_server::Operations as OperationsService;
use pintle_proto::store_v1::{
    QuotaListRequest, QuotaListResponse, QuotaRemoveRequest, QuotaRemoveResponse, QuotaSetRequest, QuotaSetResponse,
    TopRequest, TopResponse,
};
use tonic::{Request, Response, Status};

use super::{acting, require_leader, require_voter};
use crate::store::Store;

pub(super) struct Operations {
    store: Store,
}

impl Operations {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// The store as the caller may use it, and what was asked.
    fn admit<T>(&self, request: Request<T>) -> Result<(Store, T), Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        Ok((acting(&self.store, &request), request.into_inner()))
    }
}

#[tonic::async_trait]
impl OperationsService for Operations {
    async fn quota_set(&self, request: Request<QuotaSetRequest>) -> Result<Response<QuotaSetResponse>, Status> {
        let (store, QuotaSetRequest { quota }) = self.admit(request)?;
        let revision = store.set_quota(quota.unwrap_or_default()).await?;
        Ok(Response::new(QuotaSetResponse { revision }))
    }

    async fn quota_remove(
        &self,
        request: Request<QuotaRemoveRequest>,
    ) -> Result<Response<QuotaRemoveResponse>, Status> {
        let (store, QuotaRemoveRequest { name }) = self.admit(request)?;
        let revision = store.remove_quota(name.unwrap_or_default()).await?;
        Ok(Response::new(QuotaRemoveResponse { revision }))
    }

    async fn quota_list(&self, request: Request<QuotaListRequest>) -> Result<Response<QuotaListResponse>, Status> {
        let (store, QuotaListRequest {}) = self.admit(request)?;
        Ok(Response::new(store.quotas().await?))
    }

    async fn top(&self, request: Request<TopRequest>) -> Result<Response<TopResponse>, Status> {
        // Also of a member that only learns: what it reads and holds is its own.
        let (store, request) = (acting(&self.store, &request), request.into_inner());
        Ok(Response::new(store.top(request).await?))
    }
}
