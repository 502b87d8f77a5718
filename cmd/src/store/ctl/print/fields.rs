//! One line per field, `"Name" : value`, with text quoted.

use std::fmt::Write;

use pintle_proto::etcdserverpb as e;
use pintle_proto::etcdserverpb::response_op::Response;
use pintle_proto::mvccpb::KeyValue;

use super::super::go;
use super::{Answer, alarm_type, event_type, permission_type};

/// `None` where etcdctl does not print these fields.
pub fn text(answer: &Answer<'_>) -> Option<Vec<u8>> {
    let mut text = Fields(String::new());
    match answer {
        Answer::Get(answer) => text.get(answer),
        Answer::Put(answer) => text.put(answer),
        Answer::Del(answer) => text.del(answer),
        Answer::Txn(answer) => text.txn(answer),
        Answer::Watch(answer) => {
            text.header(&answer.header);
            for event in &answer.events {
                text.plain("Type", event_type(event));
                event.prev_kv.iter().for_each(|kv| text.pair("Prev", kv));
                text.pair("", &event.kv.clone().unwrap_or_default());
            }
        }
        Answer::Grant(answer) => text.lease(&answer.header, answer.id, answer.ttl),
        Answer::KeepAlive(answer) => text.lease(&answer.header, answer.id, answer.ttl),
        Answer::TimeToLive(answer, _) => {
            text.lease(&answer.header, answer.id, answer.ttl);
            text.plain("GrantedTTL", answer.granted_ttl);
            answer.keys.iter().for_each(|key| text.quoted("Key", key));
        }
        Answer::Leases(answer) => {
            text.header(&answer.header);
            answer.leases.iter().for_each(|lease| text.plain("ID", lease.id));
        }
        Answer::MemberList(answer) => text.members(answer),
        Answer::Health(list) => {
            for one in *list {
                text.quoted("Endpoint", one.endpoint.as_bytes());
                text.plain("Health", one.health);
                text.plain("Took", &one.took);
                text.plain("Error", &one.error);
                text.end();
            }
        }
        Answer::Status(list) => list.iter().for_each(|(endpoint, status)| text.status(endpoint, status)),
        Answer::HashKv(list) => {
            for (endpoint, hash) in *list {
                text.header(&hash.header);
                text.quoted("Endpoint", endpoint.as_bytes());
                text.plain("Hash", hash.hash);
                text.end();
            }
        }
        Answer::Alarm(answer) => {
            text.header(&answer.header);
            for alarm in &answer.alarms {
                text.plain("MemberID", alarm.member_id);
                text.plain("AlarmType", alarm_type(alarm.alarm));
                text.end();
            }
        }
        Answer::File(status) => {
            text.plain("Hash", status.hash);
            text.plain("Revision", status.revision);
            text.plain("Keys", status.keys);
            text.plain("Size", status.bytes);
        }
        Answer::Role(_, answer) => {
            text.header(&answer.header);
            for permission in &answer.perm {
                text.plain("PermType", format!(" {}", permission_type(permission.perm_type)));
                text.quoted("Key", &permission.key);
                text.quoted("RangeEnd", &permission.range_end);
            }
        }
        Answer::Roles(answer) => {
            text.header(&answer.header);
            let roles: String = answer.roles.iter().map(|role| format!(" {}", go::quote(role.as_bytes()))).collect();
            let _ = writeln!(text.0, "\"Roles\" :{roles}");
        }
        Answer::Told { whole, in_fields: true, .. } => text.header(&Some(whole.header)),
        Answer::Told { in_fields: false, .. } | Answer::Moved(..) => return None,
    }
    Some(text.0.into_bytes())
}

/// Writing to a string cannot fail.
struct Fields(String);

impl Fields {
    fn plain(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "\"{name}\" : {value}");
    }

    fn quoted(&mut self, name: &str, value: &[u8]) {
        self.plain(name, go::quote(value));
    }

    fn end(&mut self) {
        self.0.push('\n');
    }

    fn header(&mut self, header: &Option<e::ResponseHeader>) {
        let header = header.unwrap_or_default();
        self.plain("ClusterID", header.cluster_id);
        self.plain("MemberID", header.member_id);
        self.plain("Revision", header.revision);
        self.plain("RaftTerm", header.raft_term);
    }

    fn pair(&mut self, prefix: &str, kv: &KeyValue) {
        self.quoted(&format!("{prefix}Key"), &kv.key);
        self.plain(&format!("{prefix}CreateRevision"), kv.create_revision);
        self.plain(&format!("{prefix}ModRevision"), kv.mod_revision);
        self.plain(&format!("{prefix}Version"), kv.version);
        self.quoted(&format!("{prefix}Value"), &kv.value);
        self.plain(&format!("{prefix}Lease"), kv.lease);
    }

    fn get(&mut self, answer: &e::RangeResponse) {
        self.header(&answer.header);
        answer.kvs.iter().for_each(|kv| self.pair("", kv));
        self.plain("More", answer.more);
        self.plain("Count", answer.count);
    }

    fn put(&mut self, answer: &e::PutResponse) {
        self.header(&answer.header);
        answer.prev_kv.iter().for_each(|kv| self.pair("Prev", kv));
    }

    fn del(&mut self, answer: &e::DeleteRangeResponse) {
        self.header(&answer.header);
        self.plain("Deleted", answer.deleted);
        answer.prev_kvs.iter().for_each(|kv| self.pair("Prev", kv));
    }

    fn txn(&mut self, answer: &e::TxnResponse) {
        self.header(&answer.header);
        self.plain("Succeeded", answer.succeeded);
        for response in &answer.responses {
            match &response.response {
                Some(Response::ResponseRange(answer)) => self.get(answer),
                Some(Response::ResponsePut(answer)) => self.put(answer),
                Some(Response::ResponseDeleteRange(answer)) => self.del(answer),
                Some(Response::ResponseTxn(answer)) => self.txn(answer),
                None => self.quoted("Unknown", b""),
            }
        }
    }

    fn lease(&mut self, header: &Option<e::ResponseHeader>, id: i64, ttl: i64) {
        self.header(header);
        self.plain("ID", id);
        self.plain("TTL", ttl);
    }

    fn members(&mut self, answer: &e::MemberListResponse) {
        self.header(&answer.header);
        for member in &answer.members {
            self.plain("ID", member.id);
            self.quoted("Name", member.name.as_bytes());
            member.peer_ur_ls.iter().for_each(|url| self.quoted("PeerURL", url.as_bytes()));
            member.client_ur_ls.iter().for_each(|url| self.quoted("ClientURL", url.as_bytes()));
            self.plain("IsLearner", member.is_learner);
            self.end();
        }
    }

    fn status(&mut self, endpoint: &str, status: &e::StatusResponse) {
        self.header(&status.header);
        self.quoted("Version", status.version.as_bytes());
        self.plain("DBSize", status.db_size);
        self.plain("Leader", status.leader);
        self.plain("IsLearner", status.is_learner);
        self.plain("RaftIndex", status.raft_index);
        self.plain("RaftTerm", status.raft_term);
        self.plain("RaftAppliedIndex", status.raft_applied_index);
        self.plain("Errors", format!("[{}]", status.errors.join(" ")));
        self.quoted("Endpoint", endpoint.as_bytes());
        self.end();
    }
}
