//! The whole slice with real parts: three servers, two workers in namespaces of their own, containerd, kubectl, etcdctl.
//!
//! One cluster serves all steps, in order: bringing it up is what costs.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_base::task::Group;
use pintle_tests::{Cluster, can_run_containers, ran, root};
use serde_json::Value;

#[test]
fn a_deployment_survives_what_happens_to_servers_and_workers() {
    if let Err(reason) = can_run_containers() {
        println!("skipped: no real containers here: {reason}");
        return;
    }
    let cluster = Cluster::up("slice", &["--port", "0"]);
    applied_and_served(&cluster);
    looked_at(&cluster);
    followed(&cluster);
    changed(&cluster);
    image_changed(&cluster);
    deleted_by_an_older_kubectl(&cluster);
    reached_in_other_ways(&cluster);
    etcd_is_served(&cluster);
    etcd_is_for_administrators(&cluster);
    bad_input_is_refused(&cluster);
    the_leader_dies_in_a_rollout(&cluster);
    all_servers_die(&cluster);
    a_worker_is_lost_and_returns(&cluster);
}

fn step(name: &str) {
    println!("step: {name}");
}

fn pods(cluster: &Cluster) -> Vec<Value> {
    let list = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "json"]).ok();
    let list: Value = serde_json::from_str(&list).expect("pods are JSON");
    list["items"].as_array().expect("items").clone()
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Waits for the end of a rollout, and until the pods it replaced are gone: what is run in "the Deployment" meets a new one.
#[track_caller]
fn rolled_out(cluster: &Cluster) {
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=80s"]).ok();
    cluster.until("the pods that were replaced are gone", 30, || {
        pods(cluster).iter().all(|pod| pod["metadata"]["deletionTimestamp"].is_null()).then_some(())
    });
}

/// Distinct answers of the Service, as a pod hears them.
fn answers(cluster: &Cluster, tries: usize) -> BTreeSet<String> {
    let script = format!("for i in $(seq {tries}); do wget -qO- http://web; done");
    let output = cluster.kubectl(&["exec", "deploy/web", "--", "sh", "-c", &script]).ok();
    output.lines().map(str::to_owned).collect()
}

fn applied_and_served(cluster: &Cluster) {
    step("a Deployment and a Service are applied, run on both workers and answer by name");
    let manifest = root().join("examples/web.yaml");
    cluster.kubectl(&["apply", "-f", manifest.to_str().expect("path")]).ok();
    rolled_out(cluster);
    let pods = pods(cluster);
    let distinct = |path: fn(&Value) -> &Value| pods.iter().map(|pod| path(pod).to_string()).collect::<BTreeSet<_>>();
    assert_eq!(distinct(|pod| &pod["spec"]["nodeName"]).len(), 2, "pods on both workers");
    assert_eq!(distinct(|pod| &pod["status"]["podIP"]).len(), 4, "addresses differ");
    let names: BTreeSet<String> =
        pods.iter().map(|pod| pod["metadata"]["name"].as_str().expect("name").to_owned()).collect();
    cluster.until("all four answer", 20, || (answers(cluster, 12) == names).then_some(()));
}

