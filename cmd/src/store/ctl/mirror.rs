//! `make-mirror`: keys of one cluster, kept the same in another.
//!
//! First what there is at one revision, then every change behind it. Changes of one revision arrive as one transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchResponse,
};

use super::client::Client;
use super::grammar::MirrorArgs;
use super::settings::{Settings, TlsFiles, switch, user};
use super::watch::Following;
use super::{Context, Done, Failure, exactly, go, print};

/// Keys that are read at once.
const PAGE: i64 = 1000;

/// How often the count of keys is told.
const TELL: Duration = Duration::from_secs(30);

pub async fn run(context: &Context, args: MirrorArgs) -> Done {
    let [destination] = exactly(&args.words, "make-mirror takes one destination argument")?;
    if args.no_dest_prefix && !args.dest_prefix.is_empty() {
        let text = "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one";
        return Err(Failure::bad_args(text));
    }
    let tls = TlsFiles {
        authorities: args.dest_cacert.clone(),
        certificate: args.dest_cert.clone(),
        key: args.dest_key.clone(),
        insecure_transport: switch("dest-insecure-transport", args.dest_insecure_transport.as_deref(), true)?,
        skip_verify: false,
    };
    let user = user(args.dest_user.as_deref(), args.dest_password.as_deref(), "Destination Password: ")?;
    let settings = Settings { endpoints: vec![destination], tls, user, ..context.settings.clone() };
    let mirror = Mirror {
        from: context.client().await?,
        to: Client::new(settings).await?,
        there: if args.no_dest_prefix || !args.dest_prefix.is_empty() { args.dest_prefix } else { args.prefix.clone() },
        prefix: args.prefix,
        most: usize::try_from(args.max_txn_ops).unwrap_or(1).max(1),
        done: Arc::default(),
    };
    let count = Arc::clone(&mirror.done);
    tokio::select! {
        failed = mirror.follow(args.rev) => failed,
        told = tell(&count) => told,
    }
}

async fn tell(count: &AtomicI64) -> Done {
    loop {
        tokio::time::sleep(TELL).await;
        print::out(format!("{}\n", count.load(Ordering::Relaxed)))?;
    }
}

struct Mirror {
    from: Client,
    to: Client,
    prefix: String,
    /// What stands there for `prefix`.
    there: String,
    /// Changes in one transaction.
    most: usize,
    done: Arc<AtomicI64>,
}

impl Mirror {
    /// First and end of the keys that are mirrored.
    fn range(&self) -> (Bytes, Bytes) {
        if self.prefix.is_empty() {
            return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        }
        (self.prefix.clone().into(), go::prefix_end(self.prefix.as_bytes()).into())
    }

    /// Never done: it ends with an error.
    async fn follow(&self, from: i64) -> Done {
        let start = if from > 1 { from } else { self.copy().await? + 1 };
        let (key, range_end) = self.range();
        let create = WatchCreateRequest { key, range_end, start_revision: start, ..WatchCreateRequest::default() };
        let mut following = Following::new(create);
        loop {
            let answer = following.next(&self.from).await?;
            if answer.compact_revision != 0 {
                return Err(Failure::error("etcdserver: mvcc: required revision has been compacted"));
            }
            if answer.canceled {
                return Err(Failure::error(format!("watch is canceled by the server: {}", answer.cancel_reason)));
            }
            self.apply(answer).await?;
        }
    }

    /// Copies what there is; the revision it was read at.
    async fn copy(&self) -> Result<i64, Failure> {
        let (mut key, range_end) = self.range();
        let mut revision = 0;
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE,
                revision,
                ..RangeRequest::default()
            };
            let page = self.from.ask(request).await?;
            if revision == 0 {
                revision = page.header.unwrap_or_default().revision;
            }
            let last = page.kvs.last().map(|kv| kv.key.clone());
            for kv in page.kvs {
                let request = PutRequest { key: self.renamed(&kv.key), value: kv.value, ..PutRequest::default() };
                self.to.ask(request).await?;
                self.done.fetch_add(1, Ordering::Relaxed);
            }
            let Some(last) = last.filter(|_| page.more) else { return Ok(revision) };
            // The next key there can be.
            key = [&last[..], &[0]].concat().into();
        }
    }

    async fn apply(&self, answer: WatchResponse) -> Done {
        let mut changes: Vec<RequestOp> = Vec::new();
        let mut revision = 0;
        for event in answer.events {
            let kv = event.kv.unwrap_or_default();
            if kv.mod_revision > revision || changes.len() >= self.most {
                self.commit(std::mem::take(&mut changes)).await?;
            }
            revision = kv.mod_revision;
            let key = self.renamed(&kv.key);
            let request = if event.r#type == 0 {
                Request::RequestPut(PutRequest { key, value: kv.value, ..PutRequest::default() })
            } else {
                Request::RequestDeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() })
            };
            changes.push(RequestOp { request: Some(request) });
        }
        self.commit(changes).await
    }

    async fn commit(&self, changes: Vec<RequestOp>) -> Done {
        if changes.is_empty() {
            return Ok(());
        }
        let count = i64::try_from(changes.len()).unwrap_or_default();
        self.to.ask(TxnRequest { success: changes, ..TxnRequest::default() }).await?;
        self.done.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    fn renamed(&self, key: &[u8]) -> Bytes {
        let rest = key.strip_prefix(self.prefix.as_bytes()).unwrap_or(key);
        [self.there.as_bytes(), rest].concat().into()
    }
}
