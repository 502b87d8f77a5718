//! What one member of a store of its own is, from its flags: addresses, members, timing, certificates. Pure but for the
//! files it reads.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pintle_store::auth::{JwtOptions, TokenOptions};
use pintle_store::etcd::Http2;
use pintle_store::{AuditOptions, AutoCompaction};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::flags::{Given, duration};
use super::tls::Files;

/// `http://host:port` or `https://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub tls: bool,
    /// `host:port`.
    pub authority: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) = text.split_once("://").with_context(|| format!("URL {text:?} has no scheme"))?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            other => bail!("URL scheme must be http or https: {other}://"),
        };
        let authority = rest.trim_end_matches('/');
        let port = authority.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>()));
        if authority.contains('/') || !matches!(port, Some(Ok(_))) {
            bail!("URL {text:?} is not scheme://host:port");
        }
        Ok(Self { tls, authority: authority.to_owned() })
    }

    fn list(text: &str) -> Result<Vec<Self>> {
        text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(Self::parse).collect()
    }

    pub fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        host.trim_matches(['[', ']'])
    }

    /// The address to listen on.
    pub fn address(&self) -> Result<SocketAddr> {
        let mut found = self.authority.to_socket_addrs().with_context(|| format!("look up {}", self.authority))?;
        found.next().with_context(|| format!("{} has no address", self.authority))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http{}://{}", if self.tls { "s" } else { "" }, self.authority)
    }
}

/// A founding member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    pub id: u64,
    pub name: String,
    pub peer: Url,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    pub listen_peer: Url,
    /// Where the others reach this member.
    pub advertise_peer: Url,
    /// Into a cluster that exists, rather than founding one.
    pub join: bool,
    /// Go on as the only member of the cluster.
    pub force_new_cluster: bool,
    pub listen_clients: Vec<Url>,
    pub advertise_clients: Vec<Url>,
    pub founders: Vec<Founder>,
    pub cluster_id: u64,
    pub heartbeat: Duration,
    pub election: Duration,
    pub listen_http: Vec<Url>,
    pub listen_metrics: Vec<Url>,
    pub origins: Vec<String>,
    pub hosts: Vec<String>,
    pub txn_operations: usize,
    pub request_bytes: usize,
    pub progress_interval: Duration,
    pub auto_compaction: Option<AutoCompaction>,
    pub quota_bytes: Option<u64>,
    pub snapshot_entries: u64,
    pub entries_kept: u64,
    pub client_tls: Files,
    pub peer_tls: Files,
    pub max_learners: usize,
    pub tokens: TokenOptions,
    pub bcrypt_cost: u32,
    pub audit: Option<AuditOptions>,
    pub http2: Http2,
}

impl Config {
    pub fn from_flags(given: &Given) -> Result<Self> {
        given.check_supported()?;
        let name = given.text("name").to_owned();
        let mut peers = Url::list(given.text("listen-peer-urls"))?;
        if peers.len() != 1 {
            bail!("--listen-peer-urls: one URL is needed, {} are given", peers.len());
        }
        let listen_clients = Url::list(given.text("listen-client-urls"))?;
        if listen_clients.is_empty() {
            bail!("--listen-client-urls: at least one URL is needed");
        }
        if given.is_given("listen-client-urls") && !given.is_given("advertise-client-urls") {
            bail!("--advertise-client-urls is required when --listen-client-urls is set explicitly");
        }
        let join = match given.text("initial-cluster-state") {
            "new" => false,
            "existing" => true,
            other => bail!("--initial-cluster-state={other} is not known; `new` and `existing` are"),
        };
        let founders = founders(given, &name)?;
        let own = founders.iter().find(|founder| founder.name == name).map(|founder| founder.peer.clone());
        let advertised = Url::list(given.text("initial-advertise-peer-urls"))?.into_iter().next();
        let advertise_peer = own.or(advertised).context("--initial-advertise-peer-urls: a URL is needed")?;
        let (heartbeat, election) = (given.number("heartbeat-interval")?, given.number("election-timeout")?);
        if heartbeat == 0 || election < 5 * heartbeat {
            bail!(
                "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
            );
        }
        Ok(Self {
            data_dir: given.some("data-dir").map_or_else(|| format!("{name}.etcd").into(), PathBuf::from),
            listen_peer: peers.remove(0),
            advertise_peer,
            join,
            force_new_cluster: given.switch("force-new-cluster")?,
            listen_clients,
            advertise_clients: Url::list(given.text("advertise-client-urls"))?,
            cluster_id: cluster_id(&founders),
            founders,
            name,
            heartbeat: Duration::from_millis(heartbeat),
            election: Duration::from_millis(election),
            listen_http: Url::list(given.text("listen-client-http-urls"))?,
            listen_metrics: Url::list(given.text("listen-metrics-urls"))?,
            origins: words(given.text("cors")),
            hosts: words(given.text("host-whitelist")),
            txn_operations: usize::try_from(given.number("max-txn-ops")?)?,
            request_bytes: request_bytes(given)?,
            progress_interval: progress_interval(given)?,
            auto_compaction: auto_compaction(given)?,
            quota_bytes: quota(given)?,
            snapshot_entries: given.number("snapshot-count")?.max(1),
            entries_kept: given.number("snapshot-catchup-entries")?,
            client_tls: Files::of_clients(given)?,
            peer_tls: Files::of_peers(given)?,
            max_learners: usize::try_from(given.number("max-learners")?)?,
            tokens: tokens(given)?,
            bcrypt_cost: bcrypt_cost(given)?,
            audit: audit(given)?,
            http2: http2(given)?,
        })
    }

