//! The JSON gateway: every call as `POST /v3/...` with JSON, for clients that have no gRPC.
//!
//! Generic: JSON is turned into the call's message by its descriptor, and goes the way of any gRPC request through the same
//! router, so no call can behave differently here. Names and numbers are those of protocol buffers' JSON mapping with the
//! field names of the protocol files. Streams are objects one per line; a websocket carries them in both directions.

mod frames;
mod table;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message as Frame, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::{Bytes, BytesMut};
use futures::future::ready;
use futures::stream::SplitSink;
use futures::{FutureExt, SinkExt, Stream, StreamExt, stream};
use pintle_base::clock;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower::ServiceExt;

use self::frames::{Answers, frame};
use super::answers::Client;
use crate::auth::Peer;
use crate::limits;

/// `None` only if the descriptors that were compiled in cannot be read, which the tests rule out.
static PROTOCOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(pintle_proto::ETCD_DESCRIPTORS).ok());

/// One call of the gateway.
#[derive(Clone)]
struct Call {
    method: MethodDescriptor,
    /// Bytes of a request's JSON, or of one object of a stream.
    limit: usize,
    grpc: Router,
}

/// All paths; what they mean is answered by `grpc`.
/// A request may have `request_bytes`; JSON takes more, above all for base64.
pub(super) fn routes(grpc: &Router, request_bytes: usize) -> Router {
    let limit = limits::gateway_bytes(request_bytes);
    let mut router = Router::new();
    for (path, service, name) in table::CALLS {
        let Some(method) = find(service, name) else {
            tracing::error!(service, name, "the protocol has no such call, its path is not served");
            continue;
        };
        let call = Call { method, limit, grpc: grpc.clone() };
        for version in ["v3", "v3beta"] {
            let call = call.clone();
            let serve = move |upgrade, request| serve(call.clone(), upgrade, request);
            router = router.route(&format!("/{version}/{path}"), any(serve));
        }
    }
    router.route("/v3/{*path}", any(unknown)).route("/v3beta/{*path}", any(unknown))
}

fn find(service: &str, name: &str) -> Option<MethodDescriptor> {
    let service = PROTOCOL.as_ref()?.get_service_by_name(service)?;
    service.methods().find(|method| method.name() == name)
}

/// A large answer, which keeps the room that was found for it (`answers` holds it) until all of it is sent.
fn in_pieces(text: Bytes, answers: Answers) -> Body {
    let pieces = stream::unfold((text, answers), async |(mut rest, answers)| {
        let piece = rest.split_to(limits::PIECE_BYTES.min(rest.len()));
        (!piece.is_empty()).then(|| (Ok::<_, std::convert::Infallible>(piece), (rest, answers)))
    });
    Body::from_stream(pieces)
}

