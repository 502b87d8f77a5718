//! How a member with an empty data directory gets into the cluster: it founds it together with the others, or it joins.
//!
//! It founds if a majority of the founders, itself included, says that there is no cluster yet. Otherwise, or if it is no
//! founder, it joins: it learns which leaders are too old ([`crate::fence`]) and only then receives the log, but neither
//! votes nor campaigns until it has applied what a leader had committed after it started. A member whose disk was wiped has
//! forgotten its votes and the entries it acknowledged; so it can do no harm (I14).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pintle_base::clock;

use crate::fatal::Fatal;
use crate::identity::{self, Identity};
use crate::node::Node;
use crate::{fence, limits, read};

/// What the founders say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// A majority has no cluster.
    Found,
    /// There is one.
    Join,
    /// Too few have answered.
    Unclear,
}

/// Brings the member into the cluster, then ends. `step` is the longest election timeout.
pub(crate) async fn run(node: Arc<Node>, has_log: bool, step: Duration) {
    tokio::select! {
        biased;
        () = node.stop.cancelled() => (),
        () = enter(&node, has_log, step) => (),
    }
}

async fn enter(node: &Node, has_log: bool, step: Duration) {
    let founder = node.founders.contains_key(&node.me().id);
    let joining = node.joining.load(Ordering::Acquire);
    if founder && !has_log && (!joining || ask_founders(node).await == Answer::Found) {
        admit(node);
        return found(node, step).await;
    }
    if !joining {
        return;
    }
    tracing::info!("joining the cluster: asking the others which leaders are too old");
    fence::learn(node).await;
    tracing::info!("joining the cluster: receiving the log, not voting yet");
    while let Err(error) = read::round_applied(node).await {
        tracing::debug!(%error, "still joining");
        clock::sleep(limits::PROBE_RETRY).await;
    }
    tracing::info!("joined the cluster");
    admit(node);
}

/// From now on the member may vote; it remembers that.
fn admit(node: &Node) {
    let identity = {
        let mut identity = node.identity.lock();
        *identity = Identity { joining: false, ..*identity };
        *identity
    };
    if let Err(error) = identity::write(&node.data_dir, identity) {
        node.fatal.report(Fatal::Log(format!("write the identity file: {error}")));
        return;
    }
    node.set_admitted();
}

/// Starts the first election. All founders would write the same first entry; they do it one after the other, so that the
/// first one has their votes before the next one asks for votes of its own.
async fn found(node: &Node, step: Duration) {
    let rank = node.founders.keys().take_while(|id| **id != node.me().id).count();
    let deadline = clock::now() + step * u32::try_from(rank).unwrap_or(u32::MAX);
    while clock::now() < deadline {
        if node.is_established() || node.leader().is_some() {
            return;
        }
        clock::sleep(limits::LEADER_RETRY).await;
    }
    match node.raft.initialize(node.founders.clone()).await {
        Ok(()) => tracing::info!(members = node.founders.len(), "founding the cluster"),
        // Another founder was faster, its entries have arrived.
        Err(error) => tracing::debug!(%error, "not founding the cluster"),
    }
}

async fn ask_founders(node: &Node) -> Answer {
    loop {
        let answer = probe(node).await;
        if answer != Answer::Unclear {
            return answer;
        }
        clock::sleep(limits::PROBE_RETRY).await;
    }
}

async fn probe(node: &Node) -> Answer {
    let others = node.founders.keys().filter(|id| **id != node.me().id);
    let mut answers: FuturesUnordered<_> =
        others.filter_map(|id| node.link(*id)).map(|link| async move { link.probe().await }).collect();
    let majority = node.founders.len() / 2 + 1;
    let mut fresh = 1;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) if answer.established => return Answer::Join,
            Ok(_) => fresh += 1,
            Err(error) => tracing::debug!(%error, "a founder does not answer"),
        }
    }
    if fresh >= majority && !node.is_established() { Answer::Found } else { Answer::Unclear }
}
