//! What a server, an agent and the API refuse: things of another cluster, things that expired, places that are taken,
//! disks that are full. Each with one clear sentence or the Status of Kubernetes; nothing dies and nothing is stored.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pintle_tests::{Cluster, Following, Ran, can_run_containers, pintle, ran};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

/// One server is enough to refuse something.
const SMALL: [&str; 6] = ["--port", "0", "--servers", "1", "--agents", "0"];
const SIMULATED: [&str; 2] = ["--runtime", "simulated"];

fn small(name: &str) -> Cluster {
    Cluster::up(name, &[&SMALL[..], &SIMULATED[..]].concat())
}

/// Runs a server of `cluster` with some settings of its configuration changed, on free ports; it must end by itself.
fn server(cluster: &Cluster, changes: &[(&str, &str)]) -> Ran {
    let free = ["listen-api", "listen-client", "listen-peer"].map(|name| (name, "127.0.0.1:0"));
    configured(cluster, &[&free[..], changes].concat())
}

fn configured(cluster: &Cluster, changes: &[(&str, &str)]) -> Ran {
    let file = changed(cluster, changes);
    ran(cluster.command(&pintle()).args(["server", "--config"]).arg(file))
}

/// The configuration of the first server with some settings changed.
fn changed(cluster: &Cluster, changes: &[(&str, &str)]) -> PathBuf {
    let text = std::fs::read_to_string(cluster.path("s1/config.yaml")).expect("read the configuration");
    let line = |line: &str| {
        let change = changes.iter().rev().find(|(name, _)| line.starts_with(&format!("{name}:")));
        change.map_or(line.to_owned(), |(name, value)| format!("{name}: {value}"))
    };
    let text: Vec<String> = text.lines().map(line).collect();
    cluster.file("changed.yaml", text.join("\n").as_bytes())
}

/// The command ended with an error of its own that says `what`, in one line that is not a panic.
#[track_caller]
fn says(ran: Ran, what: &str) {
    assert_eq!(ran.code, 1, "{ran:?}");
    let last = ran.stderr.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("pintle: ") && last.contains(what), "expected {what:?}: {}", ran.stderr);
}

#[test]
fn a_server_refuses_what_is_not_its_own() {
    let (cluster, other) = (small("mine"), small("theirs"));
    let own = cluster.path("s1/data");
    let file = cluster.file("no-directory", b"");
    let below = format!("{}/data", file.display());
    says(configured(&cluster, &[("data-dir", &below)]), &format!("make {below} a directory of its owner alone"));
    says(server(&cluster, &[]), &format!("data directory {} is in use by another server", own.display()));

    let fresh = cluster.path("fresh").display().to_string();
    says(configured(&cluster, &[("data-dir", &fresh)]), "is another server running?");
    for (kind, setting) in [("client", "listen-client"), ("peer", "listen-peer")] {
        let taken = cluster.state()["servers"][0][kind].as_str().expect("an address").to_owned();
        let why = format!("listen on {taken}: is another server running?");
        says(server(&cluster, &[("data-dir", &fresh), (setting, &taken)]), &why);
    }

    other.pintle(&["cluster", "kill", "s1"]).ok();
    let foreign = other.path("s1/data").display().to_string();
    says(server(&cluster, &[("data-dir", &foreign)]), "belongs to cluster");
    other.pintle(&["cluster", "start", "s1"]).ok();
    other.until("the other cluster is unharmed", 20, || (other.curl("/readyz", &[]).0 == 200).then_some(()));
    assert_eq!(cluster.curl("/readyz", &[]).0, 200);
}