async fn unknown() -> Response {
    let body = json!({ "code": 5, "message": "Not Found" });
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn serve(
    call: Call,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    request: Request<Body>,
) -> Response {
    let (head, body) = request.into_parts();
    let known = Known { peer: head.extensions.get().copied(), client: head.extensions.get().cloned() };
    if let Ok(upgrade) = upgrade {
        let upgrade = upgrade.max_message_size(call.limit).max_frame_size(call.limit);
        return upgrade.on_upgrade(move |socket| over_websocket(call, head.headers, known, socket));
    }
    if head.method != Method::POST {
        return refusal(&Status::unimplemented("Method Not Allowed"));
    }
    let message = match call.read(body).await {
        Ok(message) => message,
        Err(status) => {
            let mut refusal = refusal(&status);
            refusal.extensions_mut().insert(Unreadable);
            return refusal;
        }
    };
    call.run(&head.headers, known, message).await.unwrap_or_else(|status| refusal(&status))
}

/// In an answer: the request was none.
#[derive(Clone, Copy)]
pub(super) struct Unreadable;

/// What goes with a request to whoever answers it.
struct Known {
    peer: Option<Peer>,
    client: Option<Client>,
}

impl Call {
    /// The request as a body of gRPC. Objects of a stream are read as they come.
    async fn read(&self, body: Body) -> Result<Body, Status> {
        if self.method.is_client_streaming() {
            let input = self.method.input();
            let messages = objects(body, self.limit).map(move |object| Ok(frame(&encode(&input, object?)?)));
            return Ok(Body::from_stream(
                messages.map(|message: Result<Bytes, Status>| message.map_err(|status| status.to_string())),
            ));
        }
        let body = to_bytes(body, self.limit).await.map_err(|_| too_large())?;
        let object = if body.trim_ascii().is_empty() { Ok(json!({})) } else { serde_json::from_slice(&body) };
        Ok(Body::from(frame(&encode(&self.method.input(), object.map_err(|error| invalid(&error))?)?)))
    }

    async fn run(&self, headers: &HeaderMap, known: Known, message: Body) -> Result<Response, Status> {
        let mut request = self.request(headers, message)?;
        if let Some(peer) = known.peer {
            request.extensions_mut().insert(peer);
        }
        if let Some(client) = known.client {
            request.extensions_mut().insert(client);
        }
        let Ok(response) = self.grpc.clone().oneshot(request).await;
        let answers = Answers::of(response)?;
        if self.method.is_server_streaming() { self.lines(answers).await } else { self.single(answers).await }
    }

    fn request(&self, headers: &HeaderMap, body: Body) -> Result<Request<Body>, Status> {
        let path = format!("/{}/{}", self.method.parent_service().full_name(), self.method.name());
        let mut request = Request::post(path).body(body).map_err(|error| Status::internal(error.to_string()))?;
        let to = request.headers_mut();
        to.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        to.insert(header::TE, HeaderValue::from_static("trailers"));
        // Its presence says that the connection's certificate is not the caller's.
        let accept = headers.get(header::ACCEPT).cloned().unwrap_or_else(|| HeaderValue::from_static("*/*"));
        to.insert("grpcgateway-accept", accept);
        if let Some(token) = headers.get(header::AUTHORIZATION) {
            to.insert(header::AUTHORIZATION, token.clone());
        }
        for (name, value) in headers {
            if let Some(name) = name.as_str().strip_prefix("grpc-metadata-")
                && let Ok(name) = HeaderName::try_from(name)
            {
                to.insert(name, value.clone());
            }
        }
        Ok(request)
    }

    async fn single(&self, mut answers: Answers) -> Result<Response, Status> {
        let message = answers.next().await?.ok_or_else(|| Status::internal("the call ended without an answer"))?;
        answers.next().await?; // reads the status that follows
        let text = Value::to_string(&decode(&self.method.output(), message)?);
        let body = if text.len() < limits::ANSWER_SMALL { Body::from(text) } else { in_pieces(text.into(), answers) };
        Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response())
    }

    /// One object per line. The first is awaited: a stream that is refused is answered with the status of the refusal.
    async fn lines(&self, mut answers: Answers) -> Result<Response, Status> {
        let output = self.method.output();
        let line = move |message| decode(&output, message).map(|result| format!("{}\n", json!({ "result": result })));
        let Some(first) = answers.next().await? else { return Ok(StatusCode::OK.into_response()) };
        let first = line(first)?;
        let rest = stream::unfold(Some(answers), move |answers| {
            let line = line.clone();
            async move {
                let mut answers = answers?;
                match answers.next().await.and_then(|message| message.map(&line).transpose()) {
                    Ok(Some(line)) => Some((line, Some(answers))),
                    Ok(None) => None,
                    Err(status) => Some((format!("{}\n", stream_error(&status)), None)),
                }
            }
        });
        let body = stream::once(async move { first }).chain(rest).map(Ok::<_, std::convert::Infallible>);
        Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response())
    }
}

/// Every text message is an object of the request, every line of the answer becomes a text message.
async fn over_websocket(call: Call, headers: HeaderMap, known: Known, socket: WebSocket) {
    let client = known.client.clone(); // its connection is over, and goes on as this one
    let (sink, requests) = socket.split();
    let Incoming { mut objects, gone, heard } = incoming(requests);
    let mut rest = None;
    // A call with one request starts with its first message; the socket stays open for its answer.
    let body = match call.method.is_client_streaming() {
        true => Body::from_stream(objects),
        false => match clock::timeout(limits::KEEP_ALIVE, objects.next()).await {
            Ok(Some(Ok(object))) => {
                rest = Some(objects);
                Body::from(object)
            }
            _ => return,
        },
    };
    // A client that closes its side of a websocket has gone: its watch would wait for the next event to find out.
    let gone = async move {
        while let Some(rest) = &mut rest
            && rest.next().await.is_some()
        {}
        gone.cancelled().await;
    };
    let stalled = client.map(|client| client.stalled).unwrap_or_default();
    tokio::select! {
        () = answer(&call, &headers, known, body, sink, &heard) => (),
        () = gone => (),
        () = stalled.cancelled() => (),
    }
}

