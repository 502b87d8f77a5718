//! The proxy against a kernel's tables, in a network namespace of the test's own. Needs root, nft and conntrack; says what
//! is missing and passes otherwise.

use std::future::Future;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use pintle_base::task::Group;
use serde_json::{Value, json};

use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

fn missing() -> Option<&'static str> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("root");
    }
    let found = |name: &str| ["/usr/sbin", "/usr/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(name).exists());
    ["nft", "ip", "conntrack"].into_iter().find(|name| !found(name))
}

/// Runs `story` on a thread whose network namespace is new; programs it starts are in there too.
fn alone<F: Future<Output = ()>>(story: impl FnOnce() -> F + Send + 'static) {
    if let Some(missing) = missing() {
        eprintln!("skipped: needs {missing}");
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async { clock::timeout(DEADLINE, story()).await.expect("in time") });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn service(timeout: u32) -> Service {
    let spec = json!({ "clusterIP": "10.96.0.5", "type": "NodePort", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": timeout } },
        "ports": [{ "port": 53, "nodePort": 30053, "protocol": "UDP" }] });
    let value = json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": spec });
    serde_json::from_value(value).expect("service")
}

fn slice(addresses: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
    let slice = json!({ "metadata": { "name": "web-1", "namespace": "ns", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4", "ports": [{ "port": 53, "protocol": "UDP" }], "endpoints": endpoints });
    serde_json::from_value(slice).expect("slice")
}

fn settings() -> Settings {
    Settings { cluster_cidr: "10.244.0.0/16".into(), pod_cidr: "10.244.7.0/24".into(), ..Settings::default() }
}

struct World {
    services: SharedReflector<Service>,
    slices: SharedReflector<EndpointSlice>,
    settings: watch::Sender<Settings>,
    group: Group,
}

impl World {
    fn new() -> Self {
        Self {
            services: SharedReflector::detached(),
            slices: SharedReflector::detached(),
            settings: watch::channel(settings()).0,
            group: Group::new("proxy-test"),
        }
    }

    fn start(&self) {
        let task = run(self.services.clone(), self.slices.clone(), self.settings.subscribe());
        self.group.spawn_until_stopped("proxy", task);
    }

    async fn stop(self) {
        self.group.stop(DEADLINE).await.expect("stops");
    }
}

async fn nft(text: &str) -> String {
    program::run("nft", &["-f", "-"], Some(text.to_owned()), DEADLINE).await.unwrap_or_default()
}

/// The kernel's number of the proxy's table: another one was made since if it differs.
async fn table() -> Option<u64> {
    let text = program::run("nft", &["--json", "list", "tables"], None, DEADLINE).await.expect("tables");
    let text: Value = serde_json::from_str(&text).expect("json");
    let tables = text["nftables"].as_array().expect("list").iter().map(|row| &row["table"]);
    tables.filter(|table| table["name"] == ruleset::TABLE).find_map(|table| table["handle"].as_u64())
}

async fn until_listed(what: &str, wanted: impl Fn(&str) -> bool) {
    while !wanted(&nft("list ruleset").await) {
        clock::sleep(Duration::from_millis(20)).await;
    }
    eprintln!("{what}");
}

#[test]
fn a_table_that_somebody_flushed_is_written_anew() {
    alone(|| async {
        let world = World::new();
        world.services.replace(vec![service(60)]);
        world.slices.replace(vec![slice(&["10.244.7.2"])]);
        world.start();
        let complete =
            |text: &str| text.contains("10.96.0.5 . udp . 53 : goto") && text.contains("dnat to 10.244.7.2:53");
        until_listed("loaded", complete).await;
        let one = "delete element ip pintle services { 10.96.0.5 . udp . 53 }";
        for damage in ["flush ruleset", "flush table ip pintle", one] {
            let before = table().await;
            nft(damage).await;
            let began = clock::now();
            while table().await.is_none_or(|now| Some(now) == before) {
                clock::sleep(Duration::from_millis(20)).await;
            }
            until_listed(damage, complete).await;
            assert!(began.elapsed() < 3 * limits::PROXY_VERIFY, "{damage} was noticed after {:?}", began.elapsed());
        }
        world.services.apply(service(7200));
        until_listed("another timeout", |text| text.contains("timeout 2h") && !text.contains("timeout 1m")).await;
        world.settings.send_modify(|settings| settings.pod_cidr = "10.244.9.0/24".into());
        until_listed("another range", |text| complete(text) && text.contains("ip saddr 10.244.9.0/24")).await;
        world.stop().await;
    });
}

#[test]
fn a_checkpoint_is_written_only_where_nothing_is() {
    alone(|| async {
        let seeded = World::new();
        seeded.services.seed(vec![service(60)]);
        seeded.slices.seed(vec![slice(&["10.244.7.3"])]);
        let newer = |text: &str| text.contains("dnat to 10.244.7.2:53");
        let older = |text: &str| text.contains("dnat to 10.244.7.3:53");
        let model = model::build(&[service(60).into()], &[slice(&["10.244.7.2"]).into()], "", "");
        nft(&ruleset::complete(&settings(), &model)).await;
        seeded.start();
        clock::sleep(limits::CONFIRM_WAIT + limits::PROXY_VERIFY).await; // it must not act: nothing to wait for
        assert!(newer(&nft("list ruleset").await), "the earlier agent's rules were replaced by older ones");
        nft("flush ruleset").await;
        until_listed("written from the checkpoint", older).await;
        seeded.services.replace(vec![service(60)]);
        seeded.slices.replace(vec![slice(&["10.244.7.2"])]);
        until_listed("confirmed", |text| newer(text) && !older(text)).await;
        seeded.stop().await;
    });
}

#[test]
fn udp_connections_of_a_lost_endpoint_are_forgotten_also_on_node_ports() {
    alone(|| async {
        let run = async |program, line: &str| {
            let args: Vec<&str> = line.split(' ').collect();
            program::run(program, &args, None, DEADLINE).await.expect("runs")
        };
        let world = World::new();
        world.services.replace(vec![service(60)]);
        world.slices.replace(vec![slice(&["10.244.7.2", "10.244.7.3"])]);
        world.start();
        until_listed("loaded", |text| text.contains("dnat to 10.244.7.2:53")).await;
        let track = async |client: u16, to: &str, port: u16, endpoint: &str| {
            let line = format!(
                "-I -p udp -s 192.0.2.9 -d {to} --sport {client} --dport {port} -r {endpoint} -q 192.0.2.9 --reply-port-src 53 --reply-port-dst {client} -t 600"
            );
            run("conntrack", &line).await;
        };
        track(1001, "192.0.2.1", 30053, "10.244.7.2").await;
        track(1002, "192.0.2.2", 30053, "10.244.7.3").await;
        track(1003, "10.96.0.5", 53, "10.244.7.2").await;
        track(1004, "10.96.0.9", 53, "10.244.7.2").await;
        world.slices.apply(slice(&["10.244.7.3"]));
        loop {
            let left = run("conntrack", "-L -p udp").await;
            let has = |text: &str| left.contains(text);
            if !has("dst=192.0.2.1 ") && !has("dst=10.96.0.5 ") {
                assert!(has("dst=192.0.2.2 ") && has("dst=10.96.0.9 "), "too much is forgotten: {left}");
                break;
            }
            clock::sleep(Duration::from_millis(20)).await;
        }
        world.stop().await;
    });
}
