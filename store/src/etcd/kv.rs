//! `etcdserverpb.KV`.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use pintle_proto::etcdserverpb::kv_server::Kv as KvService;
use pintle_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pintle_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::answers;
use super::{acting, require_leader, require_voter};
use crate::apply;
use crate::mvcc::pieces::RangeAnswer;
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
        let make = || store.range_encoded(request.clone());
        let (_, answer, mut extensions) =
            answers::respond(&self.store, client, RangeAnswer::bytes, make).await?.into_parts();
        let answer = match answer {
            RangeAnswer::Whole(answer) => answer,
            RangeAnswer::Pieces(pieces) => {
                extensions.insert(pieces); // takes the place of the empty answer on its way out
                RangeResponse::default()
            }
        };
        Ok(Response::from_parts(MetadataMap::new(), answer, extensions))
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
            let make = || store.txn(request.clone(), None);
            return answers::respond(&self.store, client, Message::encoded_len, make).await;
        }
        Ok(Response::new(store.txn(request, None).await?))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        self.admit_write(&request)?;
        Ok(Response::new(acting(&self.store, &request).compact(request.into_inner()).await?))
    }
}
