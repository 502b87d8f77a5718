//! `pods/portforward` over WebSocket channels: per port a data and an error channel, each opened by its port number.
//!
//! This is the form `v4.channel.k8s.io` gives it (used by kube-rs and browsers). The SPDY form that kubectl tunnels is
//! refused with the reason, so that a client can say why.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, SplitSink};
use futures::{SinkExt, StreamExt};
use pintle_api::status::Status;
use pintle_proto::node_v1::{Frame, PortForward, open};
use tokio::sync::{Mutex, mpsc};

use super::channels::{PROTOCOLS, Protocol};
use super::remote_command::{FRAME_DATA, farewell, is_websocket, upgrade};
use super::target::Target;
use super::{Ask, Reach, Way, forward};
use crate::node_session::AgentStream;
use crate::request::Query;
use crate::types::{Request, Response};

/// Ports of one request; each is a stream of its own to the agent.
const PORTS_MAX: usize = 32;

const DATA: u32 = 0;
const ERROR: u32 = 3;

pub(super) async fn serve(reach: &Reach, ask: Ask, request: Request) -> Result<Response, Status> {
    let target = Target::find(reach, &ask).await?;
    let node = target.host(&ask.info.name)?;
    if !is_websocket(&request) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    if !offers_channels(&request) {
        return Err(Status::bad_request(
            "unable to upgrade: port forwarding is served over the WebSocket protocol v4.channel.k8s.io only",
        ));
    }
    let ports = ports(&ask.query)?;
    let mut agents = Vec::with_capacity(ports.len());
    for port in &ports {
        let mut open = target.open(&ask, String::new());
        open.kind = Some(open::Kind::PortForward(PortForward { port: u32::from(*port) }));
        match reach.way(node, open, ask.forwarded).await? {
            Way::Through(peer) => return forward::pass(&reach.config, &peer, &ask.user, request).await,
            Way::Here(agent) => agents.push(agent),
        }
    }
    let upgrade = upgrade(request, PROTOCOLS.map(|protocol| protocol.name)).await?;
    let selected = upgrade.selected_protocol().and_then(|name| name.to_str().ok()).map(str::to_owned);
    let protocol = Protocol::of(selected.as_deref());
    Ok(upgrade.on_upgrade(move |socket| carry(socket, protocol, ports, agents)))
}

fn offers_channels(request: &Request) -> bool {
    let offered = request.headers().get_all(http::header::SEC_WEBSOCKET_PROTOCOL);
    let mut names = offered.iter().filter_map(|value| value.to_str().ok()).flat_map(|line| line.split(','));
    names.any(|name| PROTOCOLS.iter().any(|protocol| protocol.name == name.trim()))
}

fn ports(query: &Query) -> Result<Vec<u16>, Status> {
    let words = query.all("ports").flat_map(|line| line.split(',')).filter(|word| !word.is_empty());
    let ports: Option<Vec<u16>> = words.map(|word| word.trim().parse().ok().filter(|port| *port > 0)).collect();
    match ports {
        Some(ports) if (1..=PORTS_MAX).contains(&ports.len()) => Ok(ports),
        _ => Err(Status::bad_request(format!("query parameter \"ports\" must name 1 to {PORTS_MAX} ports"))),
    }
}

type Sink = Arc<Mutex<SplitSink<WebSocket, Message>>>;

async fn carry(socket: WebSocket, protocol: Protocol, ports: Vec<u16>, agents: Vec<AgentStream>) {
    let (sink, mut source) = socket.split();
    let sink: Sink = Arc::new(Mutex::new(sink));
    let mut to_agents: BTreeMap<u8, mpsc::Sender<Result<Frame, tonic::Status>>> = BTreeMap::new();
    let mut from_agents = FuturesUnordered::new();
    for (n, (port, agent)) in ports.into_iter().zip(agents).enumerate() {
        let Ok(channel) = u8::try_from(n * 2) else { return };
        for number in [channel, channel + 1] {
            let hello = protocol.message(number, &port.to_le_bytes());
            if sink.lock().await.send(hello).await.is_err() {
                return;
            }
        }
        to_agents.insert(channel, agent.outbound);
        from_agents.push(agent_to_client(agent.inbound, Arc::clone(&sink), protocol, channel));
    }
    let client = async {
        while let Some(Ok(message)) = source.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
            let Some((channel, data)) = protocol.read(message) else { continue };
            if let Some(agent) = to_agents.get(&channel) {
                send(agent, data).await;
            }
        }
    };
    let agents_done = async { while from_agents.next().await.is_some() {} };
    let client_left = tokio::select! {
        () = client => true,
        () = agents_done => false,
    };
    if !client_left {
        farewell(&mut *sink.lock().await, &mut source).await;
    }
}

async fn send(agent: &mpsc::Sender<Result<Frame, tonic::Status>>, mut data: Bytes) {
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(FRAME_DATA));
        if agent.send(Ok(Frame { stream_id: 0, channel: DATA, data: piece })).await.is_err() {
            return;
        }
    }
}

async fn agent_to_client(mut inbound: tonic::Streaming<Frame>, sink: Sink, protocol: Protocol, channel: u8) {
    while let Ok(Some(frame)) = inbound.message().await {
        let message = match frame.channel {
            ERROR => match error_text(&frame.data) {
                Some(text) => protocol.message(channel + 1, text.as_bytes()),
                None => continue,
            },
            _ if frame.data.is_empty() => continue,
            _ => protocol.message(channel, &frame.data),
        };
        if sink.lock().await.send(message).await.is_err() {
            return;
        }
    }
}

fn error_text(status: &[u8]) -> Option<String> {
    let status: Status = serde_json::from_slice(status).ok()?;
    (status.status == "Failure").then_some(status.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_in_bounds() {
        let read = |query: &str| ports(&Query::parse(Some(query)));
        assert_eq!(read("ports=80&ports=443,8080").expect("ports"), [80, 443, 8080]);
        for bad in ["", "ports=0", "ports=65536", "ports=x", "ports=80,x"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
