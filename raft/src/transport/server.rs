//! The receiving side: accepts peers' connections and passes their messages to Raft.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use openraft::raft::{StreamAppendError, TransferLeaderError, TransferLeaderRequest};
use parking_lot::Mutex;
use pintle_base::clock;
use pintle_proto::raft_v1 as pb;
use pintle_proto::raft_v1::answer::Outcome;
use pintle_proto::raft_v1::ask::Question;
use pintle_proto::raft_v1::consensus_server::{Consensus, ConsensusServer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::tls::{self, Answering, PeerName, PeerStream};
use crate::core::{Snapshot, TypeConfig};
use crate::describe::Description;
use crate::members::Change;
use crate::node::Node;
use crate::propose::{Refused, refusal, to_messages};
use crate::snapshot::Incoming;
use crate::start::Peering;
use crate::wire::{self, WireError};
use crate::{fence, limits};

/// Serves peers on `listener` until `stop`. Open connections are cut, not drained: peers reconnect elsewhere.
pub(crate) async fn serve(
    listener: TcpListener,
    peering: &Peering,
    node: Arc<Node>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (accepted, connections) = mpsc::channel(limits::HANDSHAKES);
    let accepting = accept(listener, Answering::new(peering), accepted);
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(limits::PING_INTERVAL))
        .http2_keepalive_timeout(Some(limits::PING_TIMEOUT))
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES)
        .add_service(service(node))
        .serve_with_incoming(ReceiverStream::new(connections));
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = accepting => Ok(()),
        served = serving => served,
    }
}

/// What answers peers, however their requests arrive. Each must carry the [`PeerName`] of its sender.
pub(crate) fn service(node: Arc<Node>) -> ConsensusServer<Service> {
    ConsensusServer::new(Service { node, forwarded: Arc::new(Semaphore::new(limits::FORWARDED_IN_FLIGHT)) })
        .max_decoding_message_size(limits::MESSAGE_BYTES)
        .max_encoding_message_size(limits::MESSAGE_BYTES)
}

/// Accepts connections; handshakes run beside each other, a bounded number at once.
async fn accept(listener: TcpListener, answering: Answering, accepted: mpsc::Sender<io::Result<PeerStream>>) {
    let handshakes = Arc::new(Semaphore::new(limits::HANDSHAKES));
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                // Out of file descriptors, most likely: not spinning helps.
                tracing::warn!(%error, "cannot accept a peer's connection");
                clock::sleep(limits::PROBE_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (answering, accepted) = (answering.clone(), accepted.clone());
        tokio::spawn(async move {
            handshake(tcp, from, answering, accepted).await;
            drop(permit);
        });
    }
}

async fn handshake(
    tcp: TcpStream,
    from: std::net::SocketAddr,
    answering: Answering,
    accepted: mpsc::Sender<io::Result<PeerStream>>,
) {
    match tls::accept(answering, tcp).await {
        // The server may be stopping; then the connection is dropped.
        Ok(stream) => drop(accepted.send(Ok(stream)).await),
        Err(error) => tracing::debug!(%from, %error, "refused a connection to the peer port"),
    }
}

pub(crate) struct Service {
    node: Arc<Node>,
    forwarded: Arc<Semaphore>,
}

type Answer<T> = Result<Response<T>, Status>;

