//! Clients that write at a steady rate and try again until they are told yes. What was acknowledged is remembered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, PostParams};
use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use pintle_base::task::Group;

/// One attempt takes at most this long; then the writer asks again.
const ATTEMPT: Duration = Duration::from_millis(1000);
const PAUSE: Duration = Duration::from_millis(20);

/// Every write that was acknowledged, with the times it was first sent and answered.
#[derive(Clone, Default)]
pub struct Log {
    acknowledged: Arc<Mutex<Vec<Write>>>,
    sequence: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
pub struct Write {
    pub name: String,
    pub answered: Instant,
}

impl Log {
    pub fn writes(&self) -> Vec<Write> {
        self.acknowledged.lock().clone()
    }

    /// The longest time without an acknowledgement that began before `until` and ended after `from`.
    pub fn longest_gap(&self, from: Instant, until: Instant) -> Duration {
        let mut times: Vec<Instant> = self.acknowledged.lock().iter().map(|write| write.answered).collect();
        times.sort();
        let pairs = times.windows(2).filter(|pair| pair[1] >= from && pair[0] <= until);
        pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Acknowledged writes that a consistent list of the namespace does not show.
    ///
    /// # Errors
    /// If the list cannot be read.
    pub async fn lost(&self, client: &kube::Client, namespace: &str) -> Result<Vec<String>> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let (mut found, mut token) = (BTreeSet::new(), None::<String>);
        loop {
            let params = ListParams { limit: Some(500), continue_token: token, ..ListParams::default() };
            let page = maps.list_metadata(&params).await.context("list what was written")?;
            found.extend(page.items.into_iter().filter_map(|map| map.metadata.name));
            token = page.metadata.continue_.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(self
                    .writes()
                    .into_iter()
                    .map(|write| write.name)
                    .filter(|name| !found.contains(name))
                    .collect());
            }
        }
    }
}

/// Starts one writer that begins a write every `period`.
pub fn start(client: kube::Client, namespace: &str, prefix: &str, period: Duration, log: Log, group: &Group) {
    let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
    let prefix = prefix.to_owned();
    let own = group.clone();
    group.spawn_until_stopped("writer", async move {
        let mut ticker = clock::ticker(period);
        loop {
            ticker.tick().await;
            let name = format!("{prefix}-{}", log.sequence.fetch_add(1, Ordering::Relaxed));
            let (maps, log) = (maps.clone(), log.clone());
            // Each write is on its own, so that one that waits does not hide when others get through.
            own.spawn_until_stopped("write", async move {
                create(&maps, &name).await;
                log.acknowledged.lock().push(Write { name, answered: clock::now() });
            });
        }
    });
}

/// Creates the object, however often that takes; one that exists already was created by an attempt without answer.
async fn create(maps: &Api<ConfigMap>, name: &str) {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    loop {
        match clock::timeout(ATTEMPT, maps.create(&PostParams::default(), &map)).await {
            Ok(Ok(_)) => return,
            Ok(Err(kube::Error::Api(status))) if status.reason == "AlreadyExists" => return,
            Ok(Err(_)) | Err(_) => clock::sleep(PAUSE).await,
        }
    }
}