fn looked_at(cluster: &Cluster) {
    step("get, describe, logs, exec, explain and auth can-i answer as against Kubernetes");
    let table = cluster.kubectl(&["get", "pods", "-o", "wide"]).ok();
    assert!(table.starts_with("NAME ") && table.contains("READY") && table.contains("NODE"), "{table}");
    assert_eq!(table.matches("1/1").count(), 4, "{table}");
    let old = cluster.old_kubectl(&["get", "deployments"]).ok();
    assert!(old.contains("UP-TO-DATE") && old.contains("4/4"), "{old}");
    let chosen = cluster.kubectl(&["get", "pods", "-l", "app in (web,other),!missing", "-o", "name"]).ok();
    assert_eq!(chosen.lines().count(), 4, "{chosen}");
    let yaml = cluster.kubectl(&["get", "service", "web", "-o", "yaml"]).ok();
    assert!(yaml.contains("clusterIP: 10.96."), "{yaml}");
    let described = cluster.kubectl(&["describe", "deployment", "web"]).ok();
    assert!(described.contains("4 available") && described.contains("ScalingReplicaSet"), "{described}");
    let name = pods(cluster)[0]["metadata"]["name"].as_str().expect("name").to_owned();
    let pod = cluster.kubectl(&["describe", "pod", &name]).ok();
    assert!(
        ["Running", "Successfully assigned", "Started", "QoS Class:"].iter().all(|part| pod.contains(part)),
        "{pod}"
    );
    let node = cluster.kubectl(&["describe", "node", "w1"]).ok();
    assert!(["KubeletReady", "Allocated resources:", &name[..9]].iter().all(|part| node.contains(part)), "{node}");
    let service = cluster.kubectl(&["describe", "service", "web"]).ok();
    assert!(service.contains("Endpoints:  ") && service.contains(":80,10.244."), "{service}");
    let logs = cluster.kubectl(&["logs", "deploy/web"]).ok();
    assert!(logs.contains("GET") || logs.contains("response"), "{logs}");
    assert_eq!(cluster.kubectl(&["exec", "deploy/web", "--", "echo", "hello"]).ok(), "hello\n");
    assert_eq!(cluster.kubectl(&["exec", "deploy/web", "--", "sh", "-c", "exit 7"]).code, 7);
    let explained = cluster.kubectl(&["explain", "deployment.spec.replicas"]).ok();
    assert!(explained.contains("replicas <integer>"), "{explained}");
    assert_eq!(cluster.kubectl(&["auth", "can-i", "create", "pods"]).ok(), "yes\n");
    let anonymous = cluster.kubectl(&["auth", "can-i", "create", "pods", "--as=nobody"]);
    assert_eq!(anonymous.stdout, "no\n");
    let top = cluster.kubectl(&["top", "nodes"]).fails();
    assert!(top.contains("Metrics API not available"), "{top}");
}

fn followed(cluster: &Cluster) {
    step("get -w sees a pod come, logs -f a line that is written later");
    let watching = cluster.kubectl_follow(&["get", "pods", "-w"]);
    watching.until_says("web-", 20);
    let script = "echo first; while [ ! -e /go ]; do sleep 0.1; done; echo second; exec sleep 1000";
    let image = "--image=pintle.local/busybox:1";
    cluster.kubectl(&["run", "talker", image, "--", "sh", "-c", script]).ok();
    watching.until_says("talker", 20);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/talker", "--timeout=30s"]).ok();
    let running = |line: &str| line.starts_with("talker") && line.contains("1/1") && line.contains("Running");
    cluster.until("the watch tells that it runs", 10, || watching.said().lines().any(running).then_some(()));
    let reading = cluster.kubectl_follow(&["logs", "-f", "talker"]);
    reading.until_says("first\n", 20);
    assert!(!reading.said().contains("second"), "{}", reading.said());
    cluster.kubectl(&["exec", "talker", "--", "touch", "/go"]).ok();
    reading.until_says("second\n", 10);
    cluster.kubectl(&["delete", "pod", "talker", "--now"]).ok();
}

