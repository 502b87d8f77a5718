//! The handle and the etcd front over a real connection.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use pintle_base::clock;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::lease_client::LeaseClient;
use pintle_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pintle_proto::etcdserverpb::request_op::Request as Op;
use pintle_proto::etcdserverpb::watch_client::WatchClient;
use pintle_proto::etcdserverpb::watch_request::RequestUnion;
use pintle_proto::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
    RequestOp, StatusRequest, TxnRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse,
};
use pintle_proto::store_v1::command::Operation;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::local::Local;
use crate::error::StoreError;
use crate::etcd;
use crate::store::StoreOptions;

pub(super) async fn served() -> (Local, Channel) {
    let (local, _, channel) = served_at().await;
    (local, channel)
}

pub(super) async fn served_at() -> (Local, std::net::SocketAddr, Channel) {
    served_with(StoreOptions::default()).await
}

pub(super) async fn served_with(options: StoreOptions) -> (Local, std::net::SocketAddr, Channel) {
    let local = Local::with(options).attached();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, stop) = (etcd::router(&local.store), local.group.token());
    local.group.spawn("serve", async move {
        etcd::serve(router, listener, None, stop).await.unwrap();
    });
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    (local, address, channel)
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: Bytes::from(key.to_owned()), value: Bytes::from(value.to_owned()), ..PutRequest::default() }
}

fn range(key: &str, end: &str) -> RangeRequest {
    RangeRequest { key: Bytes::from(key.to_owned()), range_end: Bytes::from(end.to_owned()), ..RangeRequest::default() }
}

fn op(op: Op) -> RequestOp {
    RequestOp { request: Some(op) }
}

#[tokio::test]
async fn requests_are_answered_with_headers_and_refused_with_the_known_texts() {
    let (local, channel) = served().await;
    let mut kv = KvClient::new(channel.clone());
    let header = kv.put(put("a", "1")).await.unwrap().into_inner().header.unwrap();
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (1, 1, 2, 1));
    let answer = kv.range(range("a", "")).await.unwrap().into_inner();
    assert_eq!((answer.count, answer.kvs[0].value.as_ref(), answer.header.unwrap().revision), (1, &b"1"[..], 2));

    let refused = [
        (kv.put(put("", "1")).await.unwrap_err(), Code::InvalidArgument, "etcdserver: key is not provided"),
        (kv.range(range("", "")).await.unwrap_err(), Code::InvalidArgument, "etcdserver: key is not provided"),
        (
            kv.put(PutRequest { lease: 9, ..put("a", "") }).await.unwrap_err(),
            Code::NotFound,
            "etcdserver: requested lease not found",
        ),
        (
            kv.range(RangeRequest { revision: 99, ..range("a", "") }).await.unwrap_err(),
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        (
            kv.range(RangeRequest { sort_order: 9, ..range("a", "") }).await.unwrap_err(),
            Code::InvalidArgument,
            "etcdserver: invalid sort option",
        ),
        (
            kv.put(put("big", &"x".repeat(crate::limits::REQUEST_BYTES))).await.unwrap_err(),
            Code::InvalidArgument,
            "etcdserver: request is too large",
        ),
        (
            kv.txn(TxnRequest { success: vec![RequestOp { request: None }], ..TxnRequest::default() })
                .await
                .unwrap_err(),
            Code::InvalidArgument,
            "etcdserver: key not found",
        ),
    ];
    for (status, code, text) in refused {
        assert_eq!((status.code(), status.message()), (code, text));
    }
    let huge = kv.put(put("big", &"x".repeat(3 << 20))).await.unwrap_err();
    assert!(matches!(huge.code(), Code::OutOfRange | Code::ResourceExhausted), "{huge}");

    let status = MaintenanceClient::new(channel).status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.leader, status.header.unwrap().revision), (etcd::VERSION, 1, 2));
    drop(local);
}

