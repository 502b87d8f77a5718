//! Scripts: commands in, one line each out. `r=N` is the revision after the command.

use std::fmt::Write;
use std::ops::ControlFlow;

use bytes::Bytes;
use pintle_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::response_op::Response;
use pintle_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    TxnRequest, TxnResponse,
};
use pintle_proto::mvccpb::KeyValue;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::reply::Outcome;
use pintle_proto::store_v1::{LeaseExpire, LeaseGrant};
use prost::Message;

use super::local::{Local, command, read};
use crate::calls::read::readable;
use crate::mvcc::{hash, range, scrub};

#[track_caller]
fn check(script: &str, want: &str) {
    let local = Local::open();
    let mut out = String::new();
    for line in script.split(';').map(str::trim).filter(|line| !line.is_empty()) {
        let _ = writeln!(out, "{}", run(&local, line));
    }
    let want: String = want.lines().map(str::trim).filter(|line| !line.is_empty()).map(|l| format!("{l}\n")).collect();
    assert_eq!(out, want, "\nscript: {script}\ngot:\n{out}");
}

fn run(local: &Local, line: &str) -> String {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let number = |at: usize| rest.split(' ').nth(at).and_then(|n| n.parse().ok()).unwrap_or(0i64);
    let operation = match word {
        "get" => return get(local, rest),
        "scrub" => return scrub::run_now(local.engine(), false).map(|()| "scrubbed".to_owned()).expect("scrub"),
        "hash" => return hash(local, number(0)),
        "put" => Operation::Put(encode(&put(rest))),
        "del" => Operation::DeleteRange(encode(&delete(rest))),
        "txn" => Operation::Txn(encode(&txn(rest))),
        "compact" => Operation::Compact(number(0)),
        "grant" => Operation::LeaseGrant(LeaseGrant { id: number(0), ttl_seconds: number(1) }),
        "revoke" => Operation::LeaseRevoke(number(0)),
        "renew" => Operation::LeaseRenew(number(0)),
        "expire" => Operation::LeaseExpire(LeaseExpire { id: number(0), stamp: number(1).cast_unsigned() }),
        other => panic!("unknown command {other}"),
    };
    let (revision, outcome) = local.one(operation.clone());
    format!("r={revision} {}", show(&operation, outcome)).trim_end().to_owned()
}

fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

fn bytes(text: &str) -> Bytes {
    match text {
        "\\0" => Bytes::from_static(&[0]),
        text => Bytes::copy_from_slice(text.as_bytes()),
    }
}

fn put(rest: &str) -> PutRequest {
    let mut words = rest.split(' ');
    let mut request = PutRequest { key: bytes(words.next().unwrap_or_default()), ..PutRequest::default() };
    for word in words {
        match word.split_once('=') {
            Some(("lease", id)) => request.lease = id.parse().expect("lease"),
            None if word == "keep-value" => request.ignore_value = true,
            None if word == "keep-lease" => request.ignore_lease = true,
            None if word == "prev" => request.prev_kv = true,
            _ => request.value = bytes(word),
        }
    }
    request
}

fn delete(rest: &str) -> DeleteRangeRequest {
    let mut words = rest.split(' ');
    let key = bytes(words.next().unwrap_or_default());
    DeleteRangeRequest { key, range_end: words.next().map(bytes).unwrap_or_default(), prev_kv: false }
}

fn range_request(rest: &str) -> RangeRequest {
    let mut words = rest.split(' ');
    let mut request = RangeRequest { key: bytes(words.next().unwrap_or_default()), ..RangeRequest::default() };
    for word in words {
        match word.split_once('=') {
            Some(("limit", limit)) => request.limit = limit.parse().expect("limit"),
            Some(("order", order)) => request.sort_order = order.parse().expect("order"),
            Some(("by", target)) => request.sort_target = target.parse().expect("target"),
            Some(("min-mod", revision)) => request.min_mod_revision = revision.parse().expect("revision"),
            None if word == "count" => request.count_only = true,
            None if word == "keys" => request.keys_only = true,
            None if word.starts_with('@') => request.revision = word[1..].parse().expect("revision"),
            _ => request.range_end = bytes(word),
        }
    }
    request
}

/// `COMPARES ? OPS : OPS`, alternatives of `|` each; a nested transaction stands in parentheses.
fn txn(rest: &str) -> TxnRequest {
    let (compares, rest) = rest.split_once('?').expect("?");
    let (success, failure) = split_outside(rest, ':').expect(":");
    TxnRequest {
        compare: compares.split('|').map(str::trim).filter(|c| !c.is_empty()).map(compare).collect(),
        success: operations(success),
        failure: operations(failure),
    }
}