/// A server with the certificates of another cluster, told that the members are those of this one.
#[test]
fn a_server_of_another_cluster_disturbs_nobody() {
    let cluster = Cluster::up("calm", &["--port", "0", "--agents", "0", "--runtime", "simulated"]);
    let other = small("restless");
    let terms = || {
        let status = cluster.status();
        let servers = status["servers"].as_array().expect("servers");
        servers.iter().map(|server| (server["role"].clone(), server["term"].clone())).collect::<Vec<_>>()
    };
    let before = terms();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let (pki, data) = (other.path("pki").display().to_string(), other.path("stranger").display().to_string());
    let file = changed(
        &cluster,
        &[
            ("pki-dir", &pki),
            ("data-dir", &data),
            ("listen-api", &free.to_string()),
            ("listen-client", "127.0.0.1:0"),
            ("listen-peer", "127.0.0.1:0"),
        ],
    );
    let stranger = Following::start(&cluster, cluster.command(&pintle()).args(["server", "--config"]).arg(file));
    stranger.until_says("server runs", 20);
    // It says so when it has waited for a leader for seconds; elections last a third of one.
    stranger.until_says("request timed out", 40);
    let asked = ran(Command::new("curl")
        .args(["-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("https://{free}/readyz")));
    assert_ne!(asked.stdout, "200", "it serves nothing: {}", stranger.said());
    assert_eq!(terms(), before, "no term moved, nobody changed its role");
    assert!(before.iter().any(|(role, _)| role == "leader"));
    cluster.kubectl(&["create", "configmap", "written"]).ok();
    assert_eq!(cluster.curl("/readyz", &[]).0, 200);
    assert!(!stranger.said().contains("panicked"), "{}", stranger.said());
}

#[test]
fn bodies_that_are_broken_are_bad_requests() {
    let cluster = small("bodies");
    let maps = "/api/v1/namespaces/default/configmaps";
    let protobuf = "application/vnd.kubernetes.protobuf";
    // The prefix of a protobuf body, then a field that claims more bytes than there are.
    let cut = b"k8s\0\x0a\x7f\x0a\x02v1";
    let broken: [(&str, &str, &[u8]); 7] = [
        ("json", "application/json", b"{\"metadata\": {\"name\": \"bad\""),
        ("no-object", "application/json", b"[1, 2]"),
        ("yaml", "application/yaml", b"kind: ConfigMap\nmetadata: {name: [bad\n"),
        ("tabs", "application/yaml", b"kind: ConfigMap\n\tmetadata:\n"),
        ("cut", protobuf, cut),
        ("no-prefix", protobuf, b"nothing of the kind"),
        ("empty", protobuf, b""),
    ];
    for (name, kind, body) in broken {
        let file = format!("@{}", cluster.file(name, body).display());
        let header = format!("Content-Type: {kind}");
        let (code, answer) = cluster.curl(maps, &["-X", "POST", "-H", &header, "--data-binary", &file]);
        let status: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{name}: {code} {answer}"));
        let told = (code, &status["kind"], &status["reason"], &status["code"]);
        assert_eq!(told, (400, &json!("Status"), &json!("BadRequest"), &json!(400)), "{name}: {answer}");
        assert!(status["message"].as_str().is_some_and(|message| !message.is_empty()), "{name}: {answer}");
    }
    let other = ["-X", "POST", "-H", "Content-Type: text/plain", "--data-binary", "x"];
    assert_eq!(cluster.curl(maps, &other).0, 415, "a media type that nobody reads");
    let stored = cluster.kubectl(&["get", "configmaps", "-o", "name"]).ok();
    assert_eq!(stored.replace("configmap/kube-root-ca.crt\n", ""), "", "nothing was stored");
    assert_eq!(cluster.curl("/readyz", &[]).0, 200);
}

/// Why a node is not ready, or nothing.
fn not_ready(cluster: &Cluster, node: &str) -> Option<String> {
    let condition = r#"jsonpath={.status.conditions[?(@.type=="Ready")]}"#;
    let found = cluster.kubectl(&["get", "node", node, "-o", condition]);
    let condition: Value = serde_json::from_str(&found.stdout).ok()?;
    (condition["status"] == "False").then(|| condition["message"].to_string())
}

#[test]
fn a_worker_without_containerd_is_there_and_not_ready() {
    if let Err(reason) = can_run_containers() {
        println!("skipped: no real containers here: {reason}");
        return;
    }
    let cluster = Cluster::up("bereft", &["--port", "0", "--servers", "1", "--agents", "1", "--runtime", "cri"]);
    let says_why = |node: &str| {
        cluster.until("the node says why", 30, || {
            not_ready(&cluster, node)?.contains("container runtime is down").then_some(())
        });
    };
    // Containerd is lost.
    let pid = std::fs::read_to_string(cluster.path("w1-containerd/pid")).expect("a pid file");
    let pid = pid.split_whitespace().next().expect("a pid").parse().expect("a number");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
    says_why("w1");
    cluster.pintle(&["cluster", "kill", "w1"]).ok();

    // It was never there. In the network of the worker, where the rules of the agent go with it.
    let token = cluster.pintle(&["token", "create"]).ok();
    let state = cluster.state();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let (agent, server) = (&state["agents"][0], text(&state["servers"][0]["api"]));
    let (data, socket) =
        (cluster.path("lonely").display().to_string(), cluster.path("none.sock").display().to_string());
    let address = text(&agent["address"]);
    let given = ["agent", "--name", "lonely", "--server", &server, "--token", token.trim(), "--data-dir", &data];
    let more = ["--node-ip", &address, "--runtime", "cri", "--runtime-endpoint", &socket];
    let namespace = format!("--net=/run/netns/{}", text(&agent["namespace"]));
    let mut lonely = cluster.command(Path::new("nsenter"));
    let lonely = Following::start(&cluster, lonely.arg(namespace).arg("--").arg(pintle()).args(given).args(more));
    says_why("lonely");
    assert!(!lonely.said().contains("panicked"), "{}", lonely.said());
    drop(lonely);

    cluster.pintle(&["cluster", "start", "w1"]).ok();
    cluster.until("with containerd it is Ready again", 30, || {
        let node = cluster.kubectl(&["get", "node", "w1"]).stdout;
        (node.contains(" Ready ")).then_some(())
    });
}

#[test]
fn a_worker_of_another_cluster_is_refused() {
    let (cluster, other) = (small("here"), small("there"));
    let api = cluster.state()["servers"][0]["api"].as_str().expect("api").to_owned();
    let agent = |token: &str, data: &str| {
        let data = cluster.path(data).display().to_string();
        let given = ["--server", &api, "--token", token, "--data-dir", &data, "--name", "stranger"];
        let more = ["--node-ip", "127.0.0.1", "--runtime", "simulated"];
        ran(cluster.command(&pintle()).arg("agent").args(given).args(more))
    };
    let foreign = other.pintle(&["token", "create"]).ok();
    says(agent(foreign.trim(), "a1"), "is not the one that the token is for");
    // The right authority, but a secret that nobody gave out.
    let token = cluster.pintle(&["token", "create"]).ok();
    let (front, _) = token.trim().rsplit_once('.').expect("a secret");
    says(agent(&format!("{front}.0123456789abcdef"), "a2"), "Unauthorized");
    says(agent("nonsense", "a3"), "this is no join token");
    assert_eq!(cluster.kubectl(&["get", "nodes", "-o", "name"]).ok(), "", "nothing was registered");
}

#[test]
fn what_a_worker_needs_is_named_when_it_is_missing() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: real workers need root");
        return;
    }
    let bin = tempfile::tempdir().expect("directory");
    for program in ["sh", "true"] {
        std::os::unix::fs::symlink(Path::new("/bin").join(program), bin.path().join(program)).expect("link");
    }
    let home = tempfile::tempdir().expect("home");
    let up = ran(Command::new(pintle())
        .args(["cluster", "up", "--name", "bare", "--no-kubeconfig", "--runtime", "cri"])
        .env("PATH", bin.path())
        .env("PINTLE_HOME", home.path()));
    assert_eq!(up.code, 2, "{up:?}");
    assert!(up.stderr.contains("missing on this machine: containerd"), "{}", up.stderr);
    assert!(up.stderr.contains("make setup"), "{}", up.stderr);
    assert_eq!(std::fs::read_dir(home.path()).expect("read").count(), 0, "nothing is left behind");
}

#[test]
fn certificates_and_tokens_that_are_foreign_or_expired_are_unauthorized() {
    let (cluster, other) = (small("auth"), small("else"));
    let unauthorized = |(code, body): (u16, String)| {
        let status: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("a Status: {code} {body}"));
        assert_eq!(
            (code, &status["reason"], &status["message"]),
            (401, &json!("Unauthorized"), &json!("Unauthorized"))
        );
    };
    let pods = "/api/v1/namespaces/default/pods";
    for (authority, from, until) in [
        (&other, "20200101000000Z", "20990101000000Z"),
        (&cluster, "20200101000000Z", "20210101000000Z"),
        (&cluster, "20980101000000Z", "20990101000000Z"),
    ] {
        let (certificate, key) = mint(&cluster, authority, from, until);
        let identity = ["--cert", certificate.to_str().expect("path"), "--key", key.to_str().expect("path")];
        unauthorized(cluster.curl_as_stranger(pods, &identity));
    }
    let (certificate, key) = mint(&cluster, &cluster, "20200101000000Z", "20990101000000Z");
    let identity = ["--cert", certificate.to_str().expect("path"), "--key", key.to_str().expect("path")];
    assert_eq!(cluster.curl_as_stranger(pods, &identity).0, 200, "the same with the right authority and time");

    let token = cluster.kubectl(&["create", "token", "default"]).ok();
    let bearer =
        |token: &str| cluster.curl_as_stranger(pods, &["-H", &format!("Authorization: Bearer {}", token.trim())]);
    assert_eq!(bearer(&token).0, 403, "a good token of one who may nothing");
    unauthorized(bearer(&other.kubectl(&["create", "token", "default"]).ok()));
    unauthorized(bearer(&signed(&cluster, &token, &json!({"exp": 1_600_000_000}))));
    unauthorized(bearer(&signed(&cluster, &token, &json!({"aud": ["somebody-else"]}))));
    assert_eq!(bearer(&signed(&cluster, &token, &json!({}))).0, 403, "signing anew changes nothing by itself");
    let broken = token.trim().rsplit_once('.').expect("a signature").0.to_owned() + ".AAAA";
    unauthorized(bearer(&broken));
}