fn changed(cluster: &Cluster) {
    step("scale, set env, pause, resume, undo, delete a pod");
    cluster.kubectl(&["scale", "deployment/web", "--replicas=6"]).ok();
    rolled_out(cluster);
    assert_eq!(pods(cluster).iter().filter(|pod| ready(pod)).count(), 6);
    cluster.kubectl(&["scale", "deployment/web", "--replicas=4"]).ok();
    cluster.kubectl(&["rollout", "pause", "deployment/web"]).ok();
    cluster.kubectl(&["set", "env", "deployment/web", "VERSION=2"]).ok();
    cluster.until("the controller has seen the change", 20, || {
        let fields = "jsonpath={.metadata.generation} {.status.observedGeneration}";
        let text = cluster.kubectl(&["get", "deployment", "web", "-o", fields]).ok();
        text.split_once(' ').is_some_and(|(wanted, seen)| wanted == seen).then_some(())
    });
    let sets = cluster.kubectl(&["get", "replicasets", "-l", "app=web", "-o", "name"]).ok();
    assert_eq!(sets.lines().count(), 1, "paused: no ReplicaSet of the new template: {sets}");
    assert!(cluster.kubectl(&["rollout", "pause", "deployment/web"]).fails().contains("is already paused"));
    cluster.kubectl(&["rollout", "resume", "deployment/web"]).ok();
    rolled_out(cluster);
    let version = ["exec", "deploy/web", "--", "sh", "-c", "echo $VERSION"];
    assert_eq!(cluster.kubectl(&version).ok(), "2\n");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]).ok();
    rolled_out(cluster);
    assert_eq!(cluster.kubectl(&version).ok(), "1\n");
    let name = pods(cluster)[0]["metadata"]["name"].as_str().expect("name").to_owned();
    cluster.kubectl(&["delete", "pod", &name]).ok();
    cluster.until("the pod is replaced", 30, || {
        (pods(cluster).iter().filter(|pod| ready(pod)).count() == 4).then_some(())
    });
}

fn image_changed(cluster: &Cluster) {
    step("an image is imported under another name, and set image rolls it out");
    let (old, new) = ("pintle.local/busybox:1", "pintle.local/busybox:2");
    let socket = containerd_socket(cluster, "w1");
    let archive = cluster.file("busybox-2.tar", b"");
    let archive = archive.to_str().expect("path");
    let ctr = |arguments: &[&str]| {
        ran(cluster.command(Path::new("ctr")).args(["--address", &socket, "--namespace", "k8s.io"]).args(arguments))
            .ok()
    };
    ctr(&["images", "tag", old, new]);
    ctr(&["images", "export", archive, new]);
    ctr(&["images", "remove", new]);
    cluster.pintle(&["images", "import", archive]).ok();
    let images = cluster.pintle(&["images", "list"]).ok();
    assert_eq!(images.matches(new).count(), 2, "on both workers: {images}");
    let set = cluster.kubectl(&["set", "image", "deployment/web", &format!("httpd={new}")]).ok();
    assert_eq!(set, "deployment.apps/web image updated\n");
    rolled_out(cluster);
    cluster.until("only pods of the new image", 20, || {
        let pods = pods(cluster);
        (pods.len() == 4 && pods.iter().all(|pod| pod["spec"]["containers"][0]["image"] == new)).then_some(())
    });
}

/// The socket of a worker's containerd, from the configuration that it was started with.
fn containerd_socket(cluster: &Cluster, worker: &str) -> String {
    let pid = std::fs::read_to_string(cluster.path(&format!("{worker}-containerd/pid"))).expect("a pid file");
    let pid = pid.split_whitespace().next().expect("a pid").to_owned();
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("containerd runs");
    let config = command.split('\0').find(|word| word.ends_with(".toml")).expect("a configuration").to_owned();
    let text = std::fs::read_to_string(&config).expect("read the configuration");
    let addresses = text.lines().filter_map(|line| line.trim().strip_prefix("address = "));
    addresses.map(|address| address.trim_matches('"').to_owned()).next().expect("an address")
}

