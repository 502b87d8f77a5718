//! `etcdserverpb.Cluster`: who the members are, and changes of that.

use pintle_proto::etcdserverpb::cluster_server::Cluster as ClusterService;
use pintle_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::{require_leader, require_voter, unimplemented};
use crate::store::Store;

pub(super) struct Cluster {
    store: Store,
}

impl Cluster {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    fn members(&self) -> Vec<Member> {
        let scheme = self.store.options().scheme;
        self.store.members().into_iter().map(|found| member(found, scheme)).collect()
    }
}

#[tonic::async_trait]
impl ClusterService for Cluster {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        require_leader(&self.store, request.metadata())?;
        if request.get_ref().linearizable {
            require_voter(&self.store)?;
            self.store.read_barrier().await?;
        }
        let members = self.members();
        // As etcd: ids and term, no revision.
        Ok(Response::new(MemberListResponse { header: self.store.header(0), members }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        unimplemented()
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        self.store.remove_member(request.into_inner().id).await?;
        Ok(Response::new(MemberRemoveResponse { header: self.store.header(0), members: self.members() }))
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        unimplemented()
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        self.store.promote(request.into_inner().id).await?;
        Ok(Response::new(MemberPromoteResponse { header: self.store.header(0), members: self.members() }))
    }
}

fn member(member: crate::Member, scheme: &str) -> Member {
    let url = |address: String| if address.is_empty() { Vec::new() } else { vec![format!("{scheme}://{address}")] };
    Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: url(member.peer_addr),
        client_ur_ls: if member.client_urls.is_empty() { url(member.client_addr) } else { member.client_urls },
        is_learner: member.learner,
    }
}
