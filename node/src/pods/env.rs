//! The environment of a container: literals, references, downward fields, service variables, `$(NAME)` expansion.
//!
//! Pure: everything that was looked up before comes in as [`Sources`].

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, Pod, Service};

use super::downward::{self, DownwardError, Surroundings};

/// The keys of one ConfigMap or Secret.
pub type Data = BTreeMap<String, Bytes>;

/// Answers of the look-ups a container's environment needs; absent objects answer `None`.
pub trait Sources {
    fn config_map(&self, name: &str) -> Option<&Data>;
    fn secret(&self, name: &str) -> Option<&Data>;
}

/// Why a container cannot be given its environment; the texts are what users of Kubernetes know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("configmap \"{0}\" not found")]
    ConfigMap(String),
    #[error("secret \"{0}\" not found")]
    Secret(String),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { kind: &'static str, namespace: String, name: String, key: String },
    #[error(transparent)]
    Downward(#[from] DownwardError),
}

/// Makes the environment in the order the runtime is given it: the container's own first, then service variables.
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    sources: &dyn Sources,
    around: &Surroundings,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut made = Ordered::default();
    for source in container.env_from.iter().flatten() {
        from_source(source, sources, &mut made)?;
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(pod, container, variable, sources, around, &made, services)? {
            made.set(&variable.name, value);
        }
    }
    for (name, value) in services {
        if made.get(name).is_none() {
            made.set(name, value.clone());
        }
    }
    Ok(made.entries)
}

/// Variables in the order they were first set.
#[derive(Default)]
struct Ordered {
    entries: Vec<(String, String)>,
    places: BTreeMap<String, usize>,
}

