//! The names of the cluster and what they mean. Pure.
//!
//! Rule: Kubernetes DNS-based service discovery, version 1.1.0: `service.namespace.svc.zone` A, `_port._proto.service…`
//! SRV, `host.service…` for endpoints, PTR for both, CNAME for ExternalName, `a-b-c-d.namespace.pod.zone` A, TXT `dns-version`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::limits;

/// What the zone says to a question.
#[derive(Debug)]
pub enum Answer {
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// The name exists, but has no record of this type.
    NoData(Record),
    NoName(Record),
    /// Not a name of the cluster.
    Elsewhere,
}

#[derive(Debug)]
enum Kind {
    Cluster(Ipv4Addr),
    Headless,
    External(Name),
}

#[derive(Debug)]
struct ServiceEntry {
    kind: Kind,
    /// (port name, protocol) to the service's own number.
    ports: Vec<(String, &'static str, u16)>,
    endpoints: Vec<EndpointEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EndpointEntry {
    host: String,
    address: Ipv4Addr,
    /// (port name, protocol, number) of the slice the endpoint came from.
    ports: Vec<(String, &'static str, u16)>,
}

/// All names, as they were when it was built.
#[derive(Debug)]
pub struct Zone {
    domain: Vec<String>,
    origin: Name,
    /// By namespace, then service.
    services: BTreeMap<String, BTreeMap<String, ServiceEntry>>,
    reverse: BTreeMap<Ipv4Addr, Name>,
}

fn protocol(text: Option<&str>) -> &'static str {
    match text {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => "tcp",
    }
}

fn lower_labels(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).to_lowercase()).collect()
}

/// The target of an alias that answers a question for another type.
pub fn alias_of(answers: &[Record], asked: RecordType) -> Option<Name> {
    match (asked, answers) {
        (RecordType::CNAME, _) => None,
        (_, [only]) => match &only.data {
            RData::CNAME(CNAME(target)) => Some(target.clone()),
            _ => None,
        },
        _ => None,
    }
}

impl Zone {
    /// Names that cannot be written as DNS labels are left out.
    pub fn build(domain: &str, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Self {
        let origin = Name::from_ascii(format!("{}.", domain.trim_end_matches('.'))).unwrap_or_else(|_| Name::root());
        let mut zone =
            Self { domain: lower_labels(&origin), origin, services: BTreeMap::new(), reverse: BTreeMap::new() };
        for service in services {
            zone.add_service(service);
        }
        for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
            zone.add_slice(slice);
        }
        zone.index_reverse();
        zone
    }

