//! Turns a pod's spec into what CRI is told: the sandbox's and each container's configuration. Pure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext};
use pintle_proto::cri_v1 as api;

use super::env;
use super::plan;
use super::resources::{self, Qos};
use crate::limits;
use crate::runtime::label;

/// How pods of this node resolve names.
#[derive(Clone, Debug, Default)]
pub struct DnsSettings {
    pub cluster_ip: String,
    pub domain: String,
    /// The machine's own resolvers and search domains.
    pub host: HostResolver,
}

/// The parts of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostResolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl HostResolver {
    /// Reads the text of a resolv.conf; lines that are none are skipped.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.servers.extend(words.next().map(str::to_owned)),
                Some("search") => found.searches = words.map(str::to_owned).collect(),
                Some("options") => found.options = words.map(str::to_owned).collect(),
                _ => (),
            }
        }
        found
    }
}

/// Places and amounts of this node.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    pub cgroup_root: String,
    pub memory: i64,
    pub log_dir: PathBuf,
    pub dns: DnsSettings,
}

/// A mount that is ready on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadyMount {
    pub container_path: String,
    pub host_path: PathBuf,
    pub read_only: bool,
    pub propagation: i32,
}

/// Why a spec cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    #[error("seccomp profile of type Localhost needs a localhostProfile")]
    Seccomp,
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

fn identity(pod: &Pod) -> (String, String, String) {
    let meta = &pod.metadata;
    (text(meta.namespace.as_ref()), text(meta.name.as_ref()), text(meta.uid.as_ref()))
}

fn labels(pod: &Pod) -> HashMap<String, String> {
    let (namespace, name, uid) = identity(pod);
    [(label::POD_NAME, name), (label::POD_NAMESPACE, namespace), (label::POD_UID, uid)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// Directory of the pod's container logs.
pub fn log_directory(node: &NodeFacts, pod: &Pod) -> PathBuf {
    let (namespace, name, uid) = identity(pod);
    node.log_dir.join(format!("{namespace}_{name}_{uid}"))
}

/// Log of one container instance below the pod's log directory.
pub fn log_name(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The name a pod's processes see, at most 63 bytes.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let chosen = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let mut name = chosen.unwrap_or_else(|| text(pod.metadata.name.as_ref()));
    name.truncate((0..=63).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0));
    name.trim_end_matches(['-', '.']).to_owned()
}

/// `hostname.subdomain.namespace.svc.domain`, for pods that have a subdomain.
pub fn fqdn(pod: &Pod, domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|name| !name.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{domain}", hostname(pod), text(pod.metadata.namespace.as_ref())))
}

/// The pod's resolv.conf by its policy.
pub fn dns(pod: &Pod, settings: &DnsSettings) -> api::DnsConfig {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
    let namespace = text(pod.metadata.namespace.as_ref());
    let cluster = || api::DnsConfig {
        servers: vec![settings.cluster_ip.clone()],
        searches: [
            format!("{namespace}.svc.{}", settings.domain),
            format!("svc.{}", settings.domain),
            settings.domain.clone(),
        ]
        .into_iter()
        .chain(settings.host.searches.clone())
        .collect(),
        options: vec!["ndots:5".to_owned()],
    };
    let host = || api::DnsConfig {
        servers: settings.host.servers.clone(),
        searches: settings.host.searches.clone(),
        options: settings.host.options.clone(),
    };
    let mut config = match spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst") {
        "None" => api::DnsConfig::default(),
        "Default" => host(),
        "ClusterFirst" if host_network => host(),
        _ if settings.cluster_ip.is_empty() => host(),
        _ => cluster(),
    };
    if let Some(own) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        let add = |to: &mut Vec<String>, from: &Option<Vec<String>>| {
            for item in from.iter().flatten().filter(|item| !item.is_empty()) {
                if !to.contains(item) {
                    to.push(item.clone());
                }
            }
        };
        add(&mut config.servers, &own.nameservers);
        add(&mut config.searches, &own.searches);
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref().filter(|name| !name.is_empty()) else { continue };
            config.options.retain(|old| old.split(':').next() != Some(name));
            config
                .options
                .push(option.value.as_ref().map_or_else(|| name.to_owned(), |value| format!("{name}:{value}")));
        }
    }
    config
}

