//! `v3electionpb.Election`: the oldest key below a name is the leader's, and holds what it proclaims.

use std::pin::Pin;

use bytes::Bytes;
use futures::{FutureExt, Stream, stream};
use pintle_proto::v3electionpb::election_server::Election as ElectionService;
use pintle_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use tonic::{Request, Response, Status};

use super::lock::{Header, attended, status};
use super::{acting, require_leader, require_voter};
use crate::recipe::{self, Claim, Observer, RecipeError};
use crate::store::Store;

pub(super) struct Election {
    store: Store,
}

impl Election {
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

fn named(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    leader.ok_or_else(|| Status::unknown(r#""leader" field must be provided"#))
}

async fn campaign(claim: &Claim, value: Bytes) -> Result<(Header, Bytes, i64, i64), RecipeError> {
    claim.proclaim_found(&value).await?;
    let header = claim.win().await?;
    Ok((header, claim.key.clone(), claim.created, claim.lease()))
}

#[tonic::async_trait]
impl ElectionService for Election {
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let (store, CampaignRequest { name, lease, value }) = self.admit(request)?;
        let (of, first) = (name.clone(), value.clone());
        let entering = async move { Claim::enter(&store, &of, lease, first).await };
        let (header, key, rev, lease) =
            attended(self.store.group(), entering, |claim| campaign(claim, value).boxed()).await?;
        Ok(Response::new(CampaignResponse { header, leader: Some(LeaderKey { name, key, rev, lease }) }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let (store, ProclaimRequest { leader, value }) = self.admit(request)?;
        let leader = named(leader)?;
        let written = recipe::proclaim(&store, &leader.key, leader.rev, leader.lease, value).await;
        Ok(Response::new(ProclaimResponse { header: written.map_err(status)? }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let (store, LeaderRequest { name }) = self.admit(request)?;
        let (header, kv) = recipe::oldest(&store, &name).await.map_err(|error| status(error.into()))?;
        let kv = Some(kv.ok_or_else(|| status(RecipeError::NoLeader))?);
        Ok(Response::new(LeaderResponse { header, kv }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let (store, LeaderRequest { name }) = self.admit(request)?;
        let observer = Observer::new(store.clone(), name);
        let leaders = stream::unfold(Some(observer), move |observer| {
            let store = store.clone();
            async move {
                let mut observer = observer?;
                match observer.next().await {
                    Ok((revision, kv)) => {
                        let answer = LeaderResponse { header: store.header(revision), kv: Some(kv) };
                        Some((Ok(answer), Some(observer)))
                    }
                    Err(error) => Some((Err(status(error)), None)),
                }
            }
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let (store, ResignRequest { leader }) = self.admit(request)?;
        let leader = named(leader)?;
        let gone = recipe::resign(&store, &leader.key, leader.rev).await;
        Ok(Response::new(ResignResponse { header: gone.map_err(|error| status(error.into()))? }))
    }
}
