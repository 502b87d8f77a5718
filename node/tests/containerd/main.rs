//! The agent's pod machinery against a real containerd, in a network namespace of its own.
//!
//! Needs root, containerd, runc, nft, ip, CNI plugins and a static busybox; says what is missing and passes otherwise.
//! Everything it starts ends with it, also when it fails.

mod api;
mod world;

use std::time::{Duration, Instant};

use pintle_node::runtime::{Interactive, Wanted, channel};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::World;

/// The whole test has this long.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn pods_live_and_die_in_real_containers() {
    if let Some(missing) = world::missing() {
        eprintln!("skipped: {missing}");
        return;
    }
    world::run(DEADLINE, |world| async move {
        pods_run_with_all_they_ask_for(&world).await;
        commands_and_ports_reach_a_container(&world).await;
        services_and_names_lead_to_pods(&world).await;
        crashes_restart_and_probes_kill(&world).await;
        a_new_agent_adopts_what_runs(world).await;
    });
}

async fn pods_run_with_all_they_ask_for(world: &World) {
    let began = Instant::now();
    world.apply(json!({
        "metadata": { "name": "web", "labels": { "app": "web" } },
        "spec": {
            "subdomain": "web", "serviceAccountName": "default",
            "initContainers": [{
                "name": "prepare", "image": world::IMAGE,
                "command": ["sh", "-c", "echo \"$GREETING from $POD\" > /www/index.html; cat /conf/key >> /www/index.html"],
                "env": [
                    { "name": "GREETING", "valueFrom": { "configMapKeyRef": { "name": "config", "key": "greeting" } } },
                    { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                ],
                "volumeMounts": [{ "name": "www", "mountPath": "/www" }, { "name": "conf", "mountPath": "/conf" }],
            }],
            "containers": [{
                "name": "httpd", "image": world::IMAGE,
                "command": ["httpd", "-f", "-p", "8080", "-h", "/www"],
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "readinessProbe": { "httpGet": { "path": "/", "port": "http" }, "periodSeconds": 1 },
                "resources": { "limits": { "memory": "64Mi", "cpu": "500m" } },
                "volumeMounts": [
                    { "name": "www", "mountPath": "/www", "subPath": "." }, { "name": "token", "mountPath": "/token" },
                    { "name": "memory", "mountPath": "/memory" },
                ],
            }],
            "volumes": [
                { "name": "www", "emptyDir": {} }, { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
                { "name": "conf", "configMap": { "name": "config", "items": [{ "key": "more", "path": "key" }] } },
                { "name": "token", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } },
            ],
        },
    }));
    world.until("web", |status| status["phase"] == "Running").await;
    eprintln!("create to Running with an init container: {:?}", began.elapsed());
    let status = world.until("web", |status| world::condition(status, "Ready") == "True").await;
    eprintln!("create to Ready with an init container: {:?}", began.elapsed());
    assert!(status["podIP"].as_str().is_some_and(|ip| ip.starts_with("10.244.7.")), "{status}");
    assert_eq!(status["qosClass"], "Burstable", "the init container asks for nothing");
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    let page = world::get(status["podIP"].as_str().unwrap_or_default(), 8080).await;
    assert!(page.contains("hello from web") && page.contains("second value"), "{page}");

    let began = Instant::now();
    world.apply(world::sleeper("plain", json!({})));
    world.until("plain", |status| status["phase"] == "Running").await;
    eprintln!("create to Running of a plain pod: {:?}", began.elapsed());
}

async fn output_of(mut stream: Interactive) -> (String, String, serde_json::Value) {
    let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), serde_json::Value::Null);
    while let Some((of, data)) = stream.output.recv().await {
        match of {
            channel::STDOUT => out.extend_from_slice(&data),
            channel::STDERR => err.extend_from_slice(&data),
            channel::ERROR => status = serde_json::from_slice(&data).expect("status"),
            _ => (),
        }
    }
    (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned(), status)
}

