//! The leader is killed in the middle of a rollout while clients write: nothing acknowledged is lost, no pod is lost or
//! doubled, and the watches of kubectl and of the agents go on where they were.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use pintle_base::clock;
use pintle_base::task::Group;
use pintle_client::SharedReflector;
use pintle_client::reflector::Selection;
use pintle_tests::{Cluster, can_run_containers, root};
use serde_json::Value;

/// Pods of the example, and how many more a rolling update may have at a time (25 %).
const PODS: usize = 4;
const SURGE: usize = 1;
const CLIENTS: u32 = 5;
const WRITES_PER_SECOND: u32 = 50;
const NAMESPACE: &str = "default";

#[test]
fn a_rollout_under_load_survives_its_leader() {
    if let Err(reason) = can_run_containers() {
        println!("skipped: no real containers here: {reason}");
        return;
    }
    let cluster = Cluster::up("failover", &["--port", "0"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let group = runtime.block_on(async { Group::new("load") });

    let manifest = root().join("examples/web.yaml");
    cluster.kubectl(&["apply", "-f", manifest.to_str().expect("path")]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let _entered = runtime.enter();
    let most = most_pods(&cluster, &group);
    let log = cluster.write(CLIENTS, WRITES_PER_SECOND, &group);
    cluster.until("clients write", 10, || (log.writes().len() > 50).then_some(()));

    // Two seconds per pod keep the rollout going while the leader dies.
    let slowly = r#"{"spec":{"minReadySeconds":2,"template":{"metadata":{"annotations":{"version":"2"}}}}}"#;
    cluster.kubectl(&["patch", "deployment", "web", "-p", slowly]).ok();
    let watchers: Vec<Child> = (0..3).map(|_| rollout_status(&cluster)).collect();
    // client-go lists anew after a watch that lasted less than a second; these have lasted two when a new pod counts.
    cluster.until("the rollout is half done", 30, || (available(&cluster) > 0).then_some(()));
    let listed = [cluster.log("w1"), cluster.log("w2")].map(|log| log.matches("\"listing\"").count());
    assert!(listed.iter().all(|count| *count > 0), "agents tell when they list");
    let leader = cluster.leader();
    cluster.pintle(&["cluster", "kill", &leader]).ok();
    let at = log.writes().len();
    assert!(available(&cluster) < PODS, "killed before the rollout was over");

    watchers.into_iter().for_each(followed);
    assert_eq!(available(&cluster), PODS);
    cluster.until("clients write again", 20, || (log.writes().len() > at + 50).then_some(()));
    runtime.block_on(group.stop(Duration::from_secs(10))).expect("the load ends");
    let after = [cluster.log("w1"), cluster.log("w2")].map(|log| log.matches("\"listing\"").count());
    assert_eq!(listed, after, "agents resumed their watches without listing");
    assert!(most.load(Ordering::Relaxed) <= PODS + SURGE, "{} pods at a time", most.load(Ordering::Relaxed));

    cluster.pintle(&["cluster", "start", &leader]).ok();
    cluster.until("four pods, none doubled", 40, || {
        (cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]).ok().lines().count() == PODS).then_some(())
    });
    let reader = Group::new("reader");
    let lost = runtime.block_on(async { log.lost(&cluster.client(&reader).await, NAMESPACE).await });
    assert_eq!(lost.expect("list"), Vec::<String>::new(), "acknowledged writes");
}

/// The most pods of the example that were there at one time, those that end left out.
fn most_pods(cluster: &Cluster, group: &Group) -> Arc<AtomicUsize> {
    let handle = tokio::runtime::Handle::current();
    let client = handle.block_on(cluster.client(group));
    let selection = Selection { labels: Some("app=web".to_owned()), ..Selection::all() };
    let pods: SharedReflector<Pod> = SharedReflector::start(client, selection, group);
    let (most, seen) = (Arc::new(AtomicUsize::new(0)), pods.clone());
    let highest = Arc::clone(&most);
    pods.on_event(move |_| {
        let alive = seen.list().iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count();
        highest.fetch_max(alive, Ordering::Relaxed);
    });
    handle.block_on(async { clock::timeout(Duration::from_secs(10), pods.ready()).await }).expect("pods are listed");
    most
}

/// Pods of the new template that count: ready for two seconds.
fn available(cluster: &Cluster) -> usize {
    let list = cluster.kubectl(&["get", "replicasets", "-l", "app=web", "-o", "json"]).ok();
    let list: Value = serde_json::from_str(&list).expect("replica sets are JSON");
    let new = |set: &&Value| set["spec"]["template"]["metadata"]["annotations"]["version"] == "2";
    let set = list["items"].as_array().into_iter().flatten().find(new);
    set.and_then(|set| set["status"]["availableReplicas"].as_u64())
        .map_or(0, |count| usize::try_from(count).expect("small"))
}

/// kubectl that follows the rollout. The balancer deals connections out in turn, so one of three watches the leader.
fn rollout_status(cluster: &Cluster) -> Child {
    cluster.kubectl_background(&["rollout", "status", "deployment/web", "--timeout=80s", "-v=6"])
}

/// kubectl saw the end of the rollout and listed the Deployment at most once, at its start.
fn followed(child: Child) {
    let output = child.wait_with_output().expect("wait for kubectl");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let about = said.lines().filter(|line| line.contains("fieldSelector=metadata.name%3Dweb"));
    let lists = about.filter(|line| line.contains("sendInitialEvents=true") || !line.contains("watch=true"));
    assert_eq!(lists.count(), 1, "one list, the watch goes on: {said}");
}
