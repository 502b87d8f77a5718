//! `bench pods`: from the create request to the moment a watching client is told that the pod runs. The image is there.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use pintle_base::{clock, sample};
use serde_json::json;

use super::{Common, Target, make_namespace, remove_namespace, write_json};

const NAMESPACE: &str = "pintle-bench-pods";
/// Nothing needs longer than this; what does is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Pods to start, one after the other
    #[arg(long, default_value_t = 30)]
    count: u32,
}

pub async fn run(args: Args) -> Result<()> {
    let target = Target::of(&args.common.name)?;
    target.within(measure(&target, &args)).await
}

async fn measure(target: &Target, args: &Args) -> Result<()> {
    let client = target.client()?;
    make_namespace(&client, NAMESPACE, PATIENCE).await?;
    let result = all(&client, args).await;
    remove_namespace(&client, NAMESPACE, PATIENCE).await?;
    let (running, ready) = result?;
    println!("{}", sample::line("create to Running", &running));
    println!("{}", sample::line("create to Ready", &ready));
    let ms = |list: &[Duration]| -> Vec<u128> { list.iter().map(Duration::as_millis).collect() };
    write_json(args.common.json.as_deref(), &json!({"running_ms": ms(&running), "ready_ms": ms(&ready)}))
}

async fn all(client: &kube::Client, args: &Args) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let (mut running, mut ready) = (Vec::new(), Vec::new());
    for number in 1..=args.count {
        let (run, readied) = clock::timeout(PATIENCE, one(&pods, &format!("start-{number}")))
            .await
            .with_context(|| format!("pod {number} does not run after {} s", PATIENCE.as_secs()))??;
        running.push(run);
        ready.push(readied);
    }
    Ok((running, ready))
}

/// Starts one pod and removes it; the times until it was seen running and ready.
async fn one(pods: &Api<Pod>, name: &str) -> Result<(Duration, Duration)> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "c", "image": "pintle.local/busybox:1", "command": ["sleep", "3600"]}]}}))?;
    let started = clock::now();
    let created = pods.create(&PostParams::default(), &pod).await.context("create the pod")?;
    let version = created.metadata.resource_version.unwrap_or_default();
    let only = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = pods.watch(&only, &version).await.context("watch the pod")?.boxed();
    let mut ran = None;
    while let Some(event) = events.try_next().await.context("watch the pod")? {
        let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else { continue };
        let status = pod.status.unwrap_or_default();
        if status.phase.as_deref() == Some("Running") && ran.is_none() {
            ran = Some(started.elapsed());
        }
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        if let Some(ran) = ran.filter(|_| ready) {
            let times = (ran, started.elapsed());
            pods.delete(name, &DeleteParams::default()).await.context("delete the pod")?;
            return Ok(times);
        }
    }
    bail!("the watch of pod {name} ended before it ran")
}