/// The token with some claims changed, signed with the cluster's key.
fn signed(cluster: &Cluster, token: &str, changes: &Value) -> String {
    let parts: Vec<&str> = token.trim().split('.').collect();
    let mut claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).expect("base64")).expect("claims are JSON");
    for (name, value) in changes.as_object().expect("changes") {
        claims[name] = value.clone();
    }
    let body = format!("{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = ran(Command::new("openssl").args(["pkcs8", "-topk8", "-nocrypt", "-in"]).arg(cluster.path("pki/sa.key")));
    let key = key.ok();
    let lines: String = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(lines).expect("PEM");
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random).expect("a P-256 key");
    let signature = pair.sign(&random, body.as_bytes()).expect("sign");
    format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// A client certificate of an administrator, made by the authority of `authority` for the given time.
fn mint(cluster: &Cluster, authority: &Cluster, from: &str, until: &str) -> (PathBuf, PathBuf) {
    let name = format!("{}-{from}-{until}", authority.name());
    let path = |end: &str| cluster.path(&format!("{name}.{end}"));
    let openssl = |arguments: &[&str]| ran(cluster.command(Path::new("openssl")).args(arguments)).ok();
    let text = |path: &PathBuf| path.to_str().expect("path").to_owned();
    let (key, request, certificate) = (text(&path("key")), text(&path("csr")), text(&path("crt")));
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(
        &[&["req", "-new", "-keyout", &key, "-out", &request, "-subj", "/O=system:masters/CN=old"], &curve[..]]
            .concat(),
    );
    let (index, serial) = (path("index"), path("serial"));
    std::fs::write(&index, "").expect("write");
    std::fs::write(&serial, "01\n").expect("write");
    let settings = format!(
        "[ca]\ndefault_ca=d\n[d]\ndatabase={}\nserial={}\nnew_certs_dir={}\ndefault_md=sha256\npolicy=p\nunique_subject=no\n\
         x509_extensions=e\n[p]\norganizationName=optional\ncommonName=supplied\n[e]\nextendedKeyUsage=clientAuth\n",
        index.display(),
        serial.display(),
        cluster.path("").display()
    );
    let config = text(&path("cnf"));
    std::fs::write(&config, settings).expect("write");
    let (ca, ca_key) = (text(&authority.path("pki/ca.crt")), text(&authority.path("pki/ca.key")));
    let of = ["-config", &config, "-cert", &ca, "-keyfile", &ca_key, "-in", &request, "-out", &certificate];
    openssl(&[&["ca", "-batch", "-startdate", from, "-enddate", until], &of[..]].concat());
    (path("crt"), path("key"))
}

