//! What a pod may learn about itself: `fieldRef` and `resourceFieldRef`, for variables and for files.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use pintle_api::quantity::Quantity;

use super::resources::{self, Amounts};

/// Values that are not in the pod's own spec.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub node_name: String,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    /// What the node can give: the limit of a container without one.
    pub allocatable: Amounts,
}

/// Why a downward value cannot be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownwardError {
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource: {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
    #[error("invalid divisor {0:?}")]
    Divisor(String),
}

/// The text of `path`, for example `metadata.labels['app']`.
pub fn field(pod: &Pod, path: &str, around: &Surroundings) -> Result<String, DownwardError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        return match map {
            "metadata.labels" => Ok(lookup(meta.labels.as_ref(), key)),
            "metadata.annotations" => Ok(lookup(meta.annotations.as_ref(), key)),
            _ => Err(DownwardError::Field(path.to_owned())),
        };
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => around.node_name.clone(),
        "spec.serviceAccountName" => spec.map(|spec| text(&spec.service_account_name)).unwrap_or_default(),
        "status.hostIP" => around.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => around.host_ips.join(","),
        "status.podIP" => around.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => around.pod_ips.join(","),
        _ => return Err(DownwardError::Field(path.to_owned())),
    })
}

/// True if the value exists only once the sandbox has an address.
pub fn needs_address(path: &str) -> bool {
    matches!(path, "status.podIP" | "status.podIPs")
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let key = key
        .strip_prefix('\'')
        .and_then(|key| key.strip_suffix('\''))
        .or_else(|| key.strip_prefix('"').and_then(|key| key.strip_suffix('"')))?;
    Some((map, key))
}

fn lookup(map: Option<&BTreeMap<String, String>>, key: &str) -> String {
    map.and_then(|map| map.get(key)).cloned().unwrap_or_default()
}

/// `key="value"` lines with the value quoted, the form of the files that labels and annotations become.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

fn quote(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for letter in value.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other if other.is_control() => out.push_str(&format!("\\x{:02x}", other as u32)),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// The number that a `resourceFieldRef` asks for: the amount divided by the divisor, rounded up.
///
/// `own` is the container that asks; files name one instead.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    around: &Surroundings,
) -> Result<String, DownwardError> {
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        None => own.ok_or_else(|| DownwardError::Container(String::new()))?,
        Some(name) => resources::containers(pod)
            .find(|container| container.name == name)
            .ok_or_else(|| DownwardError::Container(name.to_owned()))?,
    };
    let unknown = || DownwardError::Resource(selector.resource.clone());
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
    if !matches!(kind, "limits" | "requests")
        || !(["cpu", "memory", "ephemeral-storage"].contains(&name) || name.starts_with("hugepages-"))
    {
        return Err(unknown());
    }
    let amounts = if kind == "limits" { Amounts::limits(container) } else { Amounts::requests(container) };
    let fallback = if kind == "limits" { around.allocatable.milli(name) } else { None };
    let milli = amounts.milli(name).or(fallback).unwrap_or(0);
    let divisor = match &selector.divisor {
        None => 1000,
        Some(text) => {
            let quantity: Quantity = text.0.parse().map_err(|_| DownwardError::Divisor(text.0.clone()))?;
            if quantity.is_zero() { 1000 } else { i128::from(quantity.milli()) }
        }
    };
    if divisor <= 0 {
        return Err(DownwardError::Divisor(divisor.to_string()));
    }
    Ok(((milli + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "u1", "labels": { "app": "w\"eb", "tier": "1" } },
            "spec": { "serviceAccountName": "sa", "containers": [
                { "name": "c", "resources": { "limits": { "cpu": "1500m" }, "requests": { "cpu": "250m", "memory": "64Mi" } } },
            ] },
        }))
        .expect("pod")
    }

    fn around() -> Surroundings {
        Surroundings {
            node_name: "n1".into(),
            host_ips: vec!["10.0.0.1".into()],
            pod_ips: vec!["10.244.0.2".into()],
            allocatable: Amounts::of([("memory", "1Gi")]),
        }
    }

    #[test]
    fn fields() {
        let get = |path| field(&pod(), path, &around());
        assert_eq!(get("metadata.labels['app']").as_deref(), Ok("w\"eb"));
        assert_eq!(get("metadata.annotations['none']").as_deref(), Ok(""));
        assert_eq!(get("metadata.labels").as_deref(), Ok("app=\"w\\\"eb\"\ntier=\"1\""));
        assert_eq!(get("status.podIP").as_deref(), Ok("10.244.0.2"));
        assert_eq!(get("spec.serviceAccountName").as_deref(), Ok("sa"));
        assert!(
            get("spec.containers").is_err() && get("metadata.labels[app").is_err() && get("status.x['y']").is_err()
        );
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let get = |resource: &str, divisor: Option<&str>| {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({ "containerName": "c", "resource": resource, "divisor": divisor }))
                    .expect("selector");
            super::resource(&pod(), None, &selector, &around())
        };
        assert_eq!(get("limits.cpu", None).as_deref(), Ok("2"));
        assert_eq!(get("limits.cpu", Some("1m")).as_deref(), Ok("1500"));
        assert_eq!(get("requests.memory", Some("1Mi")).as_deref(), Ok("64"));
        assert_eq!(get("limits.memory", Some("1Mi")).as_deref(), Ok("1024"), "the node's own amount");
        assert!(
            get("limits.gold", None).is_err() && get("cpu", None).is_err() && get("limits.cpu", Some("-1")).is_err()
        );
    }
}