/// Makes the call and sends what it is answered with, and pings, until the client is not heard of any more.
async fn answer(
    call: &Call,
    headers: &HeaderMap,
    known: Known,
    body: Body,
    mut sink: SplitSink<WebSocket, Frame>,
    heard: &AtomicBool,
) {
    let lines = async {
        let response = match call.read(body).await {
            Ok(message) => call.run(headers, known, message).await,
            Err(status) => Err(status),
        };
        let body = response.unwrap_or_else(|status| refusal(&status)).into_body();
        match call.method.is_server_streaming() {
            true => body.into_data_stream().left_stream(),
            // It may come in pieces.
            false => stream::once(to_bytes(body, usize::MAX)).right_stream(),
        }
    };
    let mut lines = pin!(lines.flatten_stream());
    let mut ticker = clock::ticker(limits::KEEP_ALIVE);
    ticker.tick().await;
    loop {
        let (told, frame) = tokio::select! {
            line = lines.next() => match line {
                Some(Ok(line)) => (true, Frame::Text(String::from_utf8_lossy(line.trim_ascii_end()).into_owned().into())),
                Some(Err(_)) | None => break,
            },
            _ = ticker.tick() => {
                if !heard.swap(false, Ordering::Relaxed) {
                    return; // not even an answer to the last ping
                }
                (false, Frame::Ping(Bytes::new()))
            }
        };
        // While it waits nothing is heard; that it was taken is as good.
        match clock::timeout(limits::KEEP_ALIVE, sink.send(frame)).await {
            Ok(Ok(())) if told => heard.store(true, Ordering::Relaxed),
            Ok(Ok(())) => (),
            Ok(Err(_)) | Err(_) => return,
        }
    }
    // The peer may be gone already.
    let _ = sink.close().await;
}

/// What comes over a websocket.
struct Incoming {
    objects: stream::BoxStream<'static, Result<Bytes, axum::Error>>,
    /// It was closed or lost.
    gone: CancellationToken,
    /// Something came since this was looked at last.
    heard: Arc<AtomicBool>,
}

fn incoming(socket: impl Stream<Item = Result<Frame, axum::Error>> + Send + 'static) -> Incoming {
    let (gone, heard) = (CancellationToken::new(), Arc::new(AtomicBool::new(true)));
    let (tells, hears) = (gone.clone(), Arc::clone(&heard));
    let open =
        |frame: &Result<Frame, axum::Error>| ready(matches!(frame, Ok(frame) if !matches!(frame, Frame::Close(_))));
    let end = stream::once(async move {
        tells.cancel();
        None
    });
    let frames = socket.take_while(open).inspect(move |_| hears.store(true, Ordering::Relaxed));
    let objects = frames.map(Some).chain(end).filter_map(async |frame| match frame? {
        Ok(Frame::Text(text)) => Some(Ok(Bytes::from(text))),
        Ok(Frame::Binary(bytes)) => Some(Ok(bytes)),
        Ok(Frame::Ping(_) | Frame::Pong(_) | Frame::Close(_)) => None,
        Err(error) => Some(Err(error)),
    });
    Incoming { objects: objects.boxed(), gone, heard }
}

/// The JSON objects of a body, each as soon as it has come whole.
fn objects(body: Body, limit: usize) -> impl Stream<Item = Result<Value, Status>> + Send {
    let parts = Parts {
        body: body.into_data_stream().boxed(),
        buffer: BytesMut::new(),
        scan: Scan::default(),
        over: false,
        failed: false,
        limit,
    };
    stream::unfold(parts, |mut parts| async move {
        if parts.failed {
            return None;
        }
        let object = parts.next().await?;
        parts.failed = object.is_err();
        Some((object, parts))
    })
}

struct Parts {
    body: stream::BoxStream<'static, Result<Bytes, axum::Error>>,
    buffer: BytesMut,
    scan: Scan,
    /// Nothing more comes from the body.
    over: bool,
    failed: bool,
    /// Bytes of one object.
    limit: usize,
}

/// Where in an object the bytes looked at so far end: each byte is looked at once, in however small parts it comes.
#[derive(Default)]
struct Scan {
    at: usize,
    depth: usize,
    string: bool,
    escaped: bool,
}

impl Scan {
    /// Goes on over `buffer`; the length of the first value if it is whole, or certainly is no object.
    fn end(&mut self, buffer: &[u8]) -> Option<usize> {
        while let Some(byte) = buffer.get(self.at) {
            self.at += 1;
            match (self.string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (true, b'"') => self.string = false,
                (true, _) => (),
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') if self.depth > 1 => self.depth -= 1,
                (false, b'"') if self.depth > 0 => self.string = true,
                (false, _) if self.depth > 0 && !matches!(byte, b'}' | b']') => (),
                (false, byte) if byte.is_ascii_whitespace() => (),
                (false, _) => return Some(self.at),
            }
        }
        None
    }
}

