//! Reads of keys: barrier, permission, a consistent view, and what is made of it where it is read.
//!
//! What reads one key runs at once; everything else takes its turn among the readers ([`crate::readers`]).

use std::sync::Arc;

use futures::Stream;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse};
use pintle_proto::store_v1::Failure;
use prost::Message;

use crate::auth::{self, Actor};
use crate::census::Census;
use crate::error::StoreError;
use crate::mvcc::key::Interval;
use crate::mvcc::pieces::{Draft, Pieces, RangeAnswer, is_large};
use crate::mvcc::view::Source;
use crate::mvcc::{hash, range};
use crate::readers::{Large, Reading};
use crate::store::Store;
use crate::{apply, check};

impl Store {
    /// Reads keys; linearizable unless the request says otherwise.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        let mut answer = self.range_with(request, read_range).await?;
        self.fill(&mut answer.header);
        Ok(answer)
    }

    /// The same for whoever sends the answer on: a large one comes encoded.
    pub(crate) async fn range_encoded(&self, request: RangeRequest) -> Result<RangeAnswer, StoreError> {
        let store = self.clone();
        let in_pieces = !request.range_end.is_empty() && range::is_plain(&request);
        self.range_with(request, move |view, census, request| {
            if in_pieces {
                return encode_range(&store, view, census, request).map(RangeAnswer::Pieces);
            }
            let mut answer = read_range(view, census, request)?;
            store.fill(&mut answer.header);
            Ok(match is_large(&answer) {
                false => RangeAnswer::Whole(answer),
                true => RangeAnswer::Pieces(Pieces::of(answer, |bytes| view.spend(bytes))),
            })
        })
        .await
    }

    /// Reads keys where it is their turn.
    async fn range_with<T, F>(&self, request: RangeRequest, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Reading<'_>, &Census, &RangeRequest) -> Result<T, StoreError> + Send + 'static,
    {
        check::range(&request)?;
        if !request.serializable {
            self.barrier().await?;
        }
        let (judged, asked) = (self.auth(), Interval::new(&request.key, &request.range_end));
        self.permitted(|grant| grant.read(&asked))?;
        self.metrics().counters.ranges.inc();
        self.shared().top.read(&request.key, &request.range_end);
        let short = request.range_end.is_empty();
        let shared = Arc::clone(self.shared());
        let answer = self.read(short, move |view| read(view, &shared.census, &request)).await?;
        if !Arc::ptr_eq(&judged, &self.auth()) {
            self.permitted(|grant| grant.read(&asked))?; // what was read may be newer than the verdict
        }
        Ok(answer)
    }

    /// Reads keys in bounded parts, all at the revision of the first. Only the last part has header, `more` and `count`.
    pub async fn range_stream(
        &self,
        request: RangeRequest,
    ) -> Result<impl Stream<Item = Result<RangeResponse, StoreError>> + Send + use<>, StoreError> {
        check::range(&request)?;
        if !request.serializable {
            self.barrier().await?;
        }
        self.permitted(|grant| auth::access::judge_range(grant, &request))?;
        Ok(crate::mvcc::stream::parts(self.clone(), request))
    }

    /// The CRC-32C of the key space up to `revision` (0: now; below: of nothing), as etcd computes it; with the revision it is of.
    pub async fn hash_kv(&self, revision: i64) -> Result<(u32, i64), StoreError> {
        self.read(false, move |view| {
            let at = if revision < 0 { revision } else { readable(view, revision)? };
            let hash = hash::hash_kv(view.view(), at, |bytes| view.spend(bytes));
            hash.map(|hash| (hash, at)).map_err(StoreError::storage)
        })
        .await
    }

    pub(crate) async fn read_txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        if !apply::is_serializable(&request) {
            self.barrier().await?;
        }
        let anybody = matches!(self.actor(), Actor::Anonymous) && auth::access::is_of_nothing(&request);
        if !anybody {
            self.permitted(|grant| auth::access::judge_read_txn(grant, &request))?;
        }
        let mut operations = request.success.iter().chain(&request.failure);
        let short = request.compare.iter().all(|compare| compare.range_end.is_empty())
            && operations.all(|operation| operation.encoded_len() < 512 && !has_end(operation));
        let mut answer = self.read(short, move |view| run_read_txn(view, &request)).await?;
        self.fill(&mut answer.header);
        Ok(answer)
    }

    /// Runs `read` on a consistent view: here if it is short, else on a thread for that when it is its turn. It may have to begin anew.
    pub(crate) async fn read<T, F>(&self, short: bool, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Reading<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        if short {
            let generation = self.shared().engine.current();
            let view = generation.view().map_err(StoreError::storage);
            return self.noted(view.and_then(|view| read(&Reading::new(view, None))));
        }
        let found = self.read_in_turns(None, read).await;
        self.noted(found)
    }

    /// The same for what is known to be long: it never begins anew.
    pub(crate) async fn read_long<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Reading<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let place = self.shared().readers.large(self.flow()).await?;
        let found = self.read_in_turns(Some(place), read).await;
        self.noted(found)
    }

    /// Passes on what a read found; if that is damage, the member ends.
    fn noted<T>(&self, found: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Storage { source }) = &found {
            self.shared().engine.report(source);
        }
        found
    }

    async fn read_in_turns<T, F>(&self, mut place: Option<Large>, mut read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Reading<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (readers, flow, asker) = (&self.shared().readers, self.flow(), Arc::new(()));
        loop {
            let generation = self.shared().engine.current();
            let run = move |turn| {
                let reading = generation.view().map(|view| Reading::new(view, Some(turn)));
                let answer = reading.as_ref().map_or(Ok(None), |reading| {
                    let answer = read(reading);
                    if reading.is_broken_off() { Ok(None) } else { answer.map(Some) }
                });
                reading.map_err(StoreError::storage).and(answer).map(|answer| (answer, read))
            };
            let (answer, again) = readers.run(flow, place, &asker, run).await??;
            if let Some(answer) = answer {
                return Ok(answer);
            }
            read = again;
            place = Some(readers.large(flow).await?);
        }
    }

    /// The header that goes with a view, for reads that made their own answer.
    pub(crate) fn fill(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.map_or(0, |header| header.revision);
        *header = self.header(revision);
    }
}

