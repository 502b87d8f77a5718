//! Which servers live, and which of them holds the session of which node: one key each in the store, on the server's lease.
//!
//! Written when a session begins, deleted when it ends, gone by itself some seconds after its server has died. A new
//! session overwrites the old entry, so the directory follows an agent that has moved at once.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op,
};
use pintle_store::{Store, StoreError};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Sessions, limits};

const SESSIONS: &str = "/pintle/sessions/";
/// Below this every live server has its API address.
pub(crate) const SERVERS: &str = "/pintle/servers/";
pub(crate) const SERVERS_END: &str = "/pintle/servers0";

/// This server's part of the directory. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Directory {
    store: Store,
    server: u64,
    advertise: SocketAddr,
    /// 0: none yet. Held across the grant, so that sessions that begin together share one lease.
    lease: Arc<Mutex<i64>>,
}

impl Directory {
    pub fn new(store: Store, server: u64, advertise: SocketAddr) -> Self {
        Self { store, server, advertise, lease: Arc::default() }
    }

    /// The server that holds the node's session, as far as the store knows.
    pub async fn holder(&self, node: &str) -> Result<Option<u64>, StoreError> {
        let found = self.store.range(RangeRequest { key: key(node), ..RangeRequest::default() }).await?;
        let value = found.kvs.first().and_then(|kv| std::str::from_utf8(&kv.value).ok());
        Ok(value.and_then(|text| text.parse().ok()))
    }

    /// Enters a node, on this server's lease.
    pub async fn enter(&self, node: &str) -> Result<(), StoreError> {
        self.put(key(node), self.value()).await
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), StoreError> {
        let lease = self.lease().await?;
        let put = PutRequest { key, value, lease, ..PutRequest::default() };
        match self.store.put(put.clone()).await {
            Err(StoreError::LeaseNotFound) => {
                self.forget(lease).await;
                let lease = self.lease().await?;
                self.store.put(PutRequest { lease, ..put }).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    /// Removes a node's entry if it is this server's.
    pub async fn leave(&self, node: &str) -> Result<(), StoreError> {
        let delete = DeleteRangeRequest { key: key(node), ..DeleteRangeRequest::default() };
        let request = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal as i32,
                target: CompareTarget::Value as i32,
                key: key(node),
                target_union: Some(TargetUnion::Value(self.value())),
                ..Compare::default()
            }],
            success: vec![RequestOp { request: Some(request_op::Request::RequestDeleteRange(delete)) }],
            failure: Vec::new(),
        };
        self.store.txn(request, None).await.map(|_| ())
    }

    /// Keeps the lease alive until stopped; if it was lost, enters all nodes again on a new one.
    pub async fn keep(self, sessions: Sessions, stop: CancellationToken) {
        let mut ticker = clock::ticker(limits::LEASE_RENEW);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.close().await,
                _ = ticker.tick() => self.renew(&sessions).await,
            }
        }
    }

    async fn renew(&self, sessions: &Sessions) {
        let lease = *self.lease.lock().await;
        let renewed = match lease {
            0 => Err(StoreError::LeaseNotFound),
            // A time to live of 0 says that there is no such lease.
            lease => match self.store.lease_keep_alive(lease).await {
                Ok(answer) if answer.ttl <= 0 => Err(StoreError::LeaseNotFound),
                other => other.map(|_| ()),
            },
        };
        match renewed {
            Ok(()) => (),
            Err(StoreError::LeaseNotFound) => {
                self.forget(lease).await;
                if let Err(error) = self.enter_all(sessions).await {
                    tracing::warn!(error = %Chain(&error), "server not entered in the directory, will retry");
                    // Without a lease the next round enters everything again.
                    *self.lease.lock().await = 0;
                }
            }
            Err(error) => tracing::debug!(error = %Chain(&error), "directory lease not renewed, will retry"),
        }
    }

    async fn enter_all(&self, sessions: &Sessions) -> Result<(), StoreError> {
        let own = format!("{SERVERS}{}", self.server);
        self.put(own.into(), self.advertise.to_string().into()).await?;
        for node in sessions.nodes() {
            self.enter(&node).await?;
        }
        Ok(())
    }

    /// At shutdown the entries go at once.
    async fn close(&self) {
        let lease = std::mem::take(&mut *self.lease.lock().await);
        if lease != 0 {
            let _ = clock::timeout(limits::LEASE_RENEW, self.store.lease_revoke(lease)).await;
        }
    }

    async fn lease(&self) -> Result<i64, StoreError> {
        let mut held = self.lease.lock().await;
        if *held == 0 {
            let request = LeaseGrantRequest { ttl: limits::LEASE_SECONDS, id: 0 };
            *held = self.store.lease_grant(request).await?.id;
        }
        Ok(*held)
    }

    async fn forget(&self, lease: i64) {
        let mut held = self.lease.lock().await;
        if *held == lease {
            *held = 0;
        }
    }

    fn value(&self) -> Bytes {
        self.server.to_string().into()
    }
}

fn key(node: &str) -> Bytes {
    format!("{SESSIONS}{node}").into()
}
