//! `etcdserverpb.Lease`.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use pintle_proto::etcdserverpb::lease_server::Lease as LeaseService;
use pintle_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::{acting, answers, require_leader, require_voter};
use crate::store::Store;

pub(super) struct Lease {
    store: Store,
}

impl Lease {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)
    }
}

#[tonic::async_trait]
impl LeaseService for Lease {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(acting(&self.store, &request).lease_grant(request.into_inner()).await?))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(acting(&self.store, &request).lease_revoke(request.into_inner().id).await?))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    /// One answer per request, in order.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.admit(&request)?;
        let store = acting(&self.store, &request);
        let answers = request.into_inner().then(move |request| {
            let store = store.clone();
            async move { Ok(store.lease_keep_alive(request?.id).await?) }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        self.admit(&request)?;
        let (store, client) = (acting(&self.store, &request), request.extensions().get().cloned());
        let request = request.into_inner();
        let make = || store.lease_time_to_live(request);
        answers::respond(&self.store, client, Message::encoded_len, make).await
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(acting(&self.store, &request).lease_leases().await?))
    }
}