    fn add_service(&mut self, service: &Service) {
        let (Some(namespace), Some(name), Some(spec)) =
            (&service.metadata.namespace, &service.metadata.name, &service.spec)
        else {
            return;
        };
        let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) => {
                let target = spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.');
                let Ok(target) = Name::from_ascii(format!("{}.", target.to_lowercase())) else { return };
                Kind::External(target)
            }
            (_, Some("None")) => Kind::Headless,
            (_, Some(ip)) => match ip.parse() {
                Ok(ip) => Kind::Cluster(ip),
                Err(_) => return,
            },
            (_, None) => return,
        };
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some((
                port.name.clone().unwrap_or_default(),
                protocol(port.protocol.as_deref()),
                u16::try_from(port.port).ok()?,
            ))
        });
        let entry = ServiceEntry { kind, ports: ports.collect(), endpoints: Vec::new() };
        self.services.entry(namespace.to_lowercase()).or_default().insert(name.to_lowercase(), entry);
    }

    fn add_slice(&mut self, slice: &EndpointSlice) {
        let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
        let (Some(namespace), Some(name)) = (&slice.metadata.namespace, name) else { return };
        let Some(entry) = self.services.get_mut(namespace).and_then(|services| services.get_mut(name)) else { return };
        let ports: Vec<_> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some((
                    port.name.clone().unwrap_or_default(),
                    protocol(port.protocol.as_deref()),
                    u16::try_from(port.port?).ok()?,
                ))
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                continue;
            }
            for address in endpoint.addresses.iter().filter_map(|address| address.parse::<Ipv4Addr>().ok()) {
                let host = endpoint.hostname.clone().filter(|host| !host.is_empty());
                let host = host.unwrap_or_else(|| address.to_string().replace('.', "-")).to_lowercase();
                entry.endpoints.push(EndpointEntry { host, address, ports: ports.clone() });
            }
        }
    }

    fn index_reverse(&mut self) {
        let mut reverse = BTreeMap::new();
        for (namespace, services) in &self.services {
            for (service, entry) in services {
                match entry.kind {
                    Kind::Cluster(ip) => {
                        reverse.extend(self.name(&[service, namespace, "svc"]).map(|name| (ip, name)));
                    }
                    Kind::Headless => {
                        for endpoint in &entry.endpoints {
                            reverse.extend(
                                self.name(&[&endpoint.host, service, namespace, "svc"])
                                    .map(|name| (endpoint.address, name)),
                            );
                        }
                    }
                    Kind::External(_) => (),
                }
            }
        }
        for services in self.services.values_mut() {
            for entry in services.values_mut() {
                entry.endpoints.sort();
                entry.endpoints.dedup();
            }
        }
        self.reverse = reverse;
    }

    /// The full name of labels inside the zone.
    fn name(&self, labels: &[&str]) -> Option<Name> {
        Name::from_ascii(labels.join(".")).ok()?.append_domain(&self.origin).ok()
    }

    fn soa(&self) -> Record {
        let name = |label: &str| self.name(&[label]).unwrap_or_else(|| self.origin.clone());
        let minimum = limits::DNS_TTL;
        let soa = SOA::new(name("ns.dns"), name("hostmaster"), 1, 7200, 1800, 86_400, minimum);
        Record::from_rdata(self.origin.clone(), minimum, RData::SOA(soa))
    }

    /// Answers a question.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let labels = lower_labels(name);
        if let Some(address) = reverse_address(&labels) {
            return self.answer_reverse(name, address, kind);
        }
        let Some(inner) =
            labels.len().checked_sub(self.domain.len()).filter(|inner| labels[*inner..] == self.domain[..])
        else {
            return Answer::Elsewhere;
        };
        let labels: Vec<&str> = labels[..inner].iter().map(String::as_str).collect();
        match self.look_up(&labels) {
            Found::Nothing => Answer::NoName(self.soa()),
            Found::Empty => self.empty(&labels, name, kind),
            Found::Alias(target) => {
                Answer::Records { answers: vec![record(name, RData::CNAME(CNAME(target)))], additionals: Vec::new() }
            }
            Found::Addresses(addresses) => match kind {
                RecordType::A | RecordType::ANY => {
                    self.records(addresses.into_iter().map(|address| record(name, RData::A(A(address)))).collect())
                }
                RecordType::SRV => self.all_ports(&labels, name),
                _ => Answer::NoData(self.soa()),
            },
            Found::Servers(servers) => match kind {
                RecordType::SRV | RecordType::ANY => self.servers(name, servers),
                _ => Answer::NoData(self.soa()),
            },
        }
    }

    fn records(&self, answers: Vec<Record>) -> Answer {
        if answers.is_empty() {
            Answer::NoData(self.soa())
        } else {
            Answer::Records { answers, additionals: Vec::new() }
        }
    }

    /// Names that only have names below them, and the two special ones.
    fn empty(&self, labels: &[&str], name: &Name, kind: RecordType) -> Answer {
        let data = match (labels, kind) {
            (["dns-version"], RecordType::TXT | RecordType::ANY) => RData::TXT(TXT::new(vec!["1.1.0".to_owned()])),
            ([], RecordType::SOA | RecordType::ANY) => self.soa().data,
            _ => return Answer::NoData(self.soa()),
        };
        self.records(vec![record(name, data)])
    }

    fn look_up(&self, labels: &[&str]) -> Found {
        match labels {
            [] | ["svc" | "pod" | "dns-version"] => Found::Empty,
            [namespace, "svc" | "pod"] => {
                if self.services.contains_key(*namespace) {
                    Found::Empty
                } else {
                    Found::Nothing
                }
            }
            [address, namespace, "pod"] => match address.replace('-', ".").parse::<Ipv4Addr>() {
                Ok(address) if self.services.contains_key(*namespace) => Found::Addresses(vec![address]),
                _ => Found::Nothing,
            },
            [inner @ .., service, namespace, "svc"] => {
                match self.services.get(*namespace).and_then(|all| all.get(*service)) {
                    Some(entry) => self.inside(entry, inner, service, namespace),
                    None => Found::Nothing,
                }
            }
            _ => Found::Nothing,
        }
    }

    fn inside(&self, entry: &ServiceEntry, inner: &[&str], service: &str, namespace: &str) -> Found {
        if let Kind::External(target) = &entry.kind {
            return if inner.is_empty() { Found::Alias(target.clone()) } else { Found::Nothing };
        }
        match inner {
            [] => match entry.kind {
                Kind::Cluster(ip) => Found::Addresses(vec![ip]),
                // Without any ready endpoint the name does not resolve at all.
                _ if entry.endpoints.is_empty() => Found::Nothing,
                _ => Found::Addresses(distinct(entry.endpoints.iter().map(|endpoint| endpoint.address))),
            },
            [port, transport] if port.starts_with('_') && transport.starts_with('_') => {
                let servers = self.ports(entry, service, namespace, Some((&port[1..], &transport[1..])));
                if servers.is_empty() { Found::Nothing } else { Found::Servers(servers) }
            }
            [transport @ ("_tcp" | "_udp" | "_sctp")] => {
                if self.ports(entry, service, namespace, None).is_empty() || transport.is_empty() {
                    Found::Nothing
                } else {
                    Found::Empty
                }
            }
            [host] => {
                let found = distinct(
                    entry.endpoints.iter().filter(|endpoint| endpoint.host == *host).map(|endpoint| endpoint.address),
                );
                if found.is_empty() { Found::Nothing } else { Found::Addresses(found) }
            }
            _ => Found::Nothing,
        }
    }

    /// The servers behind a port, or behind all of them.
    fn ports(&self, entry: &ServiceEntry, service: &str, namespace: &str, wanted: Option<(&str, &str)>) -> Vec<Server> {
        let fits = |name: &str, transport: &str| {
            wanted.is_none_or(|wanted| wanted == (name, transport)) && !(name.is_empty() && wanted.is_some())
        };
        let mut servers = Vec::new();
        match entry.kind {
            Kind::Cluster(address) => {
                let target = self.name(&[service, namespace, "svc"]);
                for (_, _, port) in entry.ports.iter().filter(|(name, transport, _)| fits(name, transport)) {
                    servers.extend(target.clone().map(|target| Server { target, port: *port, address }));
                }
            }
            Kind::Headless => {
                for endpoint in &entry.endpoints {
                    let target = self.name(&[&endpoint.host, service, namespace, "svc"]);
                    for (_, _, port) in endpoint.ports.iter().filter(|(name, transport, _)| fits(name, transport)) {
                        servers.extend(target.clone().map(|target| Server {
                            target,
                            port: *port,
                            address: endpoint.address,
                        }));
                    }
                }
            }
            Kind::External(_) => (),
        }
        servers
    }

    /// SRV asked for the service's own name: every port of it.
    fn all_ports(&self, labels: &[&str], name: &Name) -> Answer {
        let [service, namespace, "svc"] = labels else { return Answer::NoData(self.soa()) };
        match self.services.get(*namespace).and_then(|all| all.get(*service)) {
            Some(entry) => self.servers(name, self.ports(entry, service, namespace, None)),
            None => Answer::NoData(self.soa()),
        }
    }

    fn servers(&self, name: &Name, servers: Vec<Server>) -> Answer {
        if servers.is_empty() {
            return Answer::NoData(self.soa());
        }
        let weight = u16::try_from(100 / servers.len().max(1)).unwrap_or(1).max(1);
        let answers = servers
            .iter()
            .map(|server| record(name, RData::SRV(SRV::new(0, weight, server.port, server.target.clone()))));
        let targets: BTreeSet<(&Name, Ipv4Addr)> =
            servers.iter().map(|server| (&server.target, server.address)).collect();
        let additionals = targets.into_iter().map(|(target, address)| record(target, RData::A(A(address))));
        Answer::Records { answers: answers.collect(), additionals: additionals.collect() }
    }

    fn answer_reverse(&self, name: &Name, address: Ipv4Addr, kind: RecordType) -> Answer {
        match self.reverse.get(&address) {
            Some(target) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                self.records(vec![record(name, RData::PTR(PTR(target.clone())))])
            }
            Some(_) => Answer::NoData(self.soa()),
            None => Answer::Elsewhere,
        }
    }
}