fn deleted_by_an_older_kubectl(cluster: &Cluster) {
    step("an older kubectl applies, follows, executes, reads logs and deletes, content of a namespace included");
    let old = |arguments: &[&str]| cluster.old_kubectl(&[&["--namespace=older"], arguments].concat());
    let manifest = root().join("examples/web.yaml");
    let manifest = manifest.to_str().expect("path");
    old(&["create", "namespace", "older"]).ok();
    old(&["apply", "-f", manifest]).ok();
    assert!(old(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok().contains("successfully rolled out"));
    assert!(old(&["apply", "-f", manifest]).ok().contains("deployment.apps/web unchanged"));
    assert_eq!(old(&["exec", "deploy/web", "--", "echo", "hello"]).ok(), "hello\n");
    assert!(old(&["logs", "deploy/web"]).ok().contains("response:200"));
    old(&["delete", "deployment", "web"]).ok();
    let left = || old(&["get", "pods,replicasets", "-o", "name"]).ok();
    cluster.until("its pods are gone", 30, || left().is_empty().then_some(()));
    old(&["apply", "-f", manifest]).ok();
    old(&["delete", "namespace", "older", "--timeout=60s"]).ok();
    assert!(cluster.kubectl(&["get", "namespace", "older"]).fails().contains("NotFound"));
    assert_eq!(old(&["get", "pods,services,configmaps,endpointslices", "-o", "name"]).ok(), "", "its content went");
}

/// Services of other kinds. busybox here has no server for UDP; the host's perl, seen through a volume, is one.
const OTHER_WAYS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: port}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: datagrams}
spec:
  selector: {app: datagrams}
  ports: [{name: ask, protocol: UDP, port: 5353, targetPort: ask}]
"#;
const ANSWERER: &str = r#"
---
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: datagrams}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 0
  volumes: [{name: host, hostPath: {path: /}}]
  containers:
    - name: answerer
      image: pintle.local/busybox:1
      command: [chroot, /host, perl, -MIO::Socket::INET, -e, '
        $socket = IO::Socket::INET->new(Proto => "udp", LocalPort => 53) or die;
        while ($socket->recv($text, 99)) { $socket->send("NAME heard $text") }']
      ports: [{name: ask, protocol: UDP, containerPort: 53}]
      volumeMounts: [{name: host, mountPath: /host, readOnly: true}]
"#;
const ASK: &str = r#"$socket = IO::Socket::INET->new(Proto => "udp", PeerAddr => $ARGV[0], PeerPort => 5353) or die;
    alarm 3; $socket->send("hello"); $socket->recv($text, 99); print $text"#;

fn reached_in_other_ways(cluster: &Cluster) {
    step("a NodePort, a UDP Service, a headless Service and SRV names are served");
    let answerers = [("answers-1", "w1"), ("answers-2", "w2")];
    let pods_of = answerers.map(|(name, node)| ANSWERER.replace("NAME", name).replace("NODE", node));
    cluster.kubectl_with(&["apply", "-f", "-"], &format!("{OTHER_WAYS}{}", pods_of.concat())).ok();

    let port = cluster.kubectl(&["get", "service", "port", "-o", "jsonpath={.spec.ports[0].nodePort}"]).ok();
    let names: BTreeSet<String> =
        pods(cluster).iter().map(|pod| pod["metadata"]["name"].as_str().expect("name").to_owned()).collect();
    let state = cluster.state();
    let address = |number: usize| state["agents"][number]["address"].as_str().expect("an address").to_owned();
    for (worker, other) in [("w1", address(1)), ("w2", address(0))] {
        cluster.until("all pods answer at the other worker's port", 20, || {
            let url = format!("http://{other}:{port}");
            let answers = (0..12).map(|_| cluster.on_worker(worker, &["curl", "-s", "--max-time", "2", &url]).stdout);
            (answers.map(|answer| answer.trim().to_owned()).collect::<BTreeSet<_>>() == names).then_some(())
        });
    }

    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "app=datagrams", "--timeout=30s"]).ok();
    let service = cluster.kubectl(&["get", "service", "datagrams", "-o", "jsonpath={.spec.clusterIP}"]).ok();
    for (from, _) in answerers {
        let ask = ["exec", from, "--", "chroot", "/host", "perl", "-MIO::Socket::INET", "-e", ASK, &service];
        cluster.until("both pods answer datagrams", 20, || {
            let answers: BTreeSet<String> = (0..4).map(|_| cluster.kubectl(&ask).stdout).collect();
            (answers == answerers.map(|(name, _)| format!("{name} heard hello")).into()).then_some(())
        });
    }

    let resolve = |kind: &str, name: &str| {
        let full = format!("{name}.default.svc.cluster.local");
        cluster.kubectl(&["exec", "deploy/web", "--", "nslookup", &format!("-type={kind}"), &full]).stdout
    };
    let addresses: Vec<String> =
        pods(cluster).iter().map(|pod| pod["status"]["podIP"].as_str().expect("address").to_owned()).collect();
    cluster.until("a headless name has the pods' addresses", 20, || {
        let found = resolve("a", "headless");
        addresses.iter().all(|address| found.contains(&format!("Address: {address}\n"))).then_some(())
    });
    let ports = resolve("srv", "_http._tcp.headless");
    assert_eq!(ports.matches("service = 0 25 80 ").count(), 4, "one record per pod: {ports}");
    let target = ports.lines().find_map(|line| line.split(" 80 ").nth(1)?.strip_suffix(".default.svc.cluster.local"));
    let found = resolve("a", target.unwrap_or_else(|| panic!("a target: {ports}")));
    assert!(addresses.iter().any(|address| found.contains(address)), "the target is a pod's name: {found}");
    let ports = resolve("srv", "_http._tcp.web");
    assert!(ports.contains("service = 0 100 80 web.default.svc.cluster.local"), "{ports}");
    let ports = resolve("srv", "_ask._udp.datagrams");
    assert!(ports.contains(" 5353 datagrams.default.svc.cluster.local"), "{ports}");
    cluster.kubectl(&["delete", "service", "port", "headless", "datagrams"]).ok();
    cluster.kubectl(&["delete", "pod", "-l", "app=datagrams"]).ok();
}

