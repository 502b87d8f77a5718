//! Bounds on requests in work: reads, writes and long-running streams each have places; who finds none is told to retry.
//!
//! Always holds: a place is given back when its request, or its stream, ends, however it ends.

use std::sync::Arc;

use http::Method;
use pintle_api::status::Status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::held;
use crate::limits;
use crate::request::Query;
use crate::types::{MASTERS, RequestInfo, Response, UserInfo};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Read,
    Mutating,
    /// Watches, logs that are followed, exec and its kin, proxies, the agents' gRPC service.
    LongRunning,
}

impl Class {
    pub fn of(info: &RequestInfo, query: &Query, method: &Method) -> Self {
        let streams = match info.subresource.as_str() {
            "exec" | "attach" | "portforward" | "proxy" => true,
            "log" => query.flag("follow"),
            _ => false,
        };
        if info.verb == "watch" || streams || (!info.is_resource && info.path.starts_with("/pintle.node.v1.Node/")) {
            return Self::LongRunning;
        }
        if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) { Self::Read } else { Self::Mutating }
    }
}

pub struct Throttle {
    reading: Arc<Semaphore>,
    mutating: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

/// A place that is held.
pub struct Place(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl Default for Throttle {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            reading: places(limits::READING),
            mutating: places(limits::MUTATING),
            long: places(limits::LONG_RUNNING),
        }
    }
}

impl Throttle {
    /// Takes a place. `system:masters` is never turned away: it is the way to repair an overloaded cluster.
    ///
    /// # Errors
    /// 429 with Retry-After when all are taken.
    pub fn enter(&self, class: Class, user: &UserInfo) -> Result<Place, Status> {
        let places = match class {
            Class::Read => &self.reading,
            Class::Mutating => &self.mutating,
            Class::LongRunning => &self.long,
        };
        match Arc::clone(places).try_acquire_owned() {
            Ok(permit) => Ok(Place(Some(permit))),
            Err(_) if user.in_group(MASTERS) => Ok(Place(None)),
            Err(_) => Err(Status::too_many_requests("too many requests, please try again later", 1)),
        }
    }
}

impl Place {
    /// Moves the place into the body of `response`, to be given back when that ends.
    pub fn until_end_of(self, response: Response) -> Response {
        held::until_end_of(response, self)
    }
}
