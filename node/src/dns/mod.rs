//! Cluster DNS on this node, answered from the agent's own view of services and endpoints (D13).
//!
//! Flow: query → [`zone`] (names of the cluster) or [`forward`] (all others) → answer, over UDP and TCP. I10: the view
//! stays when no server can be reached, and begins with what a checkpoint holds.
//!
//! Always holds: that a name does not exist is said only by a view known to be complete; until then it is a failure of
//! the server, which resolvers ask again instead of remembering.

mod forward;
pub mod zone;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::task::Group;
use pintle_client::SharedReflector;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::{checkpoint, limits};
use zone::{Answer, Zone};

/// Where and for what the server answers.
#[derive(Clone, Debug)]
pub struct Settings {
    pub address: Ipv4Addr,
    pub port: u16,
    pub domain: String,
    /// Resolvers for all other names.
    pub upstreams: Vec<SocketAddr>,
}

/// The names as they are known now.
struct View {
    zone: Zone,
    /// Nothing is missing in it: it comes from complete lists, or no server said more in time.
    complete: bool,
}

struct Server {
    view: RwLock<Arc<View>>,
    upstreams: Vec<SocketAddr>,
    turns: Arc<Semaphore>,
}

/// Serves until the group stops. The address must be one of this machine.
pub fn start(
    settings: &Settings,
    services: SharedReflector<Service>,
    slices: SharedReflector<EndpointSlice>,
    group: &Group,
) {
    serve(settings, services, slices, group);
}

fn serve(
    settings: &Settings,
    services: SharedReflector<Service>,
    slices: SharedReflector<EndpointSlice>,
    group: &Group,
) -> Arc<Server> {
    let view = View { zone: Zone::build(&settings.domain, &[], &[]), complete: false };
    let server = Arc::new(Server {
        view: RwLock::new(Arc::new(view)),
        upstreams: settings.upstreams.clone(),
        turns: Arc::new(Semaphore::new(limits::DNS_IN_FLIGHT)),
    });
    let address = SocketAddr::from((settings.address, settings.port));
    group.spawn_until_stopped("dns-view", follow(Arc::clone(&server), settings.domain.clone(), services, slices));
    let (udp, tcp) = (Arc::clone(&server), Arc::clone(&server));
    let (udp_group, tcp_group) = (group.clone(), group.clone());
    group.spawn_until_stopped(
        "dns-udp",
        async move { again("udp", || udp.clone().serve_udp(address, &udp_group)).await },
    );
    group.spawn_until_stopped(
        "dns-tcp",
        async move { again("tcp", || tcp.clone().serve_tcp(address, &tcp_group)).await },
    );
    server
}

/// Serves again after each error: the address may come later than the agent.
async fn again<F: Future<Output = io::Error>>(transport: &'static str, serve: impl Fn() -> F) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let error = serve().await;
        tracing::warn!(transport, %error, "cluster DNS does not answer, will retry");
        clock::sleep(backoff.next_delay()).await;
    }
}

async fn follow(
    server: Arc<Server>,
    domain: String,
    services: SharedReflector<Service>,
    slices: SharedReflector<EndpointSlice>,
) {
    let (mut service_changes, mut slice_changes) = (services.changes(), slices.changes());
    let mut settled = pin!(async { tokio::join!(checkpoint::settled(&services), checkpoint::settled(&slices)) });
    let mut complete = false;
    loop {
        let zone = Zone::build(&domain, &services.list(), &slices.list());
        *server.view.write() = Arc::new(View { zone, complete });
        tokio::select! {
            _ = &mut settled, if !complete => {
                complete = true;
                continue;
            }
            () = service_changes.changed() => (),
            () = slice_changes.changed() => (),
        }
        clock::sleep(limits::PROXY_SETTLE).await;
    }
}