fn etcd_is_served(cluster: &Cluster) {
    step("etcdctl reads, writes, watches, compacts, leases and lists members");
    assert_eq!(cluster.etcdctl(&["put", "greeting", "hello"]).ok(), "OK\n");
    assert_eq!(cluster.etcdctl(&["get", "greeting"]).ok(), "greeting\nhello\n");
    assert_eq!(cluster.etcdctl(&["del", "greeting"]).ok(), "1\n");
    let keys = cluster.etcdctl(&["get", "/registry/deployments/", "--prefix", "--keys-only"]).ok();
    assert!(keys.contains("/registry/deployments/default/web"), "{keys}");
    let watching = cluster.etcdctl_follow(&["watch", "seen"]);
    // A watch begins when it is there: puts go on until one is seen.
    cluster.until("the watch tells of a put", 10, || {
        cluster.etcdctl(&["put", "seen", "now"]).ok();
        watching.said().contains("PUT\nseen\nnow\n").then_some(())
    });
    cluster.etcdctl(&["del", "seen"]).ok();
    watching.until_says("DELETE\nseen\n", 10);

    let revision = || {
        let found = cluster.etcdctl(&["put", "counted", "x", "-w", "json"]).ok();
        let found: Value = serde_json::from_str(&found).expect("the answer is JSON");
        found["header"]["revision"].as_i64().expect("a revision").to_string()
    };
    let (first, second) = (revision(), revision());
    assert_eq!(cluster.etcdctl(&["get", "counted", "--rev", &first, "--print-value-only"]).ok(), "x\n");
    assert_eq!(cluster.etcdctl(&["compact", &second]).ok(), format!("compacted revision {second}\n"));
    let past = cluster.etcdctl(&["get", "counted", "--rev", &first]).fails();
    assert!(past.contains("required revision has been compacted"), "{past}");
    assert_eq!(cluster.etcdctl(&["get", "counted", "--rev", &second, "--print-value-only"]).ok(), "x\n");
    let again = cluster.etcdctl(&["compact", &second]).fails();
    assert!(again.contains("required revision has been compacted"), "{again}");
    let future = cluster.etcdctl(&["get", "counted", "--rev", "99999999"]).fails();
    assert!(future.contains("required revision is a future revision"), "{future}");

    let lease = cluster.etcdctl(&["lease", "grant", "60"]).ok();
    assert!(lease.contains("granted with TTL(60s)"), "{lease}");
    let lease = lease.split_whitespace().nth(1).expect("the lease's id").to_owned();
    cluster.etcdctl(&["put", "leased", "x", "--lease", &lease]).ok();
    let kept = cluster.etcdctl(&["lease", "keep-alive", "--once", &lease]).ok();
    assert_eq!(kept, format!("lease {lease} keepalived with TTL(60)\n"));
    let known = cluster.etcdctl(&["lease", "timetolive", &lease, "--keys"]).ok();
    assert!(known.contains("attached keys([leased])"), "{known}");
    assert_eq!(cluster.etcdctl(&["lease", "revoke", &lease]).ok(), format!("lease {lease} revoked\n"));
    assert_eq!(cluster.etcdctl(&["get", "leased"]).ok(), "", "what is attached goes with its lease");
    assert!(cluster.etcdctl(&["lease", "revoke", &lease]).fails().contains("requested lease not found"));

    assert_eq!(cluster.etcdctl(&["member", "list"]).ok().lines().count(), 3);
    let status = cluster.etcdctl(&["endpoint", "status", "-w", "json"]).ok();
    let status: Value = serde_json::from_str(&status).expect("status is JSON");
    assert_eq!(status.as_array().map(Vec::len), Some(3));
}

