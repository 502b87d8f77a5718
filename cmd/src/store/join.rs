//! Which member this is, and of which cluster: by its data directory once it has one; before that as a founder by its flags,
//! and as one that was added by asking the others.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::task::Group;
use pintle_raft as raft;

use super::config::{Config, Founder};
use crate::member;

/// How long a member that has data asks the others where they are now, before it goes by its flags.
const PATIENCE: Duration = Duration::from_secs(3);

/// Between two questions while the others may not have heard of this member yet.
const AGAIN: Duration = Duration::from_millis(200);

/// How often a member asks another one whether it is still a member.
const STILL_MEMBER: Duration = Duration::from_secs(5);

/// What a member needs to know to start.
pub struct Place {
    pub cluster_id: u64,
    pub id: u64,
    /// This member and others.
    pub peers: Vec<raft::Peer>,
    /// It is to be let in by a cluster that exists.
    pub join: bool,
}

pub async fn place(config: &Config, peering: &raft::Peering, raft_dir: &Path) -> Result<Place> {
    let claimed = raft::claimed(raft_dir).map_err(member::refused)?;
    if !config.join {
        let me = config.myself()?;
        let (cluster_id, id) = claimed.unwrap_or((config.cluster_id, me.id));
        if let Some(other) = config.founders.iter().find(|other| other.id == id && other.name != config.name) {
            bail!(
                "{} is the data directory of member {}, this is {}",
                config.data_dir.display(),
                other.name,
                config.name
            );
        }
        return Ok(Place { cluster_id, id, peers: with_me(config, id, founders(config)), join: false });
    }
    let Some((cluster_id, id)) = claimed else { return enter(config, peering).await };
    // Where the others are may have changed while this one was away; if none answers, they are where they were.
    let asked = clock::timeout(PATIENCE, ask(config, peering)).await;
    let others = match asked {
        Ok(found) if found.cluster_id == cluster_id => found.members,
        _ => founders(config),
    };
    Ok(Place { cluster_id, id, peers: with_me(config, id, others), join: true })
}

/// Finds out as which member this one was added.
async fn enter(config: &Config, peering: &raft::Peering) -> Result<Place> {
    let own = &config.advertise_peer.authority;
    let mut found = ask(config, peering).await;
    // Who answered may not have heard of it yet.
    let deadline = clock::now() + PATIENCE;
    while !found.members.iter().any(|member| member.peer_addr == *own) && clock::now() < deadline {
        clock::sleep(AGAIN).await;
        found = ask(config, peering).await;
    }
    let Some(me) = found.members.iter().find(|member| member.peer_addr == *own) else {
        let known: Vec<&str> = found.members.iter().map(|member| member.peer_addr.as_str()).collect();
        bail!(
            "the cluster has no member at {own}, only at {}: add it first, with\n  etcdctl member add {} --peer-urls={}",
            known.join(", "),
            config.name,
            config.advertise_peer
        );
    };
    let id = me.id;
    tracing::info!(id = format!("{id:x}"), cluster = format!("{:x}", found.cluster_id), "joining as this member");
    Ok(Place { cluster_id: found.cluster_id, id, peers: with_me(config, id, found.members), join: true })
}

/// Asks all, until one answers that knows the cluster; what the one says that knows most.
async fn ask(config: &Config, peering: &raft::Peering) -> raft::Description {
    let others: Vec<&Founder> = config.founders.iter().filter(|one| one.peer != config.advertise_peer).collect();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let answers = others.iter().map(|other| raft::describe(peering, &other.peer.authority));
        let mut newest: Option<raft::Description> = None;
        for (other, answer) in others.iter().zip(futures::future::join_all(answers).await) {
            match answer {
                Ok(found) if found.members.is_empty() => {
                    tracing::info!(name = other.name, "this member is in no cluster yet");
                }
                Ok(found) if newest.as_ref().is_none_or(|known| known.index < found.index) => newest = Some(found),
                Ok(_) => (),
                Err(error) => tracing::info!(%error, "still asking the others which cluster this is"),
            }
        }
        if let Some(newest) = newest {
            return newest;
        }
        clock::sleep(backoff.next_delay()).await;
    }
}

/// Ends `server` once this member was removed from its cluster. Nobody talks to it any more then, so that it has to ask.
pub fn watch_removal(peering: &raft::Peering, handle: &raft::Handle, server: &Group) {
    let (peering, handle, group) = (peering.clone(), handle.clone(), server.clone());
    server.spawn_until_stopped("removal", async move {
        let mut ticker = clock::ticker(STILL_MEMBER);
        let id = handle.status().id;
        let (mut was_member, mut gone) = (false, 0);
        loop {
            ticker.tick().await;
            let own = handle.description();
            let is_member = own.members.iter().any(|member| member.id == id);
            let is_gone = (was_member && !is_member) || (is_member && is_gone(&peering, &own, id).await);
            // Seen once, the entry that says so may yet be lost with its leader.
            gone = if is_gone { gone + 1 } else { 0 };
            if gone >= 2 {
                break;
            }
            was_member |= is_member;
        }
        tracing::error!(
            "the member has been permanently removed from the cluster: it ends, its data directory can be deleted"
        );
        group.token().cancel();
    });
}

/// Whether some other member knows newer members than this one does, without it.
async fn is_gone(peering: &raft::Peering, own: &raft::Description, id: u64) -> bool {
    for other in own.members.iter().filter(|member| member.id != id) {
        let Ok(found) = raft::describe(peering, &other.peer_addr).await else { continue };
        let newer = found.cluster_id == own.cluster_id && found.index > own.index;
        if newer && !found.members.iter().any(|member| member.id == id) {
            return true;
        }
    }
    false
}

pub fn founders(config: &Config) -> Vec<raft::Peer> {
    let peer = |founder: &Founder| raft::Peer {
        id: founder.id,
        name: founder.name.clone(),
        peer_addr: founder.peer.authority.clone(),
        // Known to the member alone, who publishes it: the founders must agree on what they found.
        client_addr: String::new(),
        api_addr: String::new(),
    };
    config.founders.iter().map(peer).collect()
}

/// The others, and this member under its id and its name.
fn with_me(config: &Config, id: u64, others: Vec<raft::Peer>) -> Vec<raft::Peer> {
    let own = &config.advertise_peer.authority;
    let me = raft::Peer { id, name: config.name.clone(), peer_addr: own.clone(), ..raft::Peer::default() };
    let different = |peer: &raft::Peer| peer.id != id && peer.peer_addr != *own && peer.name != config.name;
    others.into_iter().filter(different).chain([me]).collect()
}

/// Refuses flags that cannot lead into a cluster.
pub fn check(config: &Config) -> Result<()> {
    let others = config.founders.iter().filter(|one| one.peer != config.advertise_peer).count();
    if config.join && others == 0 {
        bail!("--initial-cluster: a member that joins needs the name and URL of at least one other");
    }
    config.myself().map(drop).context("--initial-cluster")
}
