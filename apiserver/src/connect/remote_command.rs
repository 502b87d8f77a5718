//! `pods/exec` and `pods/attach`: a WebSocket to the client, an agent stream to the container, frames between.

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use pintle_api::status::Status;
use pintle_base::clock;
use pintle_proto::node_v1::{Attach, Exec, Frame, open};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::channels::{CLOSE, ERROR, PROTOCOLS, Protocol, RESIZE, STDERR, STDIN, STDOUT};
use super::target::Target;
use super::{Ask, Reach, Way, forward};
use crate::node_session::AgentStream;
use crate::request::Query;
use crate::types::{Request, Response};

/// Largest message of a client. kubectl sends at most 32 KiB at once.
pub(super) const MESSAGE_BYTES: usize = 1024 * 1024;
/// Data is cut to this for the agent.
pub(super) const FRAME_DATA: usize = 32 * 1024;
/// Words and bytes of a command line: the kernel's own limit is 128 KiB for one word.
const COMMAND_BYTES: usize = 128 * 1024;
/// Time for the client to answer the closing handshake.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Exec,
    Attach,
}

/// Which of the standard streams are wanted.
#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn of(query: &Query) -> Result<Self, Status> {
        let flag = |name| query.flag(name);
        let wanted = Self { stdin: flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr"), tty: flag("tty") };
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        if wanted.tty && wanted.stderr {
            return Err(Status::bad_request("tty and stderr cannot both be true"));
        }
        Ok(wanted)
    }

    /// The channel on which an empty message tells the client that it is connected.
    fn greeting(self) -> u8 {
        match self {
            Self { stdout: true, .. } => STDOUT,
            Self { stderr: true, .. } => STDERR,
            _ => ERROR,
        }
    }
}

pub(super) async fn serve(reach: &Reach, verb: Verb, ask: Ask, request: Request) -> Result<Response, Status> {
    let wanted = Wanted::of(&ask.query)?;
    let kind = kind(verb, wanted, &ask.query)?;
    let target = Target::find(reach, &ask).await?;
    let container = target.container(&ask)?;
    let node = target.host(&ask.info.name)?;
    if !is_websocket(&request) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let mut open = target.open(&ask, container);
    open.kind = Some(kind);
    let agent = match reach.way(node, open, ask.forwarded).await? {
        Way::Through(peer) => return forward::pass(&reach.config, &peer, &ask.user, request).await,
        Way::Here(agent) => agent,
    };
    let upgrade = upgrade(request, PROTOCOLS.map(|protocol| protocol.name)).await?;
    let selected = upgrade.selected_protocol().and_then(|name| name.to_str().ok()).map(str::to_owned);
    let protocol = Protocol::of(selected.as_deref());
    Ok(upgrade.on_upgrade(move |socket| carry(socket, agent, protocol, wanted.greeting())))
}

fn kind(verb: Verb, wanted: Wanted, query: &Query) -> Result<open::Kind, Status> {
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    if verb == Verb::Attach {
        return Ok(open::Kind::Attach(Attach { stdin, stdout, stderr, tty }));
    }
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if command.is_empty() {
        return Err(Status::bad_request("you must specify at least one command for the container"));
    }
    if command.iter().map(String::len).sum::<usize>() > COMMAND_BYTES {
        return Err(Status::bad_request("the command is too long"));
    }
    Ok(open::Kind::Exec(Exec { command, stdin, stdout, stderr, tty }))
}

pub(super) fn is_websocket(request: &Request) -> bool {
    let upgrade = request.headers().get(http::header::UPGRADE);
    upgrade.is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Prepares the upgrade with the first of `protocols` that the client offers.
pub(super) async fn upgrade(
    request: Request,
    protocols: impl IntoIterator<Item = &'static str>,
) -> Result<WebSocketUpgrade, Status> {
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade = upgrade.map_err(|why| Status::bad_request(format!("unable to upgrade: {why}")))?;
    Ok(upgrade.protocols(protocols).max_message_size(MESSAGE_BYTES).max_frame_size(MESSAGE_BYTES))
}

/// Which side ended first.
enum Ended {
    Client,
    Agent,
}

async fn carry(socket: WebSocket, agent: AgentStream, protocol: Protocol, greeting: u8) {
    let AgentStream { mut inbound, outbound } = agent;
    let (mut sink, mut source) = socket.split();
    if sink.send(protocol.message(greeting, b"")).await.is_err() {
        return;
    }
    {
        let to_agent = client_to_agent(&mut source, &outbound, protocol);
        let to_client = agent_to_client(&mut inbound, &mut sink, protocol);
        tokio::pin!(to_client);
        tokio::select! {
            () = &mut to_client => (),
            ended = to_agent => match ended {
                Ended::Client => return,
                Ended::Agent => to_client.await,
            },
        }
    }
    farewell(&mut sink, &mut source).await;
}

async fn client_to_agent(
    source: &mut SplitStream<WebSocket>,
    outbound: &mpsc::Sender<Result<Frame, tonic::Status>>,
    protocol: Protocol,
) -> Ended {
    while let Some(Ok(message)) = source.next().await {
        if matches!(message, Message::Close(_)) {
            return Ended::Client;
        }
        let Some((channel, data)) = protocol.read(message) else { continue };
        let accepted = matches!(channel, STDIN | RESIZE) || (channel == CLOSE && protocol.version >= 5);
        if !accepted {
            continue;
        }
        let mut rest = data;
        loop {
            let piece = rest.split_to(rest.len().min(FRAME_DATA));
            let frame = Frame { stream_id: 0, channel: channel.into(), data: piece };
            if outbound.send(Ok(frame)).await.is_err() {
                return Ended::Agent;
            }
            if rest.is_empty() {
                break;
            }
        }
    }
    Ended::Client
}

/// Returns when the agent has said its last word, or the client cannot be reached any more.
async fn agent_to_client(inbound: &mut Streaming<Frame>, sink: &mut SplitSink<WebSocket, Message>, protocol: Protocol) {
    loop {
        let frame = match inbound.message().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(status) => {
                let lost = Status::internal(format!("the connection to the node was lost ({:?})", status.code()));
                if let Some(text) = protocol.error(lost.to_value().to_string().as_bytes()) {
                    let _ = sink.send(protocol.message(ERROR, &text)).await;
                }
                return;
            }
        };
        let message = match u8::try_from(frame.channel) {
            Ok(channel @ (STDOUT | STDERR)) if !frame.data.is_empty() => protocol.message(channel, &frame.data),
            Ok(ERROR) => match protocol.error(&frame.data) {
                Some(text) => protocol.message(ERROR, &text),
                None => continue,
            },
            _ => continue,
        };
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

/// Closes in order, so that the client has read everything before the connection ends.
pub(super) async fn farewell(sink: &mut SplitSink<WebSocket, Message>, source: &mut SplitStream<WebSocket>) {
    let close = Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }));
    if sink.send(close).await.is_err() {
        return;
    }
    let drained = async { while let Some(Ok(_)) = source.next().await {} };
    let _ = clock::timeout(FAREWELL, drained).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_before_anything_is_opened() {
        let read = |text: &str| {
            let query = Query::parse(Some(text));
            Wanted::of(&query).and_then(|wanted| kind(Verb::Exec, wanted, &query))
        };
        assert!(read("stdout=1&command=ls&command=-l").is_ok_and(
            |kind| matches!(kind, open::Kind::Exec(exec) if exec.command == ["ls", "-l"] && exec.stdout && !exec.tty)
        ));
        for bad in ["command=ls", "stdout=1", "stdout=1&stderr=1&tty=1&command=sh"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
