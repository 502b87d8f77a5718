//! Users, roles and permissions over a real connection, as a script of calls of the JSON gateway. What each call is answered was
//! seen at an etcd 3.5.30; where this store differs, the row says why.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pintle_base::clock;
use pintle_proto::etcdserverpb::watch_client::WatchClient;
use pintle_proto::etcdserverpb::watch_request::RequestUnion;
use pintle_proto::etcdserverpb::{
    AuthRoleDeleteRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, PutRequest, RangeRequest,
    WatchCreateRequest, WatchRequest,
};
use pintle_proto::store_v1::{Caller, Quota, UserQuota, quota};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::front::served_with;
use crate::auth::{Actor, TokenOptions};
use crate::error::StoreError;
use crate::store::StoreOptions;

/// Cheap hashes: what is tested is not bcrypt.
fn options() -> StoreOptions {
    StoreOptions { bcrypt_cost: 4, ..StoreOptions::default() }
}

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

/// Posts to the gateway; the answer without its header, or the refusal's text.
async fn post(address: SocketAddr, token: &str, path: &str, body: &Value) -> Result<Value, String> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    let authorization = if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
    let length = body.len();
    let head = format!("POST /v3/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}");
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{path}: {answer}"));
    if head.contains(" 200 ") {
        body.as_object_mut().unwrap().remove("header");
        return Ok(body);
    }
    Err(body["message"].as_str().unwrap().to_owned())
}

async fn login(address: SocketAddr, name: &str, password: &str) -> String {
    let answer = post(address, "", "auth/authenticate", &json!({"name": name, "password": password})).await.unwrap();
    answer["token"].as_str().unwrap().to_owned()
}

/// What a row expects: an empty text is an answer, whichever.
type Row = (&'static str, Value, &'static str);

async fn run(address: SocketAddr, token: &str, who: &str, rows: &[Row]) {
    for (path, body, refusal) in rows {
        let answer = post(address, token, path, body).await;
        let text = answer.as_ref().err().map_or("", String::as_str);
        assert_eq!(text, *refusal, "{who}: {path} {body}: {answer:?}");
    }
}

const EMPTY: &str = "etcdserver: user name is empty";
const DENIED: &str = "etcdserver: permission denied";
const INVALID: &str = "etcdserver: invalid auth token";
const NO_USER: &str = "etcdserver: user name not found";
const NO_ROLE: &str = "etcdserver: role name not found";
const BAD_CHANGE: &str = "etcdserver: invalid auth management";

async fn revision(address: SocketAddr, token: &str) -> String {
    post(address, token, "auth/status", &json!({})).await.unwrap()["authRevision"].as_str().unwrap().to_owned()
}

/// Users `root` and `u`, who may read `[a, c)` and `c`; authentication is on.
async fn guarded() -> (super::local::Local, SocketAddr) {
    let (local, address, _) = served_with(options()).await;
    let setup = [
        ("auth/user/add", json!({"name": "root", "password": "r"}), ""),
        ("auth/user/grant", json!({"user": "root", "role": "root"}), ""),
        ("auth/user/add", json!({"name": "u", "password": "p"}), ""),
        ("auth/role/add", json!({"name": "r1"}), ""),
        ("auth/user/grant", json!({"user": "u", "role": "r1"}), ""),
        ("auth/role/grant", json!({"name": "r1", "perm": {"key": b64("a"), "range_end": b64("c")}}), ""),
        ("auth/role/grant", json!({"name": "r1", "perm": {"key": b64("c")}}), ""),
        ("auth/enable", json!({}), ""),
    ];
    run(address, "", "setup", &setup).await;
    (local, address)
}

