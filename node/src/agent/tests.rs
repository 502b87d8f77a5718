//! The whole agent program on a simulated runtime, with a checkpoint and no server anywhere.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use k8s_openapi::ByteString;
use pintle_base::clock;
use pintle_proto::cri_v1;
use serde_json::{Value, json};

use super::*;
use crate::join::identity::testing;
use crate::{limits, run_on};

const DEADLINE: Duration = Duration::from_secs(60);

struct World {
    dir: tempfile::TempDir,
    run: tempfile::TempDir,
    dns: u16,
    runtime: Arc<SimulatedRuntime>,
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("object")
}

fn pod(name: &str, env: &Value) -> Pod {
    let metadata = json!({ "name": name, "namespace": "default", "uid": name, "resourceVersion": "1" });
    let container = json!({ "name": "main", "image": "x", "env": env });
    object(json!({ "metadata": metadata, "spec": { "nodeName": "w1", "containers": [container] } }))
}

fn saved(name: &str) -> Saved {
    let data = [("key".to_owned(), ByteString(b"value".to_vec()))].into();
    Saved { namespace: "default".into(), name: name.into(), data }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let run = tempfile::Builder::new().prefix("pn").tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("free port").port();
        testing::made("system:node:w1", 2001).store(dir.path()).expect("joined long ago");
        Self { dir, run: run.expect("directory"), dns: free, runtime: Arc::default() }
    }

    fn options(&self) -> AgentOptions {
        let data_dir = self.dir.path().to_path_buf();
        let mut options = AgentOptions::new("w1", data_dir, Ipv4Addr::LOCALHOST.into(), RuntimeChoice::Simulated);
        options.servers = vec!["127.0.0.1:1".into()];
        options.checkpoint = true;
        options.run_dir = Some(self.run.path().join("secrets"));
        options.cluster_dns = Ipv4Addr::LOCALHOST;
        (options.network.dns, options.network.dns_port) = (true, self.dns);
        options
    }

    fn start(&self) -> Group {
        let group = Group::new("agent");
        let (options, chosen, agent) = (self.options(), Chosen::simulated(Arc::clone(&self.runtime)), group.clone());
        group.spawn("agent", async move { run_on(options, chosen, &agent).await.expect("runs") });
        group
    }

    async fn containers(&self, uid: &str) -> Vec<cri_v1::Container> {
        self.runtime.containers(Some(uid)).await.expect("list")
    }

    async fn until_running(&self, uid: &str) -> String {
        let wait = async {
            loop {
                let running = self.containers(uid).await.into_iter().find(|one| one.state == 1);
                match running {
                    Some(container) => return container.id,
                    None => clock::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        clock::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{uid} never runs"))
    }

    /// Asks the agent's name server until it gives another answer than a failure.
    async fn resolve(&self, name: &str) -> (ResponseCode, Vec<Ipv4Addr>) {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).expect("name"), RecordType::A));
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let mut buffer = vec![0; 4096];
        let ask = async {
            loop {
                // Refused while the server is not up yet.
                let sent = socket.send_to(&query.to_vec().expect("bytes"), (Ipv4Addr::LOCALHOST, self.dns)).await;
                let answer = clock::timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await;
                if let (Ok(_), Ok(Ok(count))) = (sent, answer) {
                    let answer = Message::from_vec(&buffer[..count]).expect("answer");
                    if answer.metadata.response_code != ResponseCode::ServFail {
                        return answer;
                    }
                }
                clock::sleep(Duration::from_millis(20)).await;
            }
        };
        let answer = clock::timeout(DEADLINE, ask).await.unwrap_or_else(|_| panic!("{name} is never answered"));
        let address = |data: &RData| match data {
            RData::A(address) => Some(address.0),
            _ => None,
        };
        (answer.metadata.response_code, answer.answers.iter().filter_map(|record| address(&record.data)).collect())
    }
}

fn left_by_an_earlier_agent(in_memory: bool) -> Restored {
    let of = |kind: &str, name: &str| json!({ "name": name, "valueFrom": { kind: { "name": name, "key": "key" } } });
    let mut env = vec![of("configMapKeyRef", "config")];
    env.extend(in_memory.then(|| of("secretKeyRef", "login")));
    let service = json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": { "clusterIP": "10.96.0.5", "ports": [{ "port": 80 }] } });
    let node = json!({ "metadata": { "name": "w1", "uid": "n1" }, "spec": { "podCIDR": "10.244.3.0/24" } });
    Restored {
        pods: Some(vec![pod("crashing", &json!(env)), pod("healthy", &json!([]))]),
        services: Some(vec![object(service)]),
        slices: Some(Vec::new()),
        nodes: Some(vec![object(node)]),
        config_maps: vec![saved("config")],
        secrets: Secrets { secrets: vec![saved("login")], tokens: Vec::new() },
    }
}

#[tokio::test]
async fn an_agent_that_starts_without_any_server_goes_on() {
    let world = World::new();
    let checkpoint = Checkpoint::open(&world.options());
    checkpoint.leave(&left_by_an_earlier_agent(checkpoint.keeps_secrets()));

    let agent = world.start();
    let (crashing, healthy) = (world.until_running("crashing").await, world.until_running("healthy").await);
    agent.stop(DEADLINE).await.expect("stops");
    world.runtime.stop_container(&crashing, Duration::ZERO).await.expect("crashes");

    let agent = world.start();
    let web = world.resolve("web.default.svc.cluster.local.").await;
    assert_eq!(web, (ResponseCode::NoError, vec![Ipv4Addr::new(10, 96, 0, 5)]));
    assert_ne!(world.until_running("crashing").await, crashing, "what crashed runs again");
    assert_eq!(world.until_running("healthy").await, healthy, "what runs is left alone");
    assert_eq!(world.containers("healthy").await.len(), 1);
    assert_eq!(world.resolve("no.default.svc.cluster.local.").await.0, ResponseCode::NXDomain);
    agent.stop(DEADLINE).await.expect("stops");
    let kept = Checkpoint::open(&world.options()).restore();
    assert_eq!(kept.pods.map(|pods| pods.len()), Some(2), "an unconfirmed checkpoint stays as it was");
}

#[tokio::test]
async fn a_damaged_checkpoint_is_no_reason_not_to_start() {
    let world = World::new();
    Checkpoint::open(&world.options()).leave(&left_by_an_earlier_agent(false));
    for entry in std::fs::read_dir(world.dir.path().join("checkpoint")).expect("list") {
        let path = entry.expect("entry").path();
        let bytes = std::fs::read(&path).expect("read");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("cut");
    }
    let agent = world.start();
    // Without a pod range it waits for a server; it neither ends nor acts.
    let ended = clock::timeout(limits::CONFIRM_WAIT * 2, agent.stopping()).await;
    assert!(ended.is_err() && agent.panicked().is_none());
    assert!(world.runtime.sandboxes(None).await.expect("list").is_empty());
    agent.stop(DEADLINE).await.expect("stops");
}
