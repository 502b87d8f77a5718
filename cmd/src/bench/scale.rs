//! `bench scale`: Deployments of a hundred replicas until the wanted number of pods runs, with the API asked all the time.
//!
//! Latency is that of small requests at a steady rate, each on a connection that the load does not share: creating a
//! ConfigMap, reading a Deployment, listing 500 pods, and listing all of them. Figures while pods start and after are apart.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::Request;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use pintle_base::task::Group;
use pintle_base::{clock, sample};
use pintle_client::reflector::Selection;
use pintle_client::{ObjectEvent, SharedReflector};
use serde_json::{Value, json};

use super::{Common, Target, make_namespace, remove_namespace, usage, write_json};

const NAMESPACE: &str = "pintle-bench-scale";
/// Replicas of one Deployment; the last one takes what is left.
const REPLICAS: u32 = 100;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Pods to run
    #[arg(long, default_value_t = 5000)]
    pods: u32,
    /// How long the API is asked once all pods run
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    seconds: u64,
    /// Give up when not all pods run after this many seconds
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    limit: u64,
}

pub async fn run(args: Args) -> Result<()> {
    let target = Target::of(&args.common.name)?;
    target.within(measure(&target, &args)).await
}

async fn measure(target: &Target, args: &Args) -> Result<()> {
    let limit = Duration::from_secs(args.limit);
    let (client, nodes) = (target.client()?, target.status().await?.ready_nodes);
    make_namespace(&client, NAMESPACE, Duration::from_secs(30)).await?;
    let (term, idle) = (target.term().await?, usage::read(target));

    let running = Arc::new(AtomicUsize::new(0));
    let pods = count_running(&client, &running, &target.group);
    pods.ready().await;
    let (busy, load) = (Latencies::default(), target.group.child("load"));
    let started = clock::now();
    make_deployments(&client, args.pods).await?;
    let created = started.elapsed();
    ask(target, &busy, &load)?;
    wait_for(&running, args.pods, limit).await?;
    let all = started.elapsed();
    let full = usage::read(target);
    load.stop(super::STOP).await.context("end the load")?;

    eprintln!("\n{} pods run; asking the API for {} s ...", args.pods, args.seconds);
    let (quiet, load, settled) = (Latencies::default(), target.group.child("load"), clock::now());
    ask(target, &quiet, &load)?;
    clock::sleep(Duration::from_secs(args.seconds)).await;
    load.stop(super::STOP).await.context("end the load")?;
    let (after, quiet_time) = (usage::read(target), settled.elapsed());
    let elections = target.term().await? - term;
    let removed = remove_namespace(&client, NAMESPACE, limit).await?;

    println!("{nodes} nodes, {} pods", args.pods);
    println!("{:<34} {:>6.1} s", "create requests answered", created.as_secs_f64());
    println!(
        "{:<34} {:>6.1} s   {:.0} pods/s",
        "all pods Running",
        all.as_secs_f64(),
        f64::from(args.pods) / all.as_secs_f64()
    );
    println!("{:<34} {:>6.1} s", "namespace with all pods removed", removed.as_secs_f64());
    busy.print("while pods start");
    quiet.print("while all run");
    println!("processes while pods start");
    print!("{}", usage::lines(&idle, &full, all.as_secs_f64()));
    println!("processes while all run");
    print!("{}", usage::lines(&full, &after, quiet_time.as_secs_f64()));
    println!("{:<34} {elections}", "elections");
    let figures = json!({
        "nodes": nodes, "pods": args.pods, "running_seconds": all.as_secs_f64(), "removed_seconds": removed.as_secs_f64(),
        "busy": busy.figures(), "quiet": quiet.figures(), "elections": elections,
        "processes_busy": usage::figures(&idle, &full, all.as_secs_f64()),
        "processes_quiet": usage::figures(&full, &after, quiet_time.as_secs_f64()),
    });
    write_json(args.common.json.as_deref(), &figures)
}

