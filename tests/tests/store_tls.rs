//! TLS of the store as etcd's users know it, with the real etcdctl and curl: certificates that are renewed, revoked, made by
//! members themselves or used to log in, and ports for one purpose each.

use std::fs;
use std::path::Path;
use std::process::Command;

use pintle_tests::store::Store;
use pintle_tests::{Ran, free_ports, ran, tool};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

/// An authority whose files lie in a directory.
struct Authority<'a> {
    directory: &'a Path,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    fn new(directory: &'a Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        fs::write(directory.join("ca.crt"), params.self_signed(&key).expect("sign").pem()).expect("write");
        Self { directory, issuer: Issuer::new(params, key) }
    }

    /// Writes `NAME.crt` and `NAME.key`.
    fn issue(&self, name: &str, serial: u64) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("sign");
        fs::write(self.directory.join(format!("{name}.key")), key.serialize_pem()).expect("write");
        fs::write(self.directory.join(format!("{name}.crt")), certificate.pem()).expect("write");
    }

    /// Writes `revoked.pem`.
    fn revoke(&self, serials: &[u64]) {
        let now = rcgen::date_time_ymd(2024, 1, 1);
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2024, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("sign").pem().expect("PEM");
        fs::write(self.directory.join("revoked.pem"), list).expect("write");
    }
}

fn file(store: &Store, name: &str) -> String {
    store.home.path().join(name).display().to_string()
}

/// The flags of a member, peers and clients over TLS or not.
fn start(store: &mut Store, at: usize, peers: bool, more: &[String]) {
    let mut changed = Vec::new();
    for flag in store.flags(at) {
        let is_peer = flag.contains("peer-urls=") || flag.starts_with("--initial-cluster=");
        if flag.contains("client-urls=") || (peers && is_peer) {
            changed.push(flag.replace("http://", "https://"));
        }
    }
    changed.extend_from_slice(more);
    store.start(at, &changed.iter().map(String::as_str).collect::<Vec<_>>());
}

fn served(store: &Store, at: usize) {
    store.until("it serves", || store.log(at).contains("ready to serve client requests"));
}

/// The flags that show the certificate `name` to clients and want theirs.
fn mutual(store: &Store, name: &str) -> Vec<String> {
    vec![
        format!("--cert-file={}", file(store, &format!("{name}.crt"))),
        format!("--key-file={}", file(store, &format!("{name}.key"))),
        format!("--trusted-ca-file={}", file(store, "ca.crt")),
        "--client-cert-auth".to_owned(),
    ]
}

fn etcdctl(store: &Store, at: usize, tls: &[String], arguments: &[&str]) -> Ran {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "20"]).arg(tool("sid", "etcdctl")).env("ETCDCTL_API", "3");
    command.arg(format!("--endpoints=https://127.0.0.1:{}", store.members[at].client));
    ran(command.args(["--dial-timeout=1s", "--command-timeout=2s"]).args(tls).args(arguments))
}

/// etcdctl with the certificate of `name`.
fn identity(store: &Store, name: &str) -> Vec<String> {
    vec![
        format!("--cacert={}", file(store, "ca.crt")),
        format!("--cert={}", file(store, &format!("{name}.crt"))),
        format!("--key={}", file(store, &format!("{name}.key"))),
    ]
}

fn curl(arguments: &[&str]) -> Ran {
    ran(Command::new("curl").args(["-sS", "--max-time", "10"]).args(arguments))
}

