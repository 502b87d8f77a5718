//! What the test runs in: a network namespace, a containerd, an agent's parts, and their end.

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_base::task::Group;
use pintle_client::{Recorder, SharedReflector};
use pintle_node::containerd::{self, Layout};
use pintle_node::images::{self, Entry, ImageSpec};
use pintle_node::pods::config::{DnsSettings, NodeFacts};
use pintle_node::pods::resources::Amounts;
use pintle_node::pods::{Context, Dispatch, NodePlace, Statuses};
use pintle_node::runtime::{CriRuntime, Runtime, Sandbox};
use pintle_node::{AgentOptions, RuntimeChoice, dns, network, proxy};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::api::Api;

pub const IMAGE: &str = "pintle.local/busybox:test";

/// What this machine lacks, if anything.
pub fn missing() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("needs root".to_owned());
    }
    let programs = ["containerd", "ctr", "runc", "nft", "ip", "busybox"];
    let found = |name: &str| {
        ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(name).exists())
    };
    let program = programs.into_iter().find(|name| !found(name)).map(|name| format!("needs {name}"));
    program.or_else(|| (!Path::new("/usr/lib/cni/bridge").exists()).then(|| "needs the CNI plugins".to_owned()))
}

/// Runs `story` in a world of its own, on a thread whose network namespace is new.
pub fn run<F: Future<Output = ()>>(deadline: Duration, story: impl FnOnce(World) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespace");
        connect_namespace();
        // Its threads are made here, so they are in the new namespace too.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        runtime.block_on(async {
            let guard = Guard::new().await;
            let world = World::new(&guard).await;
            tokio::time::timeout(deadline, story(world)).await.expect("the story ends in time");
            containerd::remove_all_pods(&guard.layout.socket()).await.expect("no pod remains");
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Gives the new namespace a loopback and a way out, as a worker's has: a pair of linked devices that leads nowhere.
fn connect_namespace() {
    let commands = [
        "link set lo up",
        "link add out type veth peer name nowhere",
        "address add 192.0.2.1/24 dev out",
        "link set nowhere up",
        "link set out up",
        "route add default via 192.0.2.2",
    ];
    for command in commands {
        let done = Command::new("ip").args(command.split(' ')).status().expect("ip runs");
        assert!(done.success(), "ip {command}");
    }
}

/// Parent of the cgroups of this test's pods.
fn cgroup_root() -> String {
    format!("/pintle-test-{}", std::process::id())
}

/// Removes the empty groups that remain of a test.
fn remove_groups(group: &Path) {
    for child in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&child.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

/// Ends what the test started, whatever happened.
pub struct Guard {
    dir: TempDir,
    layout: Layout,
    child: Child,
}

impl Guard {
    async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pn").tempdir().expect("directory");
        let layout = Layout::below(&dir.path().join("data"), &dir.path().join("run"));
        let mut child = containerd::start(&layout).expect("containerd starts");
        containerd::ready(&layout, &mut child, Duration::from_secs(20)).await.expect("containerd answers");
        let guard = Self { dir, layout, child };
        guard.import_images().await;
        guard
    }

    async fn import_images(&self) {
        let pause = self.dir.path().join("pause.tar");
        images::write_pause(&pause).expect("pause image");
        images::import(&self.layout.socket(), &pause).await.expect("import");
        let busybox =
            ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).expect("busybox");
        let mut entries = vec![
            Entry::Directory { path: "bin".into(), mode: 0o755 },
            Entry::Directory { path: "tmp".into(), mode: 0o1777 },
            Entry::File { path: "bin/busybox".into(), mode: 0o755, source: busybox.into() },
        ];
        for name in ["sh", "cat", "echo", "sleep", "httpd", "wget", "test", "true", "env", "grep"] {
            entries.push(Entry::Symlink { path: format!("bin/{name}"), target: "busybox".into() });
        }
        let archive = self.dir.path().join("busybox.tar");
        let spec = ImageSpec { name: IMAGE.into(), command: vec!["sh".into()], ..ImageSpec::default() };
        images::archive::write(&archive, &spec, entries).expect("busybox image");
        images::import(&self.layout.socket(), &archive).await.expect("import");
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let socket = self.layout.socket();
        // A failed story leaves pods behind; this thread has no runtime to ask while unwinding, another one has.
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(30), containerd::remove_all_pods(&socket)).await
            })
        });
        let _ = removal.join();
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut targets: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|path| Path::new(path).starts_with(self.dir.path()))
            .collect();
        targets.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for target in targets {
            let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_groups(&hierarchy.path().join(cgroup_root().trim_start_matches('/')));
        }
    }
}

