//! The sending side: connections to peers, and openraft's network on top of them.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_proto::raft_v1 as pb;
use pintle_proto::raft_v1::answer::Outcome;
use pintle_proto::raft_v1::ask::Question;
use pintle_proto::raft_v1::consensus_client::ConsensusClient;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::transport::Endpoint;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::Me;
use super::exchange::Exchange;
use super::outgoing::outgoing;
use super::tls::{self, Calling, ConnectError};
use crate::core::{Record, Snapshot, TypeConfig, Vote};
use crate::limits;
use crate::snapshot::{SnapshotDir, read_chunk};
use crate::start::Peering;
use crate::wire::{self, WireError};

/// One connection to a peer: opened when first used, reopened when lost.
pub(crate) type Connection = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Broken>;

/// A connection, or what was to become one, did not do what it was asked to. The source says why.
#[derive(Debug, thiserror::Error)]
#[error("connection to a peer")]
pub(crate) struct Broken(#[source] pub StdError);

/// Makes connections to a peer. The only thing that knows what they are made of.
pub(crate) type Dial = Arc<dyn Fn(&Record) -> Connection + Send + Sync>;

pub(super) type Client = ConsensusClient<Connection>;

/// The connections to one peer.
pub(crate) struct Link {
    me: Me,
    id: u64,
    name: String,
    addr: String,
    control: Client,
    bulk: Client,
    snapshot: Client,
    /// Over `control` and over `bulk`.
    small: Exchange,
    large: Exchange,
}

/// Connections to all peers. Use inside Raft's runtime only: it drives them.
pub(crate) struct Links {
    pub me: Me,
    dial: Dial,
    links: Mutex<HashMap<u64, Arc<Link>>>,
    /// By member, where the snapshot ends that it is being sent, or was sent last.
    snapshots: Mutex<HashMap<u64, u64>>,
    /// The last entry that any member was told to be committed.
    told: AtomicU64,
    /// Somebody waits for what its member knows to be committed.
    hurry: Arc<Notify>,
}

impl Links {
    pub fn new(me: Me, dial: Dial) -> Self {
        let (told, hurry) = (AtomicU64::new(0), Arc::default());
        Self { me, dial, links: Mutex::default(), snapshots: Mutex::default(), told, hurry }
    }

    /// The connections to a peer; new ones if its name or address changed.
    pub fn link(&self, id: u64, peer: &Record) -> Arc<Link> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(&id)
            && link.name == peer.name
            && link.addr == peer.peer_addr
        {
            return Arc::clone(link);
        }
        let [control, bulk, snapshot] = std::array::from_fn(|_| client((self.dial)(peer)));
        let link = Arc::new(Link {
            me: self.me.clone(),
            id,
            name: peer.name.clone(),
            addr: peer.peer_addr.clone(),
            small: Exchange::new(control.clone()),
            large: Exchange::new(bulk.clone()),
            control,
            bulk,
            snapshot,
        });
        links.insert(id, Arc::clone(&link));
        link
    }
}

impl Links {
    /// Follows members to other addresses; makes no connections to others than are there.
    pub fn refresh(&self, id: u64, peer: &Record) {
        if self.newest(id).is_some() {
            self.link(id, peer);
        }
    }

    /// The last entry that a member has, or will have once it has taken over the snapshot it is being sent.
    pub fn snapshot_of(&self, id: u64) -> Option<u64> {
        self.snapshots.lock().get(&id).copied()
    }

    /// The last entry that another member may know from this one to be committed.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::SeqCst)
    }

    /// Tells followers at once how far is committed, if that waits for the next entry.
    pub fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    /// An append as a message. What it says to be committed counts as told.
    fn append(&self, header: Option<pb::Header>, request: AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
        self.told.fetch_max(request.leader_commit.map_or(0, |id| id.index), Ordering::SeqCst);
        wire::to_append(header, request)
    }

    fn newest(&self, id: u64) -> Option<Arc<Link>> {
        self.links.lock().get(&id).cloned()
    }
}