#[tokio::test]
async fn the_door_counts_operations_and_finds_duplicates_on_every_branch() {
    let local = Local::open().attached();
    let delete = |key: &str, end: &str| {
        op(Op::RequestDeleteRange(DeleteRangeRequest {
            key: Bytes::from(key.to_owned()),
            range_end: Bytes::from(end.to_owned()),
            prev_kv: false,
        }))
    };
    let put_op = |key: &str| op(Op::RequestPut(put(key, "1")));
    let nested = |success, failure| op(Op::RequestTxn(TxnRequest { success, failure, ..TxnRequest::default() }));
    let run = |success: Vec<RequestOp>| local.store.txn(TxnRequest { success, ..TxnRequest::default() }, None);
    let many = |count: usize| (0..count).map(|n| put_op(&format!("k{n}"))).collect::<Vec<_>>();

    assert!(run(many(128)).await.is_ok());
    assert!(matches!(run(many(129)).await, Err(StoreError::TooManyOperations)));
    assert!(matches!(run(vec![nested(many(128), vec![])]).await, Err(StoreError::TooManyOperations)));
    assert!(run(vec![nested(many(127), vec![])]).await.is_ok());
    let duplicates = [
        vec![put_op("a"), put_op("a")],
        vec![put_op("a"), delete("a", "b")],
        vec![delete("a", "\0"), put_op("x")],
        vec![nested(vec![put_op("a")], vec![]), put_op("a")],
        vec![nested(vec![put_op("a")], vec![]), delete("a", "")],
        vec![delete("a", ""), nested(vec![], vec![put_op("a")])],
        vec![nested(vec![delete("a", "")], vec![]), nested(vec![put_op("a")], vec![])],
        vec![nested(vec![put_op("a")], vec![]), nested(vec![delete("a", "")], vec![])],
    ];
    for success in duplicates {
        assert!(matches!(run(success.clone()).await, Err(StoreError::DuplicateKey)), "{success:?}");
    }
    assert!(run(vec![delete("a", "c"), delete("b", "d")]).await.is_ok());
    assert!(run(vec![nested(vec![put_op("a")], vec![put_op("a")])]).await.is_ok());
}

#[tokio::test]
async fn a_range_stream_merges_into_the_unary_answer() {
    let (local, channel) = served().await;
    for n in 0..130 {
        local.store.put(put(&format!("k{n:03}"), "v")).await.unwrap();
    }
    let mut kv = KvClient::new(channel);
    for request in [
        range("k", "l"),
        range("k005", ""),
        RangeRequest { limit: 60, keys_only: true, ..range("k", "l") },
        RangeRequest { limit: 10, ..range("k", "l") },
        RangeRequest { count_only: true, ..range("k", "l") },
        range("x", "y"),
    ] {
        let want = kv.range(request.clone()).await.unwrap().into_inner();
        let mut stream = kv.range_stream(request.clone()).await.unwrap().into_inner();
        let mut got = pintle_proto::etcdserverpb::RangeResponse::default();
        while let Some(part) = stream.message().await.unwrap() {
            let part = part.range_response.unwrap();
            assert!(got.header.is_none(), "something came after the last part");
            got.kvs.extend(part.kvs);
            (got.header, got.more, got.count) = (part.header, part.more, part.count);
        }
        assert_eq!(got, want, "{request:?}");
    }
    let sorted = kv.range_stream(RangeRequest { sort_order: 1, ..range("k", "l") }).await.unwrap_err();
    assert_eq!(
        (sorted.code(), sorted.message()),
        (Code::Unimplemented, "RangeStream does not support custom sort orders")
    );
}

/// Many lists at once, of more clients than have a place: each is whole, whether it was read at one go or began anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_ranges_are_answered_like_small_ones_however_many_there_are() {
    let (local, address, channel) = served_with(StoreOptions::default()).await;
    for part in 0..40 {
        let put = |number| Operation::Put(put(&format!("k/{number:05}"), &"v".repeat(500)).encode_to_vec().into());
        local.apply(&(part * 100..part * 100 + 100).map(put).collect::<Vec<_>>());
    }
    let requests = [
        range("k/", "k0"),
        RangeRequest { limit: 3000, ..range("k/", "k0") },
        RangeRequest { sort_order: 2, ..range("k/", "k0") },
        RangeRequest { serializable: true, keys_only: true, ..range("k/", "k0") },
    ];
    let mut lists = tokio::task::JoinSet::new();
    for number in 0..40 {
        let request = requests[number % requests.len()].clone();
        let expected = local.store.range(request.clone()).await.unwrap();
        assert!(expected.kvs.len() >= 3000);
        let channel = match number % 3 {
            0 => channel.clone(),
            _ => Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap(),
        };
        let mut kv = KvClient::new(channel).max_decoding_message_size(usize::MAX);
        lists.spawn(async move { (kv.range(request).await.unwrap().into_inner(), expected) });
    }
    while let Some(ended) = clock::timeout(Duration::from_secs(60), lists.join_next()).await.expect("in time") {
        let (answer, expected) = ended.unwrap();
        assert!(answer == expected, "{} of {} keys", answer.kvs.len(), expected.kvs.len());
    }
}

async fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    format!("{} {}", head.split(' ').nth(1).unwrap(), body.trim_end())
}

#[tokio::test]
async fn health_and_version_are_served_on_the_same_port() {
    let (local, address, channel) = served_at().await;
    assert_eq!(http_get(address, "/health").await, r#"200 {"health":"true","reason":""}"#);
    assert_eq!(http_get(address, "/livez").await, "200 ok");
    assert_eq!(http_get(address, "/readyz/linearizable_read").await, "200 ok");
    assert!(http_get(address, "/readyz?verbose").await.contains("[+]non_learner ok"));
    assert!(http_get(address, "/version").await.contains(r#""etcdserver":"3.5"#));
    assert_eq!(http_get(address, "/nothing").await, "404 404 page not found");
    local.log.leaderless.store(true, Ordering::SeqCst);
    assert_eq!(http_get(address, "/health").await, r#"503 {"health":"false","reason":"RAFT NO LEADER"}"#);
    assert_eq!(http_get(address, "/livez").await, "200 ok");
    let mut kv = KvClient::new(channel.clone());
    let mut request = tonic::Request::new(put("a", "1"));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let refused = kv.put(request).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));
    let mut other = tonic::client::Grpc::new(channel);
    other.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<StatusRequest, StatusRequest>::default();
    let path = http::uri::PathAndQuery::from_static("/no.such.Service/Call");
    let missing = other.unary(tonic::Request::new(StatusRequest {}), path, codec).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::Unimplemented, "unknown service no.such.Service"));
}

#[tokio::test]
async fn there_is_no_version_to_downgrade_to() {
    use pintle_proto::etcdserverpb::DowngradeRequest;
    use pintle_proto::etcdserverpb::downgrade_request::DowngradeAction::{Cancel, Enable, Validate};
    let (_local, channel) = served().await;
    let mut client = MaintenanceClient::new(channel);
    for (action, version, code, text) in [
        (Validate, "3.4", Code::InvalidArgument, "etcdserver: invalid downgrade target version"),
        (Enable, "3.4.0", Code::InvalidArgument, "etcdserver: invalid downgrade target version"),
        (Validate, "latest", Code::InvalidArgument, "etcdserver: wrong downgrade target version format"),
        (Cancel, "", Code::FailedPrecondition, "etcdserver: no inflight downgrade job"),
    ] {
        let request = DowngradeRequest { action: action.into(), version: version.to_owned() };
        let refused = client.downgrade(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (code, text));
    }
}

