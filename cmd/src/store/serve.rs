//! `pintle store serve`, also as a program called `etcd`: one member of a store of its own, without Kubernetes. The wiring:
//! flags, listeners, store, Raft, etcd front, wait for the end, then the reverse.

use std::time::Duration;

use anyhow::{Context, Result};
use pintle_base::task::Group;
use pintle_raft as raft;
use pintle_store::snapshot::{RAFT_DIR, STATE_DIR};
use pintle_store::{Store, StoreOptions, etcd};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::config::{Config, Url};
use super::{join, tls};
use crate::member;

/// Leases live at least so long that an election cannot end one before it could be renewed: three halves of its time, in
/// whole seconds.
fn shortest_lease(election: Duration) -> i64 {
    let seconds = (election * 3 / 2).as_millis().div_ceil(1000);
    i64::try_from(seconds).unwrap_or(i64::MAX).max(1)
}

pub async fn run(config: Config) -> Result<()> {
    join::check(&config)?;
    let _in_use = member::claim(&config.data_dir)?;
    member::allow_files()?;
    warn_of_plain_text(&config);
    let clients = tls::clients(&config)?;
    let peering = tls::peering(&config)?;
    let mut listeners = Vec::new();
    for (url, kind) in ports(&config) {
        listeners.push((member::listen(url.address()?).await?, clients.clone().filter(|_| url.tls), kind));
    }
    let server = Group::new("store");
    crate::signals::stop_on_signal(&server)?;
    let consensus = Group::new("consensus");
    let raft_dir = config.data_dir.join(RAFT_DIR);
    if config.force_new_cluster {
        go_on_alone(&raft_dir)?;
    }
    let place = tokio::select! {
        place = join::place(&config, &peering, &raft_dir) => place?,
        () = server.stopping() => return Ok(()),
    };
    let (store, handle) = start(&config, place, peering.clone(), &consensus).await?;
    join::watch_removal(&peering, &handle, &server);
    let front = |(listener, tls, kind): (TcpListener, Option<etcd::Tls>, Port)| {
        let router = match kind {
            Port::All => etcd::router(&store),
            Port::Grpc => etcd::grpc_router(&store),
            Port::Http => etcd::http_router(&store),
            Port::Metrics => etcd::metrics_router(&store),
        };
        member::serve(router.with_http2(config.http2), listener, tls, &server)
    };
    let fronts: Vec<JoinHandle<()>> = listeners.into_iter().map(front).collect();
    announce(&config, &store, &server);

    member::run_to_end(&store, &handle, &server, &consensus, fronts).await
}

/// Makes this the only member, if it is not already. Left in a unit file the flag does the same at each start: members added since would
/// be cut off, so it says so.
fn go_on_alone(raft_dir: &std::path::Path) -> Result<()> {
    let gone = raft::offline::force_alone(raft_dir).context("--force-new-cluster")?;
    for id in &gone {
        tracing::warn!(
            member = format!("{id:x}"),
            "--force-new-cluster: this member is no more; remove its data directory, it must never start on it again"
        );
    }
    if gone.is_empty() {
        tracing::info!("--force-new-cluster: this member is the only one already, take the flag away");
    }
    Ok(())
}

/// What is served at a URL.
#[derive(Clone, Copy)]
enum Port {
    All,
    Grpc,
    Http,
    Metrics,
}

fn ports(config: &Config) -> Vec<(&Url, Port)> {
    let clients = if config.listen_http.is_empty() { Port::All } else { Port::Grpc };
    let groups =
        [(&config.listen_clients, clients), (&config.listen_http, Port::Http), (&config.listen_metrics, Port::Metrics)];
    groups.into_iter().flat_map(|(urls, kind)| urls.iter().map(move |url| (url, kind))).collect()
}

async fn start(
    config: &Config,
    place: join::Place,
    peering: raft::Peering,
    group: &Group,
) -> Result<(Store, raft::Handle)> {
    let join::Place { cluster_id, id, peers, join } = place;
    let options = StoreOptions {
        cluster_id,
        member_id: id,
        name: config.name.clone(),
        members_by_url: true,
        max_learners: config.max_learners,
        lease_ttl_min: shortest_lease(config.election),
        request_timeout: Duration::from_secs(5) + config.election * 2,
        leader_patience: config.election * 3,
        auto_compaction: config.auto_compaction,
        origins: config.origins.clone(),
        hosts: config.hosts.clone(),
        txn_operations: config.txn_operations,
        request_bytes: config.request_bytes,
        progress_interval: config.progress_interval,
        client_urls: config.advertise_clients.iter().map(Url::to_string).collect(),
        scheme: if config.listen_peer.tls { "https" } else { "http" },
        quota_bytes: config.quota_bytes,
        tokens: config.tokens.clone(),
        bcrypt_cost: config.bcrypt_cost,
        audit: config.audit.clone(),
        ..StoreOptions::default()
    };
    let (store, machine) = member::open(&config.data_dir.join(STATE_DIR), options)?;
    let listen = config.listen_peer.address()?;
    let mut options = raft::Options::new(id, cluster_id, config.data_dir.join(RAFT_DIR), listen, peers, peering);
    options.join = join;
    options.heartbeat = config.heartbeat;
    options.election_min = config.election;
    options.election_max = config.election * 2;
    options.snapshot_entries = config.snapshot_entries;
    options.entries_kept = config.entries_kept;
    let handle = member::start(&store, machine, options, group).await?;
    Ok((store, handle))
}

/// Says that clients are served once there is a leader: what scripts and test frameworks wait for.
fn announce(config: &Config, store: &Store, group: &Group) {
    let mut leadership = store.leadership();
    let (name, urls) = (config.name.clone(), config.listen_clients.iter().map(Url::to_string).collect::<Vec<_>>());
    group.spawn_until_stopped("announce", async move {
        if leadership.wait_for(|now| now.leader.is_some()).await.is_ok() {
            tracing::info!(name, urls = urls.join(","), "ready to serve client requests");
        }
    });
}

fn warn_of_plain_text(config: &Config) {
    let plain = config.listen_clients.iter().chain([&config.listen_peer]).filter(|url| !url.tls);
    let open: Vec<String> = plain
        .filter(|url| !url.address().is_ok_and(|address| address.ip().is_loopback()))
        .map(ToString::to_string)
        .collect();
    if !open.is_empty() {
        tracing::warn!(
            urls = open.join(","),
            "serving in plain text beyond this machine: everybody on the way can read and change everything"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_lease_outlives_an_election() {
        let shortest = |millis| shortest_lease(Duration::from_millis(millis));
        assert_eq!([shortest(1000), shortest(100), shortest(2000)], [2, 1, 3]);
    }
}
