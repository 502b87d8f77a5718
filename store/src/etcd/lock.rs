//! `v3lockpb.Lock`: a lock is held by the oldest key below its name.
//!
//! Always holds: a caller that goes away while it waits leaves no key behind that others would wait for.

use std::future::Future;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use pintle_base::task;
use pintle_proto::etcdserverpb::{DeleteRangeRequest, ResponseHeader};
use pintle_proto::v3lockpb::lock_server::Lock as LockService;
use pintle_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use super::{acting, require_leader, require_voter};
use crate::error::StoreError;
use crate::recipe::{Claim, RecipeError};
use crate::store::Store;

pub(super) struct Lock {
    store: Store,
}

impl Lock {
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl LockService for Lock {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        let store = acting(&self.store, &request);
        let LockRequest { name, lease } = request.into_inner();
        let entering = async move { Claim::enter(&store, &name, lease, Bytes::new()).await };
        let (header, key) = attended(self.store.group(), entering, |claim| {
            async { Ok((claim.win().await?, claim.key.clone())) }.boxed()
        })
        .await?;
        Ok(Response::new(LockResponse { header, key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        let store = acting(&self.store, &request);
        let delete = DeleteRangeRequest { key: request.into_inner().key, ..DeleteRangeRequest::default() };
        let answer = store.delete_range(delete).await.map_err(|error| status(error.into()))?;
        Ok(Response::new(UnlockResponse { header: answer.header }))
    }
}

/// Enters and waits in a task of its own. If the caller goes away, or does not get what it waited for, the key is withdrawn.
pub(super) async fn attended<T>(
    group: &task::Group,
    entering: impl Future<Output = Result<Claim, StoreError>> + Send + 'static,
    winning: impl for<'a> FnOnce(&'a Claim) -> BoxFuture<'a, Result<T, RecipeError>> + Send + 'static,
) -> Result<T, Status>
where
    T: Send + 'static,
{
    let (mut answer, answered) = oneshot::channel();
    group.spawn_until_stopped("etcd-contender", async move {
        let claim = match entering.await {
            Ok(claim) => claim,
            Err(error) => return drop(answer.send(Err(RecipeError::from(error)))),
        };
        let won = tokio::select! {
            biased;
            () = answer.closed() => return claim.withdraw().await,
            won = winning(&claim) => won,
        };
        let kept = won.is_ok();
        if answer.send(won).is_err() || !kept {
            claim.withdraw().await;
        }
    });
    answered.await.unwrap_or(Err(RecipeError::Store(StoreError::Stopped))).map_err(status)
}

/// As etcd's recipes answer: what they heard from the store under the code `Unknown`, but for what a client may try again.
pub(super) fn status(error: RecipeError) -> Status {
    match error {
        RecipeError::Store(error) if error.code() == tonic::Code::Unavailable => error.into(),
        error => Status::unknown(error.to_string()),
    }
}

pub(super) type Header = Option<ResponseHeader>;