    pub fn myself(&self) -> Result<&Founder> {
        self.founders
            .iter()
            .find(|founder| founder.name == self.name)
            .with_context(|| format!("couldn't find local name {:?} in the initial cluster configuration", self.name))
    }
}

fn founders(given: &Given, name: &str) -> Result<Vec<Founder>> {
    let advertised = given.text("initial-advertise-peer-urls");
    let default = format!("{name}={advertised}");
    let text = given.some("initial-cluster").unwrap_or(&default);
    let token = given.text("initial-cluster-token");
    let mut founders: Vec<Founder> = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (name, url) =
            entry.split_once('=').with_context(|| format!("--initial-cluster: {entry:?} is not NAME=URL"))?;
        let peer = Url::parse(url)?;
        if founders.iter().any(|other| other.name == name || other.peer == peer) {
            bail!("--initial-cluster: {entry:?}: every member has one name and one URL of its own");
        }
        founders.push(Founder { id: member_id(url.trim_end_matches('/'), token), name: name.to_owned(), peer });
    }
    let own = founders.iter().find(|founder| founder.name == name);
    if let Some(own) = own
        && !Url::list(advertised)?.contains(&own.peer)
        && given.is_given("initial-advertise-peer-urls")
    {
        bail!("--initial-cluster has {name}={} but missing from --initial-advertise-peer-urls={advertised}", own.peer);
    }
    Ok(founders)
}

/// As etcd names founding members: the beginning of the SHA-1 of URL and token. Stable, and the same on all members.
fn member_id(url: &str, token: &str) -> u64 {
    beginning_of_sha1(format!("{url}{token}").as_bytes())
}

fn cluster_id(founders: &[Founder]) -> u64 {
    let mut ids: Vec<u64> = founders.iter().map(|founder| founder.id).collect();
    ids.sort_unstable();
    beginning_of_sha1(&ids.iter().flat_map(|id| id.to_be_bytes()).collect::<Vec<u8>>())
}

fn beginning_of_sha1(bytes: &[u8]) -> u64 {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes);
    digest.as_ref().first_chunk::<8>().map_or(1, |first| u64::from_be_bytes(*first)).max(1)
}

/// 0 and what is below it set no limit: etcd's default of 2 GiB is what its file can bear, not what this store can.
fn quota(given: &Given) -> Result<Option<u64>> {
    let text = given.text("quota-backend-bytes");
    let bytes: i64 = text.parse().with_context(|| format!("--quota-backend-bytes: {text:?} is no whole number"))?;
    Ok(u64::try_from(bytes).ok().filter(|bytes| *bytes > 0))
}