fn operations(text: &str) -> Vec<RequestOp> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.trim().is_empty() {
        let (first, after) = split_outside(rest, '|').unwrap_or((rest, ""));
        found.push(operation(first.trim()));
        rest = after;
    }
    found
}

fn split_outside(text: &str, separator: char) -> Option<(&str, &str)> {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            letter if letter == separator && depth == 0 => return Some((&text[..at], &text[at + 1..])),
            _ => (),
        }
    }
    None
}

fn operation(text: &str) -> RequestOp {
    let request = match text.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => Request::RequestTxn(txn(inner)),
        None => match text.split_once(' ') {
            Some(("put", rest)) => Request::RequestPut(put(rest)),
            Some(("del", rest)) => Request::RequestDeleteRange(delete(rest)),
            Some(("get", rest)) => Request::RequestRange(range_request(rest)),
            _ => panic!("unknown operation {text}"),
        },
    };
    RequestOp { request: Some(request) }
}

/// `version a = 0`, `value a != x`, with a range end after the key if there are five words.
fn compare(text: &str) -> Compare {
    let words: Vec<&str> = text.split(' ').collect();
    let (end, result, operand) = match words[2..] {
        [result, operand] => ("", result, operand),
        [end, result, operand] => (end, result, operand),
        _ => panic!("compare {text}"),
    };
    let number = || operand.parse().expect("operand");
    let (target, union) = match words[0] {
        "version" => (CompareTarget::Version, TargetUnion::Version(number())),
        "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number())),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number())),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number())),
        _ => (CompareTarget::Value, TargetUnion::Value(bytes(operand))),
    };
    let result = match result {
        "=" => CompareResult::Equal.into(),
        ">" => CompareResult::Greater.into(),
        "<" => CompareResult::Less.into(),
        "!=" => CompareResult::NotEqual.into(),
        _ => 9, // not one that is known
    };
    Compare { result, target: target.into(), key: bytes(words[1]), range_end: bytes(end), target_union: Some(union) }
}

fn get(local: &Local, rest: &str) -> String {
    let generation = local.engine().current();
    let view = generation.view().expect("view");
    let request = range_request(rest);
    match readable(&view, request.revision) {
        Ok(at) => show_range(&range::read(&view, &request, at).expect("range")),
        Err(error) => error.to_string(),
    }
}

fn hash(local: &Local, revision: i64) -> String {
    let generation = local.engine().current();
    hash::hash_kv(&generation.view().expect("view"), revision, |_| ControlFlow::Continue(())).expect("hash").to_string()
}

fn show_range(response: &RangeResponse) -> String {
    let kvs: Vec<String> = response.kvs.iter().map(show_kv).collect();
    let more = if response.more { " more" } else { "" };
    format!("{} n={}{more}", if kvs.is_empty() { "none".to_owned() } else { kvs.join(" ") }, response.count)
}

fn show_kv(kv: &KeyValue) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let lease = if kv.lease == 0 { String::new() } else { format!("!{}", kv.lease) };
    format!("{}={}({},{},{}){lease}", text(&kv.key), text(&kv.value), kv.create_revision, kv.mod_revision, kv.version)
}

fn show(operation: &Operation, outcome: Outcome) -> String {
    match outcome {
        Outcome::Failure(failure) => format!("{:?}", failure.reason()),
        Outcome::LeaseTtlSeconds(ttl) => format!("ttl={ttl}"),
        Outcome::Answer(raw) => match operation {
            Operation::Put(_) => {
                let answer = PutResponse::decode(raw).expect("answer");
                answer.prev_kv.map(|kv| format!("prev {}", show_kv(&kv))).unwrap_or_default()
            }
            Operation::DeleteRange(_) => {
                format!("deleted {}", DeleteRangeResponse::decode(raw).expect("answer").deleted)
            }
            Operation::Txn(_) => show_txn(&TxnResponse::decode(raw).expect("answer")),
            _ => String::new(),
        },
    }
}

fn show_txn(response: &TxnResponse) -> String {
    let mut out = if response.succeeded { "yes".to_owned() } else { "no".to_owned() };
    for one in &response.responses {
        let text = match &one.response {
            Some(Response::ResponseRange(range)) => {
                format!("{} @{}", show_range(range), range.header.as_ref().map_or(0, |header| header.revision))
            }
            Some(Response::ResponsePut(_)) => "put".to_owned(),
            Some(Response::ResponseDeleteRange(delete)) => format!("deleted {}", delete.deleted),
            Some(Response::ResponseTxn(nested)) => format!("({})", show_txn(nested)),
            None => "?".to_owned(),
        };
        let _ = write!(out, " [{text}]");
    }
    out
}