#[tokio::test]
async fn users_and_roles_change_as_in_etcd() {
    let (_local, address, _) = served_with(options()).await;
    let perm = |kind: &str, key: &str, end: &str| json!({"name": "r1", "perm": {"permType": kind, "key": b64(key), "range_end": b64(end)}});
    let revoked = |key: &str, end: &str| json!({"role": "r1", "key": b64(key), "range_end": b64(end)});
    let rows: &[Row] = &[
        ("auth/enable", json!({}), "etcdserver: root user does not exist"),
        ("auth/disable", json!({}), ""),
        ("auth/authenticate", json!({"name": "x"}), "etcdserver: authentication is not enabled"),
        ("auth/user/add", json!({"password": "x"}), EMPTY),
        ("auth/user/add", json!({"name": "e"}), ""),
        ("auth/user/add", json!({"name": "root", "password": "r"}), ""),
        ("auth/user/add", json!({"name": "root", "password": "r"}), "etcdserver: user name already exists"),
        ("auth/enable", json!({}), "etcdserver: root user does not have root role"),
        ("auth/user/grant", json!({"user": "root", "role": "none"}), NO_ROLE),
        ("auth/user/grant", json!({"user": "nobody", "role": "root"}), NO_USER),
        ("auth/user/grant", json!({"user": "root", "role": "root"}), ""),
        ("auth/user/grant", json!({"user": "root", "role": "root"}), ""),
        ("auth/role/add", json!({"name": "r1"}), ""),
        ("auth/role/add", json!({}), "etcdserver: role name is empty"),
        ("auth/role/add", json!({"name": "r1"}), "etcdserver: role name already exists"),
        ("auth/role/add", json!({"name": "root"}), ""),
    ];
    run(address, "", "first", rows).await;
    assert_eq!(revision(address, "").await, "6");
    let rows: &[Row] = &[
        ("auth/role/get", json!({"role": "root"}), ""),
        ("auth/role/get", json!({"role": "nope"}), NO_ROLE),
        ("auth/role/grant", json!({"name": "r1"}), "etcdserver: permission not given"),
        ("auth/role/grant", perm("READWRITE", "a", "c"), ""),
        ("auth/role/grant", json!({"name": "r1", "perm": {"key": b64("c")}}), ""),
        ("auth/role/grant", perm("READ", "a", "c"), ""),
        ("auth/role/grant", perm("READ", "a", "c"), ""),
        ("auth/role/grant", perm("READ", "c", "a"), BAD_CHANGE),
        ("auth/role/grant", perm("READ", "", "a"), BAD_CHANGE),
        ("auth/role/grant", perm("READ", "x", "\0"), ""),
        ("auth/role/grant", perm("WRITE", "\0", "\0"), ""),
        ("auth/role/grant", json!({"name": "nope", "perm": {"key": b64("a")}}), NO_ROLE),
    ];
    run(address, "", "permissions", rows).await;
    let role = post(address, "", "auth/role/get", &json!({"role": "r1"})).await.unwrap();
    let ends = |key: &str, end: &str| json!({"key": b64(key), "range_end": b64(end)});
    let mut write = ends("\0", "\0");
    write["permType"] = json!("WRITE");
    assert_eq!(role, json!({"perm": [write, ends("a", "c"), {"key": b64("c")}, ends("x", "\0")]}));
    let rows: &[Row] = &[
        ("auth/role/revoke", revoked("x", "\0"), ""),
        ("auth/role/revoke", revoked("x", "\0"), "etcdserver: permission is not granted to the role"),
        ("auth/role/revoke", json!({"role": "nope", "key": b64("x")}), NO_ROLE),
        ("auth/role/revoke", revoked("\0", "\0"), ""),
        ("auth/user/add", json!({"name": "u", "password": "p"}), ""),
        ("auth/user/add", json!({"name": "np", "options": {"no_password": true}}), ""),
        ("auth/user/add", json!({"name": "np2", "password": "x", "options": {"no_password": true}}), ""),
        ("auth/user/get", json!({"name": "zz"}), NO_USER),
        ("auth/user/grant", json!({"user": "u", "role": "r1"}), ""),
        ("auth/user/revoke", json!({"name": "u", "role": "zz"}), "etcdserver: role is not granted to the user"),
        ("auth/user/revoke", json!({"name": "zz", "role": "zz"}), NO_USER),
        ("auth/user/changepw", json!({"name": "zz", "password": "q"}), NO_USER),
        ("auth/user/changepw", json!({"name": "u"}), ""),
        ("auth/user/changepw", json!({"name": "u", "password": "p"}), ""),
        ("auth/user/changepw", json!({"name": "np2", "password": "p"}), ""),
        ("auth/user/delete", json!({"name": "zz"}), NO_USER),
        ("auth/role/delete", json!({"role": "zz"}), NO_ROLE),
        (
            "auth/user/add",
            json!({"name": "long", "password": "x".repeat(80)}),
            "bcrypt: password length exceeds 72 bytes",
        ),
    ];
    run(address, "", "users", rows).await;
    assert_eq!(revision(address, "").await, "21");
    let users = post(address, "", "auth/user/list", &json!({})).await.unwrap();
    assert_eq!(users, json!({"users": ["e", "np", "np2", "root", "u"]}));
    let login_failed = "etcdserver: authentication failed, invalid user ID or password";
    let no_password = "auth: authentication failed, password was given for no password user";
    let rows: &[Row] = &[
        ("auth/enable", json!({}), ""),
        ("auth/enable", json!({}), EMPTY),
        ("auth/status", json!({}), EMPTY),
        ("auth/authenticate", json!({"name": "root", "password": "bad"}), login_failed),
        ("auth/authenticate", json!({"name": "zz", "password": "bad"}), login_failed),
        ("auth/authenticate", json!({"password": "bad"}), login_failed),
        ("auth/authenticate", json!({"name": "np", "password": "x"}), no_password),
        ("auth/authenticate", json!({"name": "np2", "password": "p"}), no_password),
        ("auth/authenticate", json!({"name": "e"}), ""),
    ];
    run(address, "", "logins", rows).await;
    let root = login(address, "root", "r").await;
    let rows: &[Row] = &[
        ("auth/enable", json!({}), ""),
        ("auth/user/delete", json!({"name": "root"}), BAD_CHANGE),
        ("auth/role/delete", json!({"role": "root"}), BAD_CHANGE),
        ("auth/user/revoke", json!({"name": "root", "role": "root"}), BAD_CHANGE),
        ("auth/role/delete", json!({"role": "r1"}), ""),
    ];
    run(address, &root, "root", rows).await;
    let user = post(address, &root, "auth/user/get", &json!({"name": "u"})).await.unwrap();
    assert_eq!(user, json!({}), "a role that is gone is nobody's");
    run(address, &root, "root", &[("auth/disable", json!({}), "")]).await;
    assert_eq!(revision(address, "not a token").await, "23");
    run(address, "", "again", &[("auth/enable", json!({}), ""), ("auth/status", json!({}), EMPTY)]).await;
    run(address, &root, "before", &[("auth/status", json!({}), INVALID)]).await;
}