fn etcd_is_for_administrators(cluster: &Cluster) {
    step("etcdctl without a certificate, or with a worker's, reads nothing");
    let get = ["--command-timeout=3s", "get", "/registry/secrets/", "--prefix", "--keys-only"];
    assert!(cluster.etcdctl(&get).ok().contains("/registry/secrets/"), "there is something to be read");
    let nobody = cluster.etcdctl_as(None, &get);
    assert_eq!(nobody.stdout, "");
    let said = nobody.fails();
    assert!(said.contains("certificate required"), "{said}");
    // Certificate and key of a worker are one file.
    let worker = cluster.path("w1/data/pki/client.pem");
    let refused = cluster.etcdctl_as(Some((&worker, &worker)), &get);
    assert_eq!(refused.stdout, "", "{}", refused.stderr);
    let said = refused.fails();
    assert!(["permission denied", "PermissionDenied", "tls: "].iter().any(|part| said.contains(part)), "{said}");
}

fn bad_input_is_refused(cluster: &Cluster) {
    step("bad input is refused with the reason Kubernetes gives");
    let unknown = cluster
        .kubectl_with(&["apply", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\nnonsense: 1\n");
    assert!(unknown.fails().contains("unknown field \"nonsense\""));
    let name =
        cluster.kubectl_with(&["create", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: BAD_NAME}\n");
    assert!(name.fails().contains("a lowercase RFC 1123 subdomain must consist of"));
    let missing = cluster.kubectl(&["get", "pod", "missing"]).fails();
    assert_eq!(missing, "Error from server (NotFound): pods \"missing\" not found\n");
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: once}\n";
    cluster.kubectl_with(&["create", "-f", "-"], twice).ok();
    assert!(cluster.kubectl_with(&["create", "-f", "-"], twice).fails().contains("AlreadyExists"));
    let stale = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: once, resourceVersion: \"1\"}\n";
    assert!(cluster.kubectl_with(&["replace", "-f", "-"], stale).fails().contains("Conflict"));
    let forbidden = cluster.kubectl(&["get", "secrets", "--as=nobody"]).fails();
    assert!(forbidden.contains("User \"nobody\" cannot list resource \"secrets\""), "{forbidden}");
    for path in
        ["/api/v1/namespaces/%2e%2e/pods", "/api/v1/namespaces/default/pods/%00", "/api/v1/../secrets", "/api//v1"]
    {
        let (code, body) = cluster.curl(path, &[]);
        assert!((400..500).contains(&code) && body.contains("\"kind\":\"Status\""), "{path}: {code} {body}");
    }
    let large = format!("@{}", cluster.file("large", &vec![b' '; 4 << 20]).display());
    let json = ["-X", "POST", "-H", "Content-Type: application/json", "--data-binary"];
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, _) = cluster.curl(maps, &[&json[..], &[&large]].concat());
    assert_eq!(code, 413, "a body of 4 MiB");
    let (code, _) = cluster.curl(maps, &[&json[..], &["{\"metadata\": {\"name\": \"bad\""]].concat());
    assert_eq!(code, 400, "broken JSON");
    let (code, _) = cluster.curl_as_stranger(maps, &["-H", "Authorization: Bearer abc"]);
    assert_eq!(code, 401, "a token of nobody");
    assert_eq!(cluster.curl_as_stranger(maps, &[]).0, 403, "nobody at all");
    assert_eq!(cluster.curl_as_stranger("/readyz", &[]).0, 200, "health is for everybody");
    let nothing = cluster.kubectl(&["get", "configmap", "bad"]).fails();
    assert!(nothing.contains("NotFound"), "nothing was stored: {nothing}");
}

fn the_leader_dies_in_a_rollout(cluster: &Cluster) {
    step("the leader is killed in the middle of a rollout, and the rollout finishes");
    cluster.kubectl(&["set", "env", "deployment/web", "VERSION=3"]).ok();
    let leader = cluster.leader();
    cluster.pintle(&["cluster", "kill", &leader]).ok();
    rolled_out(cluster);
    assert_eq!(cluster.kubectl(&["exec", "deploy/web", "--", "sh", "-c", "echo $VERSION"]).ok(), "3\n");
    cluster.until("four pods, none doubled", 40, || (pods(cluster).len() == 4).then_some(()));
    cluster.pintle(&["cluster", "start", &leader]).ok();
    cluster.until("the killed server follows", 20, || {
        let status = cluster.status();
        status["servers"].as_array()?.iter().all(|server| server["role"] != "down").then_some(())
    });
}

fn all_servers_die(cluster: &Cluster) {
    step("all servers are killed at once; workloads go on, and everything is there after the restart");
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]).ok();
    let known = pods(cluster);
    let service = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]).ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let _entered = runtime.enter();
    let load = Group::new("load");
    let log = cluster.write(5, 50, &load);
    cluster.until("clients write", 10, || (log.writes().len() > 50).then_some(()));
    let servers = cluster.pids().into_iter().filter(|(name, _)| name.starts_with('s'));
    let servers: Vec<Pid> = servers.map(|(_, pid)| Pid::from_raw(i32::try_from(pid).expect("a pid"))).collect();
    assert_eq!(servers.len(), 3);
    let killed = servers.iter().map(|pid| kill(*pid, Signal::SIGKILL)).collect::<Vec<_>>();
    assert!(killed.iter().all(Result::is_ok), "{killed:?}");
    runtime.block_on(load.stop(Duration::from_secs(10))).expect("the load ends");
    cluster
        .until("no server runs", 10, || (!cluster.pids().iter().any(|(name, _)| name.starts_with('s'))).then_some(()));
    workers_go_on(cluster, &known, &service);
    for server in ["s1", "s2", "s3"] {
        cluster.pintle(&["cluster", "start", server]).ok();
    }
    cluster.until("the API answers", 30, || (cluster.kubectl(&["get", "configmap", "kept"]).code == 0).then_some(()));
    let reader = Group::new("reader");
    let lost = runtime.block_on(async { log.lost(&cluster.client(&reader).await, "default").await });
    assert_eq!(lost.expect("list"), Vec::<String>::new(), "acknowledged writes, of {}", log.writes().len());
    let uids = |pods: &[Value]| pods.iter().map(|pod| pod["metadata"]["uid"].to_string()).collect::<BTreeSet<_>>();
    assert_eq!(uids(&known), uids(&pods(cluster)), "the same pods");
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default();
    cluster.until("one container was restarted, the one that was killed", 20, || {
        (pods(cluster).iter().map(restarts).sum::<i64>() == 1).then_some(())
    });
}

