//! The calls of etcd's API that answer once: for each request its path, its answer and whether asking twice is harmless.

use pintle_proto::{etcdserverpb as e, store_v1 as own, v3electionpb as election, v3lockpb as lock};
use prost::Message;

/// A request of a call with one answer.
pub trait Request: Message + Clone + Default + 'static {
    type Answer: Answer;
    const PATH: &'static str;
    /// Whether a lost answer may be asked for again at another member.
    const REPEATABLE: bool;
}

/// An answer, with its name in the protocol: what it can be printed as JSON by.
pub trait Answer: Message + Default + 'static {
    const NAME: &'static str;
    fn header(&self) -> e::ResponseHeader;
}

macro_rules! calls {
    ($($package:literal $service:literal { $($repeat:literal $method:literal: $request:path => $answer:path, $name:literal;)* })*) => {
        $($(
            impl Request for $request {
                type Answer = $answer;
                const PATH: &'static str = concat!("/", $package, ".", $service, "/", $method);
                const REPEATABLE: bool = $repeat;
            }
            impl Answer for $answer {
                const NAME: &'static str = concat!($package, ".", $name);
                fn header(&self) -> e::ResponseHeader {
                    self.header.unwrap_or_default()
                }
            }
        )*)*
    };
}

calls! {
    "etcdserverpb" "KV" {
        true "Range": e::RangeRequest => e::RangeResponse, "RangeResponse";
        false "Put": e::PutRequest => e::PutResponse, "PutResponse";
        false "DeleteRange": e::DeleteRangeRequest => e::DeleteRangeResponse, "DeleteRangeResponse";
        false "Txn": e::TxnRequest => e::TxnResponse, "TxnResponse";
        false "Compact": e::CompactionRequest => e::CompactionResponse, "CompactionResponse";
    }
    "etcdserverpb" "Lease" {
        false "LeaseGrant": e::LeaseGrantRequest => e::LeaseGrantResponse, "LeaseGrantResponse";
        false "LeaseRevoke": e::LeaseRevokeRequest => e::LeaseRevokeResponse, "LeaseRevokeResponse";
        true "LeaseTimeToLive": e::LeaseTimeToLiveRequest => e::LeaseTimeToLiveResponse, "LeaseTimeToLiveResponse";
        true "LeaseLeases": e::LeaseLeasesRequest => e::LeaseLeasesResponse, "LeaseLeasesResponse";
    }
    "etcdserverpb" "Cluster" {
        false "MemberAdd": e::MemberAddRequest => e::MemberAddResponse, "MemberAddResponse";
        false "MemberRemove": e::MemberRemoveRequest => e::MemberRemoveResponse, "MemberRemoveResponse";
        false "MemberUpdate": e::MemberUpdateRequest => e::MemberUpdateResponse, "MemberUpdateResponse";
        true "MemberList": e::MemberListRequest => e::MemberListResponse, "MemberListResponse";
        false "MemberPromote": e::MemberPromoteRequest => e::MemberPromoteResponse, "MemberPromoteResponse";
    }
    "etcdserverpb" "Maintenance" {
        true "Alarm": e::AlarmRequest => e::AlarmResponse, "AlarmResponse";
        true "Status": e::StatusRequest => e::StatusResponse, "StatusResponse";
        false "Defragment": e::DefragmentRequest => e::DefragmentResponse, "DefragmentResponse";
        true "HashKV": e::HashKvRequest => e::HashKvResponse, "HashKVResponse";
        false "MoveLeader": e::MoveLeaderRequest => e::MoveLeaderResponse, "MoveLeaderResponse";
    }
    "etcdserverpb" "Auth" {
        false "AuthEnable": e::AuthEnableRequest => e::AuthEnableResponse, "AuthEnableResponse";
        false "AuthDisable": e::AuthDisableRequest => e::AuthDisableResponse, "AuthDisableResponse";
        true "AuthStatus": e::AuthStatusRequest => e::AuthStatusResponse, "AuthStatusResponse";
        true "Authenticate": e::AuthenticateRequest => e::AuthenticateResponse, "AuthenticateResponse";
        false "UserAdd": e::AuthUserAddRequest => e::AuthUserAddResponse, "AuthUserAddResponse";
        true "UserGet": e::AuthUserGetRequest => e::AuthUserGetResponse, "AuthUserGetResponse";
        true "UserList": e::AuthUserListRequest => e::AuthUserListResponse, "AuthUserListResponse";
        false "UserDelete": e::AuthUserDeleteRequest => e::AuthUserDeleteResponse, "AuthUserDeleteResponse";
        false "UserChangePassword": e::AuthUserChangePasswordRequest => e::AuthUserChangePasswordResponse, "AuthUserChangePasswordResponse";
        false "UserGrantRole": e::AuthUserGrantRoleRequest => e::AuthUserGrantRoleResponse, "AuthUserGrantRoleResponse";
        false "UserRevokeRole": e::AuthUserRevokeRoleRequest => e::AuthUserRevokeRoleResponse, "AuthUserRevokeRoleResponse";
        false "RoleAdd": e::AuthRoleAddRequest => e::AuthRoleAddResponse, "AuthRoleAddResponse";
        true "RoleGet": e::AuthRoleGetRequest => e::AuthRoleGetResponse, "AuthRoleGetResponse";
        true "RoleList": e::AuthRoleListRequest => e::AuthRoleListResponse, "AuthRoleListResponse";
        false "RoleDelete": e::AuthRoleDeleteRequest => e::AuthRoleDeleteResponse, "AuthRoleDeleteResponse";
        false "RoleGrantPermission": e::AuthRoleGrantPermissionRequest => e::AuthRoleGrantPermissionResponse, "AuthRoleGrantPermissionResponse";
        false "RoleRevokePermission": e::AuthRoleRevokePermissionRequest => e::AuthRoleRevokePermissionResponse, "AuthRoleRevokePermissionResponse";
    }
    "v3lockpb" "Lock" {
        false "Lock": lock::LockRequest => lock::LockResponse, "LockResponse";
        false "Unlock": lock::UnlockRequest => lock::UnlockResponse, "UnlockResponse";
    }
    "v3electionpb" "Election" {
        false "Campaign": election::CampaignRequest => election::CampaignResponse, "CampaignResponse";
        false "Resign": election::ResignRequest => election::ResignResponse, "ResignResponse";
    }
}

