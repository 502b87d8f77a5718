//! What clients look for in the documents.

use super::*;

fn document(document: &Document) -> Value {
    serde_json::from_slice(&document.plain()).unwrap()
}

/// All `$ref` below a value.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, found)),
        _ => (),
    }
}

#[test]
fn the_index_names_every_version_with_its_hash() {
    let index = v3_index();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(url, format!("/openapi/v3/apis/apps/v1?hash={}", v3("apps", "v1").unwrap().hash));
    assert!(index["paths"]["api/v1"].is_object());
    assert!(v3("apps", "v2").is_none() && v3_hash("apps", "v2").is_none());
}

#[test]
fn patch_operations_offer_what_kubectl_looks_for() {
    for (group, version) in versions() {
        let body = document(&v3(group, version).unwrap());
        for kind in kinds::in_version(group, version).into_iter().filter(|k| k.allows("patch")) {
            let found = body["paths"].as_object().unwrap().values().any(|path| {
                let gvk = &path["patch"]["x-kubernetes-group-version-kind"];
                let has = |name: &str| {
                    path["patch"]["parameters"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|p| p["name"] == name && p["in"] == "query")
                };
                gvk["kind"] == kind.kind && gvk["group"] == kind.group && has("fieldValidation") && has("dryRun")
            });
            assert!(found, "{kind}");
        }
    }
}

#[test]
fn every_reference_has_its_component() {
    let check = |body: &Value, place: &str, components: &Value| {
        let mut found = Vec::new();
        references(body, &mut found);
        assert!(found.len() > 10);
        for reference in found {
            let name = reference.strip_prefix(place).unwrap();
            assert!(components.get(name).is_some(), "{name}");
        }
    };
    for (group, version) in versions() {
        let body = document(&v3(group, version).unwrap());
        check(&body, "#/components/schemas/", &body["components"]["schemas"]);
    }
    let body = document(&v2_json());
    check(&body, "#/definitions/", &body["definitions"]);
}

#[test]
fn schemas_carry_marks_and_descriptions() {
    let body = document(&v3("apps", "v1").unwrap());
    let schemas = &body["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
    );
    assert!(deployment["description"].as_str().unwrap().starts_with("Deployment enables"));
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert!(containers["description"].is_string());
    assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["required"], json!(["containers"]));
    let volume = &schemas["io.k8s.api.core.v1.Volume"]["properties"];
    assert!(volume.get("emptyDir").is_some() && volume.get("volumeSource").is_none());
}

#[test]
fn most_components_are_described() {
    let body = document(&v2_json());
    let definitions = body["definitions"].as_object().unwrap();
    let bare: Vec<&String> =
        definitions.iter().filter(|(_, d)| d.get("description").is_none()).map(|(n, _)| n).collect();
    assert!(bare.len() * 20 < definitions.len(), "{} of {}: {bare:?}", bare.len(), definitions.len());
}

#[test]
fn documents_stay_small_in_memory() {
    let kept: usize = versions().map(|(g, v)| v3(g, v).unwrap().gzip.len()).sum();
    let v2 = v2_json().gzip.len() + v2_protobuf().gzip.len();
    assert!(kept < 2 << 20 && v2 < 2 << 20, "{kept} {v2}");
}

#[test]
fn operation_ids_are_unique() {
    let body = document(&v2_json());
    let mut ids: Vec<&str> = Vec::new();
    for path in body["paths"].as_object().unwrap().values() {
        ids.extend(path.as_object().unwrap().values().filter_map(|o| o.get("operationId")?.as_str()));
    }
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    assert!(
        ids.contains(&"listAppsV1NamespacedDeployment") && ids.contains(&"listCoreV1PodForAllNamespaces"),
        "{ids:?}"
    );
}
