//! `etcdserverpb.Cluster`: who the members are. Changing them is the cluster commands' business for now.

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
}

#[tonic::async_trait]
impl ClusterService for Cluster {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        require_leader(&self.store, request.metadata())?;
        if request.get_ref().linearizable {
            require_voter(&self.store)?;
            self.store.read_barrier().await?;
        }
        let members = self.store.members().into_iter().map(member).collect();
        // As etcd: ids and term, no revision.
        Ok(Response::new(MemberListResponse { header: self.store.header(0), members }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        unimplemented()
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        unimplemented()
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        unimplemented()
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        unimplemented()
    }
}

fn member(member: crate::Member) -> Member {
    let url = |address: String| if address.is_empty() { Vec::new() } else { vec![format!("https://{address}")] };
    Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: url(member.peer_addr),
        client_ur_ls: url(member.client_addr),
        is_learner: member.learner,
    }
}
