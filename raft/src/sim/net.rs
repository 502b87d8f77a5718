//! The simulated network: requests go to the other member's gRPC service in this process, late, or not at all.
//!
//! Messages are the real ones, encoded and decoded by tonic; what is missing is HTTP/2, TLS and TCP. As on a TCP connection,
//! messages of one stream keep their order, and a message that is lost takes its stream or call with it. Across streams and
//! calls anything may overtake anything. Calls that a peer may repeat are sometimes delivered twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use parking_lot::Mutex;
use pintle_base::clock;
use pintle_proto::raft_v1::consensus_server::ConsensusServer;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::Service as _;
use tower::util::BoxCloneSyncService;

use super::dice::Dice;
use crate::transport::client::Dial;
use crate::transport::server::Service;
use crate::transport::{Broken, ConnectError, PeerName};

/// Calls without effect beyond the first time.
const REPEATABLE: [&str; 3] = ["/Vote", "/TransferLeader", "/Probe"];

/// Frames of one body that are on their way at once.
const FRAMES_UNDER_WAY: usize = 64;

/// How badly it behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Of a thousand messages.
    pub lost: u64,
    pub doubled: u64,
    /// The longest way, in microseconds.
    pub slowest: u64,
}

impl Weather {
    pub const FAIR: Self = Self { lost: 0, doubled: 0, slowest: 2_000 };
}

/// A member that runs.
#[derive(Clone)]
pub(super) struct Attached {
    pub id: u64,
    pub service: ConsensusServer<Service>,
    /// Cancelled when it crashes.
    pub alive: CancellationToken,
}

pub(super) struct Net(Mutex<Inner>);

struct Inner {
    dice: Dice,
    weather: Weather,
    /// By address.
    members: BTreeMap<String, Attached>,
    /// Ways that nothing takes, from and to.
    blocked: BTreeSet<(u64, u64)>,
    /// How many arrived.
    messages: u64,
}

struct Lost;

fn reset() -> Broken {
    Broken(io::Error::new(io::ErrorKind::ConnectionReset, "simulated: the connection is lost").into())
}

impl Net {
    pub fn new(seed: u64) -> Arc<Self> {
        let inner = Inner {
            dice: Dice::new(seed, 1),
            weather: Weather::FAIR,
            members: BTreeMap::new(),
            blocked: BTreeSet::new(),
            messages: 0,
        };
        Arc::new(Self(Mutex::new(inner)))
    }

    pub fn attach(&self, addr: &str, member: Attached) {
        self.0.lock().members.insert(addr.to_owned(), member);
    }

    pub fn detach(&self, addr: &str) {
        self.0.lock().members.remove(addr);
    }

    pub fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// Nothing gets from one to the other.
    pub fn block(&self, from: u64, to: u64) {
        self.0.lock().blocked.insert((from, to));
    }

    pub fn isolate(&self, member: u64, others: impl IntoIterator<Item = u64>) {
        for other in others {
            self.block(member, other);
            self.block(other, member);
        }
    }

    pub fn heal(&self) {
        let mut inner = self.0.lock();
        inner.blocked.clear();
        inner.weather = Weather::FAIR;
    }

    /// How many messages have arrived.
    pub fn messages(&self) -> u64 {
        self.0.lock().messages
    }

    /// The member's connections, for its [`crate::transport::Links`].
    pub fn dial(self: &Arc<Self>, from: u64, name: &str, alive: &CancellationToken) -> Dial {
        let (net, name, alive) = (Arc::clone(self), Arc::<str>::from(name), alive.clone());
        Arc::new(move |peer| {
            let way = Way { net: Arc::clone(&net), from, to: 0, ours: alive.clone(), theirs: CancellationToken::new() };
            let (name, addr) = (Arc::clone(&name), peer.peer_addr.clone());
            BoxCloneSyncService::new(tower::service_fn(move |request| {
                way.clone().call(Arc::clone(&name), addr.clone(), request)
            }))
        })
    }

    /// Takes a message from one member to another, or loses it.
    async fn pass(&self, from: u64, to: u64) -> Result<(), Lost> {
        let (delay, lost) = {
            let mut inner = self.0.lock();
            let Weather { lost, slowest, .. } = inner.weather;
            (inner.dice.micros(100, slowest.max(200)), inner.dice.chance(lost))
        };
        clock::sleep(delay).await;
        if lost {
            return Err(Lost);
        }
        self.unblocked(from, to, crate::limits::PING_INTERVAL + crate::limits::PING_TIMEOUT).await?;
        self.0.lock().messages += 1;
        Ok(())
    }