impl Server {
    async fn serve_udp(self: Arc<Self>, address: SocketAddr, group: &Group) -> io::Error {
        let socket = match UdpSocket::bind(address).await {
            Ok(socket) => Arc::new(socket),
            Err(error) => return error,
        };
        let mut buffer = vec![0; 4096];
        loop {
            let (count, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An answer that could not be delivered is reported on the next receive: not this query's fault.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return error,
            };
            let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() else { continue };
            let (server, socket, query) = (Arc::clone(&self), Arc::clone(&socket), buffer[..count].to_vec());
            group.spawn_until_stopped("dns-query", async move {
                let _turn = turn;
                if let Some(answer) = server.answer(&query, false).await
                    && let Err(error) = socket.send_to(&answer, from).await
                {
                    tracing::debug!(%error, "answer not sent");
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, address: SocketAddr, group: &Group) -> io::Error {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        let connections = Arc::new(Semaphore::new(limits::DNS_CONNECTIONS));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => return error,
            };
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { continue };
            let server = Arc::clone(&self);
            group.spawn_until_stopped("dns-connection", async move {
                let _permit = permit;
                if let Err(error) = server.converse(stream).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let size = match clock::timeout(limits::DNS_IDLE, stream.read_u16()).await {
                Ok(Ok(size)) => size,
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
            let mut query = vec![0; usize::from(size)];
            clock::timeout(limits::DNS_IDLE, stream.read_exact(&mut query)).await??;
            let Some(answer) = self.answer(&query, true).await else { return Ok(()) };
            let Ok(size) = u16::try_from(answer.len()) else { return Ok(()) };
            stream.write_u16(size).await?;
            stream.write_all(&answer).await?;
        }
    }

    /// The bytes to send back; `None` for what deserves no answer.
    async fn answer(&self, bytes: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let query = match Message::from_vec(bytes) {
            Ok(query) if query.metadata.message_type == MessageType::Query => query,
            Ok(_) => return None, // never answer an answer
            Err(_) => return malformed(bytes),
        };
        let room = match (&query.edns, tcp) {
            (_, true) => usize::from(u16::MAX),
            (Some(edns), false) => usize::from(edns.max_payload()).clamp(limits::DNS_UDP_PLAIN, limits::DNS_UDP_EDNS),
            (None, false) => limits::DNS_UDP_PLAIN,
        };
        let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
        reply.metadata.recursion_desired = query.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(limits::DNS_UDP_EDNS as u16);
            reply.edns = Some(edns);
        }
        let [question] = query.queries.as_slice() else {
            reply.metadata.response_code = ResponseCode::FormErr;
            return reply.to_vec().ok();
        };
        reply.queries.push(question.clone());
        if query.metadata.op_code != OpCode::Query {
            reply.metadata.response_code = ResponseCode::NotImp;
            return reply.to_vec().ok();
        }
        if question.query_class() != DNSClass::IN {
            reply.metadata.response_code = ResponseCode::Refused;
            return reply.to_vec().ok();
        }
        let view = Arc::clone(&self.view.read());
        match view.zone.answer(question.name(), question.query_type()) {
            Answer::NoData(_) | Answer::NoName(_) if !view.complete => {
                reply.metadata.response_code = ResponseCode::ServFail;
            }
            // An address may turn out to be the cluster's own.
            Answer::Elsewhere if !view.complete && question.query_type() == RecordType::PTR => {
                reply.metadata.response_code = ResponseCode::ServFail;
            }
            Answer::Elsewhere => return forward::ask(&self.upstreams, bytes, &reply, tcp, room).await,
            Answer::Records { answers, additionals } => {
                reply.metadata.authoritative = true;
                reply.answers = answers;
                reply.additionals = additionals;
                self.follow_alias(&view.zone, &mut reply).await;
            }
            Answer::NoData(soa) => {
                reply.metadata.authoritative = true;
                reply.authorities.push(soa);
            }
            Answer::NoName(soa) => {
                reply.metadata.authoritative = true;
                reply.metadata.response_code = ResponseCode::NXDomain;
                reply.authorities.push(soa);
            }
        }
        fit(reply, room)
    }

    /// Adds the addresses behind an ExternalName, if they can be had.
    async fn follow_alias(&self, zone: &Zone, reply: &mut Message) {
        let Some(question) = reply.queries.first().cloned() else { return };
        let Some(target) = zone::alias_of(&reply.answers, question.query_type()) else { return };
        match zone.answer(&target, question.query_type()) {
            Answer::Records { answers, .. } => reply.answers.extend(answers),
            Answer::Elsewhere => {
                reply.answers.extend(forward::resolve(&self.upstreams, &target, question.query_type()).await)
            }
            Answer::NoData(_) | Answer::NoName(_) => (),
        }
    }
}

/// Says that a query could not be read, if at least its id could.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(*bytes.first_chunk::<2>()?);
    // An answer (its first flag is set) is never answered: two servers could keep each other busy.
    if bytes.get(2)? & 0x80 != 0 {
        return None;
    }
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

/// Cuts an answer down to the room there is and says so.
fn fit(mut reply: Message, room: usize) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= room {
        return Some(bytes);
    }
    reply.additionals.clear();
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= room {
        return Some(bytes);
    }
    reply.metadata.truncation = true;
    while !reply.answers.is_empty() {
        reply.answers.truncate(reply.answers.len() / 2);
        let bytes = reply.to_vec().ok()?;
        if bytes.len() <= room {
            return Some(bytes);
        }
    }
    reply.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;
    use serde_json::json;

    fn settings(port: u16, upstreams: Vec<SocketAddr>) -> Settings {
        Settings { address: Ipv4Addr::LOCALHOST, port, domain: "cluster.local".into(), upstreams }
    }

    async fn running(upstreams: Vec<SocketAddr>) -> (SocketAddr, Group) {
        let probe = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let address = probe.local_addr().expect("address");
        drop(probe);
        let group = Group::new("dns-test");
        let services = SharedReflector::<Service>::detached();
        let slices = SharedReflector::<EndpointSlice>::detached();
        let settings = settings(address.port(), upstreams);
        let service = json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": { "clusterIP": "10.96.0.5", "ports": [{ "port": 80 }] } });
        services.replace(vec![serde_json::from_value(service).expect("service")]);
        let many: Vec<_> = (1..=200).map(|last| json!({ "addresses": [format!("10.244.0.{last}")] })).collect();
        let headless = json!({ "metadata": { "name": "all", "namespace": "default" }, "spec": { "clusterIP": "None", "ports": [{ "port": 80 }] } });
        services.apply(serde_json::from_value(headless).expect("service"));
        let slice = json!({ "metadata": { "name": "all-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "all" } },
            "addressType": "IPv4", "ports": [{ "port": 80 }], "endpoints": many });
        slices.replace(vec![serde_json::from_value(slice).expect("slice")]);
        start(&settings, services, slices, &group);
        (address, group)
    }

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
        query.to_vec().expect("bytes")
    }

    /// Asks until the server is up.
    async fn ask(address: SocketAddr, bytes: &[u8]) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let mut buffer = vec![0; 4096];
        for _ in 0..100 {
            let _ = socket.send_to(bytes, address).await;
            if let Ok(Ok(count)) = clock::timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await {
                let message = Message::from_vec(&buffer[..count]).expect("answer");
                if message.metadata.response_code != ResponseCode::NXDomain || message.metadata.id == 8 {
                    return message;
                }
            }
        }
        panic!("no answer");
    }

    #[tokio::test]
    async fn names_over_udp_and_long_answers_over_tcp() {
        let (address, group) = running(vec![]).await;
        let reply = ask(address, &query("web.default.svc.cluster.local.", RecordType::A)).await;
        assert_eq!(reply.answers.len(), 1);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
        let cut = ask(address, &query("all.default.svc.cluster.local.", RecordType::A)).await;
        assert!(cut.metadata.truncation && cut.answers.len() < 200);
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let bytes = query("all.default.svc.cluster.local.", RecordType::A);
        stream.write_u16(bytes.len() as u16).await.expect("size");
        stream.write_all(&bytes).await.expect("query");
        let size = stream.read_u16().await.expect("size");
        let mut answer = vec![0; usize::from(size)];
        stream.read_exact(&mut answer).await.expect("answer");
        assert_eq!(Message::from_vec(&answer).expect("message").answers.len(), 200);
        let reply = ask(address, b"\x00\x08\x01\x00garbage").await;
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        group.stop(Duration::from_secs(5)).await.expect("stops");
    }

    /// What the server says to a question now.
    async fn code(server: &Server, name: &str) -> (ResponseCode, usize) {
        let bytes = server.answer(&query(name, RecordType::A), false).await.expect("answer");
        let message = Message::from_vec(&bytes).expect("message");
        (message.metadata.response_code, message.answers.len())
    }

    async fn until(server: &Server, name: &str, want: (ResponseCode, usize)) {
        let wait = async {
            while code(server, name).await != want {
                clock::sleep(Duration::from_millis(1)).await;
            }
        };
        clock::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("{name} never {want:?}"));
    }

    #[tokio::test(start_paused = true)]
    async fn no_name_is_denied_before_all_are_known() {
        let failed = (ResponseCode::ServFail, 0);
        let group = Group::new("dns-test");
        let services = SharedReflector::<Service>::detached();
        let slices = SharedReflector::<EndpointSlice>::detached();
        let server = serve(&settings(0, vec![]), services.clone(), slices.clone(), &group);
        for name in ["web.default.svc.cluster.local.", "default.svc.cluster.local.", "cluster.local."] {
            assert_eq!(code(&server, name).await, failed, "{name}");
        }
        let service =
            json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": { "clusterIP": "10.96.0.5" } });
        services.replace(vec![serde_json::from_value(service).expect("service")]);
        until(&server, "web.default.svc.cluster.local.", (ResponseCode::NoError, 1)).await;
        assert_eq!(code(&server, "no.default.svc.cluster.local.").await, failed, "endpoints are not known yet");
        slices.replace(Vec::new());
        until(&server, "no.default.svc.cluster.local.", (ResponseCode::NXDomain, 0)).await;
        group.stop(Duration::from_secs(5)).await.expect("stops");
    }

    #[tokio::test(start_paused = true)]
    async fn a_checkpoint_answers_at_once_and_denies_when_no_server_has_said_more() {
        let group = Group::new("dns-test");
        let services = SharedReflector::<Service>::detached();
        let slices = SharedReflector::<EndpointSlice>::detached();
        let service =
            json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": { "clusterIP": "10.96.0.5" } });
        services.seed(vec![serde_json::from_value(service).expect("service")]);
        slices.seed(Vec::new());
        let server = serve(&settings(0, vec![]), services, slices, &group);
        let began = clock::now();
        until(&server, "web.default.svc.cluster.local.", (ResponseCode::NoError, 1)).await;
        assert!(began.elapsed() < limits::CONFIRM_WAIT);
        assert_eq!(code(&server, "no.default.svc.cluster.local.").await, (ResponseCode::ServFail, 0));
        until(&server, "no.default.svc.cluster.local.", (ResponseCode::NXDomain, 0)).await;
        assert!(began.elapsed() >= limits::CONFIRM_WAIT);
        group.stop(Duration::from_secs(5)).await.expect("stops");
    }

    #[tokio::test]
    async fn other_names_go_to_the_next_resolver_that_answers() {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let dead = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let upstreams = vec![dead.local_addr().expect("address"), upstream.local_addr().expect("address")];
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((count, from)) = upstream.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..count]).expect("query");
                let mut reply = Message::response(query.metadata.id, OpCode::Query);
                reply.queries = query.queries;
                reply.metadata.response_code = ResponseCode::Refused;
                upstream.send_to(&reply.to_vec().expect("bytes"), from).await.expect("send");
            }
        });
        let (address, group) = running(upstreams).await;
        let deadline = Duration::from_secs(20);
        let reply =
            clock::timeout(deadline, ask(address, &query("example.org.", RecordType::A))).await.expect("in time");
        assert!(matches!(reply.metadata.response_code, ResponseCode::Refused | ResponseCode::ServFail));
        group.stop(Duration::from_secs(5)).await.expect("stops");
    }
}