impl Ordered {
    fn set(&mut self, name: &str, value: String) {
        match self.places.get(name) {
            Some(place) => self.entries[*place].1 = value,
            None => {
                self.places.insert(name.to_owned(), self.entries.len());
                self.entries.push((name.to_owned(), value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|place| self.entries[*place].1.as_str())
    }
}

fn from_source(source: &EnvFromSource, sources: &dyn Sources, made: &mut Ordered) -> Result<(), EnvError> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let data = if let Some(reference) = &source.config_map_ref {
        match sources.config_map(&reference.name) {
            None if reference.optional == Some(true) => return Ok(()),
            None => return Err(EnvError::ConfigMap(reference.name.clone())),
            Some(data) => data,
        }
    } else if let Some(reference) = &source.secret_ref {
        match sources.secret(&reference.name) {
            None if reference.optional == Some(true) => return Ok(()),
            None => return Err(EnvError::Secret(reference.name.clone())),
            Some(data) => data,
        }
    } else {
        return Ok(());
    };
    for (key, value) in data {
        let name = format!("{prefix}{key}");
        // A name that no process could read is left out, as upstream does.
        if !name.is_empty() && !name.contains(['=', '\0']) {
            made.set(&name, String::from_utf8_lossy(value).into_owned());
        }
    }
    Ok(())
}

/// The value, or `None` when an optional reference leads nowhere.
fn value_of(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    sources: &dyn Sources,
    around: &Surroundings,
    made: &Ordered,
    services: &BTreeMap<String, String>,
) -> Result<Option<String>, EnvError> {
    let Some(from) = &variable.value_from else {
        let text = variable.value.as_deref().unwrap_or_default();
        return Ok(Some(expand(text, |name| made.get(name).or_else(|| services.get(name).map(String::as_str)))));
    };
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let missing = |kind, name: &str, key: &str| EnvError::Key {
        kind,
        namespace: namespace.clone(),
        name: name.to_owned(),
        key: key.to_owned(),
    };
    if let Some(reference) = &from.field_ref {
        Ok(Some(downward::field(pod, &reference.field_path, around)?))
    } else if let Some(reference) = &from.resource_field_ref {
        Ok(Some(downward::resource(pod, Some(container), reference, around)?))
    } else if let Some(reference) = &from.config_map_key_ref {
        let found = sources.config_map(&reference.name);
        if reference.optional == Some(true) {
            return Ok(found.and_then(|data| data.get(&reference.key)).map(text));
        }
        let data = found.ok_or_else(|| EnvError::ConfigMap(reference.name.clone()))?;
        data.get(&reference.key)
            .map(text)
            .map(Some)
            .ok_or_else(|| missing("ConfigMap", &reference.name, &reference.key))
    } else if let Some(reference) = &from.secret_key_ref {
        let found = sources.secret(&reference.name);
        if reference.optional == Some(true) {
            return Ok(found.and_then(|data| data.get(&reference.key)).map(text));
        }
        let data = found.ok_or_else(|| EnvError::Secret(reference.name.clone()))?;
        data.get(&reference.key).map(text).map(Some).ok_or_else(|| missing("Secret", &reference.name, &reference.key))
    } else {
        Ok(Some(String::new()))
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Replaces `$(NAME)`; `$$` is a dollar sign; a name that is not known stays as it is written.
pub fn expand<'a>(input: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Variables for the services a pod of `namespace` sees: its own namespace's and the API's. With `links` off only the API's.
pub fn service_variables<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let (Some(name), Some(of)) = (service.metadata.name.as_deref(), service.metadata.namespace.as_deref()) else {
            continue;
        };
        let is_api = of == "default" && name == "kubernetes";
        if (links && of == namespace) || (is_api && !chosen.contains_key(name)) {
            chosen.insert(name, service);
        }
    }
    let mut variables = BTreeMap::new();
    for (name, service) in chosen {
        add_service(name, service, &mut variables);
    }
    variables
}

fn add_service(name: &str, service: &Service, out: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None");
    let ports = spec.ports.as_deref().unwrap_or_default();
    let (Some(ip), Some(first)) = (ip, ports.first()) else { return };
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let name = name.to_uppercase().replace('-', "_");
    out.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    out.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let port_name = port_name.to_uppercase().replace('-', "_");
            out.insert(format!("{name}_SERVICE_PORT_{port_name}"), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let (number, lower) = (port.port, protocol.to_lowercase());
        let url = format!("{lower}://{host}:{number}");
        let prefix = format!("{name}_PORT_{number}_{protocol}");
        out.entry(format!("{name}_PORT")).or_insert_with(|| url.clone());
        out.insert(format!("{prefix}_PROTO"), lower);
        out.insert(format!("{prefix}_PORT"), number.to_string());
        out.insert(format!("{prefix}_ADDR"), ip.to_owned());
        out.insert(prefix, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    struct Fixed(Data, Data);
    impl Sources for Fixed {
        fn config_map(&self, name: &str) -> Option<&Data> {
            (name == "config").then_some(&self.0)
        }
        fn secret(&self, name: &str) -> Option<&Data> {
            (name == "secret").then_some(&self.1)
        }
    }

    fn made(container: Value, services: &[(&str, &str)]) -> Result<String, EnvError> {
        let pod: Pod = serde_json::from_value(
            json!({ "metadata": { "name": "p", "namespace": "ns" }, "spec": { "containers": [] } }),
        )
        .expect("pod");
        let container: Container = serde_json::from_value(container).expect("container");
        let data = |entries: &[(&str, &'static str)]| {
            entries.iter().map(|(k, v)| ((*k).to_owned(), Bytes::from(*v))).collect()
        };
        let sources = Fixed(data(&[("color", "red"), ("a=b", "never")]), data(&[("password", "s3cret")]));
        let services = services.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let variables = environment(&pod, &container, &services, &sources, &Surroundings::default())?;
        Ok(variables.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn sources_in_order_and_later_ones_win() {
        let container = json!({ "name": "c",
            "envFrom": [{ "configMapRef": { "name": "config" }, "prefix": "C_" }, { "secretRef": { "name": "absent", "optional": true } }],
            "env": [
                { "name": "A", "value": "1" },
                { "name": "B", "value": "$(A)$(C_color)$(DB_SERVICE_HOST)$(NONE)$$(A)$" },
                { "name": "N", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                { "name": "P", "valueFrom": { "secretKeyRef": { "name": "secret", "key": "password" } } },
                { "name": "Q", "valueFrom": { "configMapKeyRef": { "name": "config", "key": "no", "optional": true } } },
                { "name": "DB_SERVICE_PORT", "value": "mine" },
            ] });
        let services = [("DB_SERVICE_HOST", "10.96.0.7"), ("DB_SERVICE_PORT", "5432")];
        let want =
            "C_color=red A=1 B=1red10.96.0.7$(NONE)$(A)$ N=p P=s3cret DB_SERVICE_PORT=mine DB_SERVICE_HOST=10.96.0.7";
        assert_eq!(made(container, &services).as_deref(), Ok(want));
    }

    #[test]
    fn what_is_missing_is_named() {
        let from = |value: Value| made(json!({ "name": "c", "env": [{ "name": "X", "valueFrom": value }] }), &[]);
        let error = from(json!({ "configMapKeyRef": { "name": "gone", "key": "k" } })).expect_err("missing");
        assert_eq!(error.to_string(), "configmap \"gone\" not found");
        let error = from(json!({ "secretKeyRef": { "name": "secret", "key": "k" } })).expect_err("missing");
        assert_eq!(error.to_string(), "couldn't find key k in Secret ns/secret");
        assert!(made(json!({ "name": "c", "envFrom": [{ "secretRef": { "name": "gone" } }] }), &[]).is_err());
    }

    #[test]
    fn both_forms_of_service_variables() {
        let service = |namespace: &str, name: &str, ip: &str| -> Service {
            serde_json::from_value(
                json!({ "metadata": { "name": name, "namespace": namespace }, "spec": { "clusterIP": ip,
                "ports": [{ "name": "http-web", "port": 80 }, { "port": 53, "protocol": "UDP" }] } }),
            )
            .expect("service")
        };
        let services = [
            service("ns", "my-db", "10.96.0.7"),
            service("ns", "headless", "None"),
            service("other", "x", "10.96.0.8"),
            service("default", "kubernetes", "10.96.0.1"),
        ];
        let variables = service_variables(&services, "ns", true);
        for (name, value) in [
            ("MY_DB_SERVICE_HOST", "10.96.0.7"),
            ("MY_DB_SERVICE_PORT", "80"),
            ("MY_DB_SERVICE_PORT_HTTP_WEB", "80"),
            ("MY_DB_PORT", "tcp://10.96.0.7:80"),
            ("MY_DB_PORT_53_UDP", "udp://10.96.0.7:53"),
            ("MY_DB_PORT_53_UDP_PROTO", "udp"),
            ("MY_DB_PORT_80_TCP_ADDR", "10.96.0.7"),
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ] {
            assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!variables.keys().any(|name| name.starts_with("HEADLESS") || name.starts_with('X')));
        let only_api = service_variables(&services, "ns", false);
        assert!(only_api.keys().all(|name| name.starts_with("KUBERNETES_")) && !only_api.is_empty());
    }

    #[test]
    fn expansion_survives_odd_text() {
        let none = |_: &str| None;
        for text in ["$", "$(", "$()", "$(A", "a$b", "é$(é)é"] {
            assert_eq!(expand(text, none), text);
        }
        assert_eq!(expand("$$$(A)$$", |_| Some("x")), "$x$");
    }
}
