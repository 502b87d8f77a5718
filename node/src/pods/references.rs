//! ConfigMaps and Secrets that pods of this node refer to, fetched by name and remembered, so that a restart of a
//! container needs no server (I10). The agent may read only what its pods refer to; it never lists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use tokio::sync::Notify;

use super::env::{Data, Sources};
use super::resources;
use crate::limits;

/// Which kind of object is referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
}

/// Which references of a pod are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those of variables, and logins for image registries.
    Containers,
    Volumes,
}

/// An object could not be read, and no earlier state of it is known.
#[derive(Debug, thiserror::Error)]
#[error("read {kind:?} {namespace}/{name}")]
pub struct ReferenceError {
    kind: Kind,
    namespace: String,
    name: String,
    #[source]
    source: kube::Error,
}

/// A ConfigMap or Secret as a checkpoint holds it.
#[derive(Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Saved {
    pub namespace: String,
    pub name: String,
    pub data: BTreeMap<String, ByteString>,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name) // what is in it stays unprinted
    }
}

struct Remembered {
    /// None: an earlier agent read it.
    at: Option<Instant>,
    /// `None`: the server said that there is no such object.
    data: Option<Arc<Data>>,
}

/// The cache. One per agent.
pub struct References {
    client: kube::Client,
    known: Mutex<BTreeMap<(Kind, String, String), Remembered>>,
    changed: Notify,
    /// When a server was last asked in vain.
    silent: Mutex<Option<Instant>>,
}

/// What one pod refers to, as it was when it was loaded.
#[derive(Clone, Debug, Default)]
pub struct Loaded(BTreeMap<(Kind, String), Arc<Data>>);

impl Sources for Loaded {
    fn config_map(&self, name: &str) -> Option<&Data> {
        self.0.get(&(Kind::ConfigMap, name.to_owned())).map(Arc::as_ref)
    }

    fn secret(&self, name: &str) -> Option<&Data> {
        self.0.get(&(Kind::Secret, name.to_owned())).map(Arc::as_ref)
    }
}

impl References {
    pub fn new(client: kube::Client) -> Self {
        Self { client, known: Mutex::default(), changed: Notify::new(), silent: Mutex::default() }
    }

    /// Takes over what an earlier agent remembered. It is used where no server says otherwise.
    pub fn restore(&self, kind: Kind, saved: Vec<Saved>) {
        let mut known = self.known.lock();
        for Saved { namespace, name, data } in saved.into_iter().take(limits::REFERENCES_REMEMBERED) {
            let data: Data = data.into_iter().map(|(key, value)| (key, Bytes::from(value.0))).collect();
            let remembered = Remembered { at: None, data: Some(Arc::new(data)) };
            known.entry((kind, namespace, name)).or_insert(remembered);
        }
    }

    /// What is remembered of the objects that `pods` refer to: ConfigMaps and Secrets.
    pub fn saved(&self, pods: &[Arc<Pod>]) -> (Vec<Saved>, Vec<Saved>) {
        let mut wanted = BTreeSet::new();
        for pod in pods {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for part in [Part::Containers, Part::Volumes] {
                wanted.extend(names(pod, part).into_iter().map(|(kind, name)| (kind, namespace.to_owned(), name)));
            }
        }
        let known = self.known.lock();
        let mut saved = (Vec::new(), Vec::new());
        for (kind, namespace, name) in wanted {
            let key = (kind, namespace, name);
            let Some(data) = known.get(&key).and_then(|known| known.data.as_ref()) else { continue };
            let data = data.iter().map(|(key, value)| (key.clone(), ByteString(value.to_vec()))).collect();
            let (kind, namespace, name) = key;
            let place = if kind == Kind::Secret { &mut saved.1 } else { &mut saved.0 };
            place.push(Saved { namespace, name, data });
        }
        saved
    }