/// A server whose disk is full stops and says so; the others go on; with space again it catches up, and nothing is lost.
#[test]
fn a_full_disk_stops_one_server_and_loses_nothing() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a small disk can only be mounted by root");
        return;
    }
    let cluster = Cluster::up("full", &["--port", "0", "--agents", "0", "--runtime", "simulated"]);
    let leader = cluster.leader();
    let victim = ["s1", "s2", "s3"].into_iter().find(|name| *name != leader).expect("a follower");
    cluster.pintle(&["cluster", "kill", victim]).ok();
    let disk = SmallDisk::over(&cluster.path(&format!("{victim}/data")));
    cluster.pintle(&["cluster", "start", victim]).ok();
    cluster.until("the member is back", 20, || (role(&cluster, victim) == "follower").then_some(()));
    disk.fill();

    let data = "x".repeat(900 * 1024);
    let value = cluster.file("value", data.as_bytes());
    let (mut tried, mut acknowledged) = (0, Vec::new());
    cluster.until("the server with the full disk stops", 60, || {
        tried += 1;
        let name = format!("map-{tried}");
        let from = format!("--from-file=data={}", value.display());
        let created = cluster.kubectl(&["create", "configmap", &name, &from]);
        match created.code {
            0 => acknowledged.push(name),
            // The request was at the very server that stops: nothing else disturbs a client.
            _ => cluster.until(&format!("a server stops that broke off: {}", created.stderr), 5, || {
                (!runs(&cluster, victim)).then_some(())
            }),
        }
        (!runs(&cluster, victim)).then_some(())
    });
    let said = cluster.log(victim);
    let last = said.lines().rfind(|line| line.starts_with("pintle: ")).unwrap_or_default();
    assert!(last.contains("No space left on device"), "{}", &said[said.len().saturating_sub(3000)..]);
    assert!(!said.contains("panicked"), "it stopped in order");

    disk.empty();
    cluster.pintle(&["cluster", "start", victim]).ok();
    cluster.until("it follows again", 30, || (role(&cluster, victim) == "follower").then_some(()));
    // The new leader may be any of them: what counts is that the one with the disk has everything.
    let there = cluster.kubectl(&["get", "configmaps", "-o", "name"]).ok();
    let lost = acknowledged.iter().filter(|name| !there.lines().any(|line| line == format!("configmap/{name}")));
    assert_eq!(lost.collect::<Vec<_>>(), [""; 0], "acknowledged and lost");
    assert!(!acknowledged.is_empty(), "the disk took something before it was full");
    let hashes = cluster.etcdctl(&["endpoint", "status", "-w", "json"]).ok();
    let statuses: Value = serde_json::from_str(&hashes).expect("JSON");
    assert_eq!(statuses.as_array().map(Vec::len), Some(3));
}

