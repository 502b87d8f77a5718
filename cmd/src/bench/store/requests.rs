//! What a client of a benchmark asks, and how it sees that the answer is right.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use pintle_base::rng;
use pintle_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pintle_proto::etcdserverpb::request_op::Request as Op;
use pintle_proto::etcdserverpb::response_op::Response as Answer;
use pintle_proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest,
    RangeRequest, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use pintle_proto::mvccpb::KeyValue;
use prost::Message;

use super::wire::{Field, Fields};

/// All keys of a benchmark lie in here.
pub const FIRST: &[u8] = b"/bench/";
pub const END: &[u8] = b"/bench0";
/// What a kube-apiserver's clients ask for at once.
const PAGE: i64 = 500;
/// Seconds.
const LEASE: i64 = 60;
/// Puts of one transaction that fills a store: what etcd allows.
const BATCH: u64 = 128;

/// One kind of request.
#[derive(Clone, Debug)]
pub enum Workload {
    Put,
    Txn,
    Get,
    StaleGet,
    List(i64),
    Paged,
    KeepAlive,
    Mixed,
    Fill(Fill),
}

/// Clients that fill a store share this.
#[derive(Clone, Debug)]
pub struct Fill {
    pub next: Arc<AtomicU64>,
    /// Keys times passes.
    pub items: u64,
}

/// Keys and values of a benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    pub keys: u64,
    pub value_bytes: usize,
}

/// The key of a number; their order is that of their numbers.
pub fn key(number: u64) -> Bytes {
    Bytes::from(format!("/bench/{number:010}"))
}

fn put(number: u64, data: Data) -> PutRequest {
    // Nothing that could be compressed: neither system is helped by values that say nothing.
    let mut value = vec![0; data.value_bytes];
    rng::fill(&mut value);
    PutRequest { key: key(number), value: value.into(), ..PutRequest::default() }
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub path: &'static str,
    /// Further requests of the client go on the same stream.
    pub stays: bool,
}

const fn call(path: &'static str) -> Option<Call> {
    Some(Call { path, stays: false })
}

/// One client: remembers what it needs for its next request.
pub struct Asker {
    workload: Workload,
    data: Data,
    asked: Asked,
    /// Revisions of keys it has seen.
    known: HashMap<u64, i64>,
    page: Page,
    lease: i64,
}

#[derive(Clone, Copy)]
enum Asked {
    Nothing,
    Put,
    Txn(u64),
    Get,
    List(i64),
    Paged,
    Grant,
    Renewal,
    Batch,
}

/// How far a list in pages is.
#[derive(Default)]
struct Page {
    /// The last key that was seen; none before the first page.
    last: Option<Bytes>,
    revision: i64,
    seen: u64,
}

impl Asker {
    pub fn new(workload: Workload, data: Data) -> Self {
        Self { workload, data, asked: Asked::Nothing, known: HashMap::new(), page: Page::default(), lease: 0 }
    }

