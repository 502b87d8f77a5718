//! The agent's session with a server (D11): the server asks, the agent opens the stream, both over one connection.
//!
//! Always holds: a stream ends when either side ends it; nothing a server asks can stop a pod from running.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_base::task::Group;
use pintle_client::{Connection, Key, SharedReflector};
use pintle_proto::node_v1::node_client::NodeClient;
use pintle_proto::node_v1::{
    AgentMessage, Frame, Hello, Logs, Open, Refused, ServerMessage, agent_message, open, server_message,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::{forward, logs};
use crate::limits;
use crate::pods::Context;
use crate::pods::seen::ContainerSeen;
use crate::runtime::{Interactive, Wanted, channel, failure};

type Client = NodeClient<Connection>;

/// Why a stream is not opened: HTTP code, reason, message.
#[derive(Debug)]
struct Refusal(u32, &'static str, String);

/// Serves sessions, one after the other, until dropped.
pub struct Sessions {
    pub context: Arc<Context>,
    pub pods: SharedReflector<Pod>,
    pub connection: Connection,
    pub group: Group,
    pub streams: Arc<Semaphore>,
}

impl Sessions {
    pub fn new(context: Arc<Context>, pods: SharedReflector<Pod>, connection: Connection, group: Group) -> Arc<Self> {
        Arc::new(Self { context, pods, connection, group, streams: Arc::new(Semaphore::new(limits::STREAMS)) })
    }

    pub async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        loop {
            match self.serve(&mut backoff).await {
                Ok(()) => tracing::info!("session ended by the server"),
                Err(status) => tracing::debug!(code = ?status.code(), message = status.message(), "session lost"),
            }
            clock::sleep(backoff.next_delay()).await;
        }
    }

    async fn serve(self: &Arc<Self>, backoff: &mut Backoff) -> Result<(), tonic::Status> {
        let (out, messages) = mpsc::channel(limits::STREAM_FRAMES);
        let hello =
            Hello { node_name: self.context.node_name.clone(), agent_version: env!("CARGO_PKG_VERSION").to_owned() };
        let hello = AgentMessage { message: Some(agent_message::Message::Hello(hello)) };
        out.send(hello).await.map_err(|_| tonic::Status::internal("session queue closed"))?;
        let mut client: Client = NodeClient::new(self.connection.clone());
        let mut wishes = client.session(ReceiverStream::new(messages)).await?.into_inner();
        while let Some(ServerMessage { message }) = wishes.message().await? {
            match message {
                Some(server_message::Message::Welcome(welcome)) => {
                    backoff.reset();
                    tracing::info!(server = %welcome.server_name, "session open");
                }
                Some(server_message::Message::Open(open)) => {
                    let (sessions, out) = (Arc::clone(self), out.clone());
                    self.group.spawn_until_stopped("stream", async move { sessions.open(open, out).await });
                }
                None => (),
            }
        }
        Ok(())
    }

    async fn open(self: Arc<Self>, open: Open, out: mpsc::Sender<AgentMessage>) {
        let stream_id = open.stream_id;
        if let Err(Refusal(http_code, reason, message)) = self.try_open(open).await {
            let refused = Refused { stream_id, http_code, reason: reason.to_owned(), message };
            let message = AgentMessage { message: Some(agent_message::Message::Refused(refused)) };
            // A session that is gone has taken its askers with it.
            let _ = out.send(message).await;
        }
    }

    async fn try_open(&self, open: Open) -> Result<(), Refusal> {
        let Ok(_permit) = self.streams.try_acquire() else {
            return Err(Refusal(429, "TooManyRequests", "too many streams on this node".to_owned()));
        };
        let internal = |text: String| Refusal(500, "InternalError", text);
        let Some(kind) = open.kind.clone() else {
            return Err(Refusal(400, "BadRequest", "stream of no known kind".to_owned()));
        };
        let pod = self.pods.get(&Key::new(open.namespace.clone(), open.pod.clone()));
        let pod = pod.filter(|pod| open.pod_uid.is_empty() || pod.metadata.uid.as_deref() == Some(&open.pod_uid));
        let missing = || Refusal(404, "NotFound", format!("pod \"{}\" does not run on this node", open.pod));
        let pod = pod.ok_or_else(missing)?;
        match kind {
            open::Kind::PortForward(wish) => {
                let seen = self.context.look(pod.metadata.uid.as_deref().unwrap_or_default()).await;
                let seen = seen.map_err(|error| internal(Chain(&error).to_string()))?;
                let sandbox = seen
                    .sandbox()
                    .ok_or_else(|| Refusal(400, "BadRequest", "pod has no running sandbox".to_owned()))?;
                let port = u16::try_from(wish.port).ok().filter(|port| *port > 0);
                let port = port.ok_or_else(|| Refusal(400, "BadRequest", "port out of range".to_owned()))?;
                let connect = forward::connect(sandbox.network_namespace.clone(), port).await;
                self.forward(open.stream_id, connect).await
            }
            open::Kind::Logs(wish) => {
                let (path, running) = self.log_of(&pod, &open.container, &wish).await?;
                self.logs(open.stream_id, path, running, &wish).await
            }
            open::Kind::Exec(wish) => {
                let container = self.running(&pod, &open.container).await?;
                let wanted = Wanted { stdin: wish.stdin, stdout: wish.stdout, stderr: wish.stderr, tty: wish.tty };
                let started = self.context.runtime.exec(&container.id, &wish.command, wanted).await;
                self.interact(open.stream_id, started.map_err(|error| internal(Chain(&error).to_string()))?).await
            }
            open::Kind::Attach(wish) => {
                let container = self.running(&pod, &open.container).await?;
                let wanted = Wanted { stdin: wish.stdin, stdout: wish.stdout, stderr: wish.stderr, tty: wish.tty };
                let started = self.context.runtime.attach(&container.id, wanted).await;
                self.interact(open.stream_id, started.map_err(|error| internal(Chain(&error).to_string()))?).await
            }
        }
        .map_err(|status| internal(status.message().to_owned()))
    }

    /// The name of the container meant: the given one, or the first of the spec.
    fn container_name(pod: &Pod, asked: &str) -> Result<String, Refusal> {
        let mut names = crate::pods::resources::containers(pod).map(|container| container.name.as_str());
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        if asked.is_empty() {
            let first =
                pod.spec.as_ref().and_then(|spec| spec.containers.first()).map(|container| container.name.clone());
            return first.ok_or_else(|| Refusal(400, "BadRequest", format!("pod {pod_name} has no containers")));
        }
        let found = names.any(|name| name == asked);
        found
            .then(|| asked.to_owned())
            .ok_or_else(|| Refusal(400, "BadRequest", format!("container {asked} is not valid for pod {pod_name}")))
    }

    async fn instances(&self, pod: &Pod, name: &str) -> Result<Vec<ContainerSeen>, Refusal> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let seen =
            self.context.look(uid).await.map_err(|error| Refusal(500, "InternalError", Chain(&error).to_string()))?;
        Ok(seen.containers.into_iter().filter(|container| container.name == name).collect())
    }

    async fn running(&self, pod: &Pod, asked: &str) -> Result<ContainerSeen, Refusal> {
        let name = Self::container_name(pod, asked)?;
        let found = self.instances(pod, &name).await?.into_iter().find(ContainerSeen::running);
        found.ok_or_else(|| Refusal(400, "BadRequest", format!("container not found (\"{name}\")")))
    }

    /// The log file meant, and whether its container runs.
    async fn log_of(&self, pod: &Pod, asked: &str, wish: &Logs) -> Result<(PathBuf, watch::Receiver<bool>), Refusal> {
        let name = Self::container_name(pod, asked)?;
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        let instances = self.instances(pod, &name).await?;
        let Some(chosen) = meant(pod, &name, &instances, wish.previous) else {
            let text = if wish.previous {
                format!("previous terminated container \"{name}\" in pod \"{pod_name}\" not found")
            } else {
                format!("container \"{name}\" in pod \"{pod_name}\" is waiting to start: ContainerCreating")
            };
            return Err(Refusal(400, "BadRequest", text));
        };
        let (alive, running) = watch::channel(chosen.running());
        if wish.follow && chosen.running() {
            let (runtime, id) = (Arc::clone(&self.context.runtime), chosen.id.clone());
            self.group.spawn_until_stopped("log-follow", async move {
                let mut ticker = clock::ticker(limits::RELIST);
                loop {
                    tokio::select! {
                        _ = ticker.tick() => (),
                        () = alive.closed() => return,
                    }
                    let runs = runtime
                        .container(&id)
                        .await
                        .map(|status| status.state == pintle_proto::cri_v1::ContainerState::ContainerRunning as i32);
                    let gone = runs.as_ref().err().is_some_and(crate::runtime::RuntimeError::is_not_found);
                    if gone || matches!(runs, Ok(false)) {
                        alive.send_replace(false);
                        return;
                    }
                }
            });
        }
        Ok((chosen.log_path.clone(), running))
    }

    /// Opens the stream's call; its first frame says which wish it answers.
    async fn call(&self, stream_id: u64) -> Result<(mpsc::Sender<Frame>, tonic::Streaming<Frame>), tonic::Status> {
        let (out, frames) = mpsc::channel(limits::STREAM_FRAMES);
        let first = Frame { stream_id, channel: 0, data: Bytes::new() };
        out.send(first).await.map_err(|_| tonic::Status::internal("stream queue closed"))?;
        let mut client: Client = NodeClient::new(self.connection.clone());
        let answers = client.stream(ReceiverStream::new(frames)).await?.into_inner();
        Ok((out, answers))
    }

    async fn logs(
        &self,
        stream_id: u64,
        path: PathBuf,
        running: watch::Receiver<bool>,
        wish: &Logs,
    ) -> Result<(), tonic::Status> {
        let (out, mut answers) = self.call(stream_id).await?;
        if !self.context.runtime.is_real() {
            let data = Bytes::from_static(b"this node is simulated: its containers write no logs\n");
            let sent = out.send(Frame { stream_id: 0, channel: channel::STDOUT, data }).await;
            finish(out, answers).await;
            return sent.map_err(|_| tonic::Status::cancelled("reader is gone"));
        }
        let now = clock::unix_seconds();
        let ago = wish.since_seconds.and_then(|seconds| Timestamp::from_second(now.saturating_sub(seconds)).ok());
        let options = logs::Options {
            follow: wish.follow,
            timestamps: wish.timestamps,
            since: wish.since_time.parse().ok().or(ago),
            tail: wish.tail_lines.map(|lines| u64::try_from(lines).unwrap_or(0)),
            limit: wish.limit_bytes.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
        };
        let (pieces_out, mut pieces) = mpsc::channel::<logs::Piece>(4);
        let reading = logs::stream(path, options, running, pieces_out);
        let writing = async {
            while let Some(piece) = pieces.recv().await {
                let channel = if piece.is_stderr { channel::STDERR } else { channel::STDOUT };
                let mut data = piece.text;
                while !data.is_empty() {
                    let data = data.split_to(data.len().min(limits::FRAME_BYTES));
                    if out.send(Frame { stream_id: 0, channel, data }).await.is_err() {
                        return;
                    }
                }
            }
        };
        let ended = tokio::select! {
            (result, ()) = async { tokio::join!(reading, writing) } => Some(result),
            () = drain(&mut answers) => None,
        };
        if let Some(Err(error)) = &ended {
            let data = Bytes::from(failure(&format!("read the log: {error}")));
            // The reader may be gone already.
            let _ = out.send(Frame { stream_id: 0, channel: channel::ERROR, data }).await;
        }
        if ended.is_some() {
            finish(out, answers).await;
        }
        Ok(())
    }

    async fn interact(&self, stream_id: u64, mut started: Interactive) -> Result<(), tonic::Status> {
        let (out, mut answers) = self.call(stream_id).await?;
        let input = started.input;
        let towards = async {
            while let Ok(Some(frame)) = answers.message().await {
                if input.send((frame.channel, frame.data)).await.is_err() {
                    break;
                }
            }
            // The user went away: dropping the input ends the command.
            drop(input);
            std::future::pending::<()>().await;
        };
        let back = async {
            while let Some((channel, data)) = started.output.recv().await {
                if out.send(Frame { stream_id: 0, channel, data }).await.is_err() {
                    return;
                }
            }
        };
        let ended = tokio::select! {
            () = back => true,
            () = towards => true,
            () = out.closed() => false,
        };
        if ended {
            finish(out, answers).await;
        }
        Ok(())
    }

    async fn forward(
        &self,
        stream_id: u64,
        connect: std::io::Result<tokio::net::TcpStream>,
    ) -> Result<(), tonic::Status> {
        let (out, mut answers) = self.call(stream_id).await?;
        let stream = match connect {
            Ok(stream) => stream,
            Err(error) => {
                let text = failure(&error.to_string());
                // The asker may be gone already.
                let _ = out.send(Frame { stream_id: 0, channel: channel::ERROR, data: Bytes::from(text) }).await;
                finish(out, answers).await;
                return Ok(());
            }
        };
        let (mut reader, mut writer) = stream.into_split();
        let towards = async {
            while let Ok(Some(frame)) = answers.message().await {
                let done = match frame.channel {
                    channel::STDIN => writer.write_all(&frame.data).await.is_err(),
                    channel::CLOSE => writer.shutdown().await.is_err(),
                    _ => false,
                };
                if done {
                    return;
                }
            }
        };
        let back = async {
            let mut buffer = vec![0; limits::FRAME_BYTES];
            while let Ok(count) = reader.read(&mut buffer).await {
                let data = Bytes::copy_from_slice(&buffer[..count]);
                if count == 0 || out.send(Frame { stream_id: 0, channel: channel::STDOUT, data }).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = back => (),
            () = towards => (),
        }
        finish(out, answers).await;
        Ok(())
    }
}

/// The instance of container `name` whose log is asked for. `instances` are those that are there, newest first.
///
/// The previous one is, as upstream, what the pod's status calls the last state: in a crash loop the newest one. Where that
/// names none that is here, the status is behind: the last one known to have ended before the newest is taken.
fn meant<'a>(pod: &Pod, name: &str, instances: &'a [ContainerSeen], previous: bool) -> Option<&'a ContainerSeen> {
    let (newest, earlier) = instances.split_first()?;
    if !previous {
        return Some(newest);
    }
    let status = pod.status.as_ref();
    let apps = status.and_then(|status| status.container_statuses.as_ref());
    let inits = status.and_then(|status| status.init_container_statuses.as_ref());
    let told = apps.into_iter().chain(inits).flatten().find(|status| status.name == name);
    let last = told.and_then(|status| status.last_state.as_ref()?.terminated.as_ref()?.container_id.as_deref());
    let last = last.and_then(|id| id.split_once("://")).map(|(_, id)| id);
    instances
        .iter()
        .find(|instance| Some(instance.id.as_str()) == last)
        .or_else(|| earlier.iter().find(|instance| instance.exited()))
}

