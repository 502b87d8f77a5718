//! Where keys go to: a running store, written in transactions of bounded size, several on their way at a time.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use pintle_base::clock;
use pintle_proto::etcdserverpb as e;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::mvccpb::KeyValue;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Progress;
use super::source::{LEASES_AT_ONCE, Lease, Page, Pages, failed};
use crate::store::ctl::Failure;
use crate::store::ctl::client::{CallError, Client, lost};
use crate::store::ctl::go;
use crate::store::ctl::rpc::Request as Call;
use crate::store::ctl::settings::Settings;

/// Bytes of keys and values in one transaction, unless one pair alone has more: well below what etcd takes by default.
const TXN_BYTES: usize = 1 << 20;
/// Transactions on their way.
const IN_FLIGHT: usize = 4;
/// How long a member that went away is waited for.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
const NO_LEASE: &str = "etcdserver: requested lease not found";

/// How it is written.
#[derive(Clone, Copy)]
pub struct Mode {
    /// Leases live as long as is left of them, not as long as they were granted for.
    pub remaining: bool,
    pub overwrite: bool,
    /// Keys in one transaction.
    pub most: usize,
}

pub struct Target {
    client: Arc<Client>,
    mode: Mode,
}

/// What there was before.
#[derive(Debug, Default)]
pub struct Before {
    pub keys: u64,
}

/// What became of the source's leases.
#[derive(Debug, Default)]
pub struct Leases {
    /// The ids that keys can be attached to.
    granted: BTreeSet<i64>,
    pub made: u64,
    /// They had that id already.
    pub found: u64,
    /// Ended before they were made.
    pub ended: u64,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    pub keys: u64,
    pub bytes: u64,
    pub transactions: u64,
    /// The part of it that no lease ends.
    pub lasting: Sum,
    /// Keys whose lease ended meanwhile: the source has no more of them either.
    pub ended: u64,
}

/// Keys, and a digest of them and their values that does not depend on their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub keys: u64,
    digest: u64,
}

impl Sum {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut hasher = DefaultHasher::new();
        hasher.write_usize(key.len());
        hasher.write(key);
        hasher.write(value);
        self.keys += 1;
        self.digest = self.digest.wrapping_add(hasher.finish());
    }
}

impl Target {
    pub async fn open(settings: Settings, mode: Mode) -> Result<Self, Failure> {
        Ok(Self { client: Arc::new(Client::new(settings).await?), mode })
    }

    /// Looks whether this may be written to.
    ///
    /// # Errors
    /// It is `source` itself, or has keys and that is not wanted.
    pub async fn look(&self, source: Option<u64>) -> Result<Before, Failure> {
        let all = Bytes::from_static(b"\0");
        let count = e::RangeRequest { key: all.clone(), range_end: all, count_only: true, ..Default::default() };
        let found = self.client.ask(count).await.map_err(|error| failed("read the target", &error))?;
        let cluster = found.header.unwrap_or_default().cluster_id;
        if source.is_some_and(|source| source == cluster) {
            return Err(Failure::error("source and target are the same cluster"));
        }
        let keys = u64::try_from(found.count).unwrap_or_default();
        if keys > 0 && !self.mode.overwrite {
            let text = format!("the target has {keys} keys: with --overwrite they are written over, others stay");
            return Err(Failure::error(text));
        }
        Ok(Before { keys })
    }

    /// Makes leases with the same ids.
    pub async fn grant(&self, leases: &[Lease]) -> Result<Leases, Failure> {
        let mut made = Leases::default();
        let (ended, living): (Vec<Lease>, Vec<Lease>) = leases.iter().partition(|lease| lease.remaining == Some(0));
        made.ended = ended.len() as u64;
        let mut granting = futures::stream::iter(living.into_iter().map(|lease| self.grant_one(lease)))
            .buffer_unordered(LEASES_AT_ONCE);
        while let Some((id, new)) = granting.try_next().await? {
            if new {
                made.made += 1;
            } else {
                made.found += 1;
            }
            made.granted.insert(id);
        }
        Ok(made)
    }

    /// The lease's id, and whether it was not there yet.
    async fn grant_one(&self, Lease { id, granted, remaining }: Lease) -> Result<(i64, bool), Failure> {
        let ttl = remaining.filter(|_| self.mode.remaining).unwrap_or(granted);
        match self.ask(e::LeaseGrantRequest { id, ttl }).await {
            Ok(_) => Ok((id, true)),
            Err(error) if error.says("etcdserver: lease already exists") => Ok((id, false)),
            Err(error) => Err(failed(&format!("grant lease {id:x}"), &error)),
        }
    }

