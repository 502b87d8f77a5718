//! What is written, when, and what of it comes back.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use k8s_openapi::ByteString;
use pintle_client::Recorder;
use serde_json::json;

use super::*;
use crate::options::RuntimeChoice;
use crate::pods::config::{DnsSettings, NodeFacts};
use crate::pods::env::Sources;
use crate::pods::references::{Kind, Part};
use crate::pods::resources::Amounts;
use crate::pods::{NodePlace, Statuses};
use crate::runtime::SimulatedRuntime;

const DEADLINE: Duration = Duration::from_secs(60);

struct World {
    dir: tempfile::TempDir,
    /// In memory, where the machine has such a place.
    run: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let run = tempfile::Builder::new().prefix("pn").tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self { dir, run: run.expect("directory") }
    }

    fn options(&self) -> AgentOptions {
        let address = "10.0.0.1".parse().expect("address");
        let mut options = AgentOptions::new("w1", self.dir.path().to_path_buf(), address, RuntimeChoice::Simulated);
        options.checkpoint = true;
        options.run_dir = Some(self.run.path().join("secrets"));
        options
    }

    /// Reads the files until they show what is wanted.
    async fn until(&self, wanted: impl Fn(&Restored) -> bool) {
        let wait = async {
            while !wanted(&Checkpoint::open(&self.options()).restore()) {
                clock::sleep(Duration::from_millis(20)).await;
            }
        };
        clock::timeout(DEADLINE, wait).await.expect("written in time");
    }
}

fn service(name: &str) -> Service {
    serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "ns", "resourceVersion": "7" } }))
        .expect("service")
}

#[tokio::test]
async fn only_what_a_server_confirmed_is_written_and_the_last_change_too() {
    let world = World::new();
    let (group, view) = (Group::new("test"), SharedReflector::detached());
    view.seed(vec![service("old")]);
    Checkpoint::open(&world.options()).keep(kind::SERVICES, &view, |_| true, &group);
    tokio::task::yield_now().await;
    assert!(Checkpoint::open(&world.options()).restore().services.is_none());
    view.replace(vec![service("a")]);
    world.until(|restored| restored.services.as_ref().is_some_and(|all| *all == [service("a")])).await;
    view.apply(service("b"));
    // Its turn is two seconds away, and the first write may still be under way.
    group.stop(DEADLINE).await.expect("stops");
    let restored = Checkpoint::open(&world.options()).restore();
    assert_eq!(restored.services, Some(vec![service("a"), service("b")]));
    assert!(restored.pods.is_none() && restored.nodes.is_none());
}

#[tokio::test]
async fn bad_files_are_dropped_one_by_one() {
    let world = World::new();
    let checkpoint = Checkpoint::open(&world.options());
    let services = Restored { services: Some(vec![service("a")]), pods: Some(Vec::new()), ..Restored::default() };
    checkpoint.leave(&services);
    let path = world.dir.path().join("checkpoint/services.ckpt");
    let mut bytes = std::fs::read(&path).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&path, bytes).expect("damaged");
    let restored = Checkpoint::open(&world.options()).restore();
    assert_eq!((restored.services, restored.pods), (None, Some(Vec::new())));
    // Something else in the place of the directory: the agent works without.
    std::fs::remove_dir_all(world.dir.path().join("checkpoint")).expect("remove");
    std::fs::write(world.dir.path().join("checkpoint"), "").expect("write");
    let checkpoint = Checkpoint::open(&world.options());
    checkpoint.leave(&services);
    assert!(checkpoint.restore().services.is_none());
}

fn pod() -> Pod {
    let env = json!([
        { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "config", "key": "key" } } },
        { "name": "B", "valueFrom": { "secretKeyRef": { "name": "login", "key": "key" } } },
    ]);
    let metadata = json!({ "name": "p", "namespace": "ns", "uid": "u" });
    serde_json::from_value(json!({ "metadata": metadata, "spec": { "containers": [{ "name": "c", "env": env }] } }))
        .expect("pod")
}

/// An agent's context; its server knows one ConfigMap and one Secret, or never answers.
fn context(reachable: bool, group: &Group) -> Arc<Context> {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| async move {
        if !reachable {
            std::future::pending::<()>().await;
        }
        let path = request.uri().path();
        let answer = match path.rsplit('/').next() {
            Some("config") => json!({ "metadata": { "name": "config" }, "data": { "key": "public value" } }),
            Some("login") => json!({ "metadata": { "name": "login" }, "data": { "key": "aGlkZGVuIHZhbHVl" } }),
            _ => json!({ "metadata": {} }),
        };
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer.to_string()))))
    });
    let client = kube::Client::new(service, "default");
    let (log_dir, dns) = ("/nowhere".into(), DnsSettings::default());
    let place = NodePlace {
        name: "w1".into(),
        data_dir: "/nowhere".into(),
        host_ips: Vec::new(),
        facts: NodeFacts { cgroup_root: "/none".into(), memory: 1 << 30, log_dir, dns },
        allocatable: Amounts::of([("cpu", "1")]),
    };
    let statuses = Statuses::start(client.clone(), group);
    let recorder = Recorder::start(client.clone(), "kubelet", "w1", group);
    let runtime = Arc::new(SimulatedRuntime::default());
    Arc::new(Context::new(client, statuses, recorder, SharedReflector::detached(), runtime, place))
}