#[tokio::test]
async fn what_is_measured_is_told_under_the_names_of_etcd() {
    let (local, address, channel) = served_at().await;
    let mut kv = KvClient::new(channel.clone());
    kv.put(put("a", "12")).await.unwrap();
    kv.put(put("", "1")).await.unwrap_err();
    kv.range(range("a", "")).await.unwrap();
    kv.delete_range(DeleteRangeRequest { key: Bytes::from_static(b"a"), ..DeleteRangeRequest::default() })
        .await
        .unwrap();
    let (_open, mut answers) = watch(channel).await;
    let all = WatchCreateRequest { range_end: Bytes::from_static(&[0]), ..WatchCreateRequest::default() };
    _open.send(create(all)).await.unwrap();
    answer(&mut answers).await;
    local.store.set_alarm(7, 1, true).await.unwrap();
    let text = http_get(address, "/metrics").await;
    let call = |method: &str| format!(r#"grpc_method="{method}",grpc_service="etcdserverpb.KV",grpc_type="unary""#);
    for line in [
        "etcd_server_has_leader 1".to_owned(),
        "etcd_mvcc_put_total 1".to_owned(),
        "etcd_mvcc_delete_total 1".to_owned(),
        "etcd_mvcc_range_total 1".to_owned(),
        "etcd_debugging_mvcc_total_put_size_in_bytes 3".to_owned(),
        "etcd_debugging_mvcc_current_revision 3".to_owned(),
        "etcd_debugging_mvcc_watcher_total 1".to_owned(),
        "etcd_debugging_mvcc_watch_stream_total 1".to_owned(),
        "etcd_server_proposals_pending 0".to_owned(),
        r#"etcd_debugging_server_alarms{alarm_type="NOSPACE",server_id="7"} 1"#.to_owned(),
        format!("grpc_server_started_total{{{}}} 2", call("Put")),
        format!(r#"grpc_server_handled_total{{grpc_code="OK",{}}} 1"#, call("Put")),
        format!(r#"grpc_server_handled_total{{grpc_code="InvalidArgument",{}}} 1"#, call("Put")),
        format!(r#"grpc_server_handled_total{{grpc_code="OK",{}}} 1"#, call("Range")),
        format!(r#"etcd_server_version{{server_version="{}"}} 1"#, etcd::VERSION),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
    }
    assert!(text.contains("etcd_disk_backend_commit_duration_seconds_bucket"));
    assert!(text.contains("process_resident_memory_bytes"));
    let bytes = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(bytes("etcd_network_client_grpc_received_bytes_total") > 10.0);
    assert!(bytes("etcd_network_client_grpc_sent_bytes_total") > 10.0);
}

async fn watch(channel: Channel) -> (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>) {
    let (send, requests) = mpsc::channel(16);
    let answers = WatchClient::new(channel).watch(ReceiverStream::new(requests)).await.unwrap().into_inner();
    (send, answers)
}

fn create(request: WatchCreateRequest) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
}

async fn answer(answers: &mut Streaming<WatchResponse>) -> WatchResponse {
    tokio::time::timeout(Duration::from_secs(20), answers.message()).await.expect("in time").unwrap().expect("open")
}

#[tokio::test]
async fn one_stream_carries_many_watches() {
    let (local, channel) = served().await;
    let (send, mut answers) = watch(channel).await;
    let all =
        WatchCreateRequest { range_end: Bytes::from_static(&[0]), prev_kv: true, ..WatchCreateRequest::default() };
    send.send(create(all.clone())).await.unwrap();
    let created = answer(&mut answers).await;
    assert_eq!((created.watch_id, created.created, created.header.unwrap().revision), (0, true, 1));
    let single = WatchCreateRequest { key: Bytes::from_static(b"b"), watch_id: 7, ..WatchCreateRequest::default() };
    send.send(create(single.clone())).await.unwrap();
    assert_eq!(answer(&mut answers).await.watch_id, 7);
    send.send(create(single)).await.unwrap();
    let twice = answer(&mut answers).await;
    assert_eq!((twice.watch_id, twice.created, twice.canceled), (-1, true, true));
    assert_eq!(twice.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    let empty = WatchCreateRequest {
        key: Bytes::from_static(b"b"),
        range_end: Bytes::from_static(b"a"),
        watch_id: 7, // taken as well, but this is said first
        ..WatchCreateRequest::default()
    };
    send.send(create(empty.clone())).await.unwrap();
    assert_eq!(answer(&mut answers).await.cancel_reason, "mvcc: watcher range is empty");
    let before_all = WatchCreateRequest { start_revision: -1, ..empty }; // and this before that
    send.send(create(before_all)).await.unwrap();
    let text = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!(answer(&mut answers).await.cancel_reason, text);

    local.store.put(put("a", "1")).await.unwrap();
    let event = answer(&mut answers).await;
    assert_eq!((event.watch_id, event.events.len(), event.header.unwrap().revision), (0, 1, 2));
    local.store.put(put("a", "2")).await.unwrap();
    let event = answer(&mut answers).await;
    assert_eq!(event.events[0].prev_kv.as_ref().unwrap().value, "1");

    let progress = WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) };
    send.send(progress.clone()).await.unwrap();
    let report = answer(&mut answers).await;
    assert_eq!((report.watch_id, report.events.len(), report.header.unwrap().revision), (-1, 0, 3));

    let cancel = WatchCancelRequest { watch_id: 7 };
    send.send(WatchRequest { request_union: Some(RequestUnion::CancelRequest(cancel)) }).await.unwrap();
    let canceled = answer(&mut answers).await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.compact_revision), (7, true, 0));

    local.one(pintle_proto::store_v1::command::Operation::Compact(3));
    send.send(create(WatchCreateRequest { start_revision: 2, ..all.clone() })).await.unwrap();
    assert!(answer(&mut answers).await.created);
    let compacted = answer(&mut answers).await;
    assert_eq!((compacted.canceled, compacted.compact_revision, compacted.cancel_reason.as_str()), (true, 3, ""));
    assert_eq!(compacted.header.unwrap().revision, 0);
    send.send(progress).await.unwrap(); // silent: the compacted watch still has its place
    local.store.put(put("a", "3")).await.unwrap();
    assert_eq!(answer(&mut answers).await.events.len(), 1);
}

/// A kube-apiserver opens some hundred watches on one connection when it starts.
#[tokio::test]
async fn a_thousand_watches_are_opened_at_once() {
    let (_local, channel) = served().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(watch(channel.clone()).await);
    }
    for number in 0..250 {
        for (asks, _) in &streams {
            let key = Bytes::from(format!("/registry/kind-{number}/"));
            asks.send(create(WatchCreateRequest { key, ..WatchCreateRequest::default() })).await.expect("it is open");
        }
    }
    for (_, answers) in &mut streams {
        for _ in 0..250 {
            assert!(answer(answers).await.created);
        }
    }
}

