//! The whole slice with real parts: three servers, two workers in namespaces of their own, containerd, kubectl, etcdctl.
//!
//! One cluster serves all steps, in order: bringing it up is what costs.

use std::collections::BTreeSet;

use pintle_tests::{Cluster, can_run_containers, root};
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
    changed(&cluster);
    etcd_is_served(&cluster);
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
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
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

fn changed(cluster: &Cluster) {
    step("scale, set image, undo, label, delete a pod");
    cluster.kubectl(&["scale", "deployment/web", "--replicas=6"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    assert_eq!(pods(cluster).iter().filter(|pod| ready(pod)).count(), 6);
    cluster.kubectl(&["scale", "deployment/web", "--replicas=4"]).ok();
    cluster.kubectl(&["set", "env", "deployment/web", "VERSION=2"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=80s"]).ok();
    let version = ["exec", "deploy/web", "--", "sh", "-c", "echo $VERSION"];
    assert_eq!(cluster.kubectl(&version).ok(), "2\n");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=80s"]).ok();
    assert_eq!(cluster.kubectl(&version).ok(), "1\n");
    let name = pods(cluster)[0]["metadata"]["name"].as_str().expect("name").to_owned();
    cluster.kubectl(&["delete", "pod", &name]).ok();
    cluster.until("the pod is replaced", 30, || {
        (pods(cluster).iter().filter(|pod| ready(pod)).count() == 4).then_some(())
    });
}

fn etcd_is_served(cluster: &Cluster) {
    step("etcdctl reads, writes, watches, compacts, leases and lists members");
    assert_eq!(cluster.etcdctl(&["put", "greeting", "hello"]).ok(), "OK\n");
    assert_eq!(cluster.etcdctl(&["get", "greeting"]).ok(), "greeting\nhello\n");
    assert_eq!(cluster.etcdctl(&["del", "greeting"]).ok(), "1\n");
    let keys = cluster.etcdctl(&["get", "/registry/deployments/", "--prefix", "--keys-only"]).ok();
    assert!(keys.contains("/registry/deployments/default/web"), "{keys}");
    let lease = cluster.etcdctl(&["lease", "grant", "60"]).ok();
    assert!(lease.contains("granted with TTL(60s)"), "{lease}");
    assert_eq!(cluster.etcdctl(&["member", "list"]).ok().lines().count(), 3);
    let status = cluster.etcdctl(&["endpoint", "status", "-w", "json"]).ok();
    let status: Value = serde_json::from_str(&status).expect("status is JSON");
    assert_eq!(status.as_array().map(Vec::len), Some(3));
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
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=80s"]).ok();
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
    for server in ["s1", "s2", "s3"] {
        cluster.pintle(&["cluster", "kill", server]).ok();
    }
    workers_go_on(cluster, &known, &service);
    for server in ["s1", "s2", "s3"] {
        cluster.pintle(&["cluster", "start", server]).ok();
    }
    cluster.until("the API answers", 30, || (cluster.kubectl(&["get", "configmap", "kept"]).code == 0).then_some(()));
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
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
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
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=80s"]).ok();
    cluster.pintle(&["cluster", "kill", "w2"]).ok();
    let node = |cluster: &Cluster| cluster.kubectl(&["get", "node", "w2"]).ok();
    cluster.until("w2 is NotReady", 20, || node(cluster).contains("NotReady").then_some(()));
    cluster.until("its pods run on w1", 60, || {
        let here = |pod: &&Value| pod["spec"]["nodeName"] == "w1" && ready(pod);
        (pods(cluster).iter().filter(here).count() == 4).then_some(())
    });
    cluster.pintle(&["cluster", "start", "w2"]).ok();
    cluster.until("w2 is Ready", 30, || (!node(cluster).contains("NotReady")).then_some(()));
    cluster.until("pods that were replaced are gone", 60, || (pods(cluster).len() == 4).then_some(()));
}
