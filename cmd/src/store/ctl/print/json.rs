//! JSON as etcdctl prints it: messages under the names of their protocol, unset fields left out, bytes in base64, enums as
//! numbers. Some answers have a form of their own, which scripts know.

use std::fmt::Write;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pintle_proto::etcdserverpb as e;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage, Value};

use super::super::rpc::Answer as Named;
use super::{Answer, Whole};

/// One line. `None` where etcdctl has no JSON.
pub fn text(answer: &Answer<'_>, hex: bool) -> Option<Vec<u8>> {
    let mut text = String::new();
    match answer {
        Answer::Get(answer) => named(&mut text, *answer),
        Answer::Put(answer) => named(&mut text, *answer),
        Answer::Del(answer) => named(&mut text, *answer),
        Answer::Txn(answer) => named(&mut text, *answer),
        Answer::Watch(answer) => watch(&mut text, answer),
        Answer::Grant(answer) => {
            let own = format!("\"ID\":{},\"TTL\":{},\"Error\":{}", answer.id, answer.ttl, quoted(&answer.error));
            lease(&mut text, &answer.header, &own);
        }
        Answer::KeepAlive(answer) => {
            lease(&mut text, &answer.header, &format!("\"ID\":{},\"TTL\":{}", answer.id, answer.ttl));
        }
        Answer::TimeToLive(answer, _) => time_to_live(&mut text, answer),
        Answer::Leases(answer) => {
            let ids: Vec<String> = answer.leases.iter().map(|lease| format!("{{\"id\":{}}}", lease.id)).collect();
            lease(&mut text, &answer.header, &format!("\"leases\":[{}]", ids.join(",")));
        }
        Answer::MemberList(answer) if hex => hex_members(&mut text, answer),
        Answer::MemberList(answer) => named(&mut text, *answer),
        Answer::Health(list) => {
            let one = |one: &super::Health| {
                let error =
                    if one.error.is_empty() { String::new() } else { format!(",\"error\":{}", quoted(&one.error)) };
                let (endpoint, took) = (quoted(&one.endpoint), quoted(&one.took));
                format!("{{\"endpoint\":{endpoint},\"health\":{},\"took\":{took}{error}}}", one.health)
            };
            array(&mut text, list.iter().map(one));
        }
        Answer::Status(list) => {
            array(&mut text, list.iter().map(|(endpoint, answer)| of_endpoint(endpoint, "Status", answer)))
        }
        Answer::HashKv(list) => {
            array(&mut text, list.iter().map(|(endpoint, answer)| of_endpoint(endpoint, "HashKV", answer)))
        }
        Answer::File(status) => {
            let (hash, revision, keys, bytes) = (status.hash, status.revision, status.keys, status.bytes);
            let _ =
                write!(text, "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{keys},\"totalSize\":{bytes}}}");
        }
        Answer::Alarm(answer) => named(&mut text, *answer),
        Answer::Role(_, answer) => named(&mut text, *answer),
        Answer::Roles(answer) => named(&mut text, *answer),
        Answer::Told { whole, .. } => any(&mut text, whole),
        Answer::Moved(..) => return None,
    }
    text.push('\n');
    Some(text.into_bytes())
}

/// Nothing is `null` here, as an empty list that was never made is there.
fn array(text: &mut String, items: impl ExactSizeIterator<Item = String>) {
    if items.len() == 0 {
        return text.push_str("null");
    }
    text.push('[');
    text.push_str(&items.collect::<Vec<_>>().join(","));
    text.push(']');
}

fn of_endpoint<A: Named>(endpoint: &str, name: &str, answer: &A) -> String {
    let mut text = format!("{{\"Endpoint\":{},\"{name}\":", quoted(endpoint));
    named(&mut text, answer);
    text.push('}');
    text
}

fn watch(text: &mut String, answer: &e::WatchResponse) {
    let events = e::WatchResponse { events: answer.events.clone(), ..e::WatchResponse::default() };
    let mut listed = String::new();
    named(&mut listed, &events);
    let listed = listed.strip_prefix("{\"events\":").and_then(|rest| rest.strip_suffix('}')).unwrap_or("[]");
    text.push_str("{\"Header\":");
    header(text, &answer.header);
    let (compacted, canceled, created) = (answer.compact_revision, answer.canceled, answer.created);
    let _ = write!(
        text,
        ",\"Events\":{listed},\"CompactRevision\":{compacted},\"Canceled\":{canceled},\"Created\":{created}}}"
    );
}