/// One call of every kind, and what `anonymous`, somebody with a bad token, and the user `u` are told; `root` is told nothing bad.
fn calls() -> Vec<(&'static str, Value, [&'static str; 3])> {
    let key = |key: &str| json!({"key": b64(key)});
    let span = |key: &str, end: &str| json!({"key": b64(key), "range_end": b64(end)});
    let read = [EMPTY, INVALID, ""];
    let denied = [EMPTY, INVALID, DENIED];
    let put = |name: &str| json!({"request_put": {"key": b64(name), "value": b64("1")}});
    vec![
        ("kv/range", key("a"), read),
        ("kv/range", key("c"), read),
        ("kv/range", span("a", "c"), read),
        ("kv/range", span("a", "c\0"), read),
        ("kv/range", span("a", "d"), denied),
        ("kv/range", span("z", "a"), denied),
        ("kv/range", span("a", "\0"), denied),
        ("kv/put", key("a"), denied),
        ("kv/deleterange", key("a"), denied),
        ("kv/compaction", json!({"revision": "1"}), denied),
        // Nothing but the revision: anybody may have it.
        ("kv/txn", json!({}), ["", INVALID, ""]),
        ("kv/txn", json!({"failure": [{"request_txn": {}}]}), ["", INVALID, ""]),
        ("kv/txn", json!({"success": [{"request_range": key("a")}]}), read),
        ("kv/txn", json!({"success": [{"request_range": key("z")}]}), denied),
        ("kv/txn", json!({"compare": [{"key": b64("z"), "target": "VERSION", "version": "0"}]}), denied),
        ("kv/txn", json!({"failure": [{"request_txn": {"failure": [put("z")]}}]}), denied),
        ("lease/grant", json!({"TTL": "100", "ID": "77"}), read),
        ("lease/timetolive", json!({"ID": "77", "keys": true}), read),
        ("lease/leases", json!({}), read),
        ("lease/revoke", json!({"ID": "77"}), read),
        ("cluster/member/list", json!({}), read),
        ("maintenance/alarm", json!({}), read),
        ("maintenance/alarm", json!({"action": "DEACTIVATE", "alarm": "NOSPACE"}), denied),
        ("maintenance/status", json!({}), denied),
        // etcd answers these three with the code Unknown and texts of their own, which no client logs in again for.
        ("maintenance/hash", json!({}), denied),
        ("maintenance/hashkv", json!({}), denied),
        ("maintenance/defragment", json!({}), denied),
        ("auth/user/get", json!({"name": "u"}), read),
        ("auth/user/get", json!({"name": "root"}), denied),
        ("auth/role/get", json!({"role": "r1"}), read),
        ("auth/user/list", json!({}), denied),
        ("auth/role/list", json!({}), denied),
        ("auth/role/add", json!({"name": "r2"}), denied),
        ("auth/enable", json!({}), denied),
        ("auth/status", json!({}), denied),
    ]
}

