//! What a write touches, for the audit log: keys and ranges, of values and passwords nothing but that they are there.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{
    AlarmType, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest,
    AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    RequestOp, TxnRequest, TxnResponse,
};
use pintle_proto::store_v1::auth_change::Change;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::reply::Outcome;
use pintle_proto::store_v1::{PrefixQuota, QuotaChange, QuotaName, UserQuota, quota, quota_change, quota_name};
use prost::Message;
use serde_json::{Map, Value, json};

use crate::consensus::MemberChange;
use crate::limits;

/// A write as the log shows it.
#[derive(Debug)]
pub(crate) struct Description {
    pub method: Cow<'static, str>,
    pub what: Map<String, Value>,
}

impl Description {
    /// A call that was refused before anybody looked what it is about.
    pub fn of_call(method: &str) -> Self {
        Self { method: method.to_owned().into(), what: Map::new() }
    }

    /// What the answer says beside its revision.
    pub fn add_outcome(&mut self, outcome: Option<&Outcome>) {
        let (name, value) = match (&*self.method, outcome) {
            ("Txn", Some(Outcome::Answer(raw))) => {
                ("succeeded", TxnResponse::decode(raw.clone()).is_ok_and(|answer| answer.succeeded).into())
            }
            ("DeleteRange", Some(Outcome::Answer(raw))) => {
                ("deleted", DeleteRangeResponse::decode(raw.clone()).map_or(0, |answer| answer.deleted).into())
            }
            _ => return,
        };
        self.what.insert(name.to_owned(), value);
    }
}

fn described(method: &'static str, what: Value) -> Option<Description> {
    let what = if let Value::Object(what) = what { what } else { Map::new() };
    Some(Description { method: method.into(), what })
}

/// `None` for what members do themselves, and for renewals of leases, which change nothing a reader could see.
pub(crate) fn describe(operation: &Operation) -> Option<Description> {
    match operation {
        Operation::Put(raw) => {
            described("Put", json!({ "writes": [put(&PutRequest::decode(raw.clone()).unwrap_or_default())] }))
        }
        Operation::DeleteRange(raw) => {
            let request = DeleteRangeRequest::decode(raw.clone()).unwrap_or_default();
            described("DeleteRange", json!({ "writes": [delete(&request)] }))
        }
        Operation::Txn(raw) => {
            let mut room = limits::AUDIT_WRITES;
            described("Txn", txn(&TxnRequest::decode(raw.clone()).unwrap_or_default(), &mut room))
        }
        Operation::Compact(revision) => described("Compact", json!({ "compact_revision": revision })),
        Operation::LeaseGrant(grant) => {
            described("LeaseGrant", json!({ "lease": lease(grant.id), "ttl_seconds": grant.ttl_seconds }))
        }
        Operation::LeaseRevoke(id) => described("LeaseRevoke", json!({ "lease": lease(*id) })),
        Operation::SetAlarm(set) => {
            let alarm = set.alarm.unwrap_or_default();
            let kind = AlarmType::try_from(alarm.kind).unwrap_or_default().as_str_name();
            described("Alarm", json!({ "member": hex(alarm.member), "alarm": kind, "active": set.active }))
        }
        Operation::Auth(change) => auth(change.change.as_ref()?),
        Operation::Quota(change) => quota(change),
        Operation::LeaseRenew(_)
        | Operation::LeaseExpire(_)
        | Operation::Publish(_)
        | Operation::ExpectVoter(_)
        | Operation::QuotaCount(_) => None,
    }
}