    /// Writes all that arrives.
    pub async fn write(
        &self,
        mut pages: mpsc::Receiver<Page>,
        leases: &Leases,
        progress: &Arc<Progress>,
    ) -> Result<Written, Failure> {
        let (mut written, mut tasks) = (Written::default(), JoinSet::new());
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(page) = pages.recv().await {
            for pair in page? {
                if pair.lease != 0 && !leases.granted.contains(&pair.lease) {
                    written.ended += 1;
                    continue;
                }
                let size = pair.key.len() + pair.value.len();
                if batch.len() >= self.mode.most || bytes + size > TXN_BYTES && !batch.is_empty() {
                    self.send(std::mem::take(&mut batch), &mut tasks, &mut written, progress).await?;
                    bytes = 0;
                }
                bytes += size;
                batch.push(pair);
            }
        }
        if !batch.is_empty() {
            self.send(batch, &mut tasks, &mut written, progress).await?;
        }
        while let Some(done) = tasks.join_next().await {
            written.take(done, progress)?;
        }
        Ok(written)
    }

    async fn send(
        &self,
        batch: Vec<KeyValue>,
        tasks: &mut JoinSet<Result<Written, Failure>>,
        written: &mut Written,
        progress: &Progress,
    ) -> Result<(), Failure> {
        if tasks.len() >= IN_FLIGHT
            && let Some(done) = tasks.join_next().await
        {
            written.take(done, progress)?;
        }
        let one = Self { client: Arc::clone(&self.client), mode: self.mode };
        tasks.spawn(async move { one.put(batch).await });
        Ok(())
    }

    async fn put(&self, batch: Vec<KeyValue>) -> Result<Written, Failure> {
        let mut written = Written { transactions: 1, ..Written::default() };
        match self.ask(transaction(&batch)).await {
            Ok(_) => batch.iter().for_each(|pair| written.add(pair)),
            // A lease ended here, as it does there: what does not hang on it is written.
            Err(error) if error.says(NO_LEASE) => {
                for pair in &batch {
                    match self.ask(transaction(std::slice::from_ref(pair))).await {
                        Ok(_) => written.add(pair),
                        Err(error) if error.says(NO_LEASE) => written.ended += 1,
                        Err(error) => return Err(refused(std::slice::from_ref(pair), &error)),
                    }
                }
            }
            Err(error) => return Err(refused(&batch, &error)),
        }
        Ok(written)
    }

    /// Asks until a member answers. Only for what may be done twice.
    async fn ask<Q: Call>(&self, request: Q) -> Result<Q::Answer, CallError> {
        let end = clock::now() + PATIENCE;
        loop {
            match self.client.ask(request.clone()).await {
                Err(CallError::Refused(status)) if lost(&status) && clock::now() < end => (),
                Err(CallError::Late) if clock::now() < end => (),
                answer => return answer,
            }
        }
    }

    /// What the target has now: all that no lease ends, and how many keys one does.
    pub async fn sum(&self) -> Result<(Sum, u64), Failure> {
        let (mut lasting, mut leased) = (Sum::default(), 0);
        let mut pages = Pages::new(&self.client, 0);
        while let Some(page) = pages.next().await.map_err(|error| failed("read the target", &error))? {
            for pair in page {
                match pair.lease {
                    0 => lasting.add(&pair.key, &pair.value),
                    _ => leased += 1,
                }
            }
        }
        Ok((lasting, leased))
    }
}

impl Written {
    fn add(&mut self, pair: &KeyValue) {
        self.keys += 1;
        self.bytes += (pair.key.len() + pair.value.len()) as u64;
        if pair.lease == 0 {
            self.lasting.add(&pair.key, &pair.value);
        }
    }

    /// Adds what one transaction wrote.
    fn take(
        &mut self,
        done: Result<Result<Self, Failure>, tokio::task::JoinError>,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let more = done.map_err(|error| Failure::error(error.to_string()))??;
        self.keys += more.keys;
        self.bytes += more.bytes;
        self.transactions += more.transactions;
        self.ended += more.ended;
        self.lasting.keys += more.lasting.keys;
        self.lasting.digest = self.lasting.digest.wrapping_add(more.lasting.digest);
        progress.keys.store(self.keys, Ordering::Relaxed);
        progress.bytes.store(self.bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Puts of keys that are all different.
fn transaction(batch: &[KeyValue]) -> e::TxnRequest {
    let put = |pair: &KeyValue| {
        let (key, value, lease) = (pair.key.clone(), pair.value.clone(), pair.lease);
        e::RequestOp { request: Some(Request::RequestPut(e::PutRequest { key, value, lease, ..Default::default() })) }
    };
    e::TxnRequest { success: batch.iter().map(put).collect(), ..Default::default() }
}

fn refused(batch: &[KeyValue], error: &CallError) -> Failure {
    match batch {
        [pair] => {
            let (key, bytes) = (go::quote(&pair.key), pair.key.len() + pair.value.len());
            let hint = if bytes > TXN_BYTES { "; the target may need --max-request-bytes" } else { "" };
            failed(&format!("write {key} of {bytes} bytes{hint}"), error)
        }
        _ => {
            let first = batch.first().map(|pair| go::quote(&pair.key)).unwrap_or_default();
            failed(&format!("write {} keys, the first of them {first}", batch.len()), error)
        }
    }
}
