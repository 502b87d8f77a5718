//! From a request whose body is not yet read to an answer: identity, permission, dispatch.
//!
//! The order is upstream's: what is asked, who asks, deadline and concurrency, permission, then the handler. Whatever goes
//! wrong, also a panic, becomes a `Status`. Always holds: no handler runs before authorization allowed its request.

mod body;
mod delete;
mod resource;
mod scale;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use pintle_api::status::Status;
use pintle_base::clock;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::negotiate;
use crate::request::{self, Query};
use crate::throttle::{Class, Throttle};
use crate::types::{Body, Ctx, Decision, PeerCerts, Request, RequestInfo, Response, UserInfo};
use crate::{authz, discovery, health, limits};

/// What all requests share.
pub struct Handler {
    pub ctx: Arc<Ctx>,
    pub metrics: Metrics,
    pub throttle: Throttle,
    pub discovery: discovery::Documents,
    /// Cancelled when the server drains: watches end, readiness fails.
    pub stop: CancellationToken,
}

/// A request on its way through.
pub(crate) struct Call {
    pub user: UserInfo,
    pub info: RequestInfo,
    pub query: Query,
    pub parts: http::request::Parts,
    /// Taken by whoever reads it. Behind a lock only so that calls can be shared across awaits.
    body: Mutex<Body>,
}

impl Call {
    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub fn take_body(&self) -> Body {
        std::mem::replace(&mut *self.body.lock(), Body::empty())
    }

    /// The request again, for those who stream.
    fn into_request(self) -> Request {
        Request::from_parts(self.parts, self.body.into_inner())
    }
}

impl Handler {
    /// Answers one request. Never fails and never panics.
    pub async fn handle(self: Arc<Self>, request: Request) -> Response {
        let headers = request.headers().clone();
        let started = clock::now();
        let query = Query::parse(request.uri().query());
        let info = match request::resolve(request.method(), request.uri().path(), &query) {
            Ok(info) => info,
            Err(status) => return negotiate::status_for(&headers, &status),
        };
        let class = Class::of(&info, &query, request.method());
        let this = Arc::clone(&self);
        let work = AssertUnwindSafe(this.answer(request, info.clone(), query, class)).catch_unwind();
        let running = self.metrics.begin(class);
        let limit = if class == Class::LongRunning { Duration::MAX } else { limits::REQUEST_DEADLINE };
        let response = match bounded(limit, work).await {
            Ok(Ok(response)) => response,
            Ok(Err(panic)) => {
                tracing::error!(path = %info.path, verb = %info.verb, panic = %panic_text(&*panic), "request panicked");
                let status = Status::internal("this request caused the server to panic; look in its log for details");
                negotiate::status_for(&headers, &status)
            }
            Err(_) => {
                let status = Status::timeout("request did not complete within the allotted timeout", 0);
                negotiate::status_for(&headers, &status)
            }
        };
        drop(running);
        self.metrics.record(&info, response.status(), started.elapsed());
        tracing::debug!(verb = %info.verb, path = %info.path, code = response.status().as_u16(),
            millis = started.elapsed().as_millis() as u64, "request");
        crate::compress::compress(&headers, response).await
    }

    async fn answer(self: Arc<Self>, request: Request, info: RequestInfo, query: Query, class: Class) -> Response {
        let headers = request.headers().clone();
        match self.admit_and_dispatch(request, info, query, class).await {
            Ok(response) => response,
            Err(status) => negotiate::status_for(&headers, &status),
        }
    }

    async fn admit_and_dispatch(
        self: Arc<Self>,
        request: Request,
        info: RequestInfo,
        query: Query,
        class: Class,
    ) -> Result<Response, Status> {
        let (mut parts, body) = request.into_parts();
        // Identities, permissions and admission are read from the cache: without it nothing can be decided.
        if !self.ctx.cache.is_ready() && !health::owns(&info.path) {
            return Err(Status::too_many_requests("storage is (re)initializing", 1));
        }
        let user = self.authenticate(&parts).await?;
        let place = self.throttle.enter(class, &user)?;
        if let Decision::Deny { reason } = self.ctx.hooks().authz.authorize(&user, &info) {
            return Err(authz::forbidden(&user, &authz::action_of(&info), &reason));
        }
        parts.extensions.insert(user.clone());
        parts.extensions.insert(info.clone());
        let call = Call { user, info, query, parts, body: Mutex::new(body) };
        let response = match call.info.is_resource {
            true => resource::serve(&self, call).await?,
            false => self.non_resource(call).await?,
        };
        // A place in the long-running class is held until the stream ends.
        Ok(if class == Class::LongRunning { place.until_end_of(response) } else { response })
    }

    async fn authenticate(&self, parts: &http::request::Parts) -> Result<UserInfo, Status> {
        if let Some(Identity(user)) = parts.extensions.get::<Identity>() {
            return Ok(user.clone());
        }
        let found = self.ctx.hooks().authn.authenticate(parts, parts.extensions.get::<PeerCerts>()).await?;
        Ok(found.unwrap_or_else(UserInfo::anonymous))
    }

    async fn non_resource(self: &Arc<Self>, call: Call) -> Result<Response, Status> {
        let path = call.info.path.clone();
        let read_only = matches!(call.parts.method, Method::GET | Method::HEAD);
        if discovery::owns(&path) {
            return if read_only {
                self.discovery.serve(&path, &call).await
            } else {
                Err(Status::method_not_allowed())
            };
        }
        if health::owns(&path) {
            return if read_only { health::serve(self, &path, &call).await } else { Err(Status::method_not_allowed()) };
        }
        let other = self.ctx.hooks().streams.other(call.into_request()).await;
        other.ok_or_else(Status::no_such_path)
    }
}

/// The identity of an in-process caller; trusted because only this process can put it into a request.
#[derive(Clone)]
pub(crate) struct Identity(pub UserInfo);

async fn bounded<F: Future>(limit: Duration, work: F) -> Result<F::Output, clock::Elapsed> {
    if limit == Duration::MAX { Ok(work.await) } else { clock::timeout(limit, work).await }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown panic")
}
