//! Nobody is starved by somebody else's lists: renewals of leases and puts go on while many clients list a large prefix without end.

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::lease_client::LeaseClient;
use pintle_proto::etcdserverpb::request_op::Request as Op;
use pintle_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use pintle_tests::etcd::Etcd;
use pintle_tests::home;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::transport::Channel;
use tonic::{Status, client::Grpc};

/// Keys that are listed, and the bytes of their values.
const KEYS: usize = 20_000;
const VALUE: usize = 400;
const LISTERS: usize = 24;
/// Rounds of both kinds, in turns, so that whatever else the machine does slows both.
const ROUNDS: usize = 4;
const ROUND: Duration = Duration::from_millis(1500);
/// No call may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was done in the rounds of one kind.
#[derive(Debug, Default)]
struct Done {
    puts: u64,
    renewals: u64,
    gets: u64,
    slowest: Duration,
}

/// Requests as they are, answers thrown away unread: clients that list must not need the time of the machine themselves.
#[derive(Default)]
struct Discard;

impl Codec for Discard {
    type Encode = RangeRequest;
    type Decode = usize;
    type Encoder = tonic_prost::ProstEncoder<RangeRequest>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        tonic_prost::ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Decoder for Discard {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let bytes = buffer.remaining();
        buffer.advance(bytes);
        Ok(Some(bytes))
    }
}

fn list() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"/big/"),
        range_end: Bytes::from_static(b"/big0"),
        ..RangeRequest::default()
    }
}

async fn fill(channel: Channel) {
    let mut tasks = JoinSet::new();
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(100) {
        let put = |number: &usize| PutRequest {
            key: Bytes::from(format!("/big/{number:08}")),
            value: Bytes::from(vec![b'v'; VALUE]),
            ..PutRequest::default()
        };
        let success = chunk.iter().map(|number| RequestOp { request: Some(Op::RequestPut(put(number))) }).collect();
        let mut client = KvClient::new(channel.clone());
        tasks.spawn(async move { client.txn(TxnRequest { success, ..TxnRequest::default() }).await });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("it runs").expect("fill the store");
    }
}

/// Lists until the time is over; how often.
async fn list_on(channel: Channel, until: Instant) -> u64 {
    let mut lists = 0;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    while Instant::now() < until {
        grpc.ready().await.expect("connected");
        let path = "/etcdserverpb.KV/Range".parse().expect("a path");
        let asked = grpc.unary(tonic::Request::new(list()), path, Discard);
        let bytes = tokio::time::timeout(PATIENCE, asked).await.expect("in time").expect("a list").into_inner();
        assert!(bytes > KEYS * VALUE, "a list of {bytes} bytes");
        lists += 1;
    }
    lists
}

/// Does the same again and again until the time is over; how often, and how long it took at most.
async fn again<F: Future<Output = ()>>(until: Instant, mut one: impl FnMut(u64) -> F) -> (u64, Duration) {
    let (mut count, mut slowest) = (0, Duration::ZERO);
    while Instant::now() < until {
        let began = Instant::now();
        tokio::time::timeout(PATIENCE, one(count)).await.expect("in time");
        slowest = slowest.max(began.elapsed());
        count += 1;
    }
    (count, slowest)
}

struct Others {
    kv: KvClient<Channel>,
    renew: mpsc::Sender<LeaseKeepAliveRequest>,
    renewed: tonic::Streaming<pintle_proto::etcdserverpb::LeaseKeepAliveResponse>,
    lease: i64,
}

impl Others {
    async fn new(server: &Etcd) -> Self {
        let mut leases = LeaseClient::new(server.channel().await);
        let lease = leases.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("a lease").into_inner().id;
        let (renew, requests) = mpsc::channel(1);
        renew.send(LeaseKeepAliveRequest { id: lease }).await.expect("a stream");
        let renewed = leases.lease_keep_alive(ReceiverStream::new(requests)).await.expect("a stream").into_inner();
        let mut others = Self { kv: KvClient::new(server.channel().await), renew, renewed, lease };
        others.renewed.message().await.expect("an answer").expect("renewed");
        others
    }

    /// Puts, reads one key, reads a few and renews for a while.
    async fn round(&mut self, done: &mut Done) {
        let until = Instant::now() + ROUND;
        let puts = again(until, |number| {
            let mut kv = self.kv.clone();
            async move {
                let key = Bytes::from(format!("/small/{}", number % 100));
                kv.put(PutRequest { key, value: Bytes::from_static(b"v"), ..PutRequest::default() })
                    .await
                    .expect("put");
            }
        });
        let gets = again(until, |_| {
            let mut kv = self.kv.clone();
            async move {
                let (key, range_end) = (Bytes::from_static(b"/small/"), Bytes::from_static(b"/small0"));
                let few = RangeRequest { key, range_end, limit: 10, ..RangeRequest::default() };
                kv.range(few).await.expect("get");
            }
        });
        let renewals = async {
            let (mut count, mut slowest) = (0, Duration::ZERO);
            while Instant::now() < until {
                let began = Instant::now();
                self.renew.send(LeaseKeepAliveRequest { id: self.lease }).await.expect("the stream is open");
                let answer = tokio::time::timeout(PATIENCE, self.renewed.message()).await.expect("in time");
                assert!(answer.expect("an answer").expect("renewed").ttl > 0);
                slowest = slowest.max(began.elapsed());
                count += 1;
            }
            (count, slowest)
        };
        let (puts, gets, renewals) = tokio::join!(puts, gets, renewals);
        (done.puts, done.gets, done.renewals) = (done.puts + puts.0, done.gets + gets.0, done.renewals + renewals.0);
        done.slowest = done.slowest.max(puts.1).max(gets.1).max(renewals.1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_without_end_leave_renewals_and_puts_at_least_half_of_what_they_had() {
    let home = home();
    let server = Etcd::pintle(home.path());
    fill(server.channel().await).await;
    let mut others = Others::new(&server).await;
    // In threads of their own, as programs of their own would be.
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut listers = Vec::new();
    for _ in 0..LISTERS {
        let address = format!("http://{}", server.address);
        let connecting =
            theirs.spawn(async move { Channel::from_shared(address).expect("an address").connect().await });
        listers.push(connecting.await.expect("it runs").expect("connect"));
    }
    others.round(&mut Done::default()).await; // everything is warm

    let (mut alone, mut beside, mut lists) = (Done::default(), Done::default(), 0);
    for _ in 0..ROUNDS {
        others.round(&mut alone).await;
        let until = Instant::now() + ROUND;
        let tasks: Vec<_> = listers.iter().map(|channel| theirs.spawn(list_on(channel.clone(), until))).collect();
        others.round(&mut beside).await;
        for task in tasks {
            lists += task.await.expect("it lists");
        }
    }
    theirs.shutdown_background();
    println!("alone: {alone:?}\nbeside {lists} lists: {beside:?}");
    assert!(lists >= LISTERS as u64, "everybody who lists has an answer");
    for (what, before, after) in [("puts", alone.puts, beside.puts), ("renewals", alone.renewals, beside.renewals)] {
        assert!(after * 2 >= before, "{what}: {after} beside lists, {before} alone");
    }
}
