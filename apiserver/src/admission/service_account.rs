//! ServiceAccount: every pod has an account of its namespace, and by default its token, the cluster's CA and the name of
//! its namespace mounted where clients look for them.

use std::sync::Arc;
use std::time::Duration;

use pintle_api::status::Status;
use pintle_base::{clock, rng};
use serde_json::{Value, json};

use super::{Chain, child, forbidden, is_mirror_pod, list};
use crate::authz::live::{SERVICE_ACCOUNTS, get_or_fresh, items, text};
use crate::authz::references::{self, Reference};
use crate::types::Review;

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour and seven seconds: tells tokens of this volume from others in logs. Upstream's figure.
const TOKEN_SECONDS: i64 = 3607;
const FILE_MODE: i64 = 0o644;
/// The default account of a new namespace appears shortly after it; a pod that comes first waits this often, this long.
const DEFAULT_TRIES: u32 = 10;
const DEFAULT_PAUSE: Duration = Duration::from_millis(100);
/// Letters of the volume's suffix: those of generated names.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

pub(super) async fn admit(chain: &Chain, review: &mut Review<'_>) -> Result<(), Status> {
    if !review.subresource.is_empty() {
        return Ok(());
    }
    if is_mirror_pod(&review.object) {
        return check_mirror(review);
    }
    let given = text(&review.object, "/spec/serviceAccountName").to_owned();
    let name = if given.is_empty() { DEFAULT.to_owned() } else { given };
    let account = find(chain, review.namespace, &name).await.ok_or_else(|| {
        let namespace = review.namespace;
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        forbidden(review, &why)
    })?;
    let Some(spec) = child(&mut review.object, "spec") else { return Ok(()) };
    spec["serviceAccountName"] = name.as_str().into();
    spec["serviceAccount"] = name.as_str().into();
    inherit_pull_secrets(spec, &account);
    if wants_token(spec, &account) {
        mount_token(spec);
    }
    Ok(())
}

/// Whoever reports it, a mirror pod has no identity of its own and gets at no secret.
fn check_mirror(review: &Review<'_>) -> Result<(), Status> {
    for (reference, _) in references::of(&review.object) {
        match reference {
            Reference::ServiceAccount => {
                return Err(forbidden(review, "a mirror pod may not reference service accounts"));
            }
            Reference::Secret => return Err(forbidden(review, "a mirror pod may not reference secrets")),
            Reference::ConfigMap | Reference::Claim => (),
        }
    }
    let token = items(&review.object, "/spec/volumes")
        .flat_map(|volume| items(volume, "/projected/sources"))
        .any(|source| source.get("serviceAccountToken").is_some_and(|token| !token.is_null()));
    if token {
        return Err(forbidden(review, "a mirror pod may not use service account token volume projections"));
    }
    Ok(())
}

async fn find(chain: &Chain, namespace: &str, name: &str) -> Option<Arc<Value>> {
    let tries = if name == DEFAULT { DEFAULT_TRIES } else { 1 };
    for attempt in 1..=tries {
        let account = match attempt {
            1 => get_or_fresh(&*chain.live, SERVICE_ACCOUNTS, namespace, name).await,
            _ => chain.live.get(SERVICE_ACCOUNTS, namespace, name),
        };
        if account.is_some() || attempt == tries {
            return account;
        }
        clock::sleep(DEFAULT_PAUSE).await;
    }
    None
}

fn inherit_pull_secrets(spec: &mut Value, account: &Value) {
    if items(spec, "/imagePullSecrets").next().is_none()
        && let Some(secrets) = account.get("imagePullSecrets").filter(|secrets| secrets.is_array())
    {
        spec["imagePullSecrets"] = secrets.clone();
    }
}

/// The pod's word counts before the account's; without either it is yes.
fn wants_token(spec: &Value, account: &Value) -> bool {
    let word = |object: &Value| object.get("automountServiceAccountToken").and_then(Value::as_bool);
    word(spec).or_else(|| word(account)).unwrap_or(true)
}

fn mount_token(spec: &mut Value) {
    let existing = items(spec, "/volumes").find(|volume| is_token_volume(volume));
    let (name, exists) = match existing {
        Some(volume) => (text(volume, "/name").to_owned(), true),
        None => (free_name(spec), false),
    };
    let mut mounted = false;
    for containers in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(containers).and_then(Value::as_array_mut) else { continue };
        for container in containers.iter_mut() {
            if items(container, "/volumeMounts").any(|mount| text(mount, "/mountPath") == MOUNT_PATH) {
                continue;
            }
            if let Some(mounts) = list(container, "volumeMounts") {
                mounts.push(json!({ "name": name, "readOnly": true, "mountPath": MOUNT_PATH }));
                mounted = true;
            }
        }
    }
    if mounted
        && !exists
        && let Some(volumes) = list(spec, "volumes")
    {
        volumes.push(volume(&name));
    }
}