/// The serial number of the certificate shown at a port, as the certificate `name` asks for it.
fn serial(store: &Store, port: u16, name: &str) -> String {
    let shown = Command::new("timeout")
        .args(["10", "openssl", "s_client", "-connect", &format!("127.0.0.1:{port}")])
        .args(["-cert", &file(store, &format!("{name}.crt")), "-key", &file(store, &format!("{name}.key"))])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("run openssl");
    let path = store.home.path().join("shown.pem");
    fs::write(&path, shown.stdout).expect("write");
    ran(Command::new("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(path)).stdout.trim().to_owned()
}

#[test]
fn certificates_are_asked_for_renewed_and_revoked_without_a_restart() {
    let mut store = Store::new(1);
    let home = store.home.path().to_owned();
    let authority = Authority::new(&home);
    authority.issue("server", 0x10);
    authority.issue("alice", 0x20);
    authority.issue("bob", 0x21);
    authority.revoke(&[0x21]);
    let mut flags = mutual(&store, "server");
    let metrics = free_ports(1)[0];
    flags.push(format!("--client-crl-file={}", file(&store, "revoked.pem")));
    flags.push(format!("--listen-metrics-urls=https://127.0.0.1:{metrics}"));
    start(&mut store, 0, false, &flags);
    served(&store, 0);
    let (alice, bob, client) = (identity(&store, "alice"), identity(&store, "bob"), store.members[0].client);
    assert_eq!(etcdctl(&store, 0, &alice, &["put", "a", "1"]).ok(), "OK\n");
    etcdctl(&store, 0, &bob, &["get", "a"]).fails();
    etcdctl(&store, 0, &alice[..1], &["get", "a"]).fails();
    let fetch = |name: &str, port: u16, path: &str| {
        let (ca, certificate, key) =
            (file(&store, "ca.crt"), file(&store, &format!("{name}.crt")), file(&store, &format!("{name}.key")));
        curl(&["--cacert", &ca, "--cert", &certificate, "--key", &key, &format!("https://127.0.0.1:{port}{path}")])
    };
    assert!(fetch("alice", client, "/health").ok().contains("true"));
    assert!(fetch("alice", metrics, "/metrics").ok().contains("etcd_server_has_leader 1"));
    fetch("bob", client, "/health").fails();
    fetch("bob", metrics, "/metrics").fails();
    assert_eq!(serial(&store, client, "alice"), "serial=10");

    authority.issue("server", 0x11);
    for port in [client, metrics] {
        store.until("the new certificate is shown", || serial(&store, port, "alice") == "serial=11");
    }
    fs::write(home.join("server.key"), "half a k").expect("write");
    assert_eq!(serial(&store, client, "alice"), "serial=11");
    assert_eq!(etcdctl(&store, 0, &alice, &["get", "a"]).ok(), "a\n1\n");
    store.until("it is told", || store.log(0).contains("--key-file"));
    assert!(store.log(0).contains("the ones before stay in use"), "{}", store.log(0));
    authority.issue("server", 0x12);
    store.until("the next one is shown", || serial(&store, client, "alice") == "serial=12");

    authority.revoke(&[0x20]);
    store.until("alice is refused", || etcdctl(&store, 0, &alice, &["get", "a"]).code != 0);
    assert_eq!(etcdctl(&store, 0, &bob, &["get", "a"]).ok(), "a\n1\n");
}

#[test]
fn the_common_name_of_a_certificate_logs_in_but_not_through_the_gateway() {
    let mut store = Store::new(1);
    let home = store.home.path().to_owned();
    let authority = Authority::new(&home);
    for (name, serial) in [("server", 1), ("root", 2), ("reader", 3)] {
        authority.issue(name, serial);
    }
    let flags = [mutual(&store, "server"), vec!["--bcrypt-cost=4".to_owned()]].concat();
    start(&mut store, 0, false, &flags);
    served(&store, 0);
    let as_user = |name: &str, arguments: &[&str]| etcdctl(&store, 0, &identity(&store, name), arguments);
    for arguments in [
        &["user", "add", "root:pw"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "reader:pw"],
        &["role", "add", "reads"],
        &["role", "grant-permission", "reads", "--prefix=true", "read", "app/"],
        &["user", "grant-role", "reader", "reads"],
        &["put", "app/a", "1"],
        &["auth", "enable"],
    ] {
        as_user("root", arguments).ok();
    }
    assert_eq!(as_user("reader", &["get", "app/a"]).ok(), "app/a\n1\n");
    assert!(as_user("reader", &["put", "app/a", "2"]).fails().contains("permission denied"));
    assert_eq!(as_user("root", &["put", "app/a", "2"]).ok(), "OK\n");
    let (ca, certificate, key) = (file(&store, "ca.crt"), file(&store, "reader.crt"), file(&store, "reader.key"));
    let url = format!("https://127.0.0.1:{}/v3/kv/range", store.members[0].client);
    let asked = curl(&["--cacert", &ca, "--cert", &certificate, "--key", &key, "-d", r#"{"key":"YXBwL2E="}"#, &url]);
    assert!(asked.stdout.contains("etcdserver: user name is empty"), "{asked:?}");
}

#[test]
fn a_member_makes_its_own_certificate_and_keeps_it() {
    let mut store = Store::new(1);
    let flags = ["--auto-tls".to_owned(), "--self-signed-cert-validity=2".to_owned()];
    start(&mut store, 0, false, &flags);
    served(&store, 0);
    let unverified = ["--insecure-transport=false".to_owned(), "--insecure-skip-tls-verify".to_owned()];
    assert_eq!(etcdctl(&store, 0, &unverified, &["put", "a", "1"]).ok(), "OK\n");
    let path = store.home.path().join("m0/fixtures/client/cert.pem");
    let made = fs::read(&path).expect("the certificate");
    let (own, port) = (path.display().to_string(), store.members[0].client);
    let trusted = curl(&["--cacert", &own, &format!("https://127.0.0.1:{port}/health")]).ok();
    assert!(trusted.contains("true"), "{trusted}");
    store.signal(0, nix::sys::signal::Signal::SIGTERM);
    assert_eq!(store.ended(0), Some(0), "{}", store.log(0));
    start(&mut store, 0, false, &flags);
    store.until("it serves again", || etcdctl(&store, 0, &unverified, &["get", "a"]).stdout == "a\n1\n");
    assert_eq!(fs::read(&path).expect("the certificate"), made, "it is used as long as it is valid");
}

#[test]
fn three_members_check_each_others_certificates_and_renew_them() {
    let mut store = Store::new(3);
    let home = store.home.path().to_owned();
    let authority = Authority::new(&home);
    authority.issue("peer", 1);
    let peer = vec![
        format!("--peer-cert-file={}", file(&store, "peer.crt")),
        format!("--peer-key-file={}", file(&store, "peer.key")),
        format!("--peer-trusted-ca-file={}", file(&store, "ca.crt")),
        "--peer-client-cert-auth".to_owned(),
        "--peer-cert-allowed-cn=peer".to_owned(),
        "--auto-tls".to_owned(),
    ];
    (0..3).for_each(|at| start(&mut store, at, true, &peer));
    (0..3).for_each(|at| served(&store, at));
    let unverified = ["--insecure-transport=false".to_owned(), "--insecure-skip-tls-verify".to_owned()];
    assert_eq!(etcdctl(&store, 0, &unverified, &["put", "a", "1"]).ok(), "OK\n");
    authority.issue("peer", 2);
    store.until("members show the new one", || serial(&store, store.members[1].peer, "peer") == "serial=02");
    store.signal(2, nix::sys::signal::Signal::SIGKILL);
    store.ended(2);
    start(&mut store, 2, true, &peer);
    store.until("a member with the new one is let in", || {
        etcdctl(&store, 2, &unverified, &["get", "a"]).stdout == "a\n1\n"
    });
}

#[test]
fn three_members_make_their_own_certificates() {
    let mut store = Store::new(3);
    let own = ["--peer-auto-tls".to_owned(), "--auto-tls".to_owned()];
    (0..3).for_each(|at| start(&mut store, at, true, &own));
    (0..3).for_each(|at| served(&store, at));
    let unverified = ["--insecure-transport=false".to_owned(), "--insecure-skip-tls-verify".to_owned()];
    assert_eq!(etcdctl(&store, 1, &unverified, &["put", "a", "1"]).ok(), "OK\n");
    assert!(store.log(0).contains("do not check each other's certificates"), "{}", store.log(0));
}

#[test]
fn ports_serve_what_they_are_for() {
    let mut store = Store::new(1);
    let (client, ports) = (store.members[0].client, free_ports(2));
    let (http, metrics) = (ports[0], ports[1]);
    let urls = [
        format!("--listen-client-http-urls=http://127.0.0.1:{http}"),
        format!("--listen-metrics-urls=http://127.0.0.1:{metrics}"),
    ];
    store.start(0, &urls.iter().map(String::as_str).collect::<Vec<_>>());
    served(&store, 0);
    assert_eq!(store.etcdctl(&["put", "a", "1"]).ok(), "OK\n");
    let get = |port: u16, path: &str| {
        curl(&["-w", "%{http_code}", "-o", "/dev/null", &format!("http://127.0.0.1:{port}{path}")]).stdout
    };
    let range = |port: u16| {
        let url = format!("http://127.0.0.1:{port}/v3/kv/range");
        curl(&["-d", r#"{"key":"YQ=="}"#, &url]).stdout.contains("\"count\":\"1\"")
    };
    assert_eq!([get(http, "/health"), get(http, "/metrics"), get(http, "/version")], ["200", "200", "200"]);
    assert_eq!([get(metrics, "/health"), get(metrics, "/metrics")], ["200", "200"]);
    assert_ne!(get(client, "/health"), "200");
    assert_eq!([range(http), range(metrics), range(client)], [true, false, false]);
    let mut command = Command::new("timeout");
    command.arg("20").arg(tool("sid", "etcdctl")).args(["--dial-timeout=1s", "--command-timeout=2s"]);
    ran(command.args([&format!("--endpoints=http://127.0.0.1:{http}"), "get", "a"])).fails();
}

/// An etcd with a listener of its own for HTTP looked at the revocation list there only, and let everybody in by gRPC. Here all listeners
/// for clients have their TLS settings from one place, and follow them as they are renewed.
#[test]
fn ghsa_3wh4_j44w_pg92_every_listener_refuses_a_revoked_certificate() {
    let mut store = Store::new(1);
    let home = store.home.path().to_owned();
    let authority = Authority::new(&home);
    for (name, serial) in [("server", 0x10), ("alice", 0x20), ("bob", 0x21)] {
        authority.issue(name, serial);
    }
    authority.revoke(&[0x21]);
    let (grpc, ports) = (store.members[0].client, free_ports(2));
    let mut flags = mutual(&store, "server");
    flags.push(format!("--client-crl-file={}", file(&store, "revoked.pem")));
    flags.push(format!("--listen-client-http-urls=https://127.0.0.1:{}", ports[0]));
    flags.push(format!("--listen-metrics-urls=https://127.0.0.1:{}", ports[1]));
    start(&mut store, 0, false, &flags);
    served(&store, 0);
    let fetch = |name: &str, port: u16| {
        let (ca, certificate, key) =
            (file(&store, "ca.crt"), file(&store, &format!("{name}.crt")), file(&store, &format!("{name}.key")));
        let url = format!("https://127.0.0.1:{port}/health");
        curl(&["--cacert", &ca, "--cert", &certificate, "--key", &key, &url]).stdout.contains("true")
    };
    let ask = |name: &str| etcdctl(&store, 0, &identity(&store, name), &["get", "a"]).code == 0;
    let admitted = |name: &str| [ask(name), fetch(name, ports[0]), fetch(name, ports[1])];
    assert_eq!((admitted("alice"), admitted("bob")), ([true; 3], [false; 3]), "ports {grpc} and {ports:?}");
    authority.revoke(&[0x20]);
    store.until("alice is refused everywhere", || admitted("alice") == [false; 3]);
    store.until("and bob is not", || admitted("bob") == [true; 3]);
}

#[test]
fn files_that_cannot_be_used_are_refused_at_start_with_their_flag() {
    let mut store = Store::new(1);
    let home = store.home.path().to_owned();
    let authority = Authority::new(&home);
    authority.issue("server", 1);
    authority.issue("other", 2);
    fs::write(home.join("nonsense"), "nonsense").expect("write");
    let key = KeyPair::generate().expect("a key");
    let mut old = CertificateParams::default();
    old.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    old.not_after = rcgen::date_time_ymd(2020, 1, 1);
    fs::write(home.join("old.crt"), old.self_signed(&key).expect("sign").pem()).expect("write");
    for (flag, name, text) in [
        ("--cert-file", "missing", "--cert-file"),
        ("--key-file", "other.key", "cannot be used together"),
        ("--key-file", "nonsense", "a private key in PEM"),
        ("--trusted-ca-file", "old.crt", "no certificate in it is valid today"),
        ("--client-crl-file", "nonsense", "a revocation list"),
    ] {
        let mut flags = mutual(&store, "server");
        flags.push(format!("{flag}={}", file(&store, name)));
        start(&mut store, 0, false, &flags);
        assert_ne!(store.ended(0), Some(0));
        let log = store.log(0);
        assert!(log.contains(text) && log.contains(&file(&store, name)), "{text}: {log}");
    }
}
