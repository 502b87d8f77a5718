//! Subresources that act on a running pod: binding, eviction, and the streams log, exec, attach and port-forward.
//!
//! A stream goes to the pod's node through the session its agent holds: with this server ([`crate::node_session`]), or
//! with another one, to which the request is passed on whole ([`forward`]).

pub(crate) mod binding;
mod channels;
pub(crate) mod eviction;
mod forward;
mod log;
mod port_forward;
mod remote_command;
mod target;

use std::sync::Arc;

use futures::future::BoxFuture;
use http::HeaderValue;
use pintle_api::kinds::Kind;
use pintle_api::meta::format_time;
use pintle_api::status::Status;
use pintle_base::task::Group;
use pintle_proto::node_v1::Open;
use serde_json::{Value, json};

use crate::authz::live::{Live, items, text};
use crate::node_session::directory::Directory;
use crate::node_session::{self, AgentStream, OpenError, Sessions};
use crate::request::Query;
use crate::tokens::{Issuer, discovery};
use crate::types::{Body, Config, Request, RequestInfo, Response, Streams, UserInfo};
use crate::{negotiate, types};

/// What every stream needs of the server.
pub struct Reach {
    pub(crate) config: Config,
    pub(crate) live: Arc<dyn Live>,
    pub(crate) sessions: Sessions,
    pub(crate) directory: Directory,
    pub(crate) service: node_session::Service,
    pub(crate) issuer: Arc<Issuer>,
}

/// How a node is reached.
enum Way {
    Here(AgentStream),
    /// The session is with this server.
    Through(types::PeerServer),
}

impl Streams for Reach {
    fn connect(&self, kind: &'static Kind, request: Request) -> BoxFuture<'_, Response> {
        Box::pin(async move {
            let headers = request.headers().clone();
            match self.stream(kind, request).await {
                Ok(response) => response,
                Err(status) => negotiate::status_for(&headers, &status),
            }
        })
    }

    fn start(&self, group: &Group) {
        group.spawn("node-directory", self.directory.clone().keep(self.sessions.clone(), group.token()));
        let (sessions, stop) = (self.service.tasks.clone(), group.token());
        group.spawn("node-sessions", async move {
            stop.cancelled().await;
            sessions.token().cancel();
        });
    }

    fn other(&self, request: Request) -> BoxFuture<'_, Option<Response>> {
        Box::pin(async move {
            let path = request.uri().path();
            if path.starts_with(node_session::PATH_PREFIX) {
                return Some(self.service.call(request).await);
            }
            discovery::document(&self.issuer, path).map(|(media_type, document)| {
                let mut response = http::Response::new(Body::from(document.to_string()));
                response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(media_type));
                let caching = HeaderValue::from_static("public, max-age=3600");
                response.headers_mut().insert(http::header::CACHE_CONTROL, caching);
                response
            })
        })
    }
}

impl Reach {
    async fn stream(&self, kind: &'static Kind, request: Request) -> Result<Response, Status> {
        let extensions = request.extensions();
        let info =
            extensions.get::<RequestInfo>().cloned().ok_or_else(|| Status::internal("request without its info"))?;
        let user = extensions.get::<UserInfo>().cloned().ok_or_else(Status::unauthorized)?;
        let query = Query::parse(request.uri().query());
        let ask = Ask { info, user, query, forwarded: forward::is_forwarded(&request) };
        match (kind.group, kind.resource, ask.info.subresource.as_str()) {
            ("", "pods", "log") => log::serve(self, ask, request).await,
            ("", "pods", "exec") => remote_command::serve(self, remote_command::Verb::Exec, ask, request).await,
            ("", "pods", "attach") => remote_command::serve(self, remote_command::Verb::Attach, ask, request).await,
            ("", "pods", "portforward") => port_forward::serve(self, ask, request).await,
            (group, resource, subresource) => {
                let resource = format!("{resource}/{subresource}");
                Err(Status::method_not_supported(group, &resource, &ask.info.verb))
            }
        }
    }

    /// Opens a stream to the node, or finds the server that can.
    async fn way(&self, node: &str, open: Open, forwarded: bool) -> Result<Way, Status> {
        match self.sessions.open(node, open).await {
            Ok(stream) => return Ok(Way::Here(stream)),
            Err(OpenError::NoSession) => (),
            Err(error) => return Err(open_status(node, &error)),
        }
        let unreachable = || open_status(node, &OpenError::NoSession);
        if forwarded {
            return Err(unreachable());
        }
        let holder = self.directory.holder(node).await.map_err(|error| crate::storage::status_of(&error))?;
        let holder = holder.filter(|id| *id != self.config.server_id).ok_or_else(unreachable)?;
        let peers = (self.config.peers)();
        peers.into_iter().find(|peer| peer.id == holder).map(Way::Through).ok_or_else(unreachable)
    }
}

/// A stream request, read.
struct Ask {
    info: RequestInfo,
    user: UserInfo,
    query: Query,
    /// Another server has passed it on to this one.
    forwarded: bool,
}

/// Why a node cannot be reached, as the client reads it.
fn open_status(node: &str, error: &OpenError) -> Status {
    match error {
        OpenError::NoSession => {
            Status::service_unavailable(format!("the agent of node {node:?} is not connected to any server"))
        }
        OpenError::Refused(refused) => refused_status(refused),
        OpenError::Timeout => Status::timeout(format_args!("the agent of node {node:?} did not answer in time"), 1),
        OpenError::TooMany => {
            Status::too_many_requests(format!("too many streams to node {node:?} are being opened"), 1)
        }
    }
}

/// The agent's own words, as far as they are a proper error.
fn refused_status(refused: &pintle_proto::node_v1::Refused) -> Status {
    let code = u16::try_from(refused.http_code).ok().filter(|code| (400..600).contains(code)).unwrap_or(500);
    let reason = serde_json::from_value(refused.reason.clone().into()).unwrap_or_default();
    Status { status: "Failure".into(), code, reason, message: refused.message.clone(), ..Status::default() }
}

/// Sets a condition of `object.status`; its transition time moves only if its status does.
fn set_condition(object: &mut Value, mut condition: Value, now: i64) {
    let kind = text(&condition, "/type").to_owned();
    let old = items(object, "/status/conditions").find(|old| text(old, "/type") == kind).cloned();
    let unchanged = old.as_ref().filter(|old| text(old, "/status") == text(&condition, "/status"));
    let since = unchanged.map(|old| text(old, "/lastTransitionTime").to_owned()).filter(|since| !since.is_empty());
    let now = jiff::Timestamp::from_second(now).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    condition["lastTransitionTime"] = since.unwrap_or_else(|| format_time(now)).into();
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = object["status"]["conditions"].as_array_mut() {
        match conditions.iter_mut().find(|old| text(old, "/type") == kind) {
            Some(old) => *old = condition,
            None => conditions.push(condition),
        }
    }
}

#[cfg(test)]
mod tests {
    use pintle_api::status::Reason;
    use pintle_proto::node_v1::Refused;

    use super::*;

    #[test]
    fn a_refusal_is_passed_on_as_a_proper_error() {
        let refused = |code, reason: &str| {
            refused_status(&Refused {
                stream_id: 1,
                http_code: code,
                reason: reason.into(),
                message: "no such container".into(),
            })
        };
        let status = refused(404, "NotFound");
        assert_eq!(
            (status.http_code(), status.reason, status.message.as_str()),
            (404, Reason::NotFound, "no such container")
        );
        for code in [0, 200, 99_999] {
            assert_eq!(refused(code, "x").http_code(), 500);
        }
    }
}