#[tokio::test]
async fn every_call_is_judged_by_who_makes_it() {
    let (_local, address) = guarded().await;
    let (root, u) = (login(address, "root", "r").await, login(address, "u", "p").await);
    for (at, (who, token)) in [("nobody", ""), ("forger", "abcdefghijklmnop.9"), ("u", u.as_str())].iter().enumerate() {
        let rows: Vec<Row> = calls().into_iter().map(|(path, body, refusals)| (path, body, refusals[at])).collect();
        run(address, token, who, &rows).await;
    }
    let rows: Vec<Row> = calls().into_iter().map(|(path, body, _)| (path, body, "")).collect();
    let refused_to_all = |row: &Row| row.0 == "kv/compaction";
    let rows: Vec<Row> = rows.into_iter().filter(|row| !refused_to_all(row)).collect();
    run(address, &format!("Bearer {root}"), "root", &rows).await;
    run(address, "", "nobody", &[("lock/lock", json!({"name": b64("a")}), EMPTY)]).await;
    run(address, &u, "u", &[("lock/lock", json!({"name": b64("a")}), DENIED)]).await;
    // What is wrong with a request comes before who makes it.
    run(address, "", "nobody", &[("kv/range", json!({}), "etcdserver: key is not provided")]).await;
}

#[tokio::test]
async fn a_limited_user_pays_for_what_is_encoded_where_it_is_read() {
    let (local, address) = guarded().await;
    let (root, u) = (login(address, "root", "r").await, login(address, "u", "p").await);
    let large = json!({"key": b64("a"), "value": b64(&"x".repeat(30_000))});
    run(address, &root, "root", &[("kv/put", large, "")]).await;
    let quota = UserQuota { user: "u".to_owned(), requests: None, bytes: Some(20_000) };
    local.store.set_quota(Quota { of: Some(quota::Of::User(quota)) }).await.unwrap();
    let list = |refusal| ("kv/range", json!({"key": b64("a"), "range_end": b64("b")}), refusal);
    run(address, &u, "u", &[list(""), list("etcdserver: too many requests")]).await;
    run(address, &root, "root", &[list("")]).await;
}