fn is_token_volume(volume: &Value) -> bool {
    text(volume, "/name").starts_with(VOLUME_PREFIX)
        && items(volume, "/projected/sources").any(|source| source.get("serviceAccountToken").is_some())
}

fn free_name(spec: &Value) -> String {
    loop {
        let letter = |_| char::from(LETTERS[usize::try_from(rng::below(LETTERS.len() as u64)).unwrap_or(0)]);
        let name = format!("{VOLUME_PREFIX}{}", (0..5).map(letter).collect::<String>());
        if items(spec, "/volumes").all(|volume| text(volume, "/name") != name) {
            return name;
        }
    }
}

fn volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "sources": [
                { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [
                    { "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }
                ] } },
            ],
            "defaultMode": FILE_MODE,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{chain, creation, kind};
    use super::*;
    use crate::authz::live::tests::Fixed;
    use crate::types::UserInfo;

    fn live() -> Fixed {
        let account = |name: &str, automount: Option<bool>| {
            json!({"metadata": {"namespace": "a", "name": name}, "automountServiceAccountToken": automount,
                   "imagePullSecrets": [{"name": "registry"}]})
        };
        Fixed::default()
            .with(SERVICE_ACCOUNTS, account("default", None))
            .with(SERVICE_ACCOUNTS, account("quiet", Some(false)))
    }

    async fn admitted(spec: Value) -> Result<Value, Status> {
        let (pod, user) = (json!({"metadata": {"namespace": "a", "name": "p"}, "spec": spec}), UserInfo::internal());
        let mut review = creation(kind("", "pods"), &pod, &user);
        admit(&chain(live()), &mut review).await?;
        Ok(review.object["spec"].clone())
    }

    #[tokio::test]
    async fn a_plain_pod_gets_account_token_and_pull_secrets() {
        let spec =
            admitted(json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]})).await.expect("ok");
        assert_eq!((&spec["serviceAccountName"], &spec["serviceAccount"]), (&json!("default"), &json!("default")));
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
        let name = text(&spec, "/volumes/0/name");
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5);
        for container in ["/containers/0", "/initContainers/0"] {
            let mount = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
            assert_eq!(spec.pointer(container).expect("container")["volumeMounts"], json!([mount]));
        }
        assert_eq!(
            spec.pointer("/volumes/0/projected/sources/0/serviceAccountToken/expirationSeconds"),
            Some(&json!(3607))
        );
    }

    #[tokio::test]
    async fn admission_of_an_admitted_pod_changes_nothing() {
        let once = admitted(json!({"containers": [{"name": "c"}]})).await.expect("ok");
        assert_eq!(admitted(once.clone()).await.expect("ok"), once);
    }

    #[tokio::test]
    async fn who_does_not_want_a_token_gets_none() {
        for spec in [
            json!({"containers": [{}], "automountServiceAccountToken": false}),
            json!({"containers": [{}], "serviceAccountName": "quiet"}),
            json!({"containers": [{"volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]}),
        ] {
            assert!(admitted(spec).await.expect("ok").get("volumes").is_none());
        }
        let loud = json!({"containers": [{}], "serviceAccountName": "quiet", "automountServiceAccountToken": true});
        assert!(admitted(loud).await.expect("ok").get("volumes").is_some());
    }

    #[tokio::test]
    async fn a_mirror_pod_has_no_identity_and_no_secrets() {
        let mirrored = async |spec: Value| {
            let annotations = json!({"kubernetes.io/config.mirror": "x"});
            let metadata = json!({"namespace": "a", "name": "p", "annotations": annotations});
            let (pod, user) = (json!({"metadata": metadata, "spec": spec}), UserInfo::internal());
            admit(&chain(live()), &mut creation(kind("", "pods"), &pod, &user)).await
        };
        for (reference, spec) in references::tests::examples() {
            let want = match reference {
                Reference::ServiceAccount => Some("a mirror pod may not reference service accounts"),
                Reference::Secret => Some("a mirror pod may not reference secrets"),
                Reference::ConfigMap | Reference::Claim => None,
            };
            let got = mirrored(spec.clone()).await.err().map(|status| status.message.clone());
            assert_eq!(got, want.map(|why| format!(r#"pods "p" is forbidden: {why}"#)), "{spec}");
        }
        let token = json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]});
        let refused = mirrored(token).await.expect_err("refused");
        assert!(refused.message.ends_with("may not use service account token volume projections"), "{refused}");
    }

    #[tokio::test]
    async fn an_unknown_account_is_named_in_the_refusal() {
        let refused = admitted(json!({"serviceAccountName": "ghost"})).await.expect_err("refused");
        assert_eq!(
            refused.message,
            r#"pods "p" is forbidden: error looking up service account a/ghost: serviceaccount "ghost" not found"#
        );
    }
}