fn invalid(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn sender<T>(request: &Request<T>) -> Result<PeerName, Status> {
    request.extensions().get::<PeerName>().cloned().ok_or_else(|| Status::unauthenticated("no certificate"))
}

impl Service {
    /// Takes a message apart if it is for this member and from the one whose certificate was shown.
    fn check<T>(&self, request: Request<T>, header: impl Fn(&T) -> Option<&pb::Header>) -> Result<T, Status> {
        let peer = sender(&request)?;
        let message = request.into_inner();
        self.node.check_header(header(&message), &peer)?;
        Ok(message)
    }
}

#[tonic::async_trait]
impl Consensus for Service {
    type AppendStream = BoxStream<'static, Result<pb::AppendResponse, Status>>;
    type ExchangeStream = BoxStream<'static, Result<pb::Answer, Status>>;

    async fn append(&self, request: Request<Streaming<pb::AppendRequest>>) -> Answer<Self::AppendStream> {
        let peer = sender(&request)?;
        self.node.check_may_receive()?;
        let node = Arc::clone(&self.node);
        // A request that is refused ends the input; the reason follows the answers to those before it.
        let refused: Arc<Mutex<Option<Status>>> = Arc::default();
        let refusal = Arc::clone(&refused);
        let mut is_known = false;
        let requests = tokio_stream::StreamExt::map_while(request.into_inner(), move |request| {
            let checked = request.and_then(|request| {
                // The first message speaks for those after it, unless they say something else.
                if !is_known || request.header.is_some() {
                    node.check_header(request.header.as_ref(), &peer)?;
                    is_known = true;
                }
                wire::from_append(request).map_err(invalid)
            });
            checked.map_err(|status| *refusal.lock() = Some(status)).ok()
        });
        let answers = self.node.raft.stream_append(requests).map(|answer| match answer {
            Ok(result) => Ok(wire::to_appended(result)),
            Err(fatal) => Err(stopped(fatal)),
        });
        let end = stream::once(async move { refused.lock().take() }).filter_map(|status| async { status.map(Err) });
        Ok(Response::new(answers.chain(end).boxed()))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Answer<pb::VoteResponse> {
        let request = self.check(request, |m| m.header.as_ref())?;
        self.node.check_may_vote()?;
        let pre_vote = request.pre_vote;
        let vote = wire::from_vote_request(request).map_err(invalid)?;
        let response = if pre_vote { self.node.raft.pre_vote(vote).await } else { self.node.raft.vote(vote).await };
        Ok(Response::new(wire::to_vote_response(response.map_err(stopped)?)))
    }

    async fn transfer_leader(&self, request: Request<pb::TransferLeaderRequest>) -> Answer<pb::TransferLeaderResponse> {
        use pb::transfer_leader_response::Refused;
        let request = self.check(request, |m| m.header.as_ref())?;
        self.node.check_may_vote()?;
        let from_leader = wire::from_vote(request.from_leader).map_err(invalid)?;
        let last = request.last_log.map(wire::from_log_id);
        let transfer = TransferLeaderRequest::new(from_leader, request.target, last);
        let refused = match self.node.raft.handle_transfer_leader(transfer).await.map_err(stopped)? {
            Ok(()) => None,
            Err(TransferLeaderError::VoteChanged { actual, .. }) => Some(Refused::VoteChanged(wire::to_vote(actual))),
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => Some(
                actual.map_or(Refused::NothingFlushed(pb::Blank {}), |id| Refused::NotFlushed(wire::to_log_id(id))),
            ),
        };
        Ok(Response::new(pb::TransferLeaderResponse { refused }))
    }

    async fn snapshot(&self, request: Request<Streaming<pb::SnapshotChunk>>) -> Answer<pb::SnapshotResponse> {
        let peer = sender(&request)?;
        let Ok(_only) = self.node.receiving.try_lock() else {
            return Err(Status::resource_exhausted("another snapshot is being received"));
        };
        let mut parts = request.into_inner();
        let Some(pb::snapshot_chunk::Part::Start(start)) = next_part(&mut parts).await? else {
            return Err(invalid(WireError::Missing("snapshot's manifest")));
        };
        self.node.check_header(start.header.as_ref(), &peer)?;
        self.node.check_may_receive()?;
        let vote = wire::from_vote(start.vote).map_err(invalid)?;
        let manifest = start.manifest.ok_or_else(|| invalid(WireError::Missing("snapshot's manifest")))?;
        tracing::info!(
            from = start.header.as_ref().map(|header| &*header.from_name),
            files = manifest.files.len(),
            "receiving a snapshot"
        );
        let snapshot = receive(&self.node, manifest, &mut parts).await?;
        let install = self.node.raft.install_full_snapshot(vote, snapshot);
        let installed = clock::timeout(limits::SNAPSHOT_INSTALL, install).await;
        let response = installed.map_err(stopped)?.map_err(stopped)?;
        Ok(Response::new(pb::SnapshotResponse { vote: Some(wire::to_vote(response.vote)) }))
    }

    async fn exchange(&self, request: Request<Streaming<pb::Ask>>) -> Answer<Self::ExchangeStream> {
        let peer = sender(&request)?;
        let mut asks = request.into_inner();
        let first = clock::timeout(limits::HELLO_TIMEOUT, asks.message());
        let first = first.await.map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(pb::Ask { question: Some(Question::Hello(header)), .. }) = first else {
            return Err(invalid(WireError::Missing("hello")));
        };
        self.node.check_header(Some(&header), &peer)?;
        let (node, forwarded) = (Arc::clone(&self.node), Arc::clone(&self.forwarded));
        let answers = asks
            .map(move |ask| answer(Arc::clone(&node), Arc::clone(&forwarded), ask))
            .buffer_unordered(limits::ASKS_UNDER_WAY)
            .flat_map(stream::iter);
        Ok(Response::new(answers.boxed()))
    }

    async fn change(&self, request: Request<pb::ChangeRequest>) -> Answer<pb::ChangeResponse> {
        let request = self.check(request, |m| m.header.as_ref())?;
        let change = Change::try_from(request.change).map_err(invalid)?;
        let refusal = self.node.change_as_leader(change).await.err().map(|refused| refusal(&refused));
        Ok(Response::new(pb::ChangeResponse { refusal }))
    }

    async fn describe(&self, _: Request<pb::DescribeRequest>) -> Answer<pb::DescribeResponse> {
        let Description { cluster_id, members, index } = Description::of(&self.node);
        let members = members.iter().map(wire::to_member).collect();
        Ok(Response::new(pb::DescribeResponse { cluster_id, members, index }))
    }

    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Answer<pb::ProbeResponse> {
        self.check(request, |m| m.header.as_ref())?;
        Ok(Response::new(fence::testimony(&self.node)))
    }
}

/// All messages that answer `ask`; an error ends the stream.
async fn answer(
    node: Arc<Node>,
    forwarded: Arc<Semaphore>,
    ask: Result<pb::Ask, Status>,
) -> Vec<Result<pb::Answer, Status>> {
    let (id, question) = match ask {
        Ok(pb::Ask { id, question: Some(question) }) => (id, question),
        Ok(pb::Ask { question: None, .. }) => return vec![Err(invalid(WireError::Missing("question")))],
        Err(status) => return vec![Err(status)],
    };
    let outcomes = match question {
        Question::Hello(_) => return vec![Err(Status::invalid_argument("a second hello"))],
        Question::Heartbeat(append) => match heartbeat(&node, append).await {
            Ok(answer) => vec![Outcome::Appended(answer)],
            Err(status) => vec![Outcome::Failed(status.message().to_owned())],
        },
        Question::Propose(pb::Commands { commands }) => match propose(&node, &forwarded, commands).await {
            Ok(replies) => to_messages(replies).into_iter().map(Outcome::Replies).collect(),
            Err(refused) => vec![Outcome::Refusal(refusal(&refused))],
        },
        Question::NewestTerm(pb::Blank {}) => match node.newest_term() {
            Ok(term) => vec![Outcome::Term(term)],
            Err(status) => vec![Outcome::Failed(status.message().to_owned())],
        },
        Question::ReadIndex(pb::Blank {}) => match node.read_index_as_leader().await {
            Ok(index) => {
                node.links.hurry(); // the asker waits until it has applied that much
                vec![Outcome::Index(index)]
            }
            Err(refused) => vec![Outcome::Refusal(refusal(&refused))],
        },
    };
    let last = outcomes.len().saturating_sub(1);
    let message = |(at, outcome)| Ok(pb::Answer { id, more: at < last, outcome: Some(outcome) });
    outcomes.into_iter().enumerate().map(message).collect()
}

async fn heartbeat(node: &Node, append: pb::AppendRequest) -> Result<pb::AppendResponse, Status> {
    node.check_may_receive()?;
    let append = wire::from_append(append).map_err(invalid)?;
    let previous = append.prev_log_id;
    let last = append.entries.last().map(|entry| entry.log_id).or(previous);
    let response = node.raft.append_entries(append).await.map_err(stopped)?;
    let result = match (response.is_conflict(), previous) {
        (true, Some(previous)) => Err(StreamAppendError::<TypeConfig>::Conflict(previous)),
        (true, None) => return Err(Status::internal("conflict before the first entry")),
        (false, _) => response.into_stream_result(previous, last),
    };
    Ok(wire::to_appended(result))
}

async fn propose(node: &Node, forwarded: &Semaphore, commands: Vec<Bytes>) -> Result<Vec<Bytes>, Refused> {
    let bytes: usize = commands.iter().map(Bytes::len).sum();
    let too_large = bytes > limits::BATCH_BYTES.max(limits::COMMAND_BYTES) || commands.len() > limits::BATCH_COMMANDS;
    if commands.is_empty() || too_large {
        return Err(Refused::Invalid(format!("a batch of {} commands and {bytes} bytes", commands.len())));
    }
    let Ok(_permit) = forwarded.try_acquire() else { return Err(Refused::Overloaded) };
    node.propose_as_leader(commands).await
}

async fn next_part(parts: &mut Streaming<pb::SnapshotChunk>) -> Result<Option<pb::snapshot_chunk::Part>, Status> {
    let next = clock::timeout(limits::SNAPSHOT_SILENCE, parts.message()).await;
    let message = next.map_err(|_| Status::deadline_exceeded("the snapshot's sender fell silent"))??;
    message.map(|m| m.part.ok_or_else(|| invalid(WireError::Missing("snapshot's part")))).transpose()
}

async fn receive(
    node: &Node,
    manifest: pb::SnapshotManifest,
    parts: &mut Streaming<pb::SnapshotChunk>,
) -> Result<Snapshot, Status> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => Status::invalid_argument(error.to_string()),
        _ => Status::internal(error.to_string()),
    };
    let mut incoming = Incoming::new(&node.snapshots, manifest).map_err(io)?;
    while let Some(part) = next_part(parts).await? {
        let pb::snapshot_chunk::Part::Data(chunk) = part else {
            return Err(invalid(WireError::Missing("snapshot's data")));
        };
        let written = tokio::task::spawn_blocking(move || incoming.write(&chunk).map(|()| incoming));
        incoming = written.await.map_err(stopped)?.map_err(io)?;
    }
    let finished = tokio::task::spawn_blocking(move || incoming.finish());
    let snapshot = finished.await.map_err(stopped)?.map_err(io)?;
    Ok(Snapshot { meta: snapshot.meta.clone(), snapshot })
}
