//! The composition of authentication, authorization, admission, virtual kinds and node streams into [`Hooks`].
//!
//! [`closed`] is what holds while nothing else is installed: certificates of `system:masters` only come in through
//! in-process callers, everybody else is refused (I13).
//!
//! The real ones come from [`crate::bootstrap::hooks`].

use std::sync::Arc;

use futures::future::BoxFuture;
use pintle_api::kinds::Kind;
use pintle_api::status::Status;
use serde_json::Value;

use crate::types::*;

struct Closed;

impl Authenticate for Closed {
    fn authenticate<'a>(
        &'a self,
        _: &'a http::request::Parts,
        _: Option<&'a PeerCerts>,
    ) -> BoxFuture<'a, Result<Option<UserInfo>, Status>> {
        Box::pin(async { Ok(None) })
    }
}

impl Authorize for Closed {
    fn authorize(&self, user: &UserInfo, _: &RequestInfo) -> Decision {
        if user.in_group(MASTERS) { Decision::Allow } else { Decision::Deny { reason: String::new() } }
    }
}

impl Admit for Closed {
    fn mutate<'a>(&'a self, _: &'a mut Review<'_>) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }
    fn validate<'a>(&'a self, _: &'a Review<'_>) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }
}

impl Virtual for Closed {
    fn create(&self, call: VirtualCall) -> BoxFuture<'_, Result<(http::StatusCode, Value), Status>> {
        Box::pin(async move { Err(Status::method_not_supported(call.kind.group, call.kind.resource, &call.info.verb)) })
    }
}

impl Streams for Closed {
    fn connect(&self, kind: &'static Kind, request: Request) -> BoxFuture<'_, Response> {
        let verb = request.method().as_str().to_ascii_lowercase();
        Box::pin(async move {
            crate::negotiate::status_response(&Status::method_not_supported(kind.group, kind.resource, &verb))
        })
    }
    fn other(&self, _: Request) -> BoxFuture<'_, Option<Response>> {
        Box::pin(async { None })
    }
}

/// Hooks that let only `system:masters` in and change nothing.
pub fn closed() -> Hooks {
    let closed = Arc::new(Closed);
    Hooks {
        authn: closed.clone(),
        authz: closed.clone(),
        admission: closed.clone(),
        virtuals: closed.clone(),
        streams: closed,
    }
}