/// Real connections.
pub(crate) fn over_tcp(peering: &Peering) -> Dial {
    let calling = Calling::new(peering);
    Arc::new(move |peer| connection(peer, &calling))
}

fn connection(peer: &Record, calling: &Calling) -> Connection {
    let (addr, name, calling) = (peer.peer_addr.clone(), peer.name.clone(), calling.clone());
    let connector = tower::service_fn(move |_: http::Uri| {
        let connecting = tls::connect(addr.clone(), name.clone(), calling.clone());
        async move { connecting.await.map(TokioIo::new) }
    });
    // The address is the connector's business; the URI only has to be one.
    let channel = Endpoint::from_static("http://peer.pintle")
        .http2_keep_alive_interval(limits::PING_INTERVAL)
        .keep_alive_timeout(limits::PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES)
        .connect_with_connector_lazy(connector);
    BoxCloneSyncService::new(channel.map_err(|error| Broken(error.into())))
}

fn client(connection: Connection) -> Client {
    ConsensusClient::new(connection)
        .max_decoding_message_size(limits::MESSAGE_BYTES)
        .max_encoding_message_size(limits::MESSAGE_BYTES)
}

/// Whether `status` says that no connection could be made, so that nothing was sent.
pub(crate) fn was_not_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

impl Link {
    pub fn header(&self) -> pb::Header {
        self.me.header(self.id)
    }

    /// What the leader says to these commands, in one or several messages. The caller limits the time.
    pub async fn propose(&self, commands: Vec<bytes::Bytes>) -> Result<Vec<Outcome>, Status> {
        self.large.ask(|| self.header(), Question::Propose(pb::Commands { commands })).await
    }

    pub async fn read_index(&self) -> Result<Option<Outcome>, Status> {
        self.ask(limits::FORWARD_TIMEOUT, Question::ReadIndex(pb::Blank {})).await
    }

    /// The newest term in which the peer may have voted, of the moment it answers.
    pub async fn newest_term(&self, limit: Duration) -> Result<u64, Status> {
        match self.ask(limit, Question::NewestTerm(pb::Blank {})).await? {
            Some(Outcome::Term(term)) => Ok(term),
            Some(Outcome::Failed(reason)) => Err(Status::unavailable(reason)),
            _ => Err(Status::internal("the answer about a term makes no sense")),
        }
    }

    async fn heartbeat(&self, limit: Duration, append: pb::AppendRequest) -> Result<pb::AppendResponse, Status> {
        match self.ask(limit, Question::Heartbeat(append)).await? {
            Some(Outcome::Appended(answer)) => Ok(answer),
            Some(Outcome::Failed(reason)) => Err(Status::unavailable(reason)),
            _ => Err(Status::internal("the answer to a heartbeat makes no sense")),
        }
    }

    /// A question with one message for an answer.
    async fn ask(&self, limit: Duration, question: Question) -> Result<Option<Outcome>, Status> {
        let answer = async { self.small.ask(|| self.header(), question).await.map(tonic::Response::new) };
        within(limit, answer).await.map(|mut outcomes| outcomes.pop())
    }

    pub async fn change(&self, change: pb::change_request::Change) -> Result<pb::ChangeResponse, Status> {
        let request = pb::ChangeRequest { header: Some(self.header()), change: Some(change) };
        within(limits::HANDOVER + limits::FORWARD_TIMEOUT, self.control.clone().change(request)).await
    }

    pub async fn probe(&self) -> Result<pb::ProbeResponse, Status> {
        let request = pb::ProbeRequest { header: Some(self.header()) };
        within(limits::PROBE_TIMEOUT, self.control.clone().probe(request)).await
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match clock::timeout(limit, call).await {
        Ok(result) => result.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {limit:?}"))),
    }
}

/// What a network object of openraft is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Replicate,
    Heartbeat,
    Snapshot,
}