/// No server runs. Services and names answer on both workers, also after an agent was killed and started again, and that
/// agent restarts a container that ends.
fn workers_go_on(cluster: &Cluster, known: &[Value], service: &str) {
    let names: BTreeSet<String> =
        known.iter().map(|pod| pod["metadata"]["name"].as_str().expect("name").to_owned()).collect();
    let all_answer = |worker: &str| {
        cluster.until("the Service answers without a server", 20, || {
            let url = format!("http://{service}");
            let answers = (0..12).map(|_| cluster.on_worker(worker, &["curl", "-s", "--max-time", "2", &url]).stdout);
            (answers.map(|answer| answer.trim().to_owned()).collect::<BTreeSet<_>>() == names).then_some(())
        });
        cluster.until("names are resolved without a server", 20, || {
            let asked = ["busybox", "nslookup", "web.default.svc.cluster.local", "10.96.0.10"];
            cluster.on_worker(worker, &asked).stdout.contains(service).then_some(())
        });
    };
    all_answer("w1");
    all_answer("w2");
    cluster.pintle(&["cluster", "kill", "w1"]).ok();
    cluster.pintle(&["cluster", "start", "w1"]).ok();
    all_answer("w1");

    let pod = known.iter().find(|pod| pod["spec"]["nodeName"] == "w1").expect("a pod on w1");
    let name = pod["metadata"]["name"].as_str().expect("name");
    let victims = web_servers(name);
    assert!(!victims.is_empty(), "the pod's process is found");
    for pid in &victims {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("kill");
    }
    cluster.until("the container was restarted without a server", 40, || {
        web_servers(name).iter().any(|pid| !victims.contains(pid)).then_some(())
    });
    all_answer("w1");
}