    /// Resolves after something new was read. For one listener.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What `part` of `pod` refers to, not older than `age` where a server can be reached.
    ///
    /// # Errors
    /// [`ReferenceError`] for an object never read before that cannot be read now.
    pub async fn load(&self, pod: &Pod, part: Part, age: Duration) -> Result<Loaded, ReferenceError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut loaded = Loaded::default();
        for (kind, name) in names(pod, part) {
            if let Some(data) = self.get(kind, namespace, &name, age).await? {
                loaded.0.insert((kind, name), data);
            }
        }
        Ok(loaded)
    }

    async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        age: Duration,
    ) -> Result<Option<Arc<Data>>, ReferenceError> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let remembered = self.known.lock().get(&key).map(|known| (known.at, known.data.clone()));
        if let Some((at, data)) = &remembered
            && at.is_some_and(|at| at.elapsed() < age)
        {
            return Ok(data.clone());
        }
        let fetch = self.fetch(kind, namespace, name);
        let fetched = match &remembered {
            None => fetch.await,
            // A pod with many references waits for a lost server once, not once for each.
            Some((_, data)) if self.silent.lock().is_some_and(|at| at.elapsed() < limits::REFERENCE_SILENCE) => {
                return Ok(data.clone());
            }
            Some((_, data)) => match clock::timeout(limits::REFERENCE_WAIT, fetch).await {
                Ok(fetched) => fetched,
                Err(_) => {
                    *self.silent.lock() = Some(clock::now());
                    return Ok(data.clone());
                }
            },
        };
        match (fetched, remembered) {
            (Ok(data), _) => {
                let data = data.map(Arc::new);
                let mut known = self.known.lock();
                if known.len() >= limits::REFERENCES_REMEMBERED && !known.contains_key(&key) {
                    let oldest = known.iter().min_by_key(|(_, entry)| entry.at).map(|(key, _)| key.clone());
                    oldest.map(|oldest| known.remove(&oldest));
                }
                known.insert(key, Remembered { at: Some(clock::now()), data: data.clone() });
                self.changed.notify_one();
                Ok(data)
            }
            (Err(_), Some((_, data))) => Ok(data),
            (Err(source), None) => {
                Err(ReferenceError { kind, namespace: namespace.to_owned(), name: name.to_owned(), source })
            }
        }
    }

    async fn fetch(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Data>, kube::Error> {
        match kind {
            Kind::ConfigMap => {
                let found: Option<ConfigMap> = Api::namespaced(self.client.clone(), namespace).get_opt(name).await?;
                Ok(found.map(|map| {
                    let text = map.data.into_iter().flatten().map(|(key, value)| (key, Bytes::from(value)));
                    let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, Bytes::from(value.0)));
                    text.chain(binary).collect()
                }))
            }
            Kind::Secret => {
                let found: Option<Secret> = Api::namespaced(self.client.clone(), namespace).get_opt(name).await?;
                Ok(found.map(|secret| {
                    secret.data.into_iter().flatten().map(|(key, value)| (key, Bytes::from(value.0))).collect()
                }))
            }
        }
    }
}

fn names(pod: &Pod, part: Part) -> BTreeSet<(Kind, String)> {
    let mut names = match part {
        Part::Containers => names_of_containers(pod),
        Part::Volumes => names_of_volumes(pod),
    };
    names.retain(|(_, name)| !name.is_empty());
    names
}

fn names_of_containers(pod: &Pod) -> BTreeSet<(Kind, String)> {
    let mut names = BTreeSet::new();
    for container in resources::containers(pod) {
        for from in container.env_from.iter().flatten() {
            names.extend(from.config_map_ref.iter().map(|reference| (Kind::ConfigMap, reference.name.clone())));
            names.extend(from.secret_ref.iter().map(|reference| (Kind::Secret, reference.name.clone())));
        }
        for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            names.extend(from.config_map_key_ref.iter().map(|reference| (Kind::ConfigMap, reference.name.clone())));
            names.extend(from.secret_key_ref.iter().map(|reference| (Kind::Secret, reference.name.clone())));
        }
    }
    let secrets = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    names.extend(secrets.map(|reference| (Kind::Secret, reference.name.clone())));
    names
}

fn names_of_volumes(pod: &Pod) -> BTreeSet<(Kind, String)> {
    let mut names = BTreeSet::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        names.extend(volume.config_map.iter().map(|source| (Kind::ConfigMap, source.name.clone())));
        let secret = volume.secret.iter().filter_map(|source| source.secret_name.clone());
        names.extend(secret.map(|name| (Kind::Secret, name)));
        for part in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            names.extend(part.config_map.iter().map(|source| (Kind::ConfigMap, source.name.clone())));
            names.extend(part.secret.iter().map(|source| (Kind::Secret, source.name.clone())));
        }
    }
    names
}