#[test]
fn an_empty_store_is_at_revision_one_and_writes_that_change_nothing_do_not_advance() {
    check(
        "get a; del a; del a z; txn ? get a :; put a 1; get a",
        "none n=0
         r=1 deleted 0
         r=1 deleted 0
         r=1 yes [none n=0 @1]
         r=2
         a=1(2,2,1) n=1",
    );
}

#[test]
fn delete_keeps_the_past_readable_and_a_new_put_begins_a_new_life() {
    check(
        "put a 1; put a 2 prev; del a; get a; get a @2; get a @3; get a @9; put a 3; get a",
        "r=2
         r=3 prev a=1(2,2,1)
         r=4 deleted 1
         none n=0
         a=1(2,2,1) n=1
         a=2(2,3,2) n=1
         etcdserver: mvcc: required revision is a future revision
         r=5
         a=3(5,5,1) n=1",
    );
}

#[test]
fn ranges_sort_limit_and_count_with_the_known_quirks() {
    check(
        "put c 1; put a 3; put b 2; get a z; get a z limit=2; get a z count limit=1; get a z keys limit=1;
         get a z order=2 limit=1; get a z by=4 limit=1; get a z by=4 order=1 limit=1; get a z min-mod=4;
         get z a; get \\0 \\0; get b \\0",
        "r=2
         r=3
         r=4
         a=3(3,3,1) b=2(4,4,1) c=1(2,2,1) n=3
         a=3(3,3,1) b=2(4,4,1) n=3 more
         none n=3
         a=(3,3,1) n=3 more
         c=1(2,2,1) n=3 more
         b=2(4,4,1) n=3 more
         c=1(2,2,1) n=3 more
         b=2(4,4,1) n=3
         none n=0
         a=3(3,3,1) b=2(4,4,1) c=1(2,2,1) n=3
         b=2(4,4,1) c=1(2,2,1) n=2",
    );
}

#[test]
fn keeping_value_or_lease_needs_an_existing_key() {
    check(
        "put a keep-value; grant 7 10; put a 1 lease=7; put a 2 keep-lease; put a keep-value; get a; put a 3 lease=8; get a",
        "r=1 KeyNotFound
         r=1
         r=2
         r=3
         r=4
         a=2(2,4,3) n=1
         r=4 LeaseNotFound
         a=2(2,4,3) n=1",
    );
}

#[test]
fn transactions_compare_before_they_write_and_nested_ones_see_the_state_before_everything() {
    check(
        "txn version a = 0 ? put a 1 | get a : get a; txn version a = 0 ? put a 2 : get a;
         txn ? put b 1 | (version b = 0 ? put c 1 : put d 1) :; get a z;
         txn value x != 1 ? put y 1 : ; txn mod a z > 1 ? get a : ; txn mod a z > 2 ? get a : ; txn mod x z < 1 ? get a :",
        "r=2 yes [put] [a=1(2,2,1) n=1 @2]
         r=2 no [a=1(2,2,1) n=1 @2]
         r=3 yes [put] [(yes [put])]
         a=1(2,2,1) b=1(3,3,1) c=1(3,3,1) n=3
         r=3 no
         r=3 yes [a=1(2,2,1) n=1 @3]
         r=3 no
         r=3 yes [a=1(2,2,1) n=1 @3]",
    );
}

#[test]
fn a_refused_transaction_writes_nothing_and_uses_no_revision() {
    check(
        "put a 1; txn ? put b 1 | get a @9 :; txn ? put b 1 | put c lease=5 :; txn ? put b 1 | get a @-2 :; get a z",
        "r=2
         r=2 FutureRevision
         r=2 LeaseNotFound
         r=2 Compacted
         a=1(2,2,1) n=1",
    );
}

#[test]
fn compaction_refuses_the_past_at_once_and_keeps_the_tombstone_at_its_revision() {
    check(
        "put a 1; put a 2; put b 1; del b; put c 1; compact 0; compact 9; compact 5; compact 5; get a @4; get a @5; get b @5;
         scrub; get a @5; get b @5; get a z; put b 2; get b; compact 7; scrub; get \\0 \\0; txn ? get a @6 :",
        "r=2
         r=3
         r=4
         r=5 deleted 1
         r=6
         r=6 Compacted
         r=6 FutureRevision
         r=6
         r=6 Compacted
         etcdserver: mvcc: required revision has been compacted
         a=2(2,3,2) n=1
         none n=0
         scrubbed
         a=2(2,3,2) n=1
         none n=0
         a=2(2,3,2) c=1(6,6,1) n=2
         r=7
         b=2(7,7,1) n=1
         r=7
         scrubbed
         a=2(2,3,2) b=2(7,7,1) c=1(6,6,1) n=3
         r=7 Compacted",
    );
}

