//! `etcdserverpb.Cluster`: who the members are, and changes of that.

use pintle_proto::etcdserverpb::cluster_server::Cluster as ClusterService;
use pintle_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::{acting, require_leader, require_voter};
use crate::store::Store;

pub(super) struct Cluster {
    store: Store,
}

impl Cluster {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<Store, Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        Ok(acting(&self.store, request))
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

    /// A member that is to vote is shown as a learner until it has caught up.
    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let store = self.admit(&request)?;
        let request = request.into_inner();
        let added = store.add_member(&request.peer_ur_ls, request.is_learner).await?;
        let member = Some(member(added, store.options().scheme));
        Ok(Response::new(MemberAddResponse { header: store.header(0), member, members: self.members() }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        self.admit(&request)?.remove_member(request.into_inner().id).await?;
        Ok(Response::new(MemberRemoveResponse { header: self.store.header(0), members: self.members() }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let store = self.admit(&request)?;
        let request = request.into_inner();
        store.update_member(request.id, &request.peer_ur_ls).await?;
        Ok(Response::new(MemberUpdateResponse { header: store.header(0), members: self.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.admit(&request)?.promote(request.into_inner().id).await?;
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