/// Makes openraft's network objects.
pub(crate) struct NetworkFactory(pub Arc<Links>);

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, node: &Record) -> Network {
        Network::new(&self.0, target, node, Purpose::Replicate)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Record) -> Network {
        Network::new(&self.0, target, node, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Record) -> Network {
        Network::new(&self.0, target, node, Purpose::Snapshot)
    }
}

/// A snapshot on its way; if it does not arrive, the member does not have it.
struct Sending {
    links: Arc<Links>,
    id: u64,
    arrived: bool,
}

impl Sending {
    fn begin(links: &Arc<Links>, id: u64, last: u64) -> Self {
        links.snapshots.lock().insert(id, last);
        Self { links: Arc::clone(links), id, arrived: false }
    }

    fn done(mut self) {
        self.arrived = true;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.arrived {
            self.links.snapshots.lock().remove(&self.id);
        }
    }
}

/// openraft's way to one peer.
pub(crate) struct Network {
    links: Arc<Links>,
    id: u64,
    /// The connections it was made with.
    first: Arc<Link>,
    purpose: Purpose,
    backoff: Backoff,
}

type RpcError = RPCError<TypeConfig>;
type AppendResults<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>;

fn unreachable(status: &Status) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(describe(status)))
}

fn nonsense(error: &WireError) -> RpcError {
    RPCError::Network(NetworkError::new(error))
}

fn describe(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), pintle_base::error::Chain(source)),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

impl Network {
    fn new(links: &Arc<Links>, id: u64, node: &Record, purpose: Purpose) -> Self {
        let backoff = Backoff::new(limits::RECONNECT_FIRST, limits::RECONNECT_MAX);
        Self { links: Arc::clone(links), id, first: links.link(id, node), purpose, backoff }
    }

    /// The newest connections: the member may have another address by now, and openraft keeps this object nevertheless.
    fn link(&self) -> Arc<Link> {
        self.links.newest(self.id).unwrap_or_else(|| Arc::clone(&self.first))
    }

