//! `grpc.health.v1.Health`. Only the whole server, the empty name, is registered, and it serves as long as it answers.

use std::pin::Pin;

use futures::{Stream, StreamExt, stream};
use pintle_proto::health_v1::health_check_response::ServingStatus;
use pintle_proto::health_v1::health_server::{Health as HealthService, HealthServer};
use pintle_proto::health_v1::{HealthCheckRequest, HealthCheckResponse};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

pub(super) struct Health;

pub(super) fn add(routes: Routes) -> Routes {
    routes.add_service(HealthServer::new(Health))
}

#[tonic::async_trait]
impl HealthService for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.get_ref().service.as_str() {
            "" => Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() })),
            _ => Err(Status::not_found("unknown service")),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let status = match request.get_ref().service.as_str() {
            "" => ServingStatus::Serving,
            _ => ServingStatus::ServiceUnknown,
        };
        // It does not change while the server runs; the stream stays open as the protocol asks.
        let first = stream::once(async move { Ok(HealthCheckResponse { status: status.into() }) });
        Ok(Response::new(Box::pin(first.chain(stream::pending()))))
    }
}