fn header(text: &mut String, header: &Option<e::ResponseHeader>) {
    let whole = Whole {
        name: "etcdserverpb.ResponseHeader",
        bytes: header.unwrap_or_default().encode_to_vec(),
        header: e::ResponseHeader::default(),
    };
    any(text, &whole);
}

/// Fields of a lease beside those of the header.
fn lease(text: &mut String, head: &Option<e::ResponseHeader>, own: &str) {
    header(text, head);
    text.pop();
    if !text.ends_with('{') {
        text.push(',');
    }
    text.push_str(own);
    text.push('}');
}

fn time_to_live(text: &mut String, answer: &e::LeaseTimeToLiveResponse) {
    let keys = if answer.keys.is_empty() {
        "null".to_owned()
    } else {
        let keys: Vec<String> = answer.keys.iter().map(|key| format!("\"{}\"", STANDARD.encode(key))).collect();
        format!("[{}]", keys.join(","))
    };
    let own =
        format!("\"id\":{},\"ttl\":{},\"granted-ttl\":{},\"keys\":{keys}", answer.id, answer.ttl, answer.granted_ttl);
    lease(text, &answer.header, &own);
}

fn hex_members(text: &mut String, answer: &e::MemberListResponse) {
    let header = answer.header.unwrap_or_default();
    let (cluster, member) = (header.cluster_id, header.member_id);
    let _ = write!(
        text,
        "{{\"header\":{{\"cluster_id\":\"{cluster:x}\",\"member_id\":\"{member:x}\",\"raft_term\":{}}}",
        header.raft_term
    );
    let list = |urls: &[String]| match urls {
        [] => "null".to_owned(),
        urls => format!("[{}]", urls.iter().map(|url| quoted(url)).collect::<Vec<_>>().join(",")),
    };
    let one = |member: &e::Member| {
        let (peers, clients) = (list(&member.peer_ur_ls), list(&member.client_ur_ls));
        let name = quoted(&member.name);
        format!("{{\"ID\":\"{:x}\",\"name\":{name},\"peerURLs\":{peers},\"clientURLS\":{clients}}}", member.id)
    };
    if !answer.members.is_empty() {
        text.push_str(",\"members\":");
        array(text, answer.members.iter().map(one));
    }
    text.push('}');
}

fn named<A: Named>(text: &mut String, answer: &A) {
    any(text, &Whole::of(answer));
}

fn any(text: &mut String, whole: &Whole) {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    let pool =
        POOL.get_or_init(|| DescriptorPool::decode(pintle_proto::ETCD_DESCRIPTORS).expect("descriptors of the build"));
    let descriptor = pool.get_message_by_name(whole.name).expect("answers are named as in the protocol");
    let decoded = DynamicMessage::decode(descriptor, &whole.bytes[..]).expect("it was encoded here");
    message(text, &decoded);
}

fn message(text: &mut String, message: &DynamicMessage) {
    text.push('{');
    for field in message.descriptor().fields().filter(|field| message.has_field(field)) {
        if !text.ends_with('{') {
            text.push(',');
        }
        let oneof = field.containing_oneof().map(|oneof| capitalized(oneof.name()));
        if let Some(oneof) = &oneof {
            let _ = write!(text, "\"{oneof}\":{{");
        }
        let _ = write!(text, "\"{}\":", field.name());
        value(text, &message.get_field(&field));
        if oneof.is_some() {
            text.push('}');
        }
    }
    text.push('}');
}

fn value(text: &mut String, value: &Value) {
    match value {
        Value::Bool(value) => push(text, value),
        Value::I32(value) | Value::EnumNumber(value) => push(text, value),
        Value::I64(value) => push(text, value),
        Value::U32(value) => push(text, value),
        Value::U64(value) => push(text, value),
        Value::F32(value) => push(text, value),
        Value::F64(value) => push(text, value),
        Value::String(value) => text.push_str(&quoted(value)),
        Value::Bytes(value) => push(text, format_args!("\"{}\"", STANDARD.encode(value))),
        Value::Message(value) => message(text, value),
        Value::List(list) => {
            text.push('[');
            for (at, item) in list.iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                self::value(text, item);
            }
            text.push(']');
        }
        // None of etcd's messages has one.
        Value::Map(_) => text.push_str("{}"),
    }
}

fn push(text: &mut String, value: impl std::fmt::Display) {
    let _ = write!(text, "{value}");
}

fn capitalized(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A string of JSON that is also safe within HTML, as Go writes it.
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                push(&mut text, format_args!("\\u{:04x}", u32::from(c)))
            }
            _ => text.push(c),
        }
    }
    text.push('"');
    text
}