/// The file /etc/hosts of the pod.
pub fn hosts_file(pod: &Pod, ips: &[String], domain: &str) -> String {
    let mut file = String::from(
        "# written by the pintle agent\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let name = hostname(pod);
    for ip in ips {
        match fqdn(pod, domain) {
            Some(full) => file.push_str(&format!("{ip}\t{full}\t{name}\n")),
            None => file.push_str(&format!("{ip}\t{name}\n")),
        }
    }
    for alias in pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()) {
        let names = alias.hostnames.clone().unwrap_or_default().join("\t");
        file.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    file
}

fn namespaces(spec: &PodSpec) -> api::NamespaceOption {
    let node = |on: Option<bool>| on == Some(true);
    let pid = match (node(spec.host_pid), node(spec.share_process_namespace)) {
        (true, _) => api::NamespaceMode::Node,
        (_, true) => api::NamespaceMode::Pod,
        _ => api::NamespaceMode::Container,
    };
    let of = |on| if node(on) { api::NamespaceMode::Node as i32 } else { api::NamespaceMode::Pod as i32 };
    api::NamespaceOption {
        network: of(spec.host_network),
        pid: pid as i32,
        ipc: of(spec.host_ipc),
        ..Default::default()
    }
}

fn is_privileged(context: Option<&SecurityContext>) -> bool {
    context.and_then(|context| context.privileged) == Some(true)
}

fn seccomp(own: Option<&SeccompProfile>) -> Result<Option<api::SecurityProfile>, ConfigError> {
    use api::security_profile::ProfileType;
    let Some(profile) = own else { return Ok(None) };
    let (kind, reference) = match profile.type_.as_str() {
        "RuntimeDefault" => (ProfileType::RuntimeDefault, String::new()),
        "Localhost" => {
            let path = profile.localhost_profile.as_ref().ok_or(ConfigError::Seccomp)?;
            (ProfileType::Localhost, format!("/var/lib/kubelet/seccomp/{path}"))
        }
        _ => (ProfileType::Unconfined, String::new()),
    };
    Ok(Some(api::SecurityProfile { profile_type: kind as i32, localhost_ref: reference }))
}

/// Configuration of the pod's sandbox.
pub fn sandbox(pod: &Pod, attempt: u32, node: &NodeFacts) -> Result<api::PodSandboxConfig, ConfigError> {
    let (namespace, name, uid) = identity(pod);
    let spec = pod.spec.clone().unwrap_or_default();
    let security = spec.security_context.clone().unwrap_or_default();
    let privileged = resources::containers(pod).any(|container| is_privileged(container.security_context.as_ref()));
    let host_network = spec.host_network == Some(true);
    let context = api::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(&spec)),
        run_as_user: security.run_as_user.map(|value| api::Int64Value { value }),
        run_as_group: security
            .run_as_group
            .filter(|_| security.run_as_user.is_some())
            .map(|value| api::Int64Value { value }),
        supplemental_groups: groups(&security),
        privileged,
        seccomp: seccomp(security.seccomp_profile.as_ref())?,
        ..Default::default()
    };
    let sysctls = security.sysctls.iter().flatten().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect();
    let ports = if host_network { Vec::new() } else { port_mappings(pod) };
    Ok(api::PodSandboxConfig {
        hostname: if host_network { String::new() } else { hostname(pod) },
        log_directory: log_directory(node, pod).to_string_lossy().into_owned(),
        dns_config: Some(dns(pod, &node.dns)),
        port_mappings: ports,
        labels: labels(pod),
        annotations: HashMap::new(),
        linux: Some(api::LinuxPodSandboxConfig {
            cgroup_parent: Qos::of(pod).cgroup_parent(&node.cgroup_root, &uid),
            security_context: Some(context),
            sysctls,
            ..Default::default()
        }),
        metadata: Some(api::PodSandboxMetadata { name, uid, namespace, attempt }),
    })
}