/// What stands between commas.
pub(super) fn words(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn http2(given: &Given) -> Result<Http2> {
    let name = "max-concurrent-streams";
    let streams = u32::try_from(given.number(name)?).with_context(|| format!("--{name}: at most {}", u32::MAX))?;
    let (after, answer) = (given.time("grpc-keepalive-interval")?, given.time("grpc-keepalive-timeout")?);
    Ok(Http2::new(streams, after, answer))
}

/// A request becomes one entry of the log, which has a limit of its own.
fn request_bytes(given: &Given) -> Result<usize> {
    let bytes = usize::try_from(given.number("max-request-bytes")?)?;
    if bytes > pintle_raft::limits::COMMAND_BYTES {
        bail!(
            "--max-request-bytes: {bytes} is more than {}, the largest there can be",
            pintle_raft::limits::COMMAND_BYTES
        );
    }
    Ok(bytes)
}

fn progress_interval(given: &Given) -> Result<Duration> {
    let name = "watch-progress-notify-interval";
    match given.time(name)? {
        interval if interval >= Duration::from_millis(100) => Ok(interval),
        _ => bail!("--{name}: {} is less than 100ms", given.text(name)),
    }
}

fn auto_compaction(given: &Given) -> Result<Option<AutoCompaction>> {
    let retention = given.text("auto-compaction-retention");
    if given.text("auto-compaction-mode") == "revision" {
        let kept: i64 = retention
            .parse()
            .with_context(|| format!("--auto-compaction-retention: {retention:?} is no number of revisions"))?;
        return Ok((kept > 0).then_some(AutoCompaction::Revisions(kept)));
    }
    let hours = retention.parse::<u64>().ok().map(|hours| Duration::from_secs(hours.saturating_mul(3600)));
    let kept = hours.or_else(|| duration(retention));
    let kept = kept.with_context(|| format!("--auto-compaction-retention: {retention:?} is no time"))?;
    if kept.is_zero() {
        return Ok(None);
    }
    match given.text("auto-compaction-mode") {
        "periodic" => Ok(Some(AutoCompaction::Periodic(kept))),
        other => bail!("--auto-compaction-mode={other} is not known; `periodic` and `revision` are"),
    }
}

/// `simple`, or `jwt` and its settings, separated by commas.
fn tokens(given: &Given) -> Result<TokenOptions> {
    let mut parts = given.text("auth-token").split(',').map(str::trim);
    match parts.next().unwrap_or_default() {
        "simple" | "" => Ok(TokenOptions::Simple { unused: Duration::from_secs(given.number("auth-token-ttl")?) }),
        "jwt" => {
            let mut settings = BTreeMap::new();
            for part in parts {
                let (name, value) =
                    part.split_once('=').with_context(|| format!("--auth-token: {part:?} is not NAME=VALUE"))?;
                if !["pub-key", "priv-key", "sign-method", "ttl"].contains(&name) {
                    bail!("--auth-token: jwt has no setting {name:?}; it has pub-key, priv-key, sign-method, ttl");
                }
                settings.insert(name, value);
            }
            let file = |name| settings.get(name).map(Path::new);
            let ttl = settings.get("ttl").map(|text| {
                duration(text).with_context(|| format!("--auth-token: ttl={text} is no time, such as 10m"))
            });
            let method = settings.get("sign-method").context("--auth-token: jwt needs sign-method, such as RS256")?;
            let options = JwtOptions::read(method, file("pub-key"), file("priv-key"), ttl.transpose()?);
            options.map(TokenOptions::Jwt).context("--auth-token")
        }
        other => bail!("--auth-token: {other:?} is not known; `simple` and `jwt` are"),
    }
}

fn audit(given: &Given) -> Result<Option<AuditOptions>> {
    let (max_bytes, max_files) = (given.number("audit-log-max-bytes")?, given.number("audit-log-max-files")?);
    if max_bytes == 0 || max_files == 0 {
        bail!("--audit-log-max-bytes and --audit-log-max-files: at least 1 is needed");
    }
    let max_files = usize::try_from(max_files)?;
    Ok(given.some("audit-log").map(|file| AuditOptions { file: file.into(), max_bytes, max_files }))
}

fn bcrypt_cost(given: &Given) -> Result<u32> {
    let cost = given.number("bcrypt-cost")?;
    match u32::try_from(cost) {
        Ok(cost @ 4..=31) => Ok(cost),
        _ => bail!("--bcrypt-cost: {cost} is not between 4 and 31"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pintle_store::limits;

    fn config(args: &[&str]) -> Result<Config> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        Config::from_flags(&Given::read(&args, [])?)
    }

    #[test]
    fn one_member_needs_no_flags() {
        let config = config(&[]).unwrap();
        assert_eq!((config.name.as_str(), config.data_dir), ("default", "default.etcd".into()));
        assert_eq!(config.founders[0].peer, Url { tls: false, authority: "localhost:2380".into() });
        // What etcd 3.5 prints for the same flags.
        assert_eq!(format!("{:x}", config.founders[0].id), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", config.cluster_id), "cdf818194e3a8c32");
        assert_eq!((config.auto_compaction, config.quota_bytes), (None, None));
    }

    #[test]
    fn three_members_agree_on_ids_whatever_their_order() {
        let cluster = |list: &str, name: &str| {
            let (list, name) = (format!("--initial-cluster={list}"), format!("--name={name}"));
            config(&[&list, &name, "--initial-cluster-token=t"]).unwrap()
        };
        let a = cluster("a=https://h1:2380,b=https://h2:2380/,c=https://h3:2380", "a");
        let b = cluster("c=https://h3:2380,b=https://h2:2380,a=https://h1:2380", "b");
        assert_eq!(a.cluster_id, b.cluster_id);
        assert_ne!(a.myself().unwrap().id, b.myself().unwrap().id);
        assert_eq!(a.founders[1].id, b.myself().unwrap().id);
    }

    #[test]
    fn cipher_suites_have_gos_names_and_choose_among_those_of_tls_1_2() {
        let suites = |list: &str| {
            let protocol = config(&[&format!("--cipher-suites={list}")]).unwrap().client_tls.protocol;
            let older = protocol.suites.iter().filter(|suite| suite.tls13().is_none()).count();
            (older, protocol.suites.len() - older, protocol.versions.len())
        };
        let chacha = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305,TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
        assert_eq!(suites(chacha), (2, 3, 2));
        assert_eq!(suites("TLS_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"), (0, 3, 2));
        assert_eq!(config(&["--tls-max-version=TLS1.2"]).unwrap().peer_tls.protocol.versions.len(), 1);
    }

    #[test]
    fn clients_are_pinged_as_was_asked_for_and_never_left_alone() {
        let http2 = |args: &[&str]| config(args).unwrap().http2;
        let second = Duration::from_secs(1);
        assert_eq!(http2(&[]), Http2::default());
        let given = http2(&["--max-concurrent-streams=0", "--grpc-keepalive-interval=2m"]);
        assert_eq!(given, Http2 { streams: u32::MAX, ping_after: second * 120, ping_answer: second * 20 });
        let given = http2(&["--grpc-keepalive-interval=0", "--grpc-keepalive-timeout=0s"]);
        assert_eq!((given.ping_after, given.ping_answer), (limits::KEEP_ALIVE_MOST, limits::KEEP_ALIVE_ANSWER));
        assert_eq!(http2(&["--grpc-keepalive-interval=1ms"]).ping_after, limits::KEEP_ALIVE_LEAST);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        for (args, text) in [
            (&["--listen-client-urls=http://127.0.0.1:1"][..], "--advertise-client-urls is required"),
            (&["--listen-peer-urls=unix://a:1"], "URL scheme must be http or https"),
            (&["--listen-peer-urls=http://a"], "is not scheme://host:port"),
            (&["--election-timeout=200"], "at least as 5 times"),
            (&["--initial-cluster=a=http://h:1,a=http://g:1"], "one name and one URL of its own"),
            (&["--cert-file=x"], "belong together"),
            (&["--client-cert-auth"], "needs --trusted-ca-file"),
            (&["--client-crl-file=x"], "--client-crl-file needs --trusted-ca-file"),
            (&["--client-cert-allowed-hostname=x"], "needs --trusted-ca-file"),
            (&["--peer-cert-allowed-cn=x", "--peer-cert-allowed-hostname=y"], "mutually exclusive"),
            (&["--auto-tls", "--self-signed-cert-validity=0"], "not between 1 and 100 years"),
            (&["--cipher-suites=TLS_X"], "unexpected TLS cipher suite \"TLS_X\""),
            (&["--tls-min-version=TLS1.1"], "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)"),
            (&["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"], "min version (TLS1.3) is greater than max"),
            (&["--tls-min-version=TLS1.3", "--cipher-suites=TLS_AES_128_GCM_SHA256"], "when only TLS1.3 is enabled"),
            (&["--tls-max-version=TLS1.2", "--cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA"], "none of"),
            (&["--bcrypt-cost=3"], "between 4 and 31"),
            (&["--max-concurrent-streams=4294967296"], "at most 4294967295"),
            (&["--grpc-keepalive-interval=often"], "\"often\" is no time, such as 10m"),
            (&["--auth-token=cookie"], "`simple` and `jwt` are"),
            (&["--auth-token=jwt,pub-key=x"], "needs sign-method"),
            (&["--auth-token=jwt,sign-method=XX1"], "is not known"),
            (&["--auth-token=jwt,sign-method=RS256"], "needs pub-key"),
            (&["--auth-token=jwt,sign-method=HS256,priv-key=/nonexistent"], "read /nonexistent"),
            (&["--auth-token=jwt,key=x"], "has no setting"),
            (&["--auto-compaction-retention=x"], "is no time"),
            (&["--auto-compaction-retention=5", "--auto-compaction-mode=never"], "is not known"),
            (&["--auto-compaction-retention=5m", "--auto-compaction-mode=revision"], "no number of revisions"),
            (&["--max-request-bytes=1000000000"], "the largest there can be"),
            (&["--watch-progress-notify-interval=1ms"], "less than 100ms"),
        ] {
            let error = format!("{:#}", config(args).unwrap_err());
            assert!(error.contains(text), "{error}");
        }
        assert!(config(&["--name=x", "--initial-cluster=a=http://h:1"]).unwrap().myself().is_err());
        let kept = |text| config(&[&format!("--auto-compaction-retention={text}")]).unwrap().auto_compaction;
        let periodic = |seconds| Some(AutoCompaction::Periodic(Duration::from_secs(seconds)));
        assert_eq!((kept("2"), kept("90s")), (periodic(7200), periodic(90)));
        let by_revision = config(&["--auto-compaction-retention=1000", "--auto-compaction-mode=revision"]).unwrap();
        assert_eq!(by_revision.auto_compaction, Some(AutoCompaction::Revisions(1000)));
    }
}