async fn commands_and_ports_reach_a_container(world: &World) {
    let id = world.container_id("web", "httpd").await;
    let exec = async |command: &[&str], wanted: Wanted, input: &str| {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let stream = world.runtime.exec(&id, &command, wanted).await.expect("exec");
        if wanted.stdin {
            stream.input.send((channel::STDIN, input.to_owned().into())).await.expect("input");
            stream.input.send((channel::CLOSE, vec![0].into())).await.expect("end of input");
        }
        output_of(stream).await
    };
    let all = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
    let (out, _, status) = exec(&["cat"], all, "end of input is seen\n").await;
    assert_eq!((out.as_str(), &status["status"]), ("end of input is seen\n", &json!("Success")));
    let quiet = Wanted { stdin: false, ..all };
    let (out, err, status) = exec(&["sh", "-c", "echo out; echo err >&2; exit 7"], quiet, "").await;
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
    assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "7" }));
    let (out, ..) = exec(&["sh", "-c", "cat /token/token; grep -c tmpfs.*/memory /proc/mounts; env"], quiet, "").await;
    assert!(out.starts_with("a-token") && out.contains("KUBERNETES_SERVICE_HOST=10.96.0.1"), "{out}");
    let (out, ..) = exec(&["grep", "-c", "^tmpfs /token tmpfs ro", "/proc/mounts"], quiet, "").await;
    assert_eq!(out.trim(), "1", "tokens are in memory");
    let (out, ..) = exec(&["cat", "/etc/hosts", "/etc/resolv.conf"], quiet, "").await;
    assert!(out.contains("web.web.ns.svc.cluster.local") && out.contains("nameserver 10.96.0.10"), "{out}");
    // The file of cgroup v2, or else that of v1.
    let limit = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    let (out, ..) = exec(&["sh", "-c", limit], quiet, "").await;
    assert_eq!(out.trim(), (64 << 20).to_string());

    let namespace = world.sandbox("web").await.network_namespace;
    assert!(namespace.is_some());
    let mut stream = pintle_node::streams::forward::connect(namespace, 8080).await.expect("connect");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answer");
    assert!(answer.contains("hello from web"), "{answer}");
}

async fn services_and_names_lead_to_pods(world: &World) {
    let ip = world.status("web")["podIP"].as_str().unwrap_or_default().to_owned();
    world.serve("web", "10.96.0.77", 80, 8080, &[&ip]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !world::try_get("10.96.0.77", 80).await.is_ok_and(|page| page.contains("hello from web")) {
        assert!(Instant::now() < deadline, "the service address never answered");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // From inside a pod: by name, through the service, also to itself.
    for pod in ["plain", "web"] {
        let container = if pod == "web" { "httpd" } else { "main" };
        let id = world.container_id(pod, container).await;
        // `web` alone is the name of the pod itself in its hosts file.
        let command = ["wget", "-qO-", "http://web.ns"].map(str::to_owned);
        let output = world.runtime.run_command(&id, &command, Duration::from_secs(10)).await.expect("wget");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("hello from web"), "from {pod}: {text} {}", String::from_utf8_lossy(&output.stderr));
    }
    world.serve("web", "10.96.0.77", 80, 8080, &[]);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match tokio::net::TcpStream::connect("10.96.0.77:80").await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => break,
            _ => assert!(Instant::now() < deadline, "a service without endpoints was never refused"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn crashes_restart_and_probes_kill(world: &World) {
    world.apply(json!({
        "metadata": { "name": "crash" },
        "spec": { "containers": [{
            "name": "main", "image": world::IMAGE, "command": ["sh", "-c", "echo last words > /dev/termination-log; echo logged; exit 3"],
        }] },
    }));
    let status = world
        .until("crash", |status| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff")
        .await;
    let main = &status["containerStatuses"][0];
    assert_eq!((&main["restartCount"], &main["lastState"]["terminated"]["exitCode"]), (&json!(1), &json!(3)), "{main}");
    assert_eq!(main["lastState"]["terminated"]["message"], "last words\n");

    world.apply(json!({
        "metadata": { "name": "once" },
        "spec": { "restartPolicy": "Never", "containers": [{ "name": "main", "image": world::IMAGE, "command": ["true"] }] },
    }));
    world.until("once", |status| status["phase"] == "Succeeded").await;

    world.apply(world::sleeper("absent", json!({ "image": "pintle.local/absent:1", "imagePullPolicy": "Never" })));
    world
        .until("absent", |status| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull")
        .await;

    let probe = json!({ "exec": { "command": ["test", "-e", "/alive"] }, "periodSeconds": 1, "failureThreshold": 1 });
    world.apply(world::sleeper("sick", json!({ "livenessProbe": probe })));
    world.until("sick", |status| status["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)).await;
    assert!(
        world.events().iter().any(|reason| reason == "Unhealthy")
            && world.events().iter().any(|reason| reason == "Killing")
    );
}

async fn a_new_agent_adopts_what_runs(world: World) {
    let before = world.container_id("web", "httpd").await;
    let count = world.status("web")["containerStatuses"][0]["restartCount"].clone();
    let world = world.with_a_new_agent().await;
    world.until("web", |status| world::condition(status, "Ready") == "True").await;
    assert_eq!(world.container_id("web", "httpd").await, before, "a healthy container was replaced");
    assert_eq!(world.status("web")["containerStatuses"][0]["restartCount"], count);
    for name in ["web", "plain", "crash", "once", "absent", "sick"] {
        world.delete(name, 1);
    }
    world.until_gone().await;
    world.until_no_group_of("uid-web").await;
    assert!(world.runtime.sandboxes(None).await.expect("list").is_empty());
    world.stop().await;
}
