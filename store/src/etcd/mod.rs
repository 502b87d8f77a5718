//! The etcd v3 front: gRPC services and HTTP endpoints over a [`Store`]. A member's client port serves [`router`].
//!
//! Each service is a file; a method or service that is not built yet answers `Unimplemented`. Every answer's header is made by
//! the store (I7).

pub(crate) mod answers;
mod auth;
mod browser;
mod chunks;
mod cluster;
mod election;
mod flood;
mod frames;
mod front;
mod gate;
mod gateway;
mod health;
mod http;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod meter;
mod opening;
mod operations;
mod oversized;
mod pieces;
mod serve;
mod streams;
mod toll;
mod watch;

use pintle_proto::etcdserverpb::auth_server::AuthServer;
use pintle_proto::etcdserverpb::cluster_server::ClusterServer;
use pintle_proto::etcdserverpb::kv_server::KvServer;
use pintle_proto::etcdserverpb::lease_server::LeaseServer;
use pintle_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use pintle_proto::etcdserverpb::watch_server::WatchServer;
use pintle_proto::store_v1::operations_server::OperationsServer;
use pintle_proto::v3electionpb::election_server::ElectionServer;
use pintle_proto::v3lockpb::lock_server::LockServer;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Code, Request, Status};
use tower::util::MapResponseLayer;

pub use self::front::{Front, Http2};
#[cfg(any(test, debug_assertions))]
pub(crate) use self::gateway::fuzz as fuzz_gateway;
#[cfg(test)]
pub(crate) use self::serve::serve_within;
pub use self::serve::{Admission, Admit, ServeError, Tls, serve};
use crate::auth::Actor;
use crate::limits;
use crate::store::Store;

/// The etcd version this surface follows; clients switch features on by it.
pub const VERSION: &str = "3.5.30";
/// The cluster version reported beside it.
pub const CLUSTER_VERSION: &str = "3.5.0";

/// As etcd: answers are not limited, a range is sent whole.
const SEND_BYTES: usize = i32::MAX as usize;

/// Everything a client port serves: gRPC, the JSON gateway, health, version, metrics.
pub fn router(store: &Store) -> Front {
    let grpc = grpc(store);
    let others = http::routes(store.clone()).merge(gateway::routes(&grpc, store.options().request_bytes));
    Front::with_kv(store, kv_server(store), guarded(store, others).merge(grpc).fallback(http::nothing))
}

/// What a port for gRPC alone serves.
pub fn grpc_router(store: &Store) -> Front {
    Front::with_kv(store, kv_server(store), grpc(store).fallback(http::nothing))
}

/// What a port for everything but gRPC serves.
pub fn http_router(store: &Store) -> Front {
    let routes = http::routes(store.clone()).merge(gateway::routes(&grpc(store), store.options().request_bytes));
    guarded(store, routes).fallback(http::nothing).into()
}

/// What a port for monitoring serves: metrics and health, nothing of the data.
pub fn metrics_router(store: &Store) -> Front {
    guarded(store, http::routes(store.clone())).fallback(http::nothing).into()
}

/// What a browser may reach, behind what keeps foreign pages out.
fn guarded(store: &Store, routes: axum::Router) -> axum::Router {
    routes.layer(axum::middleware::from_fn_with_state(store.clone(), browser::guard))
}

fn receive_bytes(store: &Store) -> usize {
    store.options().request_bytes.saturating_add(limits::REQUEST_OVERHEAD_BYTES)
}

fn kv_server(store: &Store) -> KvServer<kv::Kv> {
    let server = KvServer::new(kv::Kv::new(store.clone()));
    server.max_decoding_message_size(receive_bytes(store)).max_encoding_message_size(SEND_BYTES)
}

fn grpc(store: &Store) -> axum::Router {
    let receive = receive_bytes(store);
    macro_rules! sized {
        ($server:expr) => {
            $server.max_decoding_message_size(receive).max_encoding_message_size(SEND_BYTES)
        };
    }
    let routes = Routes::new(kv_server(store))
        .add_service(sized!(WatchServer::new(watch::Watch::new(store.clone()))))
        .add_service(sized!(LeaseServer::new(lease::Lease::new(store.clone()))))
        .add_service(sized!(ClusterServer::new(cluster::Cluster::new(store.clone()))))
        .add_service(sized!(MaintenanceServer::new(maintenance::Maintenance::new(store.clone()))))
        .add_service(sized!(AuthServer::new(auth::Auth::new(store.clone()))))
        .add_service(sized!(LockServer::new(lock::Lock::new(store.clone()))))
        .add_service(sized!(ElectionServer::new(election::Election::new(store.clone()))))
        .add_service(sized!(OperationsServer::new(operations::Operations::new(store.clone()))));
    let meter = meter::MeterLayer { store: store.clone() };
    let calls = health::add(routes).into_axum_router().reset_fallback().layer(MapResponseLayer::new(pieces::unpacked));
    calls.layer(gate::GateLayer { store: store.clone() }).layer(meter)
}

/// The store as the caller of a request may use it.
fn acting<T>(store: &Store, request: &Request<T>) -> Store {
    let extensions = request.extensions();
    store.acting_for(extensions.get().cloned().unwrap_or(Actor::Anonymous), extensions.get().copied())
}

/// Refuses a call that asks for a leader while there is none.
fn require_leader(store: &Store, metadata: &MetadataMap) -> Result<(), Status> {
    if wants_leader(metadata) && store.published().leader.is_none() { Err(no_leader()) } else { Ok(()) }
}

fn wants_leader(metadata: &MetadataMap) -> bool {
    metadata.get("hasleader").is_some_and(|value| value == "true")
}

fn no_leader() -> Status {
    Status::new(Code::Unavailable, "etcdserver: no leader")
}

/// A member that only learns answers nothing but stale reads and its status. One that knows of no leader may be a founder whose cluster is
/// not founded yet, and votes in a moment.
fn require_voter(store: &Store) -> Result<(), Status> {
    let standing = store.published();
    match standing.learner {
        true if standing.leader.is_none() => Err(no_leader()),
        true => Err(Status::new(Code::FailedPrecondition, "etcdserver: rpc not supported for learner")),
        false => Ok(()),
    }
}