impl Parts {
    async fn next(&mut self) -> Option<Result<Value, Status>> {
        loop {
            if let Some(end) = self.scan.end(&self.buffer) {
                self.scan = Scan::default();
                let object = self.buffer.split_to(end);
                return Some(serde_json::from_slice(&object).map_err(|error| invalid(&error)));
            }
            if self.over {
                // What is left is white space, or an object without its end.
                let rest = serde_json::from_slice::<Value>(&self.buffer);
                return rest.err().filter(|_| !self.buffer.trim_ascii().is_empty()).map(|error| Err(invalid(&error)));
            }
            match self.body.next().await {
                Some(Ok(data)) if self.buffer.len() + data.len() > self.limit => {
                    return Some(Err(too_large()));
                }
                Some(Ok(data)) => self.buffer.extend_from_slice(&data),
                Some(Err(error)) => return Some(Err(Status::invalid_argument(error.to_string()))),
                None => self.over = true,
            }
        }
    }
}

fn encode(descriptor: &MessageDescriptor, object: Value) -> Result<Vec<u8>, Status> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), object, &options);
    Ok(message.map_err(|error| invalid(&error))?.encode_to_vec())
}

fn decode(descriptor: &MessageDescriptor, message: Bytes) -> Result<Value, Status> {
    let failed = |error: &dyn std::error::Error| Status::internal(error.to_string());
    let message = DynamicMessage::decode(descriptor.clone(), message).map_err(|error| failed(&error))?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|error| failed(&error))
}

fn invalid(error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

fn too_large() -> Status {
    Status::resource_exhausted("http: request body too large")
}

fn refusal(status: &Status) -> Response {
    let code = i32::from(status.code());
    let body = json!({ "error": status.message(), "code": code, "message": status.message() });
    (http_status(status.code()), [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn stream_error(status: &Status) -> Value {
    let http = http_status(status.code());
    let reason = http.canonical_reason().unwrap_or_default();
    json!({ "error": {
        "grpc_code": i32::from(status.code()),
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": reason,
    }})
}

/// The mapping of gRPC's codes that gateways share.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Turns what a fuzzer made into a message and back: as JSON, or with the highest bit of the first byte as a message. Also cuts a stream of
/// objects into pieces, which must be found at the same places as in one piece.
#[cfg(any(test, debug_assertions))]
pub(crate) fn fuzz(data: &[u8]) {
    static CALLS: LazyLock<Vec<MethodDescriptor>> =
        LazyLock::new(|| table::CALLS.iter().filter_map(|(_, service, name)| find(service, name)).collect());
    let Some((which, body)) = data.split_first() else { return };
    let method = &CALLS[usize::from(which & 0x7f) % CALLS.len()];
    let input = method.input();
    let message = match which & 0x80 {
        0 => serde_json::from_slice(body).ok().and_then(|object| encode(&input, object).ok()),
        _ => Some(body.to_vec()),
    };
    if let Some(object) = message.and_then(|message| decode(&input, message.into()).ok()) {
        let again = encode(&input, object.clone()).expect("what was made can be read");
        assert_eq!(decode(&input, again.into()).expect("and made again"), object);
    }
    let (mut whole, mut pieces) = (Scan::default(), Scan::default());
    let found = whole.end(body);
    let cut = usize::from(*which) % (body.len() + 1);
    assert_eq!(pieces.end(&body[..cut]).or_else(|| pieces.end(body)), found);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_a_call_of_the_protocol() {
        for (path, service, name) in table::CALLS {
            assert!(find(service, name).is_some(), "{path}");
        }
    }

    #[tokio::test]
    async fn objects_are_read_as_they_come_and_a_broken_one_ends_the_stream() {
        let body = |parts: &'static [&'static str]| {
            Body::from_stream(stream::iter(parts.iter().map(|part| Ok::<_, std::convert::Infallible>(*part))))
        };
        let read = async |parts| {
            objects(body(parts), limits::REQUEST_BYTES).map(|object| object.map_err(drop)).collect::<Vec<_>>().await
        };
        assert_eq!(read(&["{\"a\"", ":1}{}", "\n{"][..]).await, [Ok(json!({"a": 1})), Ok(json!({})), Err(())]);
        assert_eq!(read(&[][..]).await, []);
        assert_eq!(read(&["x", "{}"][..]).await, [Err(())]);
        assert_eq!(read(&["}"][..]).await, [Err(())]);
        let quoted = json!({"a": ["}", "\\\"{", {}]});
        assert_eq!(
            read(&["{\"a\":[\"", "}\",\"\\", "\\\\\"{\", {}]", "} {\"b\":1} "][..]).await,
            [Ok(quoted), Ok(json!({"b": 1}))]
        );
        assert_eq!(read(&["{}{\"a\""][..]).await, [Ok(json!({})), Err(())], "cut off in the middle");
    }
}
