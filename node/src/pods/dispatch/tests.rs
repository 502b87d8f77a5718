//! Pods of a simulated node from assignment to confirmed deletion, against a server that is one function.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use pintle_client::Recorder;
use pintle_proto::cri_v1::PodSandboxConfig;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::pods::config::{DnsSettings, NodeFacts};
use crate::pods::{NodePlace, Statuses};
use crate::runtime::{Runtime, SimulatedRuntime};

const DEADLINE: Duration = Duration::from_secs(120);

/// A deletion as it is confirmed; answered when the sender is used.
type Deletion = (String, oneshot::Sender<()>);

struct World {
    runtime: Arc<SimulatedRuntime>,
    pods: SharedReflector<Pod>,
    deletions: mpsc::UnboundedReceiver<Deletion>,
    group: Group,
}

fn client(deletions: mpsc::UnboundedSender<Deletion>) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let deletions = deletions.clone();
        async move {
            if request.method() == Method::DELETE {
                let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                let (reply, answered) = oneshot::channel();
                deletions.send((name, reply)).expect("heard");
                answered.await.unwrap_or_default();
            }
            let answer = Response::new(Full::new(Bytes::from_static(b"{\"metadata\":{}}")));
            Ok::<_, Infallible>(answer)
        }
    });
    kube::Client::new(service, "default")
}

impl World {
    /// An agent on `runtime`, whose node has one CPU.
    fn new(runtime: Arc<SimulatedRuntime>) -> Self {
        let (world, dispatch) = Self::idle(runtime);
        world.group.spawn_until_stopped("pods", dispatch.run());
        world
    }

    /// The same, its dispatcher left to the test.
    fn idle(runtime: Arc<SimulatedRuntime>) -> (Self, Dispatch) {
        runtime.set_pod_cidr("10.244.1.0/24");
        let (sender, deletions) = mpsc::unbounded_channel();
        let (client, group, pods) = (client(sender), Group::new("agent"), SharedReflector::detached());
        let services = SharedReflector::detached();
        services.replace(Vec::new());
        let place = NodePlace {
            name: "w1".into(),
            data_dir: "/nowhere".into(),
            host_ips: vec!["10.0.0.1".into()],
            facts: NodeFacts {
                cgroup_root: "/none".into(),
                memory: 1 << 30,
                log_dir: "/nowhere".into(),
                dns: DnsSettings::default(),
            },
            allocatable: Amounts::of([("cpu", "1"), ("memory", "1Gi"), ("pods", "10")]),
        };
        let statuses = Statuses::start(client.clone(), &group);
        let recorder = Recorder::start(client.clone(), "kubelet", "w1", &group);
        let shown = Arc::clone(&runtime) as Arc<dyn Runtime>;
        let context = Context::new(client, statuses, recorder, services, shown, place);
        let dispatch = Dispatch::new(Arc::new(context), pods.clone(), group.clone());
        (Self { runtime, pods, deletions, group }, dispatch)
    }

    async fn stop(self) {
        self.group.stop(DEADLINE).await.expect("agent stops");
    }

    /// Ids of running containers of this pod.
    async fn running(&self, uid: &str) -> Vec<String> {
        let all = self.runtime.containers(Some(uid)).await.expect("list");
        all.into_iter().filter(|one| one.state == 1).map(|one| one.id).collect()
    }