struct Server {
    target: Name,
    port: u16,
    address: Ipv4Addr,
}

enum Found {
    Nothing,
    Empty,
    Addresses(Vec<Ipv4Addr>),
    Servers(Vec<Server>),
    Alias(Name),
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), limits::DNS_TTL, data)
}

fn distinct(addresses: impl Iterator<Item = Ipv4Addr>) -> Vec<Ipv4Addr> {
    addresses.collect::<BTreeSet<_>>().into_iter().collect()
}

/// `d.c.b.a.in-addr.arpa`
fn reverse_address(labels: &[String]) -> Option<Ipv4Addr> {
    let [d, c, b, a, in_addr, arpa] = labels else { return None };
    (in_addr == "in-addr" && arpa == "arpa").then(|| format!("{a}.{b}.{c}.{d}").parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn zone() -> Zone {
        let service = |value: Value| Arc::new(serde_json::from_value::<Service>(value).expect("service"));
        let services = [
            service(
                json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": { "clusterIP": "10.96.0.5", "ports": [{ "name": "http", "port": 80 }] } }),
            ),
            service(
                json!({ "metadata": { "name": "db", "namespace": "default" }, "spec": { "clusterIP": "None", "ports": [{ "name": "sql", "port": 5432 }] } }),
            ),
            service(json!({ "metadata": { "name": "none", "namespace": "default" }, "spec": { "clusterIP": "None" } })),
            service(
                json!({ "metadata": { "name": "far", "namespace": "other" }, "spec": { "type": "ExternalName", "externalName": "Example.org" } }),
            ),
        ];
        let slice = json!({ "metadata": { "name": "db-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "db" } },
            "addressType": "IPv4", "ports": [{ "name": "sql", "port": 5432 }], "endpoints": [
                { "addresses": ["10.244.0.2"], "hostname": "db-0", "conditions": { "ready": true } },
                { "addresses": ["10.244.1.3"], "conditions": { "ready": true } },
                { "addresses": ["10.244.1.4"], "conditions": { "ready": false } } ] });
        Zone::build("cluster.local", &services, &[Arc::new(serde_json::from_value(slice).expect("slice"))])
    }

    #[track_caller]
    fn check(name: &str, kind: RecordType, want: &str) {
        let shown = match zone().answer(&Name::from_ascii(name).expect("name"), kind) {
            Answer::Records { answers, additionals } => {
                answers.iter().chain(&additionals).map(|record| record.data.to_string()).collect::<Vec<_>>().join(", ")
            }
            Answer::NoData(_) => "no data".to_owned(),
            Answer::NoName(_) => "no name".to_owned(),
            Answer::Elsewhere => "elsewhere".to_owned(),
        };
        assert_eq!(shown, want, "{name} {kind}");
    }

    #[test]
    fn services() {
        check("web.default.svc.cluster.local.", RecordType::A, "10.96.0.5");
        check("WEB.Default.svc.Cluster.local.", RecordType::A, "10.96.0.5");
        check("web.default.svc.cluster.local.", RecordType::AAAA, "no data");
        check(
            "_http._tcp.web.default.svc.cluster.local.",
            RecordType::SRV,
            "0 100 80 web.default.svc.cluster.local., 10.96.0.5",
        );
        check("_nope._tcp.web.default.svc.cluster.local.", RecordType::SRV, "no name");
        check("nope.default.svc.cluster.local.", RecordType::A, "no name");
    }

    #[test]
    fn headless_services_and_their_hosts() {
        check("db.default.svc.cluster.local.", RecordType::A, "10.244.0.2, 10.244.1.3");
        check("db-0.db.default.svc.cluster.local.", RecordType::A, "10.244.0.2");
        check("10-244-1-3.db.default.svc.cluster.local.", RecordType::A, "10.244.1.3");
        check("none.default.svc.cluster.local.", RecordType::A, "no name");
        check(
            "_sql._tcp.db.default.svc.cluster.local.",
            RecordType::SRV,
            "0 50 5432 10-244-1-3.db.default.svc.cluster.local., 0 50 5432 db-0.db.default.svc.cluster.local., \
             10.244.1.3, 10.244.0.2",
        );
    }

    #[test]
    fn the_rest_of_the_schema() {
        check("far.other.svc.cluster.local.", RecordType::A, "example.org.");
        check("5.0.96.10.in-addr.arpa.", RecordType::PTR, "web.default.svc.cluster.local.");
        check("2.0.244.10.in-addr.arpa.", RecordType::PTR, "db-0.db.default.svc.cluster.local.");
        check("8.8.8.8.in-addr.arpa.", RecordType::PTR, "elsewhere");
        check("10-244-0-9.default.pod.cluster.local.", RecordType::A, "10.244.0.9");
        check("dns-version.cluster.local.", RecordType::TXT, "1.1.0");
        check("svc.cluster.local.", RecordType::A, "no data");
        check("default.svc.cluster.local.", RecordType::A, "no data");
        check("example.org.", RecordType::A, "elsewhere");
        check("web.default.svc.cluster.local.example.org.", RecordType::A, "elsewhere");
    }
}