#[test]
fn a_lease_takes_its_keys_with_it_in_one_revision_and_a_moved_key_stays() {
    check(
        "grant 7 10; grant 7 10; grant 8 20; put a 1 lease=7; put b 1 lease=7; put c 1 lease=7; put b 2 lease=8; put c 2;
         revoke 7; get a z; revoke 7; renew 8; renew 7; expire 8 2; get b; expire 8 3; get \\0 \\0",
        "r=1
         r=1 LeaseExists
         r=1
         r=2
         r=3
         r=4
         r=5
         r=6
         r=7
         b=2(3,5,2)!8 c=2(4,6,2) n=2
         r=7 LeaseNotFound
         r=7 ttl=20
         r=7 LeaseNotFound
         r=7 LeaseNotFound
         b=2(3,5,2)!8 n=1
         r=8
         c=2(4,6,2) n=1",
    );
}

#[test]
fn a_put_alone_is_refused_for_its_lease_first_and_in_a_transaction_for_its_key_and_before_any_range() {
    check(
        "put a keep-value lease=8; txn ? put a keep-value lease=8 :; txn ? get z @9 | put a keep-value :",
        "r=1 LeaseNotFound
         r=1 KeyNotFound
         r=1 KeyNotFound",
    );
}

#[test]
fn a_compare_by_an_unknown_relation_holds_but_for_the_value_of_a_missing_key() {
    check(
        "put a 1; txn version a unknown 5 ? get a :; txn value a unknown 5 ? get a :; txn value b unknown 5 ? get a :",
        "r=2
         r=2 yes [a=1(2,2,1) n=1 @2]
         r=2 yes [a=1(2,2,1) n=1 @2]
         r=2 no",
    );
}

#[test]
fn a_transaction_reads_at_minus_one_until_the_first_compaction() {
    check(
        "put a 1; txn ? get a @-1 :; txn ? get a @-2 :; put a 2; compact 2; txn ? get a @-1 :",
        "r=2
         r=2 yes [a=1(2,2,1) n=1 @2]
         r=2 Compacted
         r=3
         r=3
         r=3 Compacted",
    );
}

/// The hashes are those that etcd 3.5.30 gave for the same requests.
#[test]
fn the_hash_counts_what_a_compaction_at_its_revision_would_keep() {
    check(
        "hash -1; put a 1; put b 1; compact 3; put a 2; del b; hash -1; hash 4; hash 5; scrub; hash 5; del a; hash 6; compact 4; hash 5; hash 6",
        "1084519789
         r=2
         r=3
         r=3
         r=4
         r=5 deleted 1
         1084519789
         2393049859
         194725478
         scrubbed
         194725478
         r=6 deleted 1
         2747211595
         r=6
         194725478
         1952583866",
    );
}

#[test]
fn commands_of_one_entry_see_each_other_and_have_revisions_of_their_own() {
    let local = Local::open();
    let replies = local.apply(&[
        Operation::Put(encode(&put("a 1"))),
        Operation::Put(encode(&put("a 2"))),
        Operation::Txn(encode(&txn("version a = 2 ? get a z @2 | del a | get a z : "))),
        Operation::DeleteRange(encode(&delete("a"))),
        Operation::Put(encode(&put("a 3"))),
    ]);
    let revisions: Vec<i64> = replies.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(revisions, [2, 3, 4, 4, 5]);
    let Outcome::Answer(raw) = replies[2].1.clone() else { panic!("txn refused") };
    let shown = show_txn(&TxnResponse::decode(raw).unwrap());
    assert_eq!(shown, "yes [a=1(2,2,1) n=1 @3] [deleted 1] [none n=0 @4]");
    assert_eq!(run(&local, "get a"), "a=3(5,5,1) n=1");
}

#[test]
fn a_fenced_command_of_another_term_is_refused_and_a_malformed_one_too() {
    let local = Local::open();
    let put = |value: &str| Operation::Put(encode(&put(value)));
    let commands = [
        command(put("a 1"), Some(1)),
        command(put("a 2"), Some(2)),
        Bytes::from_static(&[0xff, 0xff]),
        Bytes::new(),
        command(Operation::Txn(Bytes::from_static(&[0x0a, 0x7f])), None),
    ];
    let shown: Vec<String> = local
        .log
        .entry(&commands)
        .into_iter()
        .map(read)
        .map(|(revision, outcome)| format!("{revision} {}", show(&put("a"), outcome)).trim_end().to_owned())
        .collect();
    assert_eq!(shown, ["2", "2 Fenced", "2 Malformed", "2 Malformed", "2 Malformed"]);
}
