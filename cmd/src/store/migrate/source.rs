//! Where keys come from: a running etcd, read page by page at one revision, or a file.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use pintle_proto::etcdserverpb as e;
use pintle_proto::mvccpb::KeyValue;
use tokio::sync::mpsc;

use super::auth::Auth;
use super::file::File;
use super::{MigrateArgs, source_settings};
use crate::store::ctl::Failure;
use crate::store::ctl::client::{CallError, Client};
use crate::store::ctl::settings::Settings;

/// Keys of the first page; later ones grow towards [`PAGE_BYTES`].
const FIRST_KEYS: i64 = 16;
/// Keys of any page.
const PAGE_KEYS: i64 = 4000;
/// Bytes that a page aims at.
pub const PAGE_BYTES: usize = 1 << 20;
/// Leases that are asked for, or made, at the same time.
pub const LEASES_AT_ONCE: usize = 16;

pub type Page = Result<Vec<KeyValue>, Failure>;

/// What a source says of itself before anything is copied.
#[derive(Debug, Default)]
pub struct Outline {
    pub name: String,
    /// `None` for a file.
    pub cluster: Option<u64>,
    /// All is as it was then.
    pub revision: i64,
    pub keys: u64,
    pub leases: Vec<Lease>,
    pub auth: Auth,
    pub alarms: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: i64,
    pub granted: i64,
    /// Seconds; `None` where nobody counted.
    pub remaining: Option<i64>,
}

pub enum Source {
    Etcd(Etcd),
    File(File),
}

pub struct Etcd {
    name: String,
    client: Arc<Client>,
    revision: i64,
    keys: u64,
    cluster: u64,
}

impl Source {
    pub async fn open(args: &MigrateArgs, target: &Settings) -> Result<Self, Failure> {
        let path = Path::new(&args.from_etcd);
        if !args.from_etcd.contains("://") && (path.exists() || !is_address(&args.from_etcd)) {
            let (path, check) = (path.to_owned(), !args.skip_hash_check);
            return Ok(Self::File(blocking(move || File::open(&path, check)).await?));
        }
        let client = Client::new(source_settings(args, target)?).await?;
        let everything = Bytes::from_static(b"\0");
        let count =
            e::RangeRequest { key: everything.clone(), range_end: everything, count_only: true, ..Default::default() };
        let found = client.ask(count).await.map_err(|error| failed("read the source", &error))?;
        let header = found.header.unwrap_or_default();
        let version = client.ask(e::StatusRequest {}).await.map(|status| status.version).unwrap_or_default();
        Ok(Self::Etcd(Etcd {
            name: format!("{} (etcd {version})", args.from_etcd),
            client: Arc::new(client),
            revision: header.revision,
            keys: u64::try_from(found.count).unwrap_or_default(),
            cluster: header.cluster_id,
        }))
    }

    pub async fn outline(&self) -> Result<Outline, Failure> {
        match self {
            Self::Etcd(etcd) => etcd.outline().await,
            Self::File(file) => {
                let file = file.clone();
                blocking(move || file.outline()).await
            }
        }
    }

    /// Sends all keys; an error is the last that is sent.
    pub async fn read(self, out: mpsc::Sender<Page>) {
        let done = match self {
            Self::Etcd(etcd) => etcd.read(&out).await,
            Self::File(file) => {
                let out = out.clone();
                blocking(move || file.read(&out)).await
            }
        };
        if let Err(failure) = done {
            // Nobody may be there any more.
            let _ = out.send(Err(failure)).await;
        }
    }
}

impl Etcd {
    async fn outline(&self) -> Result<Outline, Failure> {
        let leases = self.client.ask(e::LeaseLeasesRequest {}).await.map_err(|error| failed("list leases", &error))?;
        let ask = |id: i64| async move {
            let answer = self.client.ask(e::LeaseTimeToLiveRequest { id, keys: false }).await?;
            let (granted, remaining) = (answer.granted_ttl, Some(answer.ttl));
            Ok((answer.ttl >= 0).then_some(Lease { id, granted, remaining }))
        };
        let asked = futures::stream::iter(leases.leases.iter().map(|lease| ask(lease.id))).buffered(LEASES_AT_ONCE);
        let leases: Vec<Option<Lease>> =
            asked.try_collect().await.map_err(|error: CallError| failed("read a lease", &error))?;
        let alarms = self.client.ask(e::AlarmRequest::default()).await.map(|answer| answer.alarms.len());
        Ok(Outline {
            name: self.name.clone(),
            cluster: Some(self.cluster),
            revision: self.revision,
            keys: self.keys,
            leases: leases.into_iter().flatten().collect(),
            auth: Auth::of_etcd(&self.client).await,
            alarms: alarms.unwrap_or_default(),
        })
    }

    async fn read(&self, out: &mpsc::Sender<Page>) -> Result<(), Failure> {
        let mut pages = Pages::new(&self.client, self.revision);
        while let Some(page) = pages.next().await.map_err(|error| compacted(self.revision, &error))? {
            if out.send(Ok(page)).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// All keys of a running store in their order, at one revision.
pub struct Pages<'a> {
    client: &'a Client,
    next: Option<Bytes>,
    limit: i64,
    /// 0 until the first page tells.
    revision: i64,
}

impl<'a> Pages<'a> {
    pub fn new(client: &'a Client, revision: i64) -> Self {
        Self { client, next: Some(Bytes::from_static(b"\0")), limit: FIRST_KEYS, revision }
    }

    pub async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, CallError> {
        let Some(key) = self.next.take() else { return Ok(None) };
        let request = e::RangeRequest {
            key,
            range_end: Bytes::from_static(b"\0"),
            limit: self.limit,
            revision: self.revision,
            ..Default::default()
        };
        let page = self.client.ask(request).await?;
        if self.revision == 0 {
            self.revision = page.header.unwrap_or_default().revision;
        }
        let bytes: usize = page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        let fitting = i64::try_from(PAGE_BYTES * page.kvs.len() / bytes.max(1)).unwrap_or(PAGE_KEYS);
        self.limit = fitting.min(self.limit * 4).clamp(1, PAGE_KEYS);
        // The next key there can be.
        let last = page.kvs.last().filter(|_| page.more);
        self.next = last.map(|last| [&last.key[..], &[0]].concat().into());
        Ok(Some(page.kvs))
    }
}

/// What was tried, and why it failed; nobody who answers has a code of its own.
pub fn failed(what: &str, error: &CallError) -> Failure {
    match error {
        CallError::Late => Failure::bad_connection(format!("{what}: {error}")),
        CallError::Refused(_) => Failure::error(format!("{what}: {error}")),
    }
}

fn compacted(revision: i64, error: &CallError) -> Failure {
    if error.says("etcdserver: mvcc: required revision has been compacted") {
        let text = format!(
            "the source forgot revision {revision} while it was copied; run the same again with --overwrite, \
             and with its automatic compaction set to longer"
        );
        return Failure::error(text);
    }
    failed("read the source", error)
}

/// `host:port`, several of them or a Unix socket's name.
fn is_address(text: &str) -> bool {
    text.split(',').all(|one| one.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()))
}

/// Runs what reads files.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(run).await.map_err(|error| Failure::error(error.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_files() {
        for text in ["127.0.0.1:2379", "a:1,b:2", "[::1]:2379"] {
            assert!(is_address(text), "{text}");
        }
        for text in ["backup.db", "./a:b", "a:1,b"] {
            assert!(!is_address(text), "{text}");
        }
    }
}