#[tokio::test]
async fn what_a_limit_leaves_out_is_counted_at_every_revision() {
    let (local, channel) = served().await;
    let mut kv = KvClient::new(channel);
    for number in 0..40 {
        kv.put(put(&format!("p/{number:02}"), "1")).await.unwrap();
    }
    let before = local.store.revision();
    let limited = |revision| RangeRequest { limit: 10, revision, ..range("p/", "p0") };
    let counted = |answer: tonic::Response<pintle_proto::etcdserverpb::RangeResponse>| {
        let answer = answer.into_inner();
        (answer.kvs.len(), answer.more, answer.count)
    };
    assert_eq!(counted(kv.range(limited(0)).await.unwrap()), (10, true, 40));
    kv.delete_range(DeleteRangeRequest { key: "p/00".into(), range_end: "p/20".into(), ..Default::default() })
        .await
        .unwrap();
    kv.put(put("p/05", "again")).await.unwrap();
    kv.put(put("p/05", "and again")).await.unwrap();
    assert_eq!(counted(kv.range(limited(0)).await.unwrap()), (10, true, 21));
    assert_eq!(counted(kv.range(limited(before)).await.unwrap()), (10, true, 40));
    assert_eq!(counted(kv.range(limited(5)).await.unwrap()), (4, false, 4));
    let only = RangeRequest { count_only: true, ..range("p/", "p0") };
    assert_eq!(counted(kv.range(only).await.unwrap()), (0, false, 21));
    let rest = RangeRequest { limit: 1, ..range("p/30", "\0") };
    assert_eq!(counted(kv.range(rest).await.unwrap()), (1, true, 10));
}