#[tokio::test]
async fn secrets_stay_in_memory_and_come_back_without_a_server() {
    let world = World::new();
    if !is_memory(world.run.path()) {
        eprintln!("skipped: no file system in memory at /dev/shm");
        return;
    }
    let (group, pods) = (Group::new("test"), SharedReflector::detached());
    let (earlier, pod) = (context(true, &group), Arc::new(pod()));
    pods.replace(vec![pod.as_ref().clone()]);
    let checkpoint = Checkpoint::open(&world.options());
    checkpoint.keep(kind::PODS, &pods, |_| true, &group);
    checkpoint.keep_references(Arc::clone(&earlier), pods.clone(), &group);
    earlier.references.load(&pod, Part::Containers, Duration::ZERO).await.expect("loaded");
    let later = u64::try_from(clock::unix_seconds()).expect("after 1970") + 3600;
    let token = |uid: &str, expires| SavedToken {
        pod_uid: uid.into(),
        audience: String::new(),
        seconds: 3600,
        token: "token text".into(),
        renew_at: expires,
        expires,
    };
    earlier.tokens.restore(vec![token("u", later), token("u2", later), token("u3", 1)]);
    world.until(|restored| !restored.secrets.secrets.is_empty() && !restored.config_maps.is_empty()).await;

    let file = world.run.path().join("secrets/secrets.ckpt");
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().expect("parent"))), (0o600, 0o700));
    let disk = std::fs::read_dir(world.dir.path().join("checkpoint")).expect("list");
    let disk: Vec<u8> = disk.flat_map(|entry| std::fs::read(entry.expect("entry").path()).expect("read")).collect();
    for hidden in ["aGlkZGVuIHZhbHVl", "hidden value", "token text"] {
        assert!(!String::from_utf8_lossy(&disk).contains(hidden), "{hidden} is on the disk");
    }

    let restored = Checkpoint::open(&world.options()).restore();
    assert_eq!(restored.secrets.tokens, [token("u", later)], "of pods that are here, as long as they hold");
    assert!(!format!("{restored:?}").contains("token text"));
    let next = context(false, &group);
    next.references.restore(Kind::ConfigMap, restored.config_maps);
    next.references.restore(Kind::Secret, restored.secrets.secrets);
    let loading = next.references.load(&pod, Part::Containers, Duration::from_secs(2));
    let loaded = clock::timeout(DEADLINE, loading).await.expect("in time").expect("known");
    assert_eq!(loaded.secret("login").map(|data| data["key"].as_ref()), Some(b"hidden value".as_slice()));
    assert_eq!(loaded.config_map("config").map(|data| data["key"].as_ref()), Some(b"public value".as_slice()));

    let (place, aside) = (world.dir.path().join("checkpoint/pods.ckpt"), world.dir.path().join("aside"));
    std::fs::rename(&place, &aside).expect("moved");
    assert!(Checkpoint::open(&world.options()).restore().secrets.is_empty(), "whose would they be?");
    std::fs::rename(&aside, &place).expect("moved back");
    pods.replace(Vec::new());
    world.until(|restored| restored.secrets.is_empty()).await;
    assert!(!file.exists(), "nothing is left of pods that are gone");
    group.stop(DEADLINE).await.expect("stops");
}

#[test]
fn secrets_are_not_written_to_a_disk() {
    let world = World::new();
    let mut options = world.options();
    options.run_dir = Some(world.dir.path().join("run"));
    let checkpoint = Checkpoint::open(&options);
    assert_eq!(checkpoint.secrets.is_some(), is_memory(world.dir.path()));
    if checkpoint.secrets.is_some() {
        eprintln!("skipped: the directory for temporary files is in memory");
        return;
    }
    let data = BTreeMap::from([("key".to_owned(), ByteString(b"x".to_vec()))]);
    let secrets = vec![Saved { namespace: "ns".into(), name: "login".into(), data }];
    let secrets = Secrets { secrets, tokens: Vec::new() };
    checkpoint.leave(&Restored { secrets, ..Restored::default() });
    assert!(checkpoint.restore().secrets.is_empty());
    let (one, other) = (default_run_dir(Path::new("/data/a")), default_run_dir(Path::new("/data/b")));
    assert_ne!(one, other);
}