#[tokio::test]
async fn what_a_request_could_touch_counts_not_only_what_it_names() {
    let (_local, address) = guarded().await;
    let (root, u) = (login(address, "root", "r").await, login(address, "u", "p").await);
    let key = |key: &str, more: Value| {
        let mut body = json!({"key": b64(key), "value": b64("1")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let writes = json!({"name": "r1", "perm": {"permType": "WRITE", "key": b64("a"), "range_end": b64("c")}});
    let rows: &[Row] = &[
        ("lease/grant", json!({"TTL": "100", "ID": "78"}), ""),
        ("kv/put", key("zz", json!({"lease": "78"})), ""),
        ("auth/role/grant", writes, ""),
    ];
    run(address, &root, "root", rows).await;
    let rows: &[Row] = &[
        // The lease's end would delete zz.
        ("kv/put", key("a", json!({"lease": "78"})), DENIED),
        ("lease/revoke", json!({"ID": "78"}), DENIED),
        ("lease/timetolive", json!({"ID": "78", "keys": true}), DENIED),
        ("lease/timetolive", json!({"ID": "78"}), ""),
        ("lease/leases", json!({}), DENIED),
        ("kv/put", key("a", json!({})), ""),
        // What it held before may not be read.
        ("kv/put", key("a", json!({"prev_kv": true})), DENIED),
        ("kv/deleterange", json!({"key": b64("a"), "prev_kv": true}), DENIED),
        ("kv/range", json!({"key": b64("a")}), DENIED),
        ("kv/put", json!({"key": b64("a"), "ignore_value": true}), ""),
        ("kv/put", key("a", json!({"lease": "99"})), "etcdserver: requested lease not found"),
        ("lease/revoke", json!({"ID": "79"}), "etcdserver: requested lease not found"),
        ("kv/txn", json!({"success": [{"request_put": key("b", json!({"prev_kv": true}))}]}), DENIED),
        ("kv/txn", json!({"success": [{"request_put": key("b", json!({}))}]}), ""),
    ];
    run(address, &u, "u", rows).await;
}

#[tokio::test]
async fn logins_end_with_the_password_the_user_and_their_time() {
    let options = StoreOptions { tokens: TokenOptions::Simple { unused: Duration::from_millis(1500) }, ..options() };
    let (local, address, _) = served_with(options).await;
    let store = &local.store;
    let setup = [
        ("auth/user/add", json!({"name": "root", "password": "r"}), ""),
        ("auth/user/grant", json!({"user": "root", "role": "root"}), ""),
        ("auth/user/add", json!({"name": "u", "password": "p"}), ""),
        ("auth/enable", json!({}), ""),
    ];
    run(address, "", "setup", &setup).await;
    let mine = [("auth/user/get", json!({"name": "u"}), "")];
    let void = [("auth/user/get", json!({"name": "u"}), INVALID)];
    let first = login(address, "u", "p").await;
    run(address, &first, "u", &mine).await;
    let changed = AuthUserChangePasswordRequest { name: "u".into(), password: "q".into(), ..Default::default() };
    store.user_change_password(changed).await.unwrap();
    run(address, &first, "u", &void).await;

    // Longer than its time in all, but never unused for so long.
    let second = login(address, "u", "q").await;
    for _ in 0..4 {
        clock::sleep(Duration::from_millis(500)).await;
        run(address, &second, "u", &mine).await;
    }
    clock::sleep(Duration::from_millis(1600)).await;
    run(address, &second, "u", &void).await;

    let third = login(address, "u", "q").await;
    store.user_delete(AuthUserDeleteRequest { name: "u".into() }).await.unwrap();
    run(address, &third, "u", &void).await;
    for damaged in ["", ".", "a.b", &third[1..], &third[..third.len() - 2], "é"] {
        let answer = post(address, &format!("Bearer {damaged}"), "kv/range", &json!({"key": b64("a")})).await;
        assert_eq!(answer.unwrap_err(), INVALID, "{damaged:?}");
    }
}

#[tokio::test]
async fn a_command_is_judged_when_it_is_applied_whatever_its_member_believed() {
    let (local, address) = guarded().await;
    let root = login(address, "root", "r").await;
    let caller = |name: &str, auth_revision, credential_revision| {
        let caller = Caller { name: name.into(), auth_revision, credential_revision };
        local.store.acting_for(Actor::User(caller.into()), None)
    };
    let put = || PutRequest { key: Bytes::from_static(b"a"), ..PutRequest::default() };
    let refusal = |result: Result<_, StoreError>| result.unwrap_err().to_string();
    assert_eq!(refusal(caller("u", 0, 0).put(put()).await), DENIED);
    assert_eq!(refusal(caller("nobody", 0, 0).put(put()).await), DENIED);
    assert_eq!(refusal(caller("root", 1, 0).put(put()).await), "etcdserver: revision of auth store is old");
    assert_eq!(refusal(caller("root", 0, 99).put(put()).await), INVALID);
    assert_eq!(refusal(local.store.acting_for(Actor::Anonymous, None).put(put()).await), EMPTY);
    assert!(caller("root", u64::MAX, 0).put(put()).await.is_ok());
    assert!(local.store.put(put()).await.is_ok(), "the member itself is not asked");
    run(address, &root, "root", &[("kv/range", json!({"key": b64("a")}), "")]).await;
}

#[tokio::test]
async fn users_and_roles_survive_a_restart_and_a_snapshot() {
    let (local, address) = guarded().await;
    let root = login(address, "root", "r").await;
    let before = (local.store.auth().users(), local.store.auth().roles(), local.store.auth().revision);
    let generation = local.store.shared().engine.current();
    let loaded = generation.view().unwrap().auth().unwrap();
    assert!(loaded.enabled);
    assert_eq!((loaded.users(), loaded.roles(), loaded.revision), before);
    local.store.role_delete(AuthRoleDeleteRequest { role: "r1".into() }).await.unwrap();
    // As a member that knew nothing of it takes over the state.
    local.store.shared().auth.store(std::sync::Arc::default());
    run(address, "", "nobody", &[("kv/range", json!({"key": b64("a")}), "")]).await;
    local.store.shared().reload().unwrap();
    assert_eq!((local.store.auth().users(), local.store.auth().roles()), (before.0, Vec::new()));
    run(address, "", "nobody", &[("kv/range", json!({"key": b64("a")}), EMPTY)]).await;
    login(address, "u", "p").await;
    run(address, &root, "root", &[("auth/user/list", json!({}), "")]).await;
}

#[tokio::test]
async fn a_watch_needs_the_right_to_read_what_it_watches() {
    let (local, address) = guarded().await;
    let u = login(address, "u", "p").await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = WatchClient::with_interceptor(channel, move |mut request: tonic::Request<()>| {
        request.metadata_mut().insert("token", u.parse().unwrap());
        Ok(request)
    });
    let create = |key: &'static [u8], range_end: &'static [u8]| WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: Bytes::from_static(key),
            range_end: Bytes::from_static(range_end),
            ..WatchCreateRequest::default()
        })),
    };
    // The third asks for everything from its key on, which a right to one key, or to a range, must not cover.
    // The last is refused for what it asks before it is for being empty.
    let asked = vec![create(b"a", b"c"), create(b"z", b""), create(b"c", b"\0"), create(b"z", b"a")];
    let requests = futures::StreamExt::chain(futures::stream::iter(asked), futures::stream::pending());
    let mut answers = client.watch(requests).await.unwrap().into_inner();
    let mut told = Vec::new();
    while told.len() < 4 {
        let answer = answers.message().await.unwrap().unwrap();
        told.push((answer.watch_id, answer.created, answer.canceled, answer.cancel_reason));
    }
    let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied".to_owned();
    let refused = || (-1, true, true, denied.clone());
    assert_eq!(told, [(0, true, false, String::new()), refused(), refused(), refused()]);
    drop(local);
}