#[tokio::test]
async fn large_answers_are_split_if_asked() {
    let (local, channel) = served().await;
    for half in ["a", "b"] {
        let big = |n| op(Op::RequestPut(put(&format!("k{half}{n}"), &"x".repeat(380_000))));
        let success = (0..4).map(big).collect();
        local.store.txn(TxnRequest { success, ..TxnRequest::default() }, None).await.unwrap();
    }
    local
        .store
        .delete_range(DeleteRangeRequest {
            key: Bytes::from_static(b"k"),
            range_end: Bytes::from_static(b"l"),
            prev_kv: false,
        })
        .await
        .unwrap();
    let (send, mut answers) = watch(channel).await;
    let all = WatchCreateRequest {
        range_end: Bytes::from_static(&[0]),
        prev_kv: true,
        fragment: true,
        start_revision: 2,
        ..WatchCreateRequest::default()
    };
    send.send(create(all)).await.unwrap();
    assert!(answer(&mut answers).await.created);
    let mut events = 0;
    let mut fragments = 0;
    while events < 16 {
        let part = answer(&mut answers).await;
        events += part.events.len();
        fragments += usize::from(part.fragment);
    }
    assert_eq!(events, 16);
    assert!(fragments >= 1);
}

#[tokio::test]
async fn leases_are_granted_kept_alive_and_reported() {
    let (local, channel) = served().await;
    let mut lease = LeaseClient::new(channel);
    let granted = lease.lease_grant(LeaseGrantRequest { ttl: 0, id: 0 }).await.unwrap().into_inner();
    assert!(granted.id > 0);
    assert_eq!(granted.ttl, 2);
    let too_long = lease.lease_grant(LeaseGrantRequest { ttl: 9_000_000_001, id: 0 }).await.unwrap_err();
    assert_eq!((too_long.code(), too_long.message()), (Code::OutOfRange, "etcdserver: too large lease TTL"));
    let again = lease.lease_grant(LeaseGrantRequest { ttl: 5, id: granted.id }).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (Code::FailedPrecondition, "etcdserver: lease already exists"));
    local.store.put(PutRequest { lease: granted.id, ..put("a", "1") }).await.unwrap();
    let request = LeaseTimeToLiveRequest { id: granted.id, keys: true };
    let left = lease.lease_time_to_live(request).await.unwrap().into_inner();
    assert_eq!((left.granted_ttl, left.keys), (2, vec![Bytes::from_static(b"a")]));
    let ids = [granted.id, 424_242].map(|id| LeaseKeepAliveRequest { id });
    let mut answers = lease.lease_keep_alive(tokio_stream::iter(ids)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl, 2);
    assert_eq!(answers.message().await.unwrap().unwrap().ttl, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_renewed_ends_on_the_leader_only() {
    let local = Local::open().attached();
    let granted = local.store.lease_grant(LeaseGrantRequest { ttl: 10, id: 5 }).await.unwrap();
    local.store.put(PutRequest { lease: granted.id, ..put("a", "1") }).await.unwrap();
    clock::sleep(Duration::from_secs(9)).await;
    assert_eq!(local.store.lease_keep_alive(5).await.unwrap().ttl, 10);
    clock::sleep(Duration::from_secs(9)).await;
    assert_eq!(local.store.revision(), 2);
    clock::sleep(Duration::from_secs(2)).await;
    assert_eq!(local.store.revision(), 3);
    assert_eq!(local.store.lease_keep_alive(5).await.unwrap().ttl, 0);
}

#[tokio::test(start_paused = true)]
async fn writes_wait_for_a_leader_and_give_up_in_time() {
    let local =
        Local::with(StoreOptions { request_timeout: Duration::from_secs(3), ..StoreOptions::default() }).attached();
    local.log.leaderless.store(true, Ordering::SeqCst);
    assert!(matches!(local.store.put(put("a", "1")).await, Err(StoreError::NoLeader)));
    assert!(matches!(local.store.range(range("a", "")).await, Err(StoreError::ReadTimeout)));
    let stale = RangeRequest { serializable: true, ..range("a", "") };
    assert!(local.store.range(stale).await.is_ok());
    let (store, log) = (local.store.clone(), std::sync::Arc::clone(&local.log));
    let (written, ()) = tokio::join!(store.put(put("a", "1")), async {
        clock::sleep(Duration::from_secs(1)).await;
        log.leaderless.store(false, Ordering::SeqCst);
    });
    assert_eq!(written.unwrap().header.unwrap().revision, 2);
    let fenced = TxnRequest { success: vec![op(Op::RequestPut(put("a", "2")))], ..TxnRequest::default() };
    assert!(matches!(local.store.txn(fenced, Some(9)).await, Err(StoreError::Fenced { term: 1 })));
}
