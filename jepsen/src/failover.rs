//! Kills the leader under load, as often as asked, and measures what clients and controllers notice.
//!
//! Write gap: the longest time around a kill in which no write of any client was acknowledged. Controllers away: from the
//! kill until the Deployment controller has acted on a change made after it. A write counts as lost if it was acknowledged
//! and a consistent list at the end does not show it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use pintle_base::clock;
use pintle_base::task::Group;
use serde_json::json;

use crate::cluster::Cluster;
use crate::writers::{self, Log};
use pintle_base::sample;

const NAMESPACE: &str = "pintle-failover";
const PROBE: &str = "probe";
/// Nothing needs longer than this; what does is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Args {
    /// How often the leader is killed
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Clients that write, each over a connection of its own
    #[arg(long, default_value_t = 5)]
    clients: u32,
    /// Writes per second, all clients together
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// Seconds of quiet between the cluster being whole again and the next kill
    #[arg(long, default_value_t = 2)]
    settle: u64,
    /// Write the figures to this file as JSON
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

pub async fn run(cluster: &Cluster, args: &Args) -> Result<()> {
    if args.clients == 0 || args.rate == 0 {
        bail!("there must be at least one client and one write per second");
    }
    let group = Group::new("failover");
    let client = cluster.client(&group).await?;
    cluster.whole(PATIENCE).await?;
    prepare(&client).await?;

    let (log, load) = (Log::default(), group.child("load"));
    let period = Duration::from_secs(1) * args.clients / args.rate;
    for number in 0..args.clients {
        let writer = cluster.client(&load).await?;
        writers::start(writer, NAMESPACE, &format!("write-{number}"), period, log.clone(), &load);
    }
    clock::sleep(Duration::from_secs(args.settle)).await;

    let (mut gaps, mut away) = (Vec::new(), Vec::new());
    for kill in 1..=args.kills {
        let leader = cluster.whole(PATIENCE).await?;
        let (gap, controllers) = one_kill(cluster, &client, &leader, kill, &log).await?;
        println!(
            "kill {kill:>3}: {leader}   write gap {:>5} ms   controllers back after {:>5} ms",
            gap.as_millis(),
            controllers.as_millis()
        );
        gaps.push(gap);
        away.push(controllers);
        cluster.start(&leader).await?;
        cluster.whole(PATIENCE).await?;
        clock::sleep(Duration::from_secs(args.settle)).await;
    }
    load.stop(PATIENCE).await?;

    let lost = log.lost(&client, NAMESPACE).await?;
    let writes = log.writes().len();
    println!("{}", sample::line("write gap", &gaps));
    println!("{}", sample::line("controllers act again", &away));
    println!("{writes} writes acknowledged, {} lost", lost.len());
    if let Some(path) = &args.json {
        let ms = |list: &[Duration]| -> Vec<u128> { list.iter().map(Duration::as_millis).collect() };
        let figures =
            json!({"write_gap_ms": ms(&gaps), "controllers_ms": ms(&away), "acknowledged": writes, "lost": lost});
        std::fs::write(path, serde_json::to_string_pretty(&figures)?).context("write the figures")?;
    }
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await.context("remove the namespace")?;
    group.stop(PATIENCE).await?;
    if !lost.is_empty() {
        bail!("{} acknowledged writes are lost, the first: {}", lost.len(), lost[0]);
    }
    Ok(())
}

/// A namespace of our own, and a Deployment that needs no worker: its ReplicaSet is what the controller acts on.
async fn prepare(client: &kube::Client) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .context("create the namespace (left from an earlier run?)")?;
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": PROBE},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": PROBE}}, "template": {
            "metadata": {"labels": {"app": PROBE}},
            "spec": {"containers": [{"name": "c", "image": "pintle.local/busybox:1"}]}}}}))?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let deadline = clock::now() + PATIENCE;
    loop {
        match deployments.create(&PostParams::default(), &deployment).await {
            Ok(_) => return Ok(()),
            Err(error) if clock::now() > deadline => return Err(error).context("create the probe"),
            Err(_) => clock::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn one_kill(
    cluster: &Cluster,
    client: &kube::Client,
    leader: &str,
    number: u32,
    log: &Log,
) -> Result<(Duration, Duration)> {
    let killed = clock::now();
    cluster.kill(leader).await?;
    controllers_back(client, number).await?;
    let acted = clock::now();
    let deadline = killed + PATIENCE;
    // Ten acknowledgements a little later make sure that the gap is over.
    while log.writes().iter().filter(|write| write.answered > acted).count() < 10 {
        if clock::now() > deadline {
            bail!("no writes get through {} s after the kill", PATIENCE.as_secs());
        }
        clock::sleep(Duration::from_millis(20)).await;
    }
    Ok((log.longest_gap(killed, clock::now()), acted - killed))
}

/// Changes the probe until that succeeds, then waits until the controller has observed it.
async fn controllers_back(client: &kube::Client, number: u32) -> Result<()> {
    let started = clock::now();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let change = json!({"spec": {"template": {"metadata": {"annotations": {"kill": number.to_string()}}}}});
    let mut generation = None;
    loop {
        if started.elapsed() > PATIENCE {
            bail!("controllers do not act {} s after the kill", PATIENCE.as_secs());
        }
        let attempt = Duration::from_millis(500);
        match generation {
            None => {
                let (params, patch) = (PatchParams::default(), Patch::Merge(&change));
                if let Ok(Ok(changed)) = clock::timeout(attempt, deployments.patch(PROBE, &params, &patch)).await {
                    generation = changed.metadata.generation;
                }
            }
            Some(wanted) => {
                if let Ok(Ok(found)) = clock::timeout(attempt, deployments.get(PROBE)).await
                    && found.status.and_then(|status| status.observed_generation) >= Some(wanted)
                {
                    return Ok(());
                }
            }
        }
        clock::sleep(Duration::from_millis(10)).await;
    }
}
