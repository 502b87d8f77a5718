//! The JSON gateway as curl and a browser meet it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message;

use super::front::{served_at, served_with};
use super::local::Local;
use crate::etcd;
use crate::limits;
use crate::store::StoreOptions;

async fn post(address: SocketAddr, path: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn calls_have_the_names_and_forms_of_the_protocol() {
    let (local, address, _) = served_at().await;
    let (status, put) = post(address, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy","unknown":[1]}"#).await;
    let header = json!({"cluster_id": "1", "member_id": "1", "revision": "2", "raft_term": "1"});
    assert_eq!((status, put), (200, json!({ "header": header })));
    let (_, range) =
        post(address, "/v3beta/kv/range", r#"{"key":"Zm9v","range_end":"Zm9w","sort_order":"ASCEND"}"#).await;
    let kv = json!({"key": "Zm9v", "value": "YmFy", "create_revision": "2", "mod_revision": "2", "version": "1"});
    assert_eq!(range, json!({ "header": header, "kvs": [kv], "count": "1" }));
    let txn = r#"{"compare":[{"target":"CREATE","key":"Zm9v","createRevision":"2"}],
        "success":[{"requestRange":{"key":"Zm9v","keys_only":true}}]}"#;
    let (_, answer) = post(address, "/v3/kv/txn", txn).await;
    assert_eq!(answer["succeeded"], json!(true));
    assert_eq!(answer["responses"][0]["response_range"]["kvs"][0]["key"], json!("Zm9v"));
    let (_, granted) = post(address, "/v3/lease/grant", r#"{"TTL": 60, "ID": "7"}"#).await;
    assert_eq!((&granted["ID"], &granted["TTL"]), (&json!("7"), &json!("60")));
    let (_, members) = post(address, "/v3/cluster/member/list", "{}").await;
    assert_eq!(members["members"][0]["peerURLs"], json!(["https://127.0.0.1:2380"]));
    drop(local);
}

/// Sends a head as it is; the head of the answer.
async fn head(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{request}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().0.to_ascii_lowercase()
}

#[tokio::test]
async fn pages_of_named_origins_read_answers_and_foreign_hosts_get_none() {
    let options = StoreOptions {
        origins: vec!["https://ui.example".to_owned()],
        hosts: vec!["store.example".to_owned()],
        ..StoreOptions::default()
    };
    let (_local, address, _) = served_with(options).await;
    let ask = |method: &str, host: &str, origin: &str| {
        format!("{method} /version HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}")
    };
    let allowed = head(address, &ask("GET", "store.example:2379", "https://ui.example")).await;
    assert!(allowed.starts_with("http/1.1 200") && allowed.contains("access-control-allow-origin: https://ui.example"));
    let preflight = head(address, &ask("OPTIONS", "store.example", "https://ui.example")).await;
    assert!(preflight.starts_with("http/1.1 200") && preflight.contains("access-control-allow-methods: post, get"));
    let foreign = head(address, &ask("GET", "store.example", "https://evil.example")).await;
    assert!(foreign.starts_with("http/1.1 200") && !foreign.contains("access-control"));
    let rebound = head(address, &ask("GET", "evil.example", "https://ui.example")).await;
    assert!(rebound.starts_with("http/1.1 421"), "{rebound}");
}

#[tokio::test]
async fn refusals_carry_code_text_and_the_status_that_belongs_to_it() {
    let (local, address, _) = served_at().await;
    let text = |text: &str, code: i32| json!({"error": text, "code": code, "message": text});
    let empty = text("etcdserver: key is not provided", 3);
    assert_eq!(post(address, "/v3/kv/put", "{}").await, (400, empty.clone()));
    assert_eq!(post(address, "/v3/kv/put", "").await, (400, empty));
    let lease = text("etcdserver: requested lease not found", 5);
    assert_eq!(post(address, "/v3/kv/lease/revoke", r#"{"ID":5}"#).await, (404, lease));
    for broken in ["{", "[]", r#"{"key":1}"#, r#"{"key":"*"}"#, &"[".repeat(10_000)] {
        let (status, answer) = post(address, "/v3/kv/range", broken).await;
        assert_eq!((status, &answer["code"]), (400, &json!(3)), "{broken:.20}");
    }
    let huge = format!(r#"{{"key":"{}"}}"#, "A".repeat(limits::gateway_bytes(limits::REQUEST_BYTES)));
    assert_eq!(post(address, "/v3/kv/range", &huge).await.0, 429);
    assert_eq!(post(address, "/v3/kv/nothing", "{}").await, (404, json!({"code": 5, "message": "Not Found"})));
    drop(local);
}

#[tokio::test]
async fn where_larger_requests_are_taken_their_json_is_taken() {
    let options = StoreOptions { request_bytes: 8 << 20, ..StoreOptions::default() };
    let (local, address, _) = served_with(options).await;
    let put = |bytes: usize| format!(r#"{{"key":"Zm9v","value":"{}"}}"#, "AAAA".repeat(bytes / 3));
    assert_eq!(post(address, "/v3/kv/put", &put(6 << 20)).await.0, 200);
    let beyond = post(address, "/v3/kv/put", &put(9 << 20)).await.0;
    assert!([400, 429].contains(&beyond), "{beyond}");
    drop(local);
}

#[tokio::test]
async fn a_watch_sends_one_object_per_line_after_its_request_has_ended() {
    let (local, address, _) = served_at().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = r#"{"create_request":{"key":"Zm9v"}}"#;
    let head = format!("POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut object = async || loop {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.expect("in time");
        let line = line.unwrap().expect("open");
        if line.starts_with("{\"result\"") {
            return serde_json::from_str::<Value>(&line).unwrap();
        }
    };
    assert_eq!(object().await["result"]["created"], json!(true));
    post(address, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
    let event = object().await;
    assert_eq!(event["result"]["events"][0]["kv"]["value"], json!("YmFy"));
    drop(local);
}

#[tokio::test]
async fn a_websocket_speaks_in_both_directions() {
    let (local, address, _) = served_at().await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/v3/watch"), stream).await.unwrap();
    for key in ["YQ==", "Yg=="] {
        socket.send(Message::text(format!(r#"{{"create_request":{{"key":"{key}"}}}}"#))).await.unwrap();
        let created: Value = serde_json::from_str(socket.next().await.unwrap().unwrap().to_text().unwrap()).unwrap();
        assert_eq!(created["result"]["created"], json!(true));
    }
    post(address, "/v3/kv/put", r#"{"key":"Yg==","value":"MQ=="}"#).await;
    let event: Value = serde_json::from_str(socket.next().await.unwrap().unwrap().to_text().unwrap()).unwrap();
    assert_eq!(
        (&event["result"]["watch_id"], &event["result"]["events"][0]["kv"]["key"]),
        (&json!("1"), &json!("Yg=="))
    );
    socket.close(None).await.unwrap();
    drop(local);
}

#[tokio::test]
async fn a_websocket_counts_among_the_connections_until_it_ends() {
    let local = Local::with(StoreOptions::default()).attached();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, stop, slots) = (etcd::router(&local.store), local.group.token(), Arc::new(Semaphore::new(1)));
    let serving = etcd::serve_within(Arc::clone(&slots), router, listener, None, stop);
    local.group.spawn("serve", async move { serving.await.unwrap() });
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/v3/watch"), stream).await.unwrap();
    socket.send(Message::text(r#"{"create_request":{"key":"Zm9v"}}"#)).await.unwrap();
    socket.next().await.unwrap().unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0, "there is no room for it");
    socket.close(None).await.unwrap();
    drop(socket);
    let free = tokio::time::timeout(Duration::from_secs(20), slots.acquire()).await;
    assert!(free.is_ok(), "its place is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_is_read_for_as_long_as_it_lasts() {
    let (local, address, _) = served_at().await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/v3/watch"), stream).await.unwrap();
    let key = "YWFh".repeat(500); // far more in all than is read from a connection in a turn
    for _ in 0..50 {
        socket.send(Message::text(format!(r#"{{"create_request":{{"key":"{key}"}}}}"#))).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(20), socket.next()).await.expect("it is still read");
        let created: Value = serde_json::from_str(answer.unwrap().unwrap().to_text().unwrap()).unwrap();
        assert_eq!(created["result"]["created"], json!(true));
    }
    socket.close(None).await.unwrap();
    drop(local);
}
