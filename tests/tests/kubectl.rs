//! What people do with kubectl, verb by verb, against a cluster with simulated workers.

use pintle_tests::Cluster;
use serde_json::{Value, json};

const ARGUMENTS: [&str; 6] = ["--port", "0", "--servers", "1", "--runtime", "simulated"];

#[test]
fn kubectl_works_unchanged() {
    let cluster = Cluster::up("kubectl", &ARGUMENTS);
    what_is_served(&cluster);
    objects_are_changed_in_every_way(&cluster);
    jobs_are_created(&cluster);
    pods_on_the_nodes_network_are_created(&cluster);
    ports_of_one_number_and_two_protocols_are_applied_by_the_server(&cluster);
    certificates_are_asked_for_and_denied(&cluster);
    nodes_are_marked_and_drained(&cluster);
    a_node_that_was_deleted_stays_away(&cluster);
}

fn step(name: &str) {
    println!("step: {name}");
}

fn read(cluster: &Cluster, object: &[&str]) -> Value {
    let text = cluster.kubectl(&[&["get"], object, &["-o", "json"]].concat()).ok();
    serde_json::from_str(&text).expect("an object is JSON")
}

fn deployment(name: &str, pod: &Value) -> String {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod}},
    })
    .to_string()
}

fn what_is_served(cluster: &Cluster) {
    step("resources, versions and the cluster are listed");
    let resources = cluster.kubectl(&["api-resources", "-o", "wide"]).ok();
    for resource in ["deployments", "cronjobs", "networkpolicies"] {
        assert!(resources.contains(resource), "{resource}: {resources}");
    }
    assert!(cluster.kubectl(&["api-versions"]).ok().contains("rbac.authorization.k8s.io/v1"));
    assert!(cluster.kubectl(&["cluster-info"]).ok().contains("control plane"));
    assert!(cluster.kubectl(&["version"]).ok().contains("Server Version: v1.36"));
}

fn objects_are_changed_in_every_way(cluster: &Cluster) {
    step("apply, diff, edit, patch, label, annotate, replace, set, scale, autoscale, expose, rollout, wait, delete");
    let manifest =
        deployment("web", &json!({"containers": [{"name": "web", "image": "i:1", "ports": [{"containerPort": 80}]}]}));
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    assert_eq!(cluster.kubectl_with(&["diff", "-f", "-"], &manifest).ok(), "", "nothing differs");
    let changed = manifest.replace("\"replicas\":2", "\"replicas\":3");
    let diff = cluster.kubectl_with(&["diff", "-f", "-"], &changed);
    assert!(diff.code == 1 && diff.stdout.contains("+  replicas: 3"), "{diff:?}");
    cluster.kubectl(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"]).ok();

    let mut edit = cluster.command(&pintle_tests::tool("sid", "kubectl"));
    edit.env("KUBE_EDITOR", "sed -i s/i:1/i:2/").args(["edit", "deployment", "web"]);
    pintle_tests::ran(&mut edit).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let image = |cluster: &Cluster| {
        read(cluster, &["deployment", "web"])["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    };
    assert_eq!(image(cluster), "i:2");
    for (kind, patch) in [
        ("json", r#"[{"op":"replace","path":"/spec/replicas","value":4}]"#),
        ("merge", r#"{"metadata":{"labels":{"tier":"front"}}}"#),
        ("strategic", r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"i:3"}]}}}}"#),
    ] {
        cluster.kubectl(&["patch", "deployment", "web", "--type", kind, "-p", patch]).ok();
    }
    cluster.kubectl(&["label", "deployment", "web", "tier=back", "--overwrite"]).ok();
    cluster.kubectl(&["annotate", "deployment", "web", "note=a b"]).ok();
    cluster.kubectl(&["set", "resources", "deployment/web", "--requests=cpu=10m"]).ok();
    let now = read(cluster, &["deployment", "web"]);
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["labels"]["tier"]), (&json!(4), &json!("back")));
    assert_eq!(now["metadata"]["annotations"]["note"], "a b");
    assert_eq!(image(cluster), "i:3");
    cluster.kubectl(&["rollout", "restart", "deployment/web"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]).ok();
    assert!(history.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).count() >= 4, "{history}");
    cluster.kubectl(&["rollout", "undo", "deployment/web", "--to-revision=1"]).ok();
    assert_eq!(image(cluster), "i:1");

    cluster.kubectl(&["autoscale", "deployment", "web", "--min=1", "--max=5", "--cpu=80%"]).ok();
    cluster.kubectl(&["expose", "deployment", "web", "--port=80"]).ok();
    assert_eq!(read(cluster, &["service", "web"])["spec"]["selector"], json!({"app": "web"}));
    cluster.kubectl(&["create", "configmap", "settings", "--from-literal=a=1"]).ok();
    let replaced =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "2"}});
    cluster.kubectl_with(&["replace", "-f", "-"], &replaced.to_string()).ok();
    assert_eq!(read(cluster, &["configmap", "settings"])["data"], json!({"a": "2"}));
    let token = cluster.kubectl(&["create", "token", "default"]).ok();
    assert_eq!(token.trim().split('.').count(), 3, "a token has three parts");
    cluster.kubectl(&["delete", "deployment,service,hpa", "web", "--wait=false"]).ok();
    cluster.kubectl(&["wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s"]).ok();
}

