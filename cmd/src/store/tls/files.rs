//! What the flags of one side, clients or peers, say about TLS. Pure: no file is read here.

use std::path::PathBuf;

use anyhow::{Result, bail};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion, crypto::ring as provider, version};

use super::super::config::words;
use super::super::flags::Given;

/// Certificate files of one side, and what is asked of the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Files {
    pub is_peer: bool,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub authorities: Option<PathBuf>,
    pub revoked: Option<PathBuf>,
    pub need_client: bool,
    pub allowed: Allowed,
    pub protocol: Protocol,
    /// A certificate is made if none is given.
    pub auto: bool,
    pub validity_years: u32,
    /// The certificate is one this member made for itself.
    pub own: bool,
}

/// Whose certificates are taken, of those the authorities signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    #[default]
    All,
    CommonNames(Vec<String>),
    Hosts(Vec<String>),
}

/// Which TLS is spoken.
#[derive(Clone, Debug, PartialEq)]
pub struct Protocol {
    pub versions: Vec<&'static SupportedProtocolVersion>,
    pub suites: Vec<SupportedCipherSuite>,
}

impl Default for Protocol {
    fn default() -> Self {
        Self { versions: rustls::ALL_VERSIONS.to_vec(), suites: provider::ALL_CIPHER_SUITES.to_vec() }
    }
}

/// Longer than anybody runs one installation; dates beyond cannot be written in a certificate.
const VALIDITY_YEARS_MAX: u64 = 100;

/// Suites that etcd knows by these names and that are not spoken here, because they are weak.
const WEAK: [&str; 3] = ["_CBC_", "_RC4_", "TLS_RSA_WITH_"];

impl Files {
    pub fn of_clients(given: &Given) -> Result<Self> {
        let hosts = words(given.text("client-cert-allowed-hostname"));
        let files = Self {
            certificate: path(given, "cert-file"),
            key: path(given, "key-file"),
            authorities: path(given, "trusted-ca-file"),
            revoked: path(given, "client-crl-file"),
            need_client: given.switch("client-cert-auth")?,
            allowed: if hosts.is_empty() { Allowed::All } else { Allowed::Hosts(hosts) },
            auto: given.switch("auto-tls")?,
            ..Self::common(given)?
        };
        files.check("client-crl-file", "client-cert-allowed-hostname")
    }

    pub fn of_peers(given: &Given) -> Result<Self> {
        let names = words(given.text("peer-cert-allowed-cn"));
        let hosts = words(given.text("peer-cert-allowed-hostname"));
        if !names.is_empty() && !hosts.is_empty() {
            bail!(
                "--peer-cert-allowed-cn and --peer-cert-allowed-hostname are mutually exclusive (cns={names:?}, hostnames={hosts:?})"
            );
        }
        let files = Self {
            is_peer: true,
            certificate: path(given, "peer-cert-file"),
            key: path(given, "peer-key-file"),
            authorities: path(given, "peer-trusted-ca-file"),
            revoked: path(given, "peer-crl-file"),
            need_client: given.switch("peer-client-cert-auth")?,
            allowed: match (names.is_empty(), hosts.is_empty()) {
                (false, _) => Allowed::CommonNames(names),
                (true, false) => Allowed::Hosts(hosts),
                (true, true) => Allowed::All,
            },
            auto: given.switch("peer-auto-tls")?,
            ..Self::common(given)?
        };
        files.check("peer-crl-file", "peer-cert-allowed-cn or --peer-cert-allowed-hostname")
    }

    fn common(given: &Given) -> Result<Self> {
        let years = given.number("self-signed-cert-validity")?;
        let auto = given.switch("auto-tls")? || given.switch("peer-auto-tls")?;
        if auto && !(1..=VALIDITY_YEARS_MAX).contains(&years) {
            bail!("--self-signed-cert-validity: {years} is not between 1 and {VALIDITY_YEARS_MAX} years");
        }
        Ok(Self { validity_years: u32::try_from(years).unwrap_or(1), protocol: protocol(given)?, ..Self::default() })
    }

