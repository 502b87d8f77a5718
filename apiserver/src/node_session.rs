//! Sessions of node agents: how a server reaches a node that it cannot dial (D11).
//!
//! An agent dials one server and holds `Session` open; for each stream the server wants (log, exec, port-forward) it
//! sends `Open` with an id of 64 random bits, and the agent answers with a `Stream` call of that id. [`Sessions`] knows
//! the agents of this server, [`directory`] which server holds which node, for the others to find it.
//!
//! Always holds: a node speaks only for itself (its certificate says who it is), a stream id works once and only for the
//! node it was made for, and every queue between agent and client is bounded.

pub(crate) mod directory;
pub(crate) mod limits;
mod service;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pintle_base::{clock, rng};
use pintle_proto::node_v1::{Frame, Open, Refused, ServerMessage, server_message};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

pub(crate) use service::{PATH_PREFIX, Service};

/// Why no stream to a node could be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("no session of this node here")]
    NoSession,
    #[error("the agent refused: {}", .0.message)]
    Refused(Refused),
    #[error("the agent did not answer in time")]
    Timeout,
    #[error("too many streams to this node")]
    TooMany,
}

/// A stream between this server and an agent. Ends for the agent when it is dropped.
pub(crate) struct AgentStream {
    pub inbound: Streaming<Frame>,
    pub outbound: mpsc::Sender<Result<Frame, Status>>,
}

/// What a waiting open gets.
type Outcome = Result<AgentStream, Refused>;

struct Waiting {
    node: String,
    reply: oneshot::Sender<Outcome>,
}

struct Session {
    /// Tells sessions of the same node apart.
    generation: u64,
    messages: mpsc::Sender<Result<ServerMessage, Status>>,
}

/// The agents connected to this server. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Sessions {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: Mutex<HashMap<String, Session>>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    generations: AtomicU64,
}

impl Sessions {
    /// Nodes with a session here, in any order.
    pub fn nodes(&self) -> Vec<String> {
        self.inner.sessions.lock().keys().cloned().collect()
    }

    /// Enters a session; an earlier one of the node ends. `None` if there are too many.
    fn enter(&self, node: &str, messages: mpsc::Sender<Result<ServerMessage, Status>>) -> Option<u64> {
        let generation = self.inner.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let mut sessions = self.inner.sessions.lock();
        if sessions.len() >= limits::SESSIONS && !sessions.contains_key(node) {
            return None;
        }
        sessions.insert(node.to_owned(), Session { generation, messages });
        Some(generation)
    }

    /// Removes a session if it is still this one. True if it was.
    fn leave(&self, node: &str, generation: u64) -> bool {
        let mut sessions = self.inner.sessions.lock();
        let same = sessions.get(node).is_some_and(|session| session.generation == generation);
        if same {
            sessions.remove(node);
        }
        same
    }

    /// Asks the agent of `node` for a stream. `open.stream_id` is set here.
    pub async fn open(&self, node: &str, mut open: Open) -> Result<AgentStream, OpenError> {
        let messages = {
            let sessions = self.inner.sessions.lock();
            sessions.get(node).ok_or(OpenError::NoSession)?.messages.clone()
        };
        let (id, answer) = self.expect(node)?;
        let _guard = Forget { sessions: self, id };
        open.stream_id = id;
        let message = ServerMessage { message: Some(server_message::Message::Open(open)) };
        let asked = async {
            messages.send(Ok(message)).await.map_err(|_| OpenError::NoSession)?;
            match answer.await {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(refused)) => Err(OpenError::Refused(refused)),
                Err(_) => Err(OpenError::NoSession),
            }
        };
        clock::timeout(limits::OPEN_TIMEOUT, asked).await.unwrap_or(Err(OpenError::Timeout))
    }

    fn expect(&self, node: &str) -> Result<(u64, oneshot::Receiver<Outcome>), OpenError> {
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.inner.waiting.lock();
        if waiting.values().filter(|one| one.node == node).count() >= limits::OPENING_PER_NODE {
            return Err(OpenError::TooMany);
        }
        let mut id = rng::u64();
        while id == 0 || waiting.contains_key(&id) {
            id = rng::u64();
        }
        waiting.insert(id, Waiting { node: node.to_owned(), reply });
        Ok((id, answer))
    }

    /// Takes the open that waits for this id, if it was made for this node.
    fn claim(&self, node: &str, id: u64) -> Option<oneshot::Sender<Outcome>> {
        let mut waiting = self.inner.waiting.lock();
        if waiting.get(&id).is_none_or(|one| one.node != node) {
            return None;
        }
        waiting.remove(&id).map(|one| one.reply)
    }
}

/// Forgets an open that nobody waits for any more.
struct Forget<'a> {
    sessions: &'a Sessions,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.sessions.inner.waiting.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(sessions: &Sessions, node: &str) -> (u64, mpsc::Receiver<Result<ServerMessage, Status>>) {
        let (messages, receiver) = mpsc::channel(4);
        (sessions.enter(node, messages).expect("room"), receiver)
    }

    fn opened(message: Option<Result<ServerMessage, Status>>) -> Open {
        match message.expect("message").expect("ok").message {
            Some(server_message::Message::Open(open)) => open,
            other => panic!("unexpected {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_refusal_reaches_the_one_who_asked() {
        let sessions = Sessions::default();
        let (_, mut agent) = enter(&sessions, "n1");
        let asking = tokio::spawn({
            let sessions = sessions.clone();
            async move { sessions.open("n1", Open::default()).await.map(|_| ()) }
        });
        let id = opened(agent.recv().await).stream_id;
        assert!(sessions.claim("n2", id).is_none(), "another node cannot answer");
        let refused = Refused { stream_id: id, http_code: 400, reason: "BadRequest".into(), message: "no".into() };
        sessions.claim("n1", id).expect("waiting").send(Err(refused)).ok().expect("listening");
        assert!(matches!(asking.await.expect("task"), Err(OpenError::Refused(refused)) if refused.http_code == 400));
        assert!(sessions.claim("n1", id).is_none(), "an id works once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_agent_times_out_and_leaves_nothing_behind() {
        let sessions = Sessions::default();
        let (_, _agent) = enter(&sessions, "n1");
        assert!(matches!(sessions.open("n1", Open::default()).await, Err(OpenError::Timeout)));
        assert!(sessions.inner.waiting.lock().is_empty());
        assert!(matches!(sessions.open("n2", Open::default()).await, Err(OpenError::NoSession)));
    }

    #[test]
    fn a_newer_session_replaces_and_the_older_cannot_remove_it() {
        let sessions = Sessions::default();
        let (first, _a) = enter(&sessions, "n1");
        let (second, _b) = enter(&sessions, "n1");
        assert!(!sessions.leave("n1", first));
        assert_eq!(sessions.nodes(), ["n1"]);
        assert!(sessions.leave("n1", second));
        assert!(sessions.nodes().is_empty());
    }
}