fn read_range(view: &Reading<'_>, census: &Census, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
    let at = readable(view, request.revision)?;
    let mut counted = |interval: &Interval| census.count(view, &|| view.is_broken_off(), interval, at);
    let mut response = range::read_counted(view, request, at, &mut counted).map_err(StoreError::storage)?;
    response.header = apply::header(view.revision());
    Ok(response)
}

fn encode_range(
    store: &Store,
    view: &Reading<'_>,
    census: &Census,
    request: &RangeRequest,
) -> Result<Pieces, StoreError> {
    let at = readable(view, request.revision)?;
    let mut counted = |interval: &Interval| census.count(view, &|| view.is_broken_off(), interval, at);
    let draft = Draft::new(store.header(view.revision()).as_ref());
    range::encode(view, request, at, &mut counted, draft).map_err(StoreError::storage)
}

/// The revision to read at: the current one unless asked otherwise; refused if it is compacted or not there yet.
pub(crate) fn readable(view: &dyn Source, revision: i64) -> Result<i64, StoreError> {
    match revision {
        ..=0 => Ok(view.revision()),
        revision if revision > view.revision() => Err(StoreError::FutureRevision),
        revision if revision < view.compacted() => Err(StoreError::Compacted { compact_revision: view.compacted() }),
        revision => Ok(revision),
    }
}

fn run_read_txn(view: &dyn Source, request: &TxnRequest) -> Result<TxnResponse, StoreError> {
    let outcome = apply::read_txn(view, request).map_err(StoreError::storage)?;
    outcome.map_err(|refusal| StoreError::from(&Failure::from(refusal)))
}

fn has_end(operation: &RequestOp) -> bool {
    matches!(&operation.request, Some(Request::RequestRange(range)) if !range.range_end.is_empty())
}