    fn check(self, revoked: &str, allowed: &str) -> Result<Self> {
        let [certificate, key, authorities] = ["cert-file", "key-file", "trusted-ca-file"].map(|name| self.flag(name));
        if self.certificate.is_some() != self.key.is_some() {
            bail!("{certificate} and {key} belong together");
        }
        if self.authorities.is_some() {
            return Ok(self);
        }
        // Nobody would be asked for a certificate: what is to be checked of it never would be.
        if self.need_client && !(self.is_peer && self.auto) {
            bail!("{} needs {authorities}", self.flag("client-cert-auth"));
        }
        if self.revoked.is_some() {
            bail!("--{revoked} needs {authorities}");
        }
        if self.allowed != Allowed::All {
            bail!("--{allowed} needs {authorities}");
        }
        Ok(self)
    }

    /// A flag as it is called for this side.
    pub fn flag(&self, name: &str) -> String {
        format!("--{}{name}", if self.is_peer { "peer-" } else { "" })
    }

    pub fn revoked_flag(&self) -> &'static str {
        if self.is_peer { "--peer-crl-file" } else { "--client-crl-file" }
    }

    /// Everything that is read.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.certificate, &self.key, &self.authorities, &self.revoked].into_iter().flatten()
    }
}

fn path(given: &Given, name: &'static str) -> Option<PathBuf> {
    given.some(name).map(PathBuf::from)
}

fn protocol(given: &Given) -> Result<Protocol> {
    let [least, most] = ["tls-min-version", "tls-max-version"].map(|flag| (flag, given.text(flag)));
    let number = |(flag, text): (&str, &str), default: u8| match text {
        "" => Ok(default),
        "TLS1.2" => Ok(2),
        "TLS1.3" => Ok(3),
        other => bail!("--{flag}: unexpected TLS version {other:?} (must be one of: TLS1.2, TLS1.3)"),
    };
    let (from, to) = (number(least, 2)?, number(most, 3)?);
    if from > to {
        bail!("min version ({}) is greater than max version ({})", least.1, most.1);
    }
    let versions = [(2, &version::TLS12), (3, &version::TLS13)];
    let versions: Vec<_> =
        versions.into_iter().filter(|(number, _)| (from..=to).contains(number)).map(|(_, version)| version).collect();
    let names = words(given.text("cipher-suites"));
    if names.is_empty() {
        return Ok(Protocol { versions, ..Protocol::default() });
    }
    if from == 3 {
        bail!("cipher suites cannot be configured when only TLS1.3 is enabled");
    }
    let suites = suites(&names)?;
    if to == 2 && !suites.iter().any(|suite| suite.version().version == rustls::ProtocolVersion::TLSv1_2) {
        bail!(
            "--cipher-suites: none of {names:?} is one of TLS 1.2 that is spoken; add one such as TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
        );
    }
    Ok(Protocol { versions, suites })
}

/// The list chooses among those of TLS 1.2; those of 1.3 are all spoken, as etcd does.
fn suites(names: &[String]) -> Result<Vec<SupportedCipherSuite>> {
    let mut chosen = Vec::new();
    let name_of = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
    for name in names {
        let whole = if name.ends_with("_CHACHA20_POLY1305") { format!("{name}_SHA256") } else { name.clone() };
        match provider::ALL_CIPHER_SUITES.iter().find(|suite| name_of(suite) == whole) {
            Some(suite) => chosen.push(*suite),
            None if name.starts_with("TLS_") && WEAK.iter().any(|part| name.contains(part)) => {
                tracing::warn!(suite = name, "--cipher-suites: this one is weak and not spoken");
            }
            None => bail!("--cipher-suites: unexpected TLS cipher suite {name:?}"),
        }
    }
    let newer = provider::ALL_CIPHER_SUITES.iter().filter(|suite| suite.tls13().is_some());
    let newer: Vec<_> = newer.filter(|suite| !chosen.contains(suite)).copied().collect();
    Ok(chosen.into_iter().chain(newer).collect())
}
