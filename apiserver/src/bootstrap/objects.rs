//! The objects besides roles that every cluster has, as values.

use serde_json::{Value, json};

use crate::types::Config;

pub(super) const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Name, value and description of the built-in priority classes.
const PRIORITIES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

pub(super) fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

pub(super) fn priority_classes() -> Vec<Value> {
    let class = |(name, value, description): (&str, i64, &str)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
            "value": value, "description": description, "globalDefault": false,
            "preemptionPolicy": "PreemptLowerPriority",
        })
    };
    PRIORITIES.into_iter().map(class).collect()
}

/// The Service `default/kubernetes`, through which pods reach the API.
pub(super) fn kubernetes_service(config: &Config) -> Value {
    let ip = config.kubernetes_service_ip.to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "sessionAffinity": "None",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{
                "name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise.port(),
            }],
        },
    })
}

/// ConfigMaps: what a new machine must know to join, and what servers of aggregated APIs must know to trust us.
pub(super) fn config_maps(config: &Config) -> Vec<Value> {
    let server = (config.peers)().into_iter().find(|peer| peer.id == config.server_id);
    let address = server.map_or_else(|| config.advertise.to_string(), |peer| peer.api_addr);
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "contexts": [], "users": [], "current-context": "",
        "clusters": [{ "name": "", "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority-data": base64_of(&config.ca_pem),
        } }],
    });
    vec![
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "cluster-info", "namespace": "kube-public" },
            "data": { "kubeconfig": kubeconfig.to_string() },
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system" },
            "data": { "client-ca-file": config.ca_pem },
        }),
    ]
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