/// Processes `httpd` of the pod: its host name is the pod's name.
fn web_servers(pod: &str) -> Vec<i32> {
    let pids =
        std::fs::read_dir("/proc").expect("proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let ours = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let host = std::fs::read_to_string(format!("/proc/{pid}/root/etc/hostname")).unwrap_or_default();
        command.starts_with(b"httpd") && host.trim() == pod
    };
    pids.filter(ours).collect()
}

fn a_worker_is_lost_and_returns(cluster: &Cluster) {
    step("a killed worker is NotReady, its pods are replaced, and it comes back");
    let patch = r#"{"spec":{"template":{"spec":{"tolerations":[
        {"key":"node.kubernetes.io/unreachable","operator":"Exists","effect":"NoExecute","tolerationSeconds":2},
        {"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":2}]}}}}"#;
    cluster.kubectl(&["patch", "deployment", "web", "-p", patch]).ok();
    rolled_out(cluster);
    let killed = Instant::now();
    cluster.pintle(&["cluster", "kill", "w2"]).ok();
    let node = |cluster: &Cluster| cluster.kubectl(&["get", "node", "w2"]).ok();
    let late = cluster.until("w2 is NotReady", 20, || node(cluster).contains("NotReady").then(|| killed.elapsed()));
    assert!(late <= Duration::from_secs(10), "NotReady {late:?} after the kill");
    cluster.until("its pods run on w1", 60, || {
        let here = |pod: &&Value| pod["spec"]["nodeName"] == "w1" && ready(pod);
        (pods(cluster).iter().filter(here).count() == 4).then_some(())
    });
    cluster.pintle(&["cluster", "start", "w2"]).ok();
    cluster.until("w2 is Ready", 30, || (!node(cluster).contains("NotReady")).then_some(()));
    cluster.until("pods that were replaced are gone", 60, || (pods(cluster).len() == 4).then_some(()));
}