fn server_status(cluster: &Cluster, member: &str) -> Value {
    let status = cluster.status();
    let servers = status["servers"].as_array().cloned().unwrap_or_default();
    servers.into_iter().find(|server| server["name"] == member).expect("a member")
}

fn role(cluster: &Cluster, member: &str) -> String {
    server_status(cluster, member)["role"].as_str().unwrap_or_default().to_owned()
}

fn runs(cluster: &Cluster, member: &str) -> bool {
    !server_status(cluster, member)["pid"].is_null()
}

/// A directory on a file system of its own that is small enough to be filled; what was in it is moved there.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn over(path: &Path) -> Self {
        let aside = path.with_extension("aside");
        std::fs::rename(path, &aside).expect("move the data aside");
        std::fs::create_dir(path).expect("make the mount point");
        ran(Command::new("mount").args(["-t", "tmpfs", "-o", "size=192m", "tmpfs"]).arg(path)).ok();
        let disk = Self { path: path.to_owned() };
        ran(Command::new("cp").arg("-a").arg(aside.join(".")).arg(path)).ok();
        std::fs::remove_dir_all(aside).expect("remove the copy");
        disk
    }

    /// Leaves a megabyte or so: the server writes meanwhile.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).expect("make the ballast");
        let mut length = 0u64;
        let chunk = vec![0u8; 1 << 20];
        while file.write_all(&chunk).is_ok() {
            length += 1 << 20;
        }
        file.set_len(length.saturating_sub(1 << 20)).expect("leave some space");
    }

    fn empty(&self) {
        std::fs::remove_file(self.ballast()).expect("make room");
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server may still hold files in it.
        let ran = ran(Command::new("umount").arg("-l").arg(&self.path));
        assert!(ran.code == 0 || std::thread::panicking(), "umount: {}", ran.stderr);
    }
}