/// Signed tokens speak of a revision of the users and roles: once these changed, their holder has to log in again.
#[tokio::test]
async fn signed_tokens_are_made_and_checked_with_the_operators_keys() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "a secret of some length").unwrap();
    let jwt = crate::auth::JwtOptions::read("HS256", None, Some(&secret), None).unwrap();
    assert!(!format!("{jwt:?}").contains("a secret"));
    let (local, address, _) = served_with(StoreOptions { tokens: TokenOptions::Jwt(jwt), ..options() }).await;
    let setup = [
        ("auth/user/add", json!({"name": "root", "password": "r"}), ""),
        ("auth/user/grant", json!({"user": "root", "role": "root"}), ""),
        ("auth/enable", json!({}), ""),
    ];
    run(address, "", "setup", &setup).await;
    let token = login(address, "root", "r").await;
    assert_eq!(token.split('.').count(), 3);
    let read = RangeRequest { key: Bytes::from_static(b"a"), ..RangeRequest::default() };
    run(
        address,
        &token,
        "root",
        &[("kv/range", json!({"key": b64("a")}), ""), ("auth/role/add", json!({"name": "x"}), "")],
    )
    .await;
    run(
        address,
        &token,
        "root",
        &[("kv/range", json!({"key": b64("a")}), "etcdserver: revision of auth store is old")],
    )
    .await;
    run(address, &format!("{token}x"), "root", &[("kv/range", json!({"key": b64("a")}), INVALID)]).await;
    assert!(local.store.range(read).await.is_ok());
}

#[tokio::test]
async fn a_lease_is_renewed_only_by_who_may_write_what_would_go_with_it() {
    let (local, address) = guarded().await;
    let root = login(address, "root", "r").await;
    let rows: &[Row] = &[
        ("lease/grant", json!({"TTL": "100", "ID": "78"}), ""),
        ("kv/put", json!({"key": b64("zz"), "lease": "78"}), ""),
        ("lease/grant", json!({"TTL": "100", "ID": "79"}), ""),
    ];
    run(address, &root, "root", rows).await;
    let caller = Caller { name: "u".into(), ..Caller::default() };
    let store = local.store.acting_for(Actor::User(caller.into()), None);
    assert_eq!(store.lease_keep_alive(78).await.unwrap_err().to_string(), DENIED);
    assert_eq!(store.lease_keep_alive(79).await.unwrap().ttl, 100);
    assert_eq!(store.lease_keep_alive(80).await.unwrap().ttl, 0);
    assert_eq!(local.store.lease_keep_alive(78).await.unwrap().ttl, 100);
}
