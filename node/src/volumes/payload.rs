//! Which files a projected volume holds: ConfigMap and Secret keys, downward fields, tokens. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection};

use crate::limits;
use crate::pods::downward::{self, DownwardError, Surroundings};
use crate::pods::env::{Data, Sources};

/// Mode of files whose spec names none.
const MODE: i32 = 0o644;

/// One file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    pub owner: Option<u32>,
}

/// All files of a volume by their path inside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    pub files: BTreeMap<String, File>,
}

/// A token a projected volume asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenWish {
    pub audience: String,
    pub seconds: i64,
}

/// Why files cannot be made; the texts are what users of Kubernetes know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("configmap \"{0}\" not found")]
    ConfigMap(String),
    #[error("secret \"{0}\" not found")]
    Secret(String),
    #[error("{kind} references non-existent key: {key}")]
    Key { kind: &'static str, key: String },
    #[error("service account token is not there yet")]
    Token,
    #[error("volume source {0} is not supported on this node")]
    Unsupported(&'static str),
    #[error("files are larger than {limit} bytes together")]
    TooLarge { limit: usize },
    #[error(transparent)]
    Downward(#[from] DownwardError),
}

/// The tokens that `volume` needs.
pub fn token_wishes(volume: &Volume) -> Vec<TokenWish> {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources
        .filter_map(|source| source.service_account_token.as_ref())
        .map(|token| TokenWish {
            audience: token.audience.clone().unwrap_or_default(),
            seconds: token.expiration_seconds.unwrap_or(3600),
        })
        .collect()
}

/// What is known while files are made.
pub struct Known<'a> {
    pub sources: &'a dyn Sources,
    pub around: &'a Surroundings,
    pub tokens: &'a BTreeMap<TokenWish, String>,
}

/// The files of `volume`; `None` if its files are not the agent's to write.
pub fn payload(pod: &Pod, volume: &Volume, known: &Known<'_>) -> Result<Option<Payload>, PayloadError> {
    let mut made = Payload::default();
    if let Some(source) = &volume.config_map {
        let data = config_map(known, &source.name, source.optional)?;
        keys("configmap", data, source.items.as_deref(), source.default_mode, source.optional, &mut made)?;
    } else if let Some(source) = &volume.secret {
        let data = secret(known, source.secret_name.as_deref().unwrap_or_default(), source.optional)?;
        keys("secret", data, source.items.as_deref(), source.default_mode, source.optional, &mut made)?;
    } else if let Some(source) = &volume.downward_api {
        for item in source.items.iter().flatten() {
            downward_file(pod, item, source.default_mode, known, &mut made)?;
        }
    } else if let Some(source) = &volume.projected {
        for part in source.sources.iter().flatten() {
            projection(pod, part, source.default_mode, known, &mut made)?;
        }
    } else {
        return Ok(None);
    }
    let size: usize = made.files.values().map(|file| file.data.len()).sum();
    if size > limits::PROJECTED_BYTES {
        return Err(PayloadError::TooLarge { limit: limits::PROJECTED_BYTES });
    }
    Ok(Some(made))
}

fn config_map<'a>(known: &Known<'a>, name: &str, optional: Option<bool>) -> Result<Option<&'a Data>, PayloadError> {
    match known.sources.config_map(name) {
        None if optional != Some(true) => Err(PayloadError::ConfigMap(name.to_owned())),
        found => Ok(found),
    }
}

fn secret<'a>(known: &Known<'a>, name: &str, optional: Option<bool>) -> Result<Option<&'a Data>, PayloadError> {
    match known.sources.secret(name) {
        None if optional != Some(true) => Err(PayloadError::Secret(name.to_owned())),
        found => Ok(found),
    }
}

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(MODE)).unwrap_or(0) & 0o777
}

fn put(made: &mut Payload, path: &str, data: Vec<u8>, mode: u32, owner: Option<u32>) {
    made.files.insert(path.to_owned(), File { data, mode, owner });
}

fn keys(
    kind: &'static str,
    data: Option<&Data>,
    items: Option<&[KeyToPath]>,
    default: Option<i32>,
    optional: Option<bool>,
    made: &mut Payload,
) -> Result<(), PayloadError> {
    let Some(data) = data else { return Ok(()) };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, value) in data {
            put(made, key, value.to_vec(), mode(None, default), None);
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => put(made, &item.path, value.to_vec(), mode(item.mode, default), None),
            None if optional == Some(true) => (),
            None => return Err(PayloadError::Key { kind, key: item.key.clone() }),
        }
    }
    Ok(())
}

fn downward_file(
    pod: &Pod,
    item: &DownwardAPIVolumeFile,
    default: Option<i32>,
    known: &Known<'_>,
    made: &mut Payload,
) -> Result<(), PayloadError> {
    let text = if let Some(reference) = &item.field_ref {
        downward::field(pod, &reference.field_path, known.around)?
    } else if let Some(reference) = &item.resource_field_ref {
        downward::resource(pod, None, reference, known.around)?
    } else {
        return Ok(());
    };
    put(made, &item.path, text.into_bytes(), mode(item.mode, default), None);
    Ok(())
}

