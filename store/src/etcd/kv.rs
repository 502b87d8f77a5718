//! `etcdserverpb.KV`.

use std::future::Future;
use std::pin::Pin;

use futures::{Stream, StreamExt};
use pintle_proto::etcdserverpb::kv_server::Kv as KvService;
use pintle_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pintle_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use prost::Message;
use tonic::{Request, Response, Status};

use super::answers::{self, Client};
use super::{acting, require_leader, require_voter};
use crate::apply;
use crate::error::StoreError;
use crate::mvcc::range::has_filters;
use crate::store::Store;

pub(super) struct Kv {
    store: Store,
}

impl Kv {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    fn admit_write<T>(&self, request: &Request<T>) -> Result<(), Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)
    }

    /// Answers with what may be large; `make` only reads.
    async fn large<T: Message, F>(&self, client: Option<Client>, make: impl Fn() -> F) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let (room, patience) = (&self.store.shared().answers, self.store.options().request_timeout);
        Ok(answers::make(room, client, patience, make).await?)
    }

    fn admit_read(&self, request: &Request<RangeRequest>) -> Result<(), Status> {
        require_leader(&self.store, request.metadata())?;
        if request.get_ref().serializable { Ok(()) } else { require_voter(&self.store) }
    }
}

#[tonic::async_trait]
impl KvService for Kv {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        self.admit_read(&request)?;
        let (store, client) = (acting(&self.store, &request), request.extensions().get().cloned());
        let request = request.into_inner();
        self.large(client, || store.range(request.clone())).await
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        self.admit_read(&request)?;
        let store = acting(&self.store, &request);
        let request = request.into_inner();
        if request.sort_order != i32::from(SortOrder::None) || request.sort_target != i32::from(SortTarget::Key) {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        if has_filters(&request) {
            return Err(Status::unimplemented("RangeStream does not support filtering by revision"));
        }
        let parts = store.range_stream(request).await?;
        let parts = parts.map(|part| match part {
            Ok(response) => Ok(RangeStreamResponse { range_response: Some(response) }),
            Err(error) => Err(Status::from(error)),
        });
        Ok(Response::new(Box::pin(parts)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.admit_write(&request)?;
        Ok(Response::new(acting(&self.store, &request).put(request.into_inner()).await?))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.admit_write(&request)?;
        Ok(Response::new(acting(&self.store, &request).delete_range(request.into_inner()).await?))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.admit_write(&request)?;
        let (store, client) = (acting(&self.store, &request), request.extensions().get().cloned());
        let request = request.into_inner();
        if apply::is_read_only(&request) {
            return self.large(client, || store.txn(request.clone(), None)).await;
        }
        Ok(Response::new(store.txn(request, None).await?))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        self.admit_write(&request)?;
        Ok(Response::new(acting(&self.store, &request).compact(request.into_inner()).await?))
    }
}
