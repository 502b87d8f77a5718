//! The format for people: keys and values as lines, everything else as short sentences.

use pintle_proto::authpb::Permission;
use pintle_proto::etcdserverpb as e;
use pintle_proto::etcdserverpb::response_op::Response;
use pintle_proto::mvccpb::KeyValue;

use super::super::go;
use super::{
    Answer, Keys, Printer, alarm_type, event_type, file_rows, hash_rows, hexed, lets, line, member_rows, status_rows,
};

pub fn text(answer: &Answer<'_>, how: Printer) -> Vec<u8> {
    let mut text = Vec::new();
    match answer {
        Answer::Get(answer) => answer.kvs.iter().for_each(|kv| pair(&mut text, kv, how)),
        Answer::Put(answer) => put(&mut text, answer, how),
        Answer::Del(answer) => del(&mut text, answer, how),
        Answer::Txn(answer) => txn(&mut text, answer, how),
        Answer::Watch(answer) => {
            for event in &answer.events {
                line(&mut text, event_type(event).as_bytes());
                event.prev_kv.iter().for_each(|kv| pair(&mut text, kv, how));
                pair(&mut text, &event.kv.clone().unwrap_or_default(), how);
            }
        }
        Answer::Grant(answer) => {
            let told = format!("lease {:016x} granted with TTL({}s)", answer.id, answer.ttl);
            line(&mut text, told.as_bytes());
        }
        Answer::KeepAlive(answer) => {
            let told = format!("lease {:016x} keepalived with TTL({})", answer.id, answer.ttl);
            line(&mut text, told.as_bytes());
        }
        Answer::TimeToLive(answer, keys) => time_to_live(&mut text, answer, *keys),
        Answer::Leases(answer) => {
            line(&mut text, format!("found {} leases", answer.leases.len()).as_bytes());
            answer.leases.iter().for_each(|lease| line(&mut text, format!("{:016x}", lease.id).as_bytes()));
        }
        Answer::MemberList(answer) => rows(&mut text, &member_rows(answer)),
        Answer::Health(list) => {
            for one in *list {
                if one.error.is_empty() {
                    let told =
                        format!("{} is healthy: successfully committed proposal: took = {}", one.endpoint, one.took);
                    line(&mut text, told.as_bytes());
                } else {
                    eprintln!("{} is unhealthy: failed to commit proposal: {}", one.endpoint, one.error);
                }
            }
        }
        Answer::Status(list) => rows(&mut text, &status_rows(list)),
        Answer::HashKv(list) => rows(&mut text, &hash_rows(list)),
        Answer::File(status) => rows(&mut text, &file_rows(status)),
        Answer::Moved(leader, target) => {
            line(&mut text, format!("Leadership transferred from {leader:x} to {target:x}").as_bytes());
        }
        Answer::Alarm(answer) => {
            for alarm in &answer.alarms {
                // The fields that are set, each followed by a space.
                let member =
                    if alarm.member_id == 0 { String::new() } else { format!("memberID:{} ", alarm.member_id) };
                let kind = if alarm.alarm == 0 { String::new() } else { format!("alarm:{} ", alarm_type(alarm.alarm)) };
                line(&mut text, format!("{member}{kind}").as_bytes());
            }
        }
        Answer::Role(name, answer) => role(&mut text, name, answer),
        Answer::Roles(answer) => answer.roles.iter().for_each(|role| line(&mut text, role.as_bytes())),
        Answer::Told { text: told, .. } => line(&mut text, told.as_bytes()),
    }
    text
}

fn rows(text: &mut Vec<u8>, rows: &[Vec<String>]) {
    rows.iter().for_each(|row| line(text, row.join(", ").as_bytes()));
}

fn pair(text: &mut Vec<u8>, kv: &KeyValue, how: Printer) {
    for (bytes, shown) in [(&kv.key, !how.value_only), (&kv.value, true)] {
        if shown && how.hex {
            line(text, &hexed(bytes));
        } else if shown {
            line(text, bytes);
        }
    }
}

fn put(text: &mut Vec<u8>, answer: &e::PutResponse, how: Printer) {
    line(text, b"OK");
    answer.prev_kv.iter().for_each(|kv| pair(text, kv, how));
}

fn del(text: &mut Vec<u8>, answer: &e::DeleteRangeResponse, how: Printer) {
    line(text, answer.deleted.to_string().as_bytes());
    answer.prev_kvs.iter().for_each(|kv| pair(text, kv, how));
}

fn txn(text: &mut Vec<u8>, answer: &e::TxnResponse, how: Printer) {
    line(text, if answer.succeeded { b"SUCCESS" } else { b"FAILURE" });
    for response in &answer.responses {
        line(text, b"");
        match &response.response {
            Some(Response::ResponseRange(answer)) => answer.kvs.iter().for_each(|kv| pair(text, kv, how)),
            Some(Response::ResponsePut(answer)) => put(text, answer, how),
            Some(Response::ResponseDeleteRange(answer)) => del(text, answer, how),
            Some(Response::ResponseTxn(answer)) => txn(text, answer, how),
            None => line(text, b"unexpected response"),
        }
    }
}

fn time_to_live(text: &mut Vec<u8>, answer: &e::LeaseTimeToLiveResponse, keys: Keys) {
    let id = answer.id;
    if answer.granted_ttl == 0 && answer.ttl == -1 {
        return line(text, format!("lease {id:016x} already expired").as_bytes());
    }
    let (granted, left) = (answer.granted_ttl, answer.ttl);
    text.extend_from_slice(format!("lease {id:016x} granted with TTL({granted}s), remaining({left}s)").as_bytes());
    if keys == Keys::Asked {
        text.extend_from_slice(b", attached keys([");
        text.extend_from_slice(&answer.keys.join(&b" "[..]));
        text.extend_from_slice(b"])");
    }
    line(text, b"");
}

fn role(text: &mut Vec<u8>, name: &str, answer: &e::AuthRoleGetResponse) {
    line(text, format!("Role {name}").as_bytes());
    for (heading, wanted) in [("KV Read:", (|p| lets(p).0) as fn(&Permission) -> bool), ("KV Write:", |p| lets(p).1)] {
        line(text, heading.as_bytes());
        answer.perm.iter().filter(|permission| wanted(permission)).for_each(|permission| range(text, permission));
    }
}

fn range(text: &mut Vec<u8>, permission: &Permission) {
    let (key, end) = (&permission.key, &permission.range_end);
    match &end[..] {
        [] => return line(text, &[b"\t", &key[..]].concat()),
        [0] => text.extend_from_slice(&[b"\t[", &key[..], b", <open ended>"].concat()),
        _ => text.extend_from_slice(&[b"\t[", &key[..], b", ", end, b")"].concat()),
    }
    if !key.is_empty() && go::prefix_end(key) == end[..] {
        text.extend_from_slice(&[b" (prefix ", &key[..], b")"].concat());
    }
    line(text, b"");
}
