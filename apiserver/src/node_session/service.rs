//! The gRPC front of the sessions: `pintle.node.v1.Node`, on the API port.
//!
//! The user of the connection was authenticated by the edge and must be the node that is spoken of.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_proto::node_v1::node_server::{Node, NodeServer};
use pintle_proto::node_v1::{
    AgentMessage, Frame, Hello, Refused, ServerMessage, Welcome, agent_message, server_message,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::DropGuard;
use tonic::{Request, Response, Status, Streaming};
use tower::Service as _;

use super::directory::Directory;
use super::{AgentStream, Sessions, limits};
use crate::authz::node;
use crate::types::{Body, UserInfo};

/// Paths of this service.
pub(crate) const PATH_PREFIX: &str = "/pintle.node.v1.Node/";

#[derive(Clone)]
pub(crate) struct Service {
    pub sessions: Sessions,
    pub directory: Directory,
    pub server_name: String,
    pub server_id: u64,
    /// Where session tasks run and end with the server.
    pub tasks: pintle_base::task::Group,
}

impl Service {
    /// Answers one HTTP request of the service.
    pub async fn call(&self, request: http::Request<Body>) -> http::Response<Body> {
        let mut server = NodeServer::new(self.clone())
            .max_decoding_message_size(limits::FRAME_BYTES)
            .max_encoding_message_size(limits::FRAME_BYTES);
        match server.call(request.map(tonic::body::Body::new)).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    }
}

/// A stream to an agent that ends its reading half when the agent hangs up.
pub struct Messages {
    inner: ReceiverStream<Result<ServerMessage, Status>>,
    _reader: DropGuard,
}

impl Stream for Messages {
    type Item = Result<ServerMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.inner).poll_next(context)
    }
}

#[tonic::async_trait]
impl Node for Service {
    type SessionStream = Messages;
    type StreamStream = ReceiverStream<Result<Frame, Status>>;

    async fn session(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Messages>, Status> {
        let node = caller(&request)?;
        let mut inbound = request.into_inner();
        let hello = hello(&mut inbound).await?;
        if hello.node_name != node {
            return Err(Status::permission_denied("the certificate is of another node"));
        }
        let (messages, receiver) = mpsc::channel(limits::OPENS);
        let welcome = Welcome { server_name: self.server_name.clone(), server_id: self.server_id };
        let welcome = ServerMessage { message: Some(server_message::Message::Welcome(welcome)) };
        let _ = messages.try_send(Ok(welcome));
        let Some(generation) = self.sessions.enter(&node, messages) else {
            return Err(Status::resource_exhausted("this server has too many sessions"));
        };
        tracing::info!(node, version = %hello.agent_version, "node session begins");
        let stop = self.tasks.token().child_token();
        let guard = stop.clone().drop_guard();
        let service = self.clone();
        self.tasks.spawn("node-session", async move {
            tokio::select! {
                () = stop.cancelled() => (),
                () = service.listen(&node, &mut inbound) => (),
            }
            service.end(&node, generation).await;
        });
        Ok(Response::new(Messages { inner: ReceiverStream::new(receiver), _reader: guard }))
    }

    async fn stream(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::StreamStream>, Status> {
        let node = caller(&request)?;
        let mut inbound = request.into_inner();
        let first = clock::timeout(limits::HELLO_TIMEOUT, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no first frame"))??;
        let id = first.map(|frame| frame.stream_id).ok_or_else(|| Status::invalid_argument("no first frame"))?;
        let waiting =
            self.sessions.claim(&node, id).ok_or_else(|| Status::not_found("nobody waits for this stream"))?;
        let (outbound, receiver) = mpsc::channel(limits::FRAMES);
        if waiting.send(Ok(AgentStream { inbound, outbound })).is_err() {
            return Err(Status::cancelled("the client has gone"));
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Service {
    /// Enters the session in the directory, then reads what the agent says until it hangs up.
    async fn listen(&self, node: &str, inbound: &mut Streaming<AgentMessage>) {
        if let Err(error) = self.directory.enter(node).await {
            tracing::warn!(node, error = %Chain(&error), "session not entered in the directory");
        }
        loop {
            match inbound.next().await {
                Some(Ok(message)) => self.on_message(node, message),
                Some(Err(status)) => {
                    tracing::debug!(node, code = ?status.code(), "node session broke");
                    return;
                }
                None => return,
            }
        }
    }

    fn on_message(&self, node: &str, message: AgentMessage) {
        if let Some(agent_message::Message::Refused(refused)) = message.message {
            let Refused { stream_id, .. } = refused;
            if let Some(waiting) = self.sessions.claim(node, stream_id) {
                let _ = waiting.send(Err(refused));
            }
        }
    }

    async fn end(&self, node: &str, generation: u64) {
        if !self.sessions.leave(node, generation) {
            return; // a newer session of the node is here: its entry stays
        }
        tracing::info!(node, "node session ends");
        let left = clock::timeout(limits::LEASE_RENEW, self.directory.leave(node)).await;
        if let Ok(Err(error)) = left {
            tracing::debug!(node, error = %Chain(&error), "session not removed from the directory");
        }
    }
}

/// The node that calls.
fn caller<T>(request: &Request<T>) -> Result<String, Status> {
    let user = request.extensions().get::<UserInfo>();
    let node = user.and_then(node::node_name).map(str::to_owned);
    node.ok_or_else(|| Status::permission_denied("only node agents hold sessions"))
}

async fn hello(inbound: &mut Streaming<AgentMessage>) -> Result<Hello, Status> {
    let first = clock::timeout(limits::HELLO_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
    match first.and_then(|message| message.message) {
        Some(agent_message::Message::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("a session begins with a hello")),
    }
}