    /// What it asked last, for people.
    pub fn name(&self) -> &'static str {
        match self.asked {
            Asked::Nothing => "nothing",
            Asked::Put => "a put",
            Asked::Txn(_) => "a compare-and-put",
            Asked::Get => "a get",
            Asked::List(_) => "a list",
            Asked::Paged => "a page of a list",
            Asked::Grant => "the grant of a lease",
            Asked::Renewal => "the renewal of a lease",
            Asked::Batch => "a transaction of many puts",
        }
    }

    /// Encodes the next request into `message`; nothing if there is nothing left to ask.
    pub fn ask(&mut self, message: &mut Vec<u8>) -> Result<Option<Call>> {
        let number = rng::below(self.data.keys);
        let kind = match &self.workload {
            Workload::Mixed => match rng::below(100) {
                0..60 => Workload::Txn,
                60..85 => Workload::Get,
                85..95 => Workload::List(100),
                _ => Workload::Put,
            },
            other => other.clone(),
        };
        match kind {
            Workload::Put => {
                self.asked = Asked::Put;
                put(number, self.data).encode(message)?;
                Ok(call("/etcdserverpb.KV/Put"))
            }
            Workload::Txn => {
                self.asked = Asked::Txn(number);
                self.update(number).encode(message)?;
                Ok(call("/etcdserverpb.KV/Txn"))
            }
            Workload::Get | Workload::StaleGet => {
                self.asked = Asked::Get;
                let serializable = matches!(kind, Workload::StaleGet);
                RangeRequest { key: key(number), serializable, ..RangeRequest::default() }.encode(message)?;
                Ok(call("/etcdserverpb.KV/Range"))
            }
            Workload::List(limit) => {
                self.asked = Asked::List(limit);
                range(limit).encode(message)?;
                Ok(call("/etcdserverpb.KV/Range"))
            }
            Workload::Paged => {
                self.asked = Asked::Paged;
                self.next_page().encode(message)?;
                Ok(call("/etcdserverpb.KV/Range"))
            }
            Workload::KeepAlive => self.keep_alive(message),
            Workload::Fill(fill) => self.batch(&fill, message),
            Workload::Mixed => bail!("a mixed load is one of the others"),
        }
    }

    /// If the key is still at the revision this client knows: put; else learn it.
    fn update(&self, number: u64) -> TxnRequest {
        let known = self.known.get(&number).copied().unwrap_or(0);
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key(number),
            target_union: Some(TargetUnion::ModRevision(known)),
            ..Compare::default()
        };
        TxnRequest {
            compare: vec![compare],
            success: vec![op(Op::RequestPut(put(number, self.data)))],
            failure: vec![op(Op::RequestRange(RangeRequest { key: key(number), ..RangeRequest::default() }))],
        }
    }

    /// As a kube-apiserver goes on where the page before ended, at the revision of the first one.
    fn next_page(&self) -> RangeRequest {
        let mut request = range(PAGE);
        if let Some(last) = &self.page.last {
            request.key = [last, &[0][..]].concat().into();
            request.revision = self.page.revision;
        }
        request
    }

    fn keep_alive(&mut self, message: &mut Vec<u8>) -> Result<Option<Call>> {
        if self.lease == 0 {
            self.asked = Asked::Grant;
            LeaseGrantRequest { id: 0, ttl: LEASE }.encode(message)?;
            return Ok(call("/etcdserverpb.Lease/LeaseGrant"));
        }
        self.asked = Asked::Renewal;
        LeaseKeepAliveRequest { id: self.lease }.encode(message)?;
        Ok(Some(Call { path: "/etcdserverpb.Lease/LeaseKeepAlive", stays: true }))
    }

    /// The next keys that nobody has written yet.
    fn batch(&mut self, fill: &Fill, message: &mut Vec<u8>) -> Result<Option<Call>> {
        let size = BATCH.min(self.data.keys); // no key twice in a transaction
        let first = fill.next.fetch_add(size, Ordering::Relaxed);
        if first >= fill.items {
            return Ok(None);
        }
        self.asked = Asked::Batch;
        let items = first..(first + size).min(fill.items);
        let success = items.map(|item| op(Op::RequestPut(put(item % self.data.keys, self.data)))).collect();
        TxnRequest { success, ..TxnRequest::default() }.encode(message)?;
        Ok(call("/etcdserverpb.KV/Txn"))
    }

    /// Looks at an answer.
    ///
    /// # Errors
    /// It is not what was asked for.
    pub fn hear(&mut self, message: &[u8]) -> Result<()> {
        match self.asked {
            Asked::Put | Asked::Nothing => Ok(()),
            Asked::Batch => match TxnResponse::decode(message)?.succeeded {
                true => Ok(()),
                false => bail!("a transaction without a condition took the other branch"),
            },
            Asked::Txn(number) => self.updated(number, message),
            Asked::Get => expect(listed(message)?.keys, 1),
            Asked::List(limit) => expect(listed(message)?.keys, self.data.keys.min(limit.unsigned_abs())),
            Asked::Paged => self.turned(message),
            Asked::Grant => {
                self.lease = LeaseGrantResponse::decode(message)?.id;
                Ok(())
            }
            Asked::Renewal => match LeaseKeepAliveResponse::decode(message)?.ttl {
                LEASE => Ok(()),
                other => bail!("a lease was renewed to {other} s"),
            },
        }
    }

    fn updated(&mut self, number: u64, message: &[u8]) -> Result<()> {
        let answer = TxnResponse::decode(message)?;
        let revision = match answer.responses.into_iter().next().and_then(|response| response.response) {
            Some(Answer::ResponseRange(range)) => range.kvs.first().map_or(0, |kv| kv.mod_revision),
            _ => answer.header.map_or(0, |header| header.revision),
        };
        self.known.insert(number, revision);
        Ok(())
    }

    fn turned(&mut self, message: &[u8]) -> Result<()> {
        let list = listed(message)?;
        let page = &mut self.page;
        page.seen += list.keys;
        if page.last.is_none() {
            page.revision = ResponseHeader::decode(list.header)?.revision;
        }
        if list.more {
            page.last = Some(KeyValue::decode(list.last)?.key);
            return Ok(());
        }
        let seen = std::mem::take(page).seen;
        expect(seen, self.data.keys)
    }
}