/// Calls that only this store has.
macro_rules! own_calls {
    ($($repeat:literal $method:literal: $request:path => $answer:path, $name:literal;)*) => {
        $(
            impl Request for $request {
                type Answer = $answer;
                const PATH: &'static str = concat!("/pintle.store.v1.Operations/", $method);
                const REPEATABLE: bool = $repeat;
            }
            impl Answer for $answer {
                const NAME: &'static str = concat!("pintle.store.v1.", $name);
                fn header(&self) -> e::ResponseHeader {
                    e::ResponseHeader { revision: self.revision, ..e::ResponseHeader::default() }
                }
            }
        )*
    };
}

own_calls! {
    true "QuotaSet": own::QuotaSetRequest => own::QuotaSetResponse, "QuotaSetResponse";
    false "QuotaRemove": own::QuotaRemoveRequest => own::QuotaRemoveResponse, "QuotaRemoveResponse";
    true "QuotaList": own::QuotaListRequest => own::QuotaListResponse, "QuotaListResponse";
    true "Top": own::TopRequest => own::TopResponse, "TopResponse";
}

/// Answers of streams.
macro_rules! streamed {
    ($($answer:path => $name:literal;)*) => {
        $(impl Answer for $answer {
            const NAME: &'static str = $name;
            fn header(&self) -> e::ResponseHeader {
                self.header.unwrap_or_default()
            }
        })*
    };
}

streamed! {
    e::WatchResponse => "etcdserverpb.WatchResponse";
    e::LeaseKeepAliveResponse => "etcdserverpb.LeaseKeepAliveResponse";
}