/// Host ports; the container's own ports need no mapping.
fn port_mappings(pod: &Pod) -> Vec<api::PortMapping> {
    let ports = resources::containers(pod).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host_port = port.host_port.filter(|port| *port > 0)?;
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => api::Protocol::Udp,
                Some("SCTP") => api::Protocol::Sctp,
                _ => api::Protocol::Tcp,
            };
            let host_ip = text(port.host_ip.as_ref());
            Some(api::PortMapping {
                protocol: protocol as i32,
                container_port: port.container_port,
                host_port,
                host_ip,
            })
        })
        .collect()
}

fn groups(security: &PodSecurityContext) -> Vec<i64> {
    let mut groups = security.supplemental_groups.clone().unwrap_or_default();
    groups.extend(security.fs_group);
    groups
}

/// What a container's configuration is made of, beside its spec.
pub struct Parts<'a> {
    pub attempt: u32,
    pub image: String,
    /// The user the image names, 0 if none.
    pub image_uid: i64,
    pub environment: Vec<(String, String)>,
    pub mounts: Vec<ReadyMount>,
    pub termination_file: Option<&'a Path>,
}

/// Configuration of one container.
pub fn container(
    pod: &Pod,
    container: &Container,
    node: &NodeFacts,
    parts: Parts<'_>,
) -> Result<api::ContainerConfig, ConfigError> {
    let lookup =
        |name: &str| parts.environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let expanded =
        |words: &Option<Vec<String>>| words.iter().flatten().map(|word| env::expand(word, lookup)).collect::<Vec<_>>();
    let mut labels = labels(pod);
    labels.insert(label::CONTAINER_NAME.to_owned(), container.name.clone());
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    let annotations = [
        (label::CONTAINER_HASH, plan::hash(container)),
        (label::RESTART_COUNT, parts.attempt.to_string()),
        (
            label::TERMINATION_FILE,
            parts.termination_file.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        ),
        (label::TERMINATION_POLICY, text(container.termination_message_policy.as_ref())),
        (label::GRACE, grace.to_string()),
    ];
    let mounts = parts.mounts.into_iter().map(|mount| api::Mount {
        container_path: mount.container_path,
        host_path: mount.host_path.to_string_lossy().into_owned(),
        readonly: mount.read_only,
        propagation: mount.propagation,
        ..Default::default()
    });
    let envs = parts.environment.iter();
    Ok(api::ContainerConfig {
        metadata: Some(api::ContainerMetadata { name: container.name.clone(), attempt: parts.attempt }),
        image: Some(api::ImageSpec {
            image: parts.image,
            user_specified_image: text(container.image.as_ref()),
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: text(container.working_dir.as_ref()),
        envs: envs.map(|(key, value)| api::KeyValue { key: key.clone(), value: Bytes::from(value.clone()) }).collect(),
        mounts: mounts.collect(),
        labels,
        annotations: annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        log_path: log_name(&container.name, parts.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(api::LinuxContainerConfig {
            resources: Some(resources::linux(pod, container, node.memory)),
            security_context: Some(security(pod, container, parts.image_uid)?),
        }),
        ..Default::default()
    })
}

fn security(
    pod: &Pod,
    container: &Container,
    image_uid: i64,
) -> Result<api::LinuxContainerSecurityContext, ConfigError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(of_pod.run_as_user);
    let group = own.run_as_group.or(of_pod.run_as_group);
    let non_root = own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true);
    if non_root && user.unwrap_or(image_uid) == 0 {
        return Err(ConfigError::Root);
    }
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.as_ref().map(|capabilities| api::Capability {
        add_capabilities: capabilities.add.clone().unwrap_or_default(),
        drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
        ..Default::default()
    });
    let (masked_paths, readonly_paths) = if privileged || own.proc_mount.as_deref() == Some("Unmasked") {
        (Vec::new(), Vec::new())
    } else {
        (strings(&MASKED), strings(&READ_ONLY))
    };
    // A group without a user is refused by the runtime: it needs to know whose group it is.
    let user_value = user.or_else(|| group.map(|_| image_uid)).map(|value| api::Int64Value { value });
    Ok(api::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(namespaces(&spec)),
        run_as_user: user_value,
        run_as_group: group.map(|value| api::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths,
        readonly_paths,
        seccomp: if privileged {
            None
        } else {
            seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()))?
        },
        ..Default::default()
    })
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|item| (*item).to_owned()).collect()
}

