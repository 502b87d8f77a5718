//! What a pod names: the secrets, config maps, claims and the account that its node needs to run it.
//!
//! The one list of the places where a pod can name something. The node authorizer grants a node what its pods name
//! ([`super::node`]); admission refuses pods of a node's own making that name anything
//! ([`crate::admission`]). Always holds: what one side grants the other can refuse, because both come here.

use std::borrow::Cow;

use serde_json::Value;

use super::live::{items, name_of, text};

/// What sort of object is named. All live in the pod's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
}

use Reference::{Claim, ConfigMap, Secret, ServiceAccount};

/// Places in the pod itself.
const POD: &[(Reference, &str)] =
    &[(ServiceAccount, "/spec/serviceAccountName"), (ServiceAccount, "/spec/serviceAccount")];

/// Places in one volume.
const VOLUME: &[(Reference, &str)] = &[
    (Secret, "/secret/secretName"),
    (Secret, "/csi/nodePublishSecretRef/name"),
    (Secret, "/iscsi/secretRef/name"),
    (Secret, "/cephfs/secretRef/name"),
    (Secret, "/cinder/secretRef/name"),
    (Secret, "/rbd/secretRef/name"),
    (Secret, "/flexVolume/secretRef/name"),
    (Secret, "/scaleIO/secretRef/name"),
    (Secret, "/storageos/secretRef/name"),
    (Secret, "/azureFile/secretName"),
    (ConfigMap, "/configMap/name"),
    (Claim, "/persistentVolumeClaim/claimName"),
];

/// Places in one source of a projected volume.
const SOURCE: &[(Reference, &str)] = &[(Secret, "/secret/name"), (ConfigMap, "/configMap/name")];

/// Places in one entry of `env`, and in one of `envFrom`.
const ENV: &[(Reference, &str)] =
    &[(Secret, "/valueFrom/secretKeyRef/name"), (ConfigMap, "/valueFrom/configMapKeyRef/name")];
const ENV_FROM: &[(Reference, &str)] = &[(Secret, "/secretRef/name"), (ConfigMap, "/configMapRef/name")];

const CONTAINERS: [&str; 3] = ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"];

/// Everything the pod names, in no particular order, repetitions included. Empty names name nothing.
pub(crate) fn of(pod: &Value) -> impl Iterator<Item = (Reference, Cow<'_, str>)> {
    let containers = || CONTAINERS.into_iter().flat_map(move |list| items(pod, list));
    let volumes = || items(pod, "/spec/volumes");
    let named = named(pod, POD)
        .chain(items(pod, "/spec/imagePullSecrets").map(|secret| (Secret, text(secret, "/name"))))
        .chain(volumes().flat_map(|volume| named(volume, VOLUME)))
        .chain(volumes().flat_map(|volume| items(volume, "/projected/sources")).flat_map(|one| named(one, SOURCE)))
        .chain(containers().flat_map(|container| items(container, "/env")).flat_map(|entry| named(entry, ENV)))
        .chain(containers().flat_map(|one| items(one, "/envFrom")).flat_map(|entry| named(entry, ENV_FROM)));
    let made = volumes()
        .filter(|volume| volume.get("ephemeral").is_some_and(|claim| !claim.is_null()))
        // The claim of an ephemeral volume is made for the pod, under a composed name.
        .map(move |volume| (Claim, Cow::Owned(format!("{}-{}", name_of(pod), text(volume, "/name")))));
    named.filter(|(_, name)| !name.is_empty()).map(|(reference, name)| (reference, Cow::Borrowed(name))).chain(made)
}

fn named<'a>(
    object: &'a Value,
    places: &'static [(Reference, &'static str)],
) -> impl Iterator<Item = (Reference, &'a str)> + use<'a> {
    places.iter().map(|(reference, pointer)| (*reference, text(object, pointer)))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// Parts of a pod's spec that name one object each, called `x` or, for the claim of an ephemeral volume, `p-x`.
    pub(crate) fn examples() -> Vec<(Reference, Value)> {
        let volume = |source: Value| {
            let mut volume = source;
            volume["name"] = json!("x");
            json!({ "volumes": [volume] })
        };
        let secret_ref = |kind: &str| volume(json!({ kind: { "secretRef": { "name": "x" } } }));
        let mut all = vec![
            (ServiceAccount, json!({ "serviceAccountName": "x" })),
            (ServiceAccount, json!({ "serviceAccount": "x" })),
            (Secret, json!({ "imagePullSecrets": [{ "name": "x" }] })),
            (Secret, volume(json!({ "secret": { "secretName": "x" } }))),
            (Secret, volume(json!({ "csi": { "nodePublishSecretRef": { "name": "x" } } }))),
            (Secret, volume(json!({ "azureFile": { "secretName": "x" } }))),
            (Secret, volume(json!({ "projected": { "sources": [{ "secret": { "name": "x" } }] } }))),
            (ConfigMap, volume(json!({ "configMap": { "name": "x" } }))),
            (ConfigMap, volume(json!({ "projected": { "sources": [{ "configMap": { "name": "x" } }] } }))),
            (Claim, volume(json!({ "persistentVolumeClaim": { "claimName": "x" } }))),
            (Claim, volume(json!({ "ephemeral": {} }))),
        ];
        for kind in ["iscsi", "cephfs", "cinder", "rbd", "flexVolume", "scaleIO", "storageos"] {
            all.push((Secret, secret_ref(kind)));
        }
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            let container = |part: Value| json!({ list: [part] });
            let env = |source: &str| container(json!({ "env": [{ "valueFrom": { source: { "name": "x" } } }] }));
            let env_from = |source: &str| container(json!({ "envFrom": [{ source: { "name": "x" } }] }));
            all.extend([(Secret, env("secretKeyRef")), (Secret, env_from("secretRef"))]);
            all.extend([(ConfigMap, env("configMapKeyRef")), (ConfigMap, env_from("configMapRef"))]);
        }
        all
    }

    #[test]
    fn every_place_is_found() {
        for (reference, spec) in examples() {
            let pod = json!({ "metadata": { "name": "p" }, "spec": spec });
            let found: Vec<(Reference, String)> = of(&pod).map(|(one, name)| (one, name.into_owned())).collect();
            let name = if spec.pointer("/volumes/0/ephemeral").is_some() { "p-x" } else { "x" };
            assert_eq!(found, [(reference, name.to_owned())], "{spec}");
        }
    }

    #[test]
    fn what_names_nothing_is_nothing() {
        let pod = json!({ "metadata": { "name": "p" }, "spec": {
            "imagePullSecrets": [{}], "serviceAccountName": "",
            "containers": [{ "env": [{ "name": "a", "value": "b" }] }],
            "volumes": [{ "name": "x", "emptyDir": {} }, { "name": "y", "ephemeral": null }, 7] } });
        assert_eq!(of(&pod).count(), 0);
        assert_eq!(of(&Value::Null).count(), 0);
    }
}