fn projection(
    pod: &Pod,
    part: &VolumeProjection,
    default: Option<i32>,
    known: &Known<'_>,
    made: &mut Payload,
) -> Result<(), PayloadError> {
    if let Some(source) = &part.config_map {
        let data = config_map(known, &source.name, source.optional)?;
        keys("configmap", data, source.items.as_deref(), default, source.optional, made)
    } else if let Some(source) = &part.secret {
        let data = secret(known, &source.name, source.optional)?;
        keys("secret", data, source.items.as_deref(), default, source.optional, made)
    } else if let Some(source) = &part.downward_api {
        source.items.iter().flatten().try_for_each(|item| downward_file(pod, item, default, known, made))
    } else if let Some(source) = &part.service_account_token {
        let wish = TokenWish {
            audience: source.audience.clone().unwrap_or_default(),
            seconds: source.expiration_seconds.unwrap_or(3600),
        };
        let token = known.tokens.get(&wish).ok_or(PayloadError::Token)?;
        let (mode, owner) = token_mode(pod, default);
        put(made, &source.path, token.clone().into_bytes(), mode, owner);
        Ok(())
    } else if part.cluster_trust_bundle.is_some() {
        Err(PayloadError::Unsupported("clusterTrustBundle"))
    } else {
        Err(PayloadError::Unsupported("podCertificate"))
    }
}

/// Tokens are secret: only their reader may read them. All containers running as one user own the file; a group given by
/// the pod may read it; otherwise the default mode holds, as upstream does.
fn token_mode(pod: &Pod, default: Option<i32>) -> (u32, Option<u32>) {
    let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    if security.is_some_and(|security| security.fs_group.is_some()) {
        return (0o640, None);
    }
    let of_pod = security.and_then(|security| security.run_as_user);
    let mut users = crate::pods::resources::containers(pod)
        .map(|container| container.security_context.as_ref().and_then(|own| own.run_as_user).or(of_pod));
    let first = users.next().flatten();
    match first {
        Some(user) if users.all(|other| other == Some(user)) => (0o600, u32::try_from(user).ok()),
        _ => (mode(None, default), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::{Value, json};

    struct Fixed(Data);
    impl Sources for Fixed {
        fn config_map(&self, name: &str) -> Option<&Data> {
            (name == "config").then_some(&self.0)
        }
        fn secret(&self, name: &str) -> Option<&Data> {
            (name == "secret").then_some(&self.0)
        }
    }

    fn files(volume: Value) -> Result<String, PayloadError> {
        let pod: Pod = serde_json::from_value(
            json!({ "metadata": { "name": "p", "namespace": "ns" }, "spec": { "containers": [] } }),
        )
        .expect("pod");
        let volume: Volume = serde_json::from_value(volume).expect("volume");
        let sources = Fixed(Data::from([("a".to_owned(), Bytes::from("1")), ("b".to_owned(), Bytes::from("2"))]));
        let tokens = token_wishes(&volume)
            .into_iter()
            .filter(|wish| wish.audience != "absent")
            .map(|wish| (wish, "token".to_owned()))
            .collect();
        let known = Known { sources: &sources, around: &Surroundings::default(), tokens: &tokens };
        let made = payload(&pod, &volume, &known)?.unwrap_or_default();
        Ok(made
            .files
            .iter()
            .map(|(path, file)| format!("{path}:{:o}={}", file.mode, String::from_utf8_lossy(&file.data)))
            .collect::<Vec<_>>()
            .join(" "))
    }

    #[test]
    fn keys_items_and_modes() {
        assert_eq!(files(json!({ "name": "v", "configMap": { "name": "config" } })).as_deref(), Ok("a:644=1 b:644=2"));
        let items = json!({ "name": "v", "secret": { "secretName": "secret", "defaultMode": 256, "items": [{ "key": "b", "path": "x/y", "mode": 384 }, { "key": "a", "path": "z" }] } });
        assert_eq!(files(items).as_deref(), Ok("x/y:600=2 z:400=1"));
    }

    #[test]
    fn a_projected_volume_joins_its_sources() {
        let volume = json!({ "name": "v", "projected": { "sources": [
            { "serviceAccountToken": { "path": "token", "expirationSeconds": 3607 } },
            { "configMap": { "name": "config", "items": [{ "key": "a", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } }] } },
        ] } });
        assert_eq!(files(volume).as_deref(), Ok("ca.crt:644=1 namespace:644=ns token:644=token"));
    }

    #[test]
    fn what_is_missing_is_named_unless_it_is_optional() {
        let text = |volume: Value| files(volume).map_err(|error| error.to_string());
        assert_eq!(
            text(json!({ "name": "v", "configMap": { "name": "no" } })),
            Err("configmap \"no\" not found".into())
        );
        assert_eq!(text(json!({ "name": "v", "configMap": { "name": "no", "optional": true } })), Ok(String::new()));
        let key = json!({ "name": "v", "secret": { "secretName": "secret", "items": [{ "key": "q", "path": "q" }] } });
        assert_eq!(text(key), Err("secret references non-existent key: q".into()));
        let token = json!({ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": "t", "audience": "absent" } }] } });
        assert_eq!(files(token), Err(PayloadError::Token));
    }
}