fn range(limit: i64) -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(FIRST),
        range_end: Bytes::from_static(END),
        limit,
        ..RangeRequest::default()
    }
}

fn expect(found: u64, wanted: u64) -> Result<()> {
    if found != wanted {
        bail!("{found} keys were found, {wanted} are there");
    }
    Ok(())
}

/// What is looked at of a list.
#[derive(Default)]
struct Listed<'a> {
    header: &'a [u8],
    keys: u64,
    last: &'a [u8],
    more: bool,
}

fn listed(message: &[u8]) -> Result<Listed<'_>> {
    let mut list = Listed::default();
    for field in Fields(message) {
        match field.context("a list")? {
            Field::Bytes(1, header) => list.header = header,
            Field::Bytes(2, kv) => {
                list.keys += 1;
                list.last = kv;
            }
            Field::Number(3, more) => list.more = more != 0,
            _ => {}
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use pintle_proto::etcdserverpb::RangeResponse;

    use super::*;

    const DATA: Data = Data { keys: 700, value_bytes: 10 };

    /// What a store with the keys of `DATA` answers.
    fn answer(request: &RangeRequest, revision: i64) -> Vec<u8> {
        let all = (0..DATA.keys).map(key).filter(|key| request.key <= *key);
        let kvs: Vec<KeyValue> = all.map(|key| KeyValue { key, ..KeyValue::default() }).collect();
        let limit = usize::try_from(request.limit).expect("a limit");
        let header = ResponseHeader { revision, ..ResponseHeader::default() };
        let more = kvs.len() > limit;
        let kvs = kvs.into_iter().take(limit).collect();
        RangeResponse { header: Some(header), kvs, more, count: 0 }.encode_to_vec()
    }

    #[test]
    fn pages_go_on_at_the_revision_of_the_first_and_begin_again_after_the_last() {
        let mut asker = Asker::new(Workload::Paged, DATA);
        for walk in 0..2 {
            for (page, revision) in [(0, 0), (1, 40 + walk)] {
                let mut message = Vec::new();
                asker.ask(&mut message).expect("a request");
                let request = RangeRequest::decode(&message[..]).expect("a request");
                assert_eq!((request.limit, request.revision), (500, revision), "page {page} of walk {walk}");
                asker.hear(&answer(&request, 40 + walk + page)).expect("a page");
            }
        }
    }

    #[test]
    fn a_list_that_lacks_a_key_is_told() {
        let mut asker = Asker::new(Workload::List(500), DATA);
        let mut message = Vec::new();
        asker.ask(&mut message).expect("a request");
        let mut request = RangeRequest::decode(&message[..]).expect("a request");
        asker.hear(&answer(&request, 1)).expect("all keys");
        request.limit = 499;
        assert!(asker.hear(&answer(&request, 1)).is_err());
    }

    #[test]
    fn filling_writes_every_key_as_often_as_asked_and_none_twice_in_a_transaction() {
        let fill = Fill { next: Arc::default(), items: DATA.keys * 2 };
        let mut askers = [(); 2].map(|()| Asker::new(Workload::Fill(fill.clone()), DATA));
        let mut written = HashMap::new();
        for turn in 0.. {
            let mut message = Vec::new();
            if askers[turn % 2].ask(&mut message).expect("a request").is_none() {
                break;
            }
            let mut keys: Vec<Bytes> = Vec::new();
            for op in TxnRequest::decode(&message[..]).expect("a request").success {
                let Some(Op::RequestPut(put)) = op.request else { panic!("not a put") };
                keys.push(put.key);
            }
            keys.sort();
            assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
            for key in keys {
                *written.entry(key).or_insert(0) += 1;
            }
        }
        assert_eq!((written.len(), written.values().all(|times| *times == 2)), (700, true));
    }
}