/// Keeps `running` at the number of pods whose phase is Running, as a watching client learns it.
fn count_running(client: &kube::Client, running: &Arc<AtomicUsize>, group: &Group) -> SharedReflector<Pod> {
    let pods: SharedReflector<Pod> = SharedReflector::start(client.clone(), Selection::all(), group);
    let running = Arc::clone(running);
    let runs = |pod: &Pod| {
        pod.metadata.namespace.as_deref() == Some(NAMESPACE)
            && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
    };
    pods.on_event(move |event| {
        let (before, after) = match event {
            ObjectEvent::Added(pod) => (false, runs(pod)),
            ObjectEvent::Updated { old, new } => (runs(old), runs(new)),
            ObjectEvent::Deleted(pod) => (runs(pod), false),
        };
        match (before, after) {
            (false, true) => drop(running.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(running.fetch_sub(1, Ordering::Relaxed)),
            _ => (),
        }
    });
    pods
}

async fn make_deployments(client: &kube::Client, pods: u32) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    for (number, first) in (0..pods).step_by(REPLICAS as usize).enumerate() {
        let name = format!("scale-{number}");
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"replicas": REPLICAS.min(pods - first), "selector": {"matchLabels": {"app": name}}, "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "pintle.local/busybox:1",
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]}}}}))?;
        deployments.create(&PostParams::default(), &deployment).await.with_context(|| format!("create {name}"))?;
    }
    Ok(())
}

async fn wait_for(running: &AtomicUsize, pods: u32, limit: Duration) -> Result<()> {
    let (started, mut told) = (clock::now(), clock::now());
    loop {
        let now = running.load(Ordering::Relaxed);
        if now >= pods as usize {
            return Ok(());
        }
        if started.elapsed() > limit {
            bail!("{now} of {pods} pods run after {} s", limit.as_secs());
        }
        if told.elapsed() >= Duration::from_secs(2) {
            eprintln!("  {now:>6} of {pods} pods run   {:>5.0} s", started.elapsed().as_secs_f64());
            told = clock::now();
        }
        clock::sleep(Duration::from_millis(20)).await;
    }
}

/// What is asked of the API, how often a second, and with what.
const QUESTIONS: [(&str, u64); 4] =
    [("create a ConfigMap", 10), ("get a Deployment", 10), ("list 500 pods", 2), ("list all pods", 1)];

/// Latencies of each question, in the order of [`QUESTIONS`], and how many answers were errors.
#[derive(Clone, Default)]
struct Latencies {
    samples: Arc<Mutex<[Vec<Duration>; QUESTIONS.len()]>>,
    failed: Arc<AtomicUsize>,
}

impl Latencies {
    fn print(&self, when: &str) {
        println!("API latency {when} ({} errors)", self.failed.load(Ordering::Relaxed));
        for ((name, _), sample) in QUESTIONS.iter().zip(self.samples.lock().iter()) {
            println!("{}", sample::line(&format!("  {name}"), sample));
        }
    }

    fn figures(&self) -> Value {
        let mut figures = json!({"errors": self.failed.load(Ordering::Relaxed)});
        for ((name, _), sample) in QUESTIONS.iter().zip(self.samples.lock().iter()) {
            let ms = |percent| sample::percentile(sample, percent).as_secs_f64() * 1000.0;
            figures[*name] = json!({"p50_ms": ms(50), "p99_ms": ms(99), "max_ms": ms(100), "n": sample.len()});
        }
        figures
    }
}

/// Starts one asker per question, each with a connection of its own. An answer that is late delays the next question.
fn ask(target: &Target, latencies: &Latencies, group: &Group) -> Result<()> {
    for (index, (_, rate)) in QUESTIONS.iter().enumerate() {
        let (client, latencies) = (target.client()?, latencies.clone());
        let mut ticker = clock::ticker(Duration::from_secs(1) / u32::try_from(*rate).unwrap_or(1));
        let mut number = 0u64;
        group.spawn_until_stopped("asker", async move {
            loop {
                ticker.tick().await;
                number += 1;
                let Ok(request) = question(index, number) else { continue };
                let started = clock::now();
                match client.request_text(request).await {
                    Ok(_) => latencies.samples.lock()[index].push(started.elapsed()),
                    Err(error) => {
                        tracing::debug!(%error, "a question failed");
                        latencies.failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    Ok(())
}

fn question(index: usize, number: u64) -> Result<Request<Vec<u8>>> {
    let namespace = format!("/api/v1/namespaces/{NAMESPACE}");
    let get = |path: String| Request::get(path).header("accept", "application/json").body(Vec::new());
    let request = match index {
        0 => {
            let name = format!("ask-{}-{number}", clock::unix_millis());
            let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}});
            Request::post(format!("{namespace}/configmaps"))
                .header("content-type", "application/json")
                .body(serde_json::to_vec(&body)?)
        }
        1 => get(format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/scale-0")),
        2 => get(format!("{namespace}/pods?limit=500")),
        _ => get("/api/v1/pods?resourceVersion=0".to_owned()),
    };
    request.context("build a question")
}