    /// One bidirectional stream ([`super::outgoing`] says when it ends). Its first message has the header for all of them.
    async fn pipeline<S>(&mut self, input: S) -> Result<AppendResults<'static>, RpcError>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let (mut header, links) = (Some(self.link().header()), Arc::clone(&self.links));
        let requests = outgoing(input, Arc::clone(&self.links.hurry));
        let requests = requests.map(move |request| links.append(header.take(), request));
        let mut bulk = self.link().bulk.clone();
        let limit = limits::CONNECT_TIMEOUT + limits::PING_TIMEOUT;
        let answers = match within(limit, bulk.append(requests)).await {
            Ok(answers) => answers,
            Err(status) => {
                // openraft pauses between requests; a stream that never began would be tried again without a pause.
                clock::sleep(self.backoff.next_delay()).await;
                return Err(unreachable(&status));
            }
        };
        self.backoff.reset();
        Ok(Box::pin(answers.map(|answer| match answer {
            Ok(answer) => wire::from_appended(answer).map_err(|error| nonsense(&error)),
            Err(status) => Err(unreachable(&status)),
        })))
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = Arc<SnapshotDir>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let previous = rpc.prev_log_id;
        let last = rpc.entries.last().map(|entry| entry.log_id).or(previous);
        let link = self.link();
        let request = self.links.append(None, rpc);
        let answer = link.heartbeat(option.hard_ttl(), request).await.map_err(|status| unreachable(&status))?;
        match wire::from_appended(answer).map_err(|error| nonsense(&error))? {
            Ok(matched) if matched == last => Ok(AppendEntriesResponse::Success),
            Ok(matched) => Ok(AppendEntriesResponse::PartialSuccess(matched)),
            Err(StreamAppendError::HigherVote(vote)) => Ok(AppendEntriesResponse::HigherVote(vote)),
            Err(StreamAppendError::Conflict(_)) if previous.is_some() => Ok(AppendEntriesResponse::Conflict),
            Err(StreamAppendError::Conflict(_)) => Err(nonsense(&WireError::Missing("entry that conflicts"))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<AppendResults<'s>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.purpose == Purpose::Heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move { self.pipeline(input).await })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let request = wire::to_vote_request(self.link().header(), rpc, false);
        self.ask_vote(request, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let request = wire::to_vote_request(self.link().header(), rpc, true);
        self.ask_vote(request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sending = Sending::begin(&self.links, self.id, snapshot.meta.last_log_id.map_or(0, |id| id.index));
        let (parts, receiver) = mpsc::channel(2);
        let start = pb::SnapshotStart {
            header: Some(self.link().header()),
            vote: Some(wire::to_vote(vote)),
            manifest: Some(snapshot.snapshot.manifest.clone()),
        };
        let mut client = self.link().snapshot.clone();
        let transfer = async {
            let call = client.snapshot(ReceiverStream::new(receiver));
            futures::join!(send_snapshot(parts, start, &snapshot.snapshot), call)
        };
        let (sent, answer) = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            done = transfer => done,
        };
        if let Err(error) = sent {
            return Err(StreamingError::Network(NetworkError::new(&error)));
        }
        let answer = answer.map_err(|status| StreamingError::from(unreachable(&status)))?.into_inner();
        let vote = wire::from_vote(answer.vote).map_err(|error| StreamingError::from(nonsense(&error)))?;
        sending.done();
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        use pb::transfer_leader_response::Refused;
        let request = pb::TransferLeaderRequest {
            header: Some(self.link().header()),
            from_leader: Some(wire::to_vote(*req.from_leader())),
            last_log: req.last_log_id().copied().map(wire::to_log_id),
            target: *req.to_node_id(),
        };
        let mut control = self.link().control.clone();
        let answer = within(option.hard_ttl(), control.transfer_leader(request)).await;
        let expected = req.last_log_id().copied();
        Ok(match answer.map_err(|status| unreachable(&status))?.refused {
            None => Ok(()),
            Some(Refused::VoteChanged(vote)) => Err(TransferLeaderError::VoteChanged {
                expected: *req.from_leader(),
                actual: wire::from_vote(Some(vote)).map_err(|error| nonsense(&error))?,
            }),
            Some(Refused::NotFlushed(id)) => {
                Err(TransferLeaderError::LogNotFlushed { expected, actual: Some(wire::from_log_id(id)) })
            }
            Some(Refused::NothingFlushed(_)) => Err(TransferLeaderError::LogNotFlushed { expected, actual: None }),
        })
    }
}

impl Network {
    async fn ask_vote(
        &self,
        request: pb::VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let mut control = self.link().control.clone();
        let answer = within(option.hard_ttl(), control.vote(request)).await.map_err(|status| unreachable(&status))?;
        wire::from_vote_response(answer).map_err(|error| nonsense(&error))
    }
}

/// Sends manifest and files. Ends early, without error, when the receiver has ended the call: its answer says why.
async fn send_snapshot(
    parts: mpsc::Sender<pb::SnapshotChunk>,
    start: pb::SnapshotStart,
    snapshot: &Arc<SnapshotDir>,
) -> std::io::Result<()> {
    use pb::snapshot_chunk::Part;
    let send = async |part: Part| parts.send(pb::SnapshotChunk { part: Some(part) }).await.is_ok();
    if !send(Part::Start(start)).await {
        return Ok(());
    }
    for (number, file) in (0u32..).zip(&snapshot.manifest.files) {
        let mut open = Arc::new(snapshot.open(file)?);
        let mut offset = 0;
        while offset < file.size {
            let (reading, size) = (Arc::clone(&open), file.size);
            let read =
                tokio::task::spawn_blocking(move || read_chunk(&reading, number, offset, size).map(|c| (reading, c)));
            let (back, chunk) = read.await.map_err(std::io::Error::other)??;
            open = back;
            offset += chunk.data.len() as u64;
            if !send(Part::Data(chunk)).await {
                return Ok(());
            }
        }
    }
    Ok(())
}