/// Kernel files that tell about, or change, the whole machine.
const MASKED: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The grace a pod has to end, at least one second unless it is zero by request.
pub fn grace(pod: &Pod) -> i64 {
    let spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    pod.metadata.deletion_grace_period_seconds.unwrap_or(spec).clamp(0, 7 * 24 * 3600)
}

/// True if the spec has more containers than the agent looks at.
pub fn is_oversized(pod: &Pod) -> bool {
    resources::containers(pod).count() > limits::CONTAINERS_PER_POD
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "web-0", "namespace": "ns", "uid": "u1" }, "spec": spec }))
            .expect("pod")
    }

    fn settings() -> DnsSettings {
        DnsSettings {
            cluster_ip: "10.96.0.10".into(),
            domain: "cluster.local".into(),
            host: HostResolver::parse("nameserver 192.0.2.1\nsearch corp.example\noptions edns0\n# x\nnonsense"),
        }
    }

    #[test]
    fn name_resolution_by_policy() {
        let with = |spec: Value| dns(&pod(spec), &settings());
        let first = with(json!({ "containers": [] }));
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(first.searches, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"]);
        assert_eq!(with(json!({ "containers": [], "dnsPolicy": "Default" })).servers, ["192.0.2.1"]);
        assert_eq!(with(json!({ "containers": [], "hostNetwork": true })).servers, ["192.0.2.1"]);
        let host = with(json!({ "containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet" }));
        assert_eq!(host.servers, ["10.96.0.10"]);
        let own = with(json!({ "containers": [], "dnsPolicy": "None", "dnsConfig": { "nameservers": ["1.1.1.1"],
            "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }] } }));
        assert_eq!(
            (own.servers, own.options),
            (vec!["1.1.1.1".to_owned()], vec!["ndots:2".to_owned(), "edns0".to_owned()])
        );
    }

    #[test]
    fn hosts_and_names() {
        let pod = pod(
            json!({ "containers": [], "subdomain": "web", "hostAliases": [{ "ip": "1.2.3.4", "hostnames": ["a", "b"] }] }),
        );
        let file = hosts_file(&pod, &["10.244.1.5".to_owned()], "cluster.local");
        assert!(
            file.contains("10.244.1.5\tweb-0.web.ns.svc.cluster.local\tweb-0\n") && file.ends_with("1.2.3.4\ta\tb\n"),
            "{file}"
        );
    }

    #[test]
    fn the_sandbox_has_its_place_ports_and_namespaces() {
        let node = NodeFacts {
            cgroup_root: "/kubepods".into(),
            log_dir: "/logs".into(),
            dns: settings(),
            ..NodeFacts::default()
        };
        let pod = pod(
            json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 80, "hostPort": 8080 }, { "containerPort": 81 }] }] }),
        );
        let config = sandbox(&pod, 2, &node).expect("config");
        assert_eq!(config.log_directory, "/logs/ns_web-0_u1");
        assert_eq!(config.port_mappings.len(), 1);
        assert_eq!(config.linux.expect("linux").cgroup_parent, "/kubepods/besteffort/podu1");
    }

    #[test]
    fn commands_are_expanded_and_root_is_refused() {
        let pod = pod(
            json!({ "containers": [{ "name": "a", "command": ["echo", "$(X)$(Y)"], "securityContext": { "runAsNonRoot": true } }] }),
        );
        let spec = &pod.spec.as_ref().expect("spec").containers[0];
        let parts = |image_uid| Parts {
            attempt: 1,
            image: "i".into(),
            image_uid,
            environment: vec![("X".into(), "1".into())],
            mounts: vec![],
            termination_file: None,
        };
        let made = container(&pod, spec, &NodeFacts::default(), parts(7)).expect("config");
        assert_eq!((made.command, made.log_path.as_str()), (vec!["echo".to_owned(), "1$(Y)".to_owned()], "a/1.log"));
        assert_eq!(container(&pod, spec, &NodeFacts::default(), parts(0)), Err(ConfigError::Root));
    }
}
