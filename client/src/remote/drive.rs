//! Keeps one connection alive: the only task that dials.
//!
//! Always holds: at most one connection takes new requests; one that was abandoned may finish its streams for a bounded
//! time.

use std::sync::Arc;

use pintle_base::backoff::Backoff;
use pintle_base::error::Chain;
use pintle_base::{clock, rng, task};
use tokio::sync::{mpsc, oneshot, watch};

use super::dial::{Dialed, Protocol, dial_any};
use super::heard::Heard;
use super::patience::Patience;
use super::{Endpoint, Live, Options, State, Wish};
use crate::limits;

pub(super) struct Driver {
    options: Options,
    /// The servers in the order they will be tried.
    ring: Vec<Endpoint>,
    state: watch::Sender<State>,
    current: watch::Sender<Option<Endpoint>>,
    wishes: mpsc::Receiver<Wish>,
    group: task::Group,
    next_id: u64,
    patience: Patience,
}

/// How a connection ended.
struct End {
    why: String,
    /// The server answered no ping in time.
    silence: bool,
}

/// From when on silence counts.
fn judged(heard: &Heard, since: clock::Instant) -> clock::Instant {
    heard.last().max(since)
}

impl End {
    fn left(why: &str) -> Self {
        Self { why: why.to_owned(), silence: false }
    }
}

impl Driver {
    pub(super) fn new(
        options: Options,
        state: watch::Sender<State>,
        current: watch::Sender<Option<Endpoint>>,
        wishes: mpsc::Receiver<Wish>,
        group: task::Group,
    ) -> Self {
        let mut ring = options.endpoints.clone();
        rng::shuffle(&mut ring);
        Self { options, ring, state, current, wishes, group, next_id: 1, patience: Patience::FIRST }
    }

    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(limits::REDIAL_FIRST, limits::REDIAL_MAX);
        loop {
            let name = self.options.server_name.as_deref();
            match dial_any(&self.ring, &self.options.tls, name, self.patience).await {
                Ok(dialed) => {
                    backoff.reset();
                    self.hold(dialed).await;
                }
                Err(failures) => {
                    if failures.silence {
                        self.patience.silence();
                    }
                    let failures = failures.texts.join("; ");
                    tracing::warn!(failures, "no server reachable, will retry");
                    self.state.send_modify(|state| state.last_failure = Arc::from(failures));
                    let delay = backoff.next_delay();
                    self.take_wishes_for(delay).await;
                }
            }
        }
    }

    /// Offers the connection to requests until it ends or is not wanted any more.
    async fn hold(&mut self, dialed: Dialed) {
        let Dialed { endpoint, sender, protocol, heard } = dialed;
        let id = self.next_id;
        self.next_id += 1;
        let (abandon, abandoned) = oneshot::channel();
        let mut ended = self.spawn_protocol(protocol, heard.clone(), abandoned);
        tracing::info!(%endpoint, "connected to server");
        let live = Live { id, endpoint: endpoint.clone(), sender };
        self.state.send_modify(|state| state.live = Some(live));
        self.current.send_replace(Some(endpoint.clone()));
        let (mut proven, mut since) = (clock::now() + limits::PATIENCE_PROVEN, clock::now());
        let End { why, silence } = loop {
            let patience = limits::KEEP_ALIVE_INTERVAL + self.patience.ping();
            tokio::select! {
                biased;
                end = &mut ended => break end.unwrap_or_else(|_| End::left("closed")),
                () = clock::sleep_until(judged(&heard, since) + patience) => {
                    let due = judged(&heard, since) + patience;
                    if due.elapsed() > limits::OVERSLEPT {
                        // It was this process that did not run; what came meanwhile has still to be read.
                        since = clock::now();
                    } else if due <= clock::now() {
                        break End { why: format!("silent for {patience:?}"), silence: true };
                    }
                },
                () = clock::sleep_until(proven) => {
                    self.patience.proven();
                    proven += limits::PATIENCE_PROVEN;
                }
                wish = self.wishes.recv() => match wish {
                    Some(wish) => if let Some(why) = self.grant(wish, id, &endpoint) { break End::left(why) },
                    None => break End::left("not used any more"),
                },
            }
        };
        if silence {
            self.patience.silence();
            heard.cut(); // nothing will come any more: whoever waits for an answer is told now
        }
        drop(abandon); // tells the protocol task to drain
        self.state.send_modify(|state| {
            state.live = None;
            state.last_failure = Arc::from(format!("{endpoint}: {why}"));
        });
        self.current.send_replace(None);
        tracing::info!(%endpoint, why, "left server");
        self.put_last(&endpoint);
    }

    /// Runs the connection's protocol in a task of its own; the receiver tells why it ended.
    fn spawn_protocol(
        &self,
        protocol: Protocol,
        heard: Heard,
        abandoned: oneshot::Receiver<()>,
    ) -> oneshot::Receiver<End> {
        let (end, ended) = oneshot::channel();
        self.group.spawn_until_stopped("connection-protocol", async move {
            let mut protocol = protocol;
            let result = tokio::select! {
                result = &mut protocol => result,
                _ = abandoned => match clock::timeout(limits::DRAIN, protocol).await {
                    Ok(result) => result,
                    Err(_) => return heard.cut(), // streams that are open still would keep it for ever
                },
            };
            let _ = end.send(match result {
                Ok(()) => End::left("closed by the server"),
                Err(error) => End { why: Chain(&error).to_string(), silence: error.is_timeout() },
            });
        });
        ended
    }

    /// Does what is wished; tells why the connection `id` must be left, if it must.
    fn grant(&mut self, wish: Wish, id: u64, endpoint: &Endpoint) -> Option<&'static str> {
        match wish {
            Wish::Abandon(abandoned) => (abandoned == id).then_some("it takes no more requests"),
            Wish::Tls(tls) => {
                self.options.tls = tls;
                Some("the certificate was renewed")
            }
            Wish::Endpoints(endpoints) => {
                self.replace_ring(endpoints);
                (!self.ring.contains(endpoint)).then_some("it is not a server any more")
            }
        }
    }

    fn replace_ring(&mut self, mut endpoints: Vec<Endpoint>) {
        endpoints.sort();
        endpoints.dedup();
        rng::shuffle(&mut endpoints);
        self.ring = endpoints;
    }

    /// The server that was just left is tried last.
    fn put_last(&mut self, endpoint: &Endpoint) {
        if let Some(at) = self.ring.iter().position(|other| other == endpoint) {
            let servers = self.ring.len();
            self.ring.rotate_left((at + 1) % servers);
        }
    }

    /// Waits for `delay`, or until there is something new to try.
    async fn take_wishes_for(&mut self, delay: std::time::Duration) {
        let until = clock::now() + delay;
        loop {
            match clock::timeout(until.saturating_duration_since(clock::now()), self.wishes.recv()).await {
                Ok(Some(Wish::Abandon(_))) => (),
                Ok(Some(Wish::Tls(tls))) => return self.options.tls = tls,
                Ok(Some(Wish::Endpoints(endpoints))) => return self.replace_ring(endpoints),
                Ok(None) | Err(_) => return clock::sleep_until(until).await,
            }
        }
    }
}
