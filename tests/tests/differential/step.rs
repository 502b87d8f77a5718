//! What is done to both systems, and what they answer: one table of calls makes the request type, the answer type and the call.
//!
//! Lease ids that a server chose differ between the systems: the generator knows them as [`chosen_lease`] and each [`Leases`] turns
//! them into the system's own and back.

use std::collections::BTreeMap;

use pintle_proto::etcdserverpb::auth_client::AuthClient;
use pintle_proto::etcdserverpb::cluster_client::ClusterClient;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::lease_client::LeaseClient;
use pintle_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pintle_proto::etcdserverpb::*;
use pintle_proto::v3electionpb::election_client::ElectionClient;
use pintle_proto::v3electionpb::*;
use pintle_proto::v3lockpb::lock_client::LockClient;
use pintle_proto::v3lockpb::*;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// One step of a run.
#[derive(Clone, Debug)]
pub enum Step {
    Call(Call),
    /// A call with the token that `Authenticate` gave this user last; an unknown user's is no token at all.
    CallAs(String, Call),
    /// Asks one of the streams for a watch.
    Watch(usize, WatchCreateRequest),
    Cancel(usize, i64),
    /// Asks until the stream says that everything was delivered.
    Progress(usize),
    /// Waits until all watches have what they must get, and compares it.
    Sync,
}

/// Answers are numbered by the transport's codes; the text is what clients map to typed errors.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub code: Code,
    pub text: String,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { code: status.code(), text: status.message().to_owned() }
    }
}

macro_rules! calls {
    ($($name:ident = $client:ident.$method:ident($request:ty) -> $response:ty;)*) => {
        #[derive(Clone, Debug)]
        pub enum Call {
            /// One request on a stream of its own.
            KeepAlive(LeaseKeepAliveRequest),
            $($name($request),)*
        }

        #[derive(Clone, Debug, PartialEq)]
        pub enum Answer {
            Refused(Refused),
            KeepAlive(LeaseKeepAliveResponse),
            $($name($response),)*
        }

        impl Answer {
            /// Its kind, or the text of the refusal without its numbers.
            pub fn summary(&self) -> String {
                match self {
                    Self::Refused(refused) => refused.text.replace(|letter: char| letter.is_ascii_digit(), ""),
                    Self::KeepAlive(_) => "KeepAlive".to_owned(),
                    $(Self::$name(_) => stringify!($name).to_owned(),)*
                }
            }

            /// The header, if it has one.
            pub fn header(&mut self) -> Option<&mut ResponseHeader> {
                match self {
                    Self::Refused(_) => None,
                    Self::KeepAlive(answer) => answer.header.as_mut(),
                    $(Self::$name(answer) => answer.header.as_mut(),)*
                }
            }
        }

        impl Clients {
            /// Sends the call; `token` is an authenticated user's.
            pub async fn call(&self, call: &Call, token: Option<&str>) -> Answer {
                match call {
                    Call::KeepAlive(request) => answer(self.keep_alive(request, token).await, Answer::KeepAlive),
                    $(Call::$name(request) => {
                        answer(self.$client.clone().$method(with(request.clone(), token)).await, Answer::$name)
                    })*
                }
            }
        }
    };
}