fn jobs_are_created(cluster: &Cluster) {
    step("a job gets the selector that only its own pods match");
    cluster.kubectl(&["create", "job", "once", "--image=i:1", "--", "true"]).ok();
    let job = read(cluster, &["job", "once"]);
    let uid = &job["metadata"]["uid"];
    assert_eq!(&job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], uid);
    assert_eq!(&job["spec"]["template"]["metadata"]["labels"]["controller-uid"], uid);
    assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "once");
    cluster.kubectl(&["create", "cronjob", "often", "--image=i:1", "--schedule=* * * * *"]).ok();
    cluster.kubectl(&["create", "job", "now", "--from=cronjob/often"]).ok();
    cluster.kubectl(&["delete", "job,cronjob", "--all"]).ok();
}

fn pods_on_the_nodes_network_are_created(cluster: &Cluster) {
    step("a template on the node's network needs no host ports, its pods get them");
    let container = json!({"name": "c", "image": "i:1", "ports": [{"containerPort": 9100}]});
    let manifest = deployment("host", &json!({"hostNetwork": true, "containers": [container]}));
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    cluster.kubectl(&["wait", "--for=condition=Available", "deployment/host", "--timeout=60s"]).ok();
    let pods = read(cluster, &["pods", "-l", "app=host"]);
    for pod in pods["items"].as_array().expect("pods") {
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 9100);
    }
    let odd = manifest.replace("\"containerPort\":9100", "\"containerPort\":9100,\"hostPort\":1");
    let refused = cluster.kubectl_with(&["apply", "-f", "-"], &odd).fails();
    assert!(refused.contains("ports[0].hostPort") && refused.contains("must match `containerPort`"), "{refused}");
    cluster.kubectl(&["delete", "deployment", "host"]).ok();
}

fn ports_of_one_number_and_two_protocols_are_applied_by_the_server(cluster: &Cluster) {
    step("apply --server-side twice leaves two ports two ports");
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol});
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns"},
        "spec": {"selector": {"app": "dns"}, "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]},
    });
    for _ in 0..2 {
        cluster.kubectl_with(&["apply", "--server-side", "-f", "-"], &service.to_string()).ok();
        let ports = read(cluster, &["service", "dns"])["spec"]["ports"].clone();
        let protocols: Vec<&Value> = ports.as_array().expect("ports").iter().map(|port| &port["protocol"]).collect();
        assert_eq!(protocols, ["UDP", "TCP"], "{ports}");
    }
    cluster.kubectl(&["delete", "service", "dns"]).ok();
}

fn certificates_are_asked_for_and_denied(cluster: &Cluster) {
    step("certificate requests are denied by hand");
    let (key, pem) = (cluster.path("someone.key"), cluster.path("someone.csr"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args([
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=someone",
    ]);
    pintle_tests::ran(openssl.arg("-keyout").arg(key).arg("-out").arg(&pem)).ok();
    let encoded = pintle_tests::ran(std::process::Command::new("base64").arg("-w0").arg(&pem)).ok();
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "someone"},
        "spec": {"request": encoded, "signerName": "example.com/people", "usages": ["client auth"]},
    });
    cluster.kubectl_with(&["create", "-f", "-"], &request.to_string()).ok();
    cluster.kubectl(&["certificate", "deny", "someone"]).ok();
    let conditions = read(cluster, &["csr", "someone"])["status"]["conditions"].clone();
    assert_eq!(conditions[0]["type"], "Denied");
    assert!(cluster.kubectl(&["get", "csr", "someone"]).ok().contains("Denied"));
}

fn nodes_are_marked_and_drained(cluster: &Cluster) {
    step("taint, cordon, drain and uncordon");
    cluster.kubectl(&["taint", "node", "w1", "only=mine:NoSchedule"]).ok();
    assert_eq!(read(cluster, &["node", "w1"])["spec"]["taints"][0]["key"], "only");
    cluster.kubectl(&["taint", "node", "w1", "only-"]).ok();
    let manifest = deployment("moved", &json!({"containers": [{"name": "c", "image": "i:1"}]}));
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    cluster.kubectl(&["wait", "--for=condition=Available", "deployment/moved", "--timeout=60s"]).ok();
    cluster.kubectl(&["cordon", "w1"]).ok();
    assert!(cluster.kubectl(&["get", "nodes"]).ok().contains("Ready,SchedulingDisabled"));
    cluster.kubectl(&["drain", "w1", "--ignore-daemonsets", "--timeout=60s"]).ok();
    all_run_on(cluster, "w2");
    cluster.kubectl(&["uncordon", "w1"]).ok();
}

/// Waits until both pods of the Deployment run on `node`, and no others are there.
fn all_run_on(cluster: &Cluster, node: &str) {
    cluster.until("the pods have moved", 80, || {
        let pods = read(cluster, &["pods", "-l", "app=moved"]);
        let pods = pods["items"].as_array()?;
        let there = |pod: &&Value| pod["spec"]["nodeName"] == node && pod["status"]["phase"] == "Running";
        (pods.len() == 2 && pods.iter().filter(there).count() == 2).then_some(())
    });
}

fn a_node_that_was_deleted_stays_away(cluster: &Cluster) {
    step("a deleted node comes back when its agent is started again, not by itself");
    cluster.kubectl(&["delete", "node", "w2"]).ok();
    cluster.until("the agent says so", 30, || cluster.log("w2").contains("the node object was deleted").then_some(()));
    all_run_on(cluster, "w1");
    assert_eq!(cluster.kubectl(&["get", "nodes", "-o", "name"]).ok(), "node/w1\n");
    cluster.pintle(&["cluster", "kill", "w2"]).ok();
    cluster.pintle(&["cluster", "start", "w2"]).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "node/w2", "--timeout=30s"]).ok();
}