pub struct World {
    pub runtime: Arc<dyn Runtime>,
    api: Api,
    pods: SharedReflector<Pod>,
    services: SharedReflector<Service>,
    slices: SharedReflector<EndpointSlice>,
    options: AgentOptions,
    /// The agent's tasks.
    agent: Group,
    /// Proxy and name server.
    net: Group,
}

impl World {
    async fn new(guard: &Guard) -> Self {
        let socket = guard.layout.socket();
        let mut options = AgentOptions::new(
            "w7",
            guard.dir.path().join("data"),
            Ipv4Addr::LOCALHOST.into(),
            RuntimeChoice::Cri { socket: socket.clone() },
        );
        options.network.cni_conf_dir = guard.layout.cni_conf_dir.clone();
        options.cgroup_root = cgroup_root();
        let (ready, _) = watch::channel(false);
        network::bring_up(&options, "10.244.7.0/24", &ready).await;
        let runtime: Arc<dyn Runtime> = Arc::new(CriRuntime::new(&socket));
        wait_network(runtime.as_ref()).await;
        let (services, slices) = (SharedReflector::detached(), SharedReflector::detached());
        let kubernetes = json!({ "metadata": { "name": "kubernetes", "namespace": "default" }, "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 443 }] } });
        services.replace(vec![serde_json::from_value(kubernetes).expect("service")]);
        slices.replace(Vec::new());
        let net = Group::new("net");
        let settings = proxy::ruleset::Settings {
            node_name: "w7".into(),
            dns_address: "10.96.0.10".into(),
            cluster_cidr: "10.244.0.0/16".into(),
            pod_cidr: "10.244.7.0/24".into(),
        };
        let (_, settings) = watch::channel(settings);
        net.spawn_until_stopped("proxy", proxy::run(services.clone(), slices.clone(), settings));
        let settings = dns::Settings {
            address: Ipv4Addr::new(10, 96, 0, 10),
            port: 53,
            domain: "cluster.local".into(),
            upstreams: Vec::new(),
        };
        dns::start(&settings, services.clone(), slices.clone(), &net);
        let pods = SharedReflector::detached();
        pods.replace(Vec::new());
        let world =
            Self { runtime, api: Api::default(), pods, services, slices, options, agent: Group::new("agent"), net };
        world.start_agent();
        world
    }

    fn start_agent(&self) {
        let (api, pods) = (self.api.clone(), self.pods.clone());
        let service = tower::service_fn(move |request| api.clone().answer(pods.clone(), request));
        let client = kube::Client::new(service, "default");
        let statuses = Statuses::start(client.clone(), &self.agent);
        let recorder = Recorder::start(client.clone(), "kubelet", "w7", &self.agent);
        let place = NodePlace {
            name: "w7".into(),
            data_dir: self.options.data_dir.clone(),
            host_ips: vec!["127.0.0.1".into()],
            facts: NodeFacts {
                cgroup_root: self.options.cgroup_root.clone(),
                memory: 1 << 34,
                log_dir: self.options.data_dir.join("logs"),
                dns: DnsSettings {
                    cluster_ip: "10.96.0.10".into(),
                    domain: "cluster.local".into(),
                    ..DnsSettings::default()
                },
            },
            allocatable: Amounts::of([("cpu", "64"), ("memory", "64Gi"), ("pods", "110")]),
        };
        let context = Context::new(client, statuses, recorder, self.services.clone(), Arc::clone(&self.runtime), place);
        let dispatch = Dispatch::new(Arc::new(context), self.pods.clone(), self.agent.clone());
        self.agent.spawn_until_stopped("pods", dispatch.run());
    }

    /// Stops the agent's tasks, as its death would, and starts new ones.
    pub async fn with_a_new_agent(mut self) -> Self {
        self.agent.stop(Duration::from_secs(10)).await.expect("agent stops");
        self.agent = Group::new("agent");
        self.start_agent();
        self
    }

    pub async fn stop(self) {
        self.agent.stop(Duration::from_secs(10)).await.expect("agent stops");
        self.net.stop(Duration::from_secs(10)).await.expect("network stops");
        proxy::remove().await.expect("rules removed");
    }

    pub fn apply(&self, mut pod: Value) {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        pod["metadata"]["namespace"] = json!("ns");
        pod["metadata"]["uid"] = json!(format!("uid-{name}"));
        pod["metadata"]["generation"] = json!(1);
        self.api.put(pod, &self.pods);
    }

    pub fn delete(&self, name: &str, grace: i64) {
        let Some(mut pod) = self.api.0.lock().pods.get(name).cloned() else { return };
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.api.put(pod, &self.pods);
    }

    pub fn status(&self, name: &str) -> Value {
        self.api.0.lock().pods.get(name).map(|pod| pod["status"].clone()).unwrap_or_default()
    }

    pub fn events(&self) -> Vec<String> {
        self.api.0.lock().events.clone()
    }

    /// Waits for a status; the story's deadline ends a wait in vain, this one says what was seen.
    pub async fn until(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let status = self.status(name);
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{name} stays {status:#}\nevents {:?}", self.events());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn until_gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.api.0.lock().pods.is_empty() || !self.runtime.sandboxes(None).await.expect("list").is_empty() {
            assert!(Instant::now() < deadline, "pods remain: {:?}", self.api.0.lock().pods.keys().collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last thing a worker does is to remove the cgroups of its pod.
    pub async fn until_no_group_of(&self, uid: &str) {
        let group = Path::new("/sys/fs/cgroup/memory")
            .join(cgroup_root().trim_start_matches('/'))
            .join(format!("burstable/pod{uid}"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while group.exists() {
            assert!(Instant::now() < deadline, "{} remains", group.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn container_id(&self, pod: &str, container: &str) -> String {
        let all = self.runtime.containers(Some(&format!("uid-{pod}"))).await.expect("list");
        let running = all
            .into_iter()
            .find(|one| one.state == 1 && one.metadata.as_ref().is_some_and(|meta| meta.name == container));
        running.expect("running container").id
    }

    pub async fn sandbox(&self, pod: &str) -> Sandbox {
        let all = self.runtime.sandboxes(Some(&format!("uid-{pod}"))).await.expect("list");
        self.runtime.sandbox(&all[0].id).await.expect("sandbox")
    }

    pub fn serve(&self, name: &str, ip: &str, port: u16, target: u16, endpoints: &[&str]) {
        let service = json!({ "metadata": { "name": name, "namespace": "ns" }, "spec": { "clusterIP": ip, "ports": [{ "port": port }] } });
        self.services.apply(serde_json::from_value(service).expect("service"));
        let endpoints: Vec<Value> = endpoints.iter().map(|ip| json!({ "addresses": [ip] })).collect();
        let slice = json!({ "metadata": { "name": name, "namespace": "ns", "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4", "ports": [{ "port": target }], "endpoints": endpoints });
        self.slices.apply(serde_json::from_value(slice).expect("slice"));
    }
}

/// containerd notices the network configuration a moment after it was written.
async fn wait_network(runtime: &dyn Runtime) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !runtime.conditions().await.expect("status").iter().all(|condition| condition.status) {
        assert!(Instant::now() < deadline, "the runtime's network never became ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn condition<'a>(status: &'a Value, kind: &str) -> &'a str {
    let all = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|one| one["type"] == kind).and_then(|one| one["status"].as_str()).unwrap_or_default()
}

pub fn sleeper(name: &str, extra: Value) -> Value {
    let mut container = json!({ "name": "main", "image": IMAGE, "command": ["sleep", "1000"] });
    if let (Some(container), Some(extra)) = (container.as_object_mut(), extra.as_object()) {
        container.extend(extra.clone());
    }
    json!({ "metadata": { "name": name }, "spec": { "terminationGracePeriodSeconds": 1, "containers": [container] } })
}

pub async fn try_get(ip: &str, port: u16) -> std::io::Result<String> {
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect((ip, port)).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(2), exchange).await?
}

pub async fn get(ip: &str, port: u16) -> String {
    try_get(ip, port).await.expect("answer")
}