calls! {
    Range = kv.range(RangeRequest) -> RangeResponse;
    Put = kv.put(PutRequest) -> PutResponse;
    Delete = kv.delete_range(DeleteRangeRequest) -> DeleteRangeResponse;
    Txn = kv.txn(TxnRequest) -> TxnResponse;
    Compact = kv.compact(CompactionRequest) -> CompactionResponse;
    Grant = lease.lease_grant(LeaseGrantRequest) -> LeaseGrantResponse;
    Revoke = lease.lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse;
    TimeToLive = lease.lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse;
    Leases = lease.lease_leases(LeaseLeasesRequest) -> LeaseLeasesResponse;
    HashKv = maintenance.hash_kv(HashKvRequest) -> HashKvResponse;
    Alarm = maintenance.alarm(AlarmRequest) -> AlarmResponse;
    Status = maintenance.status(StatusRequest) -> StatusResponse;
    Defragment = maintenance.defragment(DefragmentRequest) -> DefragmentResponse;
    MoveLeader = maintenance.move_leader(MoveLeaderRequest) -> MoveLeaderResponse;
    MemberList = cluster.member_list(MemberListRequest) -> MemberListResponse;
    MemberRemove = cluster.member_remove(MemberRemoveRequest) -> MemberRemoveResponse;
    MemberPromote = cluster.member_promote(MemberPromoteRequest) -> MemberPromoteResponse;
    Lock = lock.lock(LockRequest) -> LockResponse;
    Unlock = lock.unlock(UnlockRequest) -> UnlockResponse;
    Campaign = election.campaign(CampaignRequest) -> CampaignResponse;
    Proclaim = election.proclaim(ProclaimRequest) -> ProclaimResponse;
    Leader = election.leader(LeaderRequest) -> LeaderResponse;
    Resign = election.resign(ResignRequest) -> ResignResponse;
    AuthEnable = auth.auth_enable(AuthEnableRequest) -> AuthEnableResponse;
    AuthDisable = auth.auth_disable(AuthDisableRequest) -> AuthDisableResponse;
    AuthStatus = auth.auth_status(AuthStatusRequest) -> AuthStatusResponse;
    Authenticate = auth.authenticate(AuthenticateRequest) -> AuthenticateResponse;
    UserAdd = auth.user_add(AuthUserAddRequest) -> AuthUserAddResponse;
    UserGet = auth.user_get(AuthUserGetRequest) -> AuthUserGetResponse;
    UserList = auth.user_list(AuthUserListRequest) -> AuthUserListResponse;
    UserDelete = auth.user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
    UserPassword = auth.user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
    UserGrant = auth.user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
    UserRevoke = auth.user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
    RoleAdd = auth.role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
    RoleGet = auth.role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
    RoleList = auth.role_list(AuthRoleListRequest) -> AuthRoleListResponse;
    RoleDelete = auth.role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
    RoleGrant = auth.role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
    RoleRevoke = auth.role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
}

/// One connection and the services over it.
pub struct Clients {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    cluster: ClusterClient<Channel>,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
    auth: AuthClient<Channel>,
}

impl Clients {
    pub fn new(channel: &Channel) -> Self {
        Self {
            // A historic read of everything is larger than the four megabytes that the client takes by itself.
            kv: KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: LeaseClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel.clone()),
            auth: AuthClient::new(channel.clone()),
        }
    }

    async fn keep_alive(
        &self,
        request: &LeaseKeepAliveRequest,
        token: Option<&str>,
    ) -> Result<Response<LeaseKeepAliveResponse>, Status> {
        let requests = tokio_stream::once(*request);
        let answers = self.lease.clone().lease_keep_alive(with(requests, token)).await?;
        let first = answers.into_inner().message().await?;
        first.map(Response::new).ok_or_else(|| Status::unknown("the stream ended without an answer"))
    }
}

fn with<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(super::DEADLINE);
    if let Some(value) = token.and_then(|token| token.parse().ok()) {
        request.metadata_mut().insert("token", value);
    }
    request
}

fn answer<T>(outcome: Result<Response<T>, Status>, wrap: fn(T) -> Answer) -> Answer {
    match outcome {
        Ok(response) => wrap(response.into_inner()),
        Err(status) => Answer::Refused(status.into()),
    }
}

/// Stands for the `nth` lease whose id the server chose.
pub fn chosen_lease(nth: i64) -> i64 {
    i64::MIN / 2 + nth
}

/// The leases whose ids one system chose, in the order of their grants.
#[derive(Default)]
pub struct Leases {
    own: Vec<i64>,
    known: BTreeMap<i64, i64>,
}

impl Leases {
    /// The call as this system understands it.
    pub fn for_own(&self, call: &Call) -> Call {
        let mut call = call.clone();
        let id = match &mut call {
            Call::Revoke(request) => &mut request.id,
            Call::TimeToLive(request) => &mut request.id,
            Call::KeepAlive(request) => &mut request.id,
            _ => return call,
        };
        let nth = id.wrapping_sub(chosen_lease(0));
        if let Some(own) = usize::try_from(nth).ok().and_then(|nth| self.own.get(nth)) {
            *id = *own;
        }
        call
    }

    /// The answer as both systems would give it.
    pub fn in_common(&mut self, call: &Call, answer: &mut Answer) {
        match (call, &mut *answer) {
            (Call::Grant(request), Answer::Grant(granted)) if request.id == 0 => {
                assert!(granted.id > 0, "a chosen lease id is positive: {granted:?}");
                self.known.insert(granted.id, chosen_lease(i64::try_from(self.own.len()).expect("few leases")));
                self.own.push(granted.id);
            }
            _ => (),
        }
        let common = |id: &mut i64| *id = *self.known.get(id).unwrap_or(id);
        match answer {
            Answer::Grant(answer) => common(&mut answer.id),
            Answer::TimeToLive(answer) => common(&mut answer.id),
            Answer::KeepAlive(answer) => common(&mut answer.id),
            Answer::Leases(answer) => answer.leases.iter_mut().for_each(|lease| common(&mut lease.id)),
            _ => (),
        }
    }
}
