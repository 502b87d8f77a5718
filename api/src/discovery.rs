//! What the server serves, as the documents below `/api` and `/apis` say it: plain lists and the aggregated form.
//!
//! Pure functions of the kinds table. Clients pick the form by media type; which one they get must be exactly the version
//! they asked for (kubectl up to 1.29 understands only `v2beta1`).

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::kinds::{self, Kind, Subresource};

/// Group of the aggregated documents.
pub const AGGREGATED_GROUP: &str = "apidiscovery.k8s.io";

/// A version of the aggregated form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregated {
    V2,
    V2Beta1,
}

impl Aggregated {
    /// By the `v=` parameter of the media type.
    pub fn parse(version: &str) -> Option<Self> {
        match version {
            "v2" => Some(Self::V2),
            "v2beta1" => Some(Self::V2Beta1),
            _ => None,
        }
    }

    pub fn version(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }

    /// The media type to answer with.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

/// `GET /api`. `server_address` is `host:port` as clients reach it.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `GET /apis`
pub fn api_group_list() -> Value {
    let groups: Vec<Value> = kinds::groups().iter().map(|(group, versions)| group_body(group, versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/GROUP`; `None` if there is no such group.
pub fn api_group(group: &str) -> Option<Value> {
    let (group, versions) = kinds::groups().into_iter().find(|(name, _)| *name == group)?;
    let mut document = json!({"kind": "APIGroup", "apiVersion": "v1"});
    if let (Value::Object(document), Value::Object(body)) = (&mut document, group_body(group, &versions)) {
        document.extend(body);
    }
    Some(document)
}

fn group_body(group: &str, versions: &[&str]) -> Value {
    let entry = |version: &&str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let mut body = json!({"name": group, "versions": versions.iter().map(entry).collect::<Vec<_>>()});
    if let Some(preferred) = versions.first() {
        body["preferredVersion"] = entry(preferred);
    }
    body
}

/// `GET /api/v1`, `GET /apis/GROUP/VERSION`; `None` if nothing is served there.
pub fn api_resource_list(group: &str, version: &str) -> Option<Value> {
    let kinds = kinds::in_version(group, version);
    let group_version = kinds.first()?.api_version();
    let mut resources = Vec::new();
    for kind in kinds {
        resources.push(resource(kind));
        resources.extend(sorted(kind.subresources).map(|sub| subresource(kind, sub)));
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    }))
}

fn sorted(subresources: &'static [Subresource]) -> impl Iterator<Item = &'static Subresource> {
    let mut sorted: Vec<_> = subresources.iter().collect();
    sorted.sort_by_key(|sub| sub.name);
    sorted.into_iter()
}

fn resource(kind: &Kind) -> Value {
    let mut entry = json!({
        "name": kind.resource, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
        "verbs": kind.verbs,
    });
    for (key, names) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
        if !names.is_empty() {
            entry[key] = json!(names);
        }
    }
    if kind.is_stored() {
        entry["storageVersionHash"] = storage_version_hash(kind).into();
    }
    entry
}

/// First eight bytes of a hash over the kind in its storage version.
fn storage_version_hash(kind: &Kind) -> String {
    // Both views of an event, and both of an autoscaler, are stored as one.
    let (group, version) = match (kind.group, kind.kind) {
        ("events.k8s.io", "Event") => ("", "v1"),
        ("autoscaling", "HorizontalPodAutoscaler") => ("autoscaling", "v2"),
        (group, _) => (group, kind.version),
    };
    let digest = Sha256::digest(format!("{group}/{version}/{}", kind.kind));
    STANDARD.encode(&digest[..8])
}

fn subresource(parent: &Kind, sub: &Subresource) -> Value {
    let mut entry = Map::new();
    entry.insert("name".into(), format!("{}/{}", parent.resource, sub.name).into());
    entry.insert("singularName".into(), "".into());
    entry.insert("namespaced".into(), parent.namespaced.into());
    if (sub.group, sub.version) != (parent.group, parent.version) {
        entry.insert("group".into(), sub.group.into());
        entry.insert("version".into(), sub.version.into());
    }
    entry.insert("kind".into(), sub.kind.into());
    entry.insert("verbs".into(), json!(sub.verbs));
    Value::Object(entry)
}

/// The core group in aggregated form (`GET /api`).
pub fn aggregated_core(form: Aggregated) -> Value {
    aggregated(form, vec![("", vec!["v1"])])
}

/// All other groups in aggregated form (`GET /apis`).
pub fn aggregated_groups(form: Aggregated) -> Value {
    aggregated(form, kinds::groups())
}

fn aggregated(form: Aggregated, groups: Vec<(&'static str, Vec<&'static str>)>) -> Value {
    let items: Vec<Value> = groups.iter().map(|(group, versions)| aggregated_group(group, versions)).collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("{AGGREGATED_GROUP}/{}", form.version()),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &str, versions: &[&str]) -> Value {
    let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> =
                kinds::in_version(group, version).into_iter().map(aggregated_resource).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(kind: &'static Kind) -> Value {
    let mut entry = json!({
        "resource": kind.resource,
        "responseKind": {"group": "", "version": "", "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    for (key, names) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
        if !names.is_empty() {
            entry[key] = json!(names);
        }
    }
    let subresources: Vec<Value> = sorted(kind.subresources).map(|sub| aggregated_subresource(kind, sub)).collect();
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

/// Group and version stand only where they differ from the parent's.
fn aggregated_subresource(parent: &Kind, sub: &Subresource) -> Value {
    let same = (sub.group, sub.version) == (parent.group, parent.version);
    let (group, version) = if same { ("", "") } else { (sub.group, sub.version) };
    json!({
        "subresource": sub.name,
        "responseKind": {"group": group, "version": version, "kind": sub.kind},
        "verbs": sub.verbs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_carry_upstreams_hashes() {
        let list = api_resource_list("", "v1").unwrap();
        let hash = |name: &str| {
            let found = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap();
            found["storageVersionHash"].clone()
        };
        for (name, want) in [("configmaps", "qFsyl6wFWjQ="), ("pods", "xPOwRZ+Yhw8="), ("services", "0/CO1lhkEBI=")] {
            assert_eq!(hash(name), want, "{name}");
        }
        assert_eq!(hash("bindings"), Value::Null);
    }

    #[test]
    fn subresources_name_a_foreign_kind_with_its_group() {
        let list = api_resource_list("", "v1").unwrap();
        let find = |name: &str| list["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap();
        assert_eq!(
            (&find("pods/eviction")["group"], &find("pods/eviction")["version"]),
            (&json!("policy"), &json!("v1"))
        );
        assert!(find("pods/log").get("group").is_none());
        let scale = api_resource_list("apps", "v1").unwrap();
        assert!(
            scale["resources"]
                .as_array()
                .unwrap()
                .iter()
                .any(|r| r["name"] == "deployments/scale" && r["group"] == "autoscaling" && r["kind"] == "Scale")
        );
    }

    #[test]
    fn groups_prefer_their_first_version() {
        let group = api_group("autoscaling").unwrap();
        assert_eq!(group["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(group["versions"].as_array().unwrap().len(), 2);
        assert!(api_group("nope").is_none() && api_resource_list("apps", "v2").is_none());
        assert_eq!(api_group_list()["groups"][0]["name"], "apiregistration.k8s.io");
    }

    #[test]
    fn the_aggregated_form_says_the_version_asked_for() {
        for form in [Aggregated::V2, Aggregated::V2Beta1] {
            let document = aggregated_groups(form);
            assert_eq!(document["apiVersion"], format!("apidiscovery.k8s.io/{}", form.version()));
            assert_eq!(Aggregated::parse(form.version()), Some(form));
        }
        let core = aggregated_core(Aggregated::V2);
        let resources = core["items"][0]["versions"][0]["resources"].as_array().unwrap();
        assert_eq!(resources.len(), 17);
        let pods = resources.iter().find(|r| r["resource"] == "pods").unwrap();
        assert_eq!(pods["subresources"].as_array().unwrap().len(), 10);
        assert_eq!((&pods["scope"], &pods["shortNames"]), (&json!("Namespaced"), &json!(["po"])));
    }
}
