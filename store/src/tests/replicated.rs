//! The store on real Raft: one member, its real log, TLS and etcd port, stopped and started again.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use pintle_base::task::Group;
use pintle_proto::etcdserverpb::kv_client::KvClient;
use pintle_proto::etcdserverpb::{LeaseGrantRequest, PutRequest, RangeRequest};
use pintle_raft::{Handle, Options, Peer, Tls};

use crate::etcd;
use crate::store::{Store, StoreOptions};
use crate::watch::WatchOptions;

#[path = "../../../raft/tests/support/authority.rs"]
pub(super) mod authority;
use authority::Authority;

const DEADLINE: Duration = Duration::from_secs(30);

struct Running {
    store: Store,
    raft: Handle,
    group: Group,
}

async fn start(dir: &Path, address: SocketAddr, tls: Tls) -> Running {
    let group = Group::new("member");
    let (store, machine) = Store::open(&dir.join("state"), StoreOptions::default()).expect("open");
    let peer = Peer { id: 1, name: "one".to_owned(), peer_addr: address.to_string(), ..Peer::default() };
    let options = Options::new(1, 1, dir.join("raft"), address, vec![peer], tls);
    let raft = pintle_raft::start(options, machine, &group).await.expect("start");
    store.attach(raft.clone(), &group);
    Running { store, raft, group }
}

impl Running {
    async fn stop(self) {
        self.raft.shutdown().await;
        self.group.stop(DEADLINE).await.expect("stop");
    }
}

fn key(key: &'static [u8]) -> RangeRequest {
    RangeRequest { key: Bytes::from_static(key), ..RangeRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_member_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], pintle_base::ports::free().unwrap()));
    let tls = Authority::new().tls("one");
    tokio::time::timeout(DEADLINE, async {
        let running = start(dir.path(), address, tls.clone()).await;
        let put = |value: &'static str| PutRequest {
            key: Bytes::from_static(b"a"),
            value: Bytes::from_static(value.as_bytes()),
            ..PutRequest::default()
        };
        let mut watcher =
            running.store.watch(WatchOptions { key: Bytes::from_static(b"a"), ..WatchOptions::default() }).unwrap();
        assert_eq!(running.store.put(put("1")).await.unwrap().header.unwrap().revision, 2);
        assert_eq!(watcher.next().await.unwrap().revision, 2);
        running.store.lease_grant(LeaseGrantRequest { ttl: 60, id: 9 }).await.unwrap();
        assert!(running.store.leadership().borrow().leading);
        assert_eq!(running.store.members().len(), 1);

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (router, stop) = (etcd::router(&running.store), running.group.token());
        running.group.spawn("serve", async move { etcd::serve(router, listener, None, stop).await.unwrap() });
        let mut kv = KvClient::connect(endpoint).await.unwrap();
        let answer = kv.range(key(b"a")).await.unwrap().into_inner();
        assert_eq!((answer.kvs[0].value.as_ref(), answer.header.unwrap().revision), (&b"1"[..], 2));
        drop((kv, watcher));
        running.stop().await;

        let running = start(dir.path(), address, tls).await;
        let answer = running.store.range(key(b"a")).await.unwrap();
        assert_eq!((answer.kvs[0].value.as_ref(), answer.header.unwrap().revision), (&b"1"[..], 2));
        assert_eq!(running.store.lease_leases().await.unwrap().leases.len(), 1);
        assert_eq!(running.store.put(put("2")).await.unwrap().header.unwrap().revision, 3);
        running.stop().await;
    })
    .await
    .expect("in time");
}