/// A change of who the members are, or which of them leads.
pub(crate) fn describe_member(change: &MemberChange) -> Option<Description> {
    match change {
        MemberChange::Add { id, peer_addr } => {
            described("MemberAdd", json!({ "member": hex(*id), "address": peer_addr }))
        }
        MemberChange::Move { id, peer_addr } => {
            described("MemberUpdate", json!({ "member": hex(*id), "address": peer_addr }))
        }
        MemberChange::Promote(id) => described("MemberPromote", json!({ "member": hex(*id) })),
        MemberChange::Remove(id) => described("MemberRemove", json!({ "member": hex(*id) })),
        MemberChange::MoveLeader(id) => described("MoveLeader", json!({ "member": hex(*id) })),
    }
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

fn lease(id: i64) -> String {
    format!("{id:016x}")
}

/// A key as text, or in base64 under another name; of a long one the beginning.
fn insert_key(into: &mut Map<String, Value>, name: &str, key: &[u8]) {
    let shown = &key[..key.len().min(limits::AUDIT_KEY_BYTES)];
    let shown = match std::str::from_utf8(shown) {
        // Cut within a character.
        Err(error) if key.len() > shown.len() && error.error_len().is_none() => &shown[..error.valid_up_to()],
        _ => shown,
    };
    match std::str::from_utf8(shown) {
        Ok(text) => into.insert(name.to_owned(), text.into()),
        Err(_) => into.insert(format!("{name}_base64"), STANDARD.encode(shown).into()),
    };
    if key.len() > shown.len() {
        into.insert(format!("{name}_bytes"), key.len().into());
    }
}

fn range(key: &[u8], range_end: &[u8]) -> Map<String, Value> {
    let mut what = Map::new();
    insert_key(&mut what, "key", key);
    match range_end {
        [] => (),
        [0] => drop(what.insert("from_key".to_owned(), true.into())),
        end => insert_key(&mut what, "range_end", end),
    }
    what
}

fn put(request: &PutRequest) -> Value {
    let mut what = range(&request.key, &[]);
    match request.ignore_value {
        true => what.insert("keeps_value".to_owned(), true.into()),
        false => what.insert("value_bytes".to_owned(), request.value.len().into()),
    };
    if request.lease != 0 {
        what.insert("lease".to_owned(), lease(request.lease).into());
    }
    json!({ "put": what })
}

fn delete(request: &DeleteRangeRequest) -> Value {
    json!({ "delete": range(&request.key, &request.range_end) })
}

/// The writes on both branches; which one was taken is known from the answer. Beyond `room` they are only counted.
fn txn(request: &TxnRequest, room: &mut usize) -> Value {
    let mut branch = |operations: &[RequestOp]| -> Vec<Value> {
        let (mut shown, mut more) = (Vec::new(), 0);
        for operation in operations {
            let write = match &operation.request {
                Some(Request::RequestRange(_)) | None => continue,
                Some(_) if *room == 0 => {
                    more += 1;
                    continue;
                }
                Some(Request::RequestPut(request)) => put(request),
                Some(Request::RequestDeleteRange(request)) => delete(request),
                Some(Request::RequestTxn(nested)) => json!({ "txn": txn(nested, room) }),
            };
            *room = room.saturating_sub(1);
            shown.push(write);
        }
        if more > 0 {
            shown.push(json!({ "more": more }));
        }
        shown
    };
    let success = branch(&request.success);
    json!({ "success": success, "failure": branch(&request.failure) })
}

fn auth(change: &Change) -> Option<Description> {
    /// What a request names; of one that cannot be read, nothing.
    fn named<Q: Message + Default>(raw: &Bytes, what: impl FnOnce(Q) -> Value) -> Value {
        Q::decode(raw.clone()).map(what).unwrap_or_default()
    }
    match change {
        Change::Enable(_) => described("AuthEnable", Value::Null),
        Change::Disable(_) => described("AuthDisable", Value::Null),
        Change::UserAdd(raw) => described("UserAdd", named(raw, |q: AuthUserAddRequest| json!({ "name": q.name }))),
        Change::UserDelete(raw) => {
            described("UserDelete", named(raw, |q: AuthUserDeleteRequest| json!({ "name": q.name })))
        }
        Change::UserChangePassword(raw) => {
            described("UserChangePassword", named(raw, |q: AuthUserChangePasswordRequest| json!({ "name": q.name })))
        }
        Change::UserGrantRole(raw) => {
            let what = |q: AuthUserGrantRoleRequest| json!({ "name": q.user, "role": q.role });
            described("UserGrantRole", named(raw, what))
        }
        Change::UserRevokeRole(raw) => {
            let what = |q: AuthUserRevokeRoleRequest| json!({ "name": q.name, "role": q.role });
            described("UserRevokeRole", named(raw, what))
        }
        Change::RoleAdd(raw) => described("RoleAdd", named(raw, |q: AuthRoleAddRequest| json!({ "role": q.name }))),
        Change::RoleDelete(raw) => {
            described("RoleDelete", named(raw, |q: AuthRoleDeleteRequest| json!({ "role": q.role })))
        }
        Change::RoleGrantPermission(raw) => {
            let what = |q: AuthRoleGrantPermissionRequest| {
                let permission = q.perm.unwrap_or_default();
                let kind = permission.perm_type().as_str_name();
                let keys = range(&permission.key, &permission.range_end);
                json!({ "role": q.name, "permission": kind, "keys": keys })
            };
            described("RoleGrantPermission", named(raw, what))
        }
        Change::RoleRevokePermission(raw) => {
            let what =
                |q: AuthRoleRevokePermissionRequest| json!({ "role": q.role, "keys": range(&q.key, &q.range_end) });
            described("RoleRevokePermission", named(raw, what))
        }
    }
}

fn quota(change: &QuotaChange) -> Option<Description> {
    match change.change.as_ref()? {
        quota_change::Change::Set(set) => match set.of.as_ref()? {
            quota::Of::Prefix(PrefixQuota { prefix, keys, bytes }) => {
                described("QuotaSet", json!({ "prefix": range(prefix, &[]), "keys": keys, "bytes": bytes }))
            }
            quota::Of::User(UserQuota { user, requests, bytes }) => {
                described("QuotaSet", json!({ "name": user, "requests": requests, "bytes": bytes }))
            }
        },
        quota_change::Change::Remove(QuotaName { of }) => match of.as_ref()? {
            quota_name::Of::Prefix(prefix) => described("QuotaRemove", json!({ "prefix": range(prefix, &[]) })),
            quota_name::Of::User(user) => described("QuotaRemove", json!({ "name": user })),
        },
    }
}

#[cfg(test)]
mod tests {
    use pintle_proto::store_v1::AuthChange;

    use super::*;

    #[track_caller]
    fn check(operation: Operation, method: &str, want: Value) {
        let found = describe(&operation).expect("it is told");
        assert_eq!((&*found.method, Value::Object(found.what)), (method, want));
    }

    fn encoded(message: &impl Message) -> Bytes {
        message.encode_to_vec().into()
    }

    fn write(key: &'static [u8]) -> PutRequest {
        PutRequest { key: key.into(), value: Bytes::from_static(b"secret"), ..PutRequest::default() }
    }

    #[test]
    fn writes_are_told_by_key_and_length_and_never_by_value() {
        let put = PutRequest { lease: 0x1f, ..write(b"a") };
        let want = json!({"writes": [{"put": {"key": "a", "value_bytes": 6, "lease": "000000000000001f"}}]});
        check(Operation::Put(encoded(&put)), "Put", want);
        let binary = json!({"writes": [{"put": {"key_base64": "/wA=", "value_bytes": 6}}]});
        check(Operation::Put(encoded(&write(&[0xff, 0]))), "Put", binary);
        let delete = DeleteRangeRequest { key: "a".into(), range_end: "b".into(), ..DeleteRangeRequest::default() };
        let want = json!({"writes": [{"delete": {"key": "a", "range_end": "b"}}]});
        check(Operation::DeleteRange(encoded(&delete)), "DeleteRange", want);
        let all = DeleteRangeRequest { key: "a".into(), range_end: Bytes::from_static(&[0]), ..delete };
        let want = json!({"writes": [{"delete": {"key": "a", "from_key": true}}]});
        check(Operation::DeleteRange(encoded(&all)), "DeleteRange", want);
    }

    #[test]
    fn both_branches_of_a_transaction_are_told_and_long_ones_are_cut() {
        let op = |request| RequestOp { request: Some(request) };
        let nested = TxnRequest { success: vec![op(Request::RequestPut(write(b"n")))], ..TxnRequest::default() };
        let request = TxnRequest {
            success: vec![op(Request::RequestPut(write(b"s"))), op(Request::RequestTxn(nested))],
            failure: vec![op(Request::RequestRange(Default::default())), op(Request::RequestPut(write(b"f")))],
            ..TxnRequest::default()
        };
        let put = |key: &str| json!({"put": {"key": key, "value_bytes": 6}});
        let nested = json!({"txn": {"success": [put("n")], "failure": []}});
        check(Operation::Txn(encoded(&request)), "Txn", json!({"success": [put("s"), nested], "failure": [put("f")]}));

        let many = vec![op(Request::RequestPut(write(b"k"))); limits::AUDIT_WRITES + 5];
        let long = TxnRequest { success: many, ..TxnRequest::default() };
        let told = describe(&Operation::Txn(encoded(&long))).unwrap().what;
        let told = told["success"].as_array().unwrap();
        assert_eq!((told.len(), &told[limits::AUDIT_WRITES]), (limits::AUDIT_WRITES + 1, &json!({"more": 5})));
    }

    #[test]
    fn long_keys_are_cut_at_a_character() {
        let key = format!("k{}", "é".repeat(limits::AUDIT_KEY_BYTES));
        let mut what = Map::new();
        insert_key(&mut what, "key", key.as_bytes());
        let shown = what["key"].as_str().unwrap();
        assert!(key.starts_with(shown) && shown.len() == limits::AUDIT_KEY_BYTES - 1, "{}", shown.len());
        assert_eq!(what["key_bytes"], key.len());
    }

    #[test]
    fn no_password_hash_or_key_is_told() {
        let change = |change| Operation::Auth(AuthChange { change: Some(change) });
        let user = AuthUserAddRequest { name: "u".into(), hashed_password: "secret".into(), ..Default::default() };
        check(change(Change::UserAdd(encoded(&user))), "UserAdd", json!({"name": "u"}));
        let user =
            AuthUserChangePasswordRequest { name: "u".into(), hashed_password: "secret".into(), ..Default::default() };
        check(change(Change::UserChangePassword(encoded(&user))), "UserChangePassword", json!({"name": "u"}));
        check(change(Change::Enable("secret".into())), "AuthEnable", json!({}));
        assert!(describe(&Operation::LeaseRenew(1)).is_none());
    }
}