    /// A short interruption only delays; a longer one is found by pings.
    async fn unblocked(&self, from: u64, to: u64, patience: Duration) -> Result<(), Lost> {
        let deadline = clock::now() + patience;
        while self.0.lock().blocked.contains(&(from, to)) {
            if clock::now() >= deadline {
                return Err(Lost);
            }
            clock::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn doubled(&self) -> bool {
        let mut inner = self.0.lock();
        let doubled = inner.weather.doubled;
        inner.dice.chance(doubled)
    }
}

/// From one running member to another.
#[derive(Clone)]
struct Way {
    net: Arc<Net>,
    from: u64,
    to: u64,
    ours: CancellationToken,
    theirs: CancellationToken,
}

impl Way {
    fn back(&self) -> Self {
        let Self { net, from, to, ours, theirs } = self.clone();
        Self { net, from: to, to: from, ours: theirs, theirs: ours }
    }

    async fn pass(&self) -> Result<(), Broken> {
        self.net.pass(self.from, self.to).await.map_err(|Lost| reset())
    }

    /// One of the two has crashed.
    async fn cut(&self) {
        tokio::select! {
            biased;
            () = self.ours.cancelled() => (),
            () = self.theirs.cancelled() => (),
        }
    }

    async fn call(
        mut self,
        name: Arc<str>,
        addr: String,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Broken> {
        let refused = |reason: &str| Broken(ConnectError { addr: addr.clone(), reason: reason.to_owned() }.into());
        let Some(target) = self.net.0.lock().members.get(&addr).cloned() else {
            clock::sleep(Duration::from_millis(1)).await;
            return Err(refused("nobody listens"));
        };
        (self.to, self.theirs) = (target.id, target.alive.clone());
        for way in [&self, &self.back()] {
            let connecting = self.net.unblocked(way.from, way.to, crate::limits::CONNECT_TIMEOUT);
            connecting.await.map_err(|Lost| refused("no answer"))?;
        }
        let exchange = self.clone().exchange(name, target.service, request);
        tokio::select! {
            biased;
            () = self.cut() => Err(reset()),
            response = exchange => response,
        }
    }

    async fn exchange(
        self,
        name: Arc<str>,
        mut service: ConsensusServer<Service>,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Broken> {
        self.pass().await?;
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(PeerName(Some(name)));
        let body = if REPEATABLE.iter().any(|call| parts.uri.path().ends_with(call)) {
            let whole = body.collect().await.map_err(|_| reset())?.to_bytes();
            if self.net.doubled() {
                let again = http::Request::from_parts(parts.clone(), Body::new(Full::new(whole.clone())));
                let _first = service.call(again).await;
            }
            Body::new(Full::new(whole))
        } else {
            Body::new(StreamBody::new(self.clone().carry(body)))
        };
        let Ok(response) = service.call(http::Request::from_parts(parts, body)).await;
        let (parts, body) = response.into_parts();
        let back = self.back();
        back.pass().await?;
        Ok(http::Response::from_parts(parts, Body::new(StreamBody::new(back.carry(body)))))
    }

    /// What the other end sees of a body: frame after frame in their order, each after its way, until one is lost. Frames are under way
    /// at the same time: a slow way delays, it does not narrow.
    fn carry(self, body: Body) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send + 'static {
        let way = self.clone();
        let frames = BodyStream::new(body).map(move |frame| {
            let way = way.clone();
            async move {
                let frame = frame?;
                let lost = |_| Status::unavailable("simulated: the connection is lost");
                way.pass().await.map(|()| frame).map_err(lost)
            }
        });
        let frames = Box::pin(frames.buffered(FRAMES_UNDER_WAY));
        stream::unfold(Some((self, frames)), |state| async move {
            let (way, mut frames) = state?;
            let frame = tokio::select! {
                biased;
                () = way.cut() => Some(Err(Status::unavailable("simulated: crashed"))),
                frame = frames.next() => frame,
            };
            match frame? {
                Ok(frame) => Some((Ok(frame), Some((way, frames)))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }
}