/// Reads the server's side of a stream to its end.
async fn drain(answers: &mut tonic::Streaming<Frame>) {
    while let Ok(Some(_)) = answers.message().await {}
}

/// Ends our side of a stream and waits until the server has ended its own. Dropping the call earlier would reset the
/// stream, and take away frames that are still on their way.
async fn finish(out: mpsc::Sender<Frame>, mut answers: tonic::Streaming<Frame>) {
    drop(out);
    drain(&mut answers).await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pods::seen::State;

    /// Which of these instances (`+` runs, `-` has ended; newest first) is meant under this status.
    #[track_caller]
    fn check(status: Value, instances: &str, want: [Option<&str>; 2]) {
        let status = json!({ "status": { "containerStatuses": [{ "name": "a" }, status] } });
        let pod: Pod = serde_json::from_value(status).expect("pod");
        let instances: Vec<ContainerSeen> = instances
            .split(' ')
            .filter(|word| !word.is_empty())
            .map(|word| ContainerSeen {
                id: word[1..].to_owned(),
                name: "main".to_owned(),
                state: if word.starts_with('+') { State::Running } else { State::Exited },
                ..ContainerSeen::default()
            })
            .collect();
        let of = |previous| meant(&pod, "main", &instances, previous).map(|instance| instance.id.as_str());
        assert_eq!([of(false), of(true)], want);
    }

    fn last(id: &str) -> Value {
        json!({ "name": "main", "lastState": { "terminated": { "exitCode": 1, "containerID": format!("containerd://{id}") } } })
    }

    #[test]
    fn the_previous_log_is_of_what_the_status_calls_the_last_state() {
        check(last("c2"), "-c2 -c1", [Some("c2"), Some("c2")]); // a crash loop waits
        check(last("c2"), "-c2", [Some("c2"), Some("c2")]);
        check(last("c1"), "-c2 -c1", [Some("c2"), Some("c1")]); // the newest is the current state
        check(last("c1"), "+c2 -c1", [Some("c2"), Some("c1")]);
    }

    #[test]
    fn without_a_last_state_only_an_earlier_instance_is_previous() {
        let none = || json!({ "name": "main" });
        check(none(), "", [None, None]);
        check(none(), "+c1", [Some("c1"), None]);
        check(none(), "-c1", [Some("c1"), None]);
        check(none(), "+c2 -c1", [Some("c2"), Some("c1")]);
        check(last("gone"), "+c3 -c2", [Some("c3"), Some("c2")]);
    }
}