    async fn until_running(&self, uid: &str) -> String {
        let wait = async {
            loop {
                match self.running(uid).await.pop() {
                    Some(id) => return id,
                    None => clock::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        clock::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{uid} never runs"))
    }

    async fn until_empty(&self) {
        let wait = async {
            while !self.runtime.sandboxes(None).await.expect("list").is_empty() {
                clock::sleep(Duration::from_millis(10)).await;
            }
        };
        clock::timeout(DEADLINE, wait).await.expect("everything ends");
    }
}

fn pod(name: &str, cpu: &str) -> Pod {
    let container = json!({ "name": "main", "image": "x", "resources": { "requests": { "cpu": cpu } } });
    let metadata = json!({ "name": name, "namespace": "ns", "uid": name, "resourceVersion": "1" });
    serde_json::from_value(json!({ "metadata": metadata, "spec": { "containers": [container] } })).expect("pod")
}

fn sandbox_of(uid: &str) -> PodSandboxConfig {
    PodSandboxConfig { labels: [(label::POD_UID.to_owned(), uid.to_owned())].into(), ..Default::default() }
}

fn ending(name: &str, cpu: &str) -> Pod {
    let mut pod = deleted(&pod(name, cpu));
    pod.metadata.resource_version = Some("2".into());
    pod
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_confirmed_when_nothing_of_the_pod_is_left() {
    let mut world = World::new(Arc::default());
    world.pods.replace(vec![pod("a", "1")]);
    world.until_running("a").await;
    world.pods.apply(ending("a", "1"));
    let (name, reply) = clock::timeout(DEADLINE, world.deletions.recv()).await.expect("in time").expect("confirmed");
    assert_eq!(name, "a");
    let left = world.runtime.sandboxes(None).await.expect("list").len();
    assert_eq!((left, world.runtime.containers(None).await.expect("list").len()), (0, 0));
    reply.send(()).expect("waits");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_in_place_of_a_deleted_one_finds_its_room_free() {
    let mut world = World::new(Arc::default());
    world.pods.replace(vec![pod("a", "1")]);
    world.until_running("a").await;
    world.pods.apply(ending("a", "1"));
    let (_, reply) = clock::timeout(DEADLINE, world.deletions.recv()).await.expect("in time").expect("confirmed");
    // The watch is faster than the answer to the deletion.
    world.pods.remove(ending("a", "1"));
    world.pods.apply(pod("b", "1"));
    world.until_running("b").await;
    reply.send(()).expect("waits");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_keeps_pods_running_and_ends_none() {
    let runtime: Arc<SimulatedRuntime> = Arc::default();
    let earlier = World::new(Arc::clone(&runtime));
    earlier.pods.replace(vec![pod("a", "100m"), pod("b", "100m"), pod("c", "100m")]);
    for uid in ["a", "b", "c"] {
        earlier.until_running(uid).await;
    }
    let (a, b, c) = (earlier.running("a").await, earlier.running("b").await, earlier.running("c").await);
    earlier.stop().await;
    runtime.stop_container(&a[0], Duration::ZERO).await.expect("crashes");

    // The checkpoint is older than b, and knows that c is to end.
    let world = World::new(Arc::clone(&runtime));
    runtime.run_sandbox(sandbox_of("s")).await.expect("sandbox");
    world.pods.seed(vec![pod("a", "100m"), ending("c", "100m")]);
    let again = world.until_running("a").await;
    assert_ne!(again, a[0], "it crashed");
    clock::sleep(10 * limits::RELIST).await; // several looks at what runs
    assert_eq!((world.running("b").await, world.running("c").await), (b, c), "nobody told that they end");
    assert_eq!(runtime.sandboxes(Some("s")).await.expect("list").len(), 1);
    assert_eq!(world.running("a").await, [again]);

    world.pods.replace(Vec::new());
    world.until_empty().await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_in_time_comes_before_the_checkpoint() {
    let world = World::new(Arc::default());
    world.pods.seed(vec![pod("gone", "100m")]);
    clock::sleep(limits::CONFIRM_WAIT / 2).await;
    world.pods.replace(vec![pod("b", "100m")]);
    world.until_running("b").await;
    assert!(world.runtime.sandboxes(Some("gone")).await.expect("list").is_empty());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_list_is_no_orphan_while_it_has_no_worker_yet() {
    let runtime: Arc<SimulatedRuntime> = Arc::default();
    let (world, mut dispatch) = World::idle(Arc::clone(&runtime));
    for uid in ["a", "stranger"] {
        runtime.run_sandbox(sandbox_of(uid)).await.expect("sandbox");
    }
    // The first complete list arrives after the last round of giving out workers, and the runtime is looked at first.
    world.pods.replace(vec![pod("a", "1")]);
    dispatch.relist().await.expect("answers");
    assert_eq!(dispatch.workers.keys().collect::<Vec<_>>(), ["stranger"]);
    dispatch.reconcile();
    assert!(!dispatch.workers["a"].wanted.borrow().gone);
    world.until_running("a").await;
    world.stop().await;
}

#[test]
fn a_silent_runtime_is_told_of_at_first_then_once_a_minute_and_when_it_answers() {
    let (mut silence, start) = (Silence::default(), clock::now());
    let mut told = |second: u64, answers: bool| silence.is_news(answers, start + Duration::from_secs(second));
    assert!(!told(0, true), "nothing has changed");
    let lines: Vec<u64> = (1..=130).filter(|second| told(*second, false)).collect();
    assert_eq!(lines, [1, 61, 121]);
    assert!(told(131, true) && !told(132, true) && told(133, false));
}
